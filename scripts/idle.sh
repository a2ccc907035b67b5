#!/usr/bin/env bash
# What idle ranges cost: three node processes on loopback, RANGES ranges with a replica on each.
#
#   scripts/idle.sh [RANGES] [DIRECTORY]     (10,000 ranges, a temporary directory)
#
# Prints memory, CPU and messages of each node while nothing is asked of it, the time of a restart, and what follows when a
# node is killed: how long a request waits for an idle range that it led, and until all are led again.
# BIN names the binary, by default target/release/flotilla.
set -euo pipefail

RANGES=${1:-10000}
DIR=${2:-$(mktemp -d)}
BIN=${BIN:-target/release/flotilla}
FIRST=${FIRST_PORT:-17400}
SEEDS=100
PIDS=()

client_port() { echo $((FIRST + $1)); }
http_port() { echo $((FIRST + 20 + $1)); }
addr() { echo "127.0.0.1:$(client_port "$1")"; }
ALL="$(addr 1),$(addr 2),$(addr 3)"
ctl() { "$BIN" --addr "$ALL" --timeout 30s "$@"; }
metric() { curl -s -m 5 "127.0.0.1:$(http_port "$1")/metrics" | awk -v name="$2" '$1 == name { print int($2) }'; }
now_ms() { date +%s%3N; }

start() {
    local how=(--join "$(addr 1)")
    [ "$1" = 1 ] && how=(--bootstrap)
    "$BIN" start --data "$DIR/n$1" --client-listen "$(addr "$1")" --peer-listen "127.0.0.1:$((FIRST + 10 + $1))" \
        --http-listen "127.0.0.1:$(http_port "$1")" "${how[@]}" >>"$DIR/n$1.log" 2>&1 &
    PIDS[$1]=$!
}
ready() { until curl -sf -m 1 "127.0.0.1:$(http_port "$1")/readyz" >/dev/null; do sleep 0.02; done; }
stop_all() { for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; }
trap stop_all EXIT

# Bytes that are not mapped files, without what RocksDB says that its buffers and its cache take.
memory() {
    local anon
    anon=$(awk '/^RssAnon/ { print $2 * 1024 }' "/proc/${PIDS[$1]}/status")
    echo $((anon - $(metric "$1" flotilla_rocksdb_memtable_bytes) - $(metric "$1" flotilla_rocksdb_block_cache_bytes)))
}
cpu_ms() { awk '{ print ($14 + $15) * 10 }' "/proc/${PIDS[$1]}/stat"; }
sent() { for id in 1 2 3; do metric $id flotilla_raft_messages_sent_total; done | awk '{ s += $1 } END { print s }'; }
# (range, start as base64, leader) of each range of the keyspace.
ranges() {
    ctl range list --keyspace idle --output json | tr '{' '\n' | grep -o '"leader_node_id":[0-9]*\|"range_id":[0-9]*\|"start":"[^"]*"' |
        sed 's/.*://; s/"//g' | paste - - - | awk '{ print $2, ($3 == "" ? "-" : $3), $1 }'
}
rss_mib() { awk '/^VmRSS/ { print int($2 / 1024) }' "/proc/${PIDS[$1]}/status"; }
# CPU (ms) and memory (MiB) of nodes 2 and 3, every half second.
watch_them() { while sleep 0.5; do echo "$(cpu_ms 2) $(cpu_ms 3) $(rss_mib 2) $(rss_mib 3)"; done; }
quiet() { # until nothing is sent for so many seconds, two if nothing is said
    local before=-1 after
    until after=$(sent) && [ "$before" = "$after" ]; do before=$after; sleep "${1:-2}"; done
}

mkdir -p "$DIR"
for id in 1 2 3; do start $id; ready $id; done
until [ "$(metric 1 flotilla_nodes_live)" = 3 ]; do sleep 0.2; done
ctl keyspace create idle --replicas 3 --ranges $SEEDS >/dev/null
until [ "$(for id in 1 2 3; do metric $id flotilla_ranges; done | sort -n | head -1)" -gt $SEEDS ]; do sleep 0.5; done
quiet
for id in 1 2 3; do base[$id]=$(memory $id); had[$id]=$(metric $id flotilla_ranges); done

began=$(now_ms)
while read -r range start _; do
    key=$([ "$start" = - ] || echo "$start" | base64 -d)
    at=()
    for i in $(seq 1 $((RANGES / SEEDS - 1))); do at+=(--at "$key!$(printf %05d "$i")"); done
    until ctl range split "$range" "${at[@]}" >/dev/null 2>&1; do sleep 0.2; done
done < <(ranges)
until [ "$(for id in 1 2 3; do metric $id flotilla_ranges; done | sort -n | head -1)" -ge "$RANGES" ]; do sleep 0.5; done
echo "made in $(($(now_ms) - began)) ms"
quiet
echo "quiet after $(($(now_ms) - began)) ms"
quiet 12 # Placement looks again whether leaders are balanced ten seconds after they were.

for id in 1 2 3; do cpu[$id]=$(cpu_ms $id); frames[$id]=$(metric $id flotilla_peer_frames_sent_total); done
messages=$(sent)
sleep 20
for id in 1 2 3; do
    count=$(($(metric $id flotilla_ranges) - had[id]))
    echo "node $id: $(metric $id flotilla_ranges) ranges, $(metric $id flotilla_ranges_led) led;" \
        "$((($(memory $id) - base[id]) / count)) bytes each;" \
        "CPU $((($(cpu_ms $id) - cpu[id]) / 20)) ms/s; $((($(metric $id flotilla_peer_frames_sent_total) - frames[id]) / 20)) frames/s"
done
echo "Raft messages/s of all nodes: $((($(sent) - messages) / 20))"

kill -9 "${PIDS[3]}"; wait "${PIDS[3]}" 2>/dev/null || true
began=$(now_ms); start 3
until "$BIN" --addr "$(addr 3)" --timeout 1s kv put --keyspace idle restarted v >/dev/null 2>&1; do sleep 0.02; done
serves=$(($(now_ms) - began))
ready 3
echo "restart of node 3: serves after $serves ms, says that it is ready after $(($(now_ms) - began)) ms, CPU $(cpu_ms 3) ms"
quiet

mapfile -t probes < <(ranges | awk '$3 == 1' | shuf -n 20)
led=$(metric 1 flotilla_ranges_led)
won=$(($(metric 2 flotilla_elections_won_total) + $(metric 3 flotilla_elections_won_total)))
for id in 2 3; do cpu[$id]=$(cpu_ms $id); done
watch_them >"$DIR/peaks" &
watching=$!
kill -9 "${PIDS[1]}"
began=$(now_ms)
ALL="$(addr 2),$(addr 3)"
for probe in "${probes[@]}"; do
    read -r _ start _ <<<"$probe"
    key=$([ "$start" = - ] && echo a || echo "$start" | base64 -d)
    (until ctl kv put --keyspace idle "$key!" v >/dev/null 2>&1; do :; done; echo $(($(now_ms) - began))) &
    waits+=($!)
done | sort -n >"$DIR/probes"
echo "killed node 1, which led $led: served after $(sed -n 1p "$DIR/probes") ms (first), $(sed -n 10p "$DIR/probes") ms (median), $(tail -1 "$DIR/probes") ms (last of 20)"
until [ $(($(metric 2 flotilla_elections_won_total) + $(metric 3 flotilla_elections_won_total) - won)) -ge "$led" ]; do sleep 0.2; done
took=$(($(now_ms) - began))
kill $watching
echo "all led again after $took ms; CPU of the two others meanwhile: $((($(cpu_ms 2) - cpu[2]) * 1000 / took)) and $((($(cpu_ms 3) - cpu[3]) * 1000 / took)) ms/s"
awk '{ for (i = 1; i <= 2; i++) { if (NR > 1 && $i - last[i] > cpu[i]) cpu[i] = $i - last[i]; last[i] = $i; if ($(i + 2) > mib[i]) mib[i] = $(i + 2) } }
    NR == 1 { was = $3 " and " $4 }
    END { print "at most, in half a second: " cpu[1] " and " cpu[2] " ms of CPU; memory: " was " MiB before, at most " mib[1] " and " mib[2] " MiB" }' "$DIR/peaks"
