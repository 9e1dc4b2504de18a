//! The targets are in `tests/`. For a moment each: `cargo test -p slb-fuzz`. With libFuzzer, for
//! as long as one likes: `cargo bolero test -p slb-fuzz mux_takes_arbitrary_frames` (needs
//! `cargo install cargo-bolero` and a nightly toolchain).
