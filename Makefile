# `make help` lists what there is. Each target does all the set-up that it needs.
.PHONY: help build release deps test run fuzz faults power-loss bench bench-runtime bench-store conformance link-order install vm-test vm-conformance clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

build: ## the binary, quickly: target/<triple>/debug/gantry
	cargo build -p gantry

release: ## the binary as it is shipped: target/<triple>/release/gantry
	cargo build --release -p gantry

deps: ## installs the peers that tests compare with (root, Debian)
	scripts/deps

test: ## everything that is checked: deps, format, lints, tidy, all tests, leak check, virtual machine
	scripts/test

run: ## walks through build, run, layers and squash with the example; leaves nothing behind (root)
	scripts/run-demo

fuzz: deps ## random configurations and seccomp profiles through the runtime, random images through the forms of layers, GNU tar and dockerd; FUZZ_SECONDS (60) each, TREES (40) for dockerd; FUZZ_SEED repeats a case (root)
	FUZZ_SECONDS=$${FUZZ_SECONDS:-60} cargo test -p gantry-runtime --lib --test seccomp fuzz_ -- --nocapture
	FUZZ_SECONDS=$${FUZZ_SECONDS:-60} cargo test -p gantry-store --test trees forms_ -- --nocapture
	TREES=$${TREES:-40} cargo test -p gantry-testkit --test e2e trees:: -- --nocapture

faults: deps ## store and engine killed at every named point, each time looked over (root, some minutes); FAULTS=N takes N of each kind
	scripts/faults

power-loss: deps ## the power cut at hundreds of places of recorded block writes, each disk looked over (root, ten minutes); POWER_CUTS=N takes N of each form of layers, POWER_SEED repeats
	scripts/power-loss

bench: ## ratios against the peers, in one run (root)
	scripts/bench

bench-runtime: ## ratios of the runtime against runc, crun and, where it builds, youki (root)
	scripts/bench-runtime

bench-store: ## ratios of pull, push, save, load and remove against the peers and the floor (root)
	scripts/bench-store

conformance: deps ## the runtimes against the OCI specification, the attacks on ours, and the runtimes below podman, dockerd and containerd (a quarter of an hour); CONFORMANCE_RUNTIME="/path [words]" for another (root)
	cargo build -p gantry
	CONFORMANCE_LONG=1 cargo test -p gantry-testkit --test runtime -- --nocapture
	CONFORMANCE_LONG=1 cargo test -p gantry-testkit --test e2e engines:: -- --nocapture --test-threads=2

vm-test: ## the smoke test in a virtual machine that has cgroup v2 only
	scripts/vm smoke

vm-conformance: deps ## the runtimes against the OCI specification in that machine (a quarter of an hour)
	cargo build -p gantry -p gantry-testkit --bins
	scripts/vm conformance

link-order: ## the functions that lie side by side in a release build, found anew by running it (root)
	scripts/link-order

install: ## release binary and systemd units below $(PREFIX), default /usr
	scripts/install

clean: ## what was built
	cargo clean
