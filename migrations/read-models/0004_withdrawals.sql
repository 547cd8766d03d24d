-- What has become of each withdrawal, for its owner and for those who decide it, and what is known of its owner, so that
-- who decides need not add up a history: a row a person, kept up with the log.

CREATE TABLE withdrawals (
    withdrawal_id  uuid             PRIMARY KEY,
    user_id        uuid             NOT NULL,
    shard          smallint         NOT NULL,
    status         text COLLATE "C" NOT NULL,
    points         bigint           NOT NULL CHECK (points > 0),
    fee            bigint           NOT NULL CHECK (fee BETWEEN 0 AND points),
    minor          bigint           NOT NULL CHECK (minor > 0),
    currency       text COLLATE "C" NOT NULL,
    -- As in the event: opens with the owner's key only.
    destination    text COLLATE "C" NOT NULL,
    reviews_needed smallint         NOT NULL CHECK (reviews_needed >= 0),
    approved_by    uuid[]           NOT NULL,
    rejected_by    uuid,
    -- Why it was rejected, has failed or needs attention.
    reason         text,
    provider       text COLLATE "C",
    -- What the provider calls the payout.
    reference      text COLLATE "C",
    requested_at   timestamptz      NOT NULL,
    updated_at     timestamptz      NOT NULL,
    -- Where in the shard's log it was requested: the order of its owner's list.
    requested_position bigint       NOT NULL,
    position       bigint           NOT NULL CHECK (position >= requested_position)
) WITH (fillfactor = 80);

CREATE INDEX withdrawals_of_user ON withdrawals (user_id, requested_position DESC);
-- What waits for somebody, oldest first. A withdrawal that is over leaves it, so it stays as small as the queue is.
CREATE INDEX withdrawals_that_wait ON withdrawals (status, requested_at, withdrawal_id)
    WHERE status IN ('under_review', 'needs_attention');

-- What those who decide want to know of a person. Sums of income may be negative where operators have taken more back
-- than they gave.
CREATE TABLE risk_facts (
    user_id          uuid        PRIMARY KEY,
    shard            smallint    NOT NULL,
    -- When the account first had points moved.
    first_seen_at    timestamptz NOT NULL,
    earned_points    bigint      NOT NULL DEFAULT 0 CHECK (earned_points >= 0),
    tips_points      bigint      NOT NULL DEFAULT 0 CHECK (tips_points >= 0),
    adjusted_points  bigint      NOT NULL DEFAULT 0,
    paid_count       bigint      NOT NULL DEFAULT 0 CHECK (paid_count >= 0),
    paid_points      bigint      NOT NULL DEFAULT 0 CHECK (paid_points >= 0),
    failed_count     bigint      NOT NULL DEFAULT 0 CHECK (failed_count >= 0),
    failed_points    bigint      NOT NULL DEFAULT 0 CHECK (failed_points >= 0),
    rejected_count   bigint      NOT NULL DEFAULT 0 CHECK (rejected_count >= 0),
    rejected_points  bigint      NOT NULL DEFAULT 0 CHECK (rejected_points >= 0),
    cancelled_count  bigint      NOT NULL DEFAULT 0 CHECK (cancelled_count >= 0),
    cancelled_points bigint      NOT NULL DEFAULT 0 CHECK (cancelled_points >= 0)
) WITH (fillfactor = 80);

GRANT SELECT, INSERT, UPDATE, DELETE ON withdrawals, risk_facts TO skyriff_project;
GRANT SELECT ON withdrawals, risk_facts TO skyriff_query;
