//! The benches are in `benches/`: `cargo bench -p slb-benches`.
