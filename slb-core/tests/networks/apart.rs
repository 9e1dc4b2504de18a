//! Nothing of one network reaches another, whatever the configuration.

use std::net::{Ipv4Addr, Ipv6Addr};

use slb_core::{PortId, Verdict};

use crate::common::Random;

use super::net::{FABRIC, Plan, Tenant, Vm, prefix, process};
use super::{datagram_from, inner};

/// Up to four networks over the same few addresses, and vms of them on up to three hosts.
fn any_plan(random: &mut Random) -> Plan {
    let tenants = 2 + random.below(3);
    let hosts = 1 + random.below(3);
    let mut vnis: Vec<u32> = (0..6).collect();
    let mut plan = Plan {
        tenants: Vec::new(),
        vms: Vec::new(),
        ipv6_underlay: random.below(2) == 1,
        mtu: 1600,
    };
    for tenant in 0..tenants {
        let vni = vnis.swap_remove(random.below(vnis.len()));
        plan.tenants.push(Tenant {
            name: format!("tenant{tenant}"),
            vni,
            spaces: vec![prefix("10.0.0.0/24"), prefix("fc00::/7")],
            gateways: Vec::new(),
        });
        let mut free: Vec<u8> = (1..9).collect();
        for _ in 0..1 + random.below(5) {
            let number = free.swap_remove(random.below(free.len()));
            plan.vms.push(Vm {
                name: format!("vm{number}"),
                tenant,
                addresses: vec![
                    Ipv4Addr::new(10, 0, 0, number).into(),
                    Ipv6Addr::new(0xfc00 | (u16::from(number) & 1) << 8, 0, 0, 0, 0, 0, 0, 5)
                        .into(),
                    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, number.into()).into(),
                ],
                mac: [2, 0, 0, 2, 0, number],
                host: random.below(hosts),
                is_backend: random.below(3) == 0,
            });
        }
        // Two vms of a network have two addresses.
        let mut seen = Vec::new();
        for vm in plan.vms.iter_mut().filter(|vm| vm.tenant == tenant) {
            vm.addresses.retain(|address| !seen.contains(address));
            seen.extend(vm.addresses.iter().copied());
        }
    }
    plan
}

#[test]
fn nothing_of_one_network_reaches_another() {
    let mut random = Random(7);
    let (mut delivered, mut dropped) = (0, 0);
    for round in 0..300 {
        let plan = any_plan(&mut random);
        assert_eq!(plan.faults(), []);
        let mut hosts: Vec<_> = (0..3).map(|own| plan.host(own)).collect();
        for _ in 0..60 {
            let from = random.below(plan.vms.len());
            let any = random.below(plan.vms.len());
            // Often for an address of another network, often under another's name or MAC address.
            let to = plan.vms[any].addresses[random.below(plan.vms[any].addresses.len())];
            let other = match random.below(4) {
                0 => random.below(plan.vms.len()),
                _ => from,
            };
            let sources = &plan.vms[other].addresses;
            let source = sources.iter().find(|a| a.is_ipv4() == to.is_ipv4());
            let Some(&source) = source else { continue };
            let mac = plan.vms[random.below(plan.vms.len())].mac;
            let frame = datagram_from((plan.vms[other].mac, source), mac, to, 64);
            let (own, port) = (plan.vms[from].host, plan.port_of(from));
            let (mut verdict, mut got) = process(&mut hosts[own], port, &frame);
            let mut at = own;
            if verdict == Verdict::Forward(FABRIC) {
                let (host, vni, _) = inner(&got);
                assert_eq!(vni, plan.tenants[plan.vms[from].tenant].vni);
                at = (0..3)
                    .find(|&n| plan.host_address(n) == host)
                    .expect("a host");
                (verdict, got) = process(&mut hosts[at], FABRIC, &got);
            }
            let expected = plan.vms.iter().position(|vm| {
                let is_same = vm.tenant == plan.vms[from].tenant;
                is_same && vm.addresses.contains(&to)
            });
            let is_own = plan.vms[from].addresses.contains(&source);
            match verdict {
                Verdict::Forward(PortId(port)) => {
                    let vm = usize::from(port) - 1;
                    assert_eq!(plan.vms[vm].tenant, plan.vms[from].tenant, "{round}");
                    assert_eq!((Some(vm), plan.vms[vm].host), (expected, at), "{round}");
                    assert_eq!(got[..6], plan.vms[vm].mac);
                    assert!(is_own, "{round}: under another's address");
                    delivered += 1;
                }
                Verdict::Drop(_) => {
                    // What has a receiver arrives.
                    let is_lost = is_own && expected.is_some_and(|vm| vm != from);
                    assert!(!is_lost, "{round}: {verdict:?} from {source} to {to}");
                    dropped += 1;
                }
                other => panic!("{round}: {other:?} from {source} to {to}"),
            }
        }
    }
    println!("{delivered} delivered, {dropped} dropped");
    assert!(delivered > 2000 && dropped > 2000);
}
