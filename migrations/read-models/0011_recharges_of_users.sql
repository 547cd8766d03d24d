-- That an order is credited to one user only is held by each database of the event store for itself. Where two of them have
-- credited the same one, both are rows here, so that a reconciliation tells it as too many points, and the read model goes on.
ALTER TABLE recharges DROP CONSTRAINT recharges_pkey, ADD PRIMARY KEY (order_id, user_id);
