# Recipes for people who work on slb: `just` lists them. CONTRIBUTING.md says when to use which.

_default:
    @just --list

# Format, lints and documentation, as CI checks them.
check:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

# The fast loop: the dataplane and the configuration, without root.
quick:
    cargo test --locked -p slb-core -p slb-control

# All tests that need no root.
test *ARGS:
    cargo test --locked {{ARGS}}

# The tests that make network namespaces and devices. Run as root.
test-root *ARGS:
    cargo test --locked {{ARGS}} -- --ignored

# The benchmarks, beside slb's peers: six minutes and 6 GiB, or `just bench --quick`.
bench *ARGS:
    cargo run --locked --profile dist -p slb-benches -- {{ARGS}}

# Instructions a packet beside the budget: `just instructions --check`, `--update`, or a part of a line's name.
instructions *ARGS:
    benches/instructions {{ARGS}}

# One fuzz target with libFuzzer, such as `just fuzz mux_survives_sequences 10m`.
fuzz TARGET TIME="1m":
    cargo bolero test --rustc-bootstrap -p slb-fuzz -s NONE -T {{TIME}} {{TARGET}}

# Mutants of slb-core that no fast test notices: all, or a shard such as `just mutants 0/40`.
mutants SHARD="0/1" *ARGS:
    cargo mutants --shard {{SHARD}} {{ARGS}}

# Which lines of slb-core the tests run.
coverage *ARGS:
    .ci/coverage {{ARGS}}

# Everything, as CI runs it. Run as root.
ci:
    .ci/run
