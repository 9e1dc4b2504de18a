//! The tests of this crate as one program: most of them wait more than they compute, so they run beside each other.
//! `cargo test -p slb-fleet --test all rollout::` runs those of one file.

#[macro_use]
mod common;

mod etcd;
mod examples;
mod fleet;
mod operators;
mod reports;
mod rollout;
mod tables;
mod versions;
mod view;
mod zones;
