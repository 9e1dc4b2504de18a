//! Frames from the fabric: decapsulation, and the vm that each is for.

use crate::frame::Frame;
use crate::nat::pipeline::Lane;
use crate::observe::{Observe, Step};
use crate::snapshot::Snapshot;
use crate::snapshot::locals::NO_SENDER;
use crate::tunnel::decapsulation::{CommonHead, CommonName, Outer, OuterName};
use crate::verdict::{DropReason, PortId, Verdict};

/// The sender and the vm of a frame from the fabric.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(super) name: OuterName,
    /// The node that sent the frame; see
    /// [`Nat::sender_at`](crate::snapshot::locals::Nat::sender_at).
    pub(super) sender: u32,
    /// The port of the vm.
    pub(super) port: PortId,
}

impl Arrival {
    pub(super) fn new(outer: &Outer, snapshot: &Snapshot<'_>) -> Result<Self, Verdict> {
        let sender = snapshot.nat.sender_at(outer.source);
        let is_mux = snapshot.nat.is_mux(sender);
        // This node does not send to itself, unless a mux runs on it too.
        if !is_mux && outer.is_from(snapshot.underlay()) {
            return Err(Verdict::Drop(DropReason::UnknownPeer));
        }
        // Only known nodes may send into a network: others could reach its vms from outside.
        let is_known = sender != NO_SENDER;
        let is_closed = || {
            let network = snapshot.nat.networks.of(outer.vni);
            snapshot.nat.has_muxes() || network.is_some()
        };
        if !is_known && is_closed() {
            return Err(Verdict::Drop(DropReason::UnknownPeer));
        }
        let vm = snapshot.nat.vm_by_mac(outer.destination, outer.vni);
        Ok(Self {
            name: outer.name(),
            sender,
            port: vm.ok_or(Verdict::Drop(DropReason::UnknownVm))?.port,
        })
    }
}

/// Known arrivals, which are valid until the snapshot changes.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// The last arrival on the slow path.
    pub(super) last: Option<Arrival>,
    /// The last port of a vm.
    pub(super) vm: Option<PortId>,
    /// Arrivals on the fast path, each at the [place](CommonHead::place) of its head: packets from
    /// a few muxes for a few vms alternate.
    known: [KnownArrival; 1 << ARRIVAL_BITS],
}

const ARRIVAL_BITS: u32 = 4;

#[derive(Clone, Copy, Debug)]
struct KnownArrival {
    name: CommonName,
    /// The port of the vm.
    port: PortId,
}

impl Default for Arrivals {
    fn default() -> Self {
        let none = KnownArrival {
            name: CommonName::NONE,
            port: PortId(0),
        };
        Self {
            last: None,
            vm: None,
            known: [none; 1 << ARRIVAL_BITS],
        }
    }
}

impl Arrivals {
    /// Finds the port of the vm that a frame with a common head is for.
    #[inline(always)]
    pub(super) fn port_of(
        &mut self,
        head: &CommonHead<'_>,
        snapshot: &Snapshot<'_>,
    ) -> Option<PortId> {
        let place = &mut self.known[head.place() % (1 << ARRIVAL_BITS)];
        if !head.is(&place.name) {
            place.learn(head, snapshot)?;
        }
        Some(place.port)
    }
}

impl KnownArrival {
    #[cold]
    #[inline(never)]
    fn learn(&mut self, head: &CommonHead<'_>, snapshot: &Snapshot<'_>) -> Option<()> {
        let outer = Outer::parse_if_common(head.frame(), snapshot.underlay())?;
        let port = Arrival::new(&outer, snapshot).ok()?.port;
        let name = head.name();
        *self = Self { name, port };
        Some(())
    }
}

/// Decapsulates a frame, and finds its destination vm.
// Out of line, it would cost each frame 4 ns.
#[inline(always)]
pub(super) fn decapsulate(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    lane: &mut Lane,
    last: &mut Option<Arrival>,
    seen: &mut impl Observe,
) -> Result<Outer, Verdict> {
    let outer = Outer::parse(frame.bytes(), snapshot.underlay())
        .map_err(Verdict::Drop)?
        .ok_or(Verdict::Pass)?;
    let arrival = match *last {
        Some(arrival) if arrival.name == outer.name() => arrival,
        _ => Arrival::new(&outer, snapshot)?,
    };
    *last = Some(arrival);
    (lane.sender, lane.zone) = (arrival.sender, arrival.port);
    frame.truncate(outer.inner.1);
    frame.trim_front(outer.inner.0);
    let (vni, port) = (outer.vni, arrival.port);
    seen.step(lane.frame.into(), Step::Decapsulated { vni, port });
    Ok(outer)
}
