#!/bin/sh
# Unpack the broker that the tests and `make broker` use into FOLDER, unless it is there: a prebuilt program from the
# Python package noida-db, of exactly this version and with exactly these checksums. It is for development only.
# Usage: install-broker.sh FOLDER
set -eu
folder=${1:?usage: install-broker.sh FOLDER}
version=0.2.2

say() { printf '· %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

is_there() { [ -x "$folder/noida-db" ] && [ "$(cat "$folder/version" 2>/dev/null)" = "$version" ]; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_pip() {
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || return 1
    if command -v apt-get >/dev/null; then
        say "installing Python's pip with apt-get"
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-pip >/dev/null
    elif command -v dnf >/dev/null; then
        say "installing Python's pip with dnf"
        as_root dnf install -y -q python3-pip
    elif command -v apk >/dev/null; then
        say "installing Python's pip with apk"
        as_root apk add -q py3-pip
    else
        return 1
    fi
}

is_there && exit 0
has_pip() { command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1; }
has_pip || install_pip || true
has_pip || die "the tests' Kafka broker comes as a Python package, and there is no Python 3 with pip: install python3-pip,
or run the tests against a cluster of yours: KAFKA_BROKERS=host:9092 make test"

say "unpacking a Kafka broker for tests into $folder (from the Python package noida-db $version)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/requirements.txt" <<REQUIREMENTS
noida-db==$version \
    --hash=sha256:ff33b6b252defad42179ca255abd35fb02d1592642890cbd80264639b9542598 \
    --hash=sha256:655f0f986e71b6d512d0eca34ba0575498d58b0415cde7a72e0c773195759266 \
    --hash=sha256:3265da43b900fc2572ce21fcc06b1c54e915dd78dbac3a7e072942420e53441d
REQUIREMENTS
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --requirement "$work/requirements.txt" --dest "$work" \
    || die "cannot get the Python package noida-db $version; KAFKA_BROKERS=host:9092 make test uses a cluster of yours"
rm -rf "$folder.half-made"
mkdir -p "$folder.half-made"
python3 - "$work" "$folder.half-made" <<'PYTHON'
import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
with open(sys.argv[2] + "/noida-db", "wb") as program:
    program.write(wheel.read("noida_db/noida-db"))
PYTHON
chmod 755 "$folder.half-made/noida-db"
echo "$version" >"$folder.half-made/version"
rm -rf "$folder"
mv "$folder.half-made" "$folder"
is_there || die "the broker in $folder is not usable"
