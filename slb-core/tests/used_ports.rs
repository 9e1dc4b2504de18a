//! A client's port that is used again: where a mux sends the new connection.

use crate::common;

use std::time::Duration;

use common::*;
use slb_core::Instant;
use slb_core::flow::FlowState;
use slb_core::spec::BackendState::{Down, Draining, Up};

const NOW: Instant = Instant::from_secs(1000);
const FLOWS: u16 = 300;

fn after(seconds: u64) -> Instant {
    NOW + Duration::from_secs(seconds)
}

/// A segment of each flow.
fn segments(ipv6: bool, flags: &str) -> Vec<Vec<u8>> {
    let segment = |port| match ipv6 {
        true => tcp6(port, flags),
        false => tcp(CLIENT, port, flags),
    };
    (10_000..10_000 + FLOWS).map(segment).collect()
}

fn install(mux: &mut TestMux, setup: &Setup) {
    let next = setup.after(Some(mux.snapshot()));
    mux.install(next.into()).expect("it follows");
}

fn states(mux: &TestMux) -> Vec<FlowState> {
    let flows = mux.flows().unwrap().iter();
    let mut states: Vec<_> = flows.map(|flow| flow.state).collect();
    states.dedup();
    states
}

/// A mux that pinned flows while some backends failed, and where Maglev sends the flows now that all are back.
fn with_old_pins(ipv6: bool) -> (Setup, TestMux, Vec<u16>, Vec<u16>) {
    let mut setup = Setup::new(10);
    for number in 1..=5 {
        setup.set_state(number, Down);
    }
    let mut mux = pinned(&setup);
    let old = backends_of(&mut mux, NOW, &segments(ipv6, "S"));
    assert_eq!(backends_of(&mut mux, NOW, &segments(ipv6, "A")), old);
    for number in 1..=5 {
        setup.set_state(number, Up);
    }
    install(&mut mux, &setup);
    let by_maglev = backends_of(&mut stateless(&setup), NOW, &segments(ipv6, "S"));
    let moved = old.iter().zip(&by_maglev).filter(|(old, new)| old != new);
    assert!(moved.count() > 100);
    (setup, mux, old, by_maglev)
}

#[test]
fn a_syn_after_the_end_of_a_flow_goes_by_maglev() {
    for ipv6 in [false, true] {
        for end in ["FA", "F", "R", "RA"] {
            let (mut setup, mut mux, old, by_maglev) = with_old_pins(ipv6);
            let sent = |mux: &mut TestMux, seconds, flags| {
                backends_of(mux, after(seconds), &segments(ipv6, flags))
            };
            assert_eq!(sent(&mut mux, 1, end), old, "{end}");
            assert_eq!(sent(&mut mux, 2, "S"), by_maglev, "{end}");
            assert_eq!(states(&mux), [FlowState::HalfOpen]);
            // The same SYN again stays with the first one, whatever has changed meanwhile.
            for number in [7, 8] {
                setup.backends[number].weight = 9;
            }
            install(&mut mux, &setup);
            assert_eq!(sent(&mut mux, 3, "S"), by_maglev, "{end}");
            assert_eq!(sent(&mut mux, 4, "A"), by_maglev, "{end}");
            assert_eq!(states(&mux), [FlowState::Established]);
            assert_eq!(sent(&mut mux, 5, "S"), by_maglev, "a SYN proves nothing");
            assert_eq!(mux.stats().flows.made, u64::from(FLOWS));
        }
    }
}

/// The end does not always show: a client that closes first acknowledges the server's FIN at last, and a FIN may take
/// its way by another mux.
#[test]
fn a_syn_long_after_the_last_packet_of_a_flow_goes_by_maglev() {
    for ipv6 in [false, true] {
        for last in [&["FA", "A"][..], &["A"]] {
            let (mut setup, mut mux, old, by_maglev) = with_old_pins(ipv6);
            let sent = |mux: &mut TestMux, seconds, flags| {
                backends_of(mux, after(seconds), &segments(ipv6, flags))
            };
            for flags in last {
                assert_eq!(sent(&mut mux, 1, flags), old, "{last:?}");
            }
            assert_eq!(sent(&mut mux, 4, "S"), by_maglev, "{last:?}");
            for flow in mux.flows().unwrap().iter() {
                let number = usize::from(flow.ports.0 - 10_000);
                let expected = match old[number] == by_maglev[number] {
                    true => FlowState::Established, // a SYN proves nothing
                    false => FlowState::HalfOpen,
                };
                assert_eq!(flow.state, expected, "{last:?}");
            }
            // The same SYN again stays with the first one, whatever has changed meanwhile.
            for number in [7, 8] {
                setup.backends[number].weight = 9;
            }
            install(&mut mux, &setup);
            assert_eq!(sent(&mut mux, 5, "S"), by_maglev, "{last:?}");
            assert_eq!(sent(&mut mux, 6, "A"), by_maglev, "{last:?}");
            assert_eq!(sent(&mut mux, 7, "S"), by_maglev, "{last:?}");
        }
    }
}

/// A copy of the SYN that began a connection, late or doubled on its way, does not move it.
#[test]
fn a_syn_soon_after_a_packet_of_a_flow_stays_with_its_backend() {
    for ipv6 in [false, true] {
        let (_, mut mux, old, _) = with_old_pins(ipv6);
        let nearly = NOW + Duration::from_millis(1070);
        let segments = |flags| segments(ipv6, flags);
        assert_eq!(backends_of(&mut mux, nearly, &segments("S")), old);
        assert_eq!(states(&mux), [FlowState::Established]);
        assert_eq!(backends_of(&mut mux, after(60), &segments("A")), old);
        assert_eq!(backends_of(&mut mux, after(61), &segments("S")), old);
    }
}

/// Linux sends its last SYN 32 s after the one before.
#[test]
fn the_syns_of_one_connection_go_to_one_backend() {
    for ipv6 in [false, true] {
        let mut setup = Setup::new(10);
        let mut mux = pinned(&setup);
        let syns = segments(ipv6, "S");
        let first = backends_of(&mut mux, NOW, &syns);
        setup.backends[0].weight = 9;
        install(&mut mux, &setup);
        let by_maglev = backends_of(&mut stateless(&setup), NOW, &syns);
        assert_ne!(first, by_maglev);
        for seconds in [1, 3, 7, 15, 31, 63] {
            assert_eq!(backends_of(&mut mux, after(seconds), &syns), first);
        }
        // Much later it is another connection.
        assert_eq!(backends_of(&mut mux, after(130), &syns), by_maglev);
        assert_eq!(states(&mux), [FlowState::HalfOpen]);
    }
}

#[test]
fn what_comes_late_after_the_end_of_a_flow_stays_with_its_backend() {
    for ipv6 in [false, true] {
        for end in ["FA", "R"] {
            let (_, mut mux, old, _) = with_old_pins(ipv6);
            for flags in [end, "A", end, "RA", "FA"] {
                let sent = backends_of(&mut mux, after(1), &segments(ipv6, flags));
                assert_eq!(sent, old, "{flags} after {end}");
            }
        }
    }
}

#[test]
fn a_syn_of_a_flow_that_goes_on_stays_with_its_backend() {
    for ipv6 in [false, true] {
        for before in [&["FA", "A"][..], &["R", "A"], &["A"]] {
            let (_, mut mux, old, _) = with_old_pins(ipv6);
            for flags in before.iter().chain(&["S"]) {
                let sent = backends_of(&mut mux, after(1), &segments(ipv6, flags));
                assert_eq!(sent, old, "{flags} of {before:?}");
            }
        }
    }
}

#[test]
fn a_syn_after_the_end_of_a_flow_whose_backend_drains_goes_to_another() {
    for ipv6 in [false, true] {
        let (mut setup, mut mux, old, _) = with_old_pins(ipv6);
        backends_of(&mut mux, after(1), &segments(ipv6, "FA"));
        setup.set_state(old[0], Draining);
        install(&mut mux, &setup);
        let by_maglev = backends_of(&mut stateless(&setup), NOW, &segments(ipv6, "S"));
        let sent = backends_of(&mut mux, after(2), &segments(ipv6, "S"));
        assert_eq!(sent, by_maglev);
        assert!(!sent.contains(&old[0]));
    }
}
