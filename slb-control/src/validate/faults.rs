//! Faults that slb-core finds in the spec of a configuration, with the lines and names of their
//! items.

use std::net::IpAddr;

use slb_core::PortId;
use slb_core::maglev::MaglevError;
use slb_core::spec::{NatTarget, Prefix, RuleItem, SpecError};
use slb_core::wire::ethernet::MacAddress;

use crate::config::addresses::has_hosts;
use crate::config::{Backend, Config, Pool, Role};
use crate::document::{Faults, Span};

/// The maximum number of reported faults of one spec, since each needs a lookup of its line.
const MOST: usize = 100;

/// Reports every fault of the spec. Faults that fields or other checks also report are added only
/// if these reported none.
pub(super) fn check(config: &Config, faults: &Faults<'_>) {
    config.with_spec(|spec| {
        let mut untold = None;
        for error in spec.faults().take(MOST) {
            match told(config, &error) {
                Some((span, place, message)) => faults.add(&span, place, message),
                None => untold = untold.or(Some(error)),
            }
        }
        if let Some(error) = untold.filter(|_| faults.is_empty()) {
            faults.add(&(0..0), "", error.named(spec).to_string());
        }
    });
}

/// Returns the line, the item and the message of a fault; `None` if fields or other checks report
/// it.
fn told(config: &Config, error: &SpecError) -> Option<(Span, String, String)> {
    let of_rule = |item| rule(config, item);
    let (span, place, message) = match *error {
        SpecError::DuplicateFrontend { first, second } => {
            let (first, second) = (config.frontends.get(first)?, config.frontends.get(second)?);
            let place = format!("frontend {:?}: address", second.name);
            let (address, other) = (second.address, &first.name);
            let message = format!("{address} is the address of frontend {other:?} already");
            (second.span.clone(), place, message)
        }
        // Names of inbound NAT are unique anyway.
        SpecError::DuplicateRule {
            first: RuleItem::InboundNat(_),
            ..
        } => return None,
        SpecError::DuplicateRule { second, .. } => {
            let (span, place, _) = of_rule(second)?;
            (span, place, "duplicate name".to_owned())
        }
        SpecError::ConflictingRules {
            first: RuleItem::Rule(first),
            second: RuleItem::Rule(second),
        } => {
            let (first, second) = (config.rules.get(first)?, config.rules.get(second)?);
            let message = format!(
                "takes {} port {} of frontend {:?}, as rule {:?} does",
                second.protocol.name(),
                second.frontend_port,
                config.frontends.get(second.frontend)?.name,
                first.name
            );
            (
                second.span.clone(),
                format!("rule {:?}", second.name),
                message,
            )
        }
        // Another check compares the ranges of inbound NAT.
        SpecError::ConflictingRules { .. } => return None,
        SpecError::MixedFamilies {
            item,
            frontend,
            pool,
            backend,
        } => {
            let (span, place, _) = of_rule(item)?;
            let (frontend, pool) = (config.frontends.get(frontend)?, config.pools.get(pool)?);
            let backend = pool.backends.get(backend)?;
            let message = format!(
                "frontend {:?} is {}, but backend {:?} of pool {:?} is {}",
                frontend.name, frontend.address, backend.name, pool.name, backend.address
            );
            (span, place, message)
        }
        SpecError::SourceNatFamily { item } => {
            let (span, place, frontend) = of_rule(item)?;
            let source_nat = match item {
                RuleItem::Rule(index) => config.rules.get(index)?.terms.source_nat?,
                RuleItem::InboundNat(index) => config.inbound_nat.get(index)?.terms.source_nat?,
                RuleItem::Outbound(_) | RuleItem::SnatPorts(_) => return None,
            };
            let of = config.frontends.get(frontend?)?.address;
            let message = format!("expected an address of the family of {of}, got {source_nat}");
            (span, format!("{place}: source_nat"), message)
        }
        SpecError::Table {
            pool,
            error: MaglevError::DuplicateName { member },
        } => {
            let (pool, backend) = member_of(config, pool, member)?;
            let place = format!("pool {:?}: backend {:?}", pool.name, backend.name);
            (backend.span.clone(), place, "duplicate name".to_owned())
        }
        SpecError::SeatTaken {
            pool,
            first,
            second,
        } => {
            let (_, other) = member_of(config, pool, first)?;
            let (pool, backend) = member_of(config, pool, second)?;
            let seat = backend.seat();
            let place = format!("pool {:?}: backend {:?}: seat", pool.name, backend.name);
            let message = format!(
                "backend {:?} has seat {seat:?} already: expected one of the two to have weight 0, or to drain",
                other.name
            );
            (backend.span.clone(), place, message)
        }
        // The field's own check names the next prime.
        SpecError::Table {
            error: MaglevError::SizeNotPrime { .. },
            ..
        } => return None,
        SpecError::Table { pool, error } => {
            let pool = config.pools.get(pool)?;
            let place = format!("pool {:?}", pool.name);
            (pool.span.clone(), place, error.to_string())
        }
        SpecError::NoUnderlayAddress { pool, backend } => {
            let (pool, backend) = member_of(config, pool, backend)?;
            let place = format!("pool {:?}: backend {:?}: host", pool.name, backend.name);
            (backend.span.clone(), place, no_underlay(backend.host))
        }
        SpecError::NoUnderlayAddressForMux { mux } => {
            let address = *config.node.muxes.get(mux)?;
            (0..0, "node: muxes".to_owned(), no_underlay(address))
        }
        SpecError::NatPoolFull { rule, .. } => {
            let nat = config.inbound_nat.get(rule)?;
            let pool = config.pools.get(nat.pool)?;
            let NatTarget::Pool { first, last } = nat.target else {
                return None;
            };
            let instances = pool.backends.iter().enumerate();
            let most = instances
                .map(|(i, b)| b.instance.map_or(i, |n| n as usize) + 1)
                .max();
            let message = format!(
                "expected a port for each instance of pool {:?}, {} of them, got {} ports ({first} \
                 to {last})",
                pool.name,
                most.unwrap_or(0),
                u32::from(last.saturating_sub(first)) + 1
            );
            let place = format!("{} {:?}", nat.kind(), nat.name);
            (nat.span.clone(), place, message)
        }
        SpecError::DuplicateInstance {
            pool,
            first,
            second,
            instance,
        } => {
            let (_, other) = member_of(config, pool, first)?;
            let (pool, backend) = member_of(config, pool, second)?;
            if other.instance.is_some() && other.instance == backend.instance {
                return None; // always reported elsewhere
            }
            let place = format!("pool {:?}: backend {:?}: instance", pool.name, backend.name);
            let message = format!(
                "{instance} is the instance of backend {:?} already",
                other.name
            );
            (backend.span.clone(), place, message)
        }
        SpecError::RepeatedFrontend { rule, frontend } => {
            let (span, place, _) = of_rule(RuleItem::Outbound(rule))?;
            let name = &config.frontends.get(frontend)?.name;
            let message = format!("duplicate name {name:?}");
            (span, format!("{place}: frontends"), message)
        }
        SpecError::OutOfPorts {
            rule,
            frontend,
            needed,
            available,
        } => {
            let (span, place, _) = of_rule(RuleItem::Outbound(rule))?;
            let message = format!(
                "needs {needed} ports of frontend {:?} in all, which has {available} left (each port that a rule takes costs eight)",
                config.frontends.get(frontend)?.name
            );
            let place = format!("{place}: allocated_outbound_ports");
            (span, place, message)
        }
        // Another check counts the ports of each kind.
        SpecError::FrontendPorts { .. } => return None,
        SpecError::FrontendPortAddress { port } => {
            let port = config.ports.all.get(usize::from(port.0))?;
            let message = "is missing: in \"multi\" mode each frontend port needs one";
            let place = format!("port {:?}: address", port.name);
            (port.span.clone(), place, message.to_owned())
        }
        SpecError::UnusablePort { port } if config.node.role == Role::Proxy => {
            let number = usize::from(port.0);
            let port = config.ports.all.get(number)?;
            let address = port.address?;
            let mut others = config.ports.all.iter().take(number);
            let other = others.find(|other| other.address == Some(address))?;
            let place = format!("port {:?}: address", port.name);
            let message = format!("{address} is the address of port {:?} already", other.name);
            (port.span.clone(), place, message)
        }
        // A proxy's check of its backends reports it.
        SpecError::FrontendBackend { .. } if config.node.role == Role::Proxy => return None,
        SpecError::FrontendBackend {
            frontend,
            pool,
            backend,
        } => {
            let frontend = config.frontends.get(frontend)?;
            let (pool, backend) = member_of(config, pool, backend)?;
            let place = format!("pool {:?}: backend {:?}: address", pool.name, backend.name);
            let message = format!(
                "expected an address of its own, but {} is frontend {:?}'s",
                frontend.address, frontend.name
            );
            (backend.span.clone(), place, message)
        }
        SpecError::SourceNatFrontend { item, frontend } => {
            let (span, place, _) = of_rule(item)?;
            let frontend = config.frontends.get(frontend)?;
            let message = format!(
                "expected an address of the balancer's, but {} is frontend {:?}'s: answers would be for the VIP",
                frontend.address, frontend.name
            );
            (span, format!("{place}: source_nat"), message)
        }
        SpecError::PoolOutsideNetwork {
            item,
            frontend,
            pool,
        } => {
            let (span, place, _) = of_rule(item)?;
            let (frontend, pool) = (config.frontends.get(frontend)?, config.pools.get(pool)?);
            let message = format!(
                "frontend {:?} belongs to network {:?}: expected a pool of it, got pool {:?} of VNI {}",
                frontend.name,
                config.network_of_frontend(frontend)?.name,
                pool.name,
                pool.vni
            );
            (span, format!("{place}: pool"), message)
        }
        SpecError::PrivateThroughMux { item } => {
            let (span, place, frontend) = of_rule(item)?;
            let frontend = config.frontends.get(frontend?)?;
            let message = format!(
                "expected \"direct\", since no mux is on the way to frontend {:?} of network {:?}",
                frontend.name,
                config.network_of_frontend(frontend)?.name
            );
            (span, format!("{place}: answers"), message)
        }
        SpecError::PrivateOutbound { rule, frontend } => {
            let (span, place, _) = of_rule(RuleItem::Outbound(rule))?;
            let frontend = config.frontends.get(frontend)?;
            let message = format!(
                "expected a public frontend, but {:?} belongs to network {:?}",
                frontend.name,
                config.network_of_frontend(frontend)?.name
            );
            (span, format!("{place}: frontends"), message)
        }
        SpecError::OwnMac { pool, backend } => {
            let (pool, backend) = member_of(config, pool, backend)?;
            let place = format!("pool {:?}: backend {:?}: mac", pool.name, backend.name);
            let message = format!(
                "expected the vm's own, but {}",
                own_mac(config, backend.mac())
            );
            (backend.span.clone(), place, message)
        }
        SpecError::OwnNextHop { pool, backend } => {
            let (pool, backend) = member_of(config, pool, backend)?;
            let place = format!("pool {:?}: backend {:?}: next_hop", pool.name, backend.name);
            let mac = own_mac(config, backend.next_hop?);
            let message = format!("expected a neighbour's MAC address, but {mac}");
            (backend.span.clone(), place, message)
        }
        SpecError::OwnUnderlayNextHop => {
            let mac = own_mac(config, config.node.underlay().next_hop);
            let message = format!("expected the router's MAC address, but {mac}");
            (
                config.node.span.clone(),
                "node: next_hop".to_owned(),
                message,
            )
        }
        // Vms of all hosts are compared by their addresses.
        SpecError::TwoMacs { .. } => return None,
        SpecError::ConflictingOutbound { first, second } => {
            let (span, place, _) = of_rule(RuleItem::Outbound(second))?;
            let (first, second) = (config.outbound.get(first)?, config.outbound.get(second)?);
            let mut shared = second.frontends.iter();
            let shared = shared.find(|frontend| first.frontends.contains(frontend))?;
            let message = format!(
                "lets {} of pool {:?} out under frontend {:?}, as outbound_rule {:?} does: expected one rule \
                 for both",
                second.protocol.name(),
                config.pools.get(second.pool)?.name,
                config.frontends.get(*shared)?.name,
                first.name
            );
            (span, place, message)
        }
        SpecError::SourceRewriteAddress { index } => {
            let span = config.ports.rewrite_spans.get(index)?.clone();
            let rewrite = config.ports.source_rewrites.get(index)?;
            let len = rewrite.prefix_len;
            let mut ends = [rewrite.from, rewrite.to].into_iter();
            if ends.any(|address| !has_hosts(Prefix { address, len })) {
                return None; // the fields' own check reports it
            }
            let message = "expected two ranges of unicast addresses".to_owned();
            (span, format!("source_rewrite {}", index + 1), message)
        }
        SpecError::SourceRewriteOverlap { first, second } => {
            let span = config.ports.rewrite_spans.get(second)?.clone();
            let (own, other) = (
                config.ports.source_rewrites.get(second)?,
                config.ports.source_rewrites.get(first)?,
            );
            let (len, other_len) = (own.prefix_len, other.prefix_len);
            let message = format!(
                "{}/{len} to {}/{len} overlaps {}/{other_len} to {}/{other_len} (source_rewrite {}): expected exceptions before their range, and a different address for each client",
                own.from,
                own.to,
                other.from,
                other.to,
                first + 1
            );
            (span, format!("source_rewrite {}", second + 1), message)
        }
        SpecError::PortConflict {
            first,
            second,
            port: PortId(port),
        } => {
            let backends = || {
                let pools = config.pools.iter();
                pools.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
            };
            let (pool, backend) = backends().nth(second)?;
            let (other_pool, other) = backends().nth(first)?;
            let place = format!("pool {:?}: backend {:?}: port", pool.name, backend.name);
            let message = format!(
                "port {port} has another vm already, backend {:?} of pool {:?}",
                other.name, other_pool.name
            );
            (backend.span.clone(), place, message)
        }
        SpecError::PublicAddress { .. } => return super::public::told(config, error),
        _ => return super::networks::told(config, error),
    };
    Some((span, place, message))
}

/// Returns the line, the section and the frontend of a rule.
fn rule(config: &Config, item: RuleItem) -> Option<(Span, String, Option<usize>)> {
    Some(match item {
        RuleItem::Rule(index) => {
            let rule = config.rules.get(index)?;
            let place = format!("rule {:?}", rule.name);
            (rule.span.clone(), place, Some(rule.frontend))
        }
        RuleItem::InboundNat(index) => {
            let nat = config.inbound_nat.get(index)?;
            let place = format!("{} {:?}", nat.kind(), nat.name);
            (nat.span.clone(), place, Some(nat.frontend))
        }
        RuleItem::Outbound(index) => {
            let rule = config.outbound.get(index)?;
            let place = format!("outbound_rule {:?}", rule.name);
            (rule.span.clone(), place, None)
        }
        RuleItem::SnatPorts(index) => {
            let frontend = config.frontends.get(index)?;
            let place = format!("frontend {:?}", frontend.name);
            (frontend.span.clone(), place, Some(index))
        }
    })
}

fn member_of(config: &Config, pool: usize, backend: usize) -> Option<(&Pool, &Backend)> {
    let pool = config.pools.get(pool)?;
    Some((pool, pool.backends.get(backend)?))
}

/// Returns the message for a MAC address that is this node's.
fn own_mac(config: &Config, mac: MacAddress) -> String {
    match config.node.mac {
        Some(_) => format!("{mac} is this node's (mac of [node])"),
        None => format!("{mac} is this node's where [node] has no mac and no interface"),
    }
}

pub(super) fn no_underlay(address: IpAddr) -> String {
    let family = match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    format!("{address} is {family}, but the node's underlay has no such address")
}
