//! Buckets, and the word that has the state, protocol and deadline of a flow.

use super::Flow;
use crate::flow::key::{Addresses, FlowKey, FlowProtocol};

/// Places in a bucket.
pub const SLOTS: usize = 3;

pub(super) const DEADLINE_BITS: u16 = 0x0fff;

/// Deadlines further ahead than this count as past.
pub(super) const AHEAD: u16 = 0x0800;
const PROTOCOL_SHIFT: u16 = 12;
pub(super) const PROTOCOL_BITS: u16 = 0x3000;
pub(super) const STATE_SHIFT: u16 = 14;

/// Every `meta` below has the state "empty".
pub(super) const OCCUPIED: u16 = 0x4000;

/// The progress of a flow's handshake, as seen from its client's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowState {
    /// Only SYNs were seen so far. Such flows are evicted first.
    HalfOpen = 1,
    /// A packet other than a SYN was seen, or the flow is UDP. Such flows are never evicted.
    Established = 2,
    /// The last packet was a FIN or RST. Such flows are evicted if no half-open flow can be.
    Closing = 3,
}

/// A bucket of three places for flows. An all-zero bucket is empty.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Bucket<A> {
    pub(super) addresses: [A; SLOTS],
    pub(super) ports: [u32; SLOTS],
    pub(super) values: [u32; SLOTS],
    pub(super) meta: [u16; SLOTS],
    /// The number of flows with this primary bucket that are in their secondary bucket.
    pub(super) displaced: u8,
}

impl<A: Addresses> Bucket<A> {
    /// No flows.
    pub const EMPTY: Self = Self {
        addresses: [A::ZERO; SLOTS],
        ports: [0; SLOTS],
        values: [0; SLOTS],
        meta: [0; SLOTS],
        displaced: 0,
    };

    #[inline]
    pub(super) fn find(&self, key: &FlowKey<A>, now: u32) -> Option<usize> {
        // Check all three places without branches, since the matching place cannot be predicted.
        let may_be = |i: usize| {
            u32::from((self.addresses[i] == key.addresses) & (self.ports[i] == key.ports))
        };
        let places = may_be(0) | may_be(1) << 1 | may_be(2) << 2;
        let first = (places.trailing_zeros() as usize).min(SLOTS - 1);
        if places != 0 && self.is(first, key, now) {
            return Some(first);
        }
        // The match has another protocol, or has expired: check the other places.
        (first + 1..SLOTS).find(|&i| places >> i & 1 != 0 && self.is(i, key, now))
    }

    /// Returns the place of an established flow; `None` if the flow is not here, or if this quick
    /// check cannot decide.
    #[inline(always)] // the mux's loop over a burst
    pub(super) fn established(&self, key: &FlowKey<A>, now: u32) -> Option<usize> {
        // The matching place cannot be predicted, so it is computed from parts of the keys without
        // branches, and only that place is compared.
        let may_be = |i: usize| {
            let is_like = self.addresses[i].part() == key.addresses.part();
            usize::from(is_like & (self.ports[i] == key.ports))
        };
        let place = may_be(1) | may_be(2) << 1;
        let meta = *self.meta.get(place)?;
        let (addresses, ports) = (self.addresses.get(place)?, self.ports.get(place)?);
        let is_it = *addresses == key.addresses
            && *ports == key.ports
            && meta & !DEADLINE_BITS == pack(FlowState::Established, key.protocol, 0)
            && is_before_deadline(meta, now);
        is_it.then_some(place)
    }

    /// Returns true if slot `i`, which has the addresses and ports of the flow, holds the flow.
    #[inline]
    pub(super) fn is(&self, i: usize, key: &FlowKey<A>, now: u32) -> bool {
        let protocol = (key.protocol as u16) << PROTOCOL_SHIFT;
        self.meta[i] & PROTOCOL_BITS == protocol && is_alive(self.meta[i], now)
    }

    /// Returns a place that is empty, or whose flow is past its deadline.
    #[inline]
    pub(super) fn vacant(&self, now: u32) -> Option<usize> {
        (0..SLOTS).find(|&i| !is_alive(self.meta[i], now))
    }

    pub(super) fn key(&self, i: usize) -> FlowKey<A> {
        let protocol = match (self.meta[i] & PROTOCOL_BITS) >> PROTOCOL_SHIFT {
            0 => FlowProtocol::Tcp,
            1 => FlowProtocol::Udp,
            _ => FlowProtocol::Other,
        };
        FlowKey {
            addresses: self.addresses[i],
            ports: self.ports[i],
            protocol,
        }
    }

    pub(super) fn flow(&self, i: usize) -> Flow {
        let (source, destination) = self.addresses[i].unpack();
        let [a, b, c, d] = self.ports[i].to_le_bytes();
        Flow {
            source,
            destination,
            protocol: self.key(i).protocol,
            ports: (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
            value: self.values[i],
            state: state_of(self.meta[i]),
        }
    }

    pub(super) fn holds(&self, i: usize, key: &FlowKey<A>) -> bool {
        self.meta[i] >= OCCUPIED && self.key(i) == *key
    }

    pub(super) fn put(&mut self, i: usize, key: &FlowKey<A>, value: u32, meta: u16) {
        self.addresses[i] = key.addresses;
        self.ports[i] = key.ports;
        self.values[i] = value;
        self.meta[i] = meta;
    }
}

/// Returns true if there is a flow before its deadline.
#[inline]
pub(super) const fn is_alive(meta: u16, now: u32) -> bool {
    (meta >= OCCUPIED) & is_before_deadline(meta, now)
}

#[inline]
pub(super) const fn is_before_deadline(meta: u16, now: u32) -> bool {
    meta.wrapping_sub(now as u16) & DEADLINE_BITS < AHEAD
}

#[inline]
pub(super) const fn is_half_open(meta: u16) -> bool {
    meta >> STATE_SHIFT == FlowState::HalfOpen as u16
}

/// Returns true if there is a flow that may be evicted.
#[inline]
pub(super) const fn is_transitory(meta: u16) -> bool {
    is_half_open(meta) || meta >> STATE_SHIFT == FlowState::Closing as u16
}

#[inline]
pub(super) const fn pack(state: FlowState, protocol: FlowProtocol, deadline: u32) -> u16 {
    (state as u16) << STATE_SHIFT
        | (protocol as u16) << PROTOCOL_SHIFT
        | deadline as u16 & DEADLINE_BITS
}

#[inline]
pub(super) const fn state_of(meta: u16) -> FlowState {
    match meta >> STATE_SHIFT {
        1 => FlowState::HalfOpen,
        2 => FlowState::Established,
        _ => FlowState::Closing,
    }
}
