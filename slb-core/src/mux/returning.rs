//! Answers that return through the mux: decapsulated, and forwarded to the client.

use core::ops::Deref;

use super::{Lane, Pipeline};
use crate::frame::Frame;
use crate::link;
use crate::observe::{Observe, Step};
use crate::packet::{Family, Read};
use crate::snapshot::Snapshot;
use crate::tunnel::decapsulation::Outer;
use crate::verdict::{DropReason, Verdict};

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Decides about a frame that is not for a VIP; `None` if it is neither an answer nor a packet
    /// that hosts return.
    #[cold]
    pub(super) fn take_back(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Option<Verdict> {
        let snapshot = &*self.snapshot;
        let underlay = snapshot.underlay();
        let outer = match Outer::parse(frame.bytes(), underlay) {
            Ok(outer) => outer?,
            Err(reason) => return Some(Verdict::Drop(reason)),
        };
        // The VXLAN belongs to another program on this machine.
        if !snapshot.nat.has_vni(outer.vni) {
            return None;
        }
        if outer.is_from(underlay) {
            return Some(Verdict::Drop(DropReason::UnknownPeer));
        }
        if !snapshot.nat.is_peer(outer.source) {
            return None;
        }
        let (vni, port) = (outer.vni, frame.port());
        seen.step(lane.frame.into(), Step::Decapsulated { vni, port });
        frame.truncate(outer.inner.1);
        frame.trim_front(outer.inner.0);
        match lane.packet.read(frame.bytes()) {
            Read::Ip => {}
            Read::Other => return Some(Verdict::Drop(DropReason::UnknownVm)),
            Read::Bad(reason) => return Some(Verdict::Drop(reason)),
        }
        let packet = &lane.packet;
        seen.step(lane.frame.into(), Step::Parsed(*packet));
        if packet.shape.fault == Some(DropReason::BadChecksum) {
            return Some(Verdict::Drop(DropReason::BadChecksum));
        }
        if !snapshot.is_vip(packet.tuple().source) {
            return Some(Verdict::Drop(DropReason::SpoofedSource));
        }
        if packet.hop_limit <= 1 {
            return Some(Verdict::Drop(DropReason::HopLimit));
        }
        if packet.ip_len > underlay.mtu.into() {
            return Some(Verdict::Drop(DropReason::PacketTooBig));
        }
        let ip = frame
            .bytes_mut()
            .get_mut(usize::from(packet.shape.ip_offset)..);
        let ip = ip.unwrap_or_default();
        let is_ipv4 = packet.shape.family == Family::Ipv4;
        if let Err(reason) = outer.pass_congestion_on(ip, is_ipv4) {
            return Some(Verdict::Drop(reason));
        }
        let done = link::take_a_hop(ip, packet.shape.family)
            .and_then(|()| link::replace(frame, packet, underlay));
        Some(match done {
            Some(()) => Verdict::Forward(underlay.port),
            None => Verdict::Drop(DropReason::NoHeadroom),
        })
    }
}
