//! The fast path through the mux, for the packets that nearly all are: whole TCP and UDP packets
//! whose headers have nothing unusual, for a VIP and a rule, to a backend that is there.
//!
//! The stages are the mux's own, over lanes of one cache line each. A frame that needs anything else
//! leaves them unchanged:
//!
//! | what is found | where it goes on |
//! |---|---|
//! | headers that are not plain, or no rule | the slow path, from its first stage on |
//! | a new, half-open or closing flow, a SYN, FIN or RST of a pinned one, a backend that is gone or suspect, too few hops, too long a packet, no headroom | the slow path's last stage |
//!
//! So the slow path makes all decisions, and the fast path only has to know what is certain. Frames
//! are finished in their order on both paths, and observers see the same steps.

use core::ops::Deref;

use super::pin::{Changes, Pinner};
use super::{Chosen, Forwarder, MuxTables, Pipeline, Run, full_hash};
use crate::flow::table::{Found, Probe};
use crate::flow::{Addresses, FlowKey, FlowState, FlowTable, Table, Ticks};
use crate::frame::{BURST, Frame};
use crate::hash::{Hasher, TupleHasher, ports_and_protocol};
use crate::maglev;
use crate::observe::{FlowStep, From, Observe, Step};
use crate::packet::{Family, Packet, Plain, Shape, is_martian_ipv4, is_martian_ipv6};
use crate::prefetch::CACHE_LINE;
use crate::snapshot::{BackendId, CompiledBackend, CompiledRule, RuleMatch, Snapshot};
use crate::stats::{BackendCounters, Count, RuleCounters, Stats};
use crate::tunnel::encapsulation::Inner;
use crate::verdict::{DropReason, Verdict};
use crate::wire::ethernet::{self, EtherType};
use crate::wire::protocol;
use crate::wire::tcp::Flags;

/// Offset of the IP header in a frame without tags.
const IP: usize = ethernet::HEADER_LEN;

/// The class of a frame on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// The frame takes the slow path from its first stage on.
    Long,
    Ipv4,
    Ipv6,
}

/// A plain packet between the stages.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Lane {
    /// Source and destination; IPv4 has both in the first word, and the others mean nothing.
    addresses: [u64; 4],
    ports: u32,
    /// The bucket that its flow is in, or looked for in.
    bucket: u32,
    /// The slot in the snapshot's Maglev tables.
    table_index: u32,
    rule: u32,
    /// Bytes of the IP packet, and [`UNCOMMON`] for a frame with tags.
    len: u32,
    /// The low bits of the hash that the outer source port is made of.
    entropy: u16,
    /// Place of the flow in the bucket.
    place: u8,
    kind: Kind,
    ip_offset: u8,
    flags: Flags,
    traffic_class: u8,
    // In the header's order, so that both are one store.
    hop_limit: u8,
    protocol: u8,
}

const _: () = assert!(size_of::<Lane>() == CACHE_LINE);

/// Stands for the rule while there is none yet.
const NO_RULE: u32 = u32::MAX;
/// A bit of a length that makes it longer than any backend's common way takes.
const UNCOMMON: u32 = 1 << 31;
/// Stands for the position of a flow that is in neither of its buckets.
const ABSENT: u8 = 0xff;
/// Stands for the position of a flow that may be in its secondary bucket.
const DISPLACED: u8 = 0xfe;

impl Lane {
    pub(super) const EMPTY: Self = Self {
        addresses: [0; 4],
        ports: 0,
        bucket: 0,
        table_index: 0,
        rule: 0,
        len: 0,
        entropy: 0,
        place: ABSENT,
        kind: Kind::Long,
        ip_offset: 0,
        protocol: 0,
        flags: Flags(0),
        traffic_class: 0,
        hop_limit: 0,
    };

    #[inline]
    fn key<A: Words>(&self) -> FlowKey<A> {
        FlowKey::new(A::load(&self.addresses), self.ports, self.protocol)
    }

    /// Returns true if an established flow stays as it is with this packet: it neither begins nor
    /// ends a connection.
    #[inline]
    fn is_quiet(&self) -> bool {
        let loud = Flags::SYN.with(Flags::FIN).with(Flags::RST);
        !self.flags.intersects(loud)
    }

    /// The same frame on the slow path. The hash of the flow table is not part of it.
    fn unpack<A: Words>(&self) -> super::Lane {
        super::Lane {
            packet: Packet {
                addresses: A::load(&self.addresses).all(),
                ports: self.ports,
                ip_len: self.len & !UNCOMMON,
                shape: A::shape(self.ip_offset),
                protocol: self.protocol,
                flags: self.flags,
                traffic_class: self.traffic_class,
                hop_limit: self.hop_limit,
                ..Packet::EMPTY
            },
            hash: self.entropy.into(), // no more of it is used from here on
            probe: match self.place {
                ABSENT => Probe::Absent,
                place => Probe::Found(Found::at(self.bucket, place)),
            },
            table_index: self.table_index,
            rule: self.rule,
            ..super::Lane::EMPTY
        }
    }
}

/// The operations of an address family that the fast path needs.
trait Words: Addresses {
    const KIND: Kind;
    const FAMILY: Family;

    fn read(frame: &[u8]) -> Option<Plain<Self>>;
    fn load(words: &[u64; 4]) -> Self;
    fn store(self, words: &mut [u64; 4]);
    fn all(self) -> [u64; 4];
    fn message_hash(self, hasher: &Hasher, rest: u64) -> u64;
    fn is_martian(self, ports: u32) -> bool;
    /// The number of an address in rule keys, where it may be a VIP.
    fn vip(address: Self::Address, snapshot: &Snapshot<'_>) -> Option<u64>;
    fn table<'t, 'm>(flows: &'t FlowTable<'m>) -> &'t Table<'m, Self>;
    fn table_mut<'t, 'm>(flows: &'t mut FlowTable<'m>) -> &'t mut Table<'m, Self>;
    fn shape(ip_offset: u8) -> Shape;
}

impl Words for u64 {
    const KIND: Kind = Kind::Ipv4;
    const FAMILY: Family = Family::Ipv4;

    #[inline(always)]
    fn read(frame: &[u8]) -> Option<Plain<Self>> {
        Plain::<Self>::read::<IP>(frame)
    }

    #[inline]
    fn load(words: &[u64; 4]) -> Self {
        words[0]
    }

    #[inline]
    fn store(self, words: &mut [u64; 4]) {
        words[0] = self;
    }

    fn all(self) -> [u64; 4] {
        [self, 0, 0, 0]
    }

    #[inline]
    fn message_hash(self, hasher: &Hasher, rest: u64) -> u64 {
        match hasher {
            Hasher::Xxh3(hasher) => hasher.ipv4(&[self, rest]),
            _ => hasher.ipv4(&[self, rest]),
        }
    }

    #[inline]
    fn is_martian(self, ports: u32) -> bool {
        is_martian_ipv4(self, ports)
    }

    #[inline]
    fn vip(address: u32, snapshot: &Snapshot<'_>) -> Option<u64> {
        Some(snapshot.ipv4_vip(address))
    }

    #[inline]
    fn table<'t, 'm>(flows: &'t FlowTable<'m>) -> &'t Table<'m, Self> {
        &flows.ipv4
    }

    #[inline]
    fn table_mut<'t, 'm>(flows: &'t mut FlowTable<'m>) -> &'t mut Table<'m, Self> {
        &mut flows.ipv4
    }

    fn shape(ip_offset: u8) -> Shape {
        Shape::plain_ipv4(ip_offset)
    }
}

impl Words for [u64; 4] {
    const KIND: Kind = Kind::Ipv6;
    const FAMILY: Family = Family::Ipv6;

    #[inline(always)]
    fn read(frame: &[u8]) -> Option<Plain<Self>> {
        Plain::<Self>::read::<IP>(frame)
    }

    #[inline]
    fn load(words: &[u64; 4]) -> Self {
        *words
    }

    #[inline]
    fn store(self, words: &mut [u64; 4]) {
        *words = self;
    }

    fn all(self) -> [u64; 4] {
        self
    }

    #[inline]
    fn message_hash(self, hasher: &Hasher, rest: u64) -> u64 {
        let [a, b, c, d] = self;
        hasher.ipv6(&[a, b, c, d, rest])
    }

    #[inline]
    fn is_martian(self, ports: u32) -> bool {
        is_martian_ipv6(self, ports)
    }

    #[inline]
    fn vip(address: [u64; 2], snapshot: &Snapshot<'_>) -> Option<u64> {
        snapshot.ipv6_vip(address)
    }

    #[inline]
    fn table<'t, 'm>(flows: &'t FlowTable<'m>) -> &'t Table<'m, Self> {
        &flows.ipv6
    }

    #[inline]
    fn table_mut<'t, 'm>(flows: &'t mut FlowTable<'m>) -> &'t mut Table<'m, Self> {
        &mut flows.ipv6
    }

    fn shape(ip_offset: u8) -> Shape {
        Shape::plain_ipv6(ip_offset)
    }
}

/// A destination with its protocol and port, and the rule that takes it.
#[derive(Clone, Copy)]
struct Service<'s, A: Words> {
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
    fn none() -> Self {
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
struct Classifier<'s, 'm> {
    snapshot: &'s Snapshot<'s>,
    flows: Option<&'s FlowTable<'m>>,
}

impl<'s> Classifier<'s, '_> {
    /// Takes up frames from `next` on, until one that is not plain or of another family. Returns the place
    /// of that one.
    #[inline(never)] // two families in one loop would not fit the registers
    fn take_run<A: Words>(
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
    fn take_other(
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

/// The counters and tables of the last stage. Packets of one rule in a row are counted together:
/// adding each to the same counter would make each wait for the one before.
struct Sender<'p, 's> {
    snapshot: &'p Snapshot<'s>,
    rules: &'p mut [RuleCounters],
    backends: &'p mut [BackendCounters],
    /// All that was sent.
    sent: Sent,
    /// The same when the run of its rule began.
    sent_before: Sent,
    /// The rule of the last packet, the place of its counters, and what else has to be known of it.
    rule: u32,
    slot: usize,
    first_backend: u32,
    idle_timeout: Ticks,
}

#[derive(Clone, Copy)]
struct Sent {
    count: Count,
    syns: u64,
}

impl<'p, 's> Sender<'p, 's> {
    fn new(
        snapshot: &'p Snapshot<'s>,
        rules: &'p mut [RuleCounters],
        backends: &'p mut [BackendCounters],
    ) -> Self {
        let nothing = Sent {
            count: Count {
                packets: 0,
                bytes: 0,
            },
            syns: 0,
        };
        Self {
            snapshot,
            rules,
            backends,
            sent: nothing,
            sent_before: nothing,
            rule: NO_RULE,
            slot: usize::MAX,
            first_backend: 0,
            idle_timeout: Ticks::MAX,
        }
    }

    /// Counts what was sent for the rule so far, and turns to another one.
    #[inline(always)] // a call would have all counts kept in memory
    fn turn_to(&mut self, rule: u32) {
        if let Some(counters) = self.rules.get_mut(self.slot) {
            counters.forwarded += self.sent.count - self.sent_before.count;
            counters.syns += self.sent.syns - self.sent_before.syns;
        }
        self.sent_before = self.sent;
        if let Some(compiled) = self.snapshot.rule(rule) {
            self.rule = rule;
            self.slot = compiled.slot();
            self.first_backend = compiled.first_backend;
            self.idle_timeout = compiled.idle_timeout;
        }
    }

    /// Ends all runs. Returns how many packets were sent.
    #[inline]
    fn finish(mut self, stats: &mut Stats) -> usize {
        self.turn_to(NO_RULE);
        stats.received += self.sent.count;
        stats.forwarded += self.sent.count;
        stats.syns += self.sent.syns;
        self.sent.count.packets as usize
    }

    /// The place of the next packet, which is as many as were sent behind the first.
    #[inline]
    fn place(&self, first: usize) -> usize {
        first + self.sent.count.packets as usize
    }

    /// The backend of a packet's flow, and its place among all, where that flow is established and stays
    /// so; it is used again. `None`, and no change, where more is to be decided.
    #[inline(always)] // as `send`
    fn established<A: Words>(
        &self,
        flows: &mut FlowTable<'_>,
        lane: &Lane,
    ) -> Option<(u32, &'p CompiledBackend)> {
        if !lane.is_quiet() {
            return None;
        }
        let snapshot = self.snapshot;
        let table = A::table_mut(flows);
        table.refresh(lane.bucket, lane.place, self.idle_timeout, |value| {
            let index = snapshot.backend_index(BackendId::from_value(value))?;
            let backend = snapshot.backend(index)?;
            // Of other protocols, a flow may lose a backend that is unhealthy.
            let may_lose = lane.protocol != protocol::TCP && backend.is_suspect();
            (!may_lose).then_some((index, backend))
        })
    }

    /// Sends a packet to a backend. `false`, and nothing is changed or counted, where it cannot be.
    #[inline(always)] // once for each family, with and without a table
    fn send<A: Words>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        backend: &CompiledBackend,
    ) -> bool {
        let len = frame.len();
        if lane.hop_limit <= 1 {
            return false;
        }
        let is_sent = if lane.len <= backend.common_mtu {
            let inner = Inner {
                family: A::FAMILY,
                ip_offset: IP,
                ip_len: lane.len,
                traffic_class: lane.traffic_class,
            };
            let template = &backend.template;
            template
                .encapsulate_common(frame, inner, lane.entropy)
                .is_some()
        } else {
            encapsulate_uncommon::<A>(frame, lane, backend)
        };
        if !is_sent {
            return false;
        }
        let verdict = Verdict::Forward(self.snapshot.underlay().port);
        if let Some(counters) = self.backends.get_mut(backend.counters()) {
            counters.forwarded.packets += 1;
            // Between the two, which become one addition of vectors otherwise: six instructions for two.
            frame.set_verdict(verdict);
            counters.forwarded.bytes += len as u64;
        } else {
            frame.set_verdict(verdict);
        }
        self.sent.count.packets += 1;
        self.sent.count.bytes += len as u64;
        true
    }
}

/// Over IPv6, with a UDP checksum, or of a frame with tags.
#[inline(never)]
fn encapsulate_uncommon<A: Words>(
    frame: &mut Frame<'_>,
    lane: &Lane,
    backend: &CompiledBackend,
) -> bool {
    let inner = Inner {
        family: A::FAMILY,
        ip_offset: lane.ip_offset.into(),
        ip_len: lane.len & !UNCOMMON,
        traffic_class: lane.traffic_class,
    };
    let template = &backend.template;
    inner.ip_len <= backend.inner_mtu
        && template
            .encapsulate_inner(frame, inner, lane.entropy)
            .is_ok()
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

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Sets the verdict of each frame of a burst.
    #[inline]
    pub(super) fn process_burst(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &mut [Lane; BURST],
        long: &mut [super::Lane; BURST],
        seen: &mut impl Observe,
    ) {
        let lanes = lanes.get_mut(..frames.len()).unwrap_or_default();
        self.classify_plain(frames, lanes, seen);
        let before = self.tables.flows.as_ref().map(|flows| {
            look_up(flows, lanes);
            Changes::of(flows)
        });
        let mut next = 0;
        loop {
            let rest = frames.get_mut(next..).unwrap_or_default();
            let lanes = lanes.get_mut(next..).unwrap_or_default();
            let Some(lane) = lanes.first() else {
                return;
            };
            next += match lane.kind {
                Kind::Ipv4 => self.send_run::<u64>(rest, lanes, before.as_ref(), next, seen),
                Kind::Ipv6 => self.send_run::<[u64; 4]>(rest, lanes, before.as_ref(), next, seen),
                Kind::Long => {
                    let is_long = |lane: &&Lane| lane.kind == Kind::Long;
                    let count = lanes.iter().take_while(is_long).count();
                    let rest = rest.get_mut(..count).unwrap_or_default();
                    self.process_long(rest, long, &mut From { first: next, seen });
                    count
                }
            };
        }
    }

    /// Stage 1: reads each frame, finds its rule and hashes its tuple, into the lane of its place.
    #[inline]
    fn classify_plain(&self, frames: &[Frame<'_>], lanes: &mut [Lane], seen: &mut impl Observe) {
        for frame in frames {
            frame.prefetch();
        }
        let classifier = Classifier {
            snapshot: &self.snapshot,
            flows: self.tables.flows.as_ref(),
        };
        let mut services = (Service::none(), Service::none());
        let mut next = 0;
        while next < frames.len() {
            let ipv4 = classifier.take_run(frames, lanes, next, &mut services.0, seen);
            let ipv6 = classifier.take_run(frames, lanes, ipv4, &mut services.1, seen);
            if ipv6 == next
                && let (Some(frame), Some(lane)) = (frames.get(next), lanes.get_mut(next))
            {
                classifier.take_other(frame, lane, next, &mut services, seen);
            }
            next = ipv6.max(next + 1);
        }
    }

    /// Stage 3: sends frames of one family, until one that cannot be sent, and gives that one its verdict.
    /// Returns how many have theirs.
    #[inline]
    fn send_run<A: Words>(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &mut [Lane],
        before: Option<&Changes>,
        first: usize,
        seen: &mut impl Observe,
    ) -> usize {
        let (count, unsent) = match before {
            Some(before) => self.send_pinned::<A>(frames, lanes, before, first, seen),
            None => self.send_unpinned::<A>(frames, lanes, first, seen),
        };
        let Some(chosen) = unsent else {
            return count;
        };
        if let (Some(frame), Some(lane)) = (frames.get_mut(count), lanes.get(count)) {
            self.refuse_plain::<A>(frame, lane, chosen, first + count, seen);
        }
        count + 1
    }

    /// Stage 3 without a table: sends frames to Maglev's choice, until one that cannot be sent.
    /// Returns how many were sent, and the choice for that one.
    #[inline(never)] // a loop of its own has the registers for itself
    fn send_unpinned<A: Words>(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &[Lane],
        first: usize,
        seen: &mut impl Observe,
    ) -> (usize, Option<Chosen>) {
        let snapshot = &*self.snapshot;
        let MuxTables {
            rules, backends, ..
        } = &mut self.tables;
        let mut sender = Sender::new(snapshot, rules, backends);
        let mut unsent = None;
        for (frame, lane) in frames.iter_mut().zip(lanes) {
            if lane.kind != A::KIND {
                break;
            }
            if lane.rule != sender.rule {
                sender.turn_to(lane.rule);
            }
            if A::load(&lane.addresses).is_martian(lane.ports) {
                unsent = Some(Err(DropReason::Martian));
                break;
            }
            let chosen = snapshot.backend_in(sender.first_backend, lane.table_index as usize);
            let Some((index, backend)) = chosen else {
                unsent = Some(Err(DropReason::NoBackend));
                break;
            };
            let place = sender.place(first);
            if !sender.send::<A>(frame, lane, backend) {
                unsent = Some(Ok(index));
                break;
            }
            if lane.flags.contains(Flags::SYN) {
                sender.sent.syns += u64::from(lane.flags.opens());
            }
            seen.step(place, Step::Selected(index));
            seen.step(place, Step::Done(frame.verdict()));
        }
        (sender.finish(&mut self.stats), unsent)
    }

    /// Stage 3 with a table: sends frames to the backends of their flows, until one that cannot be
    /// sent. Returns how many were sent, and the choice for that one.
    #[inline(never)] // as `send_unpinned`
    fn send_pinned<A: Words>(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &mut [Lane],
        before: &Changes,
        first: usize,
        seen: &mut impl Observe,
    ) -> (usize, Option<Chosen>) {
        let Self {
            snapshot,
            tables,
            sources,
            stats,
            ..
        } = self;
        let snapshot: &Snapshot<'_> = snapshot;
        let MuxTables {
            flows: Some(flows),
            rules,
            backends,
            ..
        } = tables
        else {
            return (0, Some(Err(DropReason::NoBackend)));
        };
        // What an earlier frame of the burst inserted may have moved a later one's flow.
        let mut is_stale = Changes::of(flows) != *before;
        let mut sender = Sender::new(snapshot, rules, backends);
        let mut unsent = None;
        for (frame, lane) in frames.iter_mut().zip(lanes) {
            if lane.kind != A::KIND {
                break;
            }
            if is_stale {
                look_again::<A>(flows, lane);
            }
            if lane.rule != sender.rule {
                sender.turn_to(lane.rule);
            }
            let place = sender.place(first);
            let (index, backend) = match sender.established::<A>(flows, lane) {
                Some((index, backend)) => {
                    let hit = FlowStep::Hit(FlowState::Established);
                    seen.step(place, Step::Flow(hit));
                    (index, Some(backend))
                }
                None => {
                    let pinner = Pinner {
                        snapshot,
                        flows,
                        rules: sender.rules,
                        backends: sender.backends,
                        sources,
                        before,
                    };
                    let chosen =
                        pin_otherwise::<A>(pinner, lane, sender.first_backend, place, seen);
                    is_stale = Changes::of(flows) != *before;
                    match chosen {
                        Ok(index) => (index, snapshot.backend(index)),
                        Err(reason) => {
                            unsent = Some(Err(reason));
                            break;
                        }
                    }
                }
            };
            let is_sent = backend.is_some_and(|backend| sender.send::<A>(frame, lane, backend));
            if !is_sent {
                unsent = Some(Ok(index));
                break;
            }
            if lane.flags.contains(Flags::SYN) {
                sender.sent.syns += u64::from(lane.flags.opens());
            }
            seen.step(place, Step::Selected(index));
            seen.step(place, Step::Done(frame.verdict()));
        }
        (sender.finish(stats), unsent)
    }

    /// Sets the verdict of a frame that was not sent.
    #[cold]
    fn refuse_plain<A: Words>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        chosen: Chosen,
        place: usize,
        seen: &mut impl Observe,
    ) {
        let mut long = lane.unpack::<A>();
        long.len = frame.len() as u32;
        self.stats.received.add(frame.len());
        let mut forwarder = Forwarder {
            snapshot: &self.snapshot,
            rules: &mut self.tables.rules,
            backends: &mut self.tables.backends,
            limits: &mut self.limits,
            stats: &mut self.stats,
            run: Run::default(),
        };
        let seen = &mut From { first: place, seen };
        forwarder.forward(frame, &long, chosen, seen);
        forwarder.finish();
    }
}

/// Finds, pins or moves the flow of a packet on the slow path, unless the flow is established and
/// stays so. Returns the index of its backend.
#[inline(never)]
fn pin_otherwise<A: Words>(
    pinner: Pinner<'_, '_, '_>,
    lane: &Lane,
    first_backend: u32,
    place: usize,
    seen: &mut impl Observe,
) -> Chosen {
    let mut long = lane.unpack::<A>();
    long.first_backend = first_backend;
    long.flow_hash = A::table(pinner.flows).hash(&lane.key::<A>());
    pinner.backend(&long, &mut From { first: place, seen })
}

/// Stage 2: looks the flow of each lane up in its primary bucket, then in their secondary ones those that
/// may be there.
#[inline]
fn look_up(flows: &FlowTable<'_>, lanes: &mut [Lane]) {
    let mut displaced = 0;
    for lane in lanes.iter_mut() {
        match lane.kind {
            Kind::Ipv4 => look::<u64>(flows, lane),
            Kind::Ipv6 => look::<[u64; 4]>(flows, lane),
            Kind::Long => {}
        }
        displaced += u32::from(lane.place == DISPLACED);
    }
    if displaced != 0 {
        for lane in lanes.iter_mut().filter(|lane| lane.place == DISPLACED) {
            match lane.kind {
                Kind::Ipv4 => look_in_secondary::<u64>(flows, lane),
                Kind::Ipv6 => look_in_secondary::<[u64; 4]>(flows, lane),
                Kind::Long => {}
            }
        }
    }
}

#[inline]
fn look<A: Words>(flows: &FlowTable<'_>, lane: &mut Lane) {
    let (table, key) = (A::table(flows), lane.key());
    lane.place = match table.probe_bucket(lane.bucket, &key) {
        Probe::Found(found) => found.parts().1,
        Probe::Absent => ABSENT,
        probe => {
            // The secondary bucket will be read.
            table.prefetch_secondary(table.hash(&key));
            if probe == Probe::Displaced {
                DISPLACED
            } else {
                ABSENT
            }
        }
    };
}

fn look_in_secondary<A: Words>(flows: &FlowTable<'_>, lane: &mut Lane) {
    let (table, key) = (A::table(flows), lane.key());
    (lane.bucket, lane.place) = match table.probe_secondary(table.hash(&key), &key) {
        Some(found) => found.parts(),
        None => (lane.bucket, ABSENT),
    };
}

/// Looks up again where a flow is that was found before the table changed.
#[inline(never)]
fn look_again<A: Words>(flows: &FlowTable<'_>, lane: &mut Lane) {
    if lane.place != ABSENT {
        let (table, key) = (A::table(flows), lane.key());
        let found = table.find(&key);
        (lane.bucket, lane.place) = found.map_or((lane.bucket, ABSENT), Found::parts);
    }
}
