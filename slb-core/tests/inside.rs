//! Inside and outside: which of a vm's packets go out under another name.

use crate::snat_world;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::hash::Distribution;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, INSIDE, Pool, Prefix, Protocol, Rule, Spec, SpecError, Underlay,
};
use slb_core::{DropReason, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict};

use snat_world::{Endpoint, Family, Kind, Plan, far, vm};

const NOW: Instant = Instant::from_secs(1);
const OUT: Verdict = Verdict::Forward(PortId(0));

fn at(address: &str, port: u16) -> Endpoint {
    (address.parse().expect("an address"), port)
}

const INSIDE_ADDRESSES: [&str; 9] = [
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.254",
    "192.168.7.7",
    "100.64.0.1",
    "100.127.255.255",
    "168.63.129.16",
    "fc00::1",
    "fdff:ffff::1",
];

const OUTSIDE_ADDRESSES: [&str; 10] = [
    "9.255.255.255",
    "11.0.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "100.63.255.255",
    "100.128.0.0",
    "168.63.129.17",
    "fe00::1",
    "2001:db8:93::1",
];

fn family(address: &str) -> Family {
    if address.contains(':') {
        Family::Ipv6
    } else {
        Family::Ipv4
    }
}

#[test]
fn only_what_goes_outside_is_translated() {
    for kind in [Kind::Tcp, Kind::Udp, Kind::Echo] {
        for address in INSIDE_ADDRESSES {
            let mut world = Plan::new(family(address), 1).world();
            let packet = kind.request((vm(world.family, 0), 40_000), at(address, 8080));
            let (verdict, out) = world.of_vm(NOW, 0, &packet);
            assert_eq!(verdict, Verdict::Pass, "{kind:?} to {address}");
            assert_eq!(out[14..], packet);
            assert_eq!(world.snat().connections, 0);
        }
        for address in OUTSIDE_ADDRESSES {
            let mut world = Plan::new(family(address), 1).world();
            let packet = kind.request((vm(world.family, 0), 40_000), at(address, 8080));
            let (verdict, out) = world.of_vm(NOW, 0, &packet);
            assert_eq!(verdict, OUT, "{kind:?} to {address}");
            let front = snat_world::front(world.family, 0);
            assert_eq!(snat_world::ends(&out).0.0, front);
        }
    }
}

#[test]
fn answers_to_the_inside_pass_and_those_of_a_vip_are_translated() {
    for (family, client) in [
        (Family::Ipv4, at("10.0.7.7", 50_000)),
        (Family::Ipv6, at("fd00:7::7", 50_000)),
    ] {
        let mut world = Plan::new(family, 1).tcp_reset().world();
        // To the vm itself, without a VIP.
        let direct = Kind::Tcp.request(client, (vm(family, 0), 22));
        assert_eq!(world.of_mux(NOW, 0, &direct).0, Verdict::Forward(PortId(1)));
        let answer = snat_world::tcp((vm(family, 0), 22), client, 0x12);
        let (verdict, out) = world.of_vm(NOW, 0, &answer);
        assert_eq!(verdict, Verdict::Pass, "no reset, and no other name");
        assert_eq!(out[14..], answer);
        // By the VIP.
        let vip = (snat_world::vip(family), 80);
        let call = Kind::Tcp.request(client, vip);
        let (verdict, out) = world.of_mux(NOW, 0, &call);
        assert_eq!(verdict, Verdict::Forward(PortId(1)));
        assert_eq!(snat_world::ends(&out), (client, (vm(family, 0), 8080)));
        let answer = snat_world::tcp((vm(family, 0), 8080), client, 0x12);
        let (verdict, out) = world.of_vm(NOW, 0, &answer);
        assert_eq!(verdict, OUT);
        assert_eq!(snat_world::ends(&out), (vip, client));
    }
}

#[test]
fn nobody_reaches_the_inside_under_another_s_address() {
    for (family, to) in [(Family::Ipv4, "10.9.9.9"), (Family::Ipv6, "fd00::9")] {
        let mut world = Plan::new(family, 1).world();
        let packet = Kind::Udp.request((vm(family, 7), 40_000), at(to, 53));
        let (verdict, _) = world.of_vm(NOW, 0, &packet);
        assert_eq!(verdict, Verdict::Drop(DropReason::SpoofedSource));
    }
}

#[test]
fn what_is_inside_is_the_spec_s_to_say() {
    let prefix = |address: &str, len| Prefix {
        address: address.parse().expect("an address"),
        len,
    };
    // Overlapping, beside each other, in no order, with bits beyond their length.
    let inside = [
        prefix("93.184.217.200", 24),
        prefix("93.184.216.5", 25),
        prefix("93.184.216.0", 26),
        prefix("2001:db8:93::ffff", 48),
    ];
    for (address, is_inside) in [
        ("93.184.216.127", true),
        ("93.184.216.128", false),
        ("93.184.217.0", true),
        ("93.184.218.0", false),
        ("10.0.0.1", false),
        ("2001:db8:93::1", true),
        ("2001:db8:94::1", false),
        ("fd00::1", false),
    ] {
        let family = family(address);
        let mut world = Plan::new(family, 1).inside(&inside).world();
        let packet = Kind::Udp.request((vm(family, 0), 40_000), at(address, 53));
        let (verdict, _) = world.of_vm(NOW, 0, &packet);
        let expected = if is_inside { Verdict::Pass } else { OUT };
        assert_eq!(verdict, expected, "{address}");
    }
    // Everything of one family.
    for (all, family, expected) in [
        ("0.0.0.0", Family::Ipv4, Verdict::Pass),
        ("::", Family::Ipv4, OUT),
        ("::", Family::Ipv6, Verdict::Pass),
        ("0.0.0.0", Family::Ipv6, OUT),
    ] {
        let inside = [prefix(all, 0)];
        let mut world = Plan::new(family, 1).inside(&inside).world();
        let packet = Kind::Tcp.request((vm(family, 0), 40_000), far(family, 0));
        assert_eq!(world.of_vm(NOW, 0, &packet).0, expected, "{all} {family:?}");
    }
}

#[test]
fn a_prefix_longer_than_its_family_is_refused() {
    for (address, len) in [("10.0.0.0", 33), ("fd00::", 129)] {
        let bad = Prefix {
            address: address.parse().expect("an address"),
            len,
        };
        let inside = [INSIDE[0], bad];
        let plan = Plan::new(Family::Ipv4, 1).inside(&inside);
        assert_eq!(plan.error(), Some(SpecError::InsidePrefix { index: 1 }));
    }
    assert!(Snapshot::new(&Spec::default(), None).is_ok());
}

/// Without an outbound rule there is nothing to translate with, and inside there is no need to.
#[test]
fn a_vm_without_an_outbound_rule_reaches_the_inside_only() {
    for (family, inside) in [(Family::Ipv4, "10.9.9.9"), (Family::Ipv6, "fd00::9")] {
        let mut world = Plan::new(family, 0).world();
        let mut to = |to: Endpoint| {
            let packet = Kind::Tcp.request((vm(family, 0), 40_000), to);
            world.of_vm(NOW, 0, &packet).0
        };
        assert_eq!(to(at(inside, 80)), Verdict::Pass);
        assert_eq!(
            to(far(family, 0)),
            Verdict::Drop(DropReason::NoOutboundRule)
        );
    }
}

/// The web tier's vms call the internal VIP of the app tier, through a mux.
#[test]
fn a_tier_sees_the_vms_of_the_other_under_their_own_addresses() {
    const APP_HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 102);
    const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
    for family in [Family::Ipv4, Family::Ipv6] {
        let (vip, app_vms): (IpAddr, Vec<IpAddr>) = match family {
            Family::Ipv4 => (
                Ipv4Addr::new(10, 0, 2, 100).into(),
                (4..7).map(|n| Ipv4Addr::new(10, 0, 2, n).into()).collect(),
            ),
            Family::Ipv6 => {
                let address = |n| Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, n).into();
                (address(0x100), (4..7).map(address).collect())
            }
        };
        let names = ["app1", "app2", "app3"];
        let backends = |at_host: bool| -> Vec<Backend<'_>> {
            let each = app_vms.iter().zip(names).enumerate();
            let backend = |(n, (&address, name))| Backend {
                name,
                address,
                host: APP_HOST.into(),
                port: at_host.then_some(PortId(1 + n as u16)),
                ..Backend::default()
            };
            each.map(backend).collect()
        };
        let snapshot = |own: Ipv4Addr, backends: &[Backend<'_>]| {
            let spec = Spec {
                underlay: Underlay {
                    ipv4: Some(own),
                    ..Underlay::default()
                },
                frontends: &[Frontend {
                    name: "app",
                    address: vip,
                    icmp_echo: Echo::Answer,
                }],
                rules: &[Rule {
                    name: "app",
                    protocol: Protocol::Tcp,
                    frontend_port: 8080,
                    backend_port: 8080,
                    distribution: Distribution::SourceIp,
                    ..Rule::default()
                }],
                pools: &[Pool {
                    name: "app",
                    backends,
                    ..Pool::default()
                }],
                muxes: &[MUX.into()],
                ..Spec::default()
            };
            Box::new(Snapshot::new(&spec, None).expect("a good spec"))
        };
        let key = Key::new([1, 2]);
        let mut web = Plan::new(family, 1).vms(3).world();
        let mut mux =
            Mux::with_capacity(snapshot(MUX, &backends(false)), 64, key).expect("its role");
        let mut app =
            Host::with_capacity(snapshot(APP_HOST, &backends(true)), 1000, key).expect("its role");
        let mut chosen = HashSet::new();
        for number in 0..3 {
            let mut own = HashSet::new();
            for port in 40_000..40_020 {
                let from = (vm(family, number), port);
                let packet = Kind::Tcp.request(from, (vip, 8080));
                // The host of the web tier, the mux, the host of the app tier.
                let (verdict, sent) = web.of_vm(NOW, number, &packet);
                assert_eq!(verdict, Verdict::Pass);
                let mut buffer = vec![0; HEADROOM];
                buffer.extend(&sent);
                let mut frames = [Frame::new(&mut buffer, HEADROOM, sent.len()).expect("room")];
                mux.process(NOW, &mut frames);
                assert_eq!(frames[0].verdict(), Verdict::Forward(PortId(0)));
                app.process(NOW, &mut frames);
                let Verdict::Forward(at) = frames[0].verdict() else {
                    panic!("{:?}", frames[0].verdict());
                };
                let app_vm = app_vms[usize::from(at.0) - 1];
                let ends = snat_world::ends(frames[0].bytes());
                assert_eq!(ends, (from, (app_vm, 8080)), "the web vm's own address");
                own.insert(app_vm);
            }
            assert_eq!(own.len(), 1, "a client stays at its backend");
            chosen.extend(own);
        }
        assert!(chosen.len() > 1, "three web vms at {chosen:?} only");
    }
}

/// A mux sends a vm to itself.
#[test]
fn a_vm_that_calls_itself_by_its_vip_is_refused_by_name() {
    for (family, fronts) in [
        (Family::Ipv4, 0),
        (Family::Ipv4, 1),
        (Family::Ipv6, 0),
        (Family::Ipv6, 1),
    ] {
        let mut world = Plan::new(family, fronts).world();
        let call =
            |family| Kind::Tcp.request((vm(family, 0), 40_000), (snat_world::vip(family), 80));
        let (verdict, _) = world.of_mux(NOW, 0, &call(family));
        assert_eq!(verdict, Verdict::Drop(DropReason::Hairpin), "{family:?}");
        // Under another address it works, there and back.
        let mut world = Plan::new(family, fronts).source_nat().world();
        let (verdict, out) = world.of_mux(NOW, 0, &call(family));
        assert_eq!(verdict, Verdict::Forward(PortId(1)));
        let (peer, server) = snat_world::ends(&out);
        assert_ne!(peer.0, vm(family, 0));
        assert_eq!(server, (vm(family, 0), 8080));
        let answer = snat_world::tcp(server, peer, 0x12);
        let (verdict, out) = world.of_vm(NOW, 0, &answer);
        assert_eq!(verdict, OUT);
        let ends = snat_world::ends(&out);
        assert_eq!(
            ends,
            ((snat_world::vip(family), 80), (vm(family, 0), 40_000))
        );
    }
}

#[test]
fn prefixes_are_shown_as_they_are_written() {
    let shown: Vec<String> = INSIDE.iter().map(Prefix::to_string).collect();
    assert_eq!(shown[0], "10.0.0.0/8");
    assert!(shown.contains(&"fc00::/7".to_owned()));
    assert!(
        INSIDE
            .iter()
            .any(|prefix| prefix.address == IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)))
    );
}
