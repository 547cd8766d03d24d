#!/bin/sh
# Make the bucket, with SeaweedFS' own shell. Its exit code says nothing, so the list of buckets is what counts.
set -eu
bucket=${1:?usage: bucket.sh BUCKET}

ask() { echo "$1" | weed shell -master=127.0.0.1:9333 2>&1; }

tries=0
until ask s3.bucket.list | grep -qE "(^|[[:space:]])$bucket([[:space:]]|\$)"; do
    tries=$((tries + 1))
    [ "$tries" -le 30 ] || { echo "no bucket after $tries tries: $(ask s3.bucket.list)" >&2; exit 1; }
    ask "s3.bucket.create -name $bucket" >/dev/null || true
    sleep 1
done
echo "· the bucket $bucket is there" >&2
