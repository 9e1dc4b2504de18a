//! Plain packets between the stages, and the operations of their address families.

use crate::flow::table::{Found, Probe};
use crate::flow::{Addresses, FlowKey, FlowTable, Table};
use crate::hash::{Hasher, TupleHasher};
use crate::mux;
use crate::packet::{Family, Packet, Plain, Shape, is_martian_ipv4, is_martian_ipv6};
use crate::prefetch::CACHE_LINE;
use crate::snapshot::Snapshot;
use crate::wire::ethernet;
use crate::wire::tcp::Flags;

/// Offset of the IP header in a frame without tags.
pub(super) const IP: usize = ethernet::HEADER_LEN;

/// The class of a frame on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The frame takes the slow path from its first stage on.
    Long,
    Ipv4,
    Ipv6,
}

/// A plain packet between the stages.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(in crate::mux) struct Lane {
    /// Source and destination; IPv4 has both in the first word, and the others mean nothing.
    pub(super) addresses: [u64; 4],
    pub(super) ports: u32,
    /// The bucket that its flow is in, or looked for in.
    pub(super) bucket: u32,
    /// The slot in the snapshot's Maglev tables.
    pub(super) table_index: u32,
    pub(super) rule: u32,
    /// Bytes of the IP packet, and [`UNCOMMON`] for a frame with tags.
    pub(super) len: u32,
    /// The low bits of the hash that the outer source port is made of.
    pub(super) entropy: u16,
    /// Place of the flow in the bucket.
    pub(super) place: u8,
    pub(super) kind: Kind,
    pub(super) ip_offset: u8,
    pub(super) flags: Flags,
    pub(super) traffic_class: u8,
    // In the header's order, so that both are one store.
    pub(super) hop_limit: u8,
    pub(super) protocol: u8,
}

const _: () = assert!(size_of::<Lane>() == CACHE_LINE);

/// Stands for the rule while there is none yet.
pub(super) const NO_RULE: u32 = u32::MAX;
/// A bit of a length that makes it longer than any backend's common way takes.
pub(super) const UNCOMMON: u32 = 1 << 31;
/// Stands for the position of a flow that is in neither of its buckets.
pub(super) const ABSENT: u8 = 0xff;
/// Stands for the position of a flow that may be in its secondary bucket.
pub(super) const DISPLACED: u8 = 0xfe;

impl Lane {
    pub(in crate::mux) const EMPTY: Self = Self {
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
    pub(super) fn key<A: Words>(&self) -> FlowKey<A> {
        FlowKey::new(A::load(&self.addresses), self.ports, self.protocol)
    }

    /// Returns true if an established flow stays as it is with this packet: it neither begins nor
    /// ends a connection.
    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        let loud = Flags::SYN.with(Flags::FIN).with(Flags::RST);
        !self.flags.intersects(loud)
    }

    /// The same frame on the slow path. The hash of the flow table is not part of it.
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
            hash: self.entropy.into(), // no more of it is used from here on
            probe: match self.place {
                ABSENT => Probe::Absent,
                place => Probe::Found(Found::at(self.bucket, place)),
            },
            table_index: self.table_index,
            rule: self.rule,
            ..mux::Lane::EMPTY
        }
    }
}

/// The operations of an address family that the fast path needs.
pub(super) trait Words: Addresses {
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
