-- The event log of the shards that live in this database, and what an append checks and keeps beside it.
--
-- Invariants, and what holds them:
--   * positions of a shard are 1, 2, 3 … without a gap and in commit order: they come from the shard's row in heads,
--     which an append locks and advances in its own transaction;
--   * sequences of a stream are 1, 2, 3 …: the unique constraint on events, and the check in append();
--   * a command is recorded once, for as long as it is kept: the look-up in append(), under the shard's lock;
--   * events never change: no role of the app may update, delete or truncate them.

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO skyriff_command, skyriff_project, skyriff_query;

-- What this store was created as. Another shard count would send users to other logs, so every start compares.
CREATE TABLE store (
    only_row    boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    shard_count smallint    NOT NULL CHECK (shard_count > 0),
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- The last position of each shard of this database. A few rows, updated by every append: the low fill factor leaves
-- room for their versions on the page, so that no append ever touches the index.
CREATE TABLE heads (
    shard    smallint PRIMARY KEY CHECK (shard >= 0),
    position bigint   NOT NULL DEFAULT 0 CHECK (position >= 0)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The columns that postgres-es knows carry its names, so that its stock repository reads the table as it is.
-- payload and metadata are json and not jsonb: the log keeps the very bytes that were written.
CREATE TABLE events (
    shard          smallint         NOT NULL,
    position       bigint           NOT NULL CHECK (position > 0),
    aggregate_type text COLLATE "C" NOT NULL,
    aggregate_id   text COLLATE "C" NOT NULL,
    sequence       bigint           NOT NULL CHECK (sequence > 0),
    event_type     text COLLATE "C" NOT NULL,
    event_version  text COLLATE "C" NOT NULL,
    payload        json             NOT NULL,
    metadata       json             NOT NULL,
    occurred_at    timestamptz      NOT NULL,
    recorded_at    timestamptz      NOT NULL,
    PRIMARY KEY (shard, position),
    UNIQUE (aggregate_type, aggregate_id, sequence)
);

-- What each command came to: the events (position - events, position] of its shard. The answer itself is read back
-- from the log, so it is kept once. Kept for a while only, and forgotten by dropping partitions: see keep_commands().
-- That no command is recorded twice is seen to in append(), which looks it up in every partition while it holds the lock
-- of the shard; the unique index of each partition is a second line.
CREATE TABLE commands (
    command_id  uuid        NOT NULL,
    fingerprint uuid        NOT NULL,
    shard       smallint    NOT NULL,
    position    bigint      NOT NULL,
    events      integer     NOT NULL CHECK (events >= 0),
    recorded_at timestamptz NOT NULL
) PARTITION BY RANGE (recorded_at);

-- What no other partition takes, so that an append never fails for the want of one.
CREATE TABLE commands_rest PARTITION OF commands DEFAULT;
CREATE UNIQUE INDEX commands_rest_id ON commands_rest (command_id);

CREATE TABLE command_partitions (
    name    text        PRIMARY KEY,
    from_at timestamptz NOT NULL,
    to_at   timestamptz NOT NULL CHECK (to_at > from_at)
);

-- Have a partition ready well before it is needed, and drop those in which every command is older than keep. Partitions
-- are as wide as that, so there are few to look through, and a command is kept for one to two times keep.
CREATE FUNCTION keep_commands(keep interval) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    old command_partitions;
    new command_partitions;
BEGIN
    IF keep < interval '1 hour' THEN
        RAISE EXCEPTION 'commands are kept for at least an hour, not for %', keep;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('keep_commands'));
    -- While ids move, an append that already looks for one would see neither where it was nor where it is: so nobody
    -- appends meanwhile. Only when there is something to do, which is now and then.
    IF NOT EXISTS (SELECT FROM command_partitions p WHERE p.to_at > now() + keep / 3) THEN
        PERFORM FROM heads ORDER BY shard FOR UPDATE;
    END IF;
    LOOP
        SELECT max(p.to_at) INTO new.from_at FROM command_partitions p;
        EXIT WHEN new.from_at > now() + keep / 3;
        new.from_at := greatest(new.from_at, date_trunc('hour', now()));
        new.to_at := new.from_at + keep;
        new.name := 'commands_' || to_char(new.from_at AT TIME ZONE 'UTC', 'YYYYMMDD_HH24MI');
        EXECUTE format('CREATE TABLE %I (LIKE commands INCLUDING ALL)', new.name);
        EXECUTE format('CREATE UNIQUE INDEX ON %I (command_id)', new.name);
        EXECUTE format('WITH moved AS (DELETE FROM commands_rest WHERE recorded_at >= %L AND recorded_at < %L RETURNING *)
                        INSERT INTO %I SELECT * FROM moved', new.from_at, new.to_at, new.name);
        EXECUTE format('ALTER TABLE commands ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       new.name, new.from_at, new.to_at);
        INSERT INTO command_partitions VALUES (new.*);
    END LOOP;
    FOR old IN SELECT * FROM command_partitions p WHERE p.to_at < now() - keep LOOP
        EXECUTE format('DROP TABLE %I', old.name);
        DELETE FROM command_partitions p WHERE p.name = old.name;
    END LOOP;
END
$$;

-- A stream folded up to a sequence: saves reading it from the start, never decides anything the log does not say.
CREATE TABLE snapshots (
    aggregate_type text COLLATE "C" NOT NULL,
    aggregate_id   text COLLATE "C" NOT NULL,
    sequence       bigint           NOT NULL CHECK (sequence > 0),
    state_version  integer          NOT NULL,
    state          text             NOT NULL,
    checksum       bytea            NOT NULL,
    PRIMARY KEY (aggregate_type, aggregate_id)
);

-- Append the events of a batch of commands, all or nothing, in one round trip and one commit.
--
-- shards, expected_heads, new_events    the shards the batch decided on, ascending; the head up to which the caller
--                                       knows each, and how many events the batch adds to it
-- stream_types, _ids, _sequences        every stream the batch read, also those it only refused on, and how far
-- command_ids … command_events          the accepted commands; offset = the last of its events, counted from 1 in the
--                                       batch's events of its shard; 0 with no event before it in the batch
-- refused_ids                           commands the batch refused: looked up, since a retry of a command that was
--                                       accepted earlier may well look refusable now
-- event_shards … event_occurred_at      the events, with their offset in the batch's events of their shard
--
-- outcome 'appended': heads are the heads before the append, so an event is at heads[shard] + offset.
-- outcome 'stale':    streams moved on since the caller read them (indexes from 1 in streams); nothing was written.
-- outcome 'repeated': commands were recorded before (their ids in repeated); nothing was written.
CREATE FUNCTION append(
    shards smallint[], expected_heads bigint[], new_events bigint[],
    stream_types text[], stream_ids text[], stream_sequences bigint[],
    command_ids uuid[], command_fingerprints uuid[], command_shards smallint[], command_offsets bigint[],
    command_events integer[],
    refused_ids uuid[],
    event_shards smallint[], event_offsets bigint[], event_aggregate_types text[], event_aggregate_ids text[],
    event_sequences bigint[], event_types text[], event_versions text[], event_payloads text[],
    event_metadata text[], event_occurred_at timestamptz[],
    OUT outcome text, OUT heads bigint[], OUT stale bigint[], OUT repeated uuid[], OUT recorded_at timestamptz
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    -- From here on nobody else appends to these shards. Always in shard order, so no two appends wait for each other.
    heads := ARRAY(SELECT h.position FROM heads h WHERE h.shard = ANY (append.shards) ORDER BY h.shard FOR UPDATE);
    IF cardinality(heads) <> cardinality(shards) THEN
        RAISE EXCEPTION 'this database does not hold all of the shards %', shards USING ERRCODE = 'SR001';
    END IF;

    -- While the heads are where the caller knows them, nothing it knows has changed. Otherwise look stream by stream.
    IF heads <> expected_heads THEN
        stale := ARRAY(
            SELECT s.index
            FROM unnest(stream_types, stream_ids, stream_sequences) WITH ORDINALITY AS s (type, id, sequence, index)
            WHERE s.sequence <> coalesce(
                (SELECT max(e.sequence) FROM events e WHERE e.aggregate_type = s.type AND e.aggregate_id = s.id), 0));
        IF cardinality(stale) > 0 THEN
            outcome := 'stale';
            RETURN;
        END IF;
    END IF;

    repeated := ARRAY(SELECT c.command_id FROM commands c WHERE c.command_id = ANY (command_ids || refused_ids));
    IF cardinality(repeated) > 0 THEN
        outcome := 'repeated';
        RETURN;
    END IF;

    outcome := 'appended';
    IF cardinality(command_ids) = 0 THEN
        -- Nothing was written, so there is nothing to flush: the locks were only to wait for whoever was writing.
        PERFORM set_config('synchronous_commit', 'off', true);
        RETURN;
    END IF;
    recorded_at := clock_timestamp();

    INSERT INTO commands (command_id, fingerprint, shard, position, events, recorded_at)
    SELECT c.id, c.fingerprint, c.shard, h.position + c.last_offset, c.events, append.recorded_at
    FROM unnest(command_ids, command_fingerprints, command_shards, command_offsets, command_events)
             AS c (id, fingerprint, shard, last_offset, events)
    JOIN unnest(shards, append.heads) AS h (shard, position) USING (shard);

    IF cardinality(event_shards) > 0 THEN
        INSERT INTO events (shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                            payload, metadata, occurred_at, recorded_at)
        SELECT e.shard, h.position + e.place, e.aggregate_type, e.aggregate_id, e.sequence, e.event_type,
               e.event_version, e.payload::json, e.metadata::json, e.occurred_at, append.recorded_at
        FROM unnest(event_shards, event_offsets, event_aggregate_types, event_aggregate_ids, event_sequences,
                    event_types, event_versions, event_payloads, event_metadata, event_occurred_at)
                 AS e (shard, place, aggregate_type, aggregate_id, sequence, event_type, event_version, payload,
                       metadata, occurred_at)
        JOIN unnest(shards, append.heads) AS h (shard, position) USING (shard);

        UPDATE heads h SET position = h.position + n.events
        FROM unnest(shards, new_events) AS n (shard, events)
        WHERE h.shard = n.shard AND n.events > 0;

        PERFORM pg_notify('skyriff_events', '');
    END IF;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
GRANT SELECT ON store, heads, events TO skyriff_command, skyriff_project, skyriff_query;
GRANT INSERT ON events TO skyriff_command;
GRANT UPDATE ON heads TO skyriff_command;
GRANT SELECT, INSERT ON commands TO skyriff_command;
GRANT SELECT, INSERT, UPDATE, DELETE ON snapshots TO skyriff_command;
GRANT EXECUTE ON FUNCTION append, keep_commands TO skyriff_command;
