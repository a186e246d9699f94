# The entrances: `make demo`, `make test`, `make bench`, `make lint`. Each sets up what it needs first; a second run
# finds it done. Everything made lies in target/ and $(HK_DR_CACHE), nothing else of the machine is touched but missing
# Debian packages.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

export HK_DR_CACHE ?= $(CURDIR)/.cache
export CARGO_TERM_COLOR ?= auto
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
HK_DR := $(TARGET)/debug/hk-dr

# The lab boots machines, which takes root. Cargo itself runs as whoever calls make.
ifneq ($(shell id -u),0)
SUDO := sudo -E env "PATH=$$PATH"
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER := sudo -E
endif

# Tests that use a lab boot real machines: more of them at once only slow each other down on two cores.
TEST_THREADS ?= 2
# Nothing may hang: far above what it takes, far below anyone's patience.
TEST_DEADLINE ?= 35m

.PHONY: help packages build setup demo test bench lint fmt clean

help: ## Show what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

packages:
	@scripts/setup

build: packages
	@cargo build --locked --workspace

# The pinned binaries and the machines' image: independent of each other, one is computing and the other is waiting.
setup: build ## Install what is missing, build hk-dr, obtain the pinned binaries and the machines' image
	@scripts/ready $(HK_DR) $(SUDO)

demo: setup ## Build a cluster, lose it all, bring it back, prove it
	@$(SUDO) $(HK_DR) demo $(DEMO_ARGS)

# What only tests need of the pinned binaries.
test: export HK_DR_ALSO := age-keygen-1.3.2 age-plugin-pq-1.3.2
test: build ## Run every test
	@# The tests compile while the binaries are obtained: linking leaves a core idle, and so do downloads.
	scripts/ready $(HK_DR) $(SUDO) & ready=$$!
	cargo test --locked --workspace --no-run || { kill $$ready; wait $$ready; exit 1; }
	wait $$ready
	timeout --kill-after=30s $(TEST_DEADLINE) cargo test --locked --workspace --no-fail-fast -- --test-threads=$(TEST_THREADS)

# What is measured is compiled with optimisation; dependencies are not compiled again for that.
bench: export CARGO_PROFILE_DEV_OPT_LEVEL := 2
bench: setup ## Measure what the goals are about, into target/bench.json
	@$(SUDO) $(HK_DR) bench --output $(TARGET)/bench.json

lint: packages ## Formatting, clippy, licences and sources of dependencies, spelling
	@scripts/lint

fmt: ## Format the code
	@cargo fmt --all

clean: ## Remove what was built and fetched
	@rm -rf $(TARGET) $(CURDIR)/.cache
