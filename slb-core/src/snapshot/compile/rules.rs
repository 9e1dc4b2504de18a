//! Rules: load-balancing rules, inbound NAT and SNAT ports, their keys and their counter slots.

use super::size::tables_len;
use crate::flow::Ticks;
use crate::list::RuleName;
use crate::snapshot::addresses::{address_bytes, raw_port};
use crate::snapshot::classify::{ECHO, HA_PORTS, NO_RULE, icmp_of, rule_key};
use crate::snapshot::faults::{instances, rule_item};
use crate::snapshot::probe_map::NONE;
use crate::snapshot::registry::{AlreadyRegistered, identity};
use crate::snapshot::terms::{CompiledTerms, RuleKind};
use crate::snapshot::{CompiledRule, Snapshot};
use crate::spec::snat::{GRANULES, deal, instance, outbound_frontends};
use crate::spec::{InboundNat, NatTarget, Protocol, Rule, Spec, SpecError, Terms};
use crate::wire::protocol;

impl Snapshot<'_> {
    pub(super) fn compile_rules(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
    ) -> Result<(), SpecError> {
        let mut free = tables_len(spec);
        for (index, rule) in spec.rules.iter().enumerate() {
            self.compile_rule(spec, index, rule)?;
        }
        let mut index = spec.rules.len();
        for nat in spec.inbound_nat {
            for (member, port) in nat_rules(spec, nat) {
                self.compile_nat_rule(spec, index, nat, (member, port), free)?;
                index += 1;
                free += 1;
            }
        }
        for (pool, of) in spec.pools.iter().enumerate() {
            if let Some(fault) = instances(spec, pool, of).next() {
                return Err(fault);
            }
        }
        let first_outbound = index;
        for frontend in outbound_frontends(spec) {
            self.compile_outbound(spec, index, frontend, free)?;
            index += 1;
            free += GRANULES;
        }
        self.number_rules(spec, previous)?;
        // A VIP without an HA-ports rule is still a VIP.
        for frontend in 0..spec.frontends.len() {
            let vip = self.vip_of_frontend(spec, frontend);
            let _ = self.rule_keys.insert(rule_key(vip, HA_PORTS, 0), NO_RULE);
        }
        let Self {
            nat, rules, table, ..
        } = self;
        let owners =
            outbound_frontends(spec)
                .zip(first_outbound..)
                .filter_map(|(frontend, rule)| {
                    let start = rules.get(rule)?.table_start as usize;
                    Some((frontend, rule as u32, table.get(start..start + GRANULES)?))
                });
        nat.compile_blocks(spec, owners);
        Ok(())
    }

    fn compile_rule(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        rule: &Rule<'_>,
    ) -> Result<(), SpecError> {
        let compiled = match rule.health {
            Some(health) => &self.probed[health],
            None => &self.pools[rule.pool],
        };
        let (shares, past) = (compiled.shares, compiled.past);
        self.rules[index] = CompiledRule {
            mask: rule.distribution.mask(),
            table_start: compiled.table_start,
            table_size: compiled.table_size,
            first_backend: compiled.first_backend,
            idle_timeout: Ticks::from_duration(rule.idle_timeout),
            slot: NONE,
            ha_ports: rule.protocol == Protocol::All,
            by_port: false,
        };
        let port = match rule.backend_port {
            0 => rule.frontend_port,
            port => port,
        };
        let port = rule.protocol.has_port().then_some(raw_port(port));
        self.terms[index] = CompiledTerms::new(
            RuleKind::Balance,
            rule.idle_timeout,
            rule.pool,
            port,
            &rule.terms,
        );
        self.terms[index].scheduler = rule.scheduler;
        self.terms[index].shares = shares;
        self.terms[index].past = past;
        self.terms[index].is_private = self.private.of(rule.frontend).is_some();
        self.add_key(
            spec,
            rule.frontend,
            rule.protocol,
            rule.frontend_port,
            index,
        )
    }

    /// Adds a key that leads packets for a protocol and port of a frontend to a rule.
    fn add_key(
        &mut self,
        spec: &Spec<'_>,
        frontend: usize,
        protocol: Protocol,
        port: u16,
        index: usize,
    ) -> Result<(), SpecError> {
        let vip = self.vip_of_frontend(spec, frontend);
        let address = spec.frontends[frontend].address;
        let key = match protocol {
            Protocol::Tcp => rule_key(vip, protocol::TCP, raw_port(port)),
            Protocol::Udp => rule_key(vip, protocol::UDP, raw_port(port)),
            Protocol::Icmp => rule_key(vip, icmp_of(address), ECHO),
            Protocol::All => rule_key(vip, HA_PORTS, 0),
        };
        self.rule_keys
            .insert(key, index as u32)
            .map_err(|first| SpecError::ConflictingRules {
                first: rule_item(spec, first as usize),
                second: rule_item(spec, index),
            })
    }

    /// A rule whose table is one slot long.
    fn compile_nat_rule(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        nat: &InboundNat<'_>,
        (member, port): (usize, u16),
        slot: usize,
    ) -> Result<(), SpecError> {
        self.table[slot] = member as u16;
        self.rules[index] = CompiledRule {
            mask: u64::MAX,
            table_start: slot as u32,
            table_size: 1,
            first_backend: self.pools[nat.pool].first_backend,
            idle_timeout: Ticks::from_duration(nat.idle_timeout),
            slot: NONE,
            ha_ports: false,
            by_port: false,
        };
        let backend_port = Some(raw_port(nat.backend_port));
        self.terms[index] = CompiledTerms::new(
            RuleKind::Nat,
            nat.idle_timeout,
            nat.pool,
            backend_port,
            &nat.terms,
        );
        self.terms[index].is_private = self.private.of(nat.frontend).is_some();
        self.add_key(spec, nat.frontend, nat.protocol, port, index)
    }

    /// Compiles the rule that answers to a frontend's SNAT ports match: its table has the owner of
    /// each port.
    fn compile_outbound(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        frontend: usize,
        start: usize,
    ) -> Result<(), SpecError> {
        deal(spec, frontend, &mut self.table[start..start + GRANULES])?;
        let rules = spec
            .outbound
            .iter()
            .filter(|rule| rule.frontends.contains(&frontend));
        let idle = rules
            .clone()
            .map(|rule| rule.idle_timeout)
            .max()
            .unwrap_or_default();
        self.rules[index] = CompiledRule {
            mask: u64::MAX,
            table_start: start as u32,
            table_size: GRANULES as u32,
            first_backend: 0,
            idle_timeout: Ticks::from_duration(idle),
            slot: NONE,
            ha_ports: false,
            by_port: true,
        };
        self.terms[index] =
            CompiledTerms::new(RuleKind::Outbound, idle, 0, None, &Terms::default());
        let address = spec.frontends[frontend].address;
        let vip = self.vip_of(address).unwrap_or_default();
        let icmp = icmp_of(address);
        for rule in rules {
            let protocols: &[u8] = match rule.protocol {
                Protocol::Tcp => &[protocol::TCP],
                Protocol::Udp => &[protocol::UDP],
                Protocol::Icmp => &[icmp],
                Protocol::All => &[protocol::TCP, protocol::UDP, icmp],
            };
            for &number in protocols {
                let _ = self
                    .rule_keys
                    .insert(rule_key(vip, number, 0), index as u32);
            }
        }
        Ok(())
    }

    /// Assigns each rule a counter slot: its former slot, or a free one.
    fn number_rules(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
    ) -> Result<(), SpecError> {
        let previous = previous.map(|previous| &previous.rule_ids);
        let duplicate = |AlreadyRegistered(first), second: usize| SpecError::DuplicateRule {
            first: rule_item(spec, first as usize),
            second: rule_item(spec, second),
        };
        for (index, name) in rule_identities(spec).enumerate() {
            let slot = self
                .rule_ids
                .keep(previous, name, index as u32)
                .map_err(|already| duplicate(already, index))?;
            if let Some(slot) = slot {
                self.rules[index].slot = slot as u32;
            }
        }
        for (index, name) in rule_identities(spec).enumerate() {
            if self.rules[index].slot == NONE {
                let slot = self
                    .rule_ids
                    .add(name, index as u32)
                    .map_err(|already| duplicate(already, index))?;
                self.rules[index].slot = slot as u32;
            }
        }
        Ok(())
    }
}

/// Yields the index in its pool and the port of each backend of an inbound NAT rule or pool.
pub(in crate::snapshot) fn nat_rules<'s>(
    spec: &'s Spec<'_>,
    nat: &'s InboundNat<'_>,
) -> impl Iterator<Item = (usize, u16)> + Clone + 's {
    let all = match nat.target {
        NatTarget::Backend { backend, .. } => backend..backend + 1,
        NatTarget::Pool { .. } => {
            0..spec
                .pools
                .get(nat.pool)
                .map_or(0, |pool| pool.backends.len())
        }
    };
    all.map(|backend| match nat.target {
        NatTarget::Backend { port, .. } => (backend, port),
        NatTarget::Pool { first, .. } => {
            let instance = instance(spec, nat.pool, backend);
            (backend, u32::from(first).saturating_add(instance) as u16)
        }
    })
}

/// Yields the names of all rules, in the order of their indexes.
pub(in crate::snapshot) fn rule_identities<'s>(
    spec: &'s Spec<'_>,
) -> impl Iterator<Item = u64> + Clone + 's {
    let rules = spec
        .rules
        .iter()
        .map(|rule| identity([rule.name.as_bytes(), &[], &[]]));
    let nat = spec.inbound_nat.iter().flat_map(|nat| {
        nat_rules(spec, nat).map(|(_, port)| {
            let [high, low] = port.to_be_bytes();
            let taken = [high, low, nat.protocol as u8];
            identity([nat.name.as_bytes(), b"inbound nat", &taken])
        })
    });
    let outbound = outbound_frontends(spec).filter_map(|index| spec.frontends.get(index));
    let outbound = outbound.map(|f| identity([&address_bytes(f.address), b"outbound", &[]]));
    rules.chain(nat).chain(outbound)
}

/// Yields the identities of rules, each with the name of its rule.
pub(crate) fn rule_names<'s>(
    spec: &'s Spec<'_>,
) -> impl Iterator<Item = (u64, RuleName<'s>)> + Clone + 's {
    let rules = spec.rules.iter().map(|rule| RuleName::Rule(rule.name));
    let nat = spec
        .inbound_nat
        .iter()
        .flat_map(|nat| nat_rules(spec, nat).map(|_| RuleName::InboundNat(nat.name)));
    let outbound = outbound_frontends(spec).filter_map(|index| spec.frontends.get(index));
    let outbound = outbound.map(|frontend| RuleName::Outbound(frontend.name));
    rule_identities(spec).zip(rules.chain(nat).chain(outbound))
}
