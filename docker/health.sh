#!/bin/bash
# Ask this container's own process: health PATH. Bash opens the connection, so the image needs no client for HTTP.
set -eu
path=${1:?usage: health PATH}

exec 3<>"/dev/tcp/127.0.0.1/${SKYRIFF_LISTEN##*:}"
printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$path" >&3
read -r -t 4 _ status _ <&3
[ "$status" = 200 ]
