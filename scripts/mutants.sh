#!/usr/bin/env bash
# Known bugs, put in on purpose (mutants/src/lib.rs): the simulation must find each within 500 seeds, the engine's storms of
# losses those of recoveries too, and what is no bug by itself must do no harm in 200 seeds. One build serves all.
#
#   scripts/mutants.sh [MUTANT...]      (all)
#
# Goes on after one that was not found; those are named at the end, and then it ends with 1.
set -euo pipefail
cd "$(dirname "$0")/.."

read -ra CARGO <<<"${CARGO:-cargo}"
TARGET=${CARGO_TARGET_DIR:-target}
BUILD=(--profile checked --quiet --features mutants)
STORMS=("${CARGO[@]}" test "${BUILD[@]}" --package flotilla-engine --test it)
# Of its own, so that whoever builds the simulation meanwhile does not take it away.
SIM=$TARGET/checked/flotilla-sim-mutants

"${CARGO[@]}" build "${BUILD[@]}" --package flotilla-sim
cp "$TARGET/checked/flotilla-sim" "$SIM.new" && mv "$SIM.new" "$SIM"
"${STORMS[@]}" --no-run

names=() missed=()
declare -A found_by
while IFS=$'\t' read -r name by _; do
    names+=("$name")
    found_by[$name]=$by
done < <("$SIM" --list-mutants)
for name in "$@"; do
    [ -n "${found_by[$name]:-}" ] || { echo "no mutant is called $name; there are ${names[*]}" >&2; exit 2; }
done
[ $# -eq 0 ] || names=("$@")

# Storms of losses, until one fails. Whatever else goes wrong names no seed.
storms() {
    local told
    told=$(STORM=1+200 MUTANT=$1 "${STORMS[@]}" loss_storms 2>&1) && { echo 'not found within 200 storms'; return 1; }
    grep -q '^seed [0-9]*$' <<<"$told" || { echo "the storms did not run: $told"; return 1; }
    echo "found by the storm of $(grep -m 1 '^seed [0-9]*$' <<<"$told")"
}

for name in "${names[@]}"; do
    if [ "${found_by[$name]}" = nothing ]; then
        echo "$name, which must do no harm:"
        "$SIM" --mutant "$name" --seeds 200 --expect-marks || missed+=("$name (does harm)")
        continue
    fi
    printf '%s: ' "$name"
    "$SIM" --mutant "$name" --seeds 500 --expect-failure || missed+=("$name")
    if [ "${found_by[$name]}" = seeds+storms ]; then
        printf '%s, storms: ' "$name"
        storms "$name" || missed+=("$name (by storms)")
    fi
done

[ ${#missed[@]} -eq 0 ] && exit
printf 'not as they must be:\n'
printf '  %s\n' "${missed[@]}"
exit 1
