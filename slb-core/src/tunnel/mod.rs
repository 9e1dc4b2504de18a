//! Encapsulation in VXLAN, and decapsulation (RFC 7348).

pub(crate) mod decapsulation;
pub(crate) mod encapsulation;

pub use encapsulation::HEADROOM;
