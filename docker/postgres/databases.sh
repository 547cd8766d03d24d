#!/bin/sh
# Make the roles, the databases and the standbys' replication slots on the primary, as its superuser. What is there stays, so
# it runs before every migration.
# Usage: databases.sh ROLES, the file migrations/roles.sql. PGHOST and PGPORT say where the primary is, SECRETS is the folder
# with ca.crt, databases.crt and databases.key.
set -eu
roles=${1:?usage: databases.sh ROLES}
: "${SECRETS:?}" "${PGHOST:?}"

# psql uses no key that others can read.
key=$(mktemp)
trap 'rm -f "$key"' EXIT
install -m 600 "$SECRETS/databases.key" "$key"
export PGUSER=postgres PGSSLMODE=verify-full PGSSLROOTCERT="$SECRETS/ca.crt" PGSSLCERT="$SECRETS/databases.crt" PGSSLKEY="$key"
# There may be no standby yet that a commit could wait for.
export PGOPTIONS='-c synchronous_commit=local -c client_min_messages=warning'

run() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 "$@" >/dev/null; }

run --dbname postgres --file "$roles"
run --dbname postgres <<'SQL'
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'replicator') THEN
        CREATE ROLE replicator LOGIN REPLICATION;
    END IF;
END
$$;
-- One whose standby was away for too long serves nobody any more; the standby has to be made anew, and takes a new one.
SELECT pg_drop_replication_slot(slot_name)
FROM pg_replication_slots
WHERE slot_name IN ('replica_1', 'replica_2') AND wal_status = 'lost' AND NOT active;
-- From now on, so that nothing is gone before the standby is made.
SELECT pg_create_physical_replication_slot(name, true)
FROM unnest(ARRAY['replica_1', 'replica_2']) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = name);
SQL
for database in skyriff_events skyriff_reads_0 skyriff_reads_1; do
    run --dbname postgres --set "database=$database" <<'SQL'
SELECT format('CREATE DATABASE %I OWNER skyriff_owner', :'database')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
SQL
    run --dbname "$database" --command 'ALTER SCHEMA public OWNER TO skyriff_owner'
done
echo "· roles, databases and replication slots are there" >&2
