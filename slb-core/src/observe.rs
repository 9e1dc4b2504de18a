//! Observation of the running pipeline, for `explain`, traces and tests.
//!
//! Explanations come from the pipeline itself, not from a second implementation. The empty observer
//! `()` costs nothing. A [`Trail`] records the steps of one frame, and prints them as text:
//!
//! ```
//! # use slb_core::observe::Trail;
//! # use slb_core::snapshot::Snapshot;
//! # use slb_core::spec::Spec;
//! # use slb_core::{Burst, Instant, Mux};
//! fn explain(now: Instant, mux: &mut Mux<'_, &Snapshot<'_>>, burst: &mut Burst<'_>, spec: &Spec<'_>) {
//!     let mut trail = Trail::new(0); // the first frame of the burst
//!     mux.process_observed(now, burst, &mut trail);
//!     print!("{}", trail.named(spec));
//! }
//! ```

mod text;

use core::net::IpAddr;

use crate::flow::FlowState;
pub use crate::mark::Handover;
use crate::nat::{ConnectionState, Direction};
use crate::packet::{Packet, Tuple};
use crate::snapshot::RuleMatch;
use crate::spec::Access;
use crate::verdict::{PortId, Verdict};
use crate::wire::vxlan::Vni;

/// A decision of a role about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The frame's headers were parsed.
    Parsed(Packet),
    /// A later fragment got the ports that its first fragment had.
    FragmentPorts(Tuple),
    /// An ICMP error was found to be about this flow.
    QuotedFlow(Tuple),
    /// The rules were looked up. Of several such steps, the last one is valid: at a mux, a port of
    /// an outbound rule that no backend has turns out to match no rule.
    Classified(RuleMatch),
    /// The tuple was hashed; the slot is that of the rule's pool.
    Hashed {
        /// The rule, by its index in [`Spec::rules`](crate::spec::Spec::rules); the rules of
        /// inbound NAT and SNAT ports come after these.
        rule: u32,
        /// The hash of the parts that the distribution mode includes.
        hash: u64,
        /// The Maglev slot of the hash.
        slot: usize,
    },
    /// The flow table was looked up.
    Flow(FlowStep),
    /// A backend was selected: an index for
    /// [`Snapshot::backend`](crate::snapshot::Snapshot::backend).
    Selected(u32),
    /// The frame was decapsulated.
    Decapsulated {
        /// VXLAN network of the frame.
        vni: Vni,
        /// The port of the destination vm; at a mux, the port that the frame arrived at.
        port: PortId,
    },
    /// The connection table was looked up.
    Connection(ConnectionStep),
    /// The packet goes to another host agent, which may have its connection.
    PassedOn {
        /// A backend on the other host, by its index among all backends.
        backend: u32,
        /// The number of times that the packet was passed on, including this one.
        hops: u8,
        /// The request to the other host.
        handover: Handover,
    },
    /// The packet goes to another vm of its network, untranslated.
    Switched {
        /// VXLAN network of both vms.
        vni: Vni,
        /// Address of the destination vm.
        to: IpAddr,
        /// The underlay address of that vm's host; `None` if the vm is on this node.
        host: Option<IpAddr>,
    },
    /// The packet is for a public address of a vm, or leaves with one.
    PublicAddress {
        /// VXLAN network of the vm.
        vni: Vni,
        /// The public address.
        public: IpAddr,
        /// The vm's own address.
        vm: IpAddr,
        /// At a mux, the underlay address of the vm's host.
        host: Option<IpAddr>,
    },
    /// An access list of a vm decided about the first packet of a connection.
    Judged {
        /// The list, by its index in [`Spec::security_lists`](crate::spec::Spec::security_lists).
        list: u32,
        /// The rule that decided, by its index among [all rules](crate::spec::SecurityList::all_rules) of the list.
        rule: u16,
        /// The direction of the connection, seen from the vm.
        direction: Direction,
        /// The decision.
        access: Access,
    },
    /// The packet was translated to this tuple.
    Translated(Tuple),
    /// The frame's verdict. Always the last step.
    Done(Verdict),
}

/// A step of the mux's flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlowStep {
    /// The flow is pinned.
    Hit(FlowState),
    /// The flow is not pinned, and its packet does not pin it.
    Miss,
    /// The flow is pinned from now on.
    Pinned,
    /// The flow is pinned from now on, and replaces a half-open or closing flow.
    PinnedByEviction,
    /// There is no place for the flow.
    Refused,
    /// The flow was pinned to another backend: its backend is gone or gets no new connections, or the packet is a
    /// SYN after the flow's end.
    Repinned,
}

/// A step of the connection table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionStep {
    /// The connection was found; this is its state after the packet.
    Found(ConnectionState),
    /// The connection is new.
    Made,
    /// The connection was taken up by a packet from its middle.
    TakenUp,
    /// There is no connection, and the packet begins none.
    Missing,
    /// There is no connection, and the sender gets a RST.
    Reset,
}

/// An observer of each step of each frame.
pub trait Observe {
    /// Receives a step. `frame` is the index in the slice given to `process`.
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

/// The steps of one frame.
///
/// A role looks up rules more than once for some packets: those of outbound rules, and ICMP errors.
/// A trail returns the last lookup, which is the valid one.
#[derive(Clone, Copy, Debug)]
pub struct Trail {
    frame: usize,
    len: usize,
    steps: [Step; Self::MOST],
}

impl Trail {
    /// The maximum number of recorded steps. A frame takes at most ten; if there were more, the
    /// last one is recorded in any case.
    pub const MOST: usize = 16;

    /// Makes an empty trail for the frame at this index of the slice given to `process_observed`.
    pub const fn new(frame: usize) -> Self {
        Self {
            frame,
            len: 0,
            steps: [Step::Done(Verdict::Pass); Self::MOST],
        }
    }

    /// Yields the steps in order, without lookups that a later one replaced, and without the hashes
    /// of those.
    pub fn steps(&self) -> impl Iterator<Item = &Step> + Clone {
        let all = self.steps.get(..self.len).unwrap_or_default();
        let is_lookup = |step: &Step| matches!(step, Step::Classified(_));
        let last = all.iter().rposition(is_lookup).unwrap_or(0);
        let is_corrected = move |(index, step): &(usize, &Step)| {
            *index < last && matches!(step, Step::Classified(_) | Step::Hashed { .. })
        };
        let steps = all.iter().enumerate();
        steps
            .filter(move |step| !is_corrected(step))
            .map(|(_, step)| step)
    }

    /// Returns the frame's verdict; `None` if the frame was not processed.
    pub fn verdict(&self) -> Option<Verdict> {
        match self.steps.get(self.len.checked_sub(1)?) {
            Some(&Step::Done(verdict)) => Some(verdict),
            _ => None,
        }
    }
}

impl Observe for Trail {
    fn step(&mut self, frame: usize, step: Step) {
        if frame == self.frame {
            self.len = (self.len + 1).min(Self::MOST);
            if let Some(place) = self.steps.get_mut(self.len - 1) {
                *place = step;
            }
        }
    }
}

/// An observer of one of several bursts, which adds the index of the burst's first frame.
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
