//! The mark of a packet that one host agent passes on to another: its inner source MAC address.
//!
//! ```text
//!   octet    0x72, then 40 bits, the most significant first
//!   bits     hops - 1: 3 | kind: 2 | mux: 8 | seed: 5 | visited: 22
//! ```
//!
//! The mark encodes the number of hops, the request to the receiver, the mux that the packet came
//! through, and the visited hosts. Each visited host is represented by a tag, a hash of its
//! address: with `n` hosts, each tag has 22 / n bits, rounded down. The last host has no tag, since
//! it is the outer source address. No host is visited twice.
//!
//! If two tags are equal, the second host counts as visited, and is left out. The first host on the
//! way knows the hosts that the packet may go to, and chooses the seed of the hash so that their
//! tags differ. Only a host that the first one does not know may be left out.
//!
//! Accept marks only from hosts.

use crate::hash::fold_multiply;
use crate::wire::ethernet::MacAddress;

/// The maximum number of hops of a passed-on packet.
pub(crate) const MAX_HOPS: u8 = 8;

/// The number of an unknown mux.
pub(crate) const NO_MUX: u8 = crate::nat::connection::Policy::DIRECT;

/// The first octet of every mark, which makes it a locally administered unicast address.
const PREFIX: u8 = 0x72;

const VISITED_BITS: u32 = 22;
const SEED_BITS: u32 = 5;
const MUX_SHIFT: u32 = VISITED_BITS + SEED_BITS;

/// The reason why a packet is passed on to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handover {
    /// The packet belongs to or begins a connection that the receiver may have.
    PassedOn,
    /// The packet may begin a flow; the receiver accepts it only if it has the flow already.
    Asked,
    /// No host has the flow that the packet may begin, so the receiver accepts it.
    PassedBack,
}

/// The way of a packet so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The number of times that the packet was passed on: 1 to [`MAX_HOPS`].
    pub(crate) hops: u8,
    pub(crate) handover: Handover,
    /// The number of the mux that the packet came through, or [`NO_MUX`].
    pub(crate) mux: u8,
    /// The seed of the tags' hash.
    seed: u8,
    /// Tags of the visited hosts, except the last one.
    visited: u32,
}

impl Mark {
    /// Makes the mark of a packet from the mux with this number, or [`NO_MUX`]. `hosts` are the
    /// hosts that the packet may visit, in this order, beginning with the one that passes it on
    /// now.
    pub(crate) fn first(
        handover: Handover,
        mux: u8,
        hosts: impl Iterator<Item = [u64; 2]>,
    ) -> Self {
        Self {
            hops: 1,
            handover,
            mux,
            seed: choose_seed(hosts),
            visited: 0,
        }
    }

    /// Returns the mark for passing on a packet again that arrived with this mark from the host at
    /// `sender`. The count of hops stops at [`MAX_HOPS`].
    pub(crate) fn next(&self, handover: Handover, sender: [u64; 2]) -> Self {
        let (old, new) = (tags(self.hops), tags(self.hops + 1));
        if self.hops >= MAX_HOPS {
            return Self { handover, ..*self };
        }
        let (old_width, width) = (width(old), width(new));
        let mut visited = tag(hash(sender), self.seed) & mask(width);
        for place in 0..old {
            let tag = self.visited >> (place * old_width) & mask(width);
            visited |= tag << ((place + 1) * width);
        }
        Self {
            hops: self.hops + 1,
            handover,
            visited,
            ..*self
        }
    }

    /// Returns true if the packet may have visited the host with this address, not considering the
    /// host that sent it last.
    pub(crate) fn has_visited(&self, host: [u64; 2]) -> bool {
        let count = tags(self.hops);
        let width = width(count);
        let tag = tag(hash(host), self.seed) & mask(width);
        (0..count).any(|place| self.visited >> (place * width) & mask(width) == tag)
    }

    /// Parses an inner source address as a mark, if it is one.
    pub(crate) fn read(mac: MacAddress) -> Option<Self> {
        let [prefix, a, b, c, d, e] = mac.0;
        if prefix != PREFIX {
            return None;
        }
        let bits = u64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
        Some(Self {
            hops: (bits >> 37) as u8 + 1,
            handover: match bits >> 35 & 0b11 {
                0 => Handover::PassedOn,
                1 => Handover::Asked,
                2 => Handover::PassedBack,
                _ => return None,
            },
            mux: (bits >> MUX_SHIFT) as u8,
            seed: (bits >> VISITED_BITS) as u8 & ((1 << SEED_BITS) - 1),
            visited: bits as u32 & mask(VISITED_BITS),
        })
    }

    /// Returns the inner source address that encodes the mark.
    pub(crate) fn address(&self) -> MacAddress {
        let handover = match self.handover {
            Handover::PassedOn => 0,
            Handover::Asked => 1,
            Handover::PassedBack => 2,
        };
        let hops = u64::from(self.hops.clamp(1, MAX_HOPS) - 1);
        let mux = u64::from(self.mux) << MUX_SHIFT;
        let seed = u64::from(self.seed) << VISITED_BITS;
        let bits = hops << 37 | handover << 35 | mux | seed | u64::from(self.visited);
        let [_, _, _, a, b, c, d, e] = bits.to_be_bytes();
        MacAddress([PREFIX, a, b, c, d, e])
    }
}

/// Returns an inner source address that is no mark, instead of a node's own.
pub(crate) fn unmarked(own: MacAddress) -> MacAddress {
    let [first, rest @ ..] = own.0;
    let first = if first == PREFIX { 0x02 } else { first };
    let [a, b, c, d, e] = rest;
    MacAddress([first, a, b, c, d, e])
}

/// Returns the number of tags in a mark after `hops` hops.
const fn tags(hops: u8) -> u32 {
    hops as u32 - 1
}

/// Returns the number of bits of each tag.
const fn width(count: u32) -> u32 {
    // A table, to avoid a division on the packet path.
    const WIDTHS: [u32; MAX_HOPS as usize + 1] = [0, 22, 11, 7, 5, 4, 3, 3, 2];
    WIDTHS[count as usize]
}

const fn mask(bits: u32) -> u32 {
    (1 << bits) - 1
}

/// Digits of pi: odd, and half of their bits set.
const MIX: [u64; 2] = [0x4528_21e6_38d0_1377, 0xbe54_66cf_34e9_0c6d];

/// Returns the hash that identifies a host on every node.
fn hash(host: [u64; 2]) -> u64 {
    let hash = fold_multiply(host[0] ^ MIX[0], MIX[1]);
    fold_multiply(hash ^ host[1], MIX[0])
}

/// Returns a host's tag, of which a mark uses as many low bits as it has room for.
fn tag(hash: u64, seed: u8) -> u32 {
    // If the seed were only added, hosts with equal tags for one seed would have equal tags for
    // most seeds.
    let seeded = hash.rotate_left(2 * u32::from(seed));
    (fold_multiply(seeded, MIX[1]) >> 32) as u32
}

/// Returns the first seed for which, on a way through these hosts, no next host seems to be visited
/// already; the last seed if there is none.
fn choose_seed(hosts: impl Iterator<Item = [u64; 2]>) -> u8 {
    const LAST: u8 = (1 << SEED_BITS) - 1;
    let mut hashes = [0; MAX_HOPS as usize + 1];
    let mut count = 0;
    for host in hosts.map(hash) {
        if count < hashes.len() && !hashes[..count].contains(&host) {
            hashes[count] = host;
            count += 1;
        }
    }
    if count <= 2 {
        return 0; // the only visited host is the outer source address
    }
    let hashes = &hashes[..count];
    let is_apart = |&seed: &u8| {
        let mut tags = [0; MAX_HOPS as usize + 1];
        for (tag_of, &hash) in tags.iter_mut().zip(hashes) {
            *tag_of = tag(hash, seed);
        }
        // After two or more hosts, a host knows all but the last one by their tags.
        (2..count).all(|at| {
            let mask = mask(width(at as u32 - 1));
            let (visited, ahead) = (&tags[..at - 1], &tags[(at + 1).min(count)..count]);
            let mut pairs = ahead
                .iter()
                .flat_map(|tag| visited.iter().map(move |v| v ^ tag));
            pairs.all(|difference| difference & mask != 0)
        })
    };
    (0..LAST).find(is_apart).unwrap_or(LAST)
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
                let hosts = (0..9).map(host);
                let mut mark = Mark::first(handover, mux, hosts);
                for hops in 1..=MAX_HOPS {
                    assert_eq!((mark.hops, mark.mux), (hops, mux));
                    assert_eq!(Mark::read(mark.address()), Some(mark));
                    mark = mark.next(handover, host(hops.into()));
                }
                assert_eq!(mark.hops, MAX_HOPS);
            }
        }
        for other in [[0x0a, 0x58, 10, 0, 0, 1], [0x72, 0x18, 0, 0, 0, 0]] {
            assert_eq!(Mark::read(MacAddress(other)), None);
            assert_eq!(Mark::read(unmarked(MacAddress(other))), None);
        }
        let mark = Mark::first(Handover::Asked, 3, [].into_iter()).address();
        assert_eq!(unmarked(mark).0[1..], mark.0[1..]);
        assert_eq!(Mark::read(unmarked(mark)), None);
    }

    #[test]
    fn every_host_on_the_way_is_remembered() {
        for first in 0..500 {
            let mut mark = Mark::first(Handover::PassedOn, 0, [].into_iter());
            for hops in 1..MAX_HOPS {
                mark = mark.next(Handover::PassedOn, host(first + u64::from(hops)));
                for before in 1..=hops {
                    assert!(mark.has_visited(host(first + u64::from(before))));
                }
            }
        }
    }

    #[test]
    fn hosts_that_the_first_one_knows_of_are_never_taken_for_visited() {
        for first in 0..2000 {
            let hosts: [_; 9] = core::array::from_fn(|place| host(first * 16 + place as u64));
            for (count, seeds) in [(4, 1), (7, 32), (9, 32)] {
                let hosts = &hosts[..count];
                let mut mark = Mark::first(Handover::PassedOn, 0, hosts.iter().copied());
                assert!(mark.seed < seeds);
                for at in 1..count {
                    let ahead = hosts[at + 1..].iter();
                    let mistaken = ahead.filter(|&&host| mark.has_visited(host)).count();
                    assert_eq!(mistaken, 0, "hosts {first}, at {at} of {count}");
                    mark = mark.next(Handover::PassedOn, hosts[at - 1]);
                }
            }
        }
    }

    #[test]
    fn hosts_that_the_first_one_has_not_heard_of_are_rarely_taken_for_visited() {
        for (hops, most) in [(2, 1), (3, 10), (4, 120)] {
            let mut mistaken = 0;
            for first in 0..3000u64 {
                let mut mark = Mark::first(Handover::PassedOn, 0, [].into_iter());
                for hop in 1..hops {
                    mark = mark.next(Handover::PassedOn, host(first * 16 + hop));
                }
                mistaken += u32::from(mark.has_visited(host(first * 16 + hops)));
            }
            assert!(mistaken <= most, "{mistaken} of 3000 after {hops} hops");
        }
    }
}
