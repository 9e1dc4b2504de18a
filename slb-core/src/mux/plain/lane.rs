//! Plain packets between the stages, and the operations of their address families.

use crate::flow::table::{Found, Probe};
use crate::flow::{Addresses, FlowKey, FlowProtocol, FlowTable, Table};
use crate::hash::{TupleHasher, Xxh3};
use crate::mux;
use crate::packet::{Family, Packet, Plain, Shape, is_martian_ipv4, is_martian_ipv6};
use crate::prefetch::CACHE_LINE;
use crate::snapshot::Snapshot;
use crate::wire::tcp::Flags;
use crate::wire::{ethernet, protocol};

/// Offset of the IP header in a frame without tags.
pub(super) const IP: usize = ethernet::HEADER_LEN;

/// The class of a frame on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The frame takes the slow path from its first stage on.
    Long = 0,
    Ipv4 = 1,
    Ipv6 = 2,
}

/// Bits of the rule in a run; the two above are the kind.
const RULE_BITS: u32 = 30;
/// The run of frames on the slow path.
pub(super) const LONG: u32 = 0;

/// A plain packet between the stages.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Lane {
    /// Source and destination; IPv4 has both in the first word, and does not use the others.
    pub(super) addresses: [u64; 4],
    pub(super) ports: u32,
    /// The bucket that may contain the flow.
    pub(super) bucket: u32,
    /// The slot in the snapshot's Maglev tables.
    pub(super) table_index: u32,
    /// Rule and kind: packets with the same run are sent together.
    pub(super) run: u32,
    /// Bytes of the IP packet, and [`UNCOMMON`] for a frame with tags.
    pub(super) len: u32,
    /// The low bits of the hash for the outer source port.
    pub(super) entropy: u16,
    /// Place of the flow in the bucket.
    pub(super) place: u8,
    pub(super) ip_offset: u8,
    pub(super) flags: Flags,
    pub(super) traffic_class: u8,
    // In the header's order, so that both are one store.
    pub(super) hop_limit: u8,
    pub(super) protocol: u8,
}

const _: () = assert!(size_of::<Lane>() == CACHE_LINE);

/// The run before the first one, which no lane has.
pub(super) const NO_RUN: u32 = u32::MAX;
/// A bit of a length that exceeds every backend's common MTU.
pub(super) const UNCOMMON: u32 = 1 << 31;
/// The position of a flow that is in neither of its buckets.
pub(super) const ABSENT: u8 = 0xff;

impl Lane {
    pub(super) const EMPTY: Self = Self {
        addresses: [0; 4],
        ports: 0,
        bucket: 0,
        table_index: 0,
        run: LONG,
        len: 0,
        entropy: 0,
        place: ABSENT,
        ip_offset: 0,
        protocol: 0,
        flags: Flags(0),
        traffic_class: 0,
        hop_limit: 0,
    };

    /// Stores the parsed headers of a packet.
    #[inline(always)] // the innermost loop
    pub(super) fn fill<A: Words>(&mut self, plain: &Plain<A>, ip_offset: u8) {
        plain.addresses.store(&mut self.addresses);
        self.ports = plain.ports;
        self.len = plain.ip_len;
        self.ip_offset = ip_offset;
        self.flags = plain.flags;
        self.traffic_class = plain.traffic_class;
        self.hop_limit = plain.hop_limit;
        self.protocol = plain.protocol;
    }

    #[inline]
    pub(super) fn kind(&self) -> Kind {
        match self.run >> RULE_BITS {
            1 => Kind::Ipv4,
            2 => Kind::Ipv6,
            _ => Kind::Long,
        }
    }

    #[inline]
    pub(super) fn key<A: Words>(&self) -> FlowKey<A> {
        key(A::load(&self.addresses), self.ports, self.protocol)
    }

    /// Returns true if the packet does not change an established flow: it neither opens nor closes
    /// a connection.
    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        let loud = Flags::SYN.with(Flags::FIN).with(Flags::RST);
        !self.flags.intersects(loud)
    }

    /// Returns the lane of the frame on the slow path, without the hash of the flow table.
    pub(super) fn unpack<A: Words>(&self) -> mux::Lane {
        mux::Lane {
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
            hash: self.entropy.into(), // only these bits are used from here on
            probe: match self.place {
                ABSENT => Probe::Absent,
                place => Probe::Found(Found::at(self.bucket, place)),
            },
            table_index: self.table_index,
            rule: rule_of(self.run),
            ..mux::Lane::EMPTY
        }
    }
}

/// Returns the rule of a run; meaningless for [`NO_RUN`] and [`LONG`].
#[inline]
pub(super) const fn rule_of(run: u32) -> u32 {
    run & ((1 << RULE_BITS) - 1)
}

/// Returns the key of a plain packet's flow, which is TCP or UDP.
#[inline(always)] // the innermost loop
pub(super) fn key<A>(addresses: A, ports: u32, number: u8) -> FlowKey<A> {
    let is_udp = number == protocol::UDP;
    let protocol = if is_udp {
        FlowProtocol::Udp
    } else {
        FlowProtocol::Tcp
    };
    FlowKey {
        addresses,
        ports,
        protocol,
    }
}

/// The operations of an address family that the fast path needs.
pub(super) trait Words: Addresses {
    const KIND: Kind;
    const FAMILY: Family;
    /// The run of its first rule.
    const RUN: u32 = (Self::KIND as u32) << RULE_BITS;
    /// All zero.
    const NO_ADDRESS: Self::Address;

    fn read(frame: &[u8]) -> Option<Plain<Self>>;
    fn load(words: &[u64; 4]) -> Self;
    fn store(self, words: &mut [u64; 4]);
    fn all(self) -> [u64; 4];
    fn message_hash(self, hasher: &Xxh3, rest: u64) -> u64;
    /// Returns a word that differs between most VIPs.
    fn end(address: Self::Address) -> u64;
    fn is_martian(self, ports: u32) -> bool;
    /// Returns the number of an address in rule keys, if it may be a VIP.
    fn vip(address: Self::Address, snapshot: &Snapshot<'_>) -> Option<u64>;
    fn table<'t, 'm>(flows: &'t FlowTable<'m>) -> &'t Table<'m, Self>;
    fn table_mut<'t, 'm>(flows: &'t mut FlowTable<'m>) -> &'t mut Table<'m, Self>;
    fn shape(ip_offset: u8) -> Shape;
}

impl Words for u64 {
    const KIND: Kind = Kind::Ipv4;
    const FAMILY: Family = Family::Ipv4;
    const NO_ADDRESS: u32 = 0;

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
    fn message_hash(self, hasher: &Xxh3, rest: u64) -> u64 {
        hasher.ipv4(&[self, rest])
    }

    #[inline]
    fn end(address: u32) -> u64 {
        // Above the port, which it is mixed with.
        Self::from(address) << 32
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
    const NO_ADDRESS: [u64; 2] = [0; 2];

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
    fn message_hash(self, hasher: &Xxh3, rest: u64) -> u64 {
        let [a, b, c, d] = self;
        hasher.ipv6(&[a, b, c, d, rest])
    }

    #[inline]
    fn end(address: [u64; 2]) -> u64 {
        address[1]
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
