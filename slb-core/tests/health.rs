//! Health belongs to a rule and a backend: who fails the probe of one rule serves the others.

use crate::common::{Endpoint, addresses, through};

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::health::Condition;
use slb_core::mem::{Arena, Line};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendHealth, BackendState, Echo, Frontend, FrontendPort, InboundNat, NatTarget,
    Outbound, Pool, PoolHealth, PortMode, ProbeSource, Protocol, ProxyPorts, Rule, Scheduler, Spec,
    SpecError, Terms, Underlay, derived_mac,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{
    BURST, Burst, DropReason, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Proxy, Verdict,
};

const BACKENDS: usize = 4;
const KEY: Key = Key::new([5, 6]);
const NODE: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const FABRIC: PortId = PortId(0);
const BEHIND: PortId = PortId(9);
const NOW: Instant = Instant::from_secs(1_000_000);

/// Ports of the rules: two with probes of their own, a second one of the first probe, and one
/// without a probe.
const FIRST: u16 = 80;
const OTHER: u16 = 81;
const SAME: u16 = 82;
const PLAIN: u16 = 83;
const RULES: [u16; 4] = [FIRST, OTHER, SAME, PLAIN];

/// Both families and schedulers of a proxy.
const PROXIES: [(bool, Scheduler); 4] = [
    (false, Scheduler::Maglev),
    (true, Scheduler::Maglev),
    (false, Scheduler::LeastConnections),
    (true, Scheduler::LeastConnections),
];

/// What two probes found of the backends of one pool.
#[derive(Clone, Debug)]
struct Plan {
    ipv6: bool,
    proxy: bool,
    scheduler: Scheduler,
    probe_source: ProbeSource,
    states: [BackendState; BACKENDS],
    found: [[BackendHealth; BACKENDS]; 2],
}

const WELL: BackendHealth = BackendHealth {
    condition: Condition::Healthy,
    weight: None,
};
const SICK: BackendHealth = BackendHealth {
    condition: Condition::Unhealthy,
    weight: None,
};

impl Plan {
    fn of_proxy(ipv6: bool, scheduler: Scheduler) -> Self {
        Self {
            proxy: true,
            scheduler,
            ..Self::new(ipv6)
        }
    }

    fn new(ipv6: bool) -> Self {
        Self {
            ipv6,
            proxy: false,
            scheduler: Scheduler::Maglev,
            probe_source: ProbeSource::default(),
            states: [BackendState::Up; BACKENDS],
            found: [[WELL; BACKENDS]; 2],
        }
    }

    fn give<T>(&self, take: impl FnOnce(&Spec<'_>) -> T) -> T {
        let names: Vec<String> = (0..BACKENDS).map(|n| format!("vm{n}")).collect();
        let backends: Vec<Backend<'_>> = (0..BACKENDS)
            .map(|n| Backend {
                name: &names[n],
                address: dip(n, self.ipv6),
                host: NODE.into(),
                state: self.states[n],
                port: (!self.proxy).then_some(PortId(1 + n as u16)),
                ..Backend::default()
            })
            .collect();
        let rule = |name, health, frontend_port| Rule {
            name,
            health,
            protocol: Protocol::Tcp,
            frontend_port,
            backend_port: frontend_port,
            scheduler: self.scheduler,
            terms: Terms {
                tcp_reset: true,
                ..Terms::default()
            },
            ..Rule::default()
        };
        let ports = [FrontendPort::default()];
        let outbound = [Outbound {
            name: "out",
            frontends: &[0],
            pool: 0,
            protocol: Protocol::All,
            allocated_outbound_ports: Some(64),
            idle_timeout: std::time::Duration::from_secs(240),
            tcp_reset: true,
        }];
        take(&Spec {
            underlay: Underlay {
                ipv4: Some(NODE),
                port: FABRIC,
                ..Underlay::default()
            },
            frontends: &[Frontend {
                name: "web",
                address: vip(self.ipv6),
                icmp_echo: Echo::Answer,
            }],
            rules: &[
                rule("first", Some(0), FIRST),
                rule("other", Some(1), OTHER),
                rule("same", Some(0), SAME),
                rule("plain", None, PLAIN),
                Rule {
                    protocol: Protocol::Udp,
                    ..rule("dns", Some(0), FIRST)
                },
                Rule {
                    protocol: Protocol::Udp,
                    ..rule("other dns", Some(1), OTHER)
                },
                Rule {
                    protocol: Protocol::Udp,
                    ..rule("plain dns", None, PLAIN)
                },
            ],
            pools: &[Pool {
                name: "servers",
                vni: Vni::new(5001).unwrap(),
                table_size: 1021,
                backends: &backends,
                ..Pool::default()
            }],
            health: &[
                PoolHealth {
                    pool: 0,
                    backends: &self.found[0],
                },
                PoolHealth {
                    pool: 0,
                    backends: &self.found[1],
                },
            ],
            inbound_nat: &[InboundNat {
                name: "ssh",
                frontend: 0,
                pool: 0,
                target: NatTarget::Backend {
                    port: 2222,
                    backend: 0,
                },
                protocol: Protocol::Tcp,
                backend_port: 22,
                idle_timeout: std::time::Duration::from_secs(240),
                terms: Terms {
                    tcp_reset: true,
                    ..Terms::default()
                },
            }],
            outbound: if self.proxy { &[] } else { &outbound },
            probe_source: self.probe_source,
            proxy: self.proxy.then_some(ProxyPorts {
                mode: PortMode::Single,
                frontends: &ports,
                backend: BEHIND,
                source_rewrites: &[],
            }),
            ..Spec::default()
        })
    }

    fn snapshot(&self) -> Box<Snapshot<'static>> {
        self.after(None)
    }

    fn after(&self, previous: Option<&Snapshot<'_>>) -> Box<Snapshot<'static>> {
        Box::new(self.give(|spec| Snapshot::new(spec, previous).unwrap()))
    }
}

fn vip(ipv6: bool) -> IpAddr {
    match ipv6 {
        true => Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100).into(),
        false => Ipv4Addr::new(20, 20, 20, 100).into(),
    }
}

fn dip(number: usize, ipv6: bool) -> IpAddr {
    match ipv6 {
        true => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x10 + number as u16).into(),
        false => Ipv4Addr::new(10, 10, 1, 10 + number as u8).into(),
    }
}

/// The `number`th client.
fn client(number: u16, ipv6: bool) -> Endpoint {
    let address: IpAddr = match ipv6 {
        true => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, number).into(),
        false => Ipv4Addr::from(0xc633_0000 + u32::from(number)).into(),
    };
    (address, 40_000 + number % 1000)
}

/// A TCP segment with these flags.
fn tcp(mac: [u8; 6], from: Endpoint, to: Endpoint, flags: &str) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(mac, [2, 0, 0, 0, 0, 1]);
    let ip = match (from.0, to.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => link.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("of one family"),
    };
    let mut step = ip.tcp(from.1, to.1, 1000, 4096);
    for flag in flags.chars() {
        step = match flag {
            'S' => step.syn(),
            _ => step.ack(1001),
        };
    }
    let mut packet = Vec::new();
    step.write(&mut packet, b"").unwrap();
    packet
}

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

/// Source and destination of a TCP segment, and whether it is a RST.
fn ends(frame: &[u8]) -> (Endpoint, Endpoint, bool) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (from, to) = addresses(&sliced);
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("no TCP")
    };
    (
        (from, tcp.source_port()),
        (to, tcp.destination_port()),
        tcp.rst(),
    )
}

/// What becomes of a frame, whatever the role.
macro_rules! give {
    ($role:expr, $port:expr, $bytes:expr) => {{
        through($port, $bytes, |frames| {
            $role.process(NOW, frames);
        })
    }};
}

/// The RSTs that a role sends by itself, until it has looked at all connections.
macro_rules! resets {
    ($role:expr) => {{
        let mut told = Vec::new();
        for turn in 1..200_u64 {
            let mut memory = vec![[0_u8; 256]; BURST];
            let mut spare = Burst::new();
            for buffer in &mut memory {
                assert!(spare.push(Frame::new(buffer, HEADROOM, 0).unwrap()).is_ok());
            }
            let now = NOW + std::time::Duration::from_millis(20 * turn);
            $role.advance(now, &mut spare);
            let sent = spare.iter().filter(|frame| !frame.is_empty());
            told.extend(sent.map(|frame| ends(frame.bytes())));
        }
        told
    }};
}

type Shared = std::sync::Arc<Snapshot<'static>>;

fn mux(plan: &Plan) -> Mux<'static, Shared> {
    Mux::with_capacity(Shared::from(plan.snapshot()), 4096, KEY).expect("its role")
}

/// The backend that a mux sends a client's segment to.
fn chosen(
    mux: &mut Mux<'static, Shared>,
    number: u16,
    port: u16,
    ipv6: bool,
    flags: &str,
) -> usize {
    let packet = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), port), flags);
    backend_of(give!(mux, FABRIC, &packet), ipv6)
}

/// The backend that a mux sent a frame to.
fn backend_of((verdict, bytes): (Verdict, Vec<u8>), ipv6: bool) -> usize {
    assert_eq!(verdict, Verdict::Forward(FABRIC));
    // Behind Ethernet, IPv4, UDP and VXLAN: the vm's MAC address.
    let mut vms = (0..BACKENDS).map(|n| derived_mac(dip(n, ipv6)).0);
    vms.position(|mac| bytes[50..56] == mac).unwrap()
}

#[test]
fn a_backend_that_fails_the_probe_of_one_rule_serves_the_others() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let mut mux = mux(&plan);
        let new = |mux: &mut Mux<'static, Shared>, first: u16| {
            RULES.map(|port| -> Vec<usize> {
                let numbers = first..first + 200;
                numbers.map(|n| chosen(mux, n, port, ipv6, "S")).collect()
            })
        };
        let before = new(&mut mux, 0);
        for chosen in &before {
            assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), BACKENDS);
        }
        plan.found[0][2] = SICK;
        let next = plan.after(Some(mux.snapshot()));
        mux.install(next.into()).expect("it follows");
        // Those that it has stay, also of the rule whose probe it fails.
        for (port, chosen_before) in RULES.into_iter().zip(&before) {
            for (number, &backend) in (0..).zip(chosen_before) {
                assert_eq!(chosen(&mut mux, number, port, ipv6, "A"), backend);
            }
        }
        // New flows of the two rules of the probe do without it; the others' go as ever.
        let mut fresh =
            Mux::with_capacity(Shared::from(plan.snapshot()), 4096, KEY).expect("its role");
        let after = new(&mut fresh, 0);
        for place in [0, 2] {
            assert!(!after[place].contains(&2), "rule {place}");
            assert_eq!(after[place].iter().collect::<HashSet<_>>().len(), 3);
        }
        for place in [1, 3] {
            assert_eq!(after[place], before[place], "rule {place}");
        }
    }
}

#[test]
fn a_syn_that_comes_again_moves_by_its_own_rule() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let mut mux = mux(&plan);
        let all = |mux: &mut Mux<'static, Shared>| {
            RULES.map(|port| {
                (0..100)
                    .map(|number| chosen(mux, number, port, ipv6, "S"))
                    .collect::<Vec<_>>()
            })
        };
        let before = all(&mut mux);
        plan.found[1][3] = SICK;
        let next = plan.after(Some(mux.snapshot()));
        mux.install(next.into()).expect("it follows");
        let after = all(&mut mux);
        for (port, (before, after)) in RULES.into_iter().zip(before.iter().zip(&after)) {
            for (&before, &after) in before.iter().zip(after) {
                let moves = port == OTHER && before == 3;
                assert_eq!(after != before, moves, "port {port}");
            }
        }
    }
}

/// A client's datagram to the VIP.
fn datagram(number: u16, port: u16, ipv6: bool) -> Vec<u8> {
    let from = client(number, ipv6);
    let link = PacketBuilder::ethernet2(CLIENT_MAC, [2, 0, 0, 0, 0, 1]);
    let ip = match (from.0, vip(ipv6)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => link.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("of one family"),
    };
    let mut packet = Vec::new();
    ip.udp(from.1, port).write(&mut packet, b"?").unwrap();
    packet
}

#[test]
fn a_udp_flow_moves_by_its_own_rule() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let mut mux = mux(&plan);
        let ask = |mux: &mut Mux<'static, Shared>, number: u16, port: u16| {
            backend_of(give!(mux, FABRIC, &datagram(number, port, ipv6)), ipv6)
        };
        let all = |mux: &mut Mux<'static, Shared>| {
            [FIRST, OTHER, PLAIN]
                .map(|port| (0..100).map(|n| ask(mux, n, port)).collect::<Vec<_>>())
        };
        let before = all(&mut mux);
        plan.found[1][2] = SICK;
        let next = plan.after(Some(mux.snapshot()));
        mux.install(next.into()).expect("it follows");
        for (place, (before, after)) in before.iter().zip(all(&mut mux)).enumerate() {
            for (&before, after) in before.iter().zip(after) {
                assert_eq!(after != before, place == 1 && before == 2, "rule {place}");
            }
        }
    }
}

#[test]
fn a_proxy_s_udp_flow_moves_by_its_own_rule() {
    type Dut = Proxy<'static, Box<Snapshot<'static>>>;
    for (ipv6, scheduler) in PROXIES {
        let mut plan = Plan::of_proxy(ipv6, scheduler);
        let mut proxy = Proxy::with_capacity(plan.snapshot(), 1024, KEY).expect("its role");
        let ask = |proxy: &mut Dut, number: u16, port: u16| {
            let (verdict, bytes) = give!(proxy, FABRIC, &datagram(number, port, ipv6));
            assert_eq!(verdict, Verdict::Forward(BEHIND));
            let mut servers = (0..BACKENDS).map(|number| dip(number, ipv6));
            let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
            let to: IpAddr = match sliced.net.unwrap() {
                NetSlice::Ipv4(ip) => ip.header().destination_addr().into(),
                NetSlice::Ipv6(ip) => ip.header().destination_addr().into(),
                NetSlice::Arp(_) => unreachable!("no ARP"),
            };
            servers.position(|server| server == to).unwrap()
        };
        let all = |proxy: &mut Dut| {
            [FIRST, OTHER, PLAIN]
                .map(|port| (0..100).map(|n| ask(proxy, n, port)).collect::<Vec<_>>())
        };
        let before = all(&mut proxy);
        assert!(before[1].contains(&2), "{scheduler:?}");
        plan.found[1][2] = SICK;
        let next = plan.after(Some(proxy.snapshot()));
        proxy.install(next).expect("it follows");
        for (place, (before, after)) in before.iter().zip(all(&mut proxy)).enumerate() {
            for (&before, after) in before.iter().zip(after) {
                assert_eq!(after != before, place == 1 && before == 2, "rule {place}");
            }
        }
    }
}

#[test]
fn the_operators_word_holds_for_all_rules() {
    for state in [BackendState::Down, BackendState::Draining] {
        let mut plan = Plan::new(false);
        plan.states[1] = state;
        plan.found[0][1] = WELL;
        let snapshot = plan.snapshot();
        for rule in 0..4 {
            assert!(!snapshot.serves(rule, 1) && snapshot.serves(rule, 0));
        }
    }
}

#[test]
fn serves_says_which_rules_a_backend_has() {
    let mut plan = Plan::new(false);
    plan.found[0][1] = SICK;
    plan.found[1][3] = SICK;
    let snapshot = plan.snapshot();
    let served = |backend| [0, 1, 2, 3].map(|rule| snapshot.serves(rule, backend));
    assert_eq!(served(0), [true; 4]);
    assert_eq!(served(1), [false, true, false, true]);
    assert_eq!(served(3), [true, false, true, true]);
    // Neither the inbound NAT rule nor the outbound frontend balances, and there is no fifth backend.
    assert!(!snapshot.serves(7, 0) && !snapshot.serves(8, 0) && !snapshot.serves(99, 0));
    assert!(!snapshot.serves(0, 4));
}

#[test]
fn what_probes_find_changes_no_size_and_other_tables_nothing() {
    let well = Plan::new(false);
    let mut sick = well.clone();
    sick.found[0][0] = SICK;
    sick.found[1] = [SICK; BACKENDS];
    let lines = |plan: &Plan| plan.give(|spec| Snapshot::lines_for(spec, None));
    assert_eq!(lines(&well), lines(&sick));
    // As much as is said is enough, and a line less is not.
    let mut memory = vec![Line::EMPTY; lines(&sick)];
    sick.give(|spec| {
        assert!(Snapshot::build(spec, None, &mut Arena::new(&mut memory)).is_ok());
        let short = memory.len() - 1;
        let built = Snapshot::build(spec, None, &mut Arena::new(&mut memory[..short]));
        assert!(matches!(built, Err(SpecError::Memory { .. })));
    });
    // One table for all where nobody fails.
    let (well, sick) = (well.snapshot(), sick.after(Some(&well.snapshot())));
    let slots = |snapshot: &Snapshot<'_>, rule| snapshot.slots(rule).collect::<Vec<_>>();
    for rule in 1..4 {
        assert_eq!(slots(&well, rule), slots(&well, 0));
    }
    assert_eq!(slots(&sick, 3), slots(&well, 3));
    assert_eq!(slots(&sick, 0), slots(&sick, 2));
    assert_ne!(slots(&sick, 0), slots(&sick, 3));
    assert!(
        slots(&sick, 1).iter().all(Option::is_none),
        "nobody is left"
    );
    assert_eq!(sick.pool_table(0), well.pool_table(0));
}

#[test]
fn a_snapshot_that_follows_is_the_same_as_one_made_anew() {
    // Tables that did not change are copied from the one before, whichever probe's they were.
    let mut plan = Plan::new(false);
    let mut last = plan.snapshot();
    let mut state = 1_u64;
    for _ in 0..100 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let bit = |n: usize| state >> (20 + n) & 1 == 1;
        for (set, found) in plan.found.iter_mut().enumerate() {
            for (place, found) in found.iter_mut().enumerate() {
                *found = if bit(set * BACKENDS + place) {
                    SICK
                } else {
                    WELL
                };
                found.weight = bit(8 + place).then_some(3);
            }
        }
        let (next, fresh) = (plan.after(Some(&last)), plan.snapshot());
        for rule in 0..4 {
            assert!(next.slots(rule).eq(fresh.slots(rule)));
            for place in 0..BACKENDS as u32 {
                let gets = |s: &Snapshot<'_>| {
                    let own = s.backends()[place as usize].id();
                    s.slots(rule).any(|slot| slot == Some(own))
                };
                assert_eq!(
                    gets(&next),
                    next.serves(rule, place),
                    "rule {rule}, {plan:?}"
                );
            }
        }
        last = next;
    }
}

#[test]
fn a_backend_that_recovers_for_a_probe_has_a_weight_of_its_own_there() {
    let mut plan = Plan::new(false);
    plan.found[0] = [3, 30, 30, 30].map(|weight| BackendHealth {
        weight: Some(weight),
        ..WELL
    });
    let snapshot = plan.snapshot();
    let slots_of = |rule| {
        let own = snapshot.backends()[0].id();
        snapshot
            .slots(rule)
            .filter(|slot| *slot == Some(own))
            .count()
    };
    // 3 of 93, and 1 of 4, of 1021 slots.
    assert!((23..=43).contains(&slots_of(0)), "{}", slots_of(0));
    assert!((235..=275).contains(&slots_of(3)), "{}", slots_of(3));
    assert_eq!((slots_of(2), slots_of(1)), (slots_of(0), slots_of(3)));
}

#[test]
fn results_have_to_be_of_the_pool() {
    Plan::new(false).give(|spec| {
        let build = |spec: &Spec<'_>| Snapshot::new(spec, None).map(drop);
        let results = [WELL; 9];
        for (pool, count) in [(0, 3), (0, 5), (0, 0), (1, 4)] {
            let wrong = PoolHealth {
                pool,
                backends: &results[..count],
            };
            let health = [spec.health[0], wrong];
            let expected = SpecError::PoolHealth {
                health: 1,
                expected: if pool == 0 { 4 } else { 0 },
                given: count,
            };
            let spec = Spec {
                health: &health,
                ..spec.clone()
            };
            assert_eq!(build(&spec), Err(expected));
        }
        let mut rules = spec.rules.to_vec();
        rules[2].health = Some(2);
        let dangling = Spec {
            rules: &rules,
            ..spec.clone()
        };
        assert_eq!(build(&dangling), Err(SpecError::DanglingHealth { rule: 2 }));
        // Of another pool, of as many backends.
        let pools = [
            spec.pools[0],
            Pool {
                name: "others",
                ..spec.pools[0]
            },
        ];
        let mut of_others = spec.health.to_vec();
        of_others[1].pool = 1;
        let other = Spec {
            pools: &pools,
            health: &of_others,
            ..spec.clone()
        };
        assert_eq!(build(&other), Err(SpecError::DanglingHealth { rule: 1 }));
    });
}

/// A frame for a vm, in VXLAN as a mux sends it.
fn encapsulated(vm: usize, packet: &[u8], ipv6: bool) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0x13, 0x89, 0];
    payload.extend(derived_mac(dip(vm, ipv6)).0);
    payload.extend(&packet[6..]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(MUX.octets(), NODE.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut frame, &payload)
        .unwrap();
    frame
}

#[test]
fn a_host_resets_and_refuses_by_rule() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let mut host = Host::with_capacity(plan.snapshot(), 64, KEY).expect("its role");
        let vm_mac = derived_mac(dip(1, ipv6)).0;
        // One connection for each rule, and one by inbound NAT of vm0, all of them established.
        let open =
            |host: &mut Host<'static, Box<Snapshot<'static>>>, number, vm: usize, port, to| {
                let syn = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), port), "S");
                let (verdict, _) = give!(host, FABRIC, &encapsulated(vm, &syn, ipv6));
                if verdict != Verdict::Forward(PortId(1 + vm as u16)) {
                    return verdict;
                }
                let mac = derived_mac(dip(vm, ipv6)).0;
                let answer = tcp(mac, (dip(vm, ipv6), to), client(number, ipv6), "SA");
                let (verdict, _) = give!(host, PortId(1 + vm as u16), &answer);
                assert_eq!(verdict, Verdict::Forward(FABRIC));
                let ack = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), port), "A");
                give!(host, FABRIC, &encapsulated(vm, &ack, ipv6)).0
            };
        for (number, port) in (0..).zip(RULES) {
            let verdict = open(&mut host, number, 1, port, port);
            assert_eq!(verdict, Verdict::Forward(PortId(2)));
        }
        let verdict = open(&mut host, 8, 0, 2222, 22);
        assert_eq!(verdict, Verdict::Forward(PortId(1)));
        // And one of vm1's own.
        let far = client(77, ipv6);
        let call = tcp(vm_mac, (dip(1, ipv6), 5000), far, "S");
        let (verdict, out) = give!(host, PortId(2), &call);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
        assert_eq!(ends(&out).0.0, vip(ipv6));

        plan.found[0][1] = SICK;
        plan.found[0][0] = SICK;
        host.install(plan.after(Some(host.snapshot())))
            .expect("it follows");
        let told = resets!(host);
        // Both ends of those of the two rules of the probe.
        let expected: HashSet<_> = [(0, FIRST), (2, SAME)]
            .into_iter()
            .flat_map(|(number, port)| {
                let who = client(number, ipv6);
                [
                    ((vip(ipv6), port), who, true),
                    (who, (dip(1, ipv6), port), true),
                ]
            })
            .collect();
        assert_eq!(told.len(), 4);
        assert_eq!(told.into_iter().collect::<HashSet<_>>(), expected);
        // New ones of the same rules go to a vm beside it that takes them.
        for (number, port) in (20..).zip(RULES) {
            let verdict = open(&mut host, number, 1, port, port);
            match port {
                FIRST | SAME => assert!(
                    matches!(verdict, Verdict::Forward(PortId(3..))),
                    "port {port}: {verdict:?}"
                ),
                _ => assert_eq!(verdict, Verdict::Forward(PortId(2)), "port {port}"),
            }
        }
        // The operator's word ends them all.
        plan.states[1] = BackendState::Down;
        host.install(plan.after(Some(host.snapshot())))
            .expect("it follows");
        let told = resets!(host);
        assert_eq!(told.len(), 2 * 5, "{told:?}");
    }
}

#[test]
fn a_proxy_chooses_and_resets_by_rule() {
    for (ipv6, scheduler) in PROXIES {
        let mut plan = Plan::of_proxy(ipv6, scheduler);
        let mut proxy = Proxy::with_capacity(plan.snapshot(), 1024, KEY).expect("its role");
        type Dut = Proxy<'static, Box<Snapshot<'static>>>;
        let open = |proxy: &mut Dut, number, port| {
            let syn = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), port), "S");
            let (verdict, bytes) = give!(proxy, FABRIC, &syn);
            assert_eq!(verdict, Verdict::Forward(BEHIND));
            let (_, server, _) = ends(&bytes);
            let answer = tcp([2, 0, 0, 0, 0, 7], server, client(number, ipv6), "SA");
            let (verdict, _) = give!(proxy, BEHIND, &answer);
            assert_eq!(verdict, Verdict::Forward(FABRIC));
            (0..BACKENDS).find(|&n| dip(n, ipv6) == server.0).unwrap()
        };
        let before: Vec<(u16, usize)> = RULES
            .into_iter()
            .flat_map(|port| (0..40).map(move |number| (number, port)))
            .map(|(number, port)| (port, open(&mut proxy, number, port)))
            .collect();
        plan.found[1][3] = SICK;
        proxy
            .install(plan.after(Some(proxy.snapshot())))
            .expect("it follows");
        let told = resets!(proxy);
        let of_other = before.iter().filter(|&&own| own == (OTHER, 3)).count();
        assert!(of_other > 0);
        assert_eq!(
            told.len(),
            2 * of_other,
            "both ends of {of_other} connections"
        );
        assert!(
            told.iter()
                .all(|(from, to, is_reset)| { *is_reset && [from.1, to.1].contains(&OTHER) })
        );
        for port in RULES {
            let chosen: HashSet<usize> = (100..200)
                .map(|number| open(&mut proxy, number, port))
                .collect();
            assert_eq!(chosen.contains(&3), port != OTHER, "port {port}");
            assert!(chosen.len() >= 3);
        }
    }
}

#[test]
fn the_probes_source_is_nobodys_but_the_probers() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let source = client(5, ipv6);
        match source.0 {
            IpAddr::V4(address) => plan.probe_source.ipv4 = Some(address),
            IpAddr::V6(address) => plan.probe_source.ipv6 = Some(address),
        }
        let mut host = Host::with_capacity(plan.snapshot(), 64, KEY).expect("its role");
        let mac = derived_mac(dip(1, ipv6)).0;
        // A vm's answers to it, and whatever else the vm sends there, come out untouched: there is an
        // outbound rule, which translates all else.
        for flags in ["SA", "A", "S"] {
            let answer = tcp(mac, (dip(1, ipv6), 8000), source, flags);
            let (verdict, bytes) = give!(host, PortId(2), &answer);
            assert_eq!((verdict, &bytes), (Verdict::Pass, &answer), "{flags}");
        }
        let elsewhere = tcp(mac, (dip(1, ipv6), 8000), client(6, ipv6), "S");
        let (verdict, bytes) = give!(host, PortId(2), &elsewhere);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
        assert_ne!(ends(&bytes).0.0, dip(1, ipv6));
        // From the fabric nobody has it.
        for (number, expected) in [
            (5, Verdict::Drop(DropReason::Martian)),
            (6, Verdict::Forward(PortId(2))),
        ] {
            let syn = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), PLAIN), "S");
            let (verdict, _) = give!(host, FABRIC, &encapsulated(1, &syn, ipv6));
            assert_eq!(verdict, expected);
        }
    }
}
