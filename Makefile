# Everything that can be done with the project from a checkout; `make` lists it.
#
# Variables: STANDFAST_DOCKER (e2e/cluster/cluster.sh), STANDFAST_CACHE (e2e/tools.sh),
# KUBECONFIG_E2E (the target e2e).

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

.PHONY: test
test: ## Everything that proves the product (what CI runs)
	@echo "== the committed manifests of the kinds are those of the code"
	@$(MAKE) crds-check
	@echo "== unit, property and control-plane tests"
	@cargo build --locked --workspace --bins
	@STANDFAST_CONTROLPLANE=$$(dirname "$$($(tools) controlplane)"); export STANDFAST_CONTROLPLANE; \
	cargo test --locked --workspace -- --skip kind::
	@echo "== end-to-end tests on a cluster"
	@$(MAKE) e2e

.PHONY: unit
unit: ## Tests that need no cluster
	cargo test --locked --workspace --exclude standfast-e2e

# Built first, so that a mistake shows before two minutes of cluster. The cluster's
# nodes do not pull: the images are copied into them. (--workspace: with one package,
# cargo would choose other features for the dependencies and compile them again.)
.PHONY: e2e
e2e: ## End-to-end tests on a cluster of their own, or on that of KUBECONFIG_E2E
	@cargo test --locked --workspace --test suite --no-run
	@if [ -n "$${KUBECONFIG_E2E:-}" ]; then \
	  PATH="$$(dirname "$$($(tools) kubectl)"):$$(dirname "$$($(tools) helm)"):$$PATH" \
	    cargo test --locked --workspace --test suite -- kind::; \
	else \
	  $(MAKE) images STANDFAST_PROFILE=debug; \
	  $(cluster) with e2e $(addprefix --load ,$(images)) -- \
	    cargo test --locked --workspace --test suite -- kind::; \
	fi

.PHONY: lint
lint: ## Formatting, clippy, charts and scripts
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	helm=$$($(tools) helm); for chart in charts/*/; do "$$helm" lint --strict --namespace standfast-system "$$chart"; done
	if command -v shellcheck >/dev/null; then shellcheck -x $(scripts); fi

.PHONY: crds
crds: ## Regenerate the manifests of the kinds
	cargo run -q --locked -p standfast-crds --example crdgen -- crds/manifests

.PHONY: crds-check
crds-check:
	@generated=$$(mktemp -d); trap 'rm -rf "$$generated"' EXIT; \
	cargo run -q --locked -p standfast-crds --example crdgen -- "$$generated"; \
	diff -ru crds/manifests "$$generated" || { echo 'crds/manifests is out of date: run `make crds`' >&2; exit 1; }

.PHONY: bench
bench: ## Measure, and print the table of docs/benchmarks.md
	@STANDFAST_CONTROLPLANE=$$(dirname "$$($(tools) controlplane)"); export STANDFAST_CONTROLPLANE; \
	cargo build --release --locked -p standfast-operator --bin standfast -p standfast-e2e --bin bench; \
	cargo run --release --locked -p standfast-e2e --bin bench

.PHONY: images
# Release builds, as users get them, except for the tests: those take the debug build that
# they have compiled anyway. A second build of everything would double the time of CI, and
# debug assertions are worth having there. (--workspace: as with e2e.)
export STANDFAST_PROFILE ?= release
ifeq ($(STANDFAST_PROFILE),release)
build_binaries := cargo build --release --locked -p standfast-operator --bin standfast -p standfast-e2e --bin paper-venue
else
build_binaries := cargo build --locked --workspace --bins
endif

images: ## Build the images of the operator and of the demo
	@$(build_binaries)
	@e2e/images/build.sh
