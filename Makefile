# The only command list, for people and for CI. `make` alone shows it.
#
# Every target sets up what it needs (integration-tests/bed/prerequisites.sh), so that a fresh
# Debian or Ubuntu with git, make and a stable Rust toolchain is enough.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(HOME)/.cargo/bin:$(PATH)

bed := integration-tests/bed
# What `cargo build` makes, wherever the target folder is.
target := $(or $(CARGO_TARGET_DIR),target)
bin := $(target)/debug

.PHONY: help
help: ## show this list
	@echo "make <target>, where target is one of"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 15
	@echo "TIERS=\"core broker\" make test runs only these tiers"

.PHONY: build
build: ## the binaries, in target/debug: millrace, millrace-input, millrace-output
	@$(bed)/prerequisites.sh build
	cargo build -p millrace-cli -p millrace-input -p millrace-output

.PHONY: release
release: ## the same binaries as they are shipped, in target/release (takes longer)
	@$(bed)/prerequisites.sh build
	cargo build --release -p millrace-cli -p millrace-input -p millrace-output

.PHONY: demo
demo: build ## a scikit-learn model answers 20,000 real events, and the audit proves it; KEEP=1 goes on
	@$(bed)/prerequisites.sh python
	@$(bin)/millrace demo app-template/python-sklearn/block.yaml $(if $(KEEP),--keep)

.PHONY: test
test: ## everything: lints, unit tests, laws, simulation, conformance, stories, real Kafka
	@$(bed)/tiers.sh $(TIERS)

.PHONY: check
check: ## formatting and clippy, warnings are errors
	@$(bed)/tiers.sh lints

.PHONY: test-kafka
test-kafka: ## conformance and stories on a real Apache Kafka (needs Java and Maven, or installs them)
	@CI=1 $(bed)/tiers.sh kafka

.PHONY: bench
bench: release ## events per second beside a plain copy and the app's own ceiling; kept in bench/results/
	@$(target)/release/millrace bench

# How many seeds `make sim` tries; a failing one is written to sim/regressions/.
SEEDS ?= 10000

.PHONY: sim
sim: ## many seeded runs of the core with faults, in virtual time; SEEDS=10000
	cargo run -q -p millrace-sim -- --seeds $(SEEDS)

# How large the worlds are: `full`, or `small` as in `make test`.
MODEL ?= full

.PHONY: model
model: ## every order of steps of a hand-over, in larger worlds than in `make test`; MODEL=full
	MODEL=$(MODEL) cargo test -p millrace-model -- --nocapture --test-threads=1

# How long `make soak` kills; BROKER=embedded takes the embedded broker instead of a real Kafka
# and kills it too; GUARANTEE=ExactlyOnce; SEED repeats a run.
MINUTES ?= 5

.PHONY: soak
soak: ## random kill -9 of input, output and app under load, then a count; MINUTES=5 BROKER=kafka
	@MINUTES=$(MINUTES) BROKER=$(BROKER) GUARANTEE=$(GUARANTEE) SEED=$(SEED) $(bed)/long-run.sh soak

# How many events wait for the output.
EVENTS ?= 200000

.PHONY: outage
outage: ## the output cannot reach its broker while events wait: memory over time; MINUTES=5 EVENTS=200000
	@MINUTES=$(MINUTES) EVENTS=$(EVENTS) BROKER=$(BROKER) $(bed)/long-run.sh outage

# The targets are the files of fuzz/fuzz_targets/.
TARGET ?= batch_answer

.PHONY: fuzz
fuzz: ## fuzzing with coverage, until stopped; TARGET=batch_answer (needs nightly and cargo-fuzz)
	cd fuzz && cargo +nightly fuzz run $(TARGET)

.PHONY: docs
docs: ## writes the generated pages of docs/reference/, and the kept help texts, again
	@$(bed)/prerequisites.sh build
	UPDATE=1 cargo test -q -p millrace-service --test reference
	UPDATE=1 cargo test -q -p millrace-cli --test command_line help_is_as_written_down
	UPDATE=1 cargo test -q -p millrace-integration-tests --test reference_pages
	UPDATE=1 cargo test -q -p millrace-integration-tests --test reliability_page

.PHONY: clean
clean: ## removes what was built and what tests left behind
	-@$(bed)/kafka.sh wipe
	cargo clean
	rm -rf test-artifacts .millrace app-template/*/.venv app-template/*/.millrace
