#!/bin/sh
# Secrets that the binary takes from variables only, read from files instead: what is in a container's configuration,
# everybody who may inspect it can read. SKYRIFF_MASTER_KEY_FILE and SKYRIFF_PAYOUT_SECRET_FILE the binary reads itself.
set -eu

for name in SKYRIFF_TOKEN_SECRET SKYRIFF_WORKER_TOKEN SKYRIFF_KAFKA_OPTIONS AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        secret=$(cat "$file")
        export "$name=$secret"
    fi
done

exec "$@"
