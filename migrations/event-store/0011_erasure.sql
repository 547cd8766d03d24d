-- A person is forgotten by an event of its own, and the key goes in the transaction that records it: there is never such an
-- event beside a key that still opens something, whatever crashes when, and whoever inserts the event; also not in a database
-- into which a log is copied. So the role that appends can destroy a key in one way, which the log tells of for ever.

CREATE FUNCTION destroy_key_of_erased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM destroy_person_key(NEW.aggregate_id::uuid, NEW.shard);
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION destroy_key_of_erased FROM PUBLIC;

-- The condition is looked at for each event that is appended, the function called for none but these.
CREATE TRIGGER destroy_key_of_erased AFTER INSERT ON events FOR EACH ROW
    WHEN (NEW.aggregate_type = 'erasure' AND NEW.event_type = 'erased') EXECUTE FUNCTION destroy_key_of_erased();

-- What somebody shows, also what was made elsewhere: it is taken down when they are forgotten. (What was made here is found by
-- its jobs, which the stream of the maker's slots names.)
CREATE INDEX works_by_creator ON events ((payload #>> '{published,creator}'))
    WHERE aggregate_type = 'work' AND event_type = 'published';
