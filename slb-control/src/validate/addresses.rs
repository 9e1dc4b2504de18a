//! Addresses that exclude each other, and backends that no packet reaches.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use slb_core::maglev::{self, Member, Turn};
use slb_core::spec::{Answers, Prefix};
use slb_core::wire::ipv6;
use slb_core::wire::vxlan::Vni;

use crate::config::addresses::range;
use crate::config::{Backend, Config, Pool, Role};
use crate::document::{Faults, Span};

/// Bytes of the outer UDP and VXLAN headers and of the inner Ethernet header.
const VXLAN_OVERHEAD: u16 = 30;

/// Adds a fault for each frontend and each public address whose address this node, a host or a mux has:
/// a mux that takes such an address's packets cuts that machine off.
pub(super) fn check_vips(config: &Config, faults: &Faults<'_>) {
    let mut machines: HashMap<IpAddr, String> = HashMap::new();
    for &mux in &config.node.muxes {
        machines.insert(mux, "a mux".to_owned());
    }
    if config.node.role != Role::Proxy {
        for (pool, backend) in backends(config) {
            let machine = format!(
                "the host of backend {:?} of pool {:?}",
                backend.name, pool.name
            );
            machines.entry(backend.host).or_insert(machine);
        }
        for vm in &config.network_vms {
            let machine = format!("the host of vm {:?}", vm.name);
            machines.entry(vm.host).or_insert(machine);
        }
    }
    for own in config
        .node
        .ipv4
        .map(IpAddr::V4)
        .into_iter()
        .chain(config.node.ipv6.map(IpAddr::V6))
    {
        machines.insert(own, "this node (underlay of [node])".to_owned());
    }
    // The fabric does not know private ones.
    let public = config.frontends.iter();
    for frontend in public.filter(|frontend| frontend.network.is_none()) {
        let place = format!("frontend {:?}: address", frontend.name);
        let address = frontend.address;
        if let Some(machine) = machines.get(&address) {
            let message = format!("expected an address of its own, but {address} is {machine}");
            faults.add(&frontend.span, place, message);
        }
    }
    for public in &config.public_addresses {
        let address = public.address;
        if let Some(machine) = machines.get(&address) {
            let message = format!("expected an address of its own, but {address} is {machine}");
            faults.add(&public.span, super::public::place(public), message);
        }
    }
}

/// Adds a fault for each range of a proxy that gives a client the address of a frontend or a backend: answers would be
/// for the VIP, or stay at the backend.
///
/// # Cost
/// A binary search for each range.
pub(super) fn check_rewrites(config: &Config, faults: &Faults<'_>) {
    let frontends = config.frontends.iter();
    let frontends = frontends.map(|one| (one.address, format!("frontend {:?}'s", one.name)));
    let backends = backends(config);
    let backends = backends.map(|(pool, one)| {
        let whose = format!("that of backend {:?} of pool {:?}", one.name, pool.name);
        (one.address, whose)
    });
    let mut taken: Vec<(IpAddr, String)> = frontends.chain(backends).collect();
    taken.sort();
    let rewrites = config.ports.source_rewrites.iter();
    for (number, (rewrite, span)) in (1..).zip(rewrites.zip(&config.ports.rewrite_spans)) {
        let to = Prefix {
            address: rewrite.to,
            len: rewrite.prefix_len,
        };
        let [first, last] = range(to);
        let place = taken.partition_point(|(address, _)| *address < first);
        if let Some((address, whose)) = taken.get(place).filter(|(address, _)| *address <= last) {
            let message =
                format!("expected addresses of the balancer's, but {address} in {to} is {whose}");
            faults.add(span, format!("source_rewrite {number}: to"), message);
        }
    }
}

/// Adds a fault for each backend of a proxy whose packets would come back to the proxy, since it has a frontend's
/// address that its pool serves, and for each that is another of its pool: answers of the two look the same.
pub(super) fn check_proxied(config: &Config, faults: &Faults<'_>) {
    let mut vips: HashMap<(usize, IpAddr), &str> = HashMap::new();
    let rules = config.rules.iter().map(|rule| (rule.pool, rule.frontend));
    let nat = config
        .inbound_nat
        .iter()
        .map(|nat| (nat.pool, nat.frontend));
    for (pool, frontend) in rules.chain(nat) {
        if let Some(frontend) = config.frontends.get(frontend) {
            vips.insert((pool, frontend.address), &frontend.name);
        }
    }
    for (index, pool) in config.pools.iter().enumerate() {
        let mut known: HashMap<(IpAddr, Option<u16>), &Backend> = HashMap::new();
        for backend in &pool.backends {
            let place = format!("pool {:?}: backend {:?}: address", pool.name, backend.name);
            let address = backend.address;
            if let Some(frontend) = vips.get(&(index, address)) {
                let message =
                    format!("{address} is the address of frontend {frontend:?}, which it serves");
                faults.add(&backend.span, place.clone(), message);
            }
            let first = *known
                .entry((address, backend.backend_port))
                .or_insert(backend);
            // One name twice is reported as such.
            if first.name != backend.name {
                let message = format!(
                    "backend {:?} has {address} and the same port already: expected a backend_port of its own, or \
                     one backend",
                    first.name
                );
                faults.add(&backend.span, place, message);
            }
        }
    }
}

/// Adds a fault for each rule whose `source_nat` is the address of a backend of its pool, which would answer itself, or
/// a public address, whose vm would get the answers.
pub(super) fn check_source_nat(config: &Config, faults: &Faults<'_>) {
    let publics = config.public_addresses.iter();
    let publics: HashSet<IpAddr> = publics.map(|public| public.address).collect();
    let rules = config.rules.iter();
    let rules = rules.map(|rule| ("rule", &rule.name, rule.pool, &rule.terms, &rule.span));
    let nat = config.inbound_nat.iter();
    let nat = nat.map(|nat| (nat.kind(), &nat.name, nat.pool, &nat.terms, &nat.span));
    for (kind, name, pool, terms, span) in rules.chain(nat) {
        let (Some(address), Some(pool)) = (terms.source_nat, config.pools.get(pool)) else {
            continue;
        };
        let backend = pool.backends.iter().find(|b| b.address == address);
        let backend =
            backend.map(|backend| format!("is backend {:?} of pool {:?}", backend.name, pool.name));
        let whose = backend.or_else(|| {
            let is_public = publics.contains(&address);
            is_public.then(|| "is a public address of a vm, which would get the answers".to_owned())
        });
        if let Some(whose) = whose {
            let message = format!("expected an address of the balancer's, but {address} {whose}");
            faults.add(span, format!("{kind} {name:?}: source_nat"), message);
        }
    }
}

/// Adds a fault for each frontend and each public address that a host agent's ICMP errors come from: their
/// receivers would take a VIP or a vm for a router.
pub(super) fn check_icmp_source(config: &Config, faults: &Faults<'_>) {
    let node = &config.node;
    let sources = [
        node.icmp_source_ipv4.map(IpAddr::V4),
        node.icmp_source_ipv6.map(IpAddr::V6),
    ];
    let frontends = config.frontends.iter().map(|frontend| {
        let place = format!("frontend {:?}: address", frontend.name);
        (frontend.address, place, &frontend.span)
    });
    let publics = config.public_addresses.iter().map(|public| {
        let place = format!("{}: address", super::public::place(public));
        (public.address, place, &public.span)
    });
    for (address, place, span) in frontends.chain(publics) {
        if sources.contains(&Some(address)) {
            let message = format!(
                "expected an address of its own, but {address} is where ICMP errors come from (icmp_source of [node])"
            );
            faults.add(span, place, message);
        }
    }
}

/// Adds a fault for each public address that a probed backend has: the mux announces the address, so its own probes of
/// the backend would reach the other vm.
pub(super) fn check_probed_publics(config: &Config, faults: &Faults<'_>) {
    if config.public_addresses.is_empty() || config.node.role != Role::Mux {
        return;
    }
    let probed: HashSet<usize> = config
        .rules
        .iter()
        .filter(|rule| rule.probe.is_some())
        .map(|rule| rule.pool)
        .collect();
    let mut backends: HashMap<IpAddr, (&Pool, &Backend)> = HashMap::new();
    for (index, pool) in config.pools.iter().enumerate() {
        if probed.contains(&index) {
            let all = pool.backends.iter();
            backends.extend(all.map(|backend| (backend.address, (pool, backend))));
        }
    }
    for public in &config.public_addresses {
        if let Some((pool, backend)) = backends.get(&public.address) {
            let message = format!(
                "expected an address of its own, but {} is backend {:?} of pool {:?}, which is probed",
                public.address, backend.name, pool.name
            );
            let place = format!("{}: address", super::public::place(public));
            faults.add(&public.span, place, message);
        }
    }
}

/// Adds a fault for each backend that has another's address on the same host and network, and another MAC
/// address, and for each that shares its host's port with another vm.
pub(super) fn check_hosts(config: &Config, faults: &Faults<'_>) {
    if config.node.role == Role::Proxy {
        return;
    }
    let mut addresses: HashMap<(IpAddr, Vni, IpAddr), (&Pool, &Backend)> = HashMap::new();
    let mut ports: HashMap<(IpAddr, u16), (&Pool, &Backend)> = HashMap::new();
    for (pool, backend) in backends(config) {
        let place = format!("pool {:?}: backend {:?}", pool.name, backend.name);
        let key = (backend.host, pool.vni, backend.address);
        let (other, first) = *addresses.entry(key).or_insert((pool, backend));
        if first.mac() != backend.mac() {
            let message = format!(
                "{} in network {} of host {} has MAC address {} by backend {:?} of pool {:?} (line {}), and {} \
                 here: expected one",
                backend.address,
                pool.vni,
                backend.host,
                first.mac(),
                first.name,
                other.name,
                faults.line(&first.span),
                backend.mac(),
            );
            faults.add(&backend.span, format!("{place}: mac"), message);
        }
        // Those of this host agent's own vms are the spec's to judge.
        let is_own = config.node.role == Role::Host && config.node.is(backend.host);
        let Some(port) = backend.port.filter(|_| !is_own) else {
            continue;
        };
        let (other, first) = *ports.entry((backend.host, port)).or_insert((pool, backend));
        if (first.mac(), other.vni) != (backend.mac(), pool.vni) {
            let message = format!(
                "port {port} of host {} has another vm already, backend {:?} of pool {:?} (line {})",
                backend.host,
                first.name,
                other.name,
                faults.line(&first.span),
            );
            faults.add(&backend.span, format!("{place}: port"), message);
        }
    }
}

/// Adds a fault for each backend that says an instance number that another of its pool says.
pub(super) fn check_instances(config: &Config, faults: &Faults<'_>) {
    for pool in &config.pools {
        let mut known: HashMap<u32, &Backend> = HashMap::new();
        for backend in &pool.backends {
            let Some(instance) = backend.instance else {
                continue;
            };
            let first = *known.entry(instance).or_insert(backend);
            if !std::ptr::eq(first, backend) {
                let place = format!("pool {:?}: backend {:?}: instance", pool.name, backend.name);
                let message = format!(
                    "{instance} is the instance of backend {:?} already",
                    first.name
                );
                faults.add(&backend.span, place, message);
            }
        }
    }
}

/// A need for a greater MTU than the node has.
struct ShortMtu<'c> {
    span: &'c Span,
    place: String,
    /// The address that packets are sent to by the fabric.
    outer: IpAddr,
    /// True if the fabric itself is too narrow for IPv6; else it is the room for IPv6 inside of VXLAN.
    is_of_fabric: bool,
}

impl ShortMtu<'_> {
    /// The least MTU that suffices.
    fn needed(&self) -> usize {
        match self.is_of_fabric {
            true => ipv6::MIN_MTU,
            false => ipv6::MIN_MTU + usize::from(overhead(self.outer)),
        }
    }

    /// The reason why the MTU has to be greater.
    fn reason(&self) -> String {
        let (least, outer) = (ipv6::MIN_MTU, self.outer);
        match self.is_of_fabric {
            true => format!(
                "{outer} is reached over IPv6, which needs {least} bytes on every link (RFC 8200 §5)"
            ),
            false => format!(
                "IPv6 needs {least} bytes on every link (RFC 8200 §5), and the outer headers take {}",
                overhead(outer)
            ),
        }
    }
}

/// Returns each IPv6 pool whose packets this node would have to send through VXLAN that carries less than IPv6's
/// smallest MTU.
fn short_mtus(config: &Config) -> Vec<ShortMtu<'_>> {
    let mtu = config.mtu();
    let is_short = |outer: IpAddr| {
        let room = mtu.saturating_sub(overhead(outer));
        usize::from(room) < ipv6::MIN_MTU
    };
    let short = |span, place, outer, is_of_fabric| ShortMtu {
        span,
        place,
        outer,
        is_of_fabric,
    };
    match config.node.role {
        Role::Proxy => Vec::new(),
        Role::Mux => {
            // The fabric itself has to be one that IPv6 can cross.
            let far = backends(config).find(|(_, backend)| backend.host.is_ipv6());
            if let Some((pool, backend)) = far.filter(|_| usize::from(mtu) < ipv6::MIN_MTU) {
                let place = format!("pool {:?}: backend {:?}: host", pool.name, backend.name);
                return vec![short(&backend.span, place, backend.host, true)];
            }
            let found = config.pools.iter().filter_map(|pool| {
                let mut all = pool.backends.iter();
                let first = all.find(|own| own.address.is_ipv6() && is_short(own.host));
                Some((pool, first?))
            });
            found
                .map(|(pool, backend)| {
                    let place = format!("pool {:?}: backend {:?}", pool.name, backend.name);
                    short(&backend.span, place, backend.host, false)
                })
                .collect()
        }
        Role::Host => {
            let far = config.node.muxes.iter().find(|mux| mux.is_ipv6());
            if let Some(&mux) = far.filter(|_| usize::from(mtu) < ipv6::MIN_MTU) {
                return vec![short(&config.node.span, "node: mtu".to_owned(), mux, true)];
            }
            let Some(&mux) = config.node.muxes.iter().find(|&&mux| is_short(mux)) else {
                return Vec::new();
            };
            let is_ipv6 = |frontend: usize| config.frontends[frontend].address.is_ipv6();
            let rules = config
                .rules
                .iter()
                .filter(|rule| rule.terms.answers == Answers::ThroughMux && is_ipv6(rule.frontend));
            rules
                .map(|rule| {
                    let place = format!("rule {:?}: answers", rule.name);
                    short(&rule.span, place, mux, false)
                })
                .collect()
        }
    }
}

/// Adds a fault for each need for a greater MTU than the node has.
pub(super) fn check_mtu(config: &Config, faults: &Faults<'_>) {
    let mtu = config.mtu();
    for short in short_mtus(config) {
        let message = format!(
            "expected an mtu of {} or more in [node], got {mtu}: {}",
            short.needed(),
            short.reason()
        );
        faults.add(short.span, short.place, message);
    }
}

/// Returns the greatest MTU that the node needs for IPv6, with the reason, if it has less.
pub(crate) fn short_mtu(config: &Config) -> Option<(usize, String)> {
    let all = short_mtus(config).into_iter();
    let worst = all.max_by_key(ShortMtu::needed)?;
    let why = format!("{}: {}", worst.place, worst.reason());
    Some((worst.needed(), why))
}

/// Adds a fault for each backend whose weight, beside those of its pool, gives it no slot of the
/// Maglev table, and so no flow.
pub(super) fn check_shares(config: &Config, faults: &Faults<'_>) {
    for pool in &config.pools {
        let weights = || {
            pool.backends
                .iter()
                .map(|backend| u64::from(backend.weight))
        };
        let total: u64 = weights().sum();
        let size = u64::from(pool.table_size);
        let Some(least) = weights().filter(|&weight| weight > 0).min() else {
            continue;
        };
        if least * size >= total || pool.backends.len() > maglev::MAX_BACKENDS {
            continue; // every share is one slot or more
        }
        let members: Vec<Member<'_>> = pool
            .backends
            .iter()
            .map(|backend| Member {
                name: backend.seat(),
                weight: backend.weight,
            })
            .collect();
        let mut table = vec![maglev::EMPTY; pool.table_size as usize];
        let mut turns = vec![Turn::default(); members.len()];
        if maglev::build(&members, config.node.hash_seed, &mut table, &mut turns).is_err() {
            continue; // another check names it
        }
        let mut slots = vec![0_u32; members.len()];
        for &index in &table {
            if let Some(slots) = slots.get_mut(usize::from(index)) {
                *slots += 1;
            }
        }
        for (backend, _) in pool
            .backends
            .iter()
            .zip(slots)
            .filter(|(b, slots)| b.weight > 0 && *slots == 0)
        {
            let message = format!(
                "weight {} of {total} in all gets none of the {size} slots in the pool's table, so no flows: expected a table_size of {} or more, or weights closer to each other",
                backend.weight,
                total.div_ceil(u64::from(backend.weight)),
            );
            let place = format!("pool {:?}: backend {:?}: weight", pool.name, backend.name);
            faults.add(&backend.span, place, message);
        }
    }
}

/// Bytes that VXLAN adds to an inner IP packet towards this outer address.
const fn overhead(outer: IpAddr) -> u16 {
    match outer {
        IpAddr::V4(_) => VXLAN_OVERHEAD + 20,
        IpAddr::V6(_) => VXLAN_OVERHEAD + 40,
    }
}

fn backends(config: &Config) -> impl Iterator<Item = (&Pool, &Backend)> {
    config
        .pools
        .iter()
        .flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
}
