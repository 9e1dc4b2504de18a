//! Pinning of flows to their backend, independent of changes of the Maglev table.
//!
//! | what comes | what is done |
//! |---|---|
//! | a segment of a pinned TCP flow | its backend, healthy or not |
//! | a packet of any other pinned flow | its backend, unless that is unhealthy: then Maglev chooses, and the flow is pinned again |
//! | the backend is gone, or a SYN comes and the backend gets no new flows of the rule | Maglev chooses, and the flow is pinned again |
//! | a SYN of a closing flow, or a SYN long after the flow's last packet | Maglev chooses, and the flow is pinned again: half-open, so that the SYN's retransmissions follow it |
//! | SYN, no flow | Maglev's choice, pinned half-open |
//! | another TCP segment, no flow, and its slot changed within the rule's idle timeout | Maglev's choice, not pinned: it may be of the slot's former owner |
//! | anything else, no flow | Maglev's choice, pinned established (it began at another mux) |
//! | FIN or RST, an ICMP error or a later fragment, no flow | Maglev's choice, not pinned |
//!
//! A FIN or RST makes a flow closing, and any other segment except a SYN makes it established
//! again: without sequence numbers, a forged RST looks like a real one, and only later segments
//! show the difference.
//!
//! A connection that began at another mux before its slot changed is at the former owner, and the
//! host of the present owner passes its segments on. If it were pinned to the present owner, it
//! would break with that owner's host. Once the slot has not changed for the idle timeout, a live
//! connection belongs to the present owner, or takes the detour until it ends.
//!
//! A SYN on a closing flow asks for a new connection. The old pin may be to a backend that got the
//! flow only for a while, for example when other backends failed their probes. Hosts know the owners
//! of slots, but not the pins of muxes: after the death of its mux, a connection is found only at an
//! owner.
//!
//! The end of a connection does not always show: a client that closes first acknowledges the server's
//! FIN at last, which looks like a flow that goes on, and a FIN may take its way by another mux. So a
//! SYN also asks for a new connection if the flow was quiet for longer than a SYN is repeated or
//! delayed. Earlier ones follow the pin: a copy of the SYN that began the connection must not move
//! it.

use core::time::Duration;

use super::{Chosen, Lane};
use crate::flow::table::{Found, Inserted, Probe};
use crate::flow::{Addresses, FlowKey, FlowState, FlowTable, Table, Ticks};
use crate::limit::SourceLimiter;
use crate::observe::{FlowStep, Observe, Step};
use crate::packet::{Family, Packet};
use crate::snapshot::owners::Generations;
use crate::snapshot::{BackendId, Snapshot};
use crate::stats::{BackendCounters, RuleCounters};
use crate::time::Clock;
use crate::verdict::DropReason;
use crate::wire::protocol;
use crate::wire::tcp::Flags;

/// Timeout of half-open and reset flows: 4 minutes (RFC 5382 §5, REQ-5), or the rule's idle timeout
/// if that is shorter. A full table evicts them sooner.
const TRANSITORY: Ticks = Ticks::from_duration(Duration::from_secs(240));

/// A SYN so long after the last packet of an established flow is no copy of the one that began it, but
/// for ticks that are not over: between 1.07 s and 2.15 s.
const QUIET: Ticks = Ticks(2);

/// A SYN so long after the last SYN of a half-open flow is no retransmission. Their intervals double
/// from 1 s on (RFC 6298 §5.5): with Linux's six retransmissions, the last one follows after 32 s.
const QUIET_HALF_OPEN: Ticks = Ticks::from_duration(Duration::from_secs(64));

/// The flow table, and what pinning reads and counts beside it.
pub(super) struct Pinner<'a, 's, 'm> {
    pub(super) snapshot: &'a Snapshot<'s>,
    pub(super) flows: &'a mut FlowTable<'m>,
    pub(super) rules: &'a mut [RuleCounters],
    pub(super) backends: &'a mut [BackendCounters],
    pub(super) sources: &'a mut SourceLimiter<'m>,
    /// The change counters of the tables when the lanes' flows were looked up.
    pub(super) before: &'a Changes,
    /// The times at which snapshots were installed, and the clock.
    pub(super) since: (&'a Generations, &'a Clock),
}

/// The change counters of the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Changes {
    ipv4: u64,
    ipv6: u64,
}

impl Changes {
    pub(super) fn of(flows: &FlowTable<'_>) -> Self {
        Self {
            ipv4: flows.ipv4.changes(),
            ipv6: flows.ipv6.changes(),
        }
    }
}

impl Pinner<'_, '_, '_> {
    /// Returns the backend of a lane's flow.
    #[inline]
    pub(super) fn backend(self, lane: &Lane, seen: &mut impl Observe) -> Chosen {
        let mut counters = Counters {
            snapshot: self.snapshot,
            rules: self.rules,
            backends: self.backends,
            sources: self.sources,
            since: self.since,
        };
        match lane.packet.shape.family {
            Family::Ipv4 => {
                let (table, key) = (&mut self.flows.ipv4, lane.packet.ipv4_key());
                let is_same = table.changes() == self.before.ipv4;
                backend(table, &key, is_same, lane, &mut counters, seen)
            }
            Family::Ipv6 => {
                let (table, key) = (&mut self.flows.ipv6, lane.packet.ipv6_key());
                let is_same = table.changes() == self.before.ipv6;
                backend(table, &key, is_same, lane, &mut counters, seen)
            }
        }
    }
}

/// Looks up all lanes' flows in their primary buckets, and prefetches the secondary buckets of
/// flows that are not there.
#[inline]
pub(super) fn look_up(flows: &FlowTable<'_>, lanes: &mut [Lane]) {
    for lane in lanes {
        lane.probe = match lane.packet.shape.family {
            Family::Ipv4 => probe(&flows.ipv4, lane.flow_hash, &lane.packet.ipv4_key()),
            Family::Ipv6 => probe(&flows.ipv6, lane.flow_hash, &lane.packet.ipv6_key()),
        };
    }
}

/// Returns the hash of a packet's flow in the table, after prefetching its cache line.
#[inline]
pub(super) fn hash(flows: &FlowTable<'_>, packet: &Packet) -> u64 {
    match packet.shape.family {
        Family::Ipv4 => {
            let hash = flows.ipv4.hash(&packet.ipv4_key());
            flows.ipv4.prefetch(hash);
            hash
        }
        Family::Ipv6 => {
            let hash = flows.ipv6.hash(&packet.ipv6_key());
            flows.ipv6.prefetch(hash);
            hash
        }
    }
}

struct Counters<'a, 's, 'm> {
    snapshot: &'a Snapshot<'s>,
    rules: &'a mut [RuleCounters],
    backends: &'a mut [BackendCounters],
    sources: &'a mut SourceLimiter<'m>,
    since: (&'a Generations, &'a Clock),
}

/// Looks up a flow in its primary bucket, and prefetches the secondary bucket if it will be read.
#[inline]
pub(super) fn probe<A: Addresses>(table: &Table<'_, A>, hash: u64, key: &FlowKey<A>) -> Probe {
    let probe = table.probe(hash, key);
    if matches!(probe, Probe::Displaced | Probe::AbsentFull) {
        table.prefetch_secondary(hash);
    }
    probe
}

#[inline]
fn backend<A: Addresses>(
    table: &mut Table<'_, A>,
    key: &FlowKey<A>,
    is_same: bool,
    lane: &Lane,
    counters: &mut Counters<'_, '_, '_>,
    seen: &mut impl Observe,
) -> Chosen {
    // An insertion by an earlier lane of the burst may have moved this flow, or made it.
    let probe = if is_same {
        lane.probe
    } else {
        table.probe(lane.flow_hash, key)
    };
    let found = match probe {
        Probe::Found(found) => Some(found),
        Probe::Displaced => table.probe_secondary(lane.flow_hash, key),
        Probe::Absent | Probe::AbsentFull => None,
    };
    match found {
        Some(found) => pinned(table, found, lane, counters, seen),
        None => unpinned(table, key, lane, counters, seen),
    }
}

/// Returns the backend of a flow in the table.
#[inline]
fn pinned<A: Addresses>(
    table: &mut Table<'_, A>,
    found: Found,
    lane: &Lane,
    counters: &mut Counters<'_, '_, '_>,
    seen: &mut impl Observe,
) -> Chosen {
    let Counters { snapshot, .. } = counters;
    let packet = &lane.packet;
    let index_before = snapshot.backend_index(BackendId::from_value(table.value(found)));
    let is_over = packet.opens() && is_over(table, found, lane, snapshot);
    let stays = index_before.filter(|&index| {
        if packet.protocol == protocol::TCP {
            !packet.opens() || !is_over && snapshot.gets_new_flows(lane.rule, packet, index)
        } else {
            lane.only_follows || snapshot.keeps_flows(lane.rule, index)
        }
    });
    let index = match stays {
        Some(index) => {
            seen.step(
                lane.frame.into(),
                Step::Flow(FlowStep::Hit(table.state(found))),
            );
            index
        }
        None => {
            let chosen = snapshot.backend_in(lane.first_backend, lane.table_index as usize);
            let (chosen, backend) = chosen.ok_or(DropReason::NoBackend)?;
            table.set_value(found, backend.id().get());
            let step = match index_before == Some(chosen) {
                true => FlowStep::Hit(table.state(found)),
                false => FlowStep::Repinned,
            };
            seen.step(lane.frame.into(), Step::Flow(step));
            chosen
        }
    };
    if !lane.only_follows {
        let idle = snapshot
            .rule(lane.rule)
            .map_or(TRANSITORY, |rule| rule.idle_timeout);
        let before = table.state(found);
        // A SYN alone does not end a flow that stays with its backend.
        let begins_anew = is_over && (before == FlowState::Closing || index_before != Some(index));
        table.update_with(found, |state| {
            let state = next_state(state, packet, begins_anew);
            (state, timeout(state, packet.flags, idle))
        });
        if before == FlowState::HalfOpen && stays.is_some() {
            note_answer(counters, index, packet);
        }
    }
    Ok(index)
}

/// Returns true if a SYN on a pinned flow asks for a new connection.
#[inline(never)]
fn is_over<A: Addresses>(
    table: &Table<'_, A>,
    found: Found,
    lane: &Lane,
    snapshot: &Snapshot<'_>,
) -> bool {
    let (state, left) = (table.state(found), table.left(found));
    let most = match state {
        FlowState::HalfOpen => QUIET_HALF_OPEN,
        FlowState::Established => QUIET,
        FlowState::Closing => return true,
    };
    let rule = snapshot.rule(lane.rule);
    let full = rule.map(|rule| timeout(state, Flags::default(), rule.idle_timeout));
    full.is_some_and(|full| full.0.saturating_sub(left.0) >= most.0)
}

/// Counts the second packet of a flow that began with a SYN: the client got an answer, or
/// retransmits.
#[inline(never)]
fn note_answer(counters: &mut Counters<'_, '_, '_>, backend: u32, packet: &Packet) {
    let slot = counters
        .snapshot
        .backend(backend)
        .map(|backend| backend.id().slot());
    let Some(counters) = slot.and_then(|slot| counters.backends.get_mut(slot)) else {
        return;
    };
    if packet.opens() {
        counters.failures += 1;
    } else if !packet.flags.contains(Flags::RST) {
        counters.accepted += 1;
    }
}

/// Returns the backend of a flow that is not in the table, and pins the flow if necessary.
#[inline]
fn unpinned<A: Addresses>(
    table: &mut Table<'_, A>,
    key: &FlowKey<A>,
    lane: &Lane,
    counters: &mut Counters<'_, '_, '_>,
    seen: &mut impl Observe,
) -> Chosen {
    let Counters {
        snapshot,
        rules,
        backends,
        sources,
        since,
    } = counters;
    let packet = &lane.packet;
    if packet.is_martian() {
        return Err(DropReason::Martian);
    }
    let chosen = snapshot.backend_in(lane.first_backend, lane.table_index as usize);
    let (Some((index, backend)), Some(rule)) = (chosen, snapshot.rule(lane.rule)) else {
        return Err(DropReason::NoBackend);
    };
    let goes_on = packet.protocol == protocol::TCP && !packet.opens();
    if lane.only_follows
        || packet.flags.intersects(Flags::FIN.with(Flags::RST))
        || goes_on && may_be_anothers(snapshot, lane, rule.idle_timeout, *since)
    {
        seen.step(lane.frame.into(), Step::Flow(FlowStep::Miss));
        return Ok(index);
    }
    if !sources.allow(packet) {
        if packet.opens() {
            return Err(DropReason::SourceLimit);
        }
        // The flow may have begun at another mux.
        seen.step(lane.frame.into(), Step::Flow(FlowStep::Refused));
        return Ok(index);
    }
    let state = if packet.opens() {
        FlowState::HalfOpen
    } else {
        FlowState::Established
    };
    let timeout = timeout(state, packet.flags, rule.idle_timeout);
    let id = backend.id();
    let inserted = table.insert(lane.flow_hash, key, id.get(), state, timeout);
    if inserted != Inserted::Refused {
        if let Some(counters) = rules.get_mut(rule.slot()) {
            counters.flows += 1;
        }
        if let Some(counters) = backends.get_mut(id.slot()) {
            counters.flows += 1;
        }
    }
    let step = match inserted {
        Inserted::Pinned => FlowStep::Pinned,
        Inserted::Evicted => FlowStep::PinnedByEviction,
        Inserted::Refused => FlowStep::Refused,
    };
    seen.step(lane.frame.into(), Step::Flow(step));
    Ok(index)
}

/// Returns true if a live connection may have begun before its slot changed.
#[inline(never)]
fn may_be_anothers(
    snapshot: &Snapshot<'_>,
    lane: &Lane,
    idle: Ticks,
    (generations, clock): (&Generations, &Clock),
) -> bool {
    let age = snapshot.age_of(lane.table_index as usize);
    age.is_some_and(|age| {
        let since = clock.passed().since(generations.time_of(age));
        Ticks::from_duration(since) < idle
    })
}

/// Returns the state of a flow after a client's packet.
#[inline]
fn next_state(state: FlowState, packet: &Packet, begins_anew: bool) -> FlowState {
    if packet.protocol != protocol::TCP {
        FlowState::Established
    } else if packet.flags.intersects(Flags::FIN.with(Flags::RST)) {
        FlowState::Closing
    } else if begins_anew {
        FlowState::HalfOpen
    } else if packet.flags.opens() {
        state
    } else {
        FlowState::Established
    }
}

/// Returns the timeout of a flow after a packet with these flags.
#[inline]
fn timeout(state: FlowState, flags: Flags, idle: Ticks) -> Ticks {
    match state {
        // A FIN closes only one direction: the server may continue to send, and pause.
        FlowState::Closing if !flags.contains(Flags::RST) => idle,
        FlowState::HalfOpen | FlowState::Closing => TRANSITORY.min(idle),
        FlowState::Established => idle,
    }
}

/// Returns the timeout of a flow with this remaining time, by its rule's idle timeout; `None` if
/// its last packet was a FIN or a RST, which cannot be distinguished.
pub(super) fn timeout_of(state: FlowState, idle: Ticks, left: Ticks) -> Option<Ticks> {
    match state {
        FlowState::Closing if left > TRANSITORY || idle <= TRANSITORY => Some(idle),
        FlowState::Closing => None,
        FlowState::HalfOpen | FlowState::Established => {
            Some(timeout(state, Flags::default(), idle))
        }
    }
}
