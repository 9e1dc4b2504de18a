//! Flows that a mux pins while the slots of its tables change.

use crate::common;

use std::time::Duration;

use common::*;
use slb_core::spec::BackendState::{Draining, Up};
use slb_core::spec::{BackendHealth, PoolHealth, Spec};
use slb_core::{Instant, snapshot::Snapshot};

const NOW: Instant = Instant::from_secs(1000);
const IDLE: Duration = Duration::from_secs(240);
const FLOWS: usize = 400;

fn after(seconds: u64) -> Instant {
    NOW + Duration::from_secs(seconds)
}

/// A packet of each flow, with these TCP flags or, without any, a datagram.
fn packets(ipv6: bool, flags: &str) -> Vec<Vec<u8>> {
    let packet = |port: u16| match (ipv6, flags) {
        (false, "") => udp(CLIENT, port),
        (true, "") => udp6(port),
        (false, _) => tcp(CLIENT, port, flags),
        (true, _) => tcp6(port, flags),
    };
    (0..FLOWS as u16)
        .map(|flow| packet(10_000 + flow))
        .collect()
}

fn udp(client: [u8; 4], port: u16) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv4(client, VIP, 64)
        .udp(port, 53);
    let mut packet = Vec::new();
    builder.write(&mut packet, b"question").unwrap();
    packet
}

fn udp6(port: u16) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv6(client6(), vip6(), 64)
        .udp(port, 53);
    let mut packet = Vec::new();
    builder.write(&mut packet, b"question").unwrap();
    packet
}

/// The packet behind a VLAN tag.
fn tagged(packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let tag = |mut packet: Vec<u8>| {
        packet.splice(12..12, [0x81, 0, 0, 5]);
        packet
    };
    packets.into_iter().map(tag).collect()
}

fn pinned_flows(mux: &TestMux) -> usize {
    mux.flows().unwrap().iter().count()
}

fn install(mux: &mut TestMux, setup: &Setup) {
    let next = setup.after(Some(mux.snapshot()));
    mux.install(next.into()).expect("it follows");
}

/// Returns the number of slots with different backends.
fn differing(one: &[u16], other: &[u16]) -> usize {
    let pairs = one.iter().zip(other);
    pairs.filter(|(one, other)| one != other).count()
}

/// A mux of which a backend of ten drains, and where each flow of a client's goes before and after.
fn drained(ipv6: bool) -> (Setup, TestMux, Vec<u16>, Vec<u16>) {
    let mut setup = Setup::new(10);
    setup.idle_timeout = IDLE;
    let flows = packets(ipv6, "A");
    let before = backends_of(&mut stateless(&setup), NOW, &flows);
    let mut mux = pinned(&setup);
    mux.advance(NOW);
    setup.set_state(3, Draining);
    install(&mut mux, &setup);
    let now = backends_of(&mut stateless(&setup), NOW, &flows);
    (setup, mux, before, now)
}

#[test]
fn a_segment_in_a_slot_that_changed_goes_by_maglev_and_is_not_pinned() {
    for ipv6 in [false, true] {
        for is_tagged in [false, true] {
            let (mut setup, mut mux, before, now) = drained(ipv6);
            let moved = differing(&before, &now);
            assert!(moved > 10, "{moved} flows were vm3's");
            let flows = packets(ipv6, "A");
            let flows = if is_tagged { tagged(flows) } else { flows };
            assert_eq!(backends_of(&mut mux, after(1), &flows), now);
            assert_eq!(pinned_flows(&mux), FLOWS - moved);
            // The old owner comes back: those that were not pinned are its own again.
            setup.set_state(3, Up);
            install(&mut mux, &setup);
            assert_eq!(backends_of(&mut mux, after(2), &flows), before);
            assert_eq!(pinned_flows(&mux), FLOWS - moved);
        }
    }
}

#[test]
fn what_is_certain_is_pinned_whatever_changed() {
    for ipv6 in [false, true] {
        // A SYN begins a connection, and a datagram may begin a flow.
        for flags in ["S", ""] {
            let (mut setup, mut mux, _, now) = drained(ipv6);
            let flows = packets(ipv6, flags);
            let chosen = backends_of(&mut mux, after(1), &flows);
            assert_eq!(pinned_flows(&mux), FLOWS);
            setup.set_state(3, Up);
            install(&mut mux, &setup);
            assert_eq!(backends_of(&mut mux, after(2), &flows), chosen);
            if flags == "S" {
                assert_eq!(chosen, now);
                let segments = packets(ipv6, "A");
                assert_eq!(backends_of(&mut mux, after(3), &segments), now);
            }
        }
    }
}

#[test]
fn a_slot_that_did_not_change_for_the_idle_timeout_pins_again() {
    let (setup, mut mux, before, now) = drained(false);
    let moved = differing(&before, &now);
    let flows = packets(false, "A");
    // Generations that change nothing of the slot make it no younger.
    for second in 1..IDLE.as_secs() {
        mux.advance(after(second));
        install(&mut mux, &setup);
    }
    assert_eq!(
        backends_of(&mut mux, after(IDLE.as_secs() - 1), &flows),
        now
    );
    assert_eq!(pinned_flows(&mux), FLOWS - moved);
    // Of so many generations the time is known to a minute or two.
    assert_eq!(
        backends_of(&mut mux, after(IDLE.as_secs() + 120), &flows),
        now
    );
    assert_eq!(pinned_flows(&mux), FLOWS);
}

/// More generations than an age can count: the change is still known, and so is its time.
#[test]
fn a_change_many_generations_ago_is_not_forgotten() {
    let (setup, mut mux, before, now) = drained(false);
    let moved = differing(&before, &now);
    for _ in 0..300 {
        mux.advance(after(1));
        install(&mut mux, &setup);
    }
    assert_eq!(backends_of(&mut mux, after(2), &packets(false, "A")), now);
    assert_eq!(pinned_flows(&mux), FLOWS - moved);
}

#[test]
fn other_numbers_of_the_same_backends_change_no_slot() {
    let mut setup = Setup::new(10);
    let mut mux = pinned(&setup);
    mux.advance(NOW);
    setup.backends.reverse();
    install(&mut mux, &setup);
    backends_of(&mut mux, after(1), &packets(false, "A"));
    assert_eq!(pinned_flows(&mux), FLOWS);
    // One of the same name with another address is another backend.
    let place = setup.backends.iter().position(|one| one.number == 4);
    setup.backends[place.unwrap()].number = 40;
    install(&mut mux, &setup);
    let flows: Vec<_> = (0..FLOWS as u16)
        .map(|flow| tcp(CLIENT, 20_000 + flow, "A"))
        .collect();
    let chosen = backends_of(&mut mux, after(2), &flows);
    let is_new = chosen.iter().filter(|&&backend| backend == 40).count();
    assert!(is_new > 10);
    assert_eq!(pinned_flows(&mux), 2 * FLOWS - is_new);
}

/// A probe of one rule takes a backend out: slots change for this rule and for no other.
#[test]
fn slots_change_for_the_rule_whose_probe_says_so() {
    let setup = Setup::new(10);
    let snapshot = |fails: bool, previous: Option<&Snapshot<'_>>| {
        let mut backends = [BackendHealth::default(); 10];
        if fails {
            backends[2].condition = slb_core::health::Condition::Unhealthy;
        }
        setup.with_spec(|spec| {
            let mut rules = spec.rules.to_vec();
            rules[0].health = Some(0);
            rules.push(slb_core::spec::Rule {
                name: "other",
                frontend_port: 81,
                health: None,
                ..rules[0]
            });
            let health = [PoolHealth {
                pool: 0,
                backends: &backends,
            }];
            let (rules, health) = (&rules[..], &health[..]);
            let spec = Spec {
                rules,
                health,
                ..spec.clone()
            };
            Snapshot::new(&spec, previous).unwrap()
        })
    };
    let key = slb_core::Key::new([3, 4]);
    let mut mux: TestMux =
        slb_core::Mux::with_capacity(snapshot(false, None).into(), 10_000, key).unwrap();
    mux.advance(NOW);
    let next = snapshot(true, Some(mux.snapshot()));
    mux.install(next.into()).expect("it follows");
    let flows = |port| -> Vec<Vec<u8>> {
        let flow = |flow: u16| tcp_to(CLIENT, 10_000 + flow, VIP, port, "A", b"");
        (0..FLOWS as u16).map(flow).collect()
    };
    backends_of(&mut mux, after(1), &flows(81));
    assert_eq!(pinned_flows(&mux), FLOWS);
    backends_of(&mut mux, after(1), &flows(80));
    let unpinned = 2 * FLOWS - pinned_flows(&mux);
    assert!((10..FLOWS / 4).contains(&unpinned), "{unpinned}");
    // It recovers, and both rules share a table again, of which the probe's slots have changed.
    let next = snapshot(false, Some(mux.snapshot()));
    mux.install(next.into()).expect("it follows");
    let other: Vec<_> = (0..FLOWS as u16)
        .map(|flow| tcp(CLIENT, 30_000 + flow, "A"))
        .collect();
    backends_of(&mut mux, after(2), &other);
    let unpinned = 3 * FLOWS - pinned_flows(&mux) - unpinned;
    assert!((10..FLOWS / 4).contains(&unpinned), "{unpinned}");
}
