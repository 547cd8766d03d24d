# SkyRiff: `make run` sets up and runs everything on this machine, `make test` sets up and runs every test.
.DEFAULT_GOAL := help
.PHONY: help setup setup-tests run demo test test-api test-kafka broker schemas torture topology check bench clean

# Where `make run` keeps its data, and where the setup puts a Postgres when none is installed.
FOLDER ?= .skyriff
# Where the tests find their broker.
export SKYRIFF_TEST_BROKER = $(abspath $(FOLDER))/broker/noida-db

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: ## Install what is missing: Postgres, C and C++ compilers, ffmpeg and espeak-ng
	@sh skyriff/postgres/install.sh $(FOLDER)/postgres

setup-tests: setup
	@sh skyriff/kafka/install-broker.sh $(FOLDER)/broker

run: setup ## Build and run everything on this machine: http://127.0.0.1:8080, Ctrl-C stops it
	cargo build --release --locked --package skyriff
	@exec target/release/skyriff dev --folder $(FOLDER)

demo: setup ## One story through the API: a check-in, a video, a like, a tip, a withdrawal, the books
	cargo build --release --locked --package skyriff
	@target/release/skyriff demo --folder $(FOLDER)/demo

test: setup-tests ## Run the whole test suite against real Postgres servers and a broker
	cargo build --package skyriff-postgres --locked
	cargo test --workspace --locked --no-run
	target/debug/with-postgres cargo test --workspace --locked
	@$(MAKE) --no-print-directory test-api

test-api: setup ## Ask a running system everything that its description has: no 500, no answer that is not described
	cargo build --package skyriff --locked
	@sh skyriff/tests/api/run.sh target/debug/skyriff $(FOLDER)

test-kafka: setup-tests ## Run the tests about Kafka alone; KAFKA_BROKERS=host:9092 runs them against a cluster of yours
	cargo test --package skyriff-kafka --locked
	cargo test --package skyriff --locked --test it kafka::

broker: setup-tests ## Run a Kafka broker to try things with, on 127.0.0.1:9092; Ctrl-C stops it
	$(FOLDER)/broker/noida-db start --only kafka --host 127.0.0.1 --kafka-port 9092 --data-dir $(FOLDER)/kafka

schemas: ## Write the schemas of the events anew, from the code
	cargo run --quiet --package skyriff-kafka --locked --example schemas -- schemas

torture: setup ## Kill, stop and cut a running system, then check every answer; TORTURE_SECONDS=600 TORTURE_SEED=1
	cargo test --release --package skyriff --locked --test torture

topology: setup-tests ## Start what docker/compose.yaml has, without containers, drive it through nginx and break it
	cargo build --release --locked --package skyriff
	@docker/topology.sh target/release/skyriff $(FOLDER)/broker/noida-db

check: ## Format, lints and documentation, warnings are errors; and whether docker/ fits the code
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --no-deps --locked
	@docker/check.sh

bench: setup ## Measure commands per second beside the stock path and the limits; BENCH=history BENCH_SECONDS=10
	@command -v wrk >/dev/null || { echo 'wrk is missing; install it (apt-get install wrk)'; exit 1; }
	cargo bench --package skyriff --locked --bench commands

clean: ## Delete the data of `make run`
	rm -rf $(FOLDER)/demo $(FOLDER)/kafka $(FOLDER)/payouts $(FOLDER)/objects $(FOLDER)/scratch $(FOLDER)/primary $(FOLDER)/replica $(FOLDER)/run $(FOLDER)/*.log $(FOLDER)/demo-user $(FOLDER)/token-secret $(FOLDER)/databases.env
