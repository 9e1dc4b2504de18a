//! Health at a host agent.

use std::collections::HashSet;
use std::net::IpAddr;

use slb_core::snapshot::Snapshot;
use slb_core::spec::{BackendState, derived_mac};
use slb_core::{DropReason, Host, PortId, Verdict};

use super::frames::{CLIENT_MAC, client, encapsulated, ends, give, resets, tcp};
use super::plan::{FABRIC, FIRST, KEY, PLAIN, Plan, RULES, SAME, SICK, dip, vip};

#[test]
fn a_host_resets_and_refuses_by_rule() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let mut host = Host::with_capacity(plan.snapshot(), 64, KEY).expect("its role");
        let vm_mac = derived_mac(dip(1, ipv6)).0;
        // One connection for each rule, and one by inbound NAT of vm0, all of them established.
        let open =
            |host: &mut Host<'static, Box<Snapshot<'static>>>, number, vm: usize, port, to| {
                let syn = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), port), "S");
                let (verdict, _) = give!(host, FABRIC, &encapsulated(vm, &syn, ipv6));
                if verdict != Verdict::Forward(PortId(1 + vm as u16)) {
                    return verdict;
                }
                let mac = derived_mac(dip(vm, ipv6)).0;
                let answer = tcp(mac, (dip(vm, ipv6), to), client(number, ipv6), "SA");
                let (verdict, _) = give!(host, PortId(1 + vm as u16), &answer);
                assert_eq!(verdict, Verdict::Forward(FABRIC));
                let ack = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), port), "A");
                give!(host, FABRIC, &encapsulated(vm, &ack, ipv6)).0
            };
        for (number, port) in (0..).zip(RULES) {
            let verdict = open(&mut host, number, 1, port, port);
            assert_eq!(verdict, Verdict::Forward(PortId(2)));
        }
        let verdict = open(&mut host, 8, 0, 2222, 22);
        assert_eq!(verdict, Verdict::Forward(PortId(1)));
        // And one of vm1's own.
        let far = client(77, ipv6);
        let call = tcp(vm_mac, (dip(1, ipv6), 5000), far, "S");
        let (verdict, out) = give!(host, PortId(2), &call);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
        assert_eq!(ends(&out).0.0, vip(ipv6));

        plan.found[0][1] = SICK;
        plan.found[0][0] = SICK;
        host.install(plan.after(Some(host.snapshot())))
            .expect("it follows");
        let told = resets!(host);
        // Both ends of those of the two rules of the probe.
        let expected: HashSet<_> = [(0, FIRST), (2, SAME)]
            .into_iter()
            .flat_map(|(number, port)| {
                let who = client(number, ipv6);
                [
                    ((vip(ipv6), port), who, true),
                    (who, (dip(1, ipv6), port), true),
                ]
            })
            .collect();
        assert_eq!(told.len(), 4);
        assert_eq!(told.into_iter().collect::<HashSet<_>>(), expected);
        // New ones of the same rules go to a vm beside it that takes them.
        for (number, port) in (20..).zip(RULES) {
            let verdict = open(&mut host, number, 1, port, port);
            match port {
                FIRST | SAME => assert!(
                    matches!(verdict, Verdict::Forward(PortId(3..))),
                    "port {port}: {verdict:?}"
                ),
                _ => assert_eq!(verdict, Verdict::Forward(PortId(2)), "port {port}"),
            }
        }
        // The operator's word ends them all.
        plan.states[1] = BackendState::Down;
        host.install(plan.after(Some(host.snapshot())))
            .expect("it follows");
        let told = resets!(host);
        assert_eq!(told.len(), 2 * 5, "{told:?}");
    }
}

#[test]
fn the_probes_source_is_nobodys_but_the_probers() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let source = client(5, ipv6);
        match source.0 {
            IpAddr::V4(address) => plan.probe_source.ipv4 = Some(address),
            IpAddr::V6(address) => plan.probe_source.ipv6 = Some(address),
        }
        let mut host = Host::with_capacity(plan.snapshot(), 64, KEY).expect("its role");
        let mac = derived_mac(dip(1, ipv6)).0;
        // A vm's answers to it, and whatever else the vm sends there, come out untouched: there is an
        // outbound rule, which translates all else.
        for flags in ["SA", "A", "S"] {
            let answer = tcp(mac, (dip(1, ipv6), 8000), source, flags);
            let (verdict, bytes) = give!(host, PortId(2), &answer);
            assert_eq!((verdict, &bytes), (Verdict::Pass, &answer), "{flags}");
        }
        let elsewhere = tcp(mac, (dip(1, ipv6), 8000), client(6, ipv6), "S");
        let (verdict, bytes) = give!(host, PortId(2), &elsewhere);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
        assert_ne!(ends(&bytes).0.0, dip(1, ipv6));
        // From the fabric nobody has it.
        for (number, expected) in [
            (5, Verdict::Drop(DropReason::Martian)),
            (6, Verdict::Forward(PortId(2))),
        ] {
            let syn = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), PLAIN), "S");
            let (verdict, _) = give!(host, FABRIC, &encapsulated(1, &syn, ipv6));
            assert_eq!(verdict, expected);
        }
    }
}
