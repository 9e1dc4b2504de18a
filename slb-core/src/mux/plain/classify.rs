//! Stage 1: the rule, the hash and the slot of each frame.

use super::lane::{IP, Kind, Lane, UNCOMMON, Words};
use crate::flow::FlowTable;
use crate::frame::Frame;
use crate::hash::ports_and_protocol;
use crate::maglev;
use crate::mux::full_hash;
use crate::observe::{Observe, Step};
use crate::packet::Plain;
use crate::snapshot::{CompiledRule, RuleMatch, Snapshot};
use crate::wire::ethernet::{self, EtherType};

/// A destination with its protocol and port, and the rule that takes it.
#[derive(Clone, Copy)]
pub(super) struct Service<'s, A: Words> {
    address: A::Address,
    /// The message's last word without the source port.
    rest: u64,
    rule: Option<(u32, &'s CompiledRule)>,
    /// The rule's place.
    number: u32,
    /// The first slot of its Maglev table.
    first_slot: u32,
    /// The number of slots of that table; zero if there is no rule, or if the rule does not choose
    /// by a hash of the whole tuple.
    slots: u32,
}

impl<'s, A: Words> Service<'s, A> {
    /// No packet's: zero is no plain packet's protocol.
    pub(super) fn none() -> Self {
        Self {
            address: A::ZERO.split().1,
            rest: 0,
            rule: None,
            number: 0,
            first_slot: 0,
            slots: 0,
        }
    }

    #[inline(never)]
    fn turn_to(&mut self, snapshot: &'s Snapshot<'_>, address: A::Address, rest: u64) {
        let (raw_port, protocol) = ((rest >> 16) as u16, (rest >> 32) as u8);
        let vip = A::vip(address, snapshot);
        let found = vip.map(|vip| snapshot.classify_ports(vip, protocol, raw_port));
        let (number, rule) = match found {
            Some(RuleMatch::Rule(number)) => (number, snapshot.rule(number)),
            _ => (0, None),
        };
        (self.address, self.rest, self.number) = (address, rest, number);
        self.rule = rule.map(|rule| (number, rule));
        self.first_slot = rule.map_or(0, |rule| rule.first_slot() as u32);
        self.slots = rule
            .and_then(CompiledRule::slots_by_five_tuple)
            .unwrap_or(0);
    }
}

/// The first stage: what it looks into.
pub(super) struct Classifier<'s, 'm> {
    pub(super) snapshot: &'s Snapshot<'s>,
    pub(super) flows: Option<&'s FlowTable<'m>>,
}

impl<'s> Classifier<'s, '_> {
    /// Takes up frames from `next` on, until one that is not plain or of another family. Returns the place
    /// of that one.
    #[inline(never)] // two families in one loop would not fit the registers
    pub(super) fn take_run<A: Words>(
        &self,
        frames: &[Frame<'_>],
        lanes: &mut [Lane],
        next: usize,
        service: &mut Service<'s, A>,
        seen: &mut impl Observe,
    ) -> usize {
        let frames = frames.get(next..).unwrap_or_default();
        let lanes = lanes.get_mut(next..).unwrap_or_default();
        let all = next + frames.len();
        let mut pairs = frames.iter().zip(lanes);
        while let Some((frame, lane)) = pairs.next() {
            let index = all - 1 - pairs.len();
            let Some(plain) = A::read(frame.bytes()) else {
                return index;
            };
            self.take(&plain, IP as u8, lane, index, service, seen);
        }
        all
    }

    /// Takes up a frame that has tags; another one is for the slow path.
    #[inline(never)]
    pub(super) fn take_other(
        &self,
        frame: &Frame<'_>,
        lane: &mut Lane,
        index: usize,
        (ipv4, ipv6): &mut (Service<'s, u64>, Service<'s, [u64; 4]>),
        seen: &mut impl Observe,
    ) {
        match read_tagged(frame.bytes()) {
            Some((ip_offset, Tagged::Ipv4(plain))) => {
                self.take(&plain, ip_offset, lane, index, ipv4, seen);
            }
            Some((ip_offset, Tagged::Ipv6(plain))) => {
                self.take(&plain, ip_offset, lane, index, ipv6, seen);
            }
            None => lane.kind = Kind::Long,
        }
        lane.len |= UNCOMMON;
    }

    /// Takes a packet up into a lane, where a rule takes it, and asks for the cache line that choosing
    /// its backend begins with.
    #[inline(always)] // the innermost loop
    fn take<A: Words>(
        &self,
        plain: &Plain<A>,
        ip_offset: u8,
        lane: &mut Lane,
        index: usize,
        service: &mut Service<'s, A>,
        seen: &mut impl Observe,
    ) {
        let (_, destination) = plain.addresses.split();
        let rest = ports_and_protocol(plain.ports, plain.protocol);
        let of_service = rest & !0xffff;
        if of_service != service.rest || destination != service.address {
            service.turn_to(self.snapshot, destination, of_service);
        }
        plain.addresses.store(&mut lane.addresses);
        lane.ports = plain.ports;
        lane.rule = service.number;
        lane.len = plain.ip_len;
        lane.kind = A::KIND;
        lane.ip_offset = ip_offset;
        lane.flags = plain.flags;
        lane.traffic_class = plain.traffic_class;
        lane.hop_limit = plain.hop_limit;
        lane.protocol = plain.protocol;
        if service.slots == 0 {
            return self.choose_by_other(lane, index, service, seen);
        }
        let hash = plain.addresses.message_hash(&self.snapshot.hasher, rest);
        let slot = maglev::slot(hash, service.slots);
        lane.entropy = hash as u16;
        lane.table_index = service.first_slot + slot as u32;
        self.ask_for_line::<A>(lane);
        note_classified::<A>(lane, index, hash, slot, seen);
    }

    /// Does the rest of what taking up a packet is where a rule chooses by something else than a
    /// hash of the whole tuple; without a rule, the packet is for the slow path.
    #[inline(never)]
    fn choose_by_other<A: Words>(
        &self,
        lane: &mut Lane,
        index: usize,
        service: &Service<'s, A>,
        seen: &mut impl Observe,
    ) {
        let snapshot = self.snapshot;
        let Some((_, rule)) = service.rule else {
            lane.kind = Kind::Long;
            return;
        };
        let packet = lane.unpack::<A>().packet;
        let hash = snapshot.hash(&packet, rule.mask);
        let table_index = snapshot.table_index(rule, &packet, hash);
        lane.entropy = full_hash(snapshot, &packet) as u16;
        lane.table_index = table_index as u32;
        self.ask_for_line::<A>(lane);
        note_classified::<A>(lane, index, hash, table_index - rule.first_slot(), seen);
    }

    /// Starts loading the line of the packet's flow, or of its Maglev slot.
    #[inline(always)] // as `take`
    fn ask_for_line<A: Words>(&self, lane: &mut Lane) {
        match self.flows {
            Some(flows) => {
                let table = A::table(flows);
                lane.bucket = table.prefetch_primary(table.hash(&lane.key::<A>()));
            }
            None => self.snapshot.prefetch_slot(lane.table_index as usize),
        }
    }
}

/// Tells what the first stage found of a packet.
#[inline(always)] // as `take`
fn note_classified<A: Words>(
    lane: &Lane,
    index: usize,
    hash: u64,
    slot: usize,
    seen: &mut impl Observe,
) {
    seen.step(index, Step::Parsed(lane.unpack::<A>().packet));
    seen.step(index, Step::Classified(RuleMatch::Rule(lane.rule)));
    let hashed = Step::Hashed {
        rule: lane.rule,
        hash,
        slot,
    };
    seen.step(index, hashed);
}

/// Reads a plain packet behind one or two VLAN tags: where its IP header begins, and what it is.
#[inline(never)]
fn read_tagged(frame: &[u8]) -> Option<(u8, Tagged)> {
    const ONE: usize = IP + ethernet::TAG_LEN;
    const TWO: usize = ONE + ethernet::TAG_LEN;
    let is_tag = |at: usize| {
        let bytes = frame.get(at..).and_then(|rest| rest.first_chunk());
        bytes.is_some_and(|bytes| EtherType(u16::from_be_bytes(*bytes)).is_tag())
    };
    let read = |one: bool| {
        let (ipv4, ipv6) = if one {
            (
                Plain::<u64>::read::<ONE>(frame),
                Plain::<[u64; 4]>::read::<ONE>(frame),
            )
        } else {
            (
                Plain::<u64>::read::<TWO>(frame),
                Plain::<[u64; 4]>::read::<TWO>(frame),
            )
        };
        ipv4.map(Tagged::Ipv4).or(ipv6.map(Tagged::Ipv6))
    };
    match (is_tag(IP - 2), is_tag(ONE - 2)) {
        (true, false) => Some((ONE as u8, read(true)?)),
        (true, true) => Some((TWO as u8, read(false)?)),
        (false, _) => None,
    }
}

enum Tagged {
    Ipv4(Plain<u64>),
    Ipv6(Plain<[u64; 4]>),
}
