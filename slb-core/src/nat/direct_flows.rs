//! Flows of vms that have access lists, and that no connection stands for: between vms of a network, calls of
//! private VIPs, and whatever else reaches a vm under its own address.
//!
//! An access list is asked about the first packet of a flow. The table remembers that the packet was allowed, so
//! that the answers pass whatever the lists say of the other direction. It may forget a flow: then the list is
//! asked again about the next packet.
//!
//! A flow has two buckets of four places each. Unanswered and closing flows make room; a flow that finds its places
//! taken by answered ones is not remembered.

use core::fmt;

use crate::hash::fold_multiply;
use crate::key::{Key, Purpose};
use crate::mem::{Mem, Memory};
use crate::nat::Direction;
use crate::packet::{Family, Packet};
use crate::time::Instant;
use crate::verdict::PortId;
use crate::wire::protocol;
use crate::wire::tcp::Flags;

/// Seconds that a flow lasts without a packet.
mod lifetime {
    /// Unanswered, or closing.
    pub(super) const SHORT: u32 = 60;
    /// Answered, of a protocol without connections: Azure's four minutes.
    pub(super) const DATAGRAMS: u32 = 240;
    /// Answered, of TCP.
    pub(super) const TCP: u32 = 3600;
}

const PLACES: usize = 4;

/// A flow as its vm's packets name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    addresses: [u64; 4],
    ports: u32,
    zone: PortId,
    protocol: u8,
    is_ipv6: bool,
}

/// The state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unanswered,
    Answered,
    Closing,
}

/// A place for a flow.
#[derive(Clone, Copy, Debug)]
pub struct DirectFlowSlot {
    name: Name,
    /// The second of the last packet; zero: the place is free.
    used: u32,
    opener: Direction,
    state: State,
}

const _: () = assert!(size_of::<DirectFlowSlot>() == 48);

impl DirectFlowSlot {
    /// A free place.
    pub const EMPTY: Self = Self {
        name: Name {
            addresses: [0; 4],
            ports: 0,
            zone: PortId(0),
            protocol: 0,
            is_ipv6: false,
        },
        used: 0,
        opener: Direction::Inward,
        state: State::Unanswered,
    };

    fn is_past(&self, now: u32) -> bool {
        let lifetime = match self.state {
            State::Unanswered | State::Closing => lifetime::SHORT,
            State::Answered if self.name.protocol == protocol::TCP => lifetime::TCP,
            State::Answered => lifetime::DATAGRAMS,
        };
        self.used == 0 || now.saturating_sub(self.used) >= lifetime
    }
}

/// A table of flows without connections.
pub struct DirectFlows<'m> {
    buckets: Mem<'m, [DirectFlowSlot; PLACES]>,
    key: [u64; 2],
    now: u32,
}

/// Odd, and half of its bits set: digits of pi.
const MIX: u64 = 0x8979_fb1b_d131_0ba6;

impl<'m> DirectFlows<'m> {
    /// A number of flows that suffices for most hosts: 6 MiB.
    pub const FLOWS: usize = 1 << 16;

    /// A table of so many flows, in twice as many places of 48 bytes; `None` where the memory is used up.
    pub fn build(flows: usize, key: Key, memory: &mut impl Memory<'m>) -> Option<Self> {
        let buckets = flows.saturating_mul(2).div_ceil(PLACES);
        let buckets = u32::try_from(buckets).unwrap_or(u32::MAX) as usize;
        Some(Self {
            buckets: memory.take(buckets, [DirectFlowSlot::EMPTY; PLACES])?,
            key: key.derive(Purpose::DirectFlows),
            now: 1,
        })
    }

    /// A table that remembers nothing: lists are asked about each packet, answers too.
    pub(crate) fn none() -> Self {
        Self {
            buckets: Mem::empty(),
            key: [0; 2],
            now: 1,
        }
    }

    /// Advances the clock.
    #[inline]
    pub(crate) fn advance(&mut self, now: Instant) {
        // From one on: zero stands for a free place.
        self.now = (now.as_nanos() >> 30) as u32 + 1;
    }

    /// Returns true if a packet goes on with a known flow of the vm in a zone, and notes that it does. A SYN begins a
    /// new one, unless it answers another SYN.
    pub(crate) fn follow(&mut self, packet: &Packet, zone: PortId, direction: Direction) -> bool {
        let now = self.now;
        let Some(slot) = self.find(packet, zone, direction) else {
            return false;
        };
        let is_answer = direction != slot.opener;
        if packet.opens() && !(is_answer && slot.state == State::Unanswered) {
            return false;
        }
        slot.used = now;
        if is_answer && slot.state == State::Unanswered {
            slot.state = State::Answered;
        }
        if packet.protocol == protocol::TCP && packet.flags.intersects(Flags::FIN.with(Flags::RST))
        {
            slot.state = State::Closing;
        }
        true
    }

    /// Returns true if a packet is of a known flow. Nothing is noted: of ICMP errors and later fragments.
    pub(crate) fn has(&mut self, packet: &Packet, zone: PortId, direction: Direction) -> bool {
        self.find(packet, zone, direction).is_some()
    }

    /// Remembers the flow of a packet that was allowed.
    pub(crate) fn note(&mut self, packet: &Packet, zone: PortId, opener: Direction) {
        let now = self.now;
        let new = DirectFlowSlot {
            name: name(packet, zone, opener),
            used: now,
            opener,
            state: State::Unanswered,
        };
        if let Some(slot) = self.find(packet, zone, opener) {
            *slot = new;
            return;
        }
        let places = self.places(&new.name);
        let mut best: Option<(u32, usize, usize)> = None;
        for bucket in places {
            let slots = self.buckets.get(bucket).into_iter().flatten();
            for (place, slot) in slots.enumerate() {
                let rank = match slot.state {
                    _ if slot.is_past(now) => 0,
                    State::Unanswered | State::Closing => slot.used,
                    State::Answered => continue,
                };
                if best.is_none_or(|(least, ..)| rank < least) {
                    best = Some((rank, bucket, place));
                }
            }
        }
        if let Some((_, bucket, place)) = best
            && let Some(bucket) = self.buckets.get_mut(bucket)
            && let Some(slot) = bucket.get_mut(place)
        {
            *slot = new;
        }
    }

    fn find(
        &mut self,
        packet: &Packet,
        zone: PortId,
        direction: Direction,
    ) -> Option<&mut DirectFlowSlot> {
        let (name, now) = (name(packet, zone, direction), self.now);
        let is = |slot: &DirectFlowSlot| slot.name == name && !slot.is_past(now);
        for bucket in self.places(&name) {
            let place = self.buckets.get(bucket)?.iter().position(is);
            if let Some(place) = place {
                return self.buckets.get_mut(bucket)?.get_mut(place);
            }
        }
        None
    }

    /// The two buckets of a flow.
    fn places(&self, name: &Name) -> [usize; 2] {
        let rest = u64::from(name.ports) << 32
            | u64::from(name.zone.0) << 16
            | u64::from(name.protocol) << 8
            | u64::from(name.is_ipv6);
        let words = name.addresses.into_iter().chain([rest]);
        let [low, high] = self.key;
        let hash = words.fold(low, |hash, word| fold_multiply(hash ^ word ^ high, MIX));
        let hash = fold_multiply(hash ^ low, MIX);
        let count = self.buckets.len() as u64;
        [hash >> 32, hash & 0xffff_ffff].map(|half| ((half * count) >> 32) as usize)
    }
}

/// The name of a packet's flow. Both directions have one.
fn name(packet: &Packet, zone: PortId, direction: Direction) -> Name {
    let own = match direction {
        Direction::Inward => packet.reversed(),
        Direction::Outward => *packet,
    };
    let is_ipv6 = own.shape.family == Family::Ipv6;
    let [a, ..] = own.addresses;
    Name {
        addresses: if is_ipv6 { own.addresses } else { [a, 0, 0, 0] },
        ports: own.ports,
        zone,
        protocol: own.protocol,
        is_ipv6,
    }
}

#[cfg(feature = "alloc")]
impl DirectFlows<'static> {
    /// [`build`](Self::build), in boxes.
    pub fn with_capacity(flows: usize, key: Key) -> Self {
        Self::build(flows, key, &mut crate::mem::Boxes).unwrap_or_else(Self::none)
    }
}

impl fmt::Debug for DirectFlows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectFlows")
            .field("places", &(self.buckets.len() * PLACES))
            .finish_non_exhaustive()
    }
}
