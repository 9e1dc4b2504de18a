//! Counters, as plain structs to read, compare and subtract.

use core::ops::{AddAssign, Index, Sub};

use crate::flow::FlowStats;
pub use crate::meter::{Traffic, VmCounters};
use crate::nat::NatStats;
use crate::verdict::{DropReason, Verdict};

/// A number of packets and their bytes. A frame counts with its length on arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames.
    pub packets: u64,
    /// Bytes of the frames, from the Ethernet header on.
    pub bytes: u64,
}

impl Count {
    const ZERO: Self = Self {
        packets: 0,
        bytes: 0,
    };

    /// Counts one frame of `len` bytes.
    #[inline]
    pub fn add(&mut self, len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl Sub for Count {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            bytes: self.bytes - earlier.bytes,
        }
    }
}

/// Frames that were dropped, by reason.
///
/// ```
/// # let stats = slb_core::Stats::default();
/// use slb_core::DropReason;
///
/// assert_eq!(stats.dropped[DropReason::NoRule].packets, 0);
/// for (reason, count) in stats.dropped.iter() {
///     println!("{reason}: {} packets, {} bytes", count.packets, count.bytes);
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped([Count; DropReason::COUNT]);

impl Dropped {
    /// Yields every reason with its count, in the order of [`DropReason::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, Count)> + '_ {
        DropReason::ALL.iter().copied().zip(self.0)
    }

    /// Returns the frames dropped for any reason, including held fragments.
    pub fn total(&self) -> Count {
        let mut total = Count::ZERO;
        for count in self.0 {
            total += count;
        }
        total
    }
}

impl Default for Dropped {
    fn default() -> Self {
        Self([Count::ZERO; DropReason::COUNT])
    }
}

impl Index<DropReason> for Dropped {
    type Output = Count;

    fn index(&self, reason: DropReason) -> &Count {
        // Each reason is less than COUNT, so there is always a count.
        self.0.get(reason as usize).unwrap_or(&Count::ZERO)
    }
}

impl AddAssign for Dropped {
    fn add_assign(&mut self, other: Self) {
        for (count, other) in self.0.iter_mut().zip(other.0) {
            *count += other;
        }
    }
}

/// Counters of a dataplane. Every frame received is in exactly one of `forwarded`, `replied`,
/// `passed` and `dropped`; a fragment that waited is in two, of which `released` is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames received.
    pub received: Count,
    /// Frames to send out of one or several ports.
    pub forwarded: Count,
    /// Frames that became an answer.
    pub replied: Count,
    /// Frames that are not for the balancer.
    pub passed: Count,
    /// Dropped frames, by [`DropReason`].
    pub dropped: Dropped,
    /// Fragments that have finished waiting. Each counts twice: in `dropped` as [`DropReason::FragmentHeld`], and with
    /// its final outcome.
    pub released: Count,
    /// TCP segments that match a rule and request a connection.
    pub syns: u64,
    /// ICMP errors that match a rule by the flow that they quote.
    pub icmp_errors: u64,
    /// The flow table's own counters.
    pub flows: FlowStats,
    /// The connection table's own counters.
    pub connections: NatStats,
    /// RSTs sent: answers, and RSTs to both ends of a connection that ended.
    pub resets: u64,
    /// RSTs that were not sent, because of the limit or for lack of spare frames.
    pub resets_suppressed: u64,
    /// For a host agent: packets without a connection that it passed on to another host.
    pub passed_on: u64,
    /// For a host agent: packets that no host knew, passed on to the host that begins their flow.
    pub passed_back: u64,
    /// Connections from before the start that were taken up in the middle, at a host agent or a
    /// proxy.
    pub taken_up: u64,
    /// Frames for [public addresses](crate::spec::PublicAddress) of vms that got the vm's own
    /// address, or that a mux sent to the vm's host.
    pub public_in: Count,
    /// Frames of vms that left with a [public address](crate::spec::PublicAddress).
    pub public_out: Count,
}

impl Stats {
    /// Counts a frame of `len` bytes by its verdict.
    #[inline]
    pub(crate) fn count(&mut self, verdict: Verdict, len: usize) {
        match verdict {
            Verdict::Forward(_) | Verdict::Flood => self.forwarded.add(len),
            Verdict::Reply => self.replied.add(len),
            Verdict::Pass => self.passed.add(len),
            Verdict::Drop(reason) => {
                if let Some(count) = self.dropped.0.get_mut(reason as usize) {
                    count.add(len);
                }
            }
        }
    }

    /// Counts frames that a device dropped for a reason before the dataplane saw them: as received and as dropped.
    /// Their bytes are unknown and count as none.
    ///
    /// ```
    /// use slb_core::{DropReason, Stats};
    ///
    /// let mut stats = Stats::default();
    /// stats.count_unseen(DropReason::TooLong, 3);
    /// assert_eq!(stats.dropped[DropReason::TooLong].packets, 3);
    /// assert_eq!(stats.received, stats.accounted());
    /// ```
    pub fn count_unseen(&mut self, reason: DropReason, packets: u64) {
        let unseen = Count { packets, bytes: 0 };
        self.received += unseen;
        if let Some(count) = self.dropped.0.get_mut(reason as usize) {
            *count += unseen;
        }
    }

    /// Returns the frames dropped for any reason, except fragments that were released after
    /// waiting.
    pub fn dropped_total(&self) -> Count {
        self.dropped.total() - self.released
    }

    /// Returns the fragments that now wait for their first one.
    pub fn waiting(&self) -> Count {
        self.dropped[DropReason::FragmentHeld] - self.released
    }

    /// Returns the frames with a verdict: as many as were received.
    pub fn accounted(&self) -> Count {
        let mut total = self.dropped_total();
        total += self.forwarded;
        total += self.replied;
        total += self.passed;
        total
    }
}

/// Adds the counters of another dataplane.
impl AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.received += other.received;
        self.forwarded += other.forwarded;
        self.replied += other.replied;
        self.passed += other.passed;
        self.dropped += other.dropped;
        self.released += other.released;
        self.syns += other.syns;
        self.icmp_errors += other.icmp_errors;
        self.flows = self.flows + other.flows;
        self.connections = self.connections + other.connections;
        self.resets += other.resets;
        self.resets_suppressed += other.resets_suppressed;
        self.passed_on += other.passed_on;
        self.passed_back += other.passed_back;
        self.taken_up += other.taken_up;
        self.public_in += other.public_in;
        self.public_out += other.public_out;
    }
}

/// Counters of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounters {
    /// Frames forwarded to its backends.
    pub forwarded: Count,
    /// TCP segments that request a connection.
    pub syns: u64,
    /// Flows pinned.
    pub flows: u64,
    /// The rule's id: the counters start at zero when their slot gets another rule.
    pub(crate) id: u32,
}

impl RuleCounters {
    pub(crate) fn of(id: u32) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }
}

impl AddAssign for RuleCounters {
    fn add_assign(&mut self, other: Self) {
        self.forwarded += other.forwarded;
        self.syns += other.syns;
        self.flows += other.flows;
    }
}

/// Counters of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    /// Frames forwarded to the backend.
    pub forwarded: Count,
    /// Flows pinned to the backend, or connections made.
    pub flows: u64,
    /// Current connections, without closed ones that wait for late segments. Zero at a mux, which forgets flows without
    /// counting.
    pub live: u64,
    /// Connections that the backend accepted: at a mux, the client continued after its SYN; at
    /// other roles, the backend answered.
    pub accepted: u64,
    /// Signs of failure: a retransmitted SYN, or a RST or ICMP error in answer to the first packet,
    /// which a mux does not see.
    pub failures: u64,
    /// Id of the backend: the counters start at zero when their slot gets another owner.
    pub(crate) id: u32,
}

impl BackendCounters {
    pub(crate) fn of(id: u32) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }
}

impl AddAssign for BackendCounters {
    fn add_assign(&mut self, other: Self) {
        self.forwarded += other.forwarded;
        self.flows += other.flows;
        self.live += other.live;
        self.accepted += other.accepted;
        self.failures += other.failures;
    }
}

/// Counters of a rule of an access list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecurityCounters {
    /// Frames that the rule decided about: the first one of each connection, and all that it denied.
    pub judged: Count,
    /// Id of the rule: the counters start at zero when their slot gets another rule.
    pub(crate) id: u32,
}

impl AddAssign for SecurityCounters {
    fn add_assign(&mut self, other: Self) {
        self.judged += other.judged;
    }
}

/// The SNAT ports of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnatCounters {
    /// Ports allocated to the backend.
    pub ports: u64,
    /// Ports that at least one connection uses.
    pub used: u64,
    /// Current outbound connections.
    pub connections: u64,
    /// Outbound connections that found no port.
    pub exhausted: u64,
}

impl AddAssign for SnatCounters {
    fn add_assign(&mut self, other: Self) {
        self.ports += other.ports;
        self.used += other.used;
        self.connections += other.connections;
        self.exhausted += other.exhausted;
    }
}
