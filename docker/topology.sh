#!/bin/bash
# What compose.yaml starts, on this machine and without containers: the same binary, commands, Postgres files, roles, certificates
# and nginx.conf, on free ports of the loopback interface. Then it is driven through nginx, parts of it are killed, and all of it is
# stopped and cleared away.
# Usage: topology.sh SKYRIFF BROKER
#
#   SKYRIFF    the built binary
#   BROKER     noida-db, which speaks Kafka's protocol: `make setup-tests` unpacks it
#   KEEP=1     leave the folder with logs and data
#   NGINX      the nginx to use; the one on PATH
#   SKYRIFF_STORAGE and AWS_…, to use a bucket; a folder, unless given
#
# Not as there: Kafka is the stand-in, the storage a folder, and there are no images, networks, limits or restarts by an engine.
set -euo pipefail

skyriff=$(realpath "${1:?usage: topology.sh SKYRIFF BROKER}")
broker=$(realpath "${2:?usage: topology.sh SKYRIFF BROKER}")
nginx=${NGINX:-$(PATH=$PATH:/usr/sbin command -v nginx || true)}
here=$(cd "$(dirname "$0")" && pwd)
storage=${SKYRIFF_STORAGE:-}
# Only what is said here is to be in force.
for variable in ${!SKYRIFF_@} ${!PG@}; do
    [ "$variable" = PG_BIN ] || unset "$variable"
done

say() { printf '· %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
now_ms() { date +%s%3N; }

[ -n "$nginx" ] || die "nginx is missing: install it (apt-get install nginx-light), or name one in NGINX"
for program in curl openssl python3 setpriv; do
    command -v "$program" >/dev/null || die "$program is missing"
done
for bin in "${PG_BIN:-}" "$here/../.skyriff/postgres/bin" "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/1[5678]/bin; do
    [ -x "$bin/initdb" ] && [ -x "$bin/pg_basebackup" ] && break
done
[ -x "$bin/initdb" ] || die "no Postgres of version 15 to 18; make setup installs one"
export PATH=$bin:$PATH

folder=$(mktemp -d "${TMPDIR:-/tmp}/skyriff-topology.XXXXXX")
chmod 755 "$folder"
url=

# --- processes -----------------------------------------------------------------------------------------------------------

declare -A pids=()
started=()

start() { # name, then what to run
    local name=$1
    shift
    "$@" >>"$folder/$name.log" 2>&1 &
    pids[$name]=$!
    started+=("$name")
}

ended() { # name, seconds: whether it ends in that time; its exit code is in $code
    local pid=${pids[$1]} waits=$(($2 * 20))
    while kill -0 "$pid" 2>/dev/null; do
        waits=$((waits - 1))
        [ "$waits" -gt 0 ] || return 1
        sleep 0.05
    done
    code=0
    wait "$pid" 2>/dev/null || code=$?
    unset "pids[$1]"
}

stop() { # signal, then names: all at once, and each must end well
    local signal=$1 name
    shift
    for name in "$@"; do
        kill -s "$signal" "${pids[$name]}"
    done
    for name in "$@"; do
        ended "$name" 60 || die "$name does not end after $signal"
        [ "$code" = 0 ] || die "$name ended with $code after $signal: $(tail -n 5 "$folder/$name.log")"
    done
}

kill_hard() {
    kill -9 "${pids[$1]}"
    ended "$1" 10
}

clear_away() {
    local result=$? name
    trap - EXIT INT TERM
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do
        name=${started[i]}
        [ -n "${pids[$name]:-}" ] && kill -9 "${pids[$name]}" 2>/dev/null && say "$name was killed"
    done
    wait
    if [ "$result" != 0 ]; then
        for name in $(printf '%s\n' "${started[@]}" | sort -u); do
            [ -s "$folder/$name.log" ] && printf '\n--- the end of %s.log\n' "$name" >&2 && tail -n 8 "$folder/$name.log" | cut -c 1-300 >&2
        done
    fi
    if [ -n "${KEEP:-}" ]; then say "logs and data are in $folder"; else rm -rf "$folder"; fi
    exit "$result"
}
trap clear_away EXIT
trap 'exit 130' INT TERM

until_true() { # seconds, what is waited for, then a command
    local end=$(($(now_ms) + $1 * 1000)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$(now_ms)" -lt "$end" ] || die "in vain: $what"
        sleep 0.1
    done
}

# --- as compose.yaml says ------------------------------------------------------------------------------------------------

# Ports that nobody has: asked for all at once, so that they differ.
mapfile -t ports < <(python3 - 20 <<'PYTHON'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in sockets:
    one.bind(("127.0.0.1", 0))
for one in sockets:
    print(one.getsockname()[1])
PYTHON
)
declare -A port=()
for name in primary replica_1 replica_2 kafka nginx command-1 command-2 query-1 query-2 projector relay-1 relay-2 sealer-1 sealer-2 process; do
    port[$name]=${ports[0]}
    ports=("${ports[@]:1}")
done

command_of() { # a service's command, without the program
    sed -n "/^  $1:\$/,/^  [a-z]/s/^    command: \[skyriff, \(.*\)\]\$/\1/p" "$here/compose.yaml" | tr -d ','
}

addresses_of() { # a variable with databases, with the addresses here
    awk -v start="  $1: >-" '$0 == start { on = 1; next } on && /^    / { printf "%s ", $0; next } on { exit }' "$here/compose.yaml" |
        sed -e "s/postgres-primary/127.0.0.1:${port[primary]}/g" -e "s/postgres-replica-1/127.0.0.1:${port[replica_1]}/g" \
            -e "s/postgres-replica-2/127.0.0.1:${port[replica_2]}/g" -e 's/^ *//; s/; */;/g; s/ *$//'
}

mkdir "$folder/objects" "$folder/payouts" "$folder/work"
"$here/secrets.sh" "$folder/secrets" 2>/dev/null
secrets=$folder/secrets
# Postgres does not run as root, and whoever it runs as must get at its files.
chmod 711 "$secrets"
cp -r "$here/postgres" "$folder/postgres"
as_postgres=()
if [ "$(id -u)" = 0 ]; then
    user=$(getent passwd postgres nobody | head -n 1 | cut -d : -f 1)
    as_postgres=(setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups)
fi
for name in primary replica_1 replica_2; do
    mkdir "$folder/$name"
    [ "$(id -u)" != 0 ] || chown "$user" "$folder/$name"
done

postgres() { # primary or standby, name
    cd "$folder/$2"
    exec "${as_postgres[@]}" env PGDATA="$folder/$2/data" SECRETS="$secrets" PRIMARY_HOST=127.0.0.1 PRIMARY_PORT="${port[primary]}" \
        "$folder/postgres/server.sh" "$1" "$2" -c "port=${port[$2]}" -c "unix_socket_directories=$folder/$2"
}

with_certificate() { # of which service, then what to run
    local service=$1
    shift
    exec env PGSSLMODE=verify-full PGSSLROOTCERT="$secrets/ca.crt" PGSSLCERT="$secrets/$service.crt" PGSSLKEY="$secrets/$service.key" \
        SKYRIFF_EVENT_STORE="$(addresses_of SKYRIFF_EVENT_STORE)" SKYRIFF_READ_MODELS="$(addresses_of SKYRIFF_READ_MODELS)" "$@"
}

node() { # name, service
    cd "$folder/work"
    local settings=(SKYRIFF_LISTEN="127.0.0.1:${port[$1]}" SKYRIFF_LOG_FORMAT=json)
    # Whoever only says where outputs are gets no key to them.
    case $2 in
        command-api | query-api | process | sealer) ;;
        *) unset AWS_ENDPOINT_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY ;;
    esac
    case $2 in
        query-api) settings+=(SKYRIFF_SEAL_PUBLIC_KEYS_FILE="$secrets/seal-keys.pub") ;;
        sealer) settings+=(SKYRIFF_SEAL_KEY_FILE="$secrets/seal-key" SKYRIFF_SEAL_PUBLIC_KEYS_FILE="$secrets/seal-keys.pub") ;;
    esac
    case $2 in
        projector | relay) settings+=(SKYRIFF_KAFKA_BROKERS="127.0.0.1:${port[kafka]}" SKYRIFF_KAFKA_REPLICATION=1) ;;
        sealer) settings+=(SKYRIFF_STORAGE="${storage:-file://$folder/objects}") ;;
        *) settings+=(SKYRIFF_TOKEN_SECRET_FILE="$secrets/token-secret" SKYRIFF_MASTER_KEY_FILE="$secrets/master-key"
            SKYRIFF_STORAGE="${storage:-file://$folder/objects}") ;;
    esac
    case $2 in
        command-api | process) settings+=(SKYRIFF_REQUIRE_STANDBY=true) ;;
    esac
    case $2 in
        command-api) settings+=(SKYRIFF_BEHIND_PROXY=true) ;;
        process) settings+=(SKYRIFF_PAYOUT_PROVIDER=local SKYRIFF_PAYOUT_FOLDER="$folder/payouts") ;;
    esac
    # shellcheck disable=SC2046 # its words
    with_certificate "$2" "${settings[@]}" "$here/entrypoint.sh" "$skyriff" $(command_of "$2")
}

ready() { SKYRIFF_LISTEN="127.0.0.1:${port[$1]}" "$here/health.sh" /health/ready; }

token() { SKYRIFF_TOKEN_SECRET_FILE=$secrets/token-secret "$here/entrypoint.sh" "$skyriff" token --user "$1" --role "$2"; }

# --- start ---------------------------------------------------------------------------------------------------------------

say "Postgres: a primary, the roles and databases, two standbys ($("$bin/postgres" --version | cut -d ' ' -f 3))"
start primary postgres primary primary
until_true 60 "the primary" "$bin/pg_isready" -U postgres -h "$folder/primary" -p "${port[primary]}"
# Twice, because it runs at every start.
for _ in 1 2; do
    PGHOST=127.0.0.1 PGPORT=${port[primary]} SECRETS=$secrets "$here/postgres/databases.sh" "$here/../migrations/roles.sql"
done
for name in replica_1 replica_2; do
    start "$name" postgres standby "$name"
done
for name in replica_1 replica_2; do
    until_true 60 "$name" "$bin/pg_isready" -U postgres -h "$folder/$name" -p "${port[$name]}"
done

say "the broker, and the tables"
start kafka "$broker" start --only kafka --host 127.0.0.1 --kafka-port "${port[kafka]}" --data-dir "$folder/kafka"
until_true 30 "the broker" bash -c "</dev/tcp/127.0.0.1/${port[kafka]}"
for _ in 1 2; do
    (with_certificate migrate "$skyriff" migrate) >>"$folder/migrate.log" 2>&1 || die "migrate: $(cat "$folder/migrate.log")"
done

say "two nodes of the command API and two of the query API, a projector, two relays, two sealers, a process"
declare -A service_of=([command-1]=command-api [command-2]=command-api [query-1]=query-api [query-2]=query-api [projector]=projector
    [relay-1]=relay [relay-2]=relay [sealer-1]=sealer [sealer-2]=sealer [process]=process)
nodes=(command-1 command-2 query-1 query-2 projector relay-1 relay-2 sealer-1 sealer-2 process)
for name in "${nodes[@]}"; do
    start "$name" node "$name" "${service_of[$name]}"
done
for name in "${nodes[@]}"; do
    until_true 60 "$name is ready" ready "$name"
done

say "$("$nginx" -v 2>&1 | sed 's/.*: //') with the same nginx.conf"
mkdir "$folder/nginx"
sed "s/listen 8080;/listen 127.0.0.1:${port[nginx]};/" "$here/nginx/nginx.conf" >"$folder/nginx/nginx.conf"
servers() { for name in "$@"; do printf '    server 127.0.0.1:%s\\2;\\n' "${port[$name]}"; done; }
sed -E -e '/^resolver/d' -e "s/^ *server (command-api):8080 resolve(.*);/$(servers command-1 command-2)/" \
    -e "s/^ *server (query-api):8080 resolve(.*);/$(servers query-1 query-2)/" "$here/nginx/nodes.conf" >"$folder/nginx/nodes.conf"
"$nginx" -e stderr -t -q -p "$folder/nginx" -c "$folder/nginx/nginx.conf"
start nginx "$nginx" -e stderr -p "$folder/nginx" -c "$folder/nginx/nginx.conf" -g 'daemon off;'
url=http://127.0.0.1:${port[nginx]}
until_true 20 "nginx" curl --fail --silent --max-time 5 "$url/health/ready"

# --- drive ---------------------------------------------------------------------------------------------------------------

new_id() { cat /proc/sys/kernel/random/uuid; }

ask() { # method, path, then more for curl: prints the status; the body goes to answer, the headers to headers
    curl --silent --max-time 40 --output "$folder/answer" --dump-header "$folder/headers" --write-out '%{http_code}' \
        --request "$1" "$url$2" "${@:3}" || true
}

expect() { # status, then as for ask
    local want=$1 got
    shift
    got=$(ask "$@")
    [ "$got" = "$want" ] || die "$1 $2 was answered with $got and not $want: $(head -c 600 "$folder/answer")"
}

header() { sed -n "s/^$1: *//Ip" "$folder/headers" | tr -d '\r'; }
member() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$folder/answer" "$1"; }
is_problem() { # its type
    [ "$(header content-type)" = application/problem+json ] || die "not a problem: $(cat "$folder/headers")"
    [ "$(member type)" = "/problems/$1" ] || die "another problem than $1: $(cat "$folder/answer")"
}

say "a check-in, its replay, and the balance read back from a standby"
everybody="Authorization: Bearer $(token "$(new_id)" service)"
mei=$(new_id)
bearer="Authorization: Bearer $(token "$mei" user)"
expect 201 POST "/v1/users/$mei/check-ins" -H "$bearer" -H 'Idempotency-Key: first'
position=$(header skyriff-position)
expect 201 POST "/v1/users/$mei/check-ins" -H "$bearer" -H 'Idempotency-Key: first'
[ "$(header idempotent-replayed)" = true ] || die "the replay is not marked"
is_fresh() { [ "$(ask GET "/v1/users/$user/balance" -H "$everybody" -H "Skyriff-At-Least: $position")" = 200 ]; }
user=$mei
# The first time, the topic is new and the projectors have yet to be given its partitions.
until_true 30 "the balance at $position" is_fresh
grep -q 10 "$folder/answer" || die "no points: $(cat "$folder/answer")"
expect 200 HEAD "/v1/users/$mei/balance" --head -H "$bearer"
expect 401 GET "/v1/users/$mei/balance" -H 'X-Request-Id: topology-1'
is_problem unauthenticated
[ "$(header x-request-id)" = topology-1 ] || die "the request lost its name"
queries_at() { # a server: how many connections of the query API it has
    psql --no-psqlrc --tuples-only --no-align "host=127.0.0.1 port=${port[$1]} dbname=skyriff_reads_0 user=skyriff_query sslmode=verify-full
        sslrootcert=$secrets/ca.crt sslcert=$secrets/tools.crt sslkey=$folder/tools.key" \
        --command "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'skyriff query'"
}
install -m 600 "$secrets/tools.key" "$folder/tools.key"
[ $(($(queries_at replica_1) + $(queries_at replica_2))) -gt 0 ] || die "nobody asks the standbys"

say "who may be which role: the relay's certificate is not let in as another"
(PGSSLKEY=$folder/relay.key && install -m 600 "$secrets/relay.key" "$PGSSLKEY" &&
    psql --no-psqlrc "host=127.0.0.1 port=${port[primary]} dbname=skyriff_events user=skyriff_command sslmode=verify-full
        sslrootcert=$secrets/ca.crt sslcert=$secrets/relay.crt sslkey=$PGSSLKEY" --command 'SELECT 1') >"$folder/refused" 2>&1 &&
    die "it was let in"
grep -q 'certificate authentication failed' "$folder/refused" || die "refused otherwise: $(cat "$folder/refused")"

say "each user's commands go to one node, and both nodes have users"
for _ in $(seq 16); do
    user=$(new_id)
    for action in check-ins expirations; do
        ask POST "/v1/users/$user/$action" -H "$everybody" -H "Idempotency-Key: $user $action" >/dev/null
    done
done
python3 - "$folder/nginx.log" "${port[command-1]}" "${port[command-2]}" <<'PYTHON'
import collections, json, re, sys
nodes = collections.defaultdict(set)
for line in open(sys.argv[1]):
    if line.startswith("{"):
        entry = json.loads(line)
        user = re.match("/v1/users/([^/]+)/(check-ins|expirations)$", entry["path"])
        if user:
            nodes[user[1]].add(entry["node"])
used = set().union(*nodes.values())
assert len(nodes) >= 16 and all(len(of) == 1 for of in nodes.values()), nodes
assert used == {f"127.0.0.1:{port}" for port in sys.argv[2:]}, used
PYTHON

say "every route that a node describes leads to a node of its role"
python3 - "$url" "$folder/nginx.log" command "${port[command-1]}" "${port[command-2]}" query "${port[query-1]}" "${port[query-2]}" <<'PYTHON'
import json, re, sys, time, urllib.error, urllib.request
url, log, *nodes = sys.argv[1:]
asked = {}
for role, *ports in (nodes[:3], nodes[3:]):
    described = json.load(urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v1/openapi.json"))
    for path, methods in described["paths"].items():
        for method in methods:
            if method not in ("get", "put", "post", "delete"):
                continue
            name = f"route-{len(asked)}"
            asked[name] = (role, method.upper(), path, {f"127.0.0.1:{port}" for port in ports})
            somewhere = url + re.sub(r"\{[^}]*\}", "00000000-0000-4000-8000-000000000001", path)
            request = urllib.request.Request(somewhere, method=method.upper(), headers={"X-Request-Id": name})
            try:
                urllib.request.urlopen(request, timeout=20).read()
            except urllib.error.HTTPError as error:
                assert error.code not in (405, 502), (method, path, error.code)
time.sleep(0.2)
seen = {entry["request_id"]: entry for entry in (json.loads(line) for line in open(log) if line.startswith("{"))}
for name, (role, method, path, addresses) in asked.items():
    assert seen[name]["node"] in addresses, (role, method, path, seen[name])
assert len(asked) > 40, len(asked)
PYTHON

say "an auditor checks that an event is sealed, with the key that secrets.sh made"
auditor="Authorization: Bearer $(token "$(new_id)" auditor)"
checks() { # what, then more for verify.py: of the last answer
    python3 "$here/../skyriff/proof/verify.py" "$secrets/seal-keys.pub" "$1" "$folder/answer" "${@:2}" >"$folder/checked" 2>&1 ||
        die "verify.py: $(cat "$folder/checked")"
}
is_sealed() { [ "$(ask GET "/v1/ledger/proofs/inclusion?event=$position" -H "$auditor")" = 200 ]; }
until_true 20 "$position is sealed" is_sealed
checks inclusion
expect 200 GET /v1/ledger/checkpoint -H "$auditor"
checks checkpoint
cp "$folder/answer" "$folder/kept-checkpoint"
sizes=$(python3 -c 'import json, sys
print(",".join(line.split()[1] for line in json.load(open(sys.argv[1]))["checkpoint"].split("\n\n")[0].split("\n")[3:]))' "$folder/answer")

say "events stream through, as NDJSON and as server-sent events: each within a second or so"
analyst="Authorization: Bearer $(token "$(new_id)" analyst)"
for accept in application/x-ndjson text/event-stream; do
    : >"$folder/stream"
    curl --silent --no-buffer --max-time 60 "$url/v1/events?follow=true&heartbeat_s=1&type=points_account.checked_in" -H "$analyst" \
        -H "Accept: $accept" >"$folder/stream" &
    stream=$!
    until_true 10 "the stream begins" test -s "$folder/stream"
    user=$(new_id)
    expect 201 POST "/v1/users/$user/check-ins" -H "$everybody" -H "Idempotency-Key: $user"
    until_true 3 "the event in the stream ($accept)" grep -q "$user" "$folder/stream"
    kill -0 "$stream" || die "the stream has ended"
    kill "$stream"
    wait "$stream" 2>/dev/null || true
done

say "commands in bulk: more than other bodies may have, and line by line in both directions"
python3 - "$url" "${everybody#*: }" <<'PYTHON'
import http.client, json, sys, time, urllib.request, uuid
url, bearer = sys.argv[1:]
one = lambda: {"do": "check_in", "idempotency_key": str(uuid.uuid4()), "user": str(uuid.uuid4())}
headers = {"Authorization": bearer, "Content-Type": "application/json"}
body = json.dumps({"commands": [one() for _ in range(1_000)]}).encode()
assert len(body) > 64 * 1024
answer = urllib.request.urlopen(urllib.request.Request(url + "/v1/commands:batch", body, headers), timeout=30)
assert len(json.load(answer)["results"]) == 1_000

lines = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
lines.putrequest("POST", "/v1/commands:batch")
for name, value in (headers | {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"}).items():
    lines.putheader(name, value)
lines.endheaders()
def send():
    line = json.dumps(one()).encode() + b"\n"
    lines.sock.sendall(b"%x\r\n%s\r\n" % (len(line), line))
send()
answer = lines.getresponse()
assert answer.status == 200, answer.status
for _ in range(3):
    assert "position" in answer.readline().decode()
    time.sleep(0.3)
    send()
lines.sock.sendall(b"0\r\n\r\n")
assert len(answer.read().splitlines()) == 1
PYTHON
head -c 70000 /dev/zero | tr '\0' ' ' >"$folder/large"
expect 413 POST "/v1/users/$mei/spends" -H "$bearer" -H 'Idempotency-Key: large' -H 'Content-Type: application/json' --data-binary "@$folder/large"
is_problem body-too-large
expect 404 GET /metrics
is_problem not-found
expect 404 GET /v1/nothing
is_problem not-found

if command -v ffmpeg >/dev/null && command -v espeak-ng >/dev/null; then
    say "a worker, which knows nginx alone: speech is ordered, followed, made and fetched"
    worker() {
        cd "$folder/work"
        SKYRIFF_WORKER_TOKEN=$(token 00000000-0000-4000-8000-00000000000a worker) || exit
        export SKYRIFF_WORKER_TOKEN
        # shellcheck disable=SC2046 # its words
        exec env TMPDIR="$folder/work" SKYRIFF_URL="$url" SKYRIFF_STORAGE="${storage:-file://$folder/objects}" "$skyriff" $(worker_command)
    }
    # The image's own command, with a folder of ours.
    worker_command() {
        sed -n 's/^CMD \["skyriff", \("worker".*\)\]$/\1/p' "$here/Dockerfile" | tr -d '",' | sed "s!/var/lib/skyriff/scratch!$folder/scratch!"
    }
    start worker worker
    expect 201 POST "/v1/users/$mei/recharges" -H "$everybody" -H 'Idempotency-Key: recharge' --json "{\"order\":\"$(new_id)\",\"points\":2000}"
    expect 202 POST /v1/video-jobs -H "$bearer" -H 'Idempotency-Key: speech' \
        --json '{"kind":"text_to_speech","prompt":"Everything is where it should be.","seconds":4}'
    job=$(member job)
    curl --silent --no-buffer --max-time 90 "$url/v1/users/$mei/video-jobs/$job/events" -H "$bearer" -H 'Accept: text/event-stream' >"$folder/followed" || true
    grep -q succeeded "$folder/followed" || die "it was not made: $(tail -n 20 "$folder/followed")"
    expect 200 GET "/v1/users/$mei/video-jobs/$job/output" -H "$bearer"
    link=$(member url)
    case $link in /*) link=$url$link ;; esac
    curl --fail --silent --max-time 20 --output "$folder/speech" "$link" || die "the link leads nowhere: $link"
    [ "$(stat -c %s "$folder/speech")" -gt 1000 ] || die "there is nothing in it"
    curl --fail --silent --max-time 20 --range 0-9 --output "$folder/speech" "$link"
    [ "$(stat -c %s "$folder/speech")" = 10 ] || die "no ranges"
else
    say "NOT RUN: no worker, since ffmpeg or espeak-ng is missing"
fi

# --- break ---------------------------------------------------------------------------------------------------------------

say "a node of the command API is killed in the middle of commands: no client notices"
python3 - "$url" "${everybody#*: }" "${pids[command-1]}" <<'PYTHON'
import concurrent.futures, os, signal, sys, urllib.request, uuid
url, bearer, node = sys.argv[1:]
def check_in(number):
    if number == 300:
        os.kill(int(node), signal.SIGKILL)
    user = str(uuid.uuid4())
    headers = {"Authorization": bearer, "Idempotency-Key": user}
    request = urllib.request.Request(f"{url}/v1/users/{user}/check-ins", method="POST", headers=headers)
    return urllib.request.urlopen(request, timeout=30).status
with concurrent.futures.ThreadPoolExecutor(16) as clients:
    statuses = set(clients.map(check_in, range(1_000)))
assert statuses == {201}, statuses
PYTHON
ended command-1 10
grep -q '"node_status":"502, 201"' "$folder/nginx.log" || die "no command was cut off, so nothing was tried"
start command-1 node command-1 command-api
until_true 60 "command-1 is ready again" ready command-1

say "a relay is killed: the other one takes over, and read models stay up with the log"
kill_hard relay-1
for _ in $(seq 20); do
    user=$(new_id)
    expect 201 POST "/v1/users/$user/check-ins" -H "$everybody" -H "Idempotency-Key: $user"
    position=$(header skyriff-position)
    until_true 20 "the balance at $position" is_fresh
done
start relay-1 node relay-1 relay

say "a sealer is killed: the other one goes on, and what was kept is the beginning of it"
kill_hard sealer-1
for _ in 1 2 3; do
    user=$(new_id)
    expect 201 POST "/v1/users/$user/check-ins" -H "$everybody" -H "Idempotency-Key: $user"
    position=$(header skyriff-position)
    until_true 30 "$position is sealed" is_sealed
    checks inclusion
done
expect 200 GET "/v1/ledger/proofs/consistency?sizes=$sizes" -H "$auditor"
checks consistency "$folder/kept-checkpoint"
start sealer-1 node sealer-1 sealer
until_true 60 "sealer-1 is ready again" ready sealer-1

say "a standby is away: commands and queries go on"
stop INT replica_1
user=$(new_id)
expect 201 POST "/v1/users/$user/check-ins" -H "$everybody" -H "Idempotency-Key: $user"
position=$(header skyriff-position)
until_true 10 "the balance, from the other standby" is_fresh

say "both are away: nothing is acknowledged that only one machine has"
stop INT replica_2
late=$(new_id)
expect 503 POST "/v1/users/$late/check-ins" -H "$everybody" -H "Idempotency-Key: $late"
for name in replica_1 replica_2; do
    start "$name" postgres standby "$name"
done
for name in replica_1 replica_2; do
    until_true 60 "$name again" "$bin/pg_isready" -U postgres -h "$folder/$name" -p "${port[$name]}"
done
was_taken() { [ "$(ask POST "/v1/users/$late/check-ins" -H "$everybody" -H "Idempotency-Key: $late")" = 201 ]; }
until_true 60 "the same command under the same key" was_taken

say "an operator wraps the keys anew, brings a provider's file, forgets somebody, and builds every read model anew"
operator() {
    (with_certificate operator SKYRIFF_MASTER_KEY_FILE="$secrets/master-key" SKYRIFF_STORAGE="${storage:-file://$folder/objects}" \
        SKYRIFF_REQUIRE_STANDBY=true "$skyriff" "$@") >>"$folder/operator.log" 2>&1 || die "$1: $(cat "$folder/operator.log")"
}
operator keys rewrap
printf 'order,points,status,at\n%s,100,pending,2026-01-01T12:00:00Z\n' "$(new_id)" >"$folder/recharges.csv"
operator reconcile recharges "$folder/recharges.csv" --provider acme --from 2026-01-01 --to 2026-01-02 --operator "$(new_id)"
operator erase "$late" --asked-by person --reference topology --operator "$(new_id)" --yes
operator rebuild all
user=$(new_id)
expect 201 POST "/v1/users/$user/check-ins" -H "$everybody" -H "Idempotency-Key: $user"
position=$(header skyriff-position)
until_true 20 "the balance, from what was built anew" is_fresh
operator rebuild all --drop

say "the books are right"
(with_certificate tools "$skyriff" audit verify) >"$folder/audit.log" 2>&1 || die "audit: $(cat "$folder/audit.log")"

# --- stop ----------------------------------------------------------------------------------------------------------------

say "a stop in order, in which each process ends by itself and well"
[ -z "${pids[worker]:-}" ] || stop TERM worker
stop TERM query-1 query-2
expect 503 GET "/v1/users/$mei/balance" -H "$bearer"
is_problem reads-unavailable
stop TERM command-1 command-2
expect 503 POST "/v1/users/$mei/check-ins" -H "$bearer" -H 'Idempotency-Key: too-late'
is_problem outcome-unknown
[ "$(header retry-after)" = 2 ] || die "no Retry-After"
stop QUIT nginx
stop TERM projector relay-1 relay-2 sealer-1 sealer-2 process
kill "${pids[kafka]}"
ended kafka 20 || die "the broker does not end"
stop INT replica_1 replica_2
stop INT primary
[ "${#pids[@]}" = 0 ] || die "still there: ${!pids[*]}"
say "all of it did what it should"
