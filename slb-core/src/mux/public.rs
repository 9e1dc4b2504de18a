//! Packets for public addresses of vms, which the mux sends to the vm's host. No flow is pinned:
//! the address alone says where all its packets go, including ICMP errors and later fragments.

use core::ops::Deref;

use super::unusual::report;
use super::{Lane, Pipeline};
use crate::frame::Frame;
use crate::icmp;
use crate::observe::{Observe, Step};
use crate::packet::{Family, Packet, Part};
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};
use crate::wire::icmpv6;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Sends a packet for no VIP to the host of the vm whose public address it is for; returns
    /// `None` if it is for none.
    pub(super) fn send_to_public(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Option<Verdict> {
        let snapshot = &*self.snapshot;
        let networks = &snapshot.nat.networks;
        if networks.publics.is_empty() {
            return None;
        }
        let packet = lane.packet;
        let public = networks.publics.at(packet.tuple().destination)?;
        if packet.is_icmp() && packet.shape.part != Part::Later {
            let (family, kind) = (packet.shape.family, icmp::kind(frame.bytes(), &packet));
            if family == Family::Ipv6 && icmpv6::is_link_local(kind) && kind != icmpv6::REDIRECT {
                return None;
            }
            if icmp::is_advice(family, kind) {
                return Some(Verdict::Drop(DropReason::IcmpRedirect));
            }
        }
        if let Some(reason) = packet.shape.fault {
            return Some(Verdict::Drop(reason));
        }
        let tuple = packet.tuple();
        if packet.is_martian() || tuple.source == tuple.destination {
            return Some(Verdict::Drop(DropReason::Martian));
        }
        let neighbour = networks.neighbour_of(public)?;
        let template = snapshot.way_to_neighbour(neighbour)?;
        let step = Step::PublicAddress {
            vni: public.vni,
            public: public.address,
            vm: public.vm,
            host: Some(neighbour.host),
        };
        seen.step(lane.frame.into(), step);
        let most = template.inner_mtu(snapshot.underlay().mtu);
        if packet.hop_limit <= 1 || packet.ip_len > most {
            lane.only_follows = packet.shape.part == Part::Later;
            return Some(report(frame, lane, most, &mut self.limits));
        }
        // All fragments of a datagram take one way through the fabric.
        let ports = match packet.shape.part {
            Part::Whole => packet.ports,
            _ => 0,
        };
        let entropy = snapshot.hash(&Packet { ports, ..packet }, u64::MAX);
        if let Err(reason) = template.encapsulate(frame, &packet, entropy) {
            return Some(Verdict::Drop(reason));
        }
        self.stats.public_in.add(lane.len as usize);
        Some(Verdict::Forward(snapshot.underlay().port))
    }
}
