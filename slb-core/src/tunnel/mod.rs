//! VXLAN: outer headers that are put before packets, and taken off (RFC 7348).

pub(crate) mod decapsulation;
pub(crate) mod encapsulation;

pub use encapsulation::HEADROOM;
