//! Calls of private VIPs stay in their network, whatever the configuration.

use slb_core::DropReason;
use slb_core::hash::Distribution;

use crate::common::Random;

use super::net::{DNS, End, GATEWAY_MAC, HTTP, Plan, SERVED, Segment, Vm, vip};

/// Up to four networks over the same few addresses, on up to three hosts, most of them with the same VIPs.
fn any_plan(random: &mut Random) -> Plan {
    let tenants = 2 + random.below(3);
    let mut vnis: Vec<u32> = (0..6).collect();
    let mut plan = Plan::two_tenants();
    plan.hosts = 1 + random.below(3);
    plan.ipv6_underlay = random.below(2) == 1;
    plan.distribution = [Distribution::FiveTuple, Distribution::SourceIp][random.below(2)];
    plan.terms.floating_ip = random.below(4) == 0;
    plan.terms.tcp_reset = random.below(2) == 0;
    (plan.vnis, plan.has_vip, plan.vms) = (Vec::new(), Vec::new(), Vec::new());
    for tenant in 0..tenants {
        plan.vnis.push(vnis.swap_remove(random.below(vnis.len())));
        plan.has_vip.push(random.below(4) != 0);
        let mut free: Vec<u8> = (1..9).collect();
        for _ in 0..1 + random.below(6) {
            plan.vms.push(Vm {
                tenant,
                number: free.swap_remove(random.below(free.len())),
                host: random.below(plan.hosts),
                weight: [None, Some(1), Some(1), Some(3), Some(0)][random.below(5)],
            });
        }
    }
    plan
}

#[test]
fn calls_stay_in_their_network_and_reach_a_backend_of_it() {
    let mut random = Random(11);
    let (mut answered, mut refused, mut hairpins) = (0, 0, 0);
    for round in 0..300 {
        let plan = any_plan(&mut random);
        let mut net = plan.net();
        for _ in 0..40 {
            let from = random.below(plan.vms.len());
            // Often under the name of another.
            let other = match random.below(5) {
                0 => random.below(plan.vms.len()),
                _ => from,
            };
            let is_ipv6 = random.below(2) == 1;
            let is_tcp = random.below(2) == 1;
            let (tenant, address) = (plan.vms[from].tenant, plan.vms[other].address(is_ipv6));
            let caller = (address, 1024 + random.below(60_000) as u16);
            let port = if is_tcp { HTTP } else { DNS };
            let front = (vip(is_ipv6), port);
            let ask = match is_tcp {
                true => Segment::tcp(caller, front, "S"),
                false => Segment::udp(caller, front, b"who?"),
            };
            let frame = ask.frame(plan.vms[from].mac(), GATEWAY_MAC);
            let end = net.send(from, &frame);
            let is_own = plan.vms[from].address(is_ipv6) == address;
            let of = plan.vms.iter().filter(|vm| vm.tenant == tenant);
            let takes = of
                .filter(|vm| vm.weight.is_some_and(|weight| weight > 0))
                .count();
            match &end {
                // Its own RST, for a call of itself.
                End::Vm(to, frame) if *to == from => {
                    assert_eq!(Segment::of(frame).flags, "AR", "{round}");
                    assert!(
                        plan.terms.tcp_reset && plan.vms[from].weight > Some(0),
                        "{round}"
                    );
                    hairpins += 1;
                }
                End::Vm(backend, frame) if is_own => {
                    let vm = &plan.vms[*backend];
                    let weight = vm.weight.unwrap_or(0);
                    assert!(plan.has_vip[tenant] && vm.tenant == tenant, "{round}");
                    assert!(weight > 0, "{round}");
                    let served = match (plan.terms.floating_ip, is_tcp) {
                        (true, _) => front,
                        (_, true) => (vm.address(is_ipv6), SERVED),
                        (_, false) => (vm.address(is_ipv6), DNS),
                    };
                    let got = Segment::of(frame);
                    assert_eq!((got.from, got.to), (caller, served), "{round}");
                    let answer = match is_tcp {
                        true => Segment::tcp(served, caller, "SA").at(9, 1001),
                        false => Segment::udp(served, caller, b"me"),
                    };
                    let answer = answer.frame(vm.mac(), GATEWAY_MAC);
                    let end = net.send(*backend, &answer);
                    assert_eq!(end.vm(), from, "{round}");
                    assert_eq!(Segment::of(end.frame()).from, front, "{round}");
                    answered += 1;
                }
                // Without a VIP, a backend or a caller of that name there is nothing to reach.
                End::Dropped(reason) => {
                    let expected = match reason {
                        DropReason::SpoofedSource => !is_own,
                        DropReason::NoNeighbour => !plan.has_vip[tenant],
                        DropReason::NoBackend => takes == 0,
                        DropReason::Hairpin => plan.vms[from].weight > Some(0),
                        _ => false,
                    };
                    assert!(expected, "{round}: {reason:?}");
                    refused += 1;
                }
                End::Reply(frame) => {
                    assert_eq!(Segment::of(frame).flags, "AR", "{round}");
                    assert!(plan.terms.tcp_reset && is_own, "{round}");
                    refused += 1;
                }
                other => panic!("{round}: {other:?}"),
            }
        }
    }
    println!("{answered} answered, {refused} refused, {hairpins} hairpins");
    assert!(answered > 2000 && refused > 1000 && hairpins > 10);
}
