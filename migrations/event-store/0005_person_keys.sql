-- One key for each person, under which whatever identifies them is sealed before it enters the log. Events are kept for
-- ever; destroying the key is how what they say of a person is forgotten, in every copy of the log at once.
--
-- The key itself is wrapped by the master key, which is in no database: neither a copy of this table nor the master key
-- alone opens anything.
--
-- In the database of the event store that has the person's shard, so that a key is durable before, and lost no sooner
-- than, the events that need it.
CREATE TABLE person_keys (
    user_id       uuid             PRIMARY KEY,
    -- For moving a shard to another database: its keys go along.
    shard         smallint         NOT NULL CHECK (shard >= 0),
    -- Which master key wraps it, so that the master key can be changed step by step.
    master_key_id text COLLATE "C",
    wrapped_key   bytea            CHECK (octet_length(wrapped_key) = 48),
    made_at       timestamptz      NOT NULL DEFAULT now(),
    destroyed_at  timestamptz,
    -- Either a key or a tombstone. The tombstone stays: without it a new key would be made in silence, and what belongs
    -- to somebody who asked to be forgotten would be remembered again.
    CHECK ((wrapped_key IS NULL) = (destroyed_at IS NOT NULL)),
    CHECK ((wrapped_key IS NULL) = (master_key_id IS NULL))
);

-- A tombstone is for ever, whoever asks; and no row goes away.
CREATE FUNCTION keep_tombstones() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' OR (OLD.destroyed_at IS NOT NULL AND NEW IS DISTINCT FROM OLD) THEN
        RAISE EXCEPTION 'the key of a person is never removed without a trace, and a destroyed one stays destroyed';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER keep_tombstones BEFORE UPDATE OR DELETE ON person_keys
    FOR EACH ROW EXECUTE FUNCTION keep_tombstones();
CREATE TRIGGER keep_all BEFORE TRUNCATE ON person_keys
    FOR EACH STATEMENT EXECUTE FUNCTION keep_tombstones();

-- Destroy a person's key, also one that was never made. Whoever calls it sees to the old versions of the row (VACUUM)
-- and to the backups. Nobody who serves may.
-- In another database than that of the person's shard it does nothing, and says so: a tombstone there would only look
-- as if the key were gone.
CREATE FUNCTION destroy_person_key(person uuid, of_shard smallint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM shards s WHERE s.shard = of_shard) THEN
        RAISE EXCEPTION 'shard % is not in this database, so the key of % is not either', of_shard, person;
    END IF;
    INSERT INTO person_keys (user_id, shard, destroyed_at) VALUES (person, of_shard, now())
    ON CONFLICT (user_id) DO UPDATE SET master_key_id = NULL, wrapped_key = NULL, destroyed_at = now()
    WHERE person_keys.destroyed_at IS NULL;
END
$$;

REVOKE ALL ON FUNCTION keep_tombstones, destroy_person_key FROM PUBLIC;
GRANT SELECT ON person_keys TO skyriff_command, skyriff_query;
-- Only these columns: a role that serves can make a key, and no tombstone.
GRANT INSERT (user_id, shard, master_key_id, wrapped_key) ON person_keys TO skyriff_command;
