-- The roles of SkyRiff, each with no more rights than its work needs. Made once per Postgres cluster, by whoever runs
-- it, before the first migration, and again before one that comes with a new role (what exists is left as it is). In
-- production give each a way to log in (a password, a certificate). The migrations grant the rights.
--
--   skyriff_owner    owns the tables and runs migrations; no process of the app uses it while serving
--   skyriff_command  appends: may read and insert events and wrapped keys of persons, never change or remove them;
--                    an event that forgets somebody destroys their key with it (event-store/0011_erasure.sql)
--   skyriff_project  reads events, writes read models
--   skyriff_process  reads events and wrapped keys of persons, keeps what processes have yet to do
--   skyriff_query    reads events, read models and wrapped keys of persons
--   skyriff_relay    reads events, keeps how far it has sent them
--   skyriff_seal     reads events
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['skyriff_owner', 'skyriff_command', 'skyriff_project', 'skyriff_process', 'skyriff_query',
                                'skyriff_relay', 'skyriff_seal'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
    END LOOP;
END
$$;
