#!/bin/sh
# Make the secrets of one installation, each random, in a folder that only its owner enters; what is there stays.
# Usage: secrets.sh [FOLDER]; docker/secrets unless told otherwise. Needs openssl.
#
# The files themselves are readable by all, because a container sees a file as it is here, and each container has a user of
# its own. On this machine nobody gets past the folder.
set -eu
folder=${1:-$(dirname "$0")/secrets}
days=825

umask 022
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

new() { # file, then the command that prints it
    file=$1
    shift
    [ -e "$file" ] && return 0
    "$@" >"$file.new"
    mv "$file.new" "$file"
    echo "· made $file" >&2
}

# Signs the tokens of the API's callers, and links.
new token-secret openssl rand -hex 32
# Wraps the keys of persons. Keep a copy where no database is: without it nothing that is sealed opens again.
new master-key openssl rand -base64 32

# Seals the log. The ledger's name is where tools for tlog-tiles find it, and stays; LEDGER gives another one. The public half goes
# to auditors.
ledger=${LEDGER:-localhost:8080/v1/ledger/tlog}
if [ ! -e seal-key ]; then
    openssl genpkey -algorithm ed25519 -outform DER -out seal.der
    openssl pkey -inform DER -in seal.der -pubout -outform DER -out seal.pub.der
    id=$({ printf '%s\n\001' "$ledger"; tail -c 32 seal.pub.der; } | openssl dgst -sha256 -binary | head -c 4 | od -An -tx1 | tr -d ' \n')
    half() { { printf '\001'; tail -c 32 "$1"; } | openssl base64 -A; }
    printf '%s+%s+%s\n' "$ledger" "$id" "$(half seal.pub.der)" >>seal-keys.pub
    printf 'PRIVATE+KEY+%s+%s+%s\n' "$ledger" "$id" "$(half seal.der)" >seal-key.new
    rm seal.der seal.pub.der
    mv seal-key.new seal-key
    echo "· made seal-key" >&2
fi

# The object storage's one user, for it and for us.
new s3-access-key-id openssl rand -hex 10
new s3-secret-access-key openssl rand -hex 20
new s3.json printf '{"identities":[{"name":"skyriff","credentials":[{"accessKey":"%s","secretKey":"%s"}],%s}]}\n' \
    "$(cat s3-access-key-id)" "$(cat s3-secret-access-key)" \
    '"actions":["Read:skyriff","Write:skyriff","List:skyriff"]'

# Everybody who connects to Postgres shows a certificate of this authority; pg_ident.conf says who may be which role. Its
# own key is for this script alone.
if [ ! -e ca.crt ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -sha256 -days 3650 -subj /CN=skyriff-ca \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout ca.key -out ca.crt.new 2>/dev/null
    mv ca.crt.new ca.crt
    chmod 600 ca.key
    echo "· made ca.crt" >&2
fi

certificate() { # name, what it is for, other names
    [ -e "$1.crt" ] && return 0
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    chmod 644 "$1.key"
    printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\nsubjectAltName=%s\n' \
        "$2" "$3" >"$1.ext"
    openssl x509 -req -sha256 -days $days -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -extfile "$1.ext" \
        -out "$1.crt.new" 2>/dev/null
    rm "$1.csr" "$1.ext"
    mv "$1.crt.new" "$1.crt"
    echo "· made $1.crt" >&2
}

certificate postgres serverAuth \
    DNS:postgres-primary,DNS:postgres-replica-1,DNS:postgres-replica-2,DNS:localhost,IP:127.0.0.1
for service in replicator databases migrate command-api query-api projector process relay sealer tools operator; do
    certificate "$service" clientAuth "DNS:$service"
done
