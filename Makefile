# The gate, and shortcuts to the README's commands. Needs only a Rust toolchain and a C compiler.

.PHONY: verify fix test demo

verify: ## Everything that has to hold, changing nothing: formatting, lints, documentation, tests.
	.ci/run

fix: ## Mends what can be mended by itself.
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

test: ## All tests. Installs PostgreSQL and MariaDB where there is none.
	cargo test --workspace --locked

demo: ## Two banks, a coordinator, and kill -9.
	cargo run --release -p demo
