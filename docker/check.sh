#!/bin/bash
# Whether what is in this folder still fits the code and itself, without an engine and without fetching anything. What needs a tool
# that is not here is left out, and that is said.
# Usage: check.sh
set -euo pipefail
cd "$(dirname "$0")/.."

wrong=0
fault() { printf 'docker: %s\n' "$*" >&2; wrong=1; }
not_here=()
if_there() { # a tool, then what to run with it
    if command -v "$1" >/dev/null; then "${@:2}" || fault "$1 objects"; else not_here+=("$1"); fi
}

scripts=(docker/*.sh docker/*/*.sh)
for script in "${scripts[@]}"; do
    bash -n "$script" || fault "$script is no script"
    [ -x "$script" ] || fault "$script cannot be started"
done

# Variables that nobody reads change nothing, in silence. These are of compose.yaml itself.
own='SKYRIFF_(VERSION|BIND|PORT|S3_URL|FILES)'
for variable in $(grep -ohE 'SKYRIFF_[A-Z0-9_]+' docker/compose.yaml docker/Dockerfile docker/entrypoint.sh | sort -u | grep -vxE "$own"); do
    grep -rqF "\"$variable\"" skyriff/src && continue
    # From a file, by entrypoint.sh.
    grep -qE "^for name in .*\b${variable%_FILE}\b" docker/entrypoint.sh && grep -rqF "\"${variable%_FILE}\"" skyriff/src && continue
    fault "nobody reads $variable"
done

# Roles of the database, and who may be them.
roles=$(grep -oE "'skyriff_[a-z]+'" migrations/roles.sql | tr -d "'" | sort -u)
for role in $roles; do
    grep -qE "\b$role\b" docker/postgres/pg_hba.conf || fault "pg_hba.conf does not let $role in"
    grep -qE "^services .* $role\$" docker/postgres/pg_ident.conf || fault "pg_ident.conf has nobody who may be $role"
done
for role in $(grep -ohE 'skyriff_[a-z]+' docker/postgres/pg_hba.conf docker/postgres/pg_ident.conf | sort -u); do
    grep -qx "$role" <<<"$roles" || fault "there is no role $role"
done
# What operators run changes something, as roles that the commands' own code names.
for command in reconcile erase keys rebuild; do
    for constant in $(grep -rohwE 'OWNER|COMMAND|PROJECT|PROCESS|QUERY' skyriff/src/$command* --include '*.rs' | sort -u); do
        role=$(sed -n "s/^pub const $constant: &str = \"\(.*\)\";\$/\1/p" skyriff/postgres/src/databases.rs)
        grep -qE "^services +operator +$role\$" docker/postgres/pg_ident.conf || fault "skyriff $command is $role, which operator may not be"
    done
done

# Every secret that is mounted is one that secrets.sh makes, and every certificate has somebody.
if command -v openssl >/dev/null; then
    made=$(mktemp -d)
    trap 'rm -rf "$made"' EXIT
    docker/secrets.sh "$made" 2>/dev/null
    for file in $(sed -n 's!.*{file: ./secrets/\(.*\)}!\1!p' docker/compose.yaml); do
        [ -s "$made/$file" ] || fault "secrets.sh does not make $file"
    done
    for certificate in $(awk '$1 == "services" { print $2 }' docker/postgres/pg_ident.conf | sort -u); do
        openssl verify -CAfile "$made/ca.crt" "$made/$certificate.crt" >/dev/null || fault "secrets.sh makes no certificate for $certificate"
    done
else
    not_here+=(openssl)
fi

# What nginx says by itself, the API says in the same words; their limits go together.
conf=docker/nginx/nginx.conf
while read -r text; do
    grep -qF "\"$text\"" skyriff/edge/src/problem.rs || fault "$conf: the API does not say \"$text\""
done < <(grep -oE '"(title|remedy)":"[^"]*"' "$conf" | sed -E "s/^\"[a-z]+\":\"(.*)\"\$/\1/; s/[\\]'/'/g")
for slug in $(grep -oE '/problems/[a-z-]+' "$conf" | sort -u); do
    grep -qF "\"${slug#/problems/}\"" skyriff/edge/src/problem.rs || fault "$conf: the API has no problem $slug"
done
grep -qF 'body_bytes_max: 64 * 1_024, timeout: Duration::from_secs(15)' skyriff/edge/src/request.rs ||
    fault "the API's limits have changed: see client_max_body_size and proxy_read_timeout in $conf"
for route in $(grep -oE '/health/[a-z]+' docker/Dockerfile "$conf" | cut -d : -f 2 | sort -u); do
    grep -qF "\"$route\"" skyriff/src/api.rs || fault "there is no route $route"
done

# A build sees every member of the workspace.
for member in $(sed -n '/^members/,/^]/s/^ *"\([^/"]*\).*/\1/p' Cargo.toml | sort -u); do
    grep -qx "!$member" docker/Dockerfile.dockerignore || fault "Dockerfile.dockerignore leaves $member out"
done

if_there shellcheck shellcheck --severity warning "${scripts[@]}"
if_there hadolint hadolint docker/Dockerfile
if_there check-jsonschema check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose.yaml
if docker compose version >/dev/null 2>&1; then
    docker compose --file docker/compose.yaml --profile tools config --quiet || fault "docker compose objects"
else
    not_here+=("docker compose")
fi

if [ "${#not_here[@]}" != 0 ]; then
    printf '· docker: not looked at with %s, which this machine does not have\n' "$(printf '%s, ' "${not_here[@]}" | sed 's/, $//')" >&2
fi
exit "$wrong"
