-- The read models of the shards that live in this database, and how far each has read the log.
--
-- A row and the checkpoint that says it is there commit together. Constraints state what must hold: a projection that
-- would break one stops with the event that did it, instead of serving a wrong number.

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO skyriff_project, skyriff_query;

-- One row per projection and shard. Readers look here to know how fresh they are; it replicates with the rows.
CREATE TABLE checkpoints (
    projection text        NOT NULL,
    version    integer     NOT NULL,
    shard      smallint    NOT NULL,
    position   bigint      NOT NULL DEFAULT 0 CHECK (position >= 0),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Why the shard stands still, for whoever is called at night; null while it runs.
    stopped    text,
    PRIMARY KEY (projection, version, shard)
) WITH (fillfactor = 20);

CREATE TABLE balances (
    user_id          uuid     PRIMARY KEY,
    shard            smallint NOT NULL,
    available_promo  bigint   NOT NULL CHECK (available_promo >= 0),
    available_paid   bigint   NOT NULL CHECK (available_paid >= 0),
    available_income bigint   NOT NULL CHECK (available_income >= 0),
    held_promo       bigint   NOT NULL CHECK (held_promo >= 0),
    held_paid        bigint   NOT NULL CHECK (held_paid >= 0),
    held_income      bigint   NOT NULL CHECK (held_income >= 0),
    position         bigint   NOT NULL
) WITH (fillfactor = 80);

-- Available promo points by the moment at which they expire; they sum to balances.available_promo.
CREATE TABLE promo_lots (
    user_id    uuid        NOT NULL,
    expires_at timestamptz NOT NULL,
    points     bigint      NOT NULL CHECK (points > 0),
    PRIMARY KEY (user_id, expires_at)
) WITH (fillfactor = 80);

-- Every posting of every event, by the month in which it happened. user_id is null on the platform's accounts.
CREATE TABLE ledger_entries (
    shard       smallint         NOT NULL,
    position    bigint           NOT NULL,
    line        smallint         NOT NULL,
    user_id     uuid,
    account     text COLLATE "C" NOT NULL,
    amount      bigint           NOT NULL CHECK (amount <> 0),
    event_type  text COLLATE "C" NOT NULL,
    reference   text,
    occurred_at timestamptz      NOT NULL,
    recorded_at timestamptz      NOT NULL,
    PRIMARY KEY (shard, position, line, occurred_at)
) PARTITION BY RANGE (occurred_at);

-- A user's page, newest first: partitions are in the order of the key, so a page ends at the first that fills it.
CREATE INDEX ledger_entries_of_user ON ledger_entries (user_id, occurred_at DESC, position DESC, line DESC)
    WHERE user_id IS NOT NULL;

-- Make the partition of a month if it is not there. The projector may not create tables; this function may, and only
-- these. Attaching takes a lock that readers do not notice, unlike creating the partition in place.
CREATE FUNCTION ensure_ledger_month(month date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    first_day date := date_trunc('month', month)::date;
    next_month date := (date_trunc('month', month) + interval '1 month')::date;
    name text := 'ledger_entries_' || to_char(month, 'YYYY_MM');
BEGIN
    IF to_regclass(name) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('ensure_ledger_month'));
    IF to_regclass(name) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE ledger_entries INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE ledger_entries ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   name, first_day::timestamptz, next_month::timestamptz);
    EXECUTE format('GRANT SELECT, INSERT ON %I TO skyriff_project', name);
    EXECUTE format('GRANT SELECT ON %I TO skyriff_query', name);
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_ledger_month TO skyriff_project;
GRANT SELECT, INSERT, UPDATE ON checkpoints TO skyriff_project;
GRANT SELECT, INSERT, UPDATE, DELETE ON balances, promo_lots TO skyriff_project;
GRANT SELECT, INSERT ON ledger_entries TO skyriff_project;
GRANT SELECT ON checkpoints, balances, promo_lots, ledger_entries TO skyriff_query;
