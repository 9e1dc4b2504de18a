//! Stage 1: the rule, the hash and the slot of each frame.

use super::lane::{IP, LONG, Lane, UNCOMMON, Words, key, rule_of};
use super::services::{Service, Services};
use crate::flow::FlowTable;
use crate::frame::Frame;
use crate::hash::{Xxh3, ports_and_protocol};
use crate::maglev;
use crate::mux::pipeline::full_hash;
use crate::observe::{Observe, Step};
use crate::packet::Plain;
use crate::snapshot::{RuleMatch, Snapshot};
use crate::wire::ethernet::{self, EtherType};

/// The data that the first stage reads.
pub(super) struct Classifier<'s, 'm> {
    pub(super) snapshot: &'s Snapshot<'s>,
    /// The snapshot's hasher, if it is XXH3; services of other hashers have no slots.
    pub(super) hasher: Xxh3,
    pub(super) flows: Option<&'s FlowTable<'m>>,
}

impl Classifier<'_, '_> {
    /// Classifies frames from `next` on, up to the first that is not plain or of another family.
    /// Returns the index of that one.
    #[inline(never)] // two families in one loop would not fit the registers
    pub(super) fn take_run<A: Words>(
        &self,
        frames: &[Frame<'_>],
        lanes: &mut [Lane],
        next: usize,
        services: &mut Services<A>,
        seen: &mut impl Observe,
    ) -> usize {
        let frames = frames.get(next..).unwrap_or_default();
        let lanes = lanes.get_mut(next..).unwrap_or_default();
        let all = next + frames.len();
        let mut pairs = frames.iter().zip(lanes);
        let none = Service::NONE;
        let mut service = &none;
        while let Some((frame, lane)) = pairs.next() {
            let index = all - 1 - pairs.len();
            let Some(plain) = A::read(frame.bytes()) else {
                return index;
            };
            lane.fill(&plain, IP as u8);
            let (address, rest) = destination(&plain);
            if !service.is(address, rest) {
                service = services.of(self.snapshot, address, rest);
            }
            self.choose(plain.addresses, rest, lane, index, service, seen);
        }
        all
    }

    /// Classifies a tagged frame; other frames take the slow path.
    #[inline(never)]
    pub(super) fn take_other(
        &self,
        frame: &Frame<'_>,
        lane: &mut Lane,
        index: usize,
        (ipv4, ipv6): (&mut Services<u64>, &mut Services<[u64; 4]>),
        seen: &mut impl Observe,
    ) {
        match read_tagged(frame.bytes()) {
            Some((ip_offset, Tagged::Ipv4(plain))) => {
                self.take_tagged(&plain, ip_offset, lane, index, ipv4, seen);
            }
            Some((ip_offset, Tagged::Ipv6(plain))) => {
                self.take_tagged(&plain, ip_offset, lane, index, ipv6, seen);
            }
            None => lane.run = LONG,
        }
    }

    fn take_tagged<A: Words>(
        &self,
        plain: &Plain<A>,
        ip_offset: u8,
        lane: &mut Lane,
        index: usize,
        services: &mut Services<A>,
        seen: &mut impl Observe,
    ) {
        lane.fill(plain, ip_offset);
        lane.len |= UNCOMMON;
        let (address, rest) = destination(plain);
        let service = services.of(self.snapshot, address, rest);
        self.choose(plain.addresses, rest, lane, index, service, seen);
    }

    /// Finds the rule and the Maglev slot of a lane's packet, and prefetches the first cache line
    /// for the choice of its backend.
    #[inline(always)] // the innermost loop
    fn choose<A: Words>(
        &self,
        addresses: A,
        rest: u64,
        lane: &mut Lane,
        index: usize,
        service: &Service<A>,
        seen: &mut impl Observe,
    ) {
        lane.run = service.run;
        if service.slots == 0 {
            return self.choose_by_other::<A>(lane, index, seen);
        }
        let hash = addresses.message_hash(&self.hasher, rest);
        let slot = maglev::slot(hash, service.slots);
        lane.entropy = hash as u16;
        lane.table_index = service.first_slot + slot as u32;
        if self.ask_for_line(addresses, rest, lane) {
            note_classified::<A>(lane, index, hash, slot, seen);
        }
    }

    /// Chooses a slot for a rule that hashes other than by XXH3 of the whole tuple. A packet without a rule
    /// goes to the slow path.
    #[inline(never)]
    fn choose_by_other<A: Words>(&self, lane: &mut Lane, index: usize, seen: &mut impl Observe) {
        let snapshot = self.snapshot;
        let has_rule = lane.run != LONG;
        let Some(rule) = snapshot.rule(rule_of(lane.run)).filter(|_| has_rule) else {
            return;
        };
        let packet = lane.unpack::<A>().packet;
        let hash = snapshot.hash(&packet, rule.mask);
        let table_index = snapshot.table_index(rule, &packet, hash);
        lane.entropy = if rule.mask == u64::MAX {
            hash as u16
        } else {
            full_hash(snapshot, &packet) as u16
        };
        lane.table_index = table_index as u32;
        let rest = ports_and_protocol(lane.ports, lane.protocol);
        if self.ask_for_line(A::load(&lane.addresses), rest, lane) {
            note_classified::<A>(lane, index, hash, table_index - rule.first_slot(), seen);
        }
    }

    /// Starts loading the line of the packet's flow, or of its Maglev slot. Without a table,
    /// returns false for a martian, which takes the slow path; with a table, only new flows are
    /// checked for martians.
    #[inline(always)] // as `choose`
    fn ask_for_line<A: Words>(&self, addresses: A, rest: u64, lane: &mut Lane) -> bool {
        let (ports, protocol) = (rest as u32, (rest >> 32) as u8);
        match self.flows {
            Some(flows) => {
                let table = A::table(flows);
                lane.bucket = table.prefetch_primary(table.hash(&key(addresses, ports, protocol)));
            }
            None if addresses.is_martian(ports) => {
                lane.run = LONG;
                return false;
            }
            None => self.snapshot.prefetch_slot(lane.table_index as usize),
        }
        true
    }
}

/// Returns the destination of a packet, and the message's last word: protocol and ports.
#[inline(always)] // as `choose`
fn destination<A: Words>(plain: &Plain<A>) -> (A::Address, u64) {
    let (_, address) = plain.addresses.split();
    (address, ports_and_protocol(plain.ports, plain.protocol))
}

/// Reports the results of the first stage to the observer.
#[inline(always)] // as `choose`
fn note_classified<A: Words>(
    lane: &Lane,
    index: usize,
    hash: u64,
    slot: usize,
    seen: &mut impl Observe,
) {
    seen.step(index, Step::Parsed(lane.unpack::<A>().packet));
    let rule = rule_of(lane.run);
    seen.step(index, Step::Classified(RuleMatch::Rule(rule)));
    let hashed = Step::Hashed { rule, hash, slot };
    seen.step(index, hashed);
}

/// Reads a plain packet after one or two VLAN tags, and the offset of its IP header.
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
