//! `slb check`: the faults or the summary of a configuration; `slb diff`: the changes by another
//! one.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use slb_control::config::Frontend;
use slb_control::{Config, ConfigErrors, Diff, InboundPort, Role, format_duration};
use slb_core::spec::{BackendState, NatTarget, Scheduler};
use slb_core::wire::vxlan::Vni;

use crate::Failure;
use crate::cli::{BalancerOptions, CheckOptions, DiffOptions};
use crate::output::is_standard;
use crate::report::counted;

pub(crate) fn run(options: &CheckOptions) -> Result<(), Failure> {
    let path = options.config.path();
    let config = load(path)?;
    config.snapshot(None).map_err(Failure::usage)?;
    let name = match is_standard(path) {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    };
    say_line!("{name}: OK")?;
    for rule in &config.rules {
        let (frontend, pool) = (&config.frontends[rule.frontend], &config.pools[rule.pool]);
        let serving = (0..pool.backends.len()).filter(|&backend| config.serves(rule, backend));
        say_line!(
            "  rule {:?}: {} of {} to pool {:?} ({} of {} backends serve, {}, idle {})",
            rule.name,
            rule.protocol.with_port(rule.frontend_port),
            vip_text(&config, frontend),
            pool.name,
            serving.count(),
            pool.backends.len(),
            match rule.scheduler {
                Scheduler::Maglev => rule.distribution.name(),
                Scheduler::LeastConnections => "least connections",
            },
            format_duration(rule.idle_timeout),
        )?;
    }
    for nat in &config.inbound_nat {
        let (frontend, pool) = (&config.frontends[nat.frontend], &config.pools[nat.pool]);
        let (ports, to) = match nat.target {
            NatTarget::Backend { port, backend } => (
                format!("port {port}"),
                format!("backend {:?}", pool.backends[backend].name),
            ),
            NatTarget::Pool { first, last } => (
                format!("ports {first} to {last}"),
                format!("pool {:?}", pool.name),
            ),
        };
        say_line!(
            "  inbound NAT {:?}: {} {ports} of {} to {to}, port {}",
            nat.name,
            nat.protocol.name(),
            vip_text(&config, frontend),
            nat.backend_port
        )?;
    }
    for rule in &config.outbound {
        let addresses: Vec<String> = rule
            .frontends
            .iter()
            .map(|&frontend| config.frontends[frontend].address.to_string())
            .collect();
        let ports = rule.allocated_outbound_ports.map_or_else(
            || "an even share of the ports".to_owned(),
            |ports| format!("{ports} ports"),
        );
        say_line!(
            "  outbound {:?}: pool {:?} calls out under {}, {ports} for each backend",
            rule.name,
            config.pools[rule.pool].name,
            addresses.join(", ")
        )?;
    }
    print_zones(&config)?;
    print_holders(&config, options.ports)?;
    let mut seats: HashMap<Vni, usize> = HashMap::new();
    for pool in &config.pools {
        *seats.entry(pool.vni).or_default() += pool.backends.len();
    }
    for vm in &config.network_vms {
        if let Some(network) = config.networks.get(vm.network) {
            *seats.entry(network.vni).or_default() += vm.addresses.len();
        }
    }
    for network in &config.networks {
        let spaces = network.address_spaces.iter().map(ToString::to_string);
        let private = config.private_frontends(network).count();
        say_line!(
            "  network {:?}: VNI {}, {}, {} addresses of vms{}",
            network.name,
            network.vni,
            spaces.collect::<Vec<_>>().join(", "),
            seats.get(&network.vni).copied().unwrap_or_default(),
            match private {
                0 => String::new(),
                1 => ", 1 private frontend".to_owned(),
                more => format!(", {more} private frontends"),
            }
        )?;
    }
    for public in &config.public_addresses {
        let network = config.network_of(public.vni);
        let network = network.map_or_else(
            || format!("VNI {}", public.vni),
            |network| format!("network {:?}", network.name),
        );
        let (address, vm) = (public.address, public.vm);
        say_line!("  public address {address}: to vm {vm} in {network}")?;
    }
    for (place, list) in config.security_lists.iter().enumerate() {
        let has = |lists: &[usize]| lists.contains(&place);
        let networks = config.networks.iter().filter(|of| has(&of.security_lists));
        let pools = config.pools.iter().filter(|of| has(&of.security_lists));
        let vms = config
            .network_vms
            .iter()
            .filter(|of| has(&of.security_lists));
        let networks = networks.map(|of| format!("network {:?}", of.name));
        let pools = pools.map(|of| format!("pool {:?}", of.name));
        let vms = vms.map(|of| format!("vm {:?}", of.name));
        let users: Vec<String> = networks.chain(pools).chain(vms).collect();
        let users = match users.is_empty() {
            true => "of no vm".to_owned(),
            false => format!("of {}", users.join(", ")),
        };
        let rules = counted(list.rules.len() as u64, "rule");
        say_line!("  security list {:?}: {rules}, {users}", list.name)?;
    }
    for vm in config.vms() {
        let addresses: Vec<String> = vm.addresses.iter().map(ToString::to_string).collect();
        say_line!(
            "  vm at port {}: {}, MAC {}, VNI {}",
            vm.port.map_or(0, |port| port.0),
            addresses.join(", "),
            vm.mac,
            vm.vni
        )?;
    }
    for line in config.warnings() {
        tell_line!("{name}: warning: {line}");
    }
    Ok(())
}

/// A frontend's address, the network that it belongs to, and its zones.
fn vip_text(config: &Config, frontend: &Frontend) -> String {
    let text = match config.network_of_frontend(frontend) {
        Some(network) => format!("{} in network {:?}", frontend.address, network.name),
        None => frontend.address.to_string(),
    };
    match frontend.zones.as_slice() {
        [] => text,
        [zone] => format!("{text}, zone {zone}"),
        zones => format!("{text}, zones {}", zones.join(" ")),
    }
}

/// Prints the zones of pools, and the zonal VIPs that a mux leaves to other zones.
fn print_zones(config: &Config) -> Result<(), Failure> {
    for (place, pool) in config.pools.iter().enumerate() {
        let zones = config.zone_shares(place).into_iter().map(|own| {
            let zone = match own.zone {
                Some(zone) => format!("zone {zone}"),
                None => "no zone".to_owned(),
            };
            let share = 100.0 * own.share;
            let counts = format!("{} of {} serve", own.serving, own.backends);
            format!("{zone}: {counts}, {share:.2} % of new flows")
        });
        let zones: Vec<String> = zones.collect();
        if !zones.is_empty() {
            say_line!("  pool {:?} by zone: {}", pool.name, zones.join("; "))?;
        }
    }
    if config.node.role != Role::Mux {
        return Ok(());
    }
    for frontend in &config.frontends {
        if let (Some(own), Some(zone)) = (config.node.zone.as_deref(), frontend.zone())
            && frontend.network.is_none()
            && own != zone
        {
            say_line!(
                "  frontend {:?} ({}) is of zone {zone}: this mux, in zone {own}, does not announce it",
                frontend.name,
                frontend.address
            )?;
        }
    }
    Ok(())
}

/// Prints who has which ports of each VIP: a few of each, or all.
fn print_holders(config: &Config, all: bool) -> Result<(), Failure> {
    const FEW: usize = 3;
    let few = |holders: &[String]| {
        let shown = if all { holders.len() } else { FEW };
        let mut text = holders.iter().take(shown).cloned().collect::<Vec<_>>();
        match holders.len().saturating_sub(shown) {
            0 => {}
            more => text.push(format!("and {more} more (--ports prints all)")),
        }
        text.join("; ")
    };
    let inbound = config.inbound_ports();
    for run in inbound.chunk_by(|one, next| (&one.rule, one.address) == (&next.rule, next.address))
    {
        let Some(first) = run.first() else { continue };
        let one =
            |of: &InboundPort| format!("{} is {} port {}", of.port, of.backend, of.backend_port);
        let holders: Vec<String> = run.iter().map(one).collect();
        say_line!(
            "  {} ports of {} by inbound NAT {:?}: {}",
            first.protocol.name(),
            match &first.network {
                Some(network) => format!("{} in network {network:?}", first.address),
                None => first.address.to_string(),
            },
            first.rule,
            few(&holders)
        )?;
    }
    let outbound = config.outbound_ports();
    for run in outbound.chunk_by(|one, next| one.address == next.address) {
        let Some(first) = run.first() else { continue };
        let holders: Vec<String> = run.iter().map(ToString::to_string).collect();
        say_line!("  SNAT ports of {}: {}", first.address, few(&holders))?;
    }
    Ok(())
}

/// Reads a configuration; `-` means standard input.
pub(crate) fn load(path: &Path) -> Result<Config, Failure> {
    let config = match is_standard(path) {
        true => Config::from_reader("standard input", io::stdin().lock()),
        false => Config::from_path(path),
    };
    config.map_err(|errors| faulty(&errors))
}

/// Returns the failure of a configuration with faults.
fn faulty(errors: &ConfigErrors) -> Failure {
    Failure {
        status: 2,
        message: errors.to_string(),
    }
}

/// Reads the configuration of a balancer, and applies its options.
pub(crate) fn load_balancer(path: &Path, options: &BalancerOptions) -> Result<Config, Failure> {
    let mut config = load(path)?;
    if let Some(role) = options.role {
        let in_role = config.in_role(role.into());
        config = in_role.map_err(|errors| faulty(&errors))?;
    }
    if options.stateless {
        config.node.flows = 0;
    }
    for (names, state) in [
        (&options.down, BackendState::Down),
        (&options.drain, BackendState::Draining),
    ] {
        for name in names {
            let backend = config.backend_mut(name);
            let missing = || Failure::usage(format!("there is no backend {name:?}"));
            backend.ok_or_else(missing)?.state = state;
        }
    }
    Ok(config)
}

/// Runs `slb diff`.
pub(crate) fn diff(options: &DiffOptions) -> Result<(), Failure> {
    let expected = || Failure::usage("diff: expected two configurations, the old and the new one");
    let (old, new) = options.paths().ok_or_else(expected)?;
    if is_standard(old) && is_standard(new) {
        return Err(Failure::usage(
            "diff: expected one configuration from standard input at most, got - twice",
        ));
    }
    let (old, new) = (load(old)?, load(new)?);
    say!("{}", Diff::between(&old, &new).map_err(Failure::usage)?)?;
    Ok(())
}
