//! Faults of configurations with private frontends, and the memory of a snapshot with them.

use slb_core::snapshot::Snapshot;
use slb_core::spec::{Network, ProxyPorts, Rule, RuleItem, Spec, SpecError};
use slb_core::{Host, Key};

use super::net::{Plan, outbound, through_mux, vip};
use crate::common::faults_of;

/// The faults of the first host's spec as `change` leaves it.
fn faults(change: impl FnOnce(Spec<'_>, &mut dyn FnMut(&Spec<'_>))) -> Vec<SpecError> {
    let mut found = Vec::new();
    Plan::two_tenants().with_spec(0, |spec| {
        assert_eq!(faults_of(spec), []);
        change(spec.clone(), &mut |spec| found = faults_of(spec));
    });
    found
}

#[test]
fn contradictions_are_found() {
    type Found<'f> = &'f mut dyn FnMut(&[Network<'_>]);
    let with_networks = |change: &dyn Fn(&mut Vec<Network<'_>>, Found<'_>)| {
        faults(|spec, found| {
            let mut networks = spec.networks.to_vec();
            change(&mut networks, &mut |networks| {
                found(&Spec {
                    networks,
                    ..spec.clone()
                });
            });
        })
    };
    let of = |indexes: &'static [usize]| {
        with_networks(&move |networks, found| {
            networks[0].frontends = indexes;
            found(networks);
        })
    };
    let dangling = SpecError::DanglingFrontend {
        network: 0,
        frontend: 9,
        count: 4,
    };
    assert_eq!(of(&[0, 1, 9]), [dangling]);
    let shared = SpecError::SharedFrontend { frontend: 1 };
    assert!(of(&[0, 1, 1]).contains(&shared));
    // A public frontend with the address of a private one.
    let (first, second) = (0, 2);
    assert!(of(&[1]).contains(&SpecError::DuplicateFrontend { first, second }));
    let (first, second) = (0, 2);
    let one_network = with_networks(&|networks, found| {
        networks[1].frontends = &[];
        networks[0].frontends = &[0, 1, 2, 3];
        found(networks);
    });
    assert!(one_network.contains(&SpecError::DuplicateFrontend { first, second }));
    // Networks that name the later frontend first, and a private one before the public one of its address:
    // the compiler reports one of the faults that were listed, whatever the order.
    for indexes in [&[2, 0][..], &[0], &[2], &[3, 2, 1, 0]] {
        let found = with_networks(&|networks, found| {
            networks[1].frontends = &[];
            networks[0].frontends = indexes;
            found(networks);
        });
        let duplicate = SpecError::DuplicateFrontend { first, second };
        assert!(found.contains(&duplicate), "{indexes:?}: {found:?}");
    }
    let item = RuleItem::Rule(4);
    let strange = SpecError::PoolOutsideNetwork {
        item,
        frontend: 2,
        pool: 2,
    };
    assert!(one_network.contains(&strange));
    let address = vip(false);
    let gateways = [address];
    let met = with_networks(&|networks, found| {
        let mut networks: Vec<Network<'_>> = networks.clone();
        networks[0].gateways = &gateways;
        found(&networks);
    });
    assert_eq!(met, [SpecError::PrivateFrontendTaken { frontend: 0 }]);
    let outside = with_networks(&|networks, found| {
        let spaces: Vec<_> = networks[0].prefixes[1..].to_vec();
        let mut networks: Vec<Network<'_>> = networks.clone();
        networks[0].prefixes = &spaces;
        found(&networks);
    });
    let network = 0;
    assert!(outside.contains(&SpecError::OutsideNetwork { network, address }));
    let taken = faults(|spec, found| {
        let mut vms = spec.vms.to_vec();
        let addresses = [address];
        vms[0].addresses = &addresses;
        found(&Spec { vms: &vms, ..spec });
    });
    let (frontend, vm) = (0, 0);
    assert_eq!(taken, [SpecError::FrontendVm { frontend, vm }]);
    // Whether the frontend has rules or not.
    let taken = faults(|spec, found| {
        let mut vms = spec.vms.to_vec();
        let addresses = [address];
        vms[0].addresses = &addresses;
        let rules: Vec<_> = {
            let rules = spec.rules.iter().filter(|rule| rule.frontend != 0);
            rules.copied().collect()
        };
        let nat: Vec<_> = {
            let nat = spec.inbound_nat.iter().filter(|nat| nat.frontend != 0);
            nat.copied().collect()
        };
        found(&Spec {
            vms: &vms,
            rules: &rules,
            inbound_nat: &nat,
            ..spec
        });
    });
    assert_eq!(taken, [SpecError::FrontendVm { frontend, vm }]);
    let taken = faults(|spec, found| {
        let mut pools = spec.pools.to_vec();
        let mut backends = pools[2].backends.to_vec();
        backends[1].address = address;
        pools[2].backends = &backends;
        found(&Spec {
            pools: &pools,
            ..spec
        });
    });
    let backend = SpecError::FrontendBackend {
        frontend: 2,
        pool: 2,
        backend: 1,
    };
    assert_eq!(taken, [backend]);
    let answers = faults(|spec, found| {
        let mut rules: Vec<Rule<'_>> = spec.rules.to_vec();
        rules[0].terms = through_mux();
        found(&Spec {
            rules: &rules,
            ..spec
        });
    });
    let item = RuleItem::Rule(0);
    assert_eq!(answers, [SpecError::PrivateThroughMux { item }]);
    let frontends = [0];
    let outbound = [outbound(&frontends)];
    let out = faults(|spec, found| {
        found(&Spec {
            outbound: &outbound,
            ..spec
        });
    });
    let private = SpecError::PrivateOutbound {
        rule: 0,
        frontend: 0,
    };
    assert!(out.contains(&private), "{out:?}");
    assert!(private.to_string().contains("public frontend"));
    let at_proxy = faults(|spec, found| {
        found(&Spec {
            proxy: Some(ProxyPorts::default()),
            ..spec
        });
    });
    for frontend in 0..4 {
        assert!(at_proxy.contains(&SpecError::PrivateAtProxy { frontend }));
    }
}

#[test]
fn a_vm_may_have_the_address_of_another_networks_vip() {
    let mut plan = Plan::two_tenants();
    plan.has_vip = vec![true, false];
    plan.with_spec(0, |spec| {
        let mut vms = spec.vms.to_vec();
        let addresses = [vip(false)];
        let place = vms.iter().position(|vm| vm.network == 1).expect("one");
        vms[place].addresses = &addresses;
        assert_eq!(
            faults_of(&Spec {
                vms: &vms,
                ..spec.clone()
            }),
            []
        );
    });
}

#[test]
fn a_snapshot_takes_as_much_memory_as_it_says() {
    let plan = Plan::two_tenants();
    plan.with_spec(0, |spec| {
        let lines = Snapshot::lines_for(spec, None);
        let mut memory = vec![slb_core::mem::Line::EMPTY; lines];
        let mut arena = slb_core::mem::Arena::new(&mut memory);
        let snapshot = Snapshot::build(spec, None, &mut arena).expect("enough");
        let host = Host::with_capacity(&snapshot, 64, Key::new([1, 2]));
        assert!(host.is_ok());
        let mut memory = vec![slb_core::mem::Line::EMPTY; lines - 1];
        let mut arena = slb_core::mem::Arena::new(&mut memory);
        assert!(Snapshot::build(spec, None, &mut arena).is_err());
    });
}
