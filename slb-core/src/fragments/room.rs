//! Later fragments that wait for their first one.

use core::fmt;

use super::Arrival;
use super::name::Name;
use crate::flow::Addresses;
use crate::frame::Frame;
use crate::key::{Key, Purpose};
use crate::mem::{Mem, Memory};
use crate::packet::Packet;
use crate::stats::Stats;
use crate::time::Instant;
use crate::verdict::{DropReason, PortId, Verdict};

/// The time that a later fragment waits for its first one: NAT64's FRAGMENT_MIN (RFC 6146 §3.4,
/// §4).
const WAIT_NANOS: u64 = 2 * 1_000_000_000;
/// The number of slots that the sources of one hash share.
const BUCKET: usize = 64;
/// The maximum number of slots for one source: a datagram of 64 KiB has 45 fragments, mostly in
/// order.
const SHARE: usize = BUCKET / 2;
/// No slot.
const NONE: u32 = u32::MAX;

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
    pub(super) fn hold(
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
    pub(super) fn wake(&mut self, packet: &Packet, zone: PortId) {
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
