//! Specs of any kind, one after another: each compiles or says what is wrong with it, in as much memory as was
//! said; and what compiled runs, in all roles, with flows of the generation before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bolero::{TypeGenerator, produce};
use slb_core::hash::Distribution;
use slb_core::health::Condition;
use slb_core::mem::{Arena, Line};
use slb_core::nat::Direction;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Access, Answers, Backend, BackendHealth, BackendState, Echo, Frontend, FrontendPort,
    InboundNat, NatTarget, Network, NetworkVm, Outbound, Peers, Pool, PoolHealth, PortMode, Prefix,
    Protocol, ProxyPorts, PublicAddress, Rule, Scheduler, SecurityList, SecurityProtocol,
    SecurityRule, SourceRewrite, Spec, SpecError, Terms, Underlay,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{
    Burst, Dataplane, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Proxy, Verdict,
};
use slb_fuzz::{Nearly, VIP, VIP6};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "", "ä long name, as names go"];
const TABLES: [u32; 4] = [7, 13, 31, 251];
const NO_TABLES: [u32; 4] = [0, 1, 3, 12];
const PORTS: [u16; 8] = [80, 80, 53, 81, 1024, 1032, 65_535, 8080];

/// Mostly one that nobody else has.
fn name(place: usize, which: u8) -> &'static str {
    let place = if which < 250 { place } else { which.into() };
    NAMES[place % NAMES.len()]
}

/// Mostly the place of one that is there.
fn place(which: u8, count: usize) -> usize {
    match which {
        0..250 => usize::from(which) % count.clamp(1, FEW),
        _ => which.into(),
    }
}

fn port(which: u8) -> u16 {
    if which >= 250 {
        return 0;
    }
    PORTS[usize::from(which) % PORTS.len()]
}

fn address(which: u8) -> IpAddr {
    match which {
        0..64 => VIP.into(),
        64..80 => VIP6.into(),
        80 => Ipv6Addr::LOCALHOST.into(),
        81 => Ipv4Addr::UNSPECIFIED.into(),
        82..90 => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, which.into()).into(),
        _ => Ipv4Addr::new(10, 10, 0, which).into(),
    }
}

/// Senders or receivers of a rule: by a tag, or by a prefix, mostly one that addresses have.
fn peers((len, which): (u8, u8)) -> Peers {
    match len {
        250 => Peers::Network,
        251 => Peers::LoadBalancer,
        252 => Peers::Internet,
        _ => Peers::Prefix(Prefix {
            address: address(which),
            len: if len < 200 { len % 33 } else { len },
        }),
    }
}

fn protocol(which: u8) -> Protocol {
    [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::All][usize::from(which) % 4]
}

fn idle(seconds: u16) -> Duration {
    Duration::from_secs(seconds.into())
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnySpec {
    underlay: u8,
    mtu: u16,
    seed: u8,
    #[generator(produce::<Vec<(u8, u8, u8)>>().with().len(1..=FEW))]
    frontends: Vec<(u8, u8, u8)>,
    #[generator(produce::<Vec<AnyPool>>().with().len(1..=FEW))]
    pools: Vec<AnyPool>,
    #[generator(produce::<Vec<AnyRule>>().with().len(0..=FEW))]
    rules: Vec<AnyRule>,
    #[generator(produce::<Vec<AnyNat>>().with().len(0..=FEW))]
    nats: Vec<AnyNat>,
    #[generator(produce::<Vec<AnyOutbound>>().with().len(0..=FEW))]
    outbound: Vec<AnyOutbound>,
    #[generator(produce::<Vec<u8>>().with().len(0..=FEW))]
    muxes: Vec<u8>,
    proxy: Option<AnyProxy>,
    /// The pool of each set of probe results, who fails, and how many results are missing.
    #[generator(produce::<Vec<(u8, u8, u8)>>().with().len(0..=FEW))]
    health: Vec<(u8, u8, u8)>,
    /// The VNI of each network, the bits that its address spaces have in common, the end of its gateway, and its
    /// private frontend.
    #[generator(produce::<Vec<(u8, u8, u8, u8)>>().with().len(0..=FEW))]
    networks: Vec<(u8, u8, u8, u8)>,
    #[generator(produce::<Vec<AnyVm>>().with().len(0..=FEW))]
    vms: Vec<AnyVm>,
    #[generator(produce::<Vec<AnyList>>().with().len(0..=FEW))]
    lists: Vec<AnyList>,
    /// Public addresses, each with its vm among all backends.
    #[generator(produce::<Vec<(u8, u8)>>().with().len(0..=FEW))]
    publics: Vec<(u8, u8)>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyList {
    name: u8,
    #[generator(produce::<Vec<AnySecurityRule>>().with().len(0..=FEW))]
    rules: Vec<AnySecurityRule>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnySecurityRule {
    name: u8,
    priority: u16,
    how: u8,
    /// A kind or the length of a prefix, and its address.
    #[generator(produce::<Vec<(u8, u8)>>().with().len(0..=FEW))]
    sources: Vec<(u8, u8)>,
    #[generator(produce::<Vec<(u8, u8)>>().with().len(0..=FEW))]
    destinations: Vec<(u8, u8)>,
    #[generator(produce::<Vec<[u16; 2]>>().with().len(0..=FEW))]
    ports: Vec<[u16; 2]>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyVm {
    network: u8,
    #[generator(produce::<Vec<u8>>().with().len(0..=3_usize))]
    addresses: Vec<u8>,
    mac: Option<u8>,
    host: u8,
    port: Option<u8>,
    #[generator(produce::<Vec<u8>>().with().len(0..=3_usize))]
    lists: Vec<u8>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyPool {
    name: u8,
    vni: u8,
    table: u8,
    #[generator(produce::<Vec<u8>>().with().len(0..=3_usize))]
    lists: Vec<u8>,
    #[generator(produce::<Vec<AnyBackend>>().with().len(0..=FEW))]
    backends: Vec<AnyBackend>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyBackend {
    name: u8,
    address: u8,
    host: u8,
    weight: u8,
    state: u8,
    seat: Option<u8>,
    instance: Option<u16>,
    port: Option<u8>,
    backend_port: Option<u8>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyTerms {
    flags: u8,
    source_nat: Option<u8>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyRule {
    name: u8,
    frontend: u8,
    pool: u8,
    protocol: u8,
    ports: (u8, u8),
    idle: u16,
    how: u8,
    terms: AnyTerms,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyNat {
    name: u8,
    frontend: u8,
    pool: u8,
    backend: Option<u8>,
    ports: (u8, u8, u8),
    protocol: u8,
    idle: u16,
    terms: AnyTerms,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyOutbound {
    name: u8,
    #[generator(produce::<Vec<u8>>().with().len(0..=FEW))]
    frontends: Vec<u8>,
    pool: u8,
    protocol: u8,
    ports: Option<u16>,
    idle: u16,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyProxy {
    is_odd: bool,
    #[generator(produce::<Vec<(u8, u8)>>().with().len(1..=3_usize))]
    frontends: Vec<(u8, u8)>,
    backend: u8,
    #[generator(produce::<Vec<(u8, u8, u8)>>().with().len(0..=FEW))]
    rewrites: Vec<(u8, u8, u8)>,
}

fn terms(any: &AnyTerms) -> Terms {
    Terms {
        floating_ip: any.flags & 1 != 0,
        tcp_reset: any.flags & 2 != 0,
        answers: if any.flags & 4 != 0 {
            Answers::ThroughMux
        } else {
            Answers::Direct
        },
        source_nat: any.source_nat.map(address),
        quic: any.flags & 8 != 0,
    }
}

/// The maximum number of each item: faults show with few.
const FEW: usize = 5;

impl AnySpec {
    fn give<R>(&self, take: impl FnOnce(&Spec<'_>) -> R) -> R {
        let list_places = |all: &[u8]| few(all, |_, &which| place(which, self.lists.len()));
        let pool_lists: Vec<Vec<usize>> = few(&self.pools, |_, pool| list_places(&pool.lists));
        let vm_lists: Vec<Vec<usize>> = few(&self.vms, |_, vm| list_places(&vm.lists));
        let sides: Vec<Vec<[Vec<Peers>; 2]>> = few(&self.lists, |_, list| {
            few(&list.rules, |_, rule| {
                [&rule.sources, &rule.destinations].map(|side| few(side, |_, &which| peers(which)))
            })
        });
        let lists_and_sides = self.lists.iter().zip(&sides);
        let rules: Vec<Vec<_>> = lists_and_sides
            .map(|(list, sides)| {
                let rules = list.rules.iter().zip(sides).enumerate();
                let rules = rules.map(|(own, (any, [sources, destinations]))| SecurityRule {
                    name: name(own, any.name),
                    // Mostly one that a rule may have, and that no other has.
                    priority: match any.name {
                        0..250 => 100 + 10 * own as u16 + any.priority % 10,
                        _ => any.priority,
                    },
                    direction: match any.how & 1 {
                        0 => Direction::Inward,
                        _ => Direction::Outward,
                    },
                    access: match any.how & 2 {
                        0 => Access::Allow,
                        _ => Access::Deny,
                    },
                    protocol: SecurityProtocol::ALL[usize::from(any.how >> 2) % 6],
                    sources,
                    destinations,
                    source_ports: match any.how & 0x40 {
                        0 => &[],
                        _ => &any.ports,
                    },
                    destination_ports: match any.how & 0x80 {
                        0 => &[],
                        _ => &any.ports,
                    },
                });
                rules.collect()
            })
            .collect();
        let lists = few(&self.lists, |own, any| SecurityList {
            name: name(own, any.name),
            rules: &rules[own],
        });
        let frontends: Vec<_> = few(&self.frontends, |own, &(number, at, echo)| Frontend {
            name: name(own, number),
            address: match own {
                0 => VIP.into(),
                1 => VIP6.into(),
                _ => address(at),
            },
            icmp_echo: [Echo::Answer, Echo::Forward, Echo::Ignore][usize::from(echo) % 3],
        });
        let backends: Vec<Vec<_>> = few(&self.pools, |pool_place, pool| {
            few(&pool.backends, |own, any| Backend {
                name: name(own, any.name),
                address: match (any.address, pool_place) {
                    (250.., _) => address(any.host),
                    (last, 1) => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, last.into()).into(),
                    (last, _) => Ipv4Addr::new(10, 10, 0, last).into(),
                },
                host: address(any.host),
                weight: u32::from(any.weight % 4),
                state: [BackendState::Up, BackendState::Down, BackendState::Draining]
                    [usize::from(any.state) % 3],
                seat: any.seat.map(|seat| name(usize::from(seat % 5), seat)),
                instance: any.instance.map(Into::into),
                port: any.port.map(|port| PortId(port.into())),
                backend_port: any.backend_port.map(port),
                ..Backend::default()
            })
        });
        let pools: Vec<_> = self
            .pools
            .iter()
            .zip(&backends)
            .enumerate()
            .map(|(own, (any, backends))| Pool {
                name: name(own, any.name),
                vni: Vni::new(any.vni.into()).expect("small"),
                table_size: match usize::from(any.table) {
                    mostly @ 0..250 => TABLES[mostly % 4],
                    other => NO_TABLES[other % 4],
                },
                backends,
                security_lists: &pool_lists[own],
                ..Pool::default()
            })
            .collect();
        // Mostly one of the frontend's family.
        let pool_of = |frontend: u8, pool: u8| match place(frontend, frontends.len()) {
            _ if pool >= 250 => pool.into(),
            1 => 1,
            _ => [0, 2, 3, 4][place(pool, pools.len().saturating_sub(1)) % 4],
        };
        let health_pools = few(&self.health, |_, &(pool, ..)| place(pool, pools.len()));
        let results: Vec<Vec<_>> = few(&self.health, |own, &(_, failing, missing)| {
            let of_pool = self.pools.get(health_pools[own]);
            let count = of_pool.map_or(0, |pool| pool.backends.len().min(FEW));
            let count = count.saturating_sub(usize::from(missing >= 250));
            let result = |bit: usize| BackendHealth {
                condition: if failing >> bit & 1 == 1 {
                    Condition::Unhealthy
                } else {
                    Condition::Healthy
                },
                weight: (missing >> bit & 1 == 1).then_some(u32::from(missing)),
            };
            (0..count).map(result).collect()
        });
        let health: Vec<_> = health_pools
            .iter()
            .zip(&results)
            .map(|(&pool, backends)| PoolHealth { pool, backends })
            .collect();
        let rules: Vec<_> = few(&self.rules, |own, any| Rule {
            name: name(own, any.name),
            frontend: place(any.frontend, frontends.len()),
            pool: pool_of(any.frontend, any.pool),
            // Mostly results of its own pool, where there are any.
            health: (any.how & 0x40 != 0)
                .then(|| {
                    let pool = pool_of(any.frontend, any.pool);
                    health_pools.iter().position(|&other| other == pool)
                })
                .flatten()
                .or((any.how & 0x3f == 0x3f).then_some(usize::from(any.pool) % 4)),
            protocol: protocol(any.protocol),
            frontend_port: match protocol(any.protocol) {
                Protocol::Tcp | Protocol::Udp => port(any.ports.0),
                _ => u16::from(any.ports.0 >= 250),
            },
            backend_port: match protocol(any.protocol) {
                Protocol::Tcp | Protocol::Udp => port(any.ports.1),
                _ => 0,
            },
            distribution: [
                Distribution::FiveTuple,
                Distribution::SourceIp,
                Distribution::SourceIpProtocol,
            ][usize::from(any.how) % 3],
            scheduler: if any.how & 0x80 != 0 {
                Scheduler::LeastConnections
            } else {
                Scheduler::Maglev
            },
            idle_timeout: idle(any.idle),
            terms: terms(&any.terms),
        });
        let nats: Vec<_> = few(&self.nats, |own, any| InboundNat {
            name: name(own, any.name),
            frontend: place(any.frontend, frontends.len()),
            pool: pool_of(any.frontend, any.pool),
            target: match any.backend {
                Some(backend) => NatTarget::Backend {
                    port: port(any.ports.0),
                    backend: place(backend, FEW),
                },
                None => NatTarget::Pool {
                    first: port(any.ports.0),
                    last: port(any.ports.1),
                },
            },
            protocol: match any.protocol {
                250.. => Protocol::All,
                odd if odd & 1 == 1 => Protocol::Tcp,
                _ => Protocol::Udp,
            },
            backend_port: port(any.ports.2),
            idle_timeout: idle(any.idle),
            terms: terms(&any.terms),
        });
        let fronts: Vec<Vec<usize>> = few(&self.outbound, |_, any| {
            few(&any.frontends, |_, &frontend| {
                place(frontend, frontends.len())
            })
        });
        let outbound: Vec<_> = self
            .outbound
            .iter()
            .zip(&fronts)
            .enumerate()
            .map(|(own, (any, frontends))| Outbound {
                name: name(own, any.name),
                frontends,
                pool: place(any.pool, pools.len()),
                protocol: protocol(any.protocol),
                allocated_outbound_ports: any.ports.map(Into::into),
                idle_timeout: idle(any.idle),
                tcp_reset: any.idle & 1 == 1,
            })
            .collect();
        let muxes = few(&self.muxes, |_, &mux| address(mux));
        let no_proxy = AnyProxy {
            is_odd: false,
            frontends: Vec::new(),
            backend: 0,
            rewrites: Vec::new(),
        };
        let proxy = self.proxy.as_ref().unwrap_or(&no_proxy);
        let ports = few(&proxy.frontends, |own, &(number, at)| FrontendPort {
            port: PortId(if number < 250 {
                own as u16
            } else {
                number.into()
            }),
            address: (at < 250).then_some(Ipv4Addr::new(10, 0, own as u8, at)),
        });
        let rewrites = few(&proxy.rewrites, |_, &(from, to, prefix_len)| {
            SourceRewrite {
                from: Ipv4Addr::new(10, from, 0, 0).into(),
                to: if to < 250 {
                    Ipv4Addr::new(11, to, 0, 0).into()
                } else {
                    VIP6.into()
                },
                prefix_len: if prefix_len < 250 { 16 } else { prefix_len },
            }
        });
        let spaces: Vec<Vec<Prefix>> = few(&self.networks, |_, &(_, len, ..)| {
            let ipv4 = Prefix {
                address: Ipv4Addr::new(10, 10, 0, 0).into(),
                len: if len < 250 { len % 25 } else { len },
            };
            let ipv6 = Prefix {
                address: Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0).into(),
                len: if len < 250 { len % 65 } else { len },
            };
            vec![ipv4, ipv6]
        });
        let gateways: Vec<Vec<IpAddr>> = few(&self.networks, |_, &(_, _, gateway, _)| {
            let inside: IpAddr = Ipv4Addr::new(10, 10, 0, gateway).into();
            match gateway {
                0..128 => Vec::new(),
                128..250 => vec![inside],
                _ => vec![VIP.into()],
            }
        });
        let private: Vec<Vec<usize>> = few(&self.networks, |_, &(.., private)| match private {
            0..192 => Vec::new(),
            _ => vec![place(private, frontends.len())],
        });
        let networks = few(&self.networks, |own, &(vni, ..)| Network {
            name: name(own, vni),
            vni: Vni::new(if vni < 250 { vni } else { 1 }.into()).expect("small"),
            prefixes: &spaces[own],
            gateways: &gateways[own],
            frontends: &private[own],
            ..Network::default()
        });
        let seats: Vec<Vec<IpAddr>> = few(&self.vms, |_, any| {
            few(&any.addresses, |_, &which| address(which | 0x52))
        });
        let vms = few(&self.vms, |own, any| NetworkVm {
            name: name(own, any.network),
            network: place(any.network, networks.len()),
            addresses: &seats[own],
            host: address(any.host),
            mac: any.mac.map(|mac| MacAddress([2, 0, 0, 0, 0, mac % 8])),
            next_hop: None,
            port: any.port.map(|port| PortId((port % 32).into())),
            security_lists: &vm_lists[own],
        });
        let backends = pools.iter().flat_map(|pool| {
            let backends = pool.backends.iter();
            backends.map(|backend| (pool.vni, backend.address))
        });
        let backends: Vec<_> = backends.collect();
        let publics = few(&self.publics, |_, &(at, vm)| {
            let backend = backends.get(usize::from(vm) % backends.len().max(1));
            let backend = backend.filter(|_| vm < 250);
            let (vni, vm) = backend.copied().unwrap_or((Vni::default(), address(vm)));
            PublicAddress {
                address: match (at, vm) {
                    (0..200, IpAddr::V4(_)) => Ipv4Addr::new(40, 0, 0, at).into(),
                    (0..200, IpAddr::V6(_)) => {
                        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, at.into()).into()
                    }
                    _ => address(at),
                },
                vni,
                vm,
            }
        });
        take(&Spec {
            public_addresses: &publics,
            security_lists: &lists,
            networks: &networks,
            vms: &vms,
            hash_seed: self.seed.into(),
            underlay: Underlay {
                ipv4: (self.underlay < 240).then_some(Ipv4Addr::new(172, 16, 0, 1)),
                ipv6: (self.underlay < 248).then_some(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1)),
                mtu: self.mtu,
                port: PortId((self.underlay >> 4).into()),
                ..Underlay::default()
            },
            frontends: &frontends,
            rules: &rules,
            pools: &pools,
            health: &health,
            inbound_nat: &nats,
            outbound: &outbound,
            muxes: &muxes,
            proxy: self.proxy.as_ref().map(|proxy| ProxyPorts {
                mode: if proxy.frontends.len() > 1 || proxy.is_odd {
                    PortMode::Multi
                } else {
                    PortMode::Single
                },
                frontends: &ports,
                backend: PortId(if proxy.backend < 250 { 9 } else { 0 }),
                source_rewrites: &rewrites,
            }),
            ..Spec::default()
        })
    }
}

fn few<T, R>(all: &[T], make: impl Fn(usize, &T) -> R) -> Vec<R> {
    let all = all.iter().enumerate().take(FEW);
    all.map(|(place, one)| make(place, one)).collect()
}

/// Compiles a spec, in boxes and in an arena of as many lines as it says that it takes.
fn compile(spec: &Spec<'_>, previous: Option<&Snapshot<'_>>) -> Option<Box<Snapshot<'static>>> {
    let boxed = Snapshot::new(spec, previous);
    let lines = Snapshot::lines_for(spec, previous);
    let faults: Vec<SpecError> = spec.faults().collect();
    match boxed {
        Ok(snapshot) => {
            assert_eq!(faults, []);
            let mut memory = vec![Line::EMPTY; lines];
            let again = Snapshot::build(spec, previous, &mut Arena::new(&mut memory));
            assert!(again.is_ok(), "{:?} of {lines} lines", again.err());
            Some(Box::new(snapshot))
        }
        Err(error) => {
            assert!(!matches!(error, SpecError::Memory { .. }), "{error}");
            assert!(faults.contains(&error), "{error}: {faults:?}");
            assert!(faults.iter().all(|f| !f.named(spec).to_string().is_empty()));
            None
        }
    }
}

/// Gives packets to a role, by several ports; what it counts adds up.
fn run<'s, D: Dataplane<'s>>(role: &mut D, now: Instant, packets: &[Nearly]) {
    let frames: Vec<Vec<u8>> = packets.iter().map(Nearly::packet).collect();
    for (number, packet) in frames.iter().enumerate() {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(packet);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len()).expect("room")];
        frames[0].set_port(PortId(number as u16 % 3));
        role.process(now, &mut frames);
        if frames[0].verdict() == Verdict::Pass {
            assert_eq!(frames[0].bytes(), packet);
        }
    }
    role.advance(now, &mut Burst::new());
}

#[test]
fn specs_of_any_kind_compile_and_run_or_say_what_is_wrong() {
    bolero::check!()
        .with_generator((
            produce::<Vec<AnySpec>>().with().len(1..=3_usize),
            produce::<Vec<Nearly>>().with().len(0..=8_usize),
        ))
        .for_each(|(specs, packets)| {
            let mut generations: Vec<Box<Snapshot<'static>>> = Vec::new();
            for spec in specs {
                let previous = generations.last().map(|snapshot| &**snapshot);
                generations.extend(spec.give(|spec| compile(spec, previous)));
            }
            let Some((first, rest)) = generations.split_first() else {
                return;
            };
            let mut now = Instant::from_secs(1);
            let key = Key::new([1, 2]);
            let mut mux = Mux::with_capacity(&**first, 64, key);
            let mut host = Host::with_capacity(&**first, 32, key);
            let mut proxy = Proxy::with_capacity(&**first, 32, key);
            assert_eq!(mux.is_err(), first.is_for_proxy());
            assert_eq!(host.is_err(), first.is_for_proxy());
            assert_eq!(proxy.is_ok(), first.is_for_proxy());
            for next in std::iter::once(first).chain(rest) {
                // A snapshot follows those before it, but not into another role.
                macro_rules! go_on {
                    ($role:expr) => {
                        if let Ok(role) = &mut $role {
                            let installed = role.install(&**next);
                            assert_eq!(
                                installed.is_ok(),
                                next.is_for_proxy() == first.is_for_proxy()
                            );
                            run(role, now, packets);
                            let stats = role.stats();
                            assert_eq!(stats.received, stats.accounted());
                        }
                    };
                }
                go_on!(mux);
                go_on!(host);
                go_on!(proxy);
                now = now + Duration::from_secs(1);
            }
        });
}
