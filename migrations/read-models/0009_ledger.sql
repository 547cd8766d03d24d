-- What makes any balance of the books, as of any business time and any recorded time, a short sum; and what is held.
--
-- A balance as of two times is the sum of the entries that had happened by the one and were recorded by the other. Most
-- of these entries are in whole months, so their sums are kept by month; in the month of either time by day; and only of
-- the very day the entries themselves are read.
--
-- The new indexes are built while this runs, and projectors wait for it: some seconds for each million of entries.

-- All users together, and the platform.
CREATE TABLE ledger_sums (
    account     text COLLATE "C" NOT NULL,
    shard       smallint         NOT NULL,
    -- First the business time's, then the recorded time's: m, a month; d, a day. Every entry is in one row of each of
    -- the four.
    grain       text COLLATE "C" NOT NULL CHECK (grain IN ('mm', 'md', 'dm', 'dd')),
    -- The UTC day, or the first day of the month.
    occurred_on date             NOT NULL,
    recorded_on date             NOT NULL,
    amount      bigint           NOT NULL,
    entries     bigint           NOT NULL CHECK (entries > 0),
    PRIMARY KEY (grain, account, shard, occurred_on, recorded_on)
) WITH (fillfactor = 80);

-- The days of one month of the recorded time, whatever the business time.
CREATE INDEX ledger_sums_as_recorded ON ledger_sums (account, recorded_on, shard) WHERE grain = 'md';

-- Each user alone: by month only, since a user has few entries in one.
CREATE TABLE ledger_user_sums (
    user_id     uuid             NOT NULL,
    account     text COLLATE "C" NOT NULL,
    occurred_on date             NOT NULL,
    recorded_on date             NOT NULL,
    shard       smallint         NOT NULL,
    amount      bigint           NOT NULL,
    entries     bigint           NOT NULL CHECK (entries > 0),
    PRIMARY KEY (user_id, account, occurred_on, recorded_on)
) WITH (fillfactor = 80);

-- Every hold that ever was, by the event that opened it.
CREATE TABLE ledger_holds (
    shard              smallint         NOT NULL,
    position           bigint           NOT NULL,
    user_id            uuid             NOT NULL,
    hold               uuid             NOT NULL,
    reason             text COLLATE "C" NOT NULL,
    points             bigint           NOT NULL CHECK (points > 0),
    remaining          bigint           NOT NULL CHECK (remaining BETWEEN 0 AND points),
    -- When it ends by itself; null when what it is for ends it.
    expires_at         timestamptz,
    opened_at          timestamptz      NOT NULL,
    opened_recorded_at timestamptz      NOT NULL,
    -- What went from it: [business time, recorded time, points] of each event, in the log's order.
    changes            jsonb            NOT NULL,
    -- The latest of these times, of a hold of which nothing remains.
    closed_at          timestamptz,
    closed_recorded_at timestamptz,
    CHECK ((closed_at IS NULL) = (remaining > 0) AND (closed_recorded_at IS NULL) = (remaining > 0)),
    PRIMARY KEY (shard, position)
) WITH (fillfactor = 80);

-- An id is used again only when nothing remains of the hold before.
CREATE UNIQUE INDEX ledger_holds_open ON ledger_holds (user_id, hold) WHERE remaining > 0;
CREATE INDEX ledger_holds_open_by_age ON ledger_holds (opened_at, shard, position) WHERE remaining > 0;

-- The entries of an account in the order of either time: the rest of a sum, and pages.
CREATE INDEX ledger_entries_as_occurred ON ledger_entries (account, occurred_at, shard, position, line) INCLUDE (amount);
CREATE INDEX ledger_entries_as_recorded ON ledger_entries (account, recorded_at, shard, position, line);

GRANT SELECT, INSERT, UPDATE ON ledger_sums, ledger_user_sums, ledger_holds TO skyriff_project;
GRANT SELECT ON ledger_sums, ledger_user_sums, ledger_holds TO skyriff_query;
