-- Tips, as their sender and as their receiver see them: a row for each of the two, in the shard of its user, since each
-- reads its own shard. What the receiver's row says is known when the receiver's shard has said yes or no, so it is never
-- merely offered.

CREATE TABLE tips (
    tip_id      uuid             NOT NULL,
    direction   text COLLATE "C" NOT NULL CHECK (direction IN ('sent', 'received')),
    user_id     uuid             NOT NULL,
    -- The other end.
    other_id    uuid             NOT NULL CHECK (other_id <> user_id),
    shard       smallint         NOT NULL,
    -- What the sender pays, and what the platform keeps of it.
    points      bigint           NOT NULL CHECK (points > 0),
    share       bigint           NOT NULL CHECK (share BETWEEN 0 AND points),
    work_id     uuid,
    state       text COLLATE "C" NOT NULL CHECK (state IN ('offered', 'delivered', 'returned')),
    -- Why it was returned.
    reason      text,
    occurred_at timestamptz      NOT NULL,
    -- Of the event that the row began with.
    position    bigint           NOT NULL,
    PRIMARY KEY (tip_id, direction),
    CHECK (direction = 'sent' OR state <> 'offered'),
    CHECK ((state = 'returned') = (reason IS NOT NULL))
) WITH (fillfactor = 80);

-- A user's page, newest first.
CREATE INDEX tips_of_user ON tips (user_id, direction, occurred_at DESC, position DESC);

GRANT SELECT, INSERT, UPDATE ON tips TO skyriff_project;
GRANT SELECT ON tips TO skyriff_query;
