//! Fragments of datagrams, of which only the first has the ports.
//!
//! ```text
//!  first ──► FragmentTable: its protocol and ports      later, known ──► goes where the first went
//!        └─► FragmentRoom: what waited is released      later, not yet ──► FragmentRoom, or dropped
//! ```
//!
//! Datagrams are not reassembled: each fragment is forwarded separately. Both structures are
//! bounded. The table replaces its oldest datagram by a new one. The room holds later fragments
//! that arrive before their first one (RFC 4787 REQ-14). Neither gives a source more than half of
//! the places that it shares with others, so a flood of fragments evicts its own.

use core::fmt;

use crate::flow::Addresses;
use crate::frame::Frame;
use crate::key::{Key, Purpose};
use crate::mem::{Mem, Memory};
use crate::nat::Direction;
use crate::packet::{EchoMessage, Family, Packet};
use crate::stats::Stats;
use crate::time::Instant;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{protocol, tcp};

/// The time within which all fragments of a datagram arrive: no receiver waits longer (RFC 1122
/// §3.3.2, RFC 8200 §4.5).
const LIFETIME_NANOS: u64 = 60 * 1_000_000_000;
/// The time that a later fragment waits for its first one: NAT64's FRAGMENT_MIN (RFC 6146 §3.4,
/// §4).
const WAIT_NANOS: u64 = 2 * 1_000_000_000;
/// The number of places for datagrams of one hash.
const WAYS: usize = 8;
/// The maximum number of these places for one source.
const WAYS_OF_SOURCE: usize = WAYS / 2;
/// The number of slots that the sources of one hash share.
const BUCKET: usize = 64;
/// The maximum number of slots for one source: a datagram of 64 KiB has 45 fragments, mostly in
/// order.
const SHARE: usize = BUCKET / 2;
/// No slot.
const NONE: u32 = u32::MAX;

/// The identity of a datagram: source, destination and identification; for IPv4 the protocol too
/// (RFC 791 §2.3), but not for IPv6, where a later fragment need not know the first header of the
/// fragmentable part (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    addresses: [u64; 4],
    identification: u32,
    /// Port of the network that the addresses belong to: two networks may use equal addresses.
    zone: PortId,
    family: Family,
    /// Zero for IPv6.
    protocol: u8,
}

impl Name {
    const EMPTY: Self = Self {
        addresses: [0; 4],
        identification: 0,
        zone: PortId(0),
        family: Family::Ipv4,
        protocol: 0,
    };

    fn of(packet: &Packet, zone: PortId) -> Self {
        let (addresses, protocol) = match packet.shape.family {
            Family::Ipv4 => ([packet.addresses[0], 0, 0, 0], packet.protocol),
            Family::Ipv6 => (packet.addresses, 0),
        };
        Self {
            addresses,
            identification: packet.identification,
            zone,
            family: packet.shape.family,
            protocol,
        }
    }

    /// Returns the source of the datagram: an IPv4 address, or a /64 of IPv6.
    fn source(&self) -> u64 {
        match self.family {
            Family::Ipv4 => u64::from(self.addresses[0] as u32),
            Family::Ipv6 => self.addresses[0],
        }
    }

    fn hash(&self, key: [u64; 2]) -> u64 {
        let rest = u64::from(self.identification) << 32
            | u64::from(self.zone.0) << 8
            | u64::from(self.protocol);
        self.addresses.hash(rest, key)
    }
}

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

/// The result of looking up the datagram of a later fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recalled {
    /// The packet has its protocol and ports now.
    Known,
    /// The first fragment has not arrived yet.
    Unknown,
    /// The fragment would overwrite the TCP header of its first fragment (RFC 1858, RFC 3128).
    Overlaps,
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
    fn remember(&mut self, frame: &[u8], packet: &Packet, ports: u32, zone: PortId) {
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
    fn recall(&self, frame: &[u8], packet: &mut Packet, zone: PortId) -> Recalled {
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

/// The arrival of a fragment: its port, network and direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The port of its frame.
    pub(crate) port: PortId,
    /// Port of the network that the addresses belong to.
    pub(crate) zone: PortId,
    /// The node that sent the frame, like [`Lane::sender`](crate::nat::pipeline::Lane::sender).
    pub(crate) sender: u32,
    pub(crate) direction: Direction,
    /// Bytes of the frame as it arrived.
    pub(crate) len: u32,
}

impl Arrival {
    const EMPTY: Self = Self {
        port: PortId(0),
        zone: PortId(0),
        sender: 0,
        direction: Direction::Inward,
        len: 0,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Waiting,
    /// The first fragment has arrived.
    Ready,
}

/// A place of 2 KiB for a waiting fragment. Frames longer than [`LONGEST`](Self::LONGEST) do not
/// wait.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct FragmentSlot {
    name: Name,
    arrival: Arrival,
    since: Instant,
    /// The next ready slot, or none.
    next: u32,
    len: u16,
    state: State,
    bytes: [u8; Self::LONGEST],
}

const _: () = assert!(size_of::<FragmentSlot>() == 2048);

impl FragmentSlot {
    /// Bytes of the longest frame that fits.
    pub const LONGEST: usize = 2048 - 128;

    /// No fragment.
    pub const EMPTY: Self = Self {
        name: Name::EMPTY,
        arrival: Arrival::EMPTY,
        since: Instant::ZERO,
        next: NONE,
        len: 0,
        state: State::Free,
        bytes: [0; Self::LONGEST],
    };
}

impl fmt::Debug for FragmentSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FragmentSlot")
            .field("state", &self.state)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Memory for later fragments that arrive before their first one.
///
/// The room holds copies: the frame itself is dropped as [`DropReason::FragmentHeld`]. Once the
/// first fragment has arrived, the copies leave in spare frames that are passed to the role's
/// `advance`. If the first fragment does not arrive within two seconds (RFC 6146 §3.4), they are
/// dropped for good as [`DropReason::FragmentWithoutFirst`].
pub struct FragmentRoom<'m> {
    slots: Mem<'m, FragmentSlot>,
    key: [u64; 2],
    now: Instant,
    /// The number of used slots.
    used: u32,
    /// The first slot in the list of ready ones.
    first_ready: u32,
    last_ready: u32,
    /// The next bucket to sweep.
    sweep: u32,
}

/// The result of [`FragmentRoom::take`].
pub(crate) enum Taken {
    /// The frame now holds a fragment, which arrived like this.
    Fragment(Arrival),
    /// The frame is too small for the next fragment.
    Small,
    /// No fragment is ready.
    Nothing,
}

impl<'m> FragmentRoom<'m> {
    /// A number of slots that suffices for most uses: 1 MiB.
    pub const SLOTS: usize = 512;

    /// Makes a room without slots, in which no fragment waits.
    // Not an `Option` of a room: dropping it would read the flag of a room that does not exist,
    // which valgrind reports.
    pub(crate) fn none() -> Self {
        Self::new(Mem::empty(), Key::new([0; 2]))
    }

    /// Makes a room of the given slots, of which it uses a multiple of 64.
    pub fn new(slots: Mem<'m, FragmentSlot>, key: Key) -> Self {
        Self {
            slots,
            key: key.derive(Purpose::Fragments),
            now: Instant::ZERO,
            used: 0,
            first_ready: NONE,
            last_ready: NONE,
            sweep: 0,
        }
    }

    /// Makes a room of `slots` slots, rounded up to a multiple of 64; returns `None` if the memory
    /// is used up.
    pub fn build(slots: usize, key: Key, memory: &mut impl Memory<'m>) -> Option<Self> {
        let slots = slots.checked_next_multiple_of(BUCKET)?;
        Some(Self::new(memory.take(slots, FragmentSlot::EMPTY)?, key))
    }

    #[inline]
    pub(crate) fn advance(&mut self, now: Instant) {
        self.now = now;
    }

    /// Stores a later fragment; returns the verdict of its frame.
    fn hold(
        &mut self,
        frame: &[u8],
        packet: &Packet,
        arrival: Arrival,
        stats: &mut Stats,
    ) -> DropReason {
        let name = Name::of(packet, arrival.zone);
        let (Some(place), true) = (
            self.vacate(&name, stats),
            frame.len() <= FragmentSlot::LONGEST,
        ) else {
            return DropReason::FragmentWithoutFirst;
        };
        let now = self.now;
        let Some(slot) = self.slots.get_mut(place) else {
            return DropReason::FragmentWithoutFirst;
        };
        for (to, from) in slot.bytes.iter_mut().zip(frame) {
            *to = *from;
        }
        (slot.name, slot.arrival, slot.since) = (name, arrival, now);
        (slot.next, slot.len, slot.state) = (NONE, frame.len() as u16, State::Waiting);
        self.used += 1;
        DropReason::FragmentHeld
    }

    /// Finds a place for a fragment: a free place, or the place of the oldest fragment of the same
    /// source if it has used up its share, or else of the oldest of all. Ready fragments stay.
    fn vacate(&mut self, name: &Name, stats: &mut Stats) -> Option<usize> {
        let range = self.places(name);
        let source = name.source();
        let bucket = self.slots.get(range.clone())?;
        let is_own = |slot: &&FragmentSlot| slot.name.source() == source;
        let own = bucket.iter().filter(|slot| slot.state != State::Free);
        let has_its_share = own.filter(is_own).count() >= SHARE;
        let free = bucket.iter().position(|slot| slot.state == State::Free);
        if let Some(free) = free.filter(|_| !has_its_share) {
            return Some(range.start + free);
        }
        let waiting = bucket
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.state == State::Waiting && (!has_its_share || is_own(slot)));
        let (oldest, _) = waiting.min_by_key(|(_, slot)| slot.since)?;
        self.give_up(range.start + oldest, stats);
        Some(range.start + oldest)
    }

    /// Releases the later fragments of a datagram after its first one has arrived.
    fn wake(&mut self, packet: &Packet, zone: PortId) {
        if self.used == 0 {
            return;
        }
        let name = Name::of(packet, zone);
        for place in self.places(&name) {
            let Some(slot) = self.slots.get_mut(place) else {
                return;
            };
            if slot.state != State::Waiting || slot.name != name {
                continue;
            }
            slot.state = State::Ready;
            slot.next = NONE;
            let place = place as u32;
            match self.slots.get_mut(self.last_ready as usize) {
                Some(last) => last.next = place,
                None => self.first_ready = place,
            }
            self.last_ready = place;
        }
    }

    /// Copies the fragment that has been ready for longest into a frame.
    pub(crate) fn take(&mut self, frame: &mut Frame<'_>, stats: &mut Stats) -> Taken {
        while let Some(slot) = self.slots.get(self.first_ready as usize) {
            let (place, next, arrival) = (self.first_ready as usize, slot.next, slot.arrival);
            let is_late = self.is_late(slot);
            let bytes = slot.bytes.get(..usize::from(slot.len)).unwrap_or_default();
            if !is_late && frame.fill(bytes).is_none() {
                return Taken::Small;
            }
            self.first_ready = next;
            if next == NONE {
                self.last_ready = NONE;
            }
            if is_late {
                self.give_up(place, stats);
                continue;
            }
            self.release(place);
            frame.set_port(arrival.port);
            return Taken::Fragment(arrival);
        }
        Taken::Nothing
    }

    /// Drops fragments that have waited too long. One call visits the slots of one hash.
    pub(crate) fn sweep(&mut self, stats: &mut Stats) {
        let buckets = (self.slots.len() / BUCKET) as u32;
        if self.used == 0 || buckets == 0 {
            return;
        }
        self.sweep = if self.sweep + 1 < buckets {
            self.sweep + 1
        } else {
            0
        };
        let first = self.sweep as usize * BUCKET;
        for place in first..first + BUCKET {
            let slot = self.slots.get(place);
            if slot.is_some_and(|slot| slot.state == State::Waiting && self.is_late(slot)) {
                self.give_up(place, stats);
            }
        }
    }

    fn is_late(&self, slot: &FragmentSlot) -> bool {
        self.now.as_nanos().saturating_sub(slot.since.as_nanos()) > WAIT_NANOS
    }

    /// Drops a fragment whose first one did not arrive, or for which there was no spare frame in
    /// time.
    fn give_up(&mut self, place: usize, stats: &mut Stats) {
        if let Some(slot) = self.slots.get(place) {
            let len = slot.arrival.len as usize;
            stats.released.add(len);
            stats.count(Verdict::Drop(DropReason::FragmentWithoutFirst), len);
        }
        self.release(place);
    }

    fn release(&mut self, place: usize) {
        if let Some(slot) = self.slots.get_mut(place) {
            slot.state = State::Free;
            self.used = self.used.saturating_sub(1);
        }
    }

    /// Returns the slots that a datagram's source shares.
    fn places(&self, name: &Name) -> core::ops::Range<usize> {
        let buckets = (self.slots.len() / BUCKET) as u64;
        let hash = [name.source(), 0, 0, 0].hash(name.zone.0.into(), self.key);
        let bucket = ((hash >> 32) * buckets) >> 32;
        let first = bucket as usize * BUCKET;
        first..first + BUCKET
    }
}

#[cfg(feature = "alloc")]
impl FragmentRoom<'static> {
    /// Makes a room like [`build`](Self::build), in boxes.
    pub fn with_capacity(slots: usize, key: Key) -> Self {
        let count = slots.div_ceil(BUCKET) * BUCKET;
        Self::new(alloc::vec![FragmentSlot::EMPTY; count].into(), key)
    }
}

impl fmt::Debug for FragmentRoom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FragmentRoom")
            .field("slots", &self.slots.len())
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

/// The fragment state of a role: its table, if it has one, and its room.
pub(crate) struct Fragments<'a, 'm> {
    pub(crate) table: Option<&'a mut FragmentTable<'m>>,
    pub(crate) room: &'a mut FragmentRoom<'m>,
}

impl Fragments<'_, '_> {
    /// Stores the ports of a first fragment, or the identifier of an echo message.
    pub(crate) fn first(self, frame: &[u8], packet: &Packet, zone: PortId) {
        let identifies = packet.has_ports() || packet.is_icmp();
        let Some(table) = self.table else {
            return;
        };
        // Only the first fragment of an IPv6 datagram has its protocol.
        if identifies || packet.shape.family == Family::Ipv6 {
            let ports = if packet.has_ports() {
                packet.ports
            } else {
                packet.echo_ports(frame).unwrap_or(0)
            };
            table.remember(frame, packet, ports, zone);
            self.room.wake(packet, zone);
        }
    }

    /// Sets the protocol and ports of a later fragment to those of its datagram.
    pub(crate) fn later(&self, frame: &[u8], packet: &mut Packet, zone: PortId) -> Recalled {
        match &self.table {
            Some(table) => table.recall(frame, packet, zone),
            None => Recalled::Unknown,
        }
    }

    /// Holds a later fragment until its first one arrives, and returns the verdict.
    pub(crate) fn hold(
        self,
        frame: &[u8],
        packet: &Packet,
        arrival: Arrival,
        stats: &mut Stats,
    ) -> Verdict {
        Verdict::Drop(match self.table {
            Some(_) => self.room.hold(frame, packet, arrival, stats),
            None => DropReason::FragmentWithoutFirst,
        })
    }
}

/// Returns true if a later fragment can only be assigned by its first one.
pub(crate) fn needs_first(packet: &Packet) -> bool {
    packet.has_ports()
        || packet.is_icmp()
        || (packet.shape.family == Family::Ipv6 && ipv6::is_extension(packet.protocol))
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
