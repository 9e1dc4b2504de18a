//! The stages that all translating roles share: finding a packet's connection and translating the
//! packet.

mod answers;
mod direct;
mod establish;
mod family;
mod follow;
mod lane;
mod list;
mod plain;
mod report;
mod role;
mod state;
mod sweep;
mod take_up;
mod unusual;
mod via;

use core::ops::Deref;
use core::time::Duration;

pub(crate) use self::family::Table;
pub(crate) use self::lane::Lane;
use self::lane::hash;
pub(crate) use self::report::{clamped_mss, report_error};
use self::report::{report_from, send_back, way_back};
pub(crate) use self::role::Role;
pub(crate) use self::take_up::{goes_on, policy};
use super::{DirectFlows, NatOptions, NatTable, NatTables};
use crate::counters::{self, CounterMemory, CounterSizes};
use crate::fragments::FragmentRoom;
use crate::frame::Frame;
use crate::limit::{Limits, SourceLimiter};
use crate::meter;
use crate::nat::tcp::Direction;
use crate::observe::{Observe, Step};
use crate::packet::{Family, Packet};
use crate::snapshot::owners::{Generations, Past};
use crate::snapshot::{BackendKey, Rejected, RuleKey, Snapshot};
use crate::stats::{BackendCounters, RuleCounters, SecurityCounters, Stats, VmCounters};
use crate::time::{Clock, Instant};
use crate::tunnel::encapsulation::Template;
use crate::verdict::{DropReason, PortId, Verdict};

pub(crate) use self::establish::{
    Asked, Begins, Elsewhere, NO_CONNECTION, Opened, Refusal, TakeUp,
};
pub(crate) use self::plain::{Origin, PlainLane};

/// Everything but the lanes, so that the stages can borrow both.
pub(crate) struct Pipeline<'m, S> {
    pub(crate) snapshot: S,
    pub(crate) tables: NatTables<'m>,
    pub(crate) options: NatOptions,
    clock: Clock,
    /// The times at which snapshots were installed.
    generations: Generations,
    pub(crate) limits: Limits,
    pub(crate) sources: SourceLimiter<'m>,
    pub(crate) room: FragmentRoom<'m>,
    /// Flows of vms with access lists that have no connection.
    pub(crate) direct_flows: DirectFlows<'m>,
    pub(crate) stats: Stats,
    /// True if counters have moved since the last snapshot, so that users of SNAT ports have to be
    /// recounted.
    has_new_counters: bool,
    /// The start of take-up: connections that began before it may be taken up.
    pub(crate) takes_up_since: Option<Instant>,
}

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Pipeline<'m, S> {
    pub(crate) fn new(snapshot: S, tables: NatTables<'m>, options: NatOptions) -> Self {
        let mut pipeline = Self {
            generations: Generations::new(snapshot.generation(), Instant::ZERO),
            snapshot,
            tables,
            options,
            clock: Clock::default(),
            limits: Limits::new(&options.rates()),
            sources: SourceLimiter::none(),
            room: FragmentRoom::none(),
            direct_flows: DirectFlows::none(),
            stats: Stats::default(),
            has_new_counters: false,
            takes_up_since: None,
        };
        pipeline.name_counters();
        pipeline.count_ports();
        pipeline
    }

    pub(crate) fn set_options(&mut self, options: NatOptions) {
        self.limits.set_rates(&options.rates());
        self.options = options;
    }

    pub(crate) fn has_counters_for(&self, snapshot: &Snapshot<'_>) -> bool {
        let NatTables {
            rules,
            backends,
            security,
            vms,
            ..
        } = &self.tables;
        let sizes = CounterSizes {
            rules: rules.len(),
            backends: backends.len(),
            security: security.len(),
            vms: vms.len(),
        };
        sizes.fit(snapshot)
    }

    pub(crate) fn replace_counters(
        &mut self,
        mut counters: CounterMemory<'m>,
    ) -> CounterMemory<'m> {
        let tables = &mut self.tables;
        counters::replace(&mut tables.rules, &mut counters.rules);
        counters::replace(&mut tables.backends, &mut counters.backends);
        counters::replace(&mut tables.snat, &mut counters.snat);
        counters::replace(&mut tables.security, &mut counters.security);
        counters::replace(&mut tables.vms, &mut counters.vms);
        self.name_counters();
        self.has_new_counters = true;
        counters
    }

    /// Installs another snapshot, and returns the old one.
    pub(crate) fn install(&mut self, snapshot: S) -> Result<S, Rejected<S>> {
        if let Err(error) = snapshot.check_after(&self.snapshot) {
            return Err(Rejected { snapshot, error });
        }
        let old = core::mem::replace(&mut self.snapshot, snapshot);
        let generation = self.snapshot.generation();
        self.generations.install(generation, self.clock.passed());
        self.name_counters();
        if !self.snapshot.nat.has_ports_as(&old.nat) || self.has_new_counters {
            self.has_new_counters = false;
            self.count_ports();
        }
        self.tables.connections.ipv4.purge();
        self.tables.connections.ipv6.purge();
        Ok(old)
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            connections: self.tables.connections.stats(),
            ..self.stats
        }
    }

    pub(crate) fn rule_counters(&self, rule: impl RuleKey) -> Option<RuleCounters> {
        let rule = self.snapshot.rule(rule.index_in(&self.snapshot)?)?;
        self.tables.rules.get(rule.slot()).copied()
    }

    /// Counters of a rule of an access list, by the index of the list and its index among all rules of the list.
    pub(crate) fn security_counters(&self, list: usize, rule: usize) -> Option<SecurityCounters> {
        let place = self.snapshot.nat.security.counters_of(list, rule)?;
        self.tables.security.get(place).copied()
    }

    /// Traffic of the vm at a port; `None` if there is no vm, or no memory for its counters.
    pub(crate) fn vm_counters(&self, port: PortId) -> Option<VmCounters> {
        let row = self.tables.vms.get(usize::from(port.0)).copied();
        row.filter(VmCounters::is_used)
    }

    pub(crate) fn backend_counters(&self, backend: impl BackendKey) -> Option<BackendCounters> {
        let id = backend.id_in(&self.snapshot)?;
        let counters = self.tables.backends.get(id.slot()).copied();
        counters.filter(|c| c.id == id.get())
    }

    /// Sets the clock of all parts, and returns the time that they use.
    #[inline]
    pub(crate) fn set_clock(&mut self, now: Instant) -> Instant {
        let now = self.clock.advance(now);
        self.tables.connections.advance(now);
        if let Some(fragments) = &mut self.tables.fragments {
            fragments.advance(now);
        }
        self.room.advance(now);
        self.direct_flows.advance(now);
        self.limits.advance(now);
        self.sources.advance(now);
        now
    }

    /// Returns the time by the clock that [`set_clock`](Self::set_clock) sets.
    pub(crate) fn passed(&self) -> Instant {
        self.clock.passed()
    }

    /// Returns the time since a slot of a table changed its owner, if that is known. Unknown
    /// changes are older.
    pub(crate) fn time_since_change(&self, past: &Past) -> Option<Duration> {
        let changed = self.generations.time_of(past.age()?);
        Some(self.clock.passed().since(changed))
    }

    /// Stage 1 of the slow path: parses a frame, finds its port and direction, and hashes its
    /// tuple. Returns false if the frame concerns no connection and has its verdict.
    // Out of line, so that the fast path's loop keeps its values in registers.
    #[inline(never)]
    fn classify<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        place: u8,
        lane: &mut Lane,
        last: &mut R::Last,
        seen: &mut impl Observe,
    ) -> bool {
        lane.len = frame.len() as u32;
        lane.frame = place;
        (lane.error, lane.is_public, lane.is_ip) = (None, false, false);
        match R::arrive(self, frame, lane, last, seen) {
            Ok(()) => {
                let connections = &self.tables.connections;
                match lane.packet.shape.family {
                    Family::Ipv4 => lane.hash = hash(&connections.ipv4, lane),
                    Family::Ipv6 => lane.hash = hash(&connections.ipv6, lane),
                }
                true
            }
            Err(verdict) => {
                self.conclude::<R>(frame, lane, verdict, seen);
                false
            }
        }
    }

    /// Stage 2 of the slow path: prefetches the line of a lane's connection.
    #[inline]
    pub(crate) fn look_up(&self, lane: &mut Lane) {
        let NatTable { ipv4, ipv6, .. } = &self.tables.connections;
        lane.candidate = match lane.packet.shape.family {
            Family::Ipv4 => ipv4.candidate(lane.hash),
            Family::Ipv6 => ipv6.candidate(lane.hash),
        };
    }

    /// Stage 3 of the slow path: translates a packet to the other tuple of its connection. Makes
    /// the connection if it is missing and the packet may begin one.
    #[inline(never)] // as `classify`
    fn translate<R: Role>(&mut self, frame: &mut Frame<'_>, lane: &Lane, seen: &mut impl Observe) {
        let result = match lane.packet.shape.family {
            Family::Ipv4 => self.translate_lane::<u64, R>(frame, lane, seen),
            Family::Ipv6 => self.translate_lane::<[u64; 4], R>(frame, lane, seen),
        };
        match result {
            Ok(port) => {
                let verdict = Verdict::Forward(port);
                frame.set_verdict(verdict);
                self.stats.forwarded.add(lane.len as usize);
                seen.step(lane.frame.into(), Step::Done(verdict));
            }
            Err(verdict) => self.conclude::<R>(frame, lane, verdict, seen),
        }
    }

    /// Gives a frame its final verdict, or finds another way for it if it belongs to no connection.
    #[cold]
    pub(crate) fn conclude<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        verdict: Verdict,
        seen: &mut impl Observe,
    ) {
        let verdict = match verdict {
            Verdict::Pass => R::pass(self, frame, lane, seen),
            Verdict::Forward(port) => R::deliver(self, frame, lane, port, seen),
            _ => verdict,
        };
        self.meter::<R>(frame, lane, verdict);
        finish(&mut self.stats, frame, lane, verdict, seen);
    }

    /// Counts a frame of no connection that a vm has sent, or is to get. The frame is as it leaves.
    #[cold]
    fn meter<R: Role>(&mut self, frame: &Frame<'_>, lane: &Lane, verdict: Verdict) {
        if !R::METERS || matches!(verdict, Verdict::Drop(_)) {
            return;
        }
        let snapshot = &*self.snapshot;
        let rows = &mut self.tables.vms;
        let from_vm = lane.direction == Direction::Outward;
        let tuple = lane.own_packet().tuple();
        let other = match lane.direction {
            Direction::Inward => tuple.source,
            Direction::Outward => tuple.destination,
        };
        let is_inside = !lane.is_ip || R::is_inside(snapshot, lane.zone, other);
        if from_vm {
            let kind = (is_inside, Direction::Outward);
            meter::count(rows, lane.zone, kind, lane.len as usize);
        }
        match verdict {
            // From a vm, it is for another one of the node.
            Verdict::Forward(port) if port != snapshot.underlay().port => {
                let kind = (is_inside || from_vm, Direction::Inward);
                meter::count(rows, port, kind, frame.len());
            }
            Verdict::Reply if from_vm => {
                meter::count(rows, lane.zone, (is_inside, Direction::Inward), frame.len());
            }
            _ => {}
        }
    }
}

/// Sends a translated packet from the vm of a zone on its way through a mux or a network.
///
/// # Errors
/// The headroom is too small. The frame is then unchanged.
#[inline(never)]
pub(crate) fn leave_through(
    snapshot: &Snapshot<'_>,
    tunnel: &Template,
    frame: &mut Frame<'_>,
    packet: &Packet,
    (zone, hash): (PortId, u64),
) -> Result<(), DropReason> {
    tunnel.encapsulate(frame, packet, hash)?;
    let vni = snapshot.nat.vm_by_port(zone).map(|vm| vm.vni);
    tunnel.set_vni(frame, vni.unwrap_or_default());
    Ok(())
}

/// Encapsulates a generated frame for a vm of another host, in the network of the vm of a zone.
///
/// # Errors
/// The headroom is too small.
#[cold]
pub(crate) fn leave_as_made(
    snapshot: &Snapshot<'_>,
    tunnel: &Template,
    frame: &mut Frame<'_>,
    zone: PortId,
) -> Result<(), DropReason> {
    let mut packet = Packet::EMPTY;
    let _ = packet.read(frame.bytes());
    let hash = snapshot.hash(&packet, u64::MAX);
    leave_through(snapshot, tunnel, frame, &packet, (zone, hash))
}

/// Sets the verdict of a frame and counts it.
#[cold]
fn finish(
    stats: &mut Stats,
    frame: &mut Frame<'_>,
    lane: &Lane,
    verdict: Verdict,
    seen: &mut impl Observe,
) {
    frame.set_verdict(verdict);
    // An answer has replaced the frame: count the bytes that arrived.
    stats.count(verdict, lane.len as usize);
    seen.step(lane.frame.into(), Step::Done(verdict));
}
