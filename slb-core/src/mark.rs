//! The mark of a packet that one host agent passes on to another: its inner source MAC address.
//!
//! ```text
//!   octets   0x02 0x73   then 32 bits, the most significant first
//!   bits     hops - 1: 3 | kind: 2 | mux: 8 | visited: 19
//! ```
//!
//! The mark says how often the packet was passed on, what is asked of its receiver, by which mux it came,
//! and which hosts it has been at. Each host on its way is a tag, a hash of its address: of `n` hosts each
//! tag has 19 / n bits, rounded down. The last host has no tag, since it is the outer source address. Two
//! tags may be alike: the second host is then taken for visited, and left out. No host is visited twice.
//!
//! A mark is to be believed from hosts only.

use crate::hash::fold_multiply;
use crate::wire::ethernet::MacAddress;

/// The most often that a packet is passed on.
pub(crate) const MAX_HOPS: u8 = 8;

/// In the place of a mux: none is known.
pub(crate) const NO_MUX: u8 = u8::MAX;

/// What begins every mark: a locally administered address, and the letter `s`.
const PREFIX: [u8; 2] = [0x02, 0x73];

const VISITED_BITS: u32 = 19;

/// What a packet is passed on for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handover {
    /// It is of a connection, or begins one, that the receiver may have.
    PassedOn,
    /// It may begin a flow, which the receiver is to take only if it has the flow already.
    Asked,
    /// Nobody has the flow that it may begin: the receiver takes it.
    PassedBack,
}

/// A packet's way so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// How often it was passed on: 1 to [`MAX_HOPS`].
    pub(crate) hops: u8,
    pub(crate) handover: Handover,
    /// The number of the mux that it came by, or [`NO_MUX`].
    pub(crate) mux: u8,
    /// Tags of the hosts that it was at, but for the last one.
    visited: u32,
}

impl Mark {
    /// The mark of a packet that a mux sent, of this number, or [`NO_MUX`].
    pub(crate) fn first(handover: Handover, mux: u8) -> Self {
        Self {
            hops: 1,
            handover,
            mux,
            visited: 0,
        }
    }

    /// The mark of a packet that has this one, sent by the host at `sender`, and is passed on again. It
    /// counts no further than [`MAX_HOPS`].
    pub(crate) fn next(&self, handover: Handover, sender: [u64; 2]) -> Self {
        let (old, new) = (tags(self.hops), tags(self.hops + 1));
        if self.hops >= MAX_HOPS {
            return Self { handover, ..*self };
        }
        let (old_width, width) = (width(old), width(new));
        let mut visited = tag(sender) & mask(width);
        for place in 0..old {
            let tag = self.visited >> (place * old_width) & mask(width);
            visited |= tag << ((place + 1) * width);
        }
        Self {
            hops: self.hops + 1,
            handover,
            mux: self.mux,
            visited,
        }
    }

    /// Whether the packet may have been at the host at an address, besides the one that sent it last.
    pub(crate) fn has_visited(&self, host: [u64; 2]) -> bool {
        let count = tags(self.hops);
        let width = width(count);
        let tag = tag(host) & mask(width);
        (0..count).any(|place| self.visited >> (place * width) & mask(width) == tag)
    }

    /// The mark that an inner source address is, if it is one.
    pub(crate) fn read(mac: MacAddress) -> Option<Self> {
        let [a, b, rest @ ..] = mac.0;
        if [a, b] != PREFIX {
            return None;
        }
        let bits = u32::from_be_bytes(rest);
        Some(Self {
            hops: (bits >> 29) as u8 + 1,
            handover: match bits >> 27 & 0b11 {
                0 => Handover::PassedOn,
                1 => Handover::Asked,
                2 => Handover::PassedBack,
                _ => return None,
            },
            mux: (bits >> VISITED_BITS) as u8,
            visited: bits & mask(VISITED_BITS),
        })
    }

    /// The inner source address that says so.
    pub(crate) fn address(&self) -> MacAddress {
        let handover = match self.handover {
            Handover::PassedOn => 0,
            Handover::Asked => 1,
            Handover::PassedBack => 2,
        };
        let hops = u32::from(self.hops.clamp(1, MAX_HOPS) - 1);
        let bits = hops << 29 | handover << 27 | u32::from(self.mux) << VISITED_BITS | self.visited;
        let ([a, b], [c, d, e, f]) = (PREFIX, bits.to_be_bytes());
        MacAddress([a, b, c, d, e, f])
    }
}

/// Tags that a mark after so many hops has.
const fn tags(hops: u8) -> u32 {
    hops as u32 - 1
}

/// Bits of each tag.
const fn width(count: u32) -> u32 {
    // No division where packets go by.
    const WIDTHS: [u32; MAX_HOPS as usize + 1] = [0, 19, 9, 6, 4, 3, 3, 2, 2];
    WIDTHS[count as usize]
}

const fn mask(bits: u32) -> u32 {
    (1 << bits) - 1
}

/// What stands for a host: the same on every node.
fn tag(host: [u64; 2]) -> u32 {
    // Odd, and half of their bits set: digits of pi.
    const MIX: [u64; 2] = [0x4528_21e6_38d0_1377, 0xbe54_66cf_34e9_0c6d];
    let hash = fold_multiply(host[0] ^ MIX[0], MIX[1]);
    (fold_multiply(hash ^ host[1], MIX[0]) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u64) -> [u64; 2] {
        [0xffff_0000_0000 | number << 56, 0xac10_0065]
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for handover in [Handover::PassedOn, Handover::Asked, Handover::PassedBack] {
            for mux in [0, 14, 253, NO_MUX] {
                let mut mark = Mark::first(handover, mux);
                for hops in 1..=MAX_HOPS {
                    assert_eq!((mark.hops, mark.mux), (hops, mux));
                    assert_eq!(Mark::read(mark.address()), Some(mark));
                    mark = mark.next(handover, host(hops.into()));
                }
                assert_eq!(mark.hops, MAX_HOPS);
            }
        }
        for other in [[0x0a, 0x58, 10, 0, 0, 1], [0x02, 0x73, 0x18, 0, 0, 0]] {
            assert_eq!(Mark::read(MacAddress(other)), None);
        }
    }

    #[test]
    fn every_host_on_the_way_is_remembered() {
        for first in 0..500 {
            let mut mark = Mark::first(Handover::PassedOn, 0);
            for hops in 1..MAX_HOPS {
                mark = mark.next(Handover::PassedOn, host(first + u64::from(hops)));
                for before in 1..=hops {
                    assert!(mark.has_visited(host(first + u64::from(before))));
                }
            }
        }
    }

    #[test]
    fn hosts_that_were_not_visited_are_rarely_taken_for_visited() {
        for (hops, most) in [(2, 1), (3, 20), (4, 150)] {
            let mut mistaken = 0;
            for first in 0..3000u64 {
                let mut mark = Mark::first(Handover::PassedOn, 0);
                for hop in 1..hops {
                    mark = mark.next(Handover::PassedOn, host(first * 16 + hop));
                }
                mistaken += u32::from(mark.has_visited(host(first * 16 + hops)));
            }
            assert!(mistaken <= most, "{mistaken} of 3000 after {hops} hops");
        }
    }
}
