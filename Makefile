# A menu. The checks themselves are listed in .ci/run.
.PHONY: help setup demo evidence speedrun test test-long asan mutants deny wheel golden check

help: ## show this menu
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: ## install what building needs (quick when done)
	@scripts/setup

demo: setup ## import real images, train a small model, show pictures (demo/run)
	@scripts/demo

evidence: setup ## repeat the figures of docs/results.md (evidence/; hours, interrupted it goes on)
	@scripts/evidence

speedrun: setup ## the best entry of docs/leaderboard.md with five seeds (speedrun/; hours, stopped it goes on)
	@scripts/speedrun

test: export OMP_NUM_THREADS ?= 1 # tests run side by side
test: setup ## run every test
	cargo build --workspace --bins --tests
	cargo test --workspace

test-long: setup ## the same tests at full counts; interrupted, it goes on where it was
	@scripts/test-long

asan: setup ## the decoder's and the shim's tests under AddressSanitizer
	@scripts/asan

mutants: setup ## change 200 places of what exactness rests on, and see which no test notices
	@scripts/mutants

deny: ## licences, sources and bans of all dependencies (cargo-deny)
	@scripts/deny

wheel: ## the Python package, as a wheel in target/wheels
	@scripts/wheel

golden: setup ## remake the golden files from Python's PyTorch
	@scripts/golden

check: ## everything CI checks
	@.ci/run
