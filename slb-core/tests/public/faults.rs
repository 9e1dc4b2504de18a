//! Public addresses that a spec refuses.

use slb_core::spec::{
    Frontend, PortMode, ProxyPorts, PublicAddress, PublicAddressFault, Spec, SpecError,
};
use slb_core::wire::vxlan::Vni;

use crate::common::faults_of;
use crate::networks::net::{Plan, VIP, ip};

/// An entry for the vm 10.1.0.11 of the first network.
fn entry(address: &str) -> PublicAddress {
    PublicAddress {
        address: ip(address),
        vni: Vni::new(5001).expect("a VNI"),
        vm: ip("10.1.0.11"),
    }
}

fn faults(entries: &[PublicAddress]) -> Vec<(usize, PublicAddressFault)> {
    let found = Plan::two_tenants().with_spec(0, |spec| {
        faults_of(&Spec {
            public_addresses: entries,
            ..spec.clone()
        })
    });
    let found = found.into_iter().map(|error| match error {
        SpecError::PublicAddress { index, fault } => (index, fault),
        other => panic!("{other}"),
    });
    found.collect()
}

#[test]
fn each_fault_is_found() {
    use PublicAddressFault::{Families, Frontend, InNetwork, NoVm, Taken, Unusable, VmTaken};
    let good = entry("40.0.0.1");
    assert_eq!(faults(&[good]), []);
    for bad in [
        "224.0.0.1",
        "127.0.0.1",
        "0.0.0.1",
        "169.254.1.1",
        "255.255.255.255",
    ] {
        assert_eq!(faults(&[entry(bad)]), [(0, Unusable)], "{bad}");
    }
    for bad in ["::1", "ff02::1", "fe80::1", "::ffff:40.0.0.1"] {
        let entry = PublicAddress {
            vm: ip("fd00:1::11"),
            ..entry(bad)
        };
        assert_eq!(faults(&[entry]), [(0, Unusable)], "{bad}");
    }
    let mixed = entry("2001:db8::1");
    assert_eq!(faults(&[mixed]), [(0, Families)]);
    let nobody = PublicAddress {
        vm: ip("10.1.0.99"),
        ..good
    };
    assert_eq!(faults(&[nobody]), [(0, NoVm)]);
    let elsewhere = PublicAddress {
        vni: Vni::new(77).expect("a VNI"),
        ..good
    };
    assert_eq!(faults(&[elsewhere]), [(0, NoVm)]);
    let other = PublicAddress {
        vni: Vni::new(5002).expect("a VNI"),
        ..good
    };
    assert_eq!(faults(&[good, other]), [(1, Taken { first: 0 })]);
    let second = PublicAddress {
        address: ip("40.0.0.2"),
        ..good
    };
    assert_eq!(faults(&[good, second]), [(1, VmTaken { first: 0 })]);
    let apart = PublicAddress {
        address: ip("40.0.0.2"),
        ..other
    };
    assert_eq!(
        faults(&[good, apart]),
        [],
        "the same own address in another network"
    );
    assert_eq!(faults(&[entry(VIP)]), [(0, Frontend { frontend: 0 })]);
    assert_eq!(faults(&[entry("10.1.0.77")]), [(0, InNetwork)]);
}

#[test]
fn a_proxy_has_none() {
    let frontends = [Frontend {
        name: "web",
        address: ip(VIP),
        ..Frontend::default()
    }];
    let ports = [slb_core::spec::FrontendPort {
        port: slb_core::PortId(1),
        address: None,
    }];
    let entries = [entry("40.0.0.1")];
    let spec = Spec {
        frontends: &frontends,
        public_addresses: &entries,
        proxy: Some(ProxyPorts {
            mode: PortMode::Single,
            frontends: &ports,
            ..ProxyPorts::default()
        }),
        ..Spec::default()
    };
    let expected = SpecError::PublicAddress {
        index: 0,
        fault: PublicAddressFault::AtProxy,
    };
    assert_eq!(faults_of(&spec), [expected]);
    let text = "public address 40.0.0.1: a proxy has none: expected a mux or a host agent";
    assert_eq!(expected.named(&spec).to_string(), text);
}
