//! The operator's word about a backend, apart from what was observed of it.

use crate::common;

use common::{CLIENT, VIP};
use slb_core::health::Condition;
use slb_core::observe::{Step, Trail};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendHealth, BackendState, Frontend, Pool, PoolHealth, Protocol, Rule, Spec,
    Underlay,
};
use slb_core::{Frame, HEADROOM, Instant, Key, Mux};

use BackendState::{Down, Draining, Up};
use Condition::{Healthy, Unhealthy};

/// A UDP rule over two backends, the first of which is as given; `probe` is what a probe of the rule
/// finds of the first one.
fn snapshot(
    (state, condition, probe): (BackendState, Condition, Condition),
    previous: Option<&Snapshot<'_>>,
) -> Snapshot<'static> {
    let backend = |name, number| Backend {
        name,
        address: [10, 0, 0, number].into(),
        host: [172, 16, 1, number].into(),
        ..Backend::default()
    };
    let first = Backend {
        state,
        condition,
        ..backend("one", 1)
    };
    let found = BackendHealth {
        condition: probe,
        weight: None,
    };
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some([172, 16, 0, 11].into()),
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            ..Frontend::default()
        }],
        pools: &[Pool {
            name: "pool",
            backends: &[first, backend("two", 2)],
            ..Pool::default()
        }],
        health: &[PoolHealth {
            pool: 0,
            backends: &[found, BackendHealth::default()],
        }],
        rules: &[Rule {
            name: "dns",
            protocol: Protocol::Udp,
            frontend_port: 53,
            backend_port: 53,
            health: Some(0),
            ..Rule::default()
        }],
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).unwrap()
}

/// The backend that gets a datagram from this port.
fn asks(mux: &mut Mux<'_, &Snapshot<'static>>, port: u16) -> Option<u32> {
    let mut buffer = vec![0; HEADROOM];
    let packet = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(CLIENT, VIP, 9);
    packet
        .udp(port, 53)
        .write(&mut buffer, b"question")
        .unwrap();
    let len = buffer.len() - HEADROOM;
    let mut frames = [Frame::new(&mut buffer, HEADROOM, len).unwrap()];
    let mut trail = Trail::new(0);
    mux.process_observed(Instant::from_secs(1000), &mut frames, &mut trail);
    let selected = |step: &Step| match *step {
        Step::Selected(index) => Some(index),
        _ => None,
    };
    trail.steps().filter_map(selected).last()
}

/// Observations of a backend make flows without connections leave it, whatever its administrative
/// state; and a drained backend that recovers is still drained.
#[test]
fn a_backend_can_be_draining_and_unhealthy() {
    let fine = (Up, Healthy, Healthy);
    // Whether the backend keeps the flows that it has, and whether it gets new ones.
    let cases = [
        (fine, true, true),
        ((Draining, Healthy, Healthy), true, false),
        ((Draining, Healthy, Unhealthy), false, false),
        ((Draining, Unhealthy, Healthy), false, false),
        ((Draining, Healthy, Healthy), true, false),
        ((Down, Healthy, Healthy), false, false),
        ((Up, Unhealthy, Healthy), false, false),
        ((Up, Healthy, Unhealthy), false, false),
        (fine, true, true),
    ];
    for (how, keeps, gets) in cases {
        let before = snapshot(fine, None);
        let mut mux = Mux::with_capacity(&before, 1000, Key::new([1, 2])).unwrap();
        let flows: Vec<u16> = (1..100)
            .filter(|&port| asks(&mut mux, port) == Some(0))
            .collect();
        assert!(flows.len() > 20);
        let after = snapshot(how, Some(&before));
        mux.install(&after).unwrap();
        let stay = flows
            .iter()
            .filter(|&&port| asks(&mut mux, port) == Some(0));
        let expected = if keeps { flows.len() } else { 0 };
        assert_eq!(stay.count(), expected, "{how:?}");
        let new = (1000..1100).filter(|&port| asks(&mut mux, port) == Some(0));
        assert_eq!(new.count() > 20, gets, "{how:?}");
        assert_eq!(after.serves(0, 0), gets, "{how:?}");
    }
}

#[test]
fn eligible_is_who_is_up_healthy_and_has_a_weight() {
    for state in [Up, Draining, Down] {
        for condition in [Healthy, Unhealthy] {
            for weight in [0, 1] {
                let backend = Backend {
                    weight,
                    state,
                    condition,
                    ..Backend::default()
                };
                let is_fine = (state, condition, weight) == (Up, Healthy, 1);
                assert_eq!(backend.is_eligible(), is_fine, "{backend:?}");
                let fails = state == Down || condition == Unhealthy;
                assert_eq!(backend.is_unhealthy(), fails, "{backend:?}");
            }
        }
    }
}
