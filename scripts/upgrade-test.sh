#!/usr/bin/env bash
# An older version beside this one in one cluster: builds the binary of an older commit, and runs tests/it/upgrade with it.
#
#   scripts/upgrade-test.sh [REV]     (default: the commit in tests/upgrade/from)
#
# The older sources are checked out apart and built with the same target directory, so that what both share (RocksDB takes
# a quarter of an hour) is built once. The binary is kept under TARGET/upgrade/ by its commit: a second run builds nothing
# old. This version's binary is linked again by the test itself.
set -euo pipefail
cd "$(dirname "$0")/.."

CARGO=${CARGO:-cargo}
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR=$TARGET
FROM=${1:-$(grep -v '^#' tests/upgrade/from | head -1)}
REV=$(git rev-parse --verify --quiet "$FROM^{commit}") || {
    echo "error: $FROM is no commit of this repository; a shallow clone lacks old ones: git fetch --unshallow" >&2
    exit 1
}
OLD=$TARGET/upgrade/flotilla-$REV

if [ ! -x "$OLD" ]; then
    TREE=$TARGET/upgrade/tree
    mkdir -p "$TARGET/upgrade"
    remove() { git worktree remove --force "$TREE" >/dev/null 2>&1 || rm -rf "$TREE"; git worktree prune; }
    remove
    trap remove EXIT
    git worktree add --quiet --detach "$TREE" "$REV"
    echo "building $(git log -1 --format='%h (%cs: %s)' "$REV")"
    # With this tree's flags, or RocksDB would be built a second time for the older ones.
    FLAGS=$PWD/.cargo/config.toml
    (cd "$TREE" && "$CARGO" --config "$FLAGS" build --release --locked --quiet --package flotilla --bin flotilla)
    cp "$TARGET/release/flotilla" "$OLD.part"
    mv "$OLD.part" "$OLD"
    remove
    trap - EXIT
fi

echo "upgrading from $(git log -1 --format='%h (%cs)' "$REV") to $(git log -1 --format='%h (%cs)' HEAD)$(git diff --quiet HEAD || echo ', with changes')"
FLOTILLA_OLD_BINARY=$OLD "$CARGO" test --release --package flotilla --test it -- upgrade:: --include-ignored --nocapture
