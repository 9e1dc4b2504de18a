//! Work that no packet triggers: expiring connections, resetting their ends and freeing ports.

use core::ops::Deref;

use super::{Pipeline, Role, Table, leave_as_made};
use crate::answer::reset::{self, Numbers};
use crate::counters;
use crate::frame::{Burst, Frame};
use crate::limit::Own;
use crate::link::Link;
use crate::meter;
use crate::nat::connection::Connection;
use crate::nat::ports::{self, Given};
use crate::nat::rewrite::Rewrite;
use crate::nat::table::Fate;
use crate::nat::{ConnectionState, Direction, NatTable, NatTables, PortTable};
use crate::snapshot::Snapshot;
use crate::snapshot::locals::Local;
use crate::stats::{BackendCounters, SnatCounters};
use crate::time::Instant;
use crate::verdict::{PortId, Verdict};
use crate::wire::tcp::Flags;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Checks some connections, and ends those that have expired or whose backend is gone. Returns
    /// the number of spare frames that it used.
    pub(crate) fn sweep<R: Role>(&mut self, now: Instant, spare: &mut Burst<'_>) -> usize {
        let mut used = 0;
        if self.tables.connections.ipv4.is_due(now) {
            self.sweep_family::<u64, R>(now, spare, &mut used);
        }
        if self.tables.connections.ipv6.is_due(now) {
            self.sweep_family::<[u64; 4], R>(now, spare, &mut used);
        }
        used
    }

    fn sweep_family<A: Table, R: Role>(
        &mut self,
        now: Instant,
        spare: &mut Burst<'_>,
        used: &mut usize,
    ) {
        let Self {
            snapshot,
            tables,
            limits,
            stats,
            ..
        } = self;
        let snapshot: &Snapshot<'_> = snapshot;
        let NatTables {
            connections,
            backends,
            snat,
            snat_ports,
            links,
            vms,
            ..
        } = tables;
        let links = A::links(links);
        A::table(connections).sweep(now, |number, connection, is_past| {
            if !snapshot.has_rule(connection.rule()) {
                connection.leave_rule();
            }
            let local = snapshot.nat.local(connection.server());
            let is_unhealthy = connection.resets()
                && local
                    .is_some_and(|local| snapshot.is_unhealthy(connection.rule(), local.backend));
            let is_removed = local.is_none() && !R::KEEPS_REMOVED;
            if !is_past && !is_removed && !is_unhealthy {
                return Fate::Stays;
            }
            // The connections of a moved vm are at its new host.
            let has_moved = is_removed && snapshot.has_moved(connection.server());
            if connection.resets() && !has_moved {
                // Two RSTs are needed, one for each end.
                if spare.len() >= 2 && spare.len() < *used + 2 {
                    return Fate::Waits;
                }
                let opened_by = links.get(number as usize).copied();
                for way in [Direction::Inward, Direction::Outward] {
                    let to = R::way_to(snapshot, connection, way, opened_by);
                    let told = limits.allow(Own::Reset)
                        && spare.get_mut(*used).is_some_and(|frame| {
                            let told = tell::<A, R>(snapshot, frame, to, connection, way);
                            if let (true, Some(port)) = (R::METERS, told)
                                && port != snapshot.underlay().port
                            {
                                let kind = (connection.is_inside(), Direction::Inward);
                                meter::count(vms, port, kind, frame.len());
                            }
                            told.is_some()
                        });
                    *used += usize::from(told);
                    stats.resets += u64::from(told);
                    stats.resets_suppressed += u64::from(!told);
                }
            }
            forget(snapshot, connection, backends, (snat, snat_ports));
            Fate::Ends
        });
    }

    pub(super) fn name_counters(&mut self) {
        let NatTables {
            rules,
            backends,
            snat,
            security,
            vms,
            ..
        } = &mut self.tables;
        counters::name(&self.snapshot, rules, backends, snat);
        counters::name_security(&self.snapshot, security);
        meter::name(&self.snapshot, vms);
    }

    /// Recounts the users of SNAT ports from all connections, since blocks have moved.
    pub(super) fn count_ports(&mut self) {
        let Self {
            snapshot, tables, ..
        } = self;
        let snapshot: &Snapshot<'_> = snapshot;
        tables.snat_ports.clear();
        for local in snapshot.nat.locals() {
            if let Some(counters) = tables.snat.get_mut(local.counters as usize) {
                let granules = |block| snapshot.nat.granules_of(block).len() as u64;
                counters.ports = 8 * snapshot
                    .nat
                    .blocks_of(local)
                    .iter()
                    .map(granules)
                    .sum::<u64>();
                counters.used = 0;
                counters.connections = 0;
            }
        }
        let NatTable { ipv4, ipv6, .. } = &tables.connections;
        for connection in ipv4.all() {
            note_port(
                snapshot,
                connection,
                &mut tables.snat,
                &mut tables.snat_ports,
            );
        }
        for connection in ipv6.all() {
            note_port(
                snapshot,
                connection,
                &mut tables.snat,
                &mut tables.snat_ports,
            );
        }
    }
}

/// Turns a spare frame into the RST that goes in the direction `way` to one end of a connection, and returns its
/// port.
fn tell<A: Table, R: Role>(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    to: Option<(PortId, Link)>,
    connection: &Connection<A>,
    way: Direction,
) -> Option<PortId> {
    let (port, link) = to?;
    // A packet in the direction `way` goes to the end whose own packets have the other direction.
    let (sequence, acknowledgement) = connection.sequences().reset_to(way.reverse());
    // The opener of a taken-up connection expects numbers from the middle of the connection.
    let answered = connection.state() != ConnectionState::SynSent
        || way != connection.opener().reverse()
        || connection.is_taken_up();
    let numbers = Numbers {
        sequence: if answered { sequence } else { 0 },
        acknowledgement,
        flags: Flags::RST.with(Flags::ACK),
    };
    reset::emit(frame, &link, connection.translated(way), numbers)?;
    if connection.is_internal()
        && let Some(tunnel) = R::tunnel(snapshot, connection, way)
    {
        leave_as_made(snapshot, tunnel, frame, connection.zone()).ok()?;
    }
    frame.set_verdict(Verdict::Forward(port));
    Some(port)
}

/// Returns the backend that opened an outbound connection; `None` if it is gone, or if the
/// connection came from outside.
fn opener_of<'n, A: Rewrite>(
    snapshot: &'n Snapshot<'_>,
    connection: &Connection<A>,
) -> Option<&'n Local> {
    match connection.opener() {
        Direction::Outward => snapshot.nat.local(connection.server()),
        Direction::Inward => None,
    }
}

/// Returns the port that a connection was given, if any.
fn given_port<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    ports: &PortTable<'_>,
) -> Option<Given> {
    if connection.opener() == Direction::Inward {
        return ports::given_to_peer(ports, connection);
    }
    let local = opener_of(snapshot, connection)?;
    ports::given_to_local(ports, &snapshot.nat, local, connection)
}

/// Counts a new connection.
pub(super) fn note_made<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    tables: &mut NatTables<'_>,
) {
    note_port(
        snapshot,
        connection,
        &mut tables.snat,
        &mut tables.snat_ports,
    );
    if let Some(counters) = connection.rule().counters(&mut tables.rules) {
        counters.flows += 1;
    }
    if let Some(local) = snapshot.nat.local(connection.server())
        && let Some(counters) = tables.backends.get_mut(local.counters as usize)
    {
        counters.flows += 1;
        counters.live += 1;
    }
}

/// Counts an imported connection: it is live here, but did not begin here.
pub(super) fn note_imported<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    tables: &mut NatTables<'_>,
) {
    note_port(
        snapshot,
        connection,
        &mut tables.snat,
        &mut tables.snat_ports,
    );
    if !connection.state().is_over()
        && let Some(local) = snapshot.nat.local(connection.server())
        && let Some(counters) = tables.backends.get_mut(local.counters as usize)
    {
        counters.live += 1;
    }
}

/// Counts the end of a connection.
pub(super) fn forget<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    backends: &mut [BackendCounters],
    (snat, ports): (&mut [SnatCounters], &mut PortTable<'_>),
) {
    forget_port(snapshot, connection, snat, ports);
    if connection.state().is_over() {
        return; // no longer counted as live
    }
    if let Some(local) = snapshot.nat.local(connection.server())
        && let Some(counters) = backends.get_mut(local.counters as usize)
    {
        counters.live = counters.live.saturating_sub(1);
    }
}

/// Counts a connection among the users of its port.
fn note_port<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    snat: &mut [SnatCounters],
    ports: &mut PortTable<'_>,
) {
    let given = given_port(snapshot, connection, ports);
    if let Some(given) = &given {
        ports.take(&given.pool, given.place);
    }
    if let Some(local) = opener_of(snapshot, connection)
        && let Some(counters) = snat.get_mut(local.counters as usize)
    {
        counters.connections += 1;
        let place = given.and_then(|given| given.among_all);
        let is_first = place.is_some_and(|place| ports.add_user(place));
        counters.used += u64::from(is_first);
    }
}

/// Removes a connection from the users of its port.
fn forget_port<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    snat: &mut [SnatCounters],
    ports: &mut PortTable<'_>,
) {
    let given = given_port(snapshot, connection, ports);
    if let Some(given) = &given {
        ports.release(&given.pool, given.place);
    }
    if let Some(local) = opener_of(snapshot, connection)
        && let Some(counters) = snat.get_mut(local.counters as usize)
    {
        counters.connections = counters.connections.saturating_sub(1);
        let place = given.and_then(|given| given.among_all);
        let was_last = place.is_some_and(|place| ports.remove_user(place));
        counters.used -= u64::from(was_last).min(counters.used);
    }
}
