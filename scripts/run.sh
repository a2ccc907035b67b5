#!/usr/bin/env bash
# `make run`: checks the machine, says what will be done and how long that takes, builds, and becomes
# the local cluster. Arguments go to `flotilla run`.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
binary=$target/release/flotilla
say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
fail() { printf 'error: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }

rocksdb_is_built() { compgen -G "$target/release/build/librocksdb-sys-*/out/librocksdb.a" >/dev/null; }

check_disk() {
    local place=$target needed_kib=$((2 << 20)) free_kib
    rocksdb_is_built || needed_kib=$((7 << 20))
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    free_kib=$(df -Pk "$place" | awk 'NR == 2 { print $4 }')
    [ "$free_kib" -ge "$needed_kib" ] ||
        fail "$((free_kib >> 10)) MiB are free at $place, $((needed_kib >> 10)) MiB are needed" \
            "make room, or name another place for the build: CARGO_TARGET_DIR=DIR make run"
}

check_memory() {
    local needed_kib=$((1 << 20)) free_kib
    rocksdb_is_built || needed_kib=$((2 << 20))
    free_kib=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
    [ "$free_kib" -ge "$needed_kib" ] ||
        fail "$((free_kib >> 10)) MiB of memory are available, $((needed_kib >> 10)) MiB are needed" "end other programs first"
}

# Only the default ports, so that nobody waits a quarter of an hour to hear of them; flotilla checks the real ones.
check_ports() {
    local port word
    for word in "$@"; do case $word in --base-port* | --once) return ;; esac; done
    for port in 7300 7301 7302 7400 7401 7402 7500 7501 7502; do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            fail "port $port is in use" "is another cluster running? End it, or: make run ARGS='--base-port 8300'"
        fi
    done
}

announce() {
    say "1. packages: a C++ compiler and libclang, by apt, if they are missing"
    if rocksdb_is_built; then
        say "2. RocksDB: compiled already"
    else
        say "2. RocksDB: compiled once, about 15 minutes on two cores"
    fi
    say "3. flotilla: $([ -x "$binary" ] && echo "built anew if its sources changed" || echo "about 5 minutes on two cores")"
    say "4. the cluster: ready within 10 s of the build"
}

build() {
    local beat
    while sleep 60; do say "still building"; done &
    beat=$!
    # shellcheck disable=SC2064
    trap "kill $beat 2>/dev/null" EXIT
    cargo build --release --bin flotilla
    kill "$beat" 2>/dev/null
    wait "$beat" 2>/dev/null || true
    trap - EXIT
}

check_disk
check_memory
check_ports "$@"
announce
scripts/setup.sh
say "packages are there; building"
build
say "built: $binary"
exec "$binary" run --sample . "$@"
