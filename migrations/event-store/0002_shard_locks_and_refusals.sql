-- Two changes, for two reasons.
--
-- A shard's head is the position of its last event, and the right to append to it is an advisory lock of its own. Until
-- now both were a row that every append updated. Postgres can clear away the versions of a row only when nobody may still
-- look at them: one long read, or a replica that is down and holds its slot, and every append waded through more of
-- them. A lock in memory and the end of an index cost the same however long others read.
--
-- A refusal is remembered under its key, as an acceptance is: so the same key has the same answer, for as long as
-- keys are kept, whichever node is asked and however late an attempt of it arrives.

CREATE TABLE shards (
    shard smallint PRIMARY KEY CHECK (shard >= 0)
);
INSERT INTO shards SELECT shard FROM heads;

DROP FUNCTION append;
DROP TABLE heads;

-- The last position of each shard of this database.
CREATE VIEW heads AS
SELECT s.shard,
       coalesce((SELECT e.position FROM events e WHERE e.shard = s.shard ORDER BY e.position DESC LIMIT 1), 0) AS position
FROM shards s;

-- Nobody else appends to these shards until the end of the transaction. The shards must ascend, so that no two wait for
-- each other. What is read in statements after this one is what the appends before left.
CREATE FUNCTION lock_shards(shards smallint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'shards are locked in transactions that are read committed, not %',
            current_setting('transaction_isolation');
    END IF;
    -- 'SkyR', so that other users of advisory locks are not met by chance.
    PERFORM pg_advisory_xact_lock(x'536b7952'::integer, s) FROM unnest(lock_shards.shards) AS s;
END
$$;

-- Null for a command that was accepted; else why it was not, and then it has no events.
ALTER TABLE commands ADD COLUMN refusal text CHECK (refusal IS NULL OR events = 0);

CREATE OR REPLACE FUNCTION keep_commands(keep interval) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
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
        PERFORM lock_shards(ARRAY(SELECT s.shard FROM shards s ORDER BY s.shard));
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

-- Append what a batch of commands came to, all or nothing, in one round trip and one commit.
--
-- shards, expected_heads                the shards the batch decided on, ascending, and the head up to which the caller
--                                       knows each; a place below is an index into these, from 1
-- stream_types, _ids, _sequences        every stream the batch read, also those it only refused on, and how far
-- command_ids … command_refusals        the commands; offset = the last of a command's events, counted from 1 in the
--                                       batch's events of its shard; 0 with no event before it in the batch
-- event_places … event_occurred_at      the events, with their offset in the batch's events of their shard
--
-- outcome 'appended': heads are the heads before the append, so an event is at heads[place] + offset.
-- outcome 'stale':    streams moved on since the caller read them (indexes from 1 in streams); nothing was written.
-- outcome 'repeated': commands were recorded before (their ids in repeated); nothing was written.
CREATE FUNCTION append(
    shards smallint[], expected_heads bigint[],
    stream_types text[], stream_ids text[], stream_sequences bigint[],
    command_ids uuid[], command_fingerprints uuid[], command_places integer[], command_offsets bigint[],
    command_events integer[], command_refusals text[],
    event_places integer[], event_offsets bigint[], event_aggregate_types text[], event_aggregate_ids text[],
    event_sequences bigint[], event_types text[], event_versions text[], event_payloads text[],
    event_metadata text[], event_occurred_at timestamptz[],
    OUT outcome text, OUT heads bigint[], OUT stale bigint[], OUT repeated uuid[], OUT recorded_at timestamptz
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM lock_shards(shards);
    heads := ARRAY(SELECT h.position FROM heads h WHERE h.shard = ANY (append.shards) ORDER BY h.shard);
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

    repeated := ARRAY(SELECT c.command_id FROM commands c WHERE c.command_id = ANY (command_ids));
    IF cardinality(repeated) > 0 THEN
        outcome := 'repeated';
        RETURN;
    END IF;

    outcome := 'appended';
    recorded_at := clock_timestamp();
    INSERT INTO commands (command_id, fingerprint, shard, position, events, recorded_at, refusal)
    SELECT c.id, c.fingerprint, append.shards[c.place], append.heads[c.place] + c.last_offset, c.events,
           append.recorded_at, c.refusal
    FROM unnest(command_ids, command_fingerprints, command_places, command_offsets, command_events, command_refusals)
             AS c (id, fingerprint, place, last_offset, events, refusal);

    IF cardinality(event_places) > 0 THEN
        INSERT INTO events (shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                            payload, metadata, occurred_at, recorded_at)
        SELECT append.shards[e.place], append.heads[e.place] + e.shard_offset, e.aggregate_type, e.aggregate_id,
               e.sequence, e.event_type, e.event_version, e.payload::json, e.metadata::json, e.occurred_at,
               append.recorded_at
        FROM unnest(event_places, event_offsets, event_aggregate_types, event_aggregate_ids, event_sequences,
                    event_types, event_versions, event_payloads, event_metadata, event_occurred_at)
                 AS e (place, shard_offset, aggregate_type, aggregate_id, sequence, event_type, event_version, payload,
                       metadata, occurred_at);

        PERFORM pg_notify('skyriff_events', '');
    END IF;
END
$$;

REVOKE ALL ON FUNCTION append, lock_shards FROM PUBLIC;
GRANT SELECT ON shards, heads TO skyriff_command, skyriff_project, skyriff_query;
GRANT EXECUTE ON FUNCTION append, lock_shards TO skyriff_command;
