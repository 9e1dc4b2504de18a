//! Unusual packets: fragments, ICMP, other protocols, and malformed packets.

use core::net::Ipv6Addr;
use core::ops::Deref;

use super::{Lane, Pipeline, Role};
use crate::fragments::{self, Arrival, Fragments, Recalled, Taken};
use crate::frame::{BURST, Burst, Frame};
use crate::icmp;
use crate::nat::NatTable;
use crate::nat::connection::ALL_PORTS;
use crate::nat::rewrite::Rewrite;
use crate::nat::table::Connections;
use crate::observe::{Observe, Step};
use crate::packet::{Family, Part, Read};
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{self, icmpv6};

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Pipeline<'m, S> {
    /// Finds the tuple for the lookup of a packet's connection, if it is not the packet's own.
    #[cold]
    pub(crate) fn classify_unusual<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        if let Some(reason) = lane.packet.shape.fault {
            return Err(R::unmatched(&self.snapshot, lane, reason));
        }
        if lane.packet.shape.part == Part::Later {
            return self.classify_later::<R>(frame, lane, seen);
        }
        if lane.packet.is_icmp() {
            self.classify_icmp::<R>(frame, lane, seen)?;
        }
        if lane.packet.shape.part == Part::First && lane.error.is_none() {
            let packet = &lane.packet;
            self.fragments().first(frame.bytes(), packet, lane.zone);
        }
        Ok(())
    }

    fn fragments(&mut self) -> Fragments<'_, 'm> {
        Fragments {
            table: self.tables.fragments.as_mut(),
            room: &mut self.room,
        }
    }

    /// Finds the connection of a later fragment by its first fragment, or makes it wait for that
    /// one.
    fn classify_later<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let zone = lane.zone;
        let fragments = self.fragments();
        match fragments.later(frame.bytes(), &mut lane.packet, zone) {
            Recalled::Known => {
                let tuple = lane.packet.tuple();
                seen.step(lane.frame.into(), Step::FragmentPorts(tuple));
                return Ok(());
            }
            Recalled::Overlaps if R::judges(&self.snapshot, lane) => {
                return Err(Verdict::Drop(DropReason::TinyFragment));
            }
            Recalled::Overlaps => {
                return Err(R::unmatched(&self.snapshot, lane, DropReason::TinyFragment));
            }
            Recalled::Unknown if !fragments::needs_first(&lane.packet) => return Ok(()),
            Recalled::Unknown => {}
        }
        let missing = Verdict::Drop(DropReason::FragmentWithoutFirst);
        let unmatched = R::unmatched(&self.snapshot, lane, DropReason::FragmentWithoutFirst);
        if unmatched != missing && !R::judges(&self.snapshot, lane) {
            return Err(unmatched);
        }
        let arrival = Arrival {
            port: frame.port(),
            zone,
            sender: lane.sender,
            direction: lane.direction,
            len: lane.len,
        };
        let fragments = Fragments {
            table: self.tables.fragments.as_mut(),
            room: &mut self.room,
        };
        Err(fragments.hold(frame.bytes(), &lane.packet, arrival, &mut self.stats))
    }

    /// Forwards fragments that waited for their first fragment, in the spare frames after the first
    /// `used`; drops those that waited too long.
    pub(crate) fn release<R: Role>(
        &mut self,
        lanes: &mut [Lane; BURST],
        spare: &mut Burst<'_>,
        mut used: usize,
    ) {
        self.room.sweep(&mut self.stats);
        while let Some(frame) = spare.get_mut(used) {
            let arrival = match self.room.take(frame, &mut self.stats) {
                Taken::Fragment(arrival) => arrival,
                Taken::Small => {
                    used += 1;
                    continue;
                }
                Taken::Nothing => return,
            };
            let [lane, ..] = lanes;
            (lane.frame, lane.error, lane.len) = (0, None, arrival.len);
            (lane.direction, lane.zone) = (arrival.direction, arrival.zone);
            (lane.sender, lane.is_public, lane.is_ip) = (arrival.sender, false, false);
            self.stats.released.add(arrival.len as usize);
            let found = match lane.packet.read(frame.bytes()) {
                Read::Ip => {
                    lane.is_ip = true;
                    self.classify_unusual::<R>(frame, lane, &mut ())
                }
                Read::Other => Err(Verdict::Pass),
                Read::Bad(reason) => Err(Verdict::Drop(reason)),
            };
            match found {
                Ok(()) => {
                    lane.hash = self.hash(lane);
                    self.look_up(lane);
                    self.translate::<R>(frame, lane, &mut ());
                }
                Err(verdict) => self.conclude::<R>(frame, lane, verdict, &mut ()),
            }
            if matches!(frame.verdict(), Verdict::Drop(_)) {
                frame.truncate(0);
                frame.set_verdict(Verdict::Pass);
            } else {
                used += 1;
            }
        }
    }

    /// Returns the hash of a lane's key.
    pub(crate) fn hash(&self, lane: &Lane) -> u64 {
        let connections = &self.tables.connections;
        match lane.packet.shape.family {
            Family::Ipv4 => connections.ipv4.hash(&lane.key()),
            Family::Ipv6 => connections.ipv6.hash(&lane.key()),
        }
    }

    /// Finds the connection of an ICMP message: echo has an identifier instead of ports, and errors
    /// follow the connection that they quote. Link-local messages are not for the balancer.
    fn classify_icmp<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let unmatched = R::unmatched(&self.snapshot, lane, DropReason::IcmpUnmatched);
        if self.advises_about_translated::<R>(frame.bytes(), lane) {
            return Err(Verdict::Drop(DropReason::IcmpRedirect));
        }
        let packet = &lane.packet;
        let kind = icmp::kind(frame.bytes(), packet);
        let is_error = match packet.shape.family {
            Family::Ipv4 => wire::icmp::is_error(kind),
            Family::Ipv6 if icmpv6::is_link_local(kind) => {
                return Err(R::neighbour_discovery(&self.snapshot, lane));
            }
            Family::Ipv6 => icmpv6::is_error(kind),
        };
        if is_error {
            let flow = packet.quoted_flow(frame.bytes()).ok_or(unmatched)?;
            seen.step(lane.frame.into(), Step::QuotedFlow(flow.tuple()));
            let refusal = icmp::refusal(frame.bytes(), packet);
            lane.error = Some(packet.addresses);
            lane.packet = flow;
            if let Some(reason) = refusal {
                return Err(if self.is_of_connection(lane) {
                    Verdict::Drop(reason)
                } else {
                    R::unmatched(&self.snapshot, lane, reason)
                });
            }
        } else if let Some(ports) = packet.echo_ports(frame.bytes()) {
            lane.packet.ports = ports;
        }
        Ok(())
    }

    /// Returns true if an ICMP message asks a host to use another route, or to slow down, for
    /// traffic that is translated here: packets to or from a VIP, or packets with either tuple of a
    /// connection.
    #[cold]
    pub(crate) fn advises_about_translated<R: Role>(&self, frame: &[u8], lane: &Lane) -> bool {
        let packet = &lane.packet;
        if !packet.is_icmp()
            || packet.shape.part == Part::Later
            || !icmp::is_advice(packet.shape.family, icmp::kind(frame, packet))
        {
            return false;
        }
        let tuple = packet.tuple();
        let is_vip = |address| self.snapshot.is_vip_at(lane.zone, address);
        let flow = match packet.shape.family {
            Family::Ipv4 => packet.advised_flow(frame),
            Family::Ipv6 => {
                let Some(redirected) = icmp::redirected(frame, packet) else {
                    return is_vip(tuple.destination);
                };
                if is_vip(Ipv6Addr::from(redirected.destination).into()) {
                    return true;
                }
                redirected.quote.and_then(|quote| packet.flow_of(quote))
            }
        };
        let Some(flow) = flow else {
            return is_vip(tuple.destination);
        };
        let quoted = flow.tuple();
        // Check the tuple of an error about the packet, and the tuples of its receiver's own
        // packets in both directions.
        let zone = if R::SHARED { ALL_PORTS } else { lane.zone };
        let ways = [
            (flow, lane.direction, lane.zone),
            (flow.reversed(), lane.direction.reverse(), zone),
        ];
        let is_known = |(packet, direction, zone)| {
            self.is_of_connection(&Lane {
                packet,
                direction,
                zone,
                ..*lane
            })
        };
        [tuple.destination, quoted.source, quoted.destination]
            .into_iter()
            .any(is_vip)
            || ways.into_iter().any(is_known)
    }

    /// Returns true if a lane's tuple has a connection.
    fn is_of_connection(&self, lane: &Lane) -> bool {
        fn find<A: Rewrite>(table: &Connections<'_, A>, lane: &Lane) -> bool {
            let key = lane.key();
            table.find(table.hash(&key), &key).is_some()
        }
        let NatTable { ipv4, ipv6, .. } = &self.tables.connections;
        match lane.packet.shape.family {
            Family::Ipv4 => find(ipv4, lane),
            Family::Ipv6 => find(ipv6, lane),
        }
    }
}
