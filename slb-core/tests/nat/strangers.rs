//! A host agent accepts VXLAN from its muxes and other hosts only, and packets of its vms only from their addresses.

use std::net::Ipv4Addr;

use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, Echo, Frontend, Pool, Protocol, Rule, Spec, Underlay};
use slb_core::wire::vxlan::Vni;
use slb_core::{DropReason, Host, Instant, PortId, Verdict};

use super::net::{
    Dut, FABRIC, HOST, KEY, SYN, VIP, dip, encapsulated, encapsulated_by, give, of_vm, snapshot,
    tcp,
};

#[test]
fn what_is_not_for_this_host_is_passed_and_what_is_forged_dropped() {
    let mut host = Host::with_capacity(snapshot(), 100, KEY).expect("its role");
    let now = Instant::from_secs(1);
    let syn = tcp((Ipv4Addr::new(1, 1, 1, 1), 2000), (VIP, 80), SYN, 9, b"");
    // Not in VXLAN, not for this host.
    assert_eq!(
        give(&mut host, now, FABRIC, &of_vm(0, &syn)).0,
        Verdict::Pass
    );
    // From a port where nobody is.
    assert_eq!(
        give(&mut host, now, PortId(77), &of_vm(0, &syn)).0,
        Verdict::Pass
    );
    let mut other_network = encapsulated(0, &syn);
    other_network[48] ^= 1;
    let verdict = give(&mut host, now, FABRIC, &other_network).0;
    assert!(matches!(
        verdict,
        Verdict::Drop(DropReason::UnknownVm | DropReason::OuterChecksum)
    ));
    let mut broken = encapsulated(0, &syn);
    *broken.last_mut().unwrap() ^= 1;
    let verdict = give(&mut host, now, FABRIC, &broken).0;
    assert_eq!(verdict, Verdict::Drop(DropReason::OuterChecksum));
    let forged = of_vm(
        0,
        &tcp((dip(1), 2000), (Ipv4Addr::new(9, 9, 9, 9), 80), SYN, 9, b""),
    );
    let verdict = give(&mut host, now, PortId(1), &forged).0;
    assert_eq!(verdict, Verdict::Drop(DropReason::SpoofedSource));
    // To a neighbour, untouched.
    let near = of_vm(0, &tcp((dip(0), 2000), (dip(1), 80), SYN, 9, b""));
    assert_eq!(
        give(&mut host, now, PortId(1), &near),
        (Verdict::Pass, near.clone())
    );
}

#[test]
fn vxlan_from_a_stranger_is_refused() {
    let (mux, other) = (
        Ipv4Addr::new(172, 16, 0, 11),
        Ipv4Addr::new(172, 16, 0, 102),
    );
    let backend = |name, number: usize, host: Ipv4Addr| Backend {
        name,
        address: dip(number).into(),
        host: host.into(),
        port: (host == HOST).then_some(PortId(1)),
        ..Backend::default()
    };
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            port: FABRIC,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            protocol: Protocol::Tcp,
            frontend_port: 80,
            backend_port: 80,
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001).unwrap(),
            table_size: 251,
            backends: &[backend("here", 0, HOST), backend("there", 1, other)],
            ..Pool::default()
        }],
        muxes: &[mux.into()],
        ..Spec::default()
    };
    let snapshot = Snapshot::new(&spec, None).unwrap();
    let mut host = Host::with_capacity(&snapshot, 100, KEY).expect("its role");
    let now = Instant::from_secs(1);
    let mut port = 2000;
    let mut from = |host: &mut Dut<'_>, peer| {
        port += 1;
        let syn = tcp((Ipv4Addr::new(1, 1, 1, 1), port), (VIP, 80), SYN, 9, b"");
        give(host, now, FABRIC, &encapsulated_by(peer, 0, &syn)).0
    };
    for known in [mux, other] {
        assert_eq!(
            from(&mut host, known),
            Verdict::Forward(PortId(1)),
            "{known}"
        );
    }
    let stranger = Ipv4Addr::new(172, 16, 0, 66);
    assert_eq!(
        from(&mut host, stranger),
        Verdict::Drop(DropReason::UnknownPeer)
    );
    // Those that it has heard before and after are none the less known.
    assert_eq!(from(&mut host, mux), Verdict::Forward(PortId(1)));
    assert_eq!(host.stats().dropped[DropReason::UnknownPeer].packets, 1);
}
