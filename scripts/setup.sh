#!/usr/bin/env bash
# Set-up for `make run` and `make test`: checks for what the build needs, installs what it may, and
# otherwise prints the exact line to type. Says nothing when there is nothing to do.
set -euo pipefail

have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    [[ $(ldconfig -p 2>/dev/null) == *libclang[-.]* ]] && return 0
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib/*/libclang*.so*' >/dev/null
}

missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
have_libclang || missing+=(libclang-dev)

if [ ${#missing[@]} -gt 0 ]; then
    line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        echo "error: missing: ${missing[*]} (Debian's names); install them with this system's package manager" >&2
        exit 1
    fi
    sudo=""
    if [ "$(id -u)" -ne 0 ]; then
        if sudo -n true 2>/dev/null; then sudo="sudo -n "; else
            echo "error: missing packages. Type: sudo sh -c '$line'" >&2
            exit 1
        fi
    fi
    echo "set-up: installing ${missing[*]}" >&2
    if ! DEBIAN_FRONTEND=noninteractive ${sudo}sh -c "$line" >/tmp/flotilla-setup.$$.log 2>&1; then
        tail -n 20 "/tmp/flotilla-setup.$$.log" >&2
        echo "error: the installation failed. Type: ${sudo}sh -c '$line'" >&2
        exit 1
    fi
    rm -f "/tmp/flotilla-setup.$$.log"
fi

if ! command -v cargo >/dev/null; then
    echo "error: no cargo. Install Rust 1.88 or newer: https://rustup.rs" >&2
    exit 1
fi
version=$(rustc --version | sed -E 's/^rustc ([0-9]+)\.([0-9]+).*/\1 \2/')
read -r major minor <<<"$version"
if [ "$major" -eq 1 ] && [ "$minor" -lt 88 ]; then
    echo "error: Rust 1.$minor is too old: 1.88 or newer is needed. Type: rustup update stable" >&2
    exit 1
fi
