//! The differences that another configuration would make, without installing it.

mod fields;
mod reach;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use slb_core::hash::TupleHasher;
use slb_core::spec::{Protocol, SpecError};
use slb_core::wire::vxlan::Vni;

use crate::config::{Config, Node, Rule, Vm, zone_changes};
use crate::holders::InboundPort;

use self::fields::{
    Fields, Part, backends, frontends, lists, nats, network_vms, networks, outbounds, pools, ports,
    probes, public_addresses, rules, security_rules,
};
pub use self::reach::ReachChange;

/// The differences between two configurations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diff {
    /// Items of any kind that only the new configuration has.
    pub added: Vec<String>,
    /// Items of any kind that only the old configuration has.
    pub removed: Vec<String>,
    /// Items that differ.
    pub changed: Vec<String>,
    /// The effect on flows, for each rule in both configurations.
    pub rules: Vec<RuleDiff>,
    /// Ports of VIPs that lead to another backend, or that become the SNAT ports of another
    /// backend.
    pub ports: Vec<PortMove>,
    /// Frontends that others can call than before.
    pub reach: Vec<ReachChange>,
    /// Settings that take effect only after a restart.
    pub restart: Vec<&'static str>,
}

/// Ports that one backend had and no longer has: connections through them end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMove {
    /// The VIP.
    pub address: IpAddr,
    /// The protocol of inbound NAT; `None` for SNAT ports.
    pub protocol: Option<Protocol>,
    /// The ports.
    pub ports: RangeInclusive<u16>,
    /// The backend that has the ports: `pool/name`, with its port for inbound NAT.
    pub from: String,
    /// The backend that gets the ports, if any.
    pub to: Option<String>,
}

impl fmt::Display for PortMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.protocol.map_or("SNAT", Protocol::name);
        let (first, last) = (self.ports.start(), self.ports.end());
        match first == last {
            true => write!(f, "{} {what} port {first}", self.address)?,
            false => write!(f, "{} {what} ports {first} to {last}", self.address)?,
        }
        let to = self.to.as_deref().unwrap_or("no backend");
        write!(f, ": from {} to {to}", self.from)
    }
}

/// The effect on a rule's flows.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleDiff {
    /// Name of the rule.
    pub rule: String,
    /// The share of the rule's Maglev table that gets another backend, and so the share of unpinned
    /// flows that move.
    pub changed: f64,
    /// The part of `changed` whose backends no longer get flows; the rest moves to make room for
    /// others.
    pub bereft: f64,
    /// The share of existing connections that host agents pass on to their backend until they end,
    /// if muxes have not pinned them and hosts get the new configuration first. Applies to a table
    /// that is not rehashed, since hosts find the backend by the slot.
    pub detour: f64,
    /// The share of existing connections that end, since their backend is no longer configured, or
    /// since no host finds them in a rehashed table.
    pub ended: f64,
    /// The reason why the table is rehashed, if it is; `changed` is then the expected share of
    /// unpinned flows that move.
    pub rehashed: Option<String>,
}

impl Diff {
    /// Compares two configurations: the effect of replacing `old` by `new`.
    ///
    /// # Errors
    /// One of the configurations cannot be compiled.
    pub fn between(old: &Config, new: &Config) -> Result<Self, SpecError> {
        let before = old.snapshot(None)?;
        let after = new.snapshot(Some(&before))?;
        let mut diff = Self::default();
        diff.compare_parts(old, new);
        diff.compare_fields("network", &networks(old), &networks(new));
        diff.compare_fields("frontend", &frontends(old), &frontends(new));
        diff.compare_fields("rule", &rules(old), &rules(new));
        diff.compare_fields("vm", &network_vms(old), &network_vms(new));
        diff.compare_fields(
            "public_address",
            &public_addresses(old),
            &public_addresses(new),
        );
        diff.compare_fields("security_rule", &security_rules(old), &security_rules(new));
        diff.changed.extend(vm_moves(old, new));
        diff.changed.extend(zone_changes(old, new));
        diff.reach = reach::changes(old, new);
        diff.ports = inbound_moves(old, new);
        diff.ports.extend(outbound_moves(old, new));
        let before_by_name: HashMap<&str, usize> = (0..)
            .zip(&old.rules)
            .map(|(place, rule)| (&*rule.name, place))
            .collect();
        let before_by_port: HashMap<_, usize> = (0..)
            .zip(&old.rules)
            .map(|(place, rule)| (port_of(old, rule), place))
            .collect();
        for (place, rule) in new.rules.iter().enumerate() {
            // A rule under another name has the flows of the one that had its VIP and port.
            let of_name = before_by_name.get(&*rule.name);
            let of_port = || before_by_port.get(&port_of(new, rule));
            let Some(&old_place) = of_name.or_else(of_port) else {
                continue;
            };
            let takes_flows = |id| {
                let backend = after.backend_index(id);
                backend.is_some_and(|backend| after.serves(place as u32, backend))
            };
            let rehashed = rehashed(old, new, &old.rules[old_place], rule);
            let (mut total, mut changed, mut bereft) = (0u32, 0u32, 0u32);
            let (mut detour, mut ended) = (0u32, 0u32);
            let (mut was, mut is) = (HashMap::new(), HashMap::new());
            let old_slots = before.slots(old_place as u32);
            for (old, new) in old_slots.zip(after.slots(place as u32)) {
                total += 1;
                let is_bereft = old.is_some_and(|old| !takes_flows(old));
                changed += u32::from(old != new);
                if let Some(old_id) = old.filter(|_| old != new) {
                    match after.backend_index(old_id) {
                        Some(_) => detour += 1,
                        None => ended += 1,
                    }
                }
                bereft += u32::from((old != new || rehashed.is_some()) && is_bereft);
                *was.entry(old).or_insert(0u32) += 1;
                *is.entry(new).or_insert(0u32) += 1;
            }
            let share = |count: u32| f64::from(count) / f64::from(total.max(1));
            let stay = was.iter().map(|(backend, &count)| {
                share(count) * share(is.get(backend).copied().unwrap_or(0))
            });
            let anew = 1.0 - stay.sum::<f64>();
            diff.rules.push(RuleDiff {
                rule: rule.name.clone(),
                changed: if rehashed.is_some() {
                    anew
                } else {
                    share(changed)
                },
                bereft: share(bereft),
                detour: if rehashed.is_some() {
                    0.0
                } else {
                    share(detour)
                },
                ended: if rehashed.is_some() {
                    anew
                } else {
                    share(ended)
                },
                rehashed,
            });
        }
        Ok(diff)
    }

    /// Returns true if there is no difference, neither in the text of the configurations nor in
    /// derived values such as the owners of ports.
    pub fn is_empty(&self) -> bool {
        let parts = [&self.added, &self.removed, &self.changed];
        parts.iter().all(|part| part.is_empty())
            && self.restart.is_empty()
            && self.ports.is_empty()
            && self.rules.iter().all(|rule| rule.changed == 0.0)
    }

    fn compare_parts(&mut self, old: &Config, new: &Config) {
        type Parts = fn(&Config) -> Vec<Part>;
        let kinds: [(&str, Parts); 7] = [
            ("security_list", lists),
            ("port", ports),
            ("inbound NAT", nats),
            ("outbound rule", outbounds),
            ("probe", probes),
            ("pool", pools),
            ("backend", backends),
        ];
        for (kind, parts) in kinds {
            self.compare(kind, &parts(old), &parts(new));
        }
        if old.ports.source_rewrites != new.ports.source_rewrites {
            self.changed.push("source_rewrite".to_owned());
        }
        let (was, is) = (&old.node, &new.node);
        let underlay = |node: &Node| (node.ipv4, node.ipv6);
        for (field, same) in [
            ("underlay", underlay(was) == underlay(is)),
            ("mac", was.mac == is.mac),
            ("next_hop", was.next_hop == is.next_hop),
            ("mtu", was.mtu == is.mtu),
            ("hop_limit", was.hop_limit == is.hop_limit),
            ("udp_checksum", was.udp_checksum == is.udp_checksum),
            (
                "hash",
                was.hash_seed == is.hash_seed && hash(was) == hash(is),
            ),
            (
                "answers_per_second",
                was.answers_per_second == is.answers_per_second,
            ),
            (
                "too_big_per_second",
                was.too_big_per_second == is.too_big_per_second,
            ),
            (
                "errors_per_second",
                was.errors_per_second == is.errors_per_second,
            ),
            (
                "resets_per_second",
                was.resets_per_second == is.resets_per_second,
            ),
            (
                "passes_per_second",
                was.passes_per_second == is.passes_per_second,
            ),
            (
                "take_ups_per_second",
                was.take_ups_per_second == is.take_ups_per_second,
            ),
            (
                "flows_per_source",
                was.flows_per_source == is.flows_per_source
                    && was.flows_per_source_at_once == is.flows_per_source_at_once,
            ),
            (
                "icmp_source",
                was.icmp_source_ipv4 == is.icmp_source_ipv4
                    && was.icmp_source_ipv6 == is.icmp_source_ipv6,
            ),
            ("clamp_mss", was.clamp_mss == is.clamp_mss),
            ("muxes", was.muxes == is.muxes),
            ("inside", was.inside == is.inside),
            ("probe_sources", was.probe_sources == is.probe_sources),
            ("probing", was.probing == is.probing),
            (
                "withdraw_when_down",
                was.withdraw_when_down == is.withdraw_when_down,
            ),
        ] {
            if !same {
                self.changed.push(format!("node: {field}"));
            }
        }
        for (field, same) in [
            ("role", was.role == is.role),
            ("flows", was.flows == is.flows),
            ("connections", was.connections == is.connections),
            (
                "waiting_fragments",
                was.waiting_fragments == is.waiting_fragments,
            ),
            ("direct_flows", was.direct_flows == is.direct_flows),
        ] {
            if !same {
                self.restart.push(field);
            }
        }
    }

    /// Compares items, and names the fields that differ.
    fn compare_fields(&mut self, kind: &str, old: &[Fields], new: &[Fields]) {
        let before: HashMap<_, _> = old.iter().map(|(name, was)| (name, was)).collect();
        for (name, is) in new {
            let Some(was) = before.get(name) else {
                self.added.push(format!("{kind} {name:?}"));
                continue;
            };
            let fields = is.iter().zip(*was);
            let changes = fields.filter(|((_, is), (_, was))| is != was);
            let changes =
                changes.map(|((field, is), (_, was))| format!("{field} {was} becomes {is}"));
            let changes: Vec<String> = changes.collect();
            if !changes.is_empty() {
                let changes = changes.join(", ");
                self.changed.push(format!("{kind} {name:?}: {changes}"));
            }
        }
        let now: HashSet<_> = new.iter().map(|(name, _)| name).collect();
        let gone = old.iter().filter(|(name, _)| !now.contains(name));
        self.removed
            .extend(gone.map(|(name, _)| format!("{kind} {name:?}")));
    }

    fn compare(&mut self, kind: &str, old: &[Part], new: &[Part]) {
        let before: HashMap<_, _> = old.iter().map(|(name, was)| (name, was)).collect();
        for (name, is) in new {
            match before.get(name) {
                None => self.added.push(format!("{kind} {name:?}")),
                Some(was) if *was != is => self.changed.push(format!("{kind} {name:?}")),
                Some(_) => {}
            }
        }
        let now: HashSet<_> = new.iter().map(|(name, _)| name).collect();
        let gone = old.iter().filter(|(name, _)| !now.contains(name));
        self.removed
            .extend(gone.map(|(name, _)| format!("{kind} {name:?}")));
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "no difference");
        }
        for (sign, parts) in [
            ("+", &self.added),
            ("-", &self.removed),
            ("~", &self.changed),
        ] {
            for part in parts {
                writeln!(f, "{sign} {part}")?;
            }
        }
        for field in &self.restart {
            writeln!(f, "! node: {field} takes effect after a restart")?;
        }
        let mut moves = self
            .rules
            .iter()
            .filter(|rule| rule.changed > 0.0)
            .peekable();
        if moves.peek().is_some() {
            writeln!(
                f,
                "share of each rule's table that gets another backend; pinned flows stay with theirs:"
            )?;
        }
        for rule in moves {
            let (changed, bereft) = (100.0 * rule.changed, 100.0 * rule.bereft);
            let rest = changed - bereft;
            if let Some(why) = &rule.rehashed {
                writeln!(
                    f,
                    "  rule {:?}: {changed:.2} %, flows are rehashed: {why}",
                    rule.rule
                )?;
                continue;
            }
            writeln!(
                f,
                "  rule {:?}: {changed:.2} %: {bereft:.2} since theirs no longer takes flows, {rest:.2} to share evenly",
                rule.rule
            )?;
        }
        let mut touched = self
            .rules
            .iter()
            .filter(|rule| rule.detour + rule.ended > 0.0)
            .peekable();
        if touched.peek().is_some() {
            writeln!(
                f,
                "share of established connections that muxes without their flow send elsewhere; install at hosts first:"
            )?;
        }
        for rule in touched {
            let (detour, ended) = (100.0 * rule.detour, 100.0 * rule.ended);
            let why = match rule.rehashed {
                Some(_) => "hosts look them up in other slots",
                None => "their backend is removed",
            };
            write!(
                f,
                "  rule {:?}: {detour:.2} % take a detour through the host that has them",
                rule.rule
            )?;
            match ended > 0.0 {
                true => writeln!(f, ", {ended:.2} % end: {why}")?,
                false => writeln!(f)?,
            }
        }
        if !self.reach.is_empty() {
            writeln!(
                f,
                "frontends that others can call than before; install at muxes first:"
            )?;
        }
        for change in &self.reach {
            writeln!(f, "  {change}")?;
        }
        const FEW: usize = 20;
        if !self.ports.is_empty() {
            writeln!(f, "ports that move; connections through them end:")?;
        }
        for moved in self.ports.iter().take(FEW) {
            writeln!(f, "  {moved}")?;
        }
        match self.ports.len().saturating_sub(FEW) {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more"),
        }
    }
}

/// Returns the VIP and port of a rule, with the VNI of the VIP's network.
fn port_of(config: &Config, rule: &Rule) -> (Option<Vni>, Option<IpAddr>, Protocol, u16) {
    let frontend = config.frontends.get(rule.frontend);
    let network = frontend.and_then(|frontend| config.network_of_frontend(frontend));
    let vni = network.map(|network| network.vni);
    let address = frontend.map(|frontend| frontend.address);
    (vni, address, rule.protocol, rule.frontend_port)
}

/// Returns the reason why a new configuration rehashes a rule's table, if it does.
fn rehashed(old: &Config, new: &Config, was: &Rule, is: &Rule) -> Option<String> {
    if was.distribution != is.distribution {
        let (was, is) = (was.distribution.name(), is.distribution.name());
        return Some(format!("distribution \"{was}\" becomes \"{is}\""));
    }
    (hash(&old.node) != hash(&new.node)).then(|| "the node's hash differs".to_owned())
}

/// A value that differs between hashers, computed from a fixed tuple so that no key is shown.
fn hash(node: &Node) -> (&'static str, [u64; 3]) {
    let of = |word: u64| node.hasher.ipv4(&[word, !word]);
    (node.hasher.name(), [1, 2, 3].map(of))
}

/// Returns the vms of a host agent that get another port: without a change of devices, packets
/// would reach the wrong vm.
fn vm_moves(old: &Config, new: &Config) -> Vec<String> {
    let (before, now) = (old.vms(), new.vms());
    let before: HashMap<_, _> = before.iter().map(|vm| ((vm.vni, vm.mac), vm)).collect();
    let moved = |is: &Vm| {
        let was = before.get(&(is.vni, is.mac))?;
        let (from, to) = (was.port?.0, is.port?.0);
        (from != to).then(|| format!("vm {:?}: port {from} becomes {to}", is.name))
    };
    now.iter().filter_map(moved).collect()
}

/// Returns the frontend ports of inbound NAT that lead elsewhere.
fn inbound_moves(old: &Config, new: &Config) -> Vec<PortMove> {
    let all = new.inbound_ports();
    let key = |one: &InboundPort| {
        let protocol = one.protocol.name();
        (one.network.clone(), one.address, protocol, one.port)
    };
    let now: HashMap<_, _> = all.iter().map(|one| (key(one), one)).collect();
    let name = |one: &InboundPort| format!("{} port {}", one.backend, one.backend_port);
    let mut moves = Vec::new();
    for was in old.inbound_ports() {
        let is = now.get(&key(&was));
        let (from, to) = (name(&was), is.map(|is| name(is)));
        if to.as_ref() != Some(&from) {
            moves.push(PortMove {
                address: was.address,
                protocol: Some(was.protocol),
                ports: was.port..=was.port,
                from,
                to,
            });
        }
    }
    moves
}

/// Returns the SNAT ports that backends lose.
fn outbound_moves(old: &Config, new: &Config) -> Vec<PortMove> {
    type Owners = BTreeMap<IpAddr, Vec<(RangeInclusive<u16>, String)>>;
    let owners = |config: &Config| {
        let mut all = Owners::new();
        for one in config.outbound_ports() {
            let of = all.entry(one.address).or_default();
            of.extend(
                one.ports
                    .into_iter()
                    .map(|range| (range, one.backend.clone())),
            );
        }
        for of in all.values_mut() {
            of.sort_by_key(|(range, _)| *range.start());
        }
        all
    };
    let (before, after) = (owners(old), owners(new));
    let none = Vec::new();
    let mut moves: Vec<PortMove> = Vec::new();
    for (&address, was) in &before {
        let is = after.get(&address).unwrap_or(&none);
        for (ports, from) in was {
            let mut first = u32::from(*ports.start());
            let last = u32::from(*ports.end());
            while first <= last {
                // The new owner's range with this port, or else the next range.
                let next = is.partition_point(|(range, _)| u32::from(*range.end()) < first);
                let (end, to) = match is.get(next) {
                    Some((range, to)) if u32::from(*range.start()) <= first => {
                        (u32::from(*range.end()).min(last), Some(to))
                    }
                    Some((range, _)) => ((u32::from(*range.start()) - 1).min(last), None),
                    None => (last, None),
                };
                if to != Some(from) {
                    moves.push(PortMove {
                        address,
                        protocol: None,
                        ports: first as u16..=end as u16,
                        from: from.clone(),
                        to: to.cloned(),
                    });
                }
                first = end + 1;
            }
        }
    }
    moves
}
