//! The ports of datagrams, by their first fragments.

use core::fmt;

use super::Recalled;
use super::name::Name;
use crate::key::{Key, Purpose};
use crate::mem::{Mem, Memory};
use crate::packet::{EchoMessage, Family, Packet};
use crate::time::Instant;
use crate::verdict::PortId;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::{protocol, tcp};

/// The time within which all fragments of a datagram arrive: no receiver waits longer (RFC 1122
/// §3.3.2, RFC 8200 §4.5).
const LIFETIME_NANOS: u64 = 60 * 1_000_000_000;
/// The number of places for datagrams of one hash.
const WAYS: usize = 8;
/// The maximum number of these places for one source.
const WAYS_OF_SOURCE: usize = WAYS / 2;

/// A datagram whose first fragment has arrived.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Datagram {
    name: Name,
    ports: u32,
    /// The protocol after all extension headers of the first fragment.
    protocol: u8,
    echo: EchoMessage,
    /// Offset of the transport header in the datagram's fragmentable part, in bytes.
    start: u16,
    /// Arrival of the first fragment; `None` for a free slot.
    since: Option<Instant>,
}

const _: () = assert!(size_of::<Datagram>() == 64);

impl Datagram {
    /// A free slot.
    pub const EMPTY: Self = Self {
        name: Name::EMPTY,
        ports: 0,
        protocol: 0,
        echo: EchoMessage::None,
        start: 0,
        since: None,
    };
}

/// The ports of datagrams whose first fragment has arrived, by the fields that later fragments also
/// have.
pub struct FragmentTable<'m> {
    datagrams: Mem<'m, Datagram>,
    key: [u64; 2],
    now: Instant,
}

impl<'m> FragmentTable<'m> {
    /// Makes a table in the given memory.
    pub fn new(datagrams: Mem<'m, Datagram>, key: Key) -> Self {
        Self {
            datagrams,
            key: key.derive(Purpose::Fragments),
            now: Instant::ZERO,
        }
    }

    /// Makes a table for `datagrams` simultaneous datagrams of both families together; returns
    /// `None` if the memory is used up.
    pub fn build(datagrams: usize, key: Key, memory: &mut impl Memory<'m>) -> Option<Self> {
        let datagrams = datagrams.next_multiple_of(WAYS);
        Some(Self::new(memory.take(datagrams, Datagram::EMPTY)?, key))
    }

    #[inline]
    pub(crate) fn advance(&mut self, now: Instant) {
        self.now = now;
    }

    /// Stores the ports of a datagram by its first fragment.
    pub(super) fn remember(&mut self, frame: &[u8], packet: &Packet, ports: u32, zone: PortId) {
        let name = Name::of(packet, zone);
        let now = self.now;
        let range = self.places(&name);
        let Some(bucket) = self.datagrams.get_mut(range) else {
            return;
        };
        let is_own = |datagram: &Datagram| datagram.name.source() == name.source();
        let of_source = |datagram: &&Datagram| datagram.since.is_some() && is_own(datagram);
        let has_its_share = bucket.iter().filter(of_source).count() >= WAYS_OF_SOURCE;
        let age = |datagram: &Datagram| match datagram.since {
            Some(_) if datagram.name == name => u64::MAX, // its own place
            Some(since) => now.as_nanos().saturating_sub(since.as_nanos()),
            None => u64::MAX - 1,
        };
        let usable = bucket
            .iter_mut()
            .filter(|datagram| !has_its_share || of_source(&&**datagram));
        if let Some(place) = usable.max_by_key(|datagram| age(datagram)) {
            *place = Datagram {
                name,
                ports,
                protocol: packet.protocol,
                echo: packet.shape.echo,
                start: start_of(frame, packet),
                since: Some(now),
            };
        }
    }

    /// Sets the protocol and ports of a later fragment to those of its datagram.
    pub(super) fn recall(&self, frame: &[u8], packet: &mut Packet, zone: PortId) -> Recalled {
        let name = Name::of(packet, zone);
        let bucket = self.datagrams.get(self.places(&name)).unwrap_or_default();
        let found = bucket.iter().find(|datagram| {
            let lives = |since: Instant| {
                self.now.as_nanos().saturating_sub(since.as_nanos()) < LIFETIME_NANOS
            };
            datagram.name == name && datagram.since.is_some_and(lives)
        });
        let Some(found) = found else {
            return Recalled::Unknown;
        };
        let header_end = usize::from(found.start) + tcp::HEADER_LEN;
        if found.protocol == protocol::TCP && offset_of(frame, packet) < header_end {
            return Recalled::Overlaps;
        }
        packet.protocol = found.protocol;
        packet.ports = found.ports;
        packet.shape.echo = found.echo;
        Recalled::Known
    }

    /// Returns the places for datagrams with a name's hash.
    fn places(&self, name: &Name) -> core::ops::Range<usize> {
        let buckets = (self.datagrams.len() / WAYS) as u64;
        let bucket = ((name.hash(self.key) >> 32) * buckets) >> 32;
        let first = bucket as usize * WAYS;
        first..first + WAYS
    }
}

impl fmt::Debug for FragmentTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FragmentTable")
            .field("datagrams", &self.datagrams.len())
            .finish_non_exhaustive()
    }
}

/// Returns the offset of the transport header in the fragmentable part of a first fragment, in
/// bytes.
fn start_of(frame: &[u8], packet: &Packet) -> u16 {
    match packet.shape.family {
        Family::Ipv4 => 0,
        Family::Ipv6 => Ipv6::parse_quoted(ip_of(frame, packet)).map_or(0, |ip| {
            (ip.transport_offset() - ip.fragmentable_offset()) as u16
        }),
    }
}

/// Returns the offset of a fragment in the fragmentable part of its datagram, in bytes.
fn offset_of(frame: &[u8], packet: &Packet) -> usize {
    let ip = ip_of(frame, packet);
    match packet.shape.family {
        Family::Ipv4 => Ipv4::parse_quoted(ip).map_or(0, |ip| ip.fragment_offset()),
        Family::Ipv6 => {
            let fragment = Ipv6::parse_quoted(ip).ok().and_then(|ip| ip.fragment());
            fragment.map_or(0, |fragment| fragment.offset.into())
        }
    }
}

fn ip_of<'f>(frame: &'f [u8], packet: &Packet) -> &'f [u8] {
    frame
        .get(usize::from(packet.shape.ip_offset)..)
        .unwrap_or_default()
}
