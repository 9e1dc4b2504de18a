//! A flow whose protocol knows no connections leaves a backend that is unhealthy or gone with its next
//! packet; TCP stays, and so does everything with a backend that is drained.

use crate::translated;

use std::time::Duration;

use slb_core::spec::BackendState::{Down, Draining, Up};
use slb_core::{DropReason, Verdict};

use translated::{BACKENDS, FABRIC, ROLES, Role, SYN, SYN_ACK, Setup, What, World, packet};

const FLOWS: u32 = 40;
const SERVER_RST: What = What::Tcp("RA", 0, 101);
const KINDS: [What; 3] = [What::Udp, What::Echo, What::Other];

/// Flows of a kind, with the backend of each.
fn open(world: &mut World, what: What) -> Vec<(u32, u16)> {
    (0..FLOWS)
        .map(|n| n << 10)
        .map(|client| (client, world.connects(1, client, what).unwrap()))
        .collect()
}

fn proxies() -> impl Iterator<Item = World> {
    [false, true]
        .into_iter()
        .map(|ipv6| World::new(Setup::new(Role::Proxy, ipv6)))
}

#[test]
fn flows_leave_a_backend_that_is_unhealthy_or_gone_with_their_next_packet() {
    let unhealthy = &[(1, 1, Down), (2, 1, Up)][..];
    let gone = &[(2, 1, Up)][..];
    for what in KINDS {
        for next in [unhealthy, gone] {
            for mut world in proxies() {
                let flows = open(&mut world, what);
                assert!(flows.iter().any(|&(_, server)| server == 1));
                world.set(next);
                for &(client, _) in &flows {
                    assert_eq!(world.asks(1, client, what), Ok(2), "{what:?} {next:?}");
                    assert!(world.goes_on(2, client, what), "{what:?} {next:?}");
                }
                let connections = world.connections();
                assert_eq!(world.live(2), u64::from(FLOWS));
                // What moved stays where it is when the backend is well again.
                world.set(&[(1, 1, Up), (2, 1, Up)]);
                for &(client, _) in &flows {
                    assert!(world.goes_on(2, client, what), "{what:?}");
                }
                assert_eq!(world.connections().made, connections.made);
            }
        }
    }
}

#[test]
fn a_backend_that_is_drained_keeps_what_it_has() {
    for what in KINDS {
        for next in [(1, 1, Draining), (1, 0, Up)] {
            for mut world in proxies() {
                let flows = open(&mut world, what);
                world.set(&[next, (2, 1, Up)]);
                for (client, server) in flows {
                    assert!(world.goes_on(server, client, what), "{what:?} {next:?}");
                }
                // To its end: then it is unhealthy, or removed.
                world.set(&[(1, 1, Down), (2, 1, Up)]);
                for client in (0..FLOWS).map(|n| n << 10) {
                    assert_eq!(world.asks(1, client, what), Ok(2), "{what:?} {next:?}");
                }
            }
        }
    }
}

#[test]
fn a_tcp_session_stays_with_its_backend_whatever_becomes_of_it() {
    for next in [&[(1, 1, Down), (2, 1, Up)][..], &[(2, 1, Up)]] {
        for mut world in proxies() {
            let flows = open(&mut world, SYN);
            world.set(next);
            for (client, server) in flows {
                assert!(world.goes_on(server, client, SYN), "{next:?}");
            }
        }
    }
}

/// Packets that the old backend sends until then are still translated.
#[test]
fn answers_alone_move_nothing() {
    for what in KINDS {
        for mut world in proxies() {
            let flows = open(&mut world, what);
            let vip = match what {
                What::Other => world.setup.whole(),
                _ => world.setup.vip(),
            };
            world.set(&[(1, 1, Down), (2, 1, Up)]);
            let made = world.connections().made;
            for &(client, server) in &flows {
                assert_eq!(world.answers(server, client, what), Ok(vip), "{what:?}");
            }
            assert_eq!(world.connections().made, made);
        }
    }
}

/// A backend that a probe does not reach may be slow only, and one that was taken out still runs.
#[test]
fn late_answers_of_the_old_backend_do_not_show_its_address() {
    for what in KINDS {
        for next in [&[(1, 1, Down), (2, 1, Up)][..], &[(2, 1, Up)]] {
            for mut world in proxies() {
                let flows = open(&mut world, what);
                let vip = match what {
                    What::Other => world.setup.whole(),
                    _ => world.setup.vip(),
                };
                world.set(next);
                for &(client, server) in &flows {
                    assert_eq!(world.asks(1, client, what), Ok(2));
                    assert_eq!(world.answers(server, client, what), Ok(vip), "{what:?}");
                    assert!(world.goes_on(2, client, what), "{what:?}");
                }
                assert_eq!(world.live(2), u64::from(FLOWS));
                // They last as long as any flow does.
                world.wait(Duration::from_secs(241));
                world.wait(Duration::from_secs(2));
                assert_eq!(world.connections().live, 0, "{what:?}");
            }
        }
    }
}

/// A SYN that nobody answered goes to another backend; then the first one answers after all.
#[test]
fn a_late_syn_ack_reaches_nobody() {
    for next in [&[(1, 1, Down), (2, 1, Up)][..], &[(2, 1, Up)]] {
        for mut world in proxies() {
            let clients: Vec<u32> = (0..FLOWS).map(|n| n << 10).collect();
            let asked: Vec<_> = clients.iter().map(|&c| world.asks(1, c, SYN)).collect();
            assert!(asked.contains(&Ok(1)));
            world.set(next);
            for (&client, server) in clients.iter().zip(asked) {
                assert_eq!(world.asks(1, client, SYN), Ok(2));
                if server == Ok(1) {
                    let dropped = Err(Verdict::Drop(DropReason::NoConnection));
                    for late in [SYN_ACK, SYN_ACK, SERVER_RST] {
                        assert_eq!(world.answers(1, client, late), dropped, "{late:?}");
                    }
                }
                assert_eq!(world.connects(1, client, SYN), Ok(2));
            }
            assert_eq!(world.live(2), u64::from(FLOWS));
            // A connection to the first one is one like any other.
            world.set(&[(1, 1, Up)]);
            for client in (FLOWS..2 * FLOWS).map(|n| n << 10).chain([1]) {
                assert_eq!(world.connects(1, client, SYN), Ok(1));
            }
        }
    }
}

#[test]
fn a_flow_that_comes_back_has_its_client_s_port_again() {
    for what in KINDS {
        for mut world in proxies() {
            let flows = open(&mut world, what);
            for turn in 0..4 {
                let server = 1 + turn % 2;
                world.set(&[(3 - server, 1, Down), (server, 1, Up)]);
                for &(client, _) in &flows {
                    let bytes = world.packet_of(1, client, what);
                    let outcome = world.give(FABRIC, &bytes);
                    assert_eq!(outcome.addresses().1, world.setup.server(server));
                    let port = translated::ports(&outcome.bytes).0;
                    assert_eq!(port, translated::ports(&bytes).0, "{what:?} {turn}");
                    assert!(world.goes_on(server, client, what), "{what:?} {turn}");
                }
                assert_eq!(world.live(server), u64::from(FLOWS));
            }
            assert!(world.connections().live <= 2 * u64::from(FLOWS));
        }
    }
}

/// Flows that moved give their places to new ones.
#[test]
fn flows_that_moved_keep_nobody_out() {
    for mut world in proxies() {
        world.setup.places = 100;
        let mut world = World::new(world.setup.clone());
        let flows: Vec<u32> = (0..60).map(|n| n << 10).collect();
        for &client in &flows {
            world.connects(1, client, What::Udp).unwrap();
        }
        world.set(&[(1, 1, Down), (2, 1, Up)]);
        for &client in &flows {
            assert_eq!(world.asks(1, client, What::Udp), Ok(2));
        }
        for client in (60..100).map(|n| n << 10) {
            assert_eq!(world.connects(1, client, What::Udp), Ok(2));
        }
        assert_eq!(world.connections().refused, 0);
    }
}

/// An ICMP error from the client's side about an answer goes where the answer came from.
#[test]
fn errors_follow_their_flow() {
    for mut world in proxies() {
        let flows = open(&mut world, What::Udp);
        world.set(&[(1, 1, Down), (2, 1, Up)]);
        let made = world.connections().made;
        for &(client, server) in &flows {
            let client = world.setup.client(client);
            let answer = packet((world.setup.vip(), 53), client, What::Udp, true);
            let error = unreachable(client.0, &answer);
            let outcome = world.give(FABRIC, &error);
            assert_eq!(outcome.verdict, Verdict::Forward(BACKENDS));
            assert_eq!(outcome.addresses().1, world.setup.server(server));
        }
        assert_eq!(world.connections().made, made);
    }
}

/// "Host unreachable" from `from` about a packet, to its sender.
fn unreachable(from: std::net::IpAddr, about: &[u8]) -> Vec<u8> {
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};
    let (vip, _) = translated::addresses(about);
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1]);
    let mut bytes = Vec::new();
    match (from, vip) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(vip)) => link
            .ipv4(from.octets(), vip.octets(), 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(
                etherparse::icmpv4::DestUnreachableHeader::Host,
            ))
            .write(&mut bytes, &about[14..]),
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(vip)) => link
            .ipv6(from.octets(), vip.octets(), 64)
            .icmpv6(Icmpv6Type::DestinationUnreachable(
                etherparse::icmpv6::DestUnreachableCode::Address,
            ))
            .write(&mut bytes, &about[14..]),
        _ => unreachable!("of one family"),
    }
    .unwrap();
    bytes
}

/// Azure: where all probes fail, UDP flows terminate.
#[test]
fn without_another_backend_a_flow_ends() {
    for what in KINDS {
        for mut world in proxies() {
            let flows = open(&mut world, what);
            world.set(&[(1, 1, Down), (2, 1, Down)]);
            for (client, _) in flows {
                let dropped = Verdict::Drop(DropReason::NoBackend);
                assert_eq!(world.asks(1, client, what), Err(dropped), "{what:?}");
            }
            assert_eq!((world.live(1), world.live(2)), (0, 0));
            world.set(&[(1, 1, Up), (2, 1, Up)]);
            open(&mut world, what);
        }
    }
}

#[test]
fn a_host_agent_whose_vm_is_gone_has_no_flow_of_it() {
    for (role, ipv6) in ROLES.into_iter().filter(|(role, _)| *role == Role::Host) {
        for what in [SYN, What::Udp, What::Echo, What::Other] {
            let mut world = World::new(Setup::new(role, ipv6));
            open(&mut world, what);
            world.set(&[(2, 1, Up)]);
            for client in (0..FLOWS).map(|n| n << 10) {
                let dropped = Verdict::Drop(DropReason::UnknownVm);
                let next = if what == SYN { translated::ACK } else { what };
                assert_eq!(world.asks(1, client, next), Err(dropped), "{what:?}");
                // At another of its vms the flow begins anew.
                assert_eq!(world.connects(2, client, what), Ok(2), "{what:?}");
            }
        }
    }
}
