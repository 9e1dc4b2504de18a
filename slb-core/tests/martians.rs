//! Addresses that no host has: IPv4-mapped ones (RFC 6890 §2.2.3) as sources at every role, and what vms
//! cannot call.

use crate::common;
use crate::snat_world;
use crate::translated;

use std::net::{IpAddr, Ipv6Addr};

use common::{client6, pinned, send_one, stateless, tcp6, udp6};
use slb_core::{DropReason, Instant, Verdict};
use snat_world::{Kind, Plan, vm};
use translated::{FABRIC, Role, SYN, Setup, What, World};

const MARTIAN: Verdict = Verdict::Drop(DropReason::Martian);
const NOW: Instant = Instant::from_secs(1000);

/// IPv4-mapped addresses, and their neighbours, which are none.
fn sources() -> [(Ipv6Addr, bool); 7] {
    let address = |text: &str| text.parse().unwrap();
    [
        (address("::ffff:198.51.100.10"), true),
        (address("::ffff:0.0.0.0"), true),
        (address("::ffff:255.255.255.255"), true),
        (address("::fffe:198.51.100.10"), false),
        (address("::1:ffff:198.51.100.10"), false),
        (address("0:0:0:1::ffff:198.51.100.10"), false),
        // NAT64's (RFC 6052 §2.1).
        (address("64:ff9b::198.51.100.10"), false),
    ]
}

#[test]
fn a_mux_takes_no_flow_from_an_ipv4_mapped_address() {
    let setup = common::Setup::new(3);
    for (source, is_martian) in sources() {
        for mut mux in [pinned(&setup), stateless(&setup)] {
            for mut frame in [tcp6(9, "S"), tcp6(9, "A"), udp6(9, b"question")] {
                assert_eq!(frame[22..38], client6());
                frame[22..38].copy_from_slice(&source.octets());
                let mut tagged = frame.clone();
                tagged.splice(12..12, [0x81, 0, 0, 7]);
                for frame in [frame, tagged] {
                    let verdict = send_one(&mut mux, frame).verdict;
                    assert_eq!(verdict == MARTIAN, is_martian, "{source}: {verdict:?}");
                    assert!(is_martian || matches!(verdict, Verdict::Forward(_)));
                }
            }
        }
    }
}

#[test]
fn nor_do_a_host_agent_and_a_proxy() {
    for role in [Role::Host, Role::Proxy] {
        for (source, is_martian) in sources() {
            for (what, port) in [(SYN, 80), (What::Udp, 53), (What::Echo, 0)] {
                let mut world = World::new(Setup::new(role, true));
                let to = (world.setup.vip(), port);
                let inner = translated::packet((source.into(), 9), to, what, false);
                let frame = match role {
                    Role::Host => translated::encapsulated(&inner, world.setup.server(1)),
                    Role::Proxy => inner,
                };
                let verdict = world.give(FABRIC, &frame).verdict;
                assert_eq!(verdict == MARTIAN, is_martian, "{role:?} {source} {what:?}");
                assert_eq!(world.connections().made == 0, is_martian);
            }
        }
    }
}

/// RFC 6890: addresses of no host as sources, and the VIP itself with the service's own port.
#[test]
fn a_host_agent_and_a_proxy_take_no_connection_from_an_address_that_no_host_has() {
    let ipv4 = [
        ("0.1.2.3", true),
        ("127.0.0.1", true),
        ("224.0.0.1", true),
        ("239.255.255.255", true),
        ("240.0.0.1", true),
        ("255.255.255.254", true),
        ("255.255.255.255", true),
        ("20.20.20.100", true),
        ("1.0.0.0", false),
        ("126.255.255.255", false),
        ("223.255.255.255", false),
    ];
    let ipv6 = [
        ("::", true),
        ("::1", true),
        ("ff02::1", true),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
        ("2001:db8:20::64", true),
        ("2001:db8:20::63", false),
        ("fe00::1", false),
    ];
    for role in [Role::Host, Role::Proxy] {
        for (source, is_martian) in ipv4.into_iter().chain(ipv6) {
            for (what, port) in [(SYN, 80), (What::Udp, 53)] {
                let source: IpAddr = source.parse().unwrap();
                let mut world = World::new(Setup::new(role, source.is_ipv6()));
                let to = (world.setup.vip(), port);
                let inner = translated::packet((source, port), to, what, false);
                let frame = match role {
                    Role::Host => translated::encapsulated(&inner, world.setup.server(1)),
                    Role::Proxy => inner,
                };
                let verdict = world.give(FABRIC, &frame).verdict;
                let name = format!("{role:?} {source} {what:?}: {verdict:?}");
                assert_eq!(verdict == MARTIAN, is_martian, "{name}");
                assert_eq!(world.connections().made == 0, is_martian, "{name}");
            }
        }
    }
}

#[test]
fn a_vm_calls_no_address_that_no_host_has() {
    let all = [
        ("0.1.2.3", true),
        ("1.0.0.0", false),
        ("239.255.255.255", false),
        ("240.0.0.1", true),
        ("255.255.255.254", true),
        ("223.255.255.255", false),
        ("::ffff:93.184.216.34", true),
        ("::fffe:93.184.216.34", false),
        ("64:ff9b::93.184.216.34", false),
    ];
    for (to, is_martian) in all {
        let address: IpAddr = to.parse().unwrap();
        let family = match address {
            IpAddr::V4(_) => snat_world::Family::Ipv4,
            IpAddr::V6(_) => snat_world::Family::Ipv6,
        };
        for kind in [Kind::Tcp, Kind::Udp, Kind::Echo] {
            for fronts in [0, 1] {
                let mut world = Plan::new(family, fronts).world();
                let packet = kind.request((vm(family, 0), 40_000), (address, 53));
                let (verdict, _) = world.of_vm(NOW, 0, &packet);
                assert_eq!(verdict == MARTIAN, is_martian, "{to} {kind:?}: {verdict:?}");
            }
        }
    }
}
