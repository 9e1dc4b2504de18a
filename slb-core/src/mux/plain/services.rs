//! Remembered services: the rules of packets' destinations, ready for the first stage.

use super::lane::{LONG, Words};
use crate::hash::Hasher;
use crate::snapshot::{CompiledRule, RuleMatch, Snapshot};

/// The source port's bits of a message's last word.
const SOURCE_PORT: u64 = 0xffff;

/// A destination with its protocol and port, and the rule for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service<A: Words> {
    address: A::Address,
    /// The first slot of the rule's Maglev table.
    pub(super) first_slot: u32,
    /// Protocol and port, as in the message's last word.
    protocol_and_port: u64,
    /// Rule and family; [`LONG`] if there is no rule.
    pub(super) run: u32,
    /// The number of slots of that table; zero if there is no rule, or if the rule does not choose
    /// by XXH3 of the whole tuple.
    pub(super) slots: u32,
}

impl<A: Words> Service<A> {
    /// A service without packets: zero is no plain packet's protocol.
    pub(super) const NONE: Self = Self {
        address: A::NO_ADDRESS,
        first_slot: 0,
        protocol_and_port: 0,
        run: LONG,
        slots: 0,
    };

    /// Returns true if the service is that of packets to an address, with this last word of their
    /// message.
    #[inline(always)] // the innermost loop
    pub(super) fn is(&self, address: A::Address, rest: u64) -> bool {
        rest & !SOURCE_PORT == self.protocol_and_port && address == self.address
    }

    fn new(snapshot: &Snapshot<'_>, address: A::Address, rest: u64) -> Self {
        let (raw_port, protocol) = ((rest >> 16) as u16, (rest >> 32) as u8);
        let protocol_and_port = rest & !SOURCE_PORT;
        let vip = A::vip(address, snapshot);
        let found = vip.map(|vip| snapshot.classify_ports(vip, protocol, raw_port));
        let Some(RuleMatch::Rule(number)) = found else {
            return Self {
                address,
                protocol_and_port,
                ..Self::NONE
            };
        };
        let rule = snapshot.rule(number);
        let slots = rule
            .filter(|_| matches!(snapshot.hasher, Hasher::Xxh3(_)))
            .and_then(CompiledRule::slots_by_five_tuple);
        Self {
            address,
            first_slot: rule.map_or(0, |rule| rule.first_slot() as u32),
            protocol_and_port,
            run: A::RUN | number,
            slots: slots.unwrap_or(0),
        }
    }
}

/// Services of one snapshot, each at a place that follows from its address and port, where it
/// replaces the previous one.
#[derive(Debug)]
pub(super) struct Services<A: Words>([Service<A>; PLACES]);

/// The number of places. With 60 services in turn, a tenth of the packets find their service
/// replaced by another.
const PLACES: usize = 256;
const PLACE_BITS: u32 = PLACES.trailing_zeros();
/// An odd number without structure: digits of the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl<A: Words> Services<A> {
    pub(super) const EMPTY: Self = Self([Service::NONE; PLACES]);

    /// Returns the service of packets to an address, with this last word of their message.
    #[inline(always)] // as `Service::is`
    pub(super) fn of(
        &mut self,
        snapshot: &Snapshot<'_>,
        address: A::Address,
        rest: u64,
    ) -> &Service<A> {
        let hash = (A::end(address) ^ rest >> 16).wrapping_mul(SPREAD);
        let place = (hash >> (u64::BITS - PLACE_BITS)) as usize;
        let service = &mut self.0[place];
        if !service.is(address, rest) {
            replace(service, snapshot, address, rest);
        }
        service
    }
}

#[cold]
#[inline(never)]
fn replace<A: Words>(
    service: &mut Service<A>,
    snapshot: &Snapshot<'_>,
    address: A::Address,
    rest: u64,
) {
    *service = Service::new(snapshot, address, rest);
}
