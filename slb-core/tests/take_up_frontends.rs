//! The frontend under which a host agent that begins without state takes up the connection of a vm's segment, where
//! several lead to the vm's port: the one through which the vm has the connection's slot, or had it.

use crate::translated;

use std::net::IpAddr;

use slb_core::hash::Distribution;
use slb_core::maglev::{Member, Table};
use slb_core::packet::Tuple;
use slb_core::spec::{BackendState, Spec};
use slb_core::{DropReason, PortId, Verdict};
use translated::{ACK, Role, SERVER_ACK, Setup, World};

const FAMILIES: [bool; 2] = [false, true];
const NO_CONNECTION: Verdict = Verdict::Drop(DropReason::NoConnection);
/// Both lead to port 8080 of the vms.
const PORTS: [u16; 2] = [80, 81];
const CLIENTS: u32 = 200;

fn host_of_two_frontends(ipv6: bool) -> Setup {
    Setup {
        has_whole: false,
        also: Some(PORTS[1]),
        ..Setup::new(Role::Host, ipv6)
    }
}

fn begun(setup: Setup) -> World {
    let mut world = World::new(setup);
    world.take_up();
    world
}

/// The vm that muxes choose for a client's SYN while both vms are up.
fn home(setup: &Setup, number: u32, (vip, port): (IpAddr, u16)) -> u16 {
    let members = ["vm1", "vm2"].map(|name| Member { name, weight: 1 });
    let spec = Spec::default();
    let table = Table::with_members(&members, 251, spec.hash_seed).expect("a table");
    let (source, source_port) = setup.client(number);
    let tuple = Tuple {
        source,
        destination: vip,
        source_port,
        destination_port: port,
        protocol: 6,
    };
    let hash = tuple.hash(&spec.hasher, Distribution::FiveTuple);
    1 + table.choose(hash.expect("one family")).expect("a vm") as u16
}

/// Sends a vm's segment to a client; returns the frontend that it leaves by.
fn leaves_by(world: &mut World, vm: u16, number: u32) -> Result<(IpAddr, u16), Verdict> {
    let (port, bytes) = world.answer_of(vm, number, SERVER_ACK);
    let outcome = world.give(port, &bytes);
    match outcome.is_forwarded() {
        true => Ok((outcome.addresses().0, translated::ports(&outcome.bytes).0)),
        false => Err(outcome.verdict),
    }
}

/// The frontend that the homes of a client's connections leave to choose.
fn expected(setup: &Setup, vm: u16, number: u32) -> Result<(IpAddr, u16), Verdict> {
    let vip = setup.vip();
    match PORTS.map(|port| home(setup, number, (vip, port)) == vm) {
        [true, false] => Ok((vip, PORTS[0])),
        [false, true] => Ok((vip, PORTS[1])),
        _ => Err(NO_CONNECTION),
    }
}

#[test]
fn a_servers_segment_is_taken_up_under_the_frontend_that_chooses_the_server() {
    for ipv6 in FAMILIES {
        let mut world = begun(host_of_two_frontends(ipv6));
        let mut counts = [0; 3];
        for number in 0..CLIENTS {
            let expected = expected(&world.setup, 1, number);
            assert_eq!(leaves_by(&mut world, 1, number), expected, "{number}");
            assert_eq!(leaves_by(&mut world, 1, number), expected, "{number}");
            match expected {
                Ok((_, port)) if port == PORTS[0] => {
                    counts[0] += 1;
                    // The client goes on with it.
                    assert!(world.goes_on(1, number, ACK));
                }
                Ok(_) => counts[1] += 1,
                Err(_) => {
                    counts[2] += 1;
                    // The client's next segment tells.
                    assert_eq!(world.asks(1, number, ACK), Ok(1));
                    assert!(world.goes_on(1, number, ACK));
                }
            }
        }
        assert!(
            counts.iter().all(|&count| count >= CLIENTS / 8),
            "{counts:?}"
        );
        assert_eq!(world.stats().taken_up, u64::from(CLIENTS));
    }
}

/// The same after the vm's slots went to the other vm.
#[test]
fn a_former_owner_of_the_slot_counts() {
    for ipv6 in FAMILIES {
        let mut world = World::new(host_of_two_frontends(ipv6));
        world.set(&[(1, 1, BackendState::Draining), (2, 1, BackendState::Up)]);
        world.take_up();
        let mut counts = [0; 2];
        for number in 0..CLIENTS {
            let expected = expected(&world.setup, 1, number);
            assert_eq!(leaves_by(&mut world, 1, number), expected, "{number}");
            counts[usize::from(expected.is_ok())] += 1;
        }
        assert!(
            counts.iter().all(|&count| count >= CLIENTS / 8),
            "{counts:?}"
        );
    }
}

/// A rule for all ports beside one for a single port.
#[test]
fn a_rule_for_all_ports_counts_as_well() {
    for ipv6 in FAMILIES {
        let mut world = begun(Setup::new(Role::Host, ipv6));
        let frontends = [(world.setup.vip(), 80), (world.setup.whole(), 8080)];
        let mut counts = [0; 3];
        for number in 0..CLIENTS {
            let homes = frontends.map(|frontend| home(&world.setup, number, frontend) == 1);
            let (expected, kind) = match homes {
                [true, false] => (Ok(frontends[0]), 0),
                [false, true] => (Ok(frontends[1]), 1),
                _ => (Err(NO_CONNECTION), 2),
            };
            assert_eq!(leaves_by(&mut world, 1, number), expected, "{number}");
            counts[kind] += 1;
        }
        assert!(
            counts.iter().all(|&count| count >= CLIENTS / 8),
            "{counts:?}"
        );
    }
}

/// A vm opens connections from ports that no rule but one for all ports leads to.
#[test]
fn a_vm_that_calls_out_is_no_server_by_a_rule_for_all_ports() {
    for ipv6 in FAMILIES {
        for calls_out in [true, false] {
            let mut setup = Setup::new(Role::Host, ipv6);
            setup.web = None;
            setup.calls_out = calls_out;
            setup.terms.tcp_reset = true;
            let (from, whole) = ((setup.server(1), 40_000), setup.whole());
            let mut world = begun(setup);
            let bytes = translated::packet(from, world.setup.client(1), SERVER_ACK, true);
            let outcome = world.give(PortId(1), &bytes);
            match calls_out {
                true => assert_eq!(outcome.verdict, NO_CONNECTION),
                false => {
                    assert!(outcome.is_forwarded(), "{:?}", outcome.verdict);
                    assert_eq!(outcome.addresses().0, whole);
                }
            }
            let stats = world.stats();
            assert_eq!((stats.taken_up, stats.resets), (u64::from(!calls_out), 0));
        }
    }
}

/// The vm sees the rule's address in place of the client's, and other clients under their own.
#[test]
fn a_rule_that_hides_its_clients_leads_to_none_of_their_addresses() {
    for ipv6 in FAMILIES {
        let mut setup = host_of_two_frontends(ipv6);
        let hides = setup.client(9).0;
        setup.terms.source_nat = Some(hides);
        let mut world = begun(setup);
        // To a client that a rule may stand for, and to another one.
        for number in [9, 2000] {
            assert_eq!(leaves_by(&mut world, 1, number), Err(NO_CONNECTION));
        }
        assert_eq!(world.stats().taken_up, 0);
    }
}
