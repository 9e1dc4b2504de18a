//! Choices that other tests see only in part: addresses that are never outside, states of a mux's flow, and SNAT ports.

#[path = "../common/mod.rs"]
mod common;
#[path = "../snat_world/mod.rs"]
mod snat_world;
#[path = "../translated/mod.rs"]
mod translated;

mod addresses;
mod names;
mod ports;
mod states;
