//! A fleet of muxes and host agents that follow one wanted state, kept in a store such as etcd.

#![warn(unnameable_types, unreachable_pub)]
#![forbid(unsafe_code)]

pub mod cache;
pub mod document;
pub mod fetch;
pub mod health;
pub mod leader;
pub mod node;
pub mod object;
pub mod rollout;
pub mod store;
pub mod zones;

/// The crate's README, whose examples run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct CrateReadme;
