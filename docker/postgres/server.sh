#!/bin/sh
# Start a Postgres server of the cluster, making its data first if there is none.
# Usage: server.sh primary|standby NAME [option of postgres …]
#
#   PGDATA                        where its data is; beside it goes a folder tls with its own copies of the keys
#   SECRETS                       the folder with ca.crt, postgres.crt and .key, replicator.crt and .key
#   PRIMARY_HOST, PRIMARY_PORT    for a standby: what it follows, through the replication slot NAME
set -eu
kind=${1:?primary or standby}
name=${2:?a name}
shift 2
here=$(cd "$(dirname "$0")" && pwd)
: "${PGDATA:?}" "${SECRETS:?}"

say() { printf '· %s: %s\n' "$name" "$*" >&2; }

# Postgres and its clients use no key that others can read, and a mounted secret may be readable by all.
tls=$(dirname "$PGDATA")/tls
mkdir -p "$tls"
chmod 700 "$tls"
for file in ca.crt postgres.crt postgres.key; do
    install -m 600 "$SECRETS/$file" "$tls/$file"
done
if [ "$kind" = standby ]; then
    install -m 600 "$SECRETS/replicator.crt" "$SECRETS/replicator.key" "$tls/"
    from="host=${PRIMARY_HOST:?} port=${PRIMARY_PORT:-5432} user=replicator application_name=$name sslmode=verify-full"
    from="$from sslrootcert=$tls/ca.crt sslcert=$tls/replicator.crt sslkey=$tls/replicator.key"
fi

# Made beside its place and moved there whole, so that a start that was cut off is begun anew.
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    rm -rf "$PGDATA.new"
    case $kind in
        primary)
            say "making a new cluster"
            initdb --pgdata "$PGDATA.new" --username postgres --auth-local peer --auth-host reject --encoding UTF8 \
                --locale C --data-checksums >/dev/null
            ;;
        standby)
            say "copying the primary"
            pg_basebackup --pgdata "$PGDATA.new" --dbname "$from" --slot "$name" --wal-method stream --checkpoint fast \
                --no-password
            touch "$PGDATA.new/standby.signal"
            ;;
    esac
    mv "$PGDATA.new" "$PGDATA"
fi

if [ "$kind" = standby ]; then
    set -- -c "primary_conninfo=$from" -c "primary_slot_name=$name" "$@"
fi
exec postgres -D "$PGDATA" -c "cluster_name=$name" -c "config_file=$here/postgresql.conf" -c "hba_file=$here/pg_hba.conf" \
    -c "ident_file=$here/pg_ident.conf" -c "ssl_ca_file=$tls/ca.crt" -c "ssl_cert_file=$tls/postgres.crt" \
    -c "ssl_key_file=$tls/postgres.key" "$@"
