//! Stage 3: the backends of plain packets, their outer headers and their counters.

use super::lane::{IP, Lane, NO_RUN, UNCOMMON, Words, rule_of};
use crate::flow::{FlowTable, Ticks};
use crate::frame::Frame;
use crate::snapshot::{BackendId, CompiledBackend, Snapshot};
use crate::stats::{BackendCounters, Count, RuleCounters, Stats};
use crate::tunnel::encapsulation::Inner;
use crate::verdict::Verdict;
use crate::wire::protocol;
use crate::wire::tcp::Flags;

/// The counters and tables of the last stage. Consecutive packets of one rule are counted together:
/// if each were added to the counter, each addition would wait for the one before.
pub(super) struct Sender<'p, 's> {
    pub(super) snapshot: &'p Snapshot<'s>,
    pub(super) rules: &'p mut [RuleCounters],
    pub(super) backends: &'p mut [BackendCounters],
    /// Packets and bytes that were sent.
    sent: Tally,
    /// Packets and bytes that had been sent when the run began.
    sent_before: Tally,
    syns: u64,
    /// The rule and family of the last packet.
    pub(super) run: u32,
    slot: usize,
    pub(super) first_backend: u32,
    idle_timeout: Ticks,
    /// The backends from the rule's pool on.
    pool: &'p [CompiledBackend],
    /// All Maglev slots.
    slots: &'p [u16],
}

/// Packets and bytes of a burst in one word, to use one register instead of a vector of two words.
#[derive(Clone, Copy)]
struct Tally(u64);

impl Tally {
    /// Bits of the number of packets, at most 64 in a burst. The number of bytes, less than 2^38,
    /// is above them.
    const PACKET_BITS: u32 = 8;

    #[inline(always)] // as `Sender::send`
    fn add(&mut self, len: usize) {
        self.0 += ((len as u64) << Self::PACKET_BITS) + 1;
    }

    #[inline]
    fn packets(self) -> usize {
        usize::from(self.0 as u8)
    }

    /// Returns the count since an earlier tally.
    #[inline]
    fn since(self, earlier: Self) -> Count {
        let sum = self.0 - earlier.0;
        Count {
            packets: u64::from(sum as u8),
            bytes: sum >> Self::PACKET_BITS,
        }
    }
}

impl<'p, 's> Sender<'p, 's> {
    pub(super) fn new(
        snapshot: &'p Snapshot<'s>,
        rules: &'p mut [RuleCounters],
        backends: &'p mut [BackendCounters],
    ) -> Self {
        Self {
            snapshot,
            rules,
            backends,
            sent: Tally(0),
            sent_before: Tally(0),
            syns: 0,
            run: NO_RUN,
            slot: usize::MAX,
            first_backend: 0,
            idle_timeout: Ticks::MAX,
            pool: &[],
            slots: snapshot.all_slots(),
        }
    }

    /// Counts the packets sent for the present rule, and changes to another rule.
    #[inline(always)] // a call would keep all counts in memory
    pub(super) fn turn_to(&mut self, run: u32) {
        self.end_run();
        if let Some(compiled) = self.snapshot.rule(rule_of(run)) {
            self.run = run;
            self.slot = compiled.slot();
            self.first_backend = compiled.first_backend;
            self.idle_timeout = compiled.idle_timeout;
            self.pool = self.snapshot.backends_from(compiled.first_backend);
        }
    }

    #[inline(always)] // as `turn_to`
    fn end_run(&mut self) {
        if let Some(counters) = self.rules.get_mut(self.slot) {
            counters.forwarded += self.sent.since(self.sent_before);
        }
        self.sent_before = self.sent;
    }

    /// Counts a SYN that was sent.
    #[inline(always)] // as `turn_to`
    pub(super) fn note_flags(&mut self, flags: Flags) {
        if flags.contains(Flags::SYN) {
            self.syns += count_syn(self.rules, self.slot, flags);
        }
    }

    /// Ends all runs. Returns the number of sent packets.
    #[inline]
    pub(super) fn finish(mut self, stats: &mut Stats) -> usize {
        self.end_run();
        let count = self.sent.since(Tally(0));
        stats.received += count;
        stats.forwarded += count;
        stats.syns += self.syns;
        self.sent.packets()
    }

    /// Returns the index of the next packet: the first one's plus the number of sent packets.
    #[inline]
    pub(super) fn place(&self, first: usize) -> usize {
        first + self.sent.packets()
    }

    /// Returns Maglev's choice for a packet, with the index among all backends.
    #[inline(always)] // as `send`
    pub(super) fn chosen(&self, lane: &Lane) -> Option<(u32, &'p CompiledBackend)> {
        let member = *self.slots.get(lane.table_index as usize)?;
        let backend = self.pool.get(usize::from(member))?;
        Some((self.first_backend + u32::from(member), backend))
    }

    /// Returns the backend of a packet's flow, with the index among all backends, if the flow is
    /// and stays established, and refreshes the flow. Returns `None`, without a change, if the slow
    /// path has to decide.
    #[inline(always)] // as `send`
    pub(super) fn established<A: Words>(
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
            let (index, backend) = snapshot.backend_of(BackendId::from_value(value))?;
            // Of other protocols, a flow may lose a backend that is unhealthy.
            let may_lose = lane.protocol != protocol::TCP && backend.is_suspect();
            (!may_lose).then_some((index, backend))
        })
    }

    /// Sends a packet to a backend. Returns false, without a change or count, if that is
    /// impossible.
    #[inline(always)] // once for each family, with and without a table
    pub(super) fn send<A: Words>(
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
            // Placed between the two additions, which otherwise become one vector addition of six
            // instructions.
            frame.set_verdict(verdict);
            counters.forwarded.bytes += len as u64;
        } else {
            frame.set_verdict(verdict);
        }
        self.sent.add(len);
        true
    }
}

/// Counts a segment that requests a connection, and returns one, or zero for other flags.
#[cold]
#[inline(never)]
fn count_syn(rules: &mut [RuleCounters], slot: usize, flags: Flags) -> u64 {
    let count = u64::from(flags.opens());
    if let Some(counters) = rules.get_mut(slot) {
        counters.syns += count;
    }
    count
}

/// Encapsulates over IPv6, with a UDP checksum, or a tagged frame.
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
