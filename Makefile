# The commands of this repository. `make run` and `make test` do all the set-up themselves and share one
# cargo profile, because RocksDB takes a quarter of an hour to compile on two cores.

CARGO := cargo
PROFILE := --release
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

.PHONY: run test bench sim lint fmt docs bin setup

setup:
	@scripts/setup.sh

test: setup
	$(CARGO) test $(PROFILE) --workspace

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings

fmt:
	$(CARGO) fmt --all

docs: setup
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(PROFILE) --workspace --no-deps

bin: setup
	@$(CARGO) build $(PROFILE) --quiet --bin flotilla
	@echo $(TARGET_DIR)/release/flotilla
