//! A look at the real pipeline while it works: what `explain`, traces and tests are made of.
//!
//! There is no second implementation to explain the first. The empty observer `()` costs nothing.

use crate::flow::FlowState;
pub use crate::mark::Handover;
use crate::nat::ConnectionState;
use crate::packet::{Packet, Tuple};
use crate::snapshot::RuleMatch;
use crate::verdict::{PortId, Verdict};
use crate::wire::vxlan::Vni;

/// Something that a role decided about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The frame's headers were read.
    Parsed(Packet),
    /// A later fragment got the ports that its first fragment had.
    FragmentPorts(Tuple),
    /// An ICMP error was found to be about this flow.
    QuotedFlow(Tuple),
    /// The rules were looked up. Of several such steps the last counts: under an outbound rule of a mux,
    /// a port that no backend has turns out to be of no rule.
    Classified(RuleMatch),
    /// The tuple was hashed; the slot is that of the rule's pool.
    Hashed {
        /// The hash of what the distribution mode counts.
        hash: u64,
        /// The Maglev slot that it gives.
        slot: usize,
    },
    /// The flow table was asked.
    Flow(FlowStep),
    /// The backend, by its place among all: see [`Snapshot::backend`](crate::snapshot::Snapshot::backend).
    Selected(u32),
    /// The frame was taken out of VXLAN.
    Decapsulated {
        /// Its network.
        vni: Vni,
        /// The port of the vm that it is for; of a mux, the one that it came by.
        port: PortId,
    },
    /// The connection table was asked.
    Connection(ConnectionStep),
    /// The packet goes to another host agent, which may have its connection.
    PassedOn {
        /// The backend whose host that is, by its place among all.
        backend: u32,
        /// How often the packet was passed on, with this time.
        hops: u8,
        /// What is asked of the host.
        handover: Handover,
    },
    /// The packet has this name now.
    Translated(Tuple),
    /// The frame's verdict. Always the last step.
    Done(Verdict),
}

/// What the flow table said or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlowStep {
    /// The flow is pinned.
    Hit(FlowState),
    /// The flow is not pinned, and stays so: its packet begins none.
    Miss,
    /// It is pinned from now on.
    Pinned,
    /// It is pinned from now on, in the place of a half-open or closing flow.
    PinnedByEviction,
    /// There is no place to pin it.
    Refused,
    /// Its backend is gone, or gets no new connections: it was pinned to another.
    Repinned,
}

/// What the connection table said or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionStep {
    /// It is there; this is its state after the packet.
    Found(ConnectionState),
    /// It is made.
    Made,
    /// It is not there, and the packet makes none.
    Missing,
    /// The sender is told so with a RST.
    Reset,
}

/// Sees each step of each frame.
pub trait Observe {
    /// `frame` is the place in the slice given to `process`.
    fn step(&mut self, frame: usize, step: Step);
}

impl Observe for () {
    #[inline(always)]
    fn step(&mut self, _: usize, _: Step) {}
}

impl<F: FnMut(usize, Step)> Observe for F {
    fn step(&mut self, frame: usize, step: Step) {
        self(frame, step);
    }
}

/// An observer of one burst out of several: counts frames from the first one's place.
pub(crate) struct From<'o, O> {
    pub(crate) first: usize,
    pub(crate) seen: &'o mut O,
}

impl<O: Observe> Observe for From<'_, O> {
    #[inline(always)]
    fn step(&mut self, frame: usize, step: Step) {
        self.seen.step(self.first + frame, step);
    }
}
