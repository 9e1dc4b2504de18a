//! Clients that reach a vm by its own address past the host agent, from a port that also has a connection
//! to a VIP of that vm.

use crate::translated;

use std::net::IpAddr;

use slb_core::spec::derived_mac;
use slb_core::{PortId, Verdict};

use translated::{Outcome, Role, SERVER_ACK, SYN, SYN_ACK, Setup, What, World, packet};

/// The state of the connection to the VIP when the client connects to the vm itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Old {
    Asked,
    Open,
    HalfClosed,
    TimeWait,
}

const OLD: [Old; 4] = [Old::Asked, Old::Open, Old::HalfClosed, Old::TimeWait];

fn connect(world: &mut World, client: u32, old: Old) {
    let server = world.asks(1, client, SYN).unwrap();
    let mut both = |is_server, what| {
        if is_server {
            world.answers(server, client, what).unwrap();
        } else {
            world.asks(1, client, what).unwrap();
        }
    };
    if old == Old::Asked {
        return;
    }
    both(true, SYN_ACK);
    both(false, translated::ACK);
    if old == Old::Open {
        return;
    }
    both(false, What::Tcp("FA", 101, 501));
    both(true, What::Tcp("A", 501, 102));
    if old == Old::TimeWait {
        both(true, What::Tcp("FA", 501, 102));
        both(false, What::Tcp("A", 102, 502));
    }
}

/// A segment of the vm's to the client's own end, as it comes to the host agent.
fn of_vm(world: &mut World, client: (IpAddr, u16), what: What) -> (Outcome, Vec<u8>) {
    let vm = (world.setup.server(1), 8080);
    let mut bytes = packet(vm, client, what, true);
    bytes[6..12].copy_from_slice(&derived_mac(vm.0).0);
    (world.give(PortId(1), &bytes), bytes)
}

fn world(ipv6: bool) -> World {
    World::new(Setup {
        is_client_inside: true,
        ..Setup::new(Role::Host, ipv6)
    })
}

#[test]
fn a_vm_s_answer_to_a_syn_that_came_past_the_host_agent_keeps_its_own_name() {
    for ipv6 in [false, true] {
        // While the VIP's connection is open, the vm answers no other SYN.
        for old in OLD.into_iter().filter(|&old| old != Old::Open) {
            let mut world = world(ipv6);
            connect(&mut world, 7, old);
            let client = world.setup.client(7);
            let answer = What::Tcp("SA", 90_000, 500_001);
            for _ in 0..2 {
                let (seen, sent) = of_vm(&mut world, client, answer);
                assert_eq!(seen.verdict, Verdict::Pass, "{old:?}");
                assert_eq!(seen.bytes, sent, "{old:?}");
            }
            assert_eq!(world.connections().live, 0, "{old:?}");
            let (seen, sent) = of_vm(&mut world, client, What::Tcp("A", 90_001, 500_009));
            assert_eq!((seen.verdict, seen.bytes), (Verdict::Pass, sent), "{old:?}");
        }
    }
}

#[test]
fn what_answers_the_vip_s_own_syns_keeps_the_vip_s_name() {
    for ipv6 in [false, true] {
        for old in OLD {
            let mut world = world(ipv6);
            connect(&mut world, 7, old);
            let vip = world.setup.vip();
            // Again, since the client's acknowledgement was lost.
            assert_eq!(world.answers(1, 7, SYN_ACK), Ok(vip), "{old:?}");
            // A port that is used again: the answer to the later SYN, and to the one before it.
            for isn in [700_000, 900_000] {
                world.asks(1, 7, What::Tcp("S", isn, 0)).unwrap();
                let answer = What::Tcp("SA", isn + 5, isn + 1);
                assert_eq!(world.answers(1, 7, answer), Ok(vip), "{old:?} {isn}");
            }
            let (seen, _) = {
                let client = world.setup.client(7);
                of_vm(&mut world, client, SERVER_ACK)
            };
            assert_eq!(seen.addresses().0, vip);
        }
    }
}

/// A vm that answers a SYN nobody sent to it changes nothing for a client that it can only reach under
/// the VIP's name.
#[test]
fn an_answer_to_the_outside_is_never_a_vm_s_own() {
    for ipv6 in [false, true] {
        for old in OLD {
            let mut world = World::new(Setup::new(Role::Host, ipv6));
            connect(&mut world, 7, old);
            let client = world.setup.client(7);
            let (seen, _) = of_vm(&mut world, client, What::Tcp("SA", 90_000, 500_001));
            assert_eq!(seen.addresses().0, world.setup.vip(), "{old:?}");
            assert_eq!(world.connections().live, 1, "{old:?}");
        }
    }
}
