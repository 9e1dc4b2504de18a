//! Public addresses of vms: 1:1 NAT without state.
//!
//! | packet | what is done |
//! |---|---|
//! | from the fabric, for a vm's public address | gets the vm's own address, and goes on as if it had come for that |
//! | the same, from an address that is inside | dropped, except ICMP errors: the vm would answer with its own address |
//! | an ICMP error about a packet that never left with the public address | dropped, whoever sent it |
//! | from a vm, of a connection | translated as the connection says |
//! | from a vm, of no connection, to the outside | leaves with the public address |
//! | from a vm to its own public address | dropped |
//!
//! Connections come first, so a vm answers calls of a VIP with the VIP. A packet for a public
//! address is for the vm's own address from [`arrive`](Pipeline::public_in) on, so access lists
//! judge it by that address, and a client that also has a connection through a VIP is recognized
//! as one that calls the [vm directly](crate::nat::pipeline).

use core::net::IpAddr;
use core::ops::Deref;

use super::admit::is_of_link;
use super::establish::{is_inside, is_nowhere};
use super::role::is_reached_untranslated;
use crate::answer::IcmpError;
use crate::frame::Frame;
use crate::icmp;
use crate::link;
use crate::nat::pipeline::{Lane, Pipeline, clamped_mss, report_error};
use crate::nat::readdress::{End, is_error, quoted_ends, readdress};
use crate::nat::rewrite;
use crate::nat::tcp::Direction;
use crate::observe::{Observe, Step};
use crate::packet::{Packet, Part};
use crate::snapshot::Snapshot;
use crate::snapshot::locals::Vm;
use crate::snapshot::publics::Public;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::protocol;
use crate::wire::tcp::Flags;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Gives a packet from the fabric for a public address of its vm the vm's own address.
    ///
    /// # Errors
    /// The verdict of a packet that the vm does not get.
    #[cold]
    #[inline(never)]
    pub(super) fn public_in(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let snapshot = &*self.snapshot;
        let networks = &snapshot.nat.networks;
        let packet = lane.packet;
        let tuple = packet.tuple();
        let Some(&public) = networks.publics.at(tuple.destination) else {
            return Ok(());
        };
        let neighbour = networks.neighbour_of(&public);
        if neighbour.and_then(|neighbour| neighbour.port) != Some(lane.zone) {
            return Ok(()); // another vm's
        }
        if let Some(reason) = refusal(frame.bytes(), &packet) {
            return Err(Verdict::Drop(reason));
        }
        let is_own = tuple.source == public.address;
        if packet.is_martian() || is_own || snapshot.probe_source().is(tuple.source) {
            return Err(Verdict::Drop(DropReason::Martian));
        }
        if is_error(frame.bytes(), &packet) {
            // Its sender may be any router, so only what it quotes tells.
            let vm = snapshot.nat.vm_by_port(lane.zone);
            let quoted = quoted_ends(frame.bytes(), &packet).zip(vm);
            if quoted
                .is_none_or(|((_, to), vm)| to == public.address || stays_inside(snapshot, vm, to))
            {
                return Err(Verdict::Drop(DropReason::IcmpUnmatched));
            }
        } else if is_reached_untranslated(snapshot, lane.zone, tuple.source) {
            return Err(Verdict::Drop(DropReason::InsideSource));
        }
        let bytes = frame.bytes_mut();
        readdress(bytes, &mut lane.packet, End::Destination, public.vm, 0)
            .map_err(Verdict::Drop)?;
        self.clamp_syn(frame, &packet);
        lane.is_public = true;
        self.stats.public_in.add(lane.len as usize);
        seen.step(lane.frame.into(), shown(&public));
        Ok(())
    }

    /// Gives a packet back the public address that it arrived with, so that an answer is about
    /// that one. Returns its lane.
    #[cold]
    pub(super) fn as_arrived(&self, frame: &mut Frame<'_>, lane: &Lane) -> Lane {
        let mut lane = *lane;
        let nat = &self.snapshot.nat;
        let own = lane.packet.tuple().destination;
        let vm = nat.vm_by_port(lane.zone).filter(|_| lane.is_public);
        if let Some(public) = vm.and_then(|vm| nat.networks.public_of(own, vm.vni)) {
            let (bytes, end) = (frame.bytes_mut(), End::Destination);
            // The packet was translated the other way before, and is whole.
            let _ = readdress(bytes, &mut lane.packet, end, public.address, 0);
        }
        lane
    }

    /// Sends a vm's packet that no connection has to the outside, with the vm's public address.
    /// Returns `None` if the vm has none for it, or if it does not leave the vm's network.
    pub(super) fn public_out(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        (vm, packet): (&Vm, &Packet),
        seen: &mut impl Observe,
    ) -> Option<Verdict> {
        let tuple = packet.tuple();
        let snapshot = &*self.snapshot;
        let public = *public_towards(snapshot, vm, tuple.source, tuple.destination)?;
        if is_of_link(frame.bytes(), packet) {
            return None;
        }
        if tuple.destination == public.address {
            return Some(Verdict::Drop(DropReason::Hairpin));
        }
        if let Some(reason) = refusal(frame.bytes(), packet) {
            return Some(Verdict::Drop(reason));
        }
        let underlay = *snapshot.underlay();
        let most = u32::from(underlay.mtu);
        let error = if packet.hop_limit <= 1 {
            Some(IcmpError::HopLimit)
        } else {
            (packet.ip_len > most).then_some(IcmpError::TooBig(most))
        };
        if let Some(error) = error {
            let own = Lane {
                packet: *packet,
                direction: Direction::Outward,
                error: None,
                ..*lane
            };
            let told_as = (&self.options, snapshot);
            let limits = &mut self.limits;
            return Some(report_error(frame, &own, error, limits, told_as));
        }
        // An error about an inside address's packet tells the outside of it.
        if is_error(frame.bytes(), packet) {
            let quoted = quoted_ends(frame.bytes(), packet);
            if quoted
                .is_none_or(|(from, _)| from == public.address || stays_inside(snapshot, vm, from))
            {
                return Some(Verdict::Drop(DropReason::IcmpUnmatched));
            }
        }
        let mut packet = *packet;
        let (bytes, by) = (frame.bytes_mut(), public.address);
        if let Err(reason) = readdress(bytes, &mut packet, End::Source, by, 1) {
            return Some(Verdict::Drop(reason));
        }
        self.clamp_syn(frame, &packet);
        if link::replace(frame, &packet, &underlay).is_none() {
            return Some(Verdict::Drop(DropReason::NoHeadroom));
        }
        self.stats.public_out.add(lane.len as usize);
        seen.step(lane.frame.into(), shown(&public));
        Some(Verdict::Forward(underlay.port))
    }

    /// Lowers the segment size that a SYN offers to what fits the fabric in VXLAN.
    fn clamp_syn(&self, frame: &mut Frame<'_>, packet: &Packet) {
        let is_syn = packet.protocol == protocol::TCP
            && packet.shape.part != Part::Later
            && packet.flags.contains(Flags::SYN);
        if self.options.clamp_mss && is_syn {
            let most = clamped_mss(self.snapshot.underlay().mtu, packet.shape.family);
            rewrite::clamp_mss(frame.bytes_mut(), packet, most);
        }
    }
}

/// Returns the public address with which a vm's packets to a destination leave, unless a connection
/// has them.
fn public_towards<'a>(
    snapshot: &'a Snapshot<'_>,
    vm: &Vm,
    source: IpAddr,
    destination: IpAddr,
) -> Option<&'a Public> {
    let networks = &snapshot.nat.networks;
    if networks.publics.is_empty() {
        return None;
    }
    let public = networks.public_of(source, vm.vni)?;
    let is_own = networks.neighbour_of(public)?.port == Some(vm.port);
    (is_own && !stays_inside(snapshot, vm, destination)).then_some(public)
}

/// Returns true if a vm's packets to a destination never leave with a public address.
fn stays_inside(snapshot: &Snapshot<'_>, vm: &Vm, destination: IpAddr) -> bool {
    is_inside(snapshot, vm, destination)
        || snapshot.nat.is_inside(destination)
        || snapshot.is_private_at(destination, vm.port)
        || is_nowhere(destination)
}

/// Returns true if the packet in a lane is a vm's, and leaves with a public address if no connection
/// has it.
pub(super) fn has_lane(snapshot: &Snapshot<'_>, lane: &Lane) -> bool {
    if lane.direction == Direction::Inward || snapshot.nat.networks.publics.is_empty() {
        return false;
    }
    let tuple = lane.own_packet().tuple();
    leaves(snapshot, lane.zone, tuple.source, tuple.destination)
}

/// Returns true if packets from the vm at a port to a destination leave with a public address,
/// unless a connection has them.
pub(super) fn leaves(
    snapshot: &Snapshot<'_>,
    zone: PortId,
    source: IpAddr,
    destination: IpAddr,
) -> bool {
    let vm = snapshot.nat.vm_by_port(zone);
    vm.is_some_and(|vm| public_towards(snapshot, vm, source, destination).is_some())
}

/// Returns the reason why a packet is not translated: its headers contradict each other, or it
/// advises about routes, which are other ones on the other side.
fn refusal(frame: &[u8], packet: &Packet) -> Option<DropReason> {
    let is_advice = packet.is_icmp()
        && packet.shape.part != Part::Later
        && icmp::is_advice(packet.shape.family, icmp::kind(frame, packet));
    let advice = is_advice.then_some(DropReason::IcmpRedirect);
    packet.shape.fault.or(advice)
}

fn shown(public: &Public) -> Step {
    Step::PublicAddress {
        vni: public.vni,
        public: public.address,
        vm: public.vm,
        host: None,
    }
}
