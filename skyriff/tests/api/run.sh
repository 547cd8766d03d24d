#!/bin/sh
# Asks a running SkyRiff everything that its own description says can be asked, and more, with the tokens of several
# roles: no answer may be a 500, or one that the description does not have. Usage: run.sh SKYRIFF FOLDER, the built binary
# and a folder for the tool (Schemathesis, from PyPI, its version pinned below). SCHEMATHESIS_SECONDS for each role; 20.
set -eu
skyriff=${1:?usage: run.sh SKYRIFF FOLDER}
folder=${2:?usage: run.sh SKYRIFF FOLDER}
mkdir -p "$folder"
skyriff=$(realpath "$skyriff")
folder=$(realpath "$folder")
seconds=${SCHEMATHESIS_SECONDS:-20}
version=4.32.5
here=$(cd "$(dirname "$0")" && pwd)

say() { printf '· %s\n' "$*" >&2; }

tool=$folder/schemathesis-$version
if [ ! -x "$tool/bin/schemathesis" ]; then
    say "installing Schemathesis $version into $tool"
    rm -rf "$tool.new"
    python3 -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action ignore \
        --target "$tool.new" "schemathesis==$version"
    mv "$tool.new" "$tool"
fi

store=$(mktemp -d)
chmod 755 "$store"
"$skyriff" dev --folder "$store" --listen 127.0.0.1:0 >"$store/out" 2>"$store/err" &
server=$!
stop() {
    kill -TERM "$server" 2>/dev/null && wait "$server" || true
    rm -rf "$store"
}
trap stop EXIT INT TERM

url=
waits=0
while [ -z "$url" ]; do
    waits=$((waits + 1))
    [ "$waits" -le 3000 ] || { say "the server is not ready after five minutes"; cat "$store/err" >&2; exit 1; }
    kill -0 "$server" 2>/dev/null || { cat "$store/err" >&2; exit 1; }
    url=$(sed -n 's!.*running at \(http://[0-9.]*:[0-9]*\).*!\1!p' "$store/out")
    [ -n "$url" ] || sleep 0.1
done

for caller in user:959de6e1-d9ef-5a29-a884-f19f971b9c27 operator:00000000-0000-4000-8000-000000000001 \
    service:00000000-0000-4000-8000-000000000002 reviewer:00000000-0000-4000-8000-000000000003 \
    auditor:00000000-0000-4000-8000-000000000004; do
    role=${caller%%:*}
    token=$("$skyriff" token --folder "$store" --role "$role" --user "${caller#*:}" | tail -n 1)
    say "asking as $role, for $seconds s"
    # One worker: with more, Python 3.11 trips over its own parser.
    (cd "$store" && PYTHONPATH=$tool:$here PYTHONDONTWRITEBYTECODE=1 SCHEMATHESIS_HOOKS=checks \
        "$tool/bin/schemathesis" --config-file "$here/schemathesis.toml" run "$url/v1/openapi.json" \
        --header "Authorization: Bearer $token" --seed "${SCHEMATHESIS_SEED:-1}" --workers 1 --max-time "$seconds" \
        --phases examples,coverage,fuzzing --max-examples 40 --request-timeout 20 --continue-on-failure --no-color \
        --checks no_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
        >"$store/report" 2>&1) || { grep -v '^ *File\|AST_LAMBDAS' "$store/report" | cut -c 1-400 | head -n 300; say "as $role: not as described"; exit 1; }
    grep -E 'Test cases:|generated|in [0-9.]+s' "$store/report" | cut -c 1-200
done
grep -E ' ERROR | WARN .*panick' "$store/out" "$store/err" && { say "the server's log has errors"; exit 1; }
say "every answer was as described"
