//! Steps as text.

use core::fmt;

use super::{ConnectionStep, FlowStep, Handover, Step, Trail};
use crate::flow::FlowState;
use crate::health::Condition;
use crate::nat::{ConnectionState, Direction};
use crate::snapshot::RuleMatch;
use crate::spec::snat::instance;
use crate::spec::{Access, Backend, BackendState, InboundNat, NatTarget, Network, Rule, Spec};
use crate::verdict::Verdict;
use crate::wire::vxlan::Vni;

impl Step {
    /// Returns the kind of the step in one or two lower-case words: `packet`, `rule`, `passed on`.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Parsed(_) => "packet",
            Self::FragmentPorts(_) => "fragment",
            Self::QuotedFlow(_) => "quotes",
            Self::Classified(_) => "rule",
            Self::Hashed { .. } => "hash",
            Self::Flow(_) => "flow",
            Self::Selected(_) => "backend",
            Self::Decapsulated { .. } => "inner",
            Self::Connection(_) => "connection",
            Self::PassedOn { .. } => "passed on",
            Self::Switched { .. } => "neighbour",
            Self::PublicAddress { .. } => "public",
            Self::Judged { .. } => "access",
            Self::Translated(_) => "translated",
            Self::Done(_) => "verdict",
        }
    }

    /// Returns the step as text, with names from the spec of the role's snapshot. Without a spec,
    /// the step's own `Display` writes indexes instead of names.
    pub fn named<'a>(&'a self, spec: &'a Spec<'a>) -> impl fmt::Display + 'a {
        Named {
            step: self,
            spec: Some(spec),
        }
    }
}

/// The step as text, with indexes of rules and backends.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, spec) = (self, None);
        Named { step, spec }.fmt(f)
    }
}

impl Trail {
    /// Returns the frame's steps as text, a line each, with names from the spec of the role's
    /// snapshot.
    pub fn named<'a>(&'a self, spec: &'a Spec<'a>) -> impl fmt::Display + 'a {
        Lines {
            trail: self,
            spec: Some(spec),
        }
    }
}

/// The frame's steps as text, a line each, with indexes of rules and backends.
impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trail, spec) = (self, None);
        Lines { trail, spec }.fmt(f)
    }
}

struct Lines<'a> {
    trail: &'a Trail,
    spec: Option<&'a Spec<'a>>,
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spec = self.spec;
        for step in self.trail.steps() {
            writeln!(f, "{:<10} {}", step.label(), Named { step, spec })?;
        }
        Ok(())
    }
}

/// A step, with the names of a spec if it is known.
struct Named<'a> {
    step: &'a Step,
    spec: Option<&'a Spec<'a>>,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.step {
            Step::Parsed(packet) => packet.fmt(f),
            Step::FragmentPorts(tuple) => write!(f, "the first fragment had the ports: {tuple}"),
            Step::QuotedFlow(tuple) => write!(f, "an error about the flow {tuple}"),
            Step::Classified(RuleMatch::Rule(index)) => self.rule(f, index as usize),
            Step::Classified(RuleMatch::NoRule) => {
                f.write_str("none takes the packet's protocol and port")
            }
            Step::Classified(RuleMatch::NotVip) => f.write_str("the packet is not for a VIP"),
            Step::Hashed { rule, hash, slot } => self.hashed(f, rule as usize, hash, slot),
            Step::Flow(step) => f.write_str(step.text()),
            Step::Selected(index) => self.backend(f, index as usize),
            Step::Decapsulated { vni, port } => {
                write!(f, "out of VXLAN, VNI {vni}, for port {}", port.0)
            }
            Step::Connection(step) => step.fmt(f),
            Step::PassedOn {
                backend,
                hops,
                handover,
            } => {
                f.write_str("to the host of ")?;
                self.backend(f, backend as usize)?;
                write!(f, ", {}; hop {hops} of 8 at most", handover.text())
            }
            Step::Switched { vni, to, host } => {
                match self.spec.and_then(|spec| network(spec, vni)) {
                    Some(network) => write!(f, "{to} in network {:?}, ", network.name)?,
                    None => write!(f, "{to} in VNI {vni}, ")?,
                }
                match host {
                    Some(host) => write!(f, "in VXLAN to host {host}"),
                    None => f.write_str("on this node"),
                }
            }
            Step::PublicAddress {
                vni,
                public,
                vm,
                host,
            } => {
                write!(f, "{public} is vm {vm}'s in ")?;
                match self.spec.and_then(|spec| network(spec, vni)) {
                    Some(network) => write!(f, "network {:?}", network.name)?,
                    None => write!(f, "VNI {vni}")?,
                }
                match host {
                    Some(host) => write!(f, ", on host {host}"),
                    None => Ok(()),
                }
            }
            Step::Judged {
                list,
                rule,
                direction,
                access,
            } => self.judged(f, (list as usize, rule.into()), direction, access),
            Step::Translated(tuple) => tuple.fmt(f),
            Step::Done(verdict) => verdict.fmt(f),
        }
    }
}

fn network<'s>(spec: &'s Spec<'_>, vni: Vni) -> Option<&'s Network<'s>> {
    spec.networks.iter().find(|network| network.vni == vni)
}

impl<'a> Named<'a> {
    /// Writes a rule by its index in the snapshot: balancing rules, then inbound NAT port by port,
    /// then SNAT ports.
    fn rule(&self, f: &mut fmt::Formatter<'_>, index: usize) -> fmt::Result {
        let Some(spec) = self.spec else {
            return write!(f, "{index}");
        };
        if let Some(rule) = spec.rules.get(index) {
            return balancing(f, spec, rule);
        }
        let mut place = index - spec.rules.len();
        for nat in spec.inbound_nat {
            let count = match nat.target {
                NatTarget::Backend { .. } => 1,
                NatTarget::Pool { .. } => {
                    let pool = spec.pools.get(nat.pool);
                    pool.map_or(0, |pool| pool.backends.len())
                }
            };
            if place < count {
                return inbound_nat(f, spec, nat, place);
            }
            place -= count;
        }
        f.write_str("outbound: the port is a backend's to call out from")
    }

    fn hashed(
        &self,
        f: &mut fmt::Formatter<'_>,
        rule: usize,
        hash: u64,
        slot: usize,
    ) -> fmt::Result {
        let Some(spec) = self.spec else {
            return write!(f, "{hash:#018x}, slot {slot}");
        };
        let Some(rule) = spec.rules.get(rule) else {
            return f.write_str("not used: the port says which backend");
        };
        let size = spec.pools.get(rule.pool).map_or(0, |pool| pool.table_size);
        let (hasher, parts) = (spec.hasher.name(), rule.distribution.name());
        write!(
            f,
            "{hasher} of the {parts}: {hash:#018x}, slot {slot} of {size}"
        )
    }

    /// A rule of an access list, by its index among all rules of the list.
    fn judged(
        &self,
        f: &mut fmt::Formatter<'_>,
        (list, rule): (usize, usize),
        direction: Direction,
        access: Access,
    ) -> fmt::Result {
        let direction = match direction {
            Direction::Inward => "inbound",
            Direction::Outward => "outbound",
        };
        let access = access.name();
        let lists = self.spec.map_or(&[][..], |spec| spec.security_lists);
        let found = lists.get(list);
        let found = found.and_then(|list| Some((list, list.all_rules().nth(rule)?)));
        match found {
            Some((of, found)) => {
                let kind = if rule < of.rules.len() {
                    "rule"
                } else {
                    "default rule"
                };
                let (list, name, priority) = (of.name, found.name, found.priority);
                write!(
                    f,
                    "{direction}: list {list:?}, {kind} {name:?} (priority {priority}): {access}"
                )
            }
            None => write!(f, "{direction}: list {list}, rule {rule}: {access}"),
        }
    }

    /// Writes a backend by its index over all pools.
    fn backend(&self, f: &mut fmt::Formatter<'_>, index: usize) -> fmt::Result {
        let pools = self.spec.map_or(&[][..], |spec| spec.pools);
        let mut all = pools.iter().flat_map(|pool| pool.backends);
        let Some(backend): Option<&Backend<'_>> = all.nth(index) else {
            return write!(f, "{index}");
        };
        write!(f, "{:?} ({})", backend.name, backend.address)?;
        if self.spec.is_some_and(|spec| spec.proxy.is_none()) {
            write!(f, " on host {}", backend.host)?;
        }
        write!(f, ", weight {}", backend.weight)?;
        let (state, condition) = (backend.state, backend.condition);
        if state != BackendState::Up {
            write!(f, ", {}", state.name())?;
        }
        if state == BackendState::Up || condition == Condition::Unhealthy {
            write!(f, ", {}", condition.name())?;
        }
        Ok(())
    }
}

fn balancing(f: &mut fmt::Formatter<'_>, spec: &Spec<'_>, rule: &Rule<'_>) -> fmt::Result {
    let traffic = rule.protocol.with_port(rule.frontend_port);
    write!(f, "{:?}: {traffic}", rule.name)?;
    if let Some(frontend) = spec.frontends.get(rule.frontend) {
        write!(f, " of frontend {:?} ({})", frontend.name, frontend.address)?;
    }
    if let Some(pool) = spec.pools.get(rule.pool) {
        write!(f, ", to pool {:?}", pool.name)?;
    }
    match rule.backend_port {
        0 => Ok(()),
        port => write!(f, ", port {port}"),
    }
}

/// Writes a port of an inbound NAT rule or pool, which leads to one backend.
fn inbound_nat(
    f: &mut fmt::Formatter<'_>,
    spec: &Spec<'_>,
    nat: &InboundNat<'_>,
    place: usize,
) -> fmt::Result {
    let (port, member) = match nat.target {
        NatTarget::Backend { port, backend } => (u32::from(port), backend),
        NatTarget::Pool { first, .. } => {
            let instance = instance(spec, nat.pool, place);
            (u32::from(first).saturating_add(instance), place)
        }
    };
    let (name, protocol) = (nat.name, nat.protocol.name());
    write!(f, "inbound NAT {name:?}: {protocol} port {port}")?;
    let pool = spec.pools.get(nat.pool);
    if let Some(backend) = pool.and_then(|pool| pool.backends.get(member)) {
        write!(f, " to backend {:?}", backend.name)?;
    }
    write!(f, ", port {}", nat.backend_port)
}

impl FlowStep {
    const fn text(self) -> &'static str {
        match self {
            Self::Hit(FlowState::HalfOpen) => "pinned, half open",
            Self::Hit(FlowState::Established) => "pinned, established",
            Self::Hit(FlowState::Closing) => "pinned, closing",
            Self::Miss => "not pinned, and this packet pins none",
            Self::Pinned => "new: pinned to Maglev's choice from now on",
            Self::PinnedByEviction => "new: pinned in the place of a half-open or closing flow",
            Self::Refused => "new: the table is full, so Maglev chooses each time",
            Self::Repinned => {
                "over, or pinned to a backend that is gone or takes no new flows: pinned to another"
            }
        }
    }
}

impl fmt::Display for ConnectionStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found(ConnectionState::SynSent) => f.write_str("waits for an answer"),
            Self::Found(state) => write!(f, "found, in the state {}", state.name()),
            Self::Made => f.write_str("new"),
            Self::TakenUp => f.write_str("taken up in its middle"),
            Self::Missing => f.write_str("not found, and this packet cannot begin one"),
            Self::Reset => f.write_str("not found: the sender gets a RST"),
        }
    }
}

impl Handover {
    const fn text(self) -> &'static str {
        match self {
            Self::PassedOn => "which may have its connection",
            Self::Asked => "which takes it only if it has its flow",
            Self::PassedBack => "which takes it: no host has its flow",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward(port) => write!(f, "forward, out of port {}", port.0),
            Self::Flood => f.write_str("flood, out of every other port"),
            Self::Reply => f.write_str("reply, out of the port that the packet came by"),
            Self::Pass => f.write_str("pass, untouched"),
            Self::Drop(reason) => write!(f, "drop, {reason}: {}", reason.description()),
        }
    }
}
