#!/usr/bin/env bash
# A long run: seeds that nobody has run yet, kills and power cuts of real processes, lap after lap until the time is over.
#
#   scripts/soak.sh [HOURS] [PARTS]     (1 hour; parts: "seeds kills cuts", any of them)
#
# Each lap adds lines to soak/tally.tsv: commit, part, first seed, how many, failed, seconds. Seeds go on behind the last
# ones of the tally, so a soak that was ended is simply begun again. Ends with 1 if anything failed; what failed is printed
# with the command that repeats it, and kept in soak/failed/.
set -euo pipefail
cd "$(dirname "$0")/.."

HOURS=${1:-1}
PARTS=${2:-seeds kills cuts}
SEEDS_A_LAP=${SEEDS_A_LAP:-500}
KILLS_A_LAP=${KILLS_A_LAP:-48}
CUTS_A_LAP=${CUTS_A_LAP:-10}
TALLY=soak/tally.tsv
END=$(awk -v hours="$HOURS" -v now="$(date +%s)" 'BEGIN { print int(now + hours * 3600) }')
COMMIT=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD 2>/dev/null || COMMIT=$COMMIT+changes
CARGO=${CARGO:-cargo}
FAILED=0

mkdir -p soak/failed
[ -f "$TALLY" ] || printf 'commit\tpart\tfirst\tcount\tfailed\tseconds\n' >"$TALLY"

note() { printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$COMMIT" "$@" | tee -a "$TALLY"; }
next_seed() { awk -F'\t' '$2 == "seeds" && $3 + $4 > next_one { next_one = $3 + $4 } END { print (next_one > 1 ? next_one : 1) }' "$TALLY"; }

# One part of a lap: its name, its first seed or -, then what counts its units in the output, then the command.
lap() {
    local part=$1 first=$2 count_in=$3 out began failed=0 count
    shift 3
    out=soak/failed/$part-$(date +%s).log
    began=$(date +%s)
    "$@" >"$out" 2>&1 || failed=1
    count=$("$count_in" "$out")
    if [ "$failed" = 1 ]; then
        FAILED=1
        echo "$part failed; see $out:"
        grep -E 'FAILED|panicked|repeat with|--seed' "$out" | head -20 || true
    else
        rm "$out"
    fi
    note "$part" "$first" "$count" "$failed" "$(($(date +%s) - began))"
}
count_seeds() { grep -o 'sim: [0-9]* seeds' "$1" | awk '{ s += $2 } END { print s + 0 }'; }
count_kills() { grep -oE '[0-9]+ kills,' "$1" | awk '{ s += $1 } END { print s + 0 }'; }
count_cuts() { grep -oE '[0-9]+ power cuts of' "$1" | awk '{ s += $1 } END { print s + 0 }'; }
TESTS=("$CARGO" test --release --package flotilla --test it -- --nocapture)

while [ "$(date +%s)" -lt "$END" ]; do
    for part in $PARTS; do
        first=$(next_seed)
        case $part in
            seeds) lap seeds "$first" count_seeds $CARGO run --profile checked --package flotilla-sim -- --seeds "$SEEDS_A_LAP" --first "$first" ;;
            kills) lap kills - count_kills env FLOTILLA_KILLS="$KILLS_A_LAP" "${TESTS[@]}" crash::random points:: living:: ;;
            cuts) lap cuts - count_cuts env FLOTILLA_CUTS="$CUTS_A_LAP" "${TESTS[@]}" power:: image_cuts:: ;;
            *) echo "no part $part: seeds, kills, cuts" >&2; exit 2 ;;
        esac
    done
done

echo 'so far, on all commits:'
awk -F'\t' 'NR > 1 { count[$2] += $4; failed[$2] += $5; seconds[$2] += $6 }
    END { for (part in count) printf "%s: %d, %d laps failed, %.1f hours\n", part, count[part], failed[part], seconds[part] / 3600 }' "$TALLY" | sort
exit "$FAILED"
