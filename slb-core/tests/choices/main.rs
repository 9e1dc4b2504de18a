//! Choices that other tests see only in part: addresses that are never outside, states of a mux's flow, and SNAT ports.

mod addresses;
mod names;
mod ports;
mod states;
