-- What providers' files say, beside what the ledger says; and the recharges, which are compared by the day of their payment.

-- A row a payment that was credited.
CREATE TABLE recharges (
    order_id    uuid        PRIMARY KEY,
    user_id     uuid        NOT NULL,
    shard       smallint    NOT NULL,
    points      bigint      NOT NULL CHECK (points > 0),
    credited_at timestamptz NOT NULL,
    position    bigint      NOT NULL
);
CREATE INDEX recharges_by_time ON recharges (credited_at, order_id);

-- Withdrawals are compared by when they were paid.
CREATE INDEX withdrawals_paid ON withdrawals (updated_at, withdrawal_id) WHERE status = 'paid';

-- A file that was compared, or is being compared.
CREATE TABLE reconciliation_runs (
    run_id            uuid             PRIMARY KEY,
    shard             smallint         NOT NULL,
    kind              text COLLATE "C" NOT NULL CHECK (kind IN ('payouts', 'recharges')),
    provider          text COLLATE "C" NOT NULL,
    from_day          date             NOT NULL,
    to_day            date             NOT NULL,
    sha256            text COLLATE "C" NOT NULL,
    lines             bigint           NOT NULL,
    started_at        timestamptz      NOT NULL,
    -- All of these, or none until it is over.
    finished_at       timestamptz,
    matched           bigint,
    missing_in_ledger bigint,
    missing_in_file   bigint,
    different         bigint,
    repeated          bigint,
    explained         bigint,
    position          bigint           NOT NULL,
    CHECK ((finished_at IS NULL) = (matched IS NULL))
);
CREATE INDEX reconciliation_runs_by_time ON reconciliation_runs (started_at DESC, run_id DESC);

-- What does not agree, as it is now.
CREATE TABLE reconciliation_exceptions (
    exception_id uuid             PRIMARY KEY,
    -- In whose shard it lives; null when the ledger does not know whose the payment is, and then it lives by its own id.
    user_id      uuid,
    shard        smallint         NOT NULL,
    kind         text COLLATE "C" NOT NULL CHECK (kind IN ('payouts', 'recharges')),
    provider     text COLLATE "C" NOT NULL,
    -- The withdrawal or the order.
    subject      uuid             NOT NULL,
    -- That found it, with these figures.
    run_id       uuid             NOT NULL,
    difference   text COLLATE "C" NOT NULL,
    ours         jsonb,
    theirs       jsonb,
    line         bigint,
    state        text COLLATE "C" NOT NULL CHECK (state IN ('open', 'explained', 'resolved')),
    explained_by uuid,
    resolved_by  uuid,
    outcome      text COLLATE "C",
    -- As in the event: sealed, after a mark, or in the clear.
    reason       text,
    found_at     timestamptz      NOT NULL,
    changed_at   timestamptz      NOT NULL,
    position     bigint           NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX reconciliation_exceptions_by_time ON reconciliation_exceptions (found_at DESC, exception_id DESC);
CREATE INDEX reconciliation_exceptions_open ON reconciliation_exceptions (found_at DESC, exception_id DESC)
    WHERE state = 'open';
CREATE INDEX reconciliation_exceptions_of ON reconciliation_exceptions (subject);

GRANT SELECT, INSERT, UPDATE ON recharges, reconciliation_runs, reconciliation_exceptions TO skyriff_project;
GRANT SELECT ON recharges, reconciliation_runs, reconciliation_exceptions TO skyriff_query;
