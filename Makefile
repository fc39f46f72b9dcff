# Every command of this project. `make help` lists them.

# One profile for binaries and tests, and one selection of packages (--workspace): RocksDB takes ten
# minutes to compile on two cores, and either another profile or `-p` alone would compile it again.
CARGO ?= cargo
#
# The compilers count as well: clang++ is a quarter faster at RocksDB than g++, and changing CC or
# CXX compiles it again.
ifeq ($(origin CC),default)
CC = clang
endif
ifeq ($(origin CXX),default)
CXX = clang++
endif
export CC CXX

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/trivet
TOOLS := $(CACHE)/tools
export PATH := $(TOOLS)/bin:$(PATH)

# Where cargo builds: its own settings may say elsewhere than ./target.
TARGET = $(shell $(CARGO) metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
TRIVET = $(TARGET)/release/trivet
SUDO = $(if $(filter 0,$(shell id -u)),,sudo)
APT = $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends

BUILD_PACKAGES = build-essential clang libclang-dev lld protobuf-compiler
TEST_PACKAGES = fio libnbd-bin nbdkit qemu-utils fuse3 xfsprogs e2fsprogs util-linux iproute2 nftables

# The sanitizer's flags are nightly's; the stable compiler takes them when told so.
FUZZ = RUSTC_BOOTSTRAP=1 $(CARGO) fuzz

BUILD_SIM = $(CARGO) build --release --workspace --bin trivet-sim
SIM = $(TARGET)/release/trivet-sim

ROUNDS ?= 100
FUZZ_SECONDS ?= 60
SECONDS ?= 3600

.DEFAULT_GOAL := help
.PHONY: help deps deps-build deps-test deps-fuzz deps-deny check-tools build run test lint clippy fmt deny advisories \
	doc bench compare resync-bench snapshot-bench group-bench clone-bench encryption-bench soak faults memory fuzz fuzz-replay \
	sim sim-long sim-planted protocol-model

help: ## list what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: deps-build deps-test ## install what building and testing need (Debian packages, fsx)

deps-build: ## install what building needs
	$(SUDO) apt-get update
	$(APT) $(BUILD_PACKAGES)

deps-test: ## install what testing needs
	$(SUDO) apt-get update
	$(APT) $(TEST_PACKAGES)
	test -x $(TOOLS)/bin/fsx || $(CARGO) install --root $(TOOLS) --target-dir $(TOOLS)/target --locked fsx@0.3.2

deps-deny:
	test -x $(TOOLS)/bin/cargo-deny || \
		$(CARGO) install --root $(TOOLS) --target-dir $(TOOLS)/target --locked cargo-deny@0.20.2

deps-fuzz:
	test -x $(TOOLS)/bin/cargo-fuzz || \
		$(CARGO) install --root $(TOOLS) --target-dir $(TOOLS)/target --locked cargo-fuzz@0.13.2

check-tools:
	@missing=; \
	for program in cargo clang clang++ protoc; do \
		command -v $$program >/dev/null || missing="$$missing $$program"; \
	done; \
	find /usr/lib /usr/lib64 $(LIBCLANG_PATH) -name 'libclang*.so*' 2>/dev/null | grep -q . || \
		missing="$$missing libclang"; \
	if [ -n "$$missing" ]; then \
		echo "Not installed:$$missing. Run: make deps (Rust itself comes from https://rustup.rs)" >&2; exit 1; \
	fi

build: check-tools ## build the binaries
	$(CARGO) build --release --workspace

run: build ## build, start a volume on three replicas and say how to use it
	$(TRIVET) up

test: build ## run all tests but the long ones (soak, memory, fuzz)
	$(CARGO) test --release --workspace

lint: fmt deny clippy ## check format, crate arrows, licences and lints

clippy: check-tools ## check the lints
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

fmt: ## check the format
	$(CARGO) fmt --all --check

deny: deps-deny ## check crate arrows, licences and sources
	$(CARGO) deny --log-level error check -A unused-wrapper bans licenses sources

advisories: deps-deny ## check for known vulnerabilities (needs the advisory database from the network)
	$(CARGO) deny check advisories

doc: ## build the documentation of the code, with every warning an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps

bench: build ## measure a volume against raw files and keep the table in docs/performance.md
	$(TARGET)/release/xtask bench --write docs/performance.md $(BENCH)

compare: build ## measure volumes of BEFORE=path/to/trivet and of this build by turns, and keep the table in docs/performance.md
	$(TARGET)/release/xtask compare --write docs/performance.md --before $(BEFORE) $(BENCH)

resync-bench: build ## measure how fast members come back, and keep the tables in docs/performance.md
	$(TARGET)/release/xtask resync --write docs/performance.md $(BENCH)

snapshot-bench: build ## measure what snapshots cost, and keep the table in docs/performance.md
	$(TARGET)/release/xtask snapshots --write docs/performance.md $(BENCH)

group-bench: build ## measure for how long snapshots of several volumes hold writes, and keep the table in docs/performance.md
	$(TARGET)/release/xtask groups --write docs/performance.md $(BENCH)

clone-bench: build ## measure what clones cost, and keep the table in docs/performance.md (BENCH="--written 512" for less)
	$(TARGET)/release/xtask clones --write docs/performance.md $(BENCH)

encryption-bench: build ## measure what encryption costs, and keep the table in docs/performance.md
	$(TARGET)/release/xtask encryption --write docs/performance.md $(BENCH)

soak: build ## kill -9 in a loop under load (ROUNDS=100, TRIVET_TEST_SEED=n repeats a run)
	TRIVET_TEST_ROUNDS=$(ROUNDS) $(CARGO) test --release --workspace --test kill -- --nocapture kill_9_of_anyone

sim: check-tools ## simulate clusters: 20,000 seeds or ten minutes, whichever comes first
	$(BUILD_SIM)
	$(SIM) --seeds 0..20000 --seconds 600

sim-long: check-tools ## simulate clusters for SECONDS=3600, out of seeds that nobody has run
	$(BUILD_SIM)
	first=$$(date +%s)0000; $(SIM) --seeds $$first..$$((first + 1000000000)) --seconds $(SECONDS)

# Sixty seconds of two free cores are what each may take; half as much again is for machines that share theirs.
sim-planted: check-tools ## put faults into the product, and see that the simulator finds each within 60 s of two cores
	$(BUILD_SIM) --features trivet-sim/planted-faults
	$(SIM) --plant all --seconds 90

faults: build ## run the failure table's tests and print the table with pass or fail (ROWS="F07 F20")
	$(TARGET)/release/xtask faults $(ROWS)

memory: build ## two million blocks in a terabyte: a replica's memory, and its time to open
	$(CARGO) test --release --workspace --test memory -- --ignored --nocapture

protocol-model: ## try every order of events in the protocol's larger model worlds (minutes)
	$(CARGO) run --release -p trivet-protocol-model

# What is found goes into the cache; what is worth keeping is added to fuzz/corpus by hand.
fuzz: deps-fuzz ## fuzz every decoder for FUZZ_SECONDS=60 each
	cd fuzz && for target in $$($(FUZZ) list); do \
		found=$(CACHE)/fuzz-corpus/$$target; mkdir -p $$found; \
		$(FUZZ) run $$target $$found corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 || exit 1; \
	done

fuzz-replay: deps-fuzz ## run every decoder on the corpus, with the address sanitizer
	cd fuzz && for target in $$($(FUZZ) list); do \
		$(FUZZ) run $$target -- -runs=0 || exit 1; \
	done
