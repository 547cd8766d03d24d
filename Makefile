# SkyRiff: `make run` sets up and runs everything on this machine, `make test` sets up and runs every test.
.DEFAULT_GOAL := help
.PHONY: help setup run test torture check bench clean

# Where `make run` keeps its data, and where the setup puts a Postgres when none is installed.
FOLDER ?= .skyriff

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-8s %s\n", $$1, $$2 }'

setup: ## Install what is missing: Postgres server programs, a C compiler, ffmpeg and espeak-ng
	@sh skyriff/postgres/install.sh $(FOLDER)/postgres

run: setup ## Build and run everything on this machine: http://127.0.0.1:8080, Ctrl-C stops it
	cargo build --release --locked --package skyriff
	@exec target/release/skyriff dev --folder $(FOLDER)

test: setup ## Run the whole test suite against real Postgres servers
	cargo build --package skyriff-postgres --locked
	cargo test --workspace --locked --no-run
	target/debug/with-postgres cargo test --workspace --locked

torture: setup ## Kill, stop and cut a running system, then check every answer; TORTURE_SECONDS=600 TORTURE_SEED=1
	cargo test --release --package skyriff --locked --test torture

check: ## Format, lints and documentation: warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --no-deps --locked

bench: setup ## Measure commands per second beside the stock path and the limits; BENCH=history BENCH_SECONDS=10
	@command -v wrk >/dev/null || { echo 'wrk is missing; install it (apt-get install wrk)'; exit 1; }
	cargo bench --package skyriff --locked --bench commands

clean: ## Delete the data of `make run`
	rm -rf $(FOLDER)/primary $(FOLDER)/replica $(FOLDER)/run $(FOLDER)/*.log $(FOLDER)/demo-user $(FOLDER)/token-secret $(FOLDER)/databases.env $(FOLDER)/objects $(FOLDER)/scratch
