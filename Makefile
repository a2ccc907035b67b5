# The commands of this repository. `make run` and `make test` do all the set-up themselves and share one
# cargo profile, because RocksDB takes a quarter of an hour to compile on two cores.

CARGO := cargo
PROFILE := --release
# The simulation is built without RocksDB, with every check the compiler has.
CHECKED := --profile checked
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
FLOTILLA := $(TARGET_DIR)/release/flotilla
# Seeds of one `make sim`; CI's share is CI_SEEDS.
SEEDS := 3000
CI_SEEDS := 1000

.PHONY: run test bench idle growth gray overload compare limits tail volume profile million snapshot-memory rot upgrade-test sim hostile soak mutants lint fmt docs bin setup

# The main job: a cluster of three nodes on this machine. ONCE=1: the whole show by itself, then the end.
run:
	@scripts/run.sh $(if $(ONCE),--once) $(ARGS)

# Everything that CI runs: unit and whole-system tests, the simulation's share, and the show.
test: setup
	$(CARGO) test $(PROFILE) --workspace
	$(MAKE) sim SEEDS=$(CI_SEEDS) ARGS=--expect-marks
	$(MAKE) run ONCE=1

# Simulated clusters; repeat a failure with the line that it prints.
sim: setup
	$(CARGO) run $(CHECKED) --package flotilla-sim -- --seeds $(SEEDS) $(ARGS)

# What idle ranges cost: three processes, RANGES ranges. Some minutes.
idle: bin
	BIN=$(FLOTILLA) scripts/idle.sh $(or $(RANGES),10000)

# A part of the tests, told as it goes: a cluster takes 20,000 files, or those below TREE, grows, loses a node, and is
# restarted node by node under load.
growth: setup
	$(if $(TREE),FLOTILLA_TEST_TREE=$(abspath $(TREE))) $(CARGO) test $(PROFILE) --package flotilla --test it growth -- --nocapture

# Moves a range of a gibibyte between processes, and fails if either side grows by more than 64 MiB: three minutes.
snapshot-memory: setup
	$(CARGO) test $(PROFILE) --package flotilla --test it snapshots::memory -- --ignored --nocapture

# Flipped bits in a node's files, FLIPS of them in random places: each is noticed or harmless.
rot: setup
	FLOTILLA_ROT_FLIPS=$(or $(FLIPS),100) $(CARGO) test $(PROFILE) --package flotilla --test it rot:: -- --nocapture

# The binary of an older commit (FROM, or that of tests/upgrade/from) beside this one: nodes are upgraded under load.
upgrade-test: setup
	scripts/upgrade-test.sh $(FROM)

# One node of three is slow, or stands still: what clients get done before, meanwhile and behind it. Five minutes.
gray: bin
	$(CARGO) bench --package flotilla-benches --bench growth -- --only 5 --reps 1

# Ten times more is asked of three nodes than they can do: what they get done, how large they grow, how soon they are well. Needs root; six minutes.
overload: bin
	$(CARGO) bench --package flotilla-benches --bench growth -- --only 6 --reps 1

# Flotilla beside etcd and ZooKeeper, the same load on all by turns: medians, spreads, ratios. Needs Go, Java, Maven, perf
# and a machine that does nothing else; twenty minutes. ARGS: what `compare run --help` names.
compare: bin
	$(CARGO) build $(PROFILE) --package flotilla-compare
	$(TARGET_DIR)/release/compare build
	$(TARGET_DIR)/release/compare run $(ARGS)

# What the machine gives: disk, network stack, RocksDB and the Raft loop, each by itself; what of it binds puts and gets.
# Needs a machine that does nothing else; five minutes. ARGS: what `compare limits --help` names.
limits: setup
	$(CARGO) build $(PROFILE) --package flotilla-compare
	$(TARGET_DIR)/release/compare limits $(ARGS)

# The tail of latencies while ranges split, merge, hand over and move, beside bulk writes and a slow disk: ratios to quiet
# times. Twenty minutes. ARGS: what `compare tail --help` names.
tail: bin
	$(CARGO) build $(PROFILE) --package flotilla-compare
	$(TARGET_DIR)/release/compare tail $(ARGS)

# A million keys in Flotilla and in etcd, by turns: memory, bytes written, restarts; with ARGS="--limit-mib M" loads within so
# much memory. Forty minutes, most of it waiting for etcd's compactions. ARGS: what `compare volume --help` names.
volume: bin
	$(CARGO) build $(PROFILE) --package flotilla-compare
	$(TARGET_DIR)/release/compare build --only etcd
	$(TARGET_DIR)/release/compare volume $(ARGS)

# Where the processor time of leader and follower goes: flame graphs into DIR, for LOADS. Needs perf.
profile: bin
	$(CARGO) build $(PROFILE) --package flotilla-compare
	for load in $(or $(LOADS),put get ycsb-e); do \
		$(TARGET_DIR)/release/compare profile $$load --out $(or $(DIR),target/profile) $(ARGS) || exit 1; \
	done

# Placement over a thousand simulated nodes and a million ranges, two nodes of which die: minutes, and two GiB.
million: setup
	$(CARGO) test $(PROFILE) --package flotilla-placement --test it a_million_ranges -- --ignored --nocapture

# Known bugs, put in on purpose: each must be found by the simulation within 500 seeds; aimed at are 200. ONLY="a b": these.
mutants: setup
	CARGO="$(CARGO)" scripts/mutants.sh $(ONLY)

# Every decoder against INPUTS generated and mutated inputs each, and the connections that nobody should make; a part
# of the tests, there with 100,000 inputs.
hostile: setup
	@FLOTILLA_HOSTILE_INPUTS=$(or $(INPUTS),1000000) $(CARGO) test $(PROFILE) --workspace --lib --bins --test hostile --test it \
		hostile -- --nocapture >$(TARGET_DIR)/hostile.txt || { cat $(TARGET_DIR)/hostile.txt; exit 1; }
	@grep -o 'hostile inputs: .*' $(TARGET_DIR)/hostile.txt | sort | \
		awk '{ print; n += $$3 } END { print n " inputs to " NR " decoders" }'

# A long run, as long as one likes: seeds that nobody has run, kills, power cuts. Its tally is soak/tally.tsv.
soak: setup
	scripts/soak.sh $(or $(HOURS),1) $(if $(PARTS),"$(PARTS)")

# Measurements, with medians and spread; docs/performance.md says what they decided.
bench: bin
	$(CARGO) bench --package flotilla-benches $(ARGS)

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings

fmt:
	$(CARGO) fmt --all

# For those who work on it: private items are shown, and may be linked to.
docs: setup
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc $(PROFILE) --workspace --no-deps --document-private-items

# The path of the built binary.
bin: setup
	@$(CARGO) build $(PROFILE) --quiet --bin flotilla
	@echo $(FLOTILLA)

setup:
	@scripts/setup.sh
