# Everything that can be done with the project from a checkout; `make` lists it.
#
# Variables: STANDFAST_DOCKER (e2e/cluster/cluster.sh), STANDFAST_CACHE (e2e/tools.sh),
# KUBECONFIG_E2E (the target e2e), TEST_JOBS (the target test), ARGS (the target bench).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

tools   := e2e/tools.sh
cluster := e2e/cluster/cluster.sh
images  := localhost/standfast:dev localhost/standfast-paper-venue:dev localhost/standfast-demo-bot:dev
scripts := $(wildcard e2e/*.sh e2e/*/*.sh e2e/cluster/node/*.sh) .ci/run \
           e2e/cluster/runc-without-missing-capabilities \
           $(addprefix e2e/cluster/node/files/, entrypoint node-kubelet systemctl)

# Where tests leave the logs of what they started.
export STANDFAST_LOGS := $(CURDIR)/.work/logs

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: demo
demo: ## Halt a trading system and resume it, on a cluster of its own
	@e2e/demo.sh

.PHONY: demo-down
demo-down: ## Remove the demo's cluster and everything with it
	@$(cluster) down demo
	@e2e/images/build.sh clean

# Where make runs several jobs. Cargo would take whatever it finds open under the numbers that
# make names for make's tokens; it has jobs of its own.
cargo := MAKEFLAGS= cargo

# `command line` that runs in this checkout only once at a time: two would delete each
# other's cluster. (--close: nothing that it leaves running may hold the lock.)
alone = mkdir -p .work; flock --nonblock .work/test.lock true || \
  echo "waiting for the tests that run in this checkout already" >&2; flock --close .work/test.lock

# `command line` with the bare control plane, which is built where its progress is seen.
with_controlplane = controlplane=$$($(tools) controlplane); STANDFAST_CONTROLPLANE=$$(dirname "$$controlplane")

.PHONY: test test-alone
test: ## Everything that proves the product (what CI runs)
	@$(tools) apt build tests
	@$(alone) $(MAKE) test-alone

# The Go programs are built beside the Rust ones, of which neither keeps all cores busy all
# the time. Whoever needs one of them waits for it, or builds it if that failed.
# TEST_JOBS=2 runs the tests on a cluster, which wait for pods most of their time, beside the
# others: that takes a third less time, and a machine that has something to spare. On two cores
# the sweeps' limits are too narrow for it now and then.
test-alone:
	@mkdir -p "$$STANDFAST_LOGS"; $(tools) helm controlplane kind >"$$STANDFAST_LOGS/tools.log" 2>&1 &
	@echo "== formatting, clippy, manifests and charts"
	@$(MAKE) checks
	@cargo build --locked --workspace --all-targets
	@$(MAKE) e2e-needs
	@echo "== unit, property and control-plane tests; end-to-end tests on a cluster (kind::…)"
	@$(MAKE) --jobs=$(TEST_JOBS) others-alone e2e-alone

TEST_JOBS ?= 1

.PHONY: others-alone
others-alone:
	@$(with_controlplane) RUST_TEST_THREADS=$(threads) $(cargo) test --locked --workspace -- --skip kind::

# Tests at a time: most of them wait, for API servers and for time to pass.
threads = $$(($$(nproc) * 4))

.PHONY: sweep
sweep: ## The crash sweep with every call and every fault: hours (STANDFAST_SWEEP: parts of it)
	@$(tools) apt build tests
	@$(with_controlplane) STANDFAST_SWEEP=$${STANDFAST_SWEEP:-all} \
	  cargo test --locked --workspace --test suite -- sweep::sweep_of

.PHONY: unit
unit: ## Tests that need no cluster
	@$(tools) apt build
	cargo test --locked --workspace --exclude standfast-e2e

.PHONY: e2e e2e-alone e2e-needs
e2e: ## End-to-end tests on a cluster of their own, or on that of KUBECONFIG_E2E
	@$(tools) apt build
	@$(alone) $(MAKE) e2e-needs e2e-alone

# Built first, so that a mistake shows before two minutes of cluster. The cluster's
# nodes do not pull: the images are copied into them. (--workspace: with one package,
# cargo would choose other features for the dependencies and compile them again.)
# The tests use the cluster of KUBECONFIG_E2E, which `with` sets too, and never another.
e2e-alone:
	@$(cargo) test --locked --workspace --test suite --no-run
	@if [ -n "$${KUBECONFIG_E2E:-}" ]; then \
	  PATH="$$(dirname "$$($(tools) kubectl)"):$$(dirname "$$($(tools) helm)"):$$PATH" \
	    $(cargo) test --locked --workspace --test suite -- kind:: --test-threads 4; \
	else \
	  $(cluster) with e2e $(addprefix --load ,$(images)) -- \
	    env $(cargo) test --locked --workspace --test suite -- kind:: --test-threads 4; \
	fi

# The node image, if one is built here, and the images: nothing is started.
e2e-needs:
	@if [ -z "$${KUBECONFIG_E2E:-}" ]; then \
	  $(cluster) fetch; $(MAKE) images STANDFAST_PROFILE=debug; fi

.PHONY: lint
lint: ## Formatting, clippy, manifests, charts, scripts and examples
	@$(tools) apt build lint
	@$(MAKE) checks
	shellcheck -x $(scripts)
	@$(with_controlplane) cargo test --locked --workspace --test suite -- examples::

.PHONY: checks
checks:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@$(MAKE) crds-check
	@helm=$$($(tools) helm); for chart in charts/*/; do \
	  "$$helm" lint --strict --namespace standfast-system "$$chart"; done

.PHONY: crds
crds: ## Regenerate the manifests of the kinds
	@$(tools) apt build
	cargo run -q --locked -p standfast-crds --example crdgen -- crds/manifests

.PHONY: crds-check
crds-check:
	@generated=$$(mktemp -d); trap 'rm -rf "$$generated"' EXIT; \
	cargo run -q --locked -p standfast-crds --example crdgen -- "$$generated"; \
	diff -ru crds/manifests "$$generated" || { echo 'crds/manifests is out of date: run `make crds`' >&2; exit 1; }

.PHONY: bench
bench: ## Measure, and print the table of docs/benchmarks.md (smaller: ARGS="--runs 20 …")
	@$(tools) apt build bench
	@cargo build --release --locked -p standfast-operator --bin standfast -p standfast-e2e --bin bench
	@$(MAKE) images
	@$(with_controlplane) cargo run --release --locked -p standfast-e2e --bin bench -- $(ARGS)
	@$(cluster) with bench $(addprefix --load ,$(images)) -- bash -c \
	  'cargo run -q --release --locked -p standfast-e2e --bin bench -- --pods "$$KUBECONFIG_E2E" $(ARGS)'

# Where `make install-cli` puts the program.
BINDIR ?= $(HOME)/.local/bin

.PHONY: cli install-cli
cli: ## Build the command line, target/release/kubectl-standfast
	@$(tools) apt build
	cargo build --release --locked -p standfast-cli

install-cli: cli ## Install it for `kubectl standfast` (BINDIR=…, by default ~/.local/bin)
	install -D -m 755 target/release/kubectl-standfast "$(BINDIR)/kubectl-standfast"

.PHONY: images
# Release builds, as users get them, except for the tests: those take the debug build that
# they have compiled anyway. A second build of everything would double the time of CI, and
# debug assertions are worth having there. (--workspace: as with e2e.)
export STANDFAST_PROFILE ?= release
ifeq ($(STANDFAST_PROFILE),release)
build_binaries := $(cargo) build --release --locked -p standfast-operator --bin standfast -p standfast-e2e --bin paper-venue
else
build_binaries := $(cargo) build --locked --workspace --all-targets
endif

images: ## Build the images of the operator and of the demo
	@$(tools) apt build
	@$(build_binaries)
	@e2e/images/build.sh
