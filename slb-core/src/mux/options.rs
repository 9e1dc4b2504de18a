//! Options of a mux.

use crate::limit::Rates;

/// Options of a mux. Each kind of packet that a mux generates has its own limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MuxOptions {
    /// Sustained rate of echo replies per second. Zero, here and for the other kinds: none are
    /// sent.
    pub answers_per_second: u32,
    /// Burst size for echo replies.
    pub answers_at_once: u32,
    /// Sustained rate of "packet too big" (ICMPv6) and "fragmentation needed" (ICMP) per second.
    pub too_big_per_second: u32,
    /// Burst size for "packet too big" and "fragmentation needed".
    pub too_big_at_once: u32,
    /// Sustained rate of other ICMP errors per second.
    pub errors_per_second: u32,
    /// Burst size for other ICMP errors.
    pub errors_at_once: u32,
    /// Sustained rate of RSTs per second.
    pub resets_per_second: u32,
    /// Burst size for RSTs.
    pub resets_at_once: u32,
}

impl MuxOptions {
    pub(super) fn rates(&self) -> Rates {
        Rates {
            echoes: (self.answers_per_second, self.answers_at_once),
            too_big: (self.too_big_per_second, self.too_big_at_once),
            errors: (self.errors_per_second, self.errors_at_once),
            resets: (self.resets_per_second, self.resets_at_once),
            passed: (0, 0), // only hosts pass packets on or take connections up
            taken_up: (0, 0),
        }
    }
}

impl Default for MuxOptions {
    fn default() -> Self {
        Self {
            answers_per_second: 1000,
            answers_at_once: 100,
            too_big_per_second: 1000,
            too_big_at_once: 100,
            errors_per_second: 1000,
            errors_at_once: 100,
            resets_per_second: 10_000,
            resets_at_once: 1000,
        }
    }
}
