//! SNAT ports: what a vm gets, what is in use, and what happens when there are none left.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use slb_core::snapshot::{CompiledBackend, Snapshot};
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, Pool, Spec, Terms, Underlay, derived_mac,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{Burst, DropReason, Frame, HEADROOM, Host, Instant, Mux, PortId, Verdict};

use super::net::{
    ACK, Dut, FABRIC, HOST, KEY, PLAN, Plan, SYN, VIP, dip, encapsulated, front, give, of_vm,
    snapshot, tcp, udp,
};
use crate::common::ends;

/// Every vm calls one place until it is out of ports. No port is two vms', all that were promised
/// are there, they are spread over the addresses, and the mux brings answers to the right vm.
#[test]
fn port_blocks_never_overlap_and_muxes_know_them() {
    bolero::check!()
        .with_type::<(u8, u8, u8, u8)>()
        .with_iterations(60)
        .for_each(|&(vms, fronts, granules, taken)| {
            let plan = Plan {
                vms: 1 + usize::from(vms % 6),
                fronts: 1 + usize::from(fronts % 3),
                ports: Some(8 * (1 + u32::from(granules % 20))),
                taken: 1024 + u16::from(taken),
                ..PLAN
            };
            let snapshot = plan.snapshot();
            let mut host = Host::with_capacity(&snapshot, 4096, KEY).expect("its role");
            let mut mux = Mux::stateless(&snapshot, KEY).expect("its role");
            let now = Instant::from_secs(1);
            let far = (Ipv4Addr::new(9, 9, 9, 9), 443);
            let mut owners: HashMap<(IpAddr, u16), usize> = HashMap::new();
            let promised = plan.ports.unwrap();
            for vm in 0..plan.vms {
                let mut of_front: HashMap<IpAddr, u32> = HashMap::new();
                for call in 0..=promised {
                    let source = (dip(vm), 2000 + call as u16);
                    let syn = of_vm(vm, &tcp(source, far, SYN, 1, b""));
                    let (verdict, out) = give(&mut host, now, PortId(1 + vm as u16), &syn);
                    if call == promised {
                        assert_eq!(verdict, Verdict::Reply);
                        break;
                    }
                    assert_eq!(verdict, Verdict::Forward(FABRIC), "{plan:?}");
                    let (from, _) = ends(&out);
                    assert!(from.1 >= 1024);
                    assert!(from.0 != IpAddr::from(front(0)) || from.1 / 8 != plan.taken / 8);
                    assert_eq!(owners.insert(from, vm), None, "{from:?} is two vms'");
                    *of_front.entry(from.0).or_default() += 1;
                    // The answer, at a mux.
                    let (IpAddr::V4(address), port) = from else {
                        panic!()
                    };
                    let answer = of_vm(0, &tcp(far, (address, port), SYN | ACK, 1, b""));
                    let mut buffer = vec![0; HEADROOM];
                    buffer.extend(&answer);
                    let mut frames = [Frame::new(&mut buffer, HEADROOM, answer.len()).unwrap()];
                    mux.process(now, &mut frames);
                    assert_eq!(frames[0].verdict(), Verdict::Forward(FABRIC));
                    assert_eq!(frames[0].bytes()[50..56], derived_mac(dip(vm).into()).0);
                }
                // From the start over all addresses: none has more than one granule over another.
                let counts: Vec<u32> = (0..plan.fronts)
                    .map(|f| of_front.get(&front(f).into()).copied().unwrap_or(0))
                    .collect();
                let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
                assert!(most - least <= 8, "{counts:?}");
            }
            // What nobody asked for goes nowhere.
            let (&(address, port), &vm) = owners.iter().next().unwrap();
            let IpAddr::V4(address) = address else {
                panic!()
            };
            let stranger = tcp(
                (Ipv4Addr::new(6, 6, 6, 6), 443),
                (address, port),
                SYN,
                1,
                b"",
            );
            let (verdict, _) = give(&mut host, now, FABRIC, &encapsulated(vm, &stranger));
            assert_eq!(verdict, Verdict::Drop(DropReason::NoRule));
        });
}

#[test]
fn ports_in_use_are_counted_across_configurations() {
    let first = PLAN.snapshot();
    // Nothing changes for the ports; then there are more of them, other ones, and the first again.
    let same = Plan {
        terms: Terms {
            tcp_reset: true,
            ..PLAN.terms
        },
        ..PLAN
    };
    let more = Plan {
        ports: Some(256),
        ..PLAN
    };
    let others = Plan {
        taken: 1024,
        ..PLAN
    };
    let mut snapshots = vec![first];
    for plan in [same, more, others, PLAN] {
        let next = plan.after(snapshots.last());
        snapshots.push(next);
    }
    let mut host: Dut<'_> = Host::with_capacity(&snapshots[0], 1 << 10, KEY).expect("its role");
    let ids: Vec<_> = snapshots[0]
        .backends()
        .iter()
        .map(CompiledBackend::id)
        .collect();
    let now = Instant::from_secs(1000);
    // Each vm talks from three ports, from the first of them to two places.
    for vm in 0..2 {
        for (port, to) in [(5000, 1), (5000, 2), (5001, 1), (5002, 1)] {
            let packet = udp((dip(vm), port), (Ipv4Addr::new(8, 8, 8, to), 53), b"query");
            let sent = give(&mut host, now, PortId(1 + vm as u16), &of_vm(vm, &packet));
            assert_eq!(sent.0, Verdict::Forward(FABRIC));
        }
    }
    let counted = |host: &Dut<'_>| {
        ids.iter()
            .map(|&id| host.snat_counters(id).unwrap())
            .map(|c| (c.ports, c.used, c.connections))
            .collect::<Vec<_>>()
    };
    let before = counted(&host);
    assert_eq!(before, [(64, 3, 4); 2]);
    host.install(&snapshots[1]).expect("it follows");
    assert_eq!(counted(&host), before);
    host.install(&snapshots[2]).expect("it follows");
    for (ports, used, connections) in counted(&host) {
        assert_eq!((ports, connections), (256, 4));
        assert!(used <= 3, "{used}"); // ports that are somebody else's now are not its own
    }
    host.install(&snapshots[3]).expect("it follows");
    assert_eq!(counted(&host)[0].0, 64);
    host.install(&snapshots[4]).expect("it follows");
    assert_eq!(counted(&host), before);
    // And they are free when the connections are over.
    let mut spare = Burst::new();
    for second in 0..300 {
        host.advance(now + Duration::from_secs(second), &mut spare);
    }
    assert_eq!(host.stats().connections.live, 0);
    assert_eq!(counted(&host), [(64, 0, 0); 2]);
}

#[test]
fn udp_keeps_its_port_whomever_it_talks_to_and_its_parity() {
    let mut host = Host::with_capacity(snapshot(), 4096, KEY).expect("its role");
    let now = Instant::from_secs(1);
    for port in 3000..3030 {
        let mut seen = HashSet::new();
        for far in 1..20 {
            let to = (Ipv4Addr::new(9, 9, 9, far), 53);
            let call = of_vm(0, &udp((dip(0), port), to, b"?"));
            let (verdict, out) = give(&mut host, now, PortId(1), &call);
            assert_eq!(verdict, Verdict::Forward(FABRIC));
            seen.insert(ends(&out).0.1);
        }
        assert!(seen.iter().all(|seen| seen % 2 == port % 2));
        // Two endpoints may want one port: then the later one has another towards some.
        assert!(seen.len() <= 3, "{seen:?}");
    }
    // A port that is the vm's own stays as it is.
    let own = of_vm(
        0,
        &udp((dip(0), 1041), (Ipv4Addr::new(9, 9, 9, 99), 53), b"?"),
    );
    let (_, out) = give(&mut host, now, PortId(1), &own);
    assert_eq!(ends(&out).0.1, 1041);
}

#[test]
fn without_an_outbound_rule_nobody_calls_out() {
    let backends = [Backend {
        name: "vm0",
        address: dip(0).into(),
        host: HOST.into(),
        port: Some(PortId(1)),
        state: BackendState::Up,
        ..Backend::default()
    }];
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            port: FABRIC,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "database",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001).unwrap(),
            table_size: 3,
            backends: &backends,
            ..Pool::default()
        }],
        ..Spec::default()
    };
    let snapshot = Snapshot::new(&spec, None).unwrap();
    let mut host = Host::with_capacity(&snapshot, 100, KEY).expect("its role");
    let mut sent = |from, to, flags| {
        let frame = of_vm(0, &tcp((from, 2000), (to, 80), flags, 9, b""));
        let (verdict, after) = give(&mut host, Instant::from_secs(1), PortId(1), &frame);
        assert!(verdict != Verdict::Pass || after == frame);
        verdict
    };
    let verdict = sent(dip(0), Ipv4Addr::new(9, 9, 9, 9), SYN);
    assert_eq!(verdict, Verdict::Drop(DropReason::NoOutboundRule));
    // But to an internal VIP under its own name, and under no other's.
    for flags in [SYN, ACK] {
        assert_eq!(sent(dip(0), VIP, flags), Verdict::Pass);
    }
    let verdict = sent(dip(1), VIP, SYN);
    assert_eq!(verdict, Verdict::Drop(DropReason::SpoofedSource));
}
