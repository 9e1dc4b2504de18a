//! Access lists at host agents: which connections may begin, and that answers, errors and fragments follow them.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use slb_core::mem::Boxes;
use slb_core::nat::{DirectFlows, Direction};
use slb_core::observe::{Step, Trail};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Access, DefaultRule, Network, NetworkVm, Peers, Pool, Prefix, SecurityList, SecurityProtocol,
    SecurityRule, Spec, SpecError,
};
use slb_core::{DropReason, FragmentRoom, Host, Instant, Key, Verdict};

use crate::common::{faults_of, through};
use crate::private::net::{
    End, FABRIC, GATEWAY_MAC, HTTP, Net, Plan, SERVED, Segment, TestHost, ip, vip,
};

const KEY: Key = Key::new([1, 2]);

/// Vms of the plan: of the first network, a client and a backend at the first host, and a backend at the second.
const CLIENT: usize = 0;
const NEAR: usize = 1;
const FAR: usize = 2;
/// The client of the other network.
const OTHER: usize = 4;

/// Where lists apply.
#[derive(Clone, Copy, Debug, Default)]
struct On<'a> {
    network: &'a [usize],
    clients: &'a [usize],
    pools: &'a [usize],
}

impl On<'static> {
    /// The first list for the whole network.
    const NETWORK: Self = Self {
        network: &[0],
        clients: &[],
        pools: &[],
    };
    /// The first list for clients.
    const CLIENTS: Self = Self {
        clients: &[0],
        network: &[],
        pools: &[],
    };
    /// The first list for backends.
    const POOLS: Self = Self {
        pools: &[0],
        network: &[],
        clients: &[],
    };
}

/// A node's snapshot of a plan, with lists at its first network, the vms there that are no backends, and its
/// pools.
fn with_lists<T>(
    plan: &Plan,
    own: usize,
    (lists, on): (&[SecurityList<'_>], On<'_>),
    f: impl FnOnce(&Spec<'_>) -> T,
) -> T {
    plan.with_spec(own, |spec| {
        let networks: Vec<_> = (0..)
            .zip(spec.networks)
            .map(|(index, network)| Network {
                security_lists: if index == 0 { on.network } else { &[] },
                ..*network
            })
            .collect();
        let vms: Vec<_> = spec
            .vms
            .iter()
            .map(|vm| NetworkVm {
                security_lists: if vm.network == 0 { on.clients } else { &[] },
                ..*vm
            })
            .collect();
        let pools: Vec<_> = spec
            .pools
            .iter()
            .map(|pool| Pool {
                security_lists: if pool.vni == networks[0].vni {
                    on.pools
                } else {
                    &[]
                },
                ..*pool
            })
            .collect();
        f(&Spec {
            networks: &networks,
            vms: &vms,
            pools: &pools,
            security_lists: lists,
            ..spec.clone()
        })
    })
}

fn host(plan: &Plan, own: usize, lists: &[SecurityList<'_>], on: On<'_>) -> TestHost {
    let snapshot = with_lists(plan, own, (lists, on), |spec| {
        Snapshot::new(spec, None).expect("a good spec")
    });
    let room = FragmentRoom::build(64, KEY, &mut Boxes).expect("memory");
    Host::with_capacity(Box::new(snapshot), 1024, KEY)
        .expect("its role")
        .with_direct_flows(DirectFlows::with_capacity(256, KEY))
        .with_fragment_room(room)
}

fn net(lists: &[SecurityList<'_>], on: On<'_>) -> Net {
    let plan = Plan::two_tenants();
    let mut net = plan.net();
    for own in 0..plan.hosts {
        net.hosts[own] = host(&plan, own, lists, on);
    }
    net
}

fn send(net: &mut Net, from: usize, segment: &Segment) -> End {
    let mac = net.plan.vms[from].mac();
    net.send(from, &segment.frame(mac, GATEWAY_MAC))
}

fn address(net: &Net, vm: usize, is_ipv6: bool) -> IpAddr {
    net.plan.vms[vm].address(is_ipv6)
}

fn list<'a>(name: &'a str, rules: &'a [SecurityRule<'a>]) -> SecurityList<'a> {
    SecurityList { name, rules }
}

const DENIED: End = End::Dropped(DropReason::Denied);

/// All that denies everything in one direction, before the default rules.
const fn deny_all(direction: Direction) -> SecurityRule<'static> {
    SecurityRule {
        name: match direction {
            Direction::Inward => "nothing-in",
            Direction::Outward => "nothing-out",
        },
        priority: 4000,
        direction,
        access: Access::Deny,
        protocol: SecurityProtocol::Any,
        sources: &[],
        destinations: &[],
        source_ports: &[],
        destination_ports: &[],
    }
}

const NOTHING_IN: SecurityRule<'static> = deny_all(Direction::Inward);
const NOTHING_OUT: SecurityRule<'static> = deny_all(Direction::Outward);

#[test]
fn a_list_without_rules_lets_the_network_in_and_out() {
    let lists = [list("defaults", &[])];
    let on = On::NETWORK;
    for is_ipv6 in [false, true] {
        let mut net = net(&lists, on);
        let own = address(&net, CLIENT, is_ipv6);
        for other in [NEAR, FAR] {
            let to = address(&net, other, is_ipv6);
            let syn = Segment::tcp((own, 40_000), (to, 22), "S");
            assert_eq!(send(&mut net, CLIENT, &syn).vm(), other);
            let answer = Segment::tcp((to, 22), (own, 40_000), "SA").at(9, 1001);
            assert_eq!(send(&mut net, other, &answer).vm(), CLIENT);
        }
        let call = Segment::tcp((own, 41_000), (vip(is_ipv6), HTTP), "S");
        let at = send(&mut net, CLIENT, &call).vm();
        assert!((1..4).contains(&at), "{at}");
    }
}

/// The rules of Azure's that nobody wrote: the Internet stays out.
#[test]
fn the_internet_is_denied_unless_a_rule_lets_it_in() {
    let web = SecurityRule {
        name: "web",
        priority: 100,
        access: Access::Allow,
        protocol: SecurityProtocol::Tcp,
        sources: &[Peers::Internet],
        destination_ports: &[[SERVED, SERVED]],
        ..SecurityRule::default()
    };
    let (closed, open) = ([list("web", &[])], [web]);
    let open = [list("web", &open)];
    let on = On::POOLS;
    for (lists, is_open) in [(&closed, false), (&open, true)] {
        let mut plan = Plan::two_tenants();
        plan.is_private = false;
        plan.has_vip = vec![true, false];
        let mut host = host(&plan, 0, lists, on);
        for (port, reaches) in [(HTTP, is_open), (2222, false)] {
            let client = (ip("203.0.113.7"), 40_000);
            let syn = Segment::tcp(client, (vip(false), port), "S");
            let frame = from_mux(&plan, NEAR, &syn);
            let (verdict, got) = through(FABRIC, &frame, |frames| {
                host.process(Instant::from_secs(1), frames);
            });
            match reaches {
                true => {
                    assert_eq!(verdict, Verdict::Forward(plan.port_of(NEAR)));
                    assert_eq!(Segment::of(&got).to.1, SERVED);
                }
                false => assert_eq!(verdict, Verdict::Drop(DropReason::Denied)),
            }
        }
        assert_eq!(
            host.stats().dropped[DropReason::Denied].packets,
            if is_open { 1 } else { 2 }
        );
    }
}

/// A segment in VXLAN from another host of the plan, which is a mux as well as any.
fn from_mux(plan: &Plan, vm: usize, segment: &Segment) -> Vec<u8> {
    let inner = segment.frame([2, 0, 0, 0, 0, 9], plan.vms[vm].mac());
    let vni = plan.vnis[plan.vms[vm].tenant];
    let (from, to) = (plan.host_address(2), plan.host_address(plan.vms[vm].host));
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
        panic!("an IPv4 underlay");
    };
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 8], [2, 0, 0, 0, 0, 101]);
    let packet = link.ipv4(from.octets(), to.octets(), 64).udp(50_000, 4789);
    let mut frame = Vec::new();
    packet.write(&mut frame, &payload).expect("written");
    frame
}

#[test]
fn answers_pass_although_their_direction_is_denied() {
    let rules = [NOTHING_IN];
    let lists = [list("quiet", &rules)];
    let on = On::CLIENTS;
    for is_ipv6 in [false, true] {
        let mut net = net(&lists, on);
        let own = address(&net, CLIENT, is_ipv6);
        for other in [NEAR, FAR] {
            let to = address(&net, other, is_ipv6);
            // Nobody calls the client, and an answer to nothing is a call.
            for flags in ["S", "SA", "A", "R"] {
                let segment = Segment::tcp((to, 22), (own, 40_000), flags);
                assert_eq!(send(&mut net, other, &segment), DENIED, "{flags}");
            }
            let query = Segment::udp((own, 40_000), (to, 53), b"query");
            let early = Segment::udp((to, 53), (own, 40_000), b"answer");
            assert_eq!(send(&mut net, other, &early), DENIED);
            assert_eq!(send(&mut net, CLIENT, &query).vm(), other);
            assert_eq!(send(&mut net, other, &early).vm(), CLIENT);
            // From another port it is no answer.
            let stray = Segment::udp((to, 54), (own, 40_000), b"answer");
            assert_eq!(send(&mut net, other, &stray), DENIED);
            let syn = Segment::tcp((own, 40_000), (to, 22), "S");
            assert_eq!(send(&mut net, CLIENT, &syn).vm(), other);
            let answer = Segment::tcp((to, 22), (own, 40_000), "SA").at(5000, 1001);
            assert_eq!(send(&mut net, other, &answer).vm(), CLIENT);
            let data = Segment::tcp((to, 22), (own, 40_000), "A").at(5001, 1001);
            assert_eq!(send(&mut net, other, &data).vm(), CLIENT);
            // A SYN under the name of the connection asks for another one.
            let back = Segment::tcp((to, 22), (own, 40_000), "S");
            assert_eq!(send(&mut net, other, &back), DENIED);
        }
    }
}

#[test]
fn answers_of_a_private_vip_pass_and_calls_may_be_denied() {
    let rules = [NOTHING_IN];
    let lists = [list("quiet", &rules)];
    let on = On::CLIENTS;
    let mut quiet = net(&lists, on);
    let own = address(&quiet, CLIENT, false);
    for port in 40_000..40_020 {
        let syn = Segment::tcp((own, port), (vip(false), HTTP), "S");
        let backend = send(&mut quiet, CLIENT, &syn).vm();
        let server = (address(&quiet, backend, false), SERVED);
        let answer = Segment::tcp(server, (own, port), "SA").at(5000, 1001);
        assert_eq!(send(&mut quiet, backend, &answer).vm(), CLIENT);
    }
    let no_vip = [SecurityRule {
        name: "no-vip",
        priority: 100,
        direction: Direction::Outward,
        destinations: &[Peers::Prefix(Prefix {
            address: IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 100)),
            len: 32,
        })],
        ..SecurityRule::default()
    }];
    let lists = [list("no-vip", &no_vip)];
    let mut net = net(&lists, on);
    let syn = Segment::tcp((own, 40_000), (vip(false), HTTP), "S");
    assert_eq!(send(&mut net, CLIENT, &syn), DENIED);
    let direct = Segment::tcp((own, 40_000), (address(&net, FAR, false), HTTP), "S");
    assert_eq!(send(&mut net, CLIENT, &direct).vm(), FAR);
}

/// A backend's list sees the client, and the port that the vm serves: not the VIP's.
#[test]
fn a_call_is_judged_by_what_the_backend_sees() {
    let client = [Peers::Prefix(Prefix {
        address: ip("10.1.0.11"),
        len: 32,
    })];
    let allow = |port| SecurityRule {
        name: "client",
        priority: 100,
        access: Access::Allow,
        protocol: SecurityProtocol::Tcp,
        sources: &client,
        destination_ports: if port == HTTP {
            &[[HTTP, HTTP]]
        } else {
            &[[SERVED, SERVED]]
        },
        ..SecurityRule::default()
    };
    let on = On::POOLS;
    for (port, reaches) in [(SERVED, true), (HTTP, false)] {
        let rules = [allow(port), NOTHING_IN];
        let lists = [list("servers", &rules)];
        let mut net = net(&lists, on);
        let own = address(&net, CLIENT, false);
        for number in 40_000..40_020 {
            let syn = Segment::tcp((own, number), (vip(false), HTTP), "S");
            let end = send(&mut net, CLIENT, &syn);
            assert_eq!(matches!(end, End::Vm(..)), reaches, "{end:?}");
            assert!(reaches || end == DENIED);
        }
    }
}

#[test]
fn both_lists_of_a_vm_have_to_allow() {
    let ssh = [SecurityRule {
        name: "no-ssh",
        priority: 100,
        protocol: SecurityProtocol::Tcp,
        destination_ports: &[[22, 22]],
        ..SecurityRule::default()
    }];
    let telnet = [SecurityRule {
        name: "no-telnet",
        priority: 100,
        protocol: SecurityProtocol::Tcp,
        destination_ports: &[[23, 23]],
        ..SecurityRule::default()
    }];
    let lists = [list("network", &ssh), list("pool", &telnet)];
    let on = On {
        network: &[0],
        pools: &[1],
        ..On::default()
    };
    let mut net = net(&lists, on);
    let own = address(&net, CLIENT, false);
    for (port, reaches) in [(22, false), (23, false), (24, true)] {
        let syn = Segment::tcp((own, 40_000), (address(&net, FAR, false), port), "S");
        let end = send(&mut net, CLIENT, &syn);
        assert_eq!(end != DENIED, reaches, "{port}");
    }
}

#[test]
fn vms_without_a_list_do_as_before() {
    let rules = [NOTHING_IN, NOTHING_OUT];
    let lists = [list("nothing", &rules)];
    let on = On::CLIENTS;
    let mut net = net(&lists, on);
    // The first network's client is shut off; its backends and the other network are not.
    let own = address(&net, CLIENT, false);
    let syn = |from, to| Segment::tcp((from, 40_000), (to, 22), "S");
    assert_eq!(send(&mut net, CLIENT, &syn(own, ip("10.1.0.22"))), DENIED);
    let near = address(&net, NEAR, false);
    assert_eq!(send(&mut net, NEAR, &syn(near, ip("10.1.0.22"))).vm(), FAR);
    assert_eq!(
        send(&mut net, OTHER, &syn(own, ip("10.1.0.22"))).vm(),
        OTHER + 2
    );
}

/// An echo request out of a vm that nobody may call: its reply passes, another one does not, and an ICMP
/// error about a flow passes.
#[test]
fn icmp_follows_its_flow() {
    let rules = [NOTHING_IN];
    let lists = [list("quiet", &rules)];
    let on = On::CLIENTS;
    let mut net = net(&lists, on);
    let (IpAddr::V4(own), IpAddr::V4(far)) =
        (address(&net, CLIENT, false), address(&net, FAR, false))
    else {
        panic!("IPv4");
    };
    let echo = |from: usize, to: usize, id: u16, is_reply: bool| {
        let plan = Plan::two_tenants();
        let (source, target) = (plan.vms[from].address(false), plan.vms[to].address(false));
        let (IpAddr::V4(source), IpAddr::V4(target)) = (source, target) else {
            panic!("IPv4");
        };
        let link = PacketBuilder::ethernet2(plan.vms[from].mac(), GATEWAY_MAC);
        let ip = link.ipv4(source.octets(), target.octets(), 64);
        let message = match is_reply {
            false => ip.icmpv4_echo_request(id, 1),
            true => ip.icmpv4_echo_reply(id, 1),
        };
        let mut frame = Vec::new();
        message.write(&mut frame, b"ping").expect("written");
        frame
    };
    assert_eq!(net.send(FAR, &echo(FAR, CLIENT, 7, false)), DENIED);
    assert_eq!(net.send(FAR, &echo(FAR, CLIENT, 7, true)), DENIED);
    assert_eq!(net.send(CLIENT, &echo(CLIENT, FAR, 7, false)).vm(), FAR);
    assert_eq!(net.send(FAR, &echo(FAR, CLIENT, 7, true)).vm(), CLIENT);
    assert_eq!(net.send(FAR, &echo(FAR, CLIENT, 8, true)), DENIED);
    let query = Segment::udp((own.into(), 40_000), (far.into(), 53), b"query");
    let unreachable = |about: &Segment| {
        let quoted = about.frame([0; 6], [0; 6])[14..].to_vec();
        let mac = Plan::two_tenants().vms[FAR].mac();
        let link = PacketBuilder::ethernet2(mac, GATEWAY_MAC);
        let ip = link.ipv4(far.octets(), own.octets(), 64);
        let message = ip.icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::Port,
        ));
        let mut frame = Vec::new();
        message.write(&mut frame, &quoted).expect("written");
        frame
    };
    assert_eq!(net.send(FAR, &unreachable(&query)), DENIED);
    assert_eq!(send(&mut net, CLIENT, &query).vm(), FAR);
    assert_eq!(net.send(FAR, &unreachable(&query)).vm(), CLIENT);
    let other = Segment::udp((own.into(), 40_001), (far.into(), 53), b"query");
    assert_eq!(net.send(FAR, &unreachable(&other)), DENIED);
}

/// Fragments of a datagram by its number, in a frame from one vm to another.
fn fragment(from: usize, to: usize, (id, offset, more): (u16, u16, bool), bytes: &[u8]) -> Vec<u8> {
    let plan = Plan::two_tenants();
    let (IpAddr::V4(source), IpAddr::V4(target)) =
        (plan.vms[from].address(false), plan.vms[to].address(false))
    else {
        panic!("IPv4");
    };
    let mut header = etherparse::Ipv4Header::new(
        bytes.len() as u16,
        64,
        etherparse::IpNumber::UDP,
        source.octets(),
        target.octets(),
    )
    .expect("a header");
    header.identification = id;
    header.dont_fragment = false;
    header.more_fragments = more;
    header.fragment_offset = (offset / 8).try_into().expect("an offset");
    header.header_checksum = header.calc_header_checksum();
    let mut frame = GATEWAY_MAC.to_vec();
    frame.extend(plan.vms[from].mac());
    frame.extend([8, 0]);
    header.write(&mut frame).expect("written");
    frame.extend(bytes);
    frame
}

#[test]
fn later_fragments_have_the_decision_of_their_first() {
    let rules = [
        SecurityRule {
            name: "dns",
            priority: 100,
            access: Access::Allow,
            protocol: SecurityProtocol::Udp,
            destination_ports: &[[53, 53]],
            ..SecurityRule::default()
        },
        NOTHING_IN,
    ];
    let lists = [list("dns", &rules)];
    let on = On::CLIENTS;
    let mut net = net(&lists, on);
    for (id, port, reaches) in [(1, 53u16, true), (2, 54, false)] {
        let mut first = 40_000u16.to_be_bytes().to_vec();
        first.extend(port.to_be_bytes());
        first.extend([0, 32, 0, 0]);
        first.extend([7; 8]);
        let end = net.send(NEAR, &fragment(NEAR, CLIENT, (id, 0, true), &first));
        assert_eq!(matches!(end, End::Vm(CLIENT, _)), reaches, "{end:?}");
        let end = net.send(NEAR, &fragment(NEAR, CLIENT, (id, 16, false), &[7; 16]));
        assert_eq!(matches!(end, End::Vm(CLIENT, _)), reaches, "{end:?}");
    }
    // Nothing shows the ports of a later fragment that comes first: it waits.
    let alone = fragment(NEAR, CLIENT, (3, 16, false), &[7; 16]);
    assert_eq!(
        net.send(NEAR, &alone),
        End::Dropped(DropReason::FragmentHeld)
    );
    let alone = fragment(FAR, CLIENT, (4, 16, false), &[7; 16]);
    assert_eq!(
        net.send(FAR, &alone),
        End::Dropped(DropReason::FragmentHeld)
    );
}

#[test]
fn a_reload_ends_no_connection_and_denies_the_next() {
    let nothing: [SecurityRule<'_>; 2] = [NOTHING_IN, NOTHING_OUT];
    let (open, shut) = ([list("list", &[])], [list("list", &nothing)]);
    let on = On::NETWORK;
    let mut net = net(&open, on);
    let own = address(&net, CLIENT, false);
    let call = |port, flags: &str| Segment::tcp((own, port), (vip(false), HTTP), flags);
    let direct = |port, flags: &str| {
        Segment::tcp(
            (own, port),
            (Plan::two_tenants().vms[FAR].address(false), 22),
            flags,
        )
    };
    let backend = send(&mut net, CLIENT, &call(40_000, "S")).vm();
    let server = (address(&net, backend, false), SERVED);
    let answer = Segment::tcp(server, (own, 40_000), "SA").at(5000, 1001);
    assert_eq!(send(&mut net, backend, &answer).vm(), CLIENT);
    assert_eq!(send(&mut net, CLIENT, &direct(41_000, "S")).vm(), FAR);
    let plan = net.plan.clone();
    for own in 0..plan.hosts {
        let next = with_lists(&plan, own, (&shut, on), |spec| {
            Snapshot::new(spec, Some(net.hosts[own].snapshot())).expect("a good spec")
        });
        net.hosts[own].install(Box::new(next)).expect("it follows");
    }
    let ack = call(40_000, "A").at(1001, 5001);
    assert_eq!(send(&mut net, CLIENT, &ack).vm(), backend);
    let ack = direct(41_000, "A").at(1001, 1);
    assert_eq!(send(&mut net, CLIENT, &ack).vm(), FAR);
    assert_eq!(send(&mut net, CLIENT, &call(40_001, "S")), DENIED);
    assert_eq!(send(&mut net, CLIENT, &direct(41_001, "S")), DENIED);
    // A SYN begins another connection, whatever ports it has.
    assert_eq!(send(&mut net, CLIENT, &direct(41_000, "S")), DENIED);
}

#[test]
fn rules_count_what_they_decide_and_keep_counting() {
    let rules = [SecurityRule {
        name: "no-ssh",
        priority: 100,
        direction: Direction::Outward,
        protocol: SecurityProtocol::Tcp,
        destination_ports: &[[22, 22]],
        ..SecurityRule::default()
    }];
    let lists = [list("one", &[]), list("two", &rules)];
    let on = On {
        clients: &[1],
        ..On::default()
    };
    let mut net = net(&lists, on);
    let own = address(&net, CLIENT, false);
    let segment = |port, flags| {
        Segment::tcp(
            (own, 40_000),
            (Plan::two_tenants().vms[FAR].address(false), port),
            flags,
        )
    };
    let len = segment(22, "S").frame([0; 6], [0; 6]).len() as u64;
    for _ in 0..3 {
        assert_eq!(send(&mut net, CLIENT, &segment(22, "S")), DENIED);
    }
    assert_eq!(send(&mut net, CLIENT, &segment(80, "S")).vm(), FAR);
    for _ in 0..5 {
        assert_eq!(send(&mut net, CLIENT, &segment(80, "A")).vm(), FAR);
    }
    let judged = |host: &TestHost, list, rule| {
        let counters = host.security_counters(list, rule);
        counters.map(|counters| (counters.judged.packets, counters.judged.bytes))
    };
    let of_default = |rule: DefaultRule| {
        let place = DefaultRule::ALL.iter().position(|other| *other == rule);
        1 + place.expect("one of them")
    };
    let network = of_default(DefaultRule::AllowNetworkOutbound);
    assert_eq!(judged(&net.hosts[0], 1, 0), Some((3, 3 * len)));
    assert_eq!(judged(&net.hosts[0], 1, network), Some((1, len)));
    assert_eq!(judged(&net.hosts[0], 1, 7), None);
    assert_eq!(judged(&net.hosts[0], 2, 0), None);
    // Elsewhere no vm has a list, so there are no counters.
    assert_eq!(judged(&net.hosts[1], 1, 0), None);
    // The lists change places, and a rule comes first: counters go by names.
    let more = [
        SecurityRule {
            name: "first",
            ..SecurityRule::default()
        },
        rules[0],
    ];
    let lists = [list("two", &more), list("one", &[])];
    let on = On::CLIENTS;
    let next = with_lists(&net.plan, 0, (&lists, on), |spec| {
        Snapshot::new(spec, Some(net.hosts[0].snapshot())).expect("a good spec")
    });
    net.hosts[0].install(Box::new(next)).expect("it follows");
    assert_eq!(judged(&net.hosts[0], 0, 0), Some((0, 0)));
    assert_eq!(judged(&net.hosts[0], 0, 1), Some((3, 3 * len)));
    assert_eq!(judged(&net.hosts[0], 0, network + 1), Some((1, len)));
}

#[test]
fn a_trail_names_the_rule() {
    let rules = [NOTHING_OUT];
    let lists = [list("quiet", &rules)];
    let on = On::CLIENTS;
    let plan = Plan::two_tenants();
    let mut host = host(&plan, 0, &lists, on);
    let own = plan.vms[CLIENT].address(false);
    let syn = Segment::tcp((own, 40_000), (plan.vms[FAR].address(false), 22), "S");
    let bytes = syn.frame(plan.vms[CLIENT].mac(), GATEWAY_MAC);
    let mut trail = Trail::new(0);
    let _ = through(plan.port_of(CLIENT), &bytes, |frames| {
        host.process_observed(Instant::from_secs(1), frames, &mut trail);
    });
    let judged = trail
        .steps()
        .find(|step| matches!(step, Step::Judged { .. }));
    let expected = Step::Judged {
        list: 0,
        rule: 0,
        direction: Direction::Outward,
        access: Access::Deny,
    };
    assert_eq!(judged, Some(&expected));
    let text = with_lists(&plan, 0, (&lists, on), |spec| trail.named(spec).to_string());
    let line = "access     outbound: list \"quiet\", rule \"nothing-out\" (priority 4000): deny\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn lists_that_cannot_be_compiled_are_faults() {
    let long = [Peers::Prefix(Prefix {
        address: ip("10.0.0.0"),
        len: 33,
    })];
    let twice = [NOTHING_IN, NOTHING_IN];
    let odd = [
        SecurityRule {
            name: "long",
            sources: &long,
            ..SecurityRule::default()
        },
        SecurityRule {
            name: "ports",
            destination_ports: &[[2, 1]],
            ..SecurityRule::default()
        },
        SecurityRule {
            name: "late",
            priority: 65_000,
            ..SecurityRule::default()
        },
    ];
    let field = |rule, field| SpecError::SecurityRule {
        list: 1,
        rule,
        field,
    };
    let lists = [list("twice", &twice), list("odd", &odd), list("odd", &[])];
    let on = On {
        network: &[3],
        ..On::default()
    };
    let plan = Plan::two_tenants();
    let faults = with_lists(&plan, 0, (&lists, on), faults_of);
    let expected = [
        SpecError::DuplicateSecurityRule {
            list: 0,
            first: 0,
            second: 1,
        },
        field(0, "sources"),
        field(1, "destination_ports"),
        field(2, "priority"),
        SpecError::DuplicateSecurityList {
            first: 1,
            second: 2,
        },
        SpecError::DanglingSecurityList { list: 3, count: 3 },
    ];
    assert_eq!(faults, expected);
    with_lists(&plan, 0, (&lists, on), |spec| {
        assert_eq!(Snapshot::new(spec, None).err(), Some(expected[0]));
    });
}
