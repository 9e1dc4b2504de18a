//! Nothing but the prober has the address that probes come from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, Echo, Frontend, Pool, ProbeSource, Rule, Spec, SpecError, Underlay};

const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const SOURCE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
const SOURCE6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6c62, 0, 0, 0, 0, 0xa83f, 0x8110);

/// The faults of a host's spec with one frontend and one backend, and their words.
fn faults(vip: IpAddr, dip: IpAddr, probe_source: ProbeSource) -> (Vec<SpecError>, String) {
    let backends = [Backend {
        name: "vm",
        address: dip,
        host: HOST.into(),
        ..Backend::default()
    }];
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: vip,
            icmp_echo: Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            frontend_port: 80,
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "vms",
            table_size: 251,
            backends: &backends,
            ..Pool::default()
        }],
        probe_source,
        ..Spec::default()
    };
    let faults: Vec<SpecError> = spec.faults().collect();
    assert_eq!(
        Snapshot::new(&spec, None).err(),
        faults.first().copied(),
        "what is told is what is refused"
    );
    let words = faults.iter().map(|fault| fault.named(&spec).to_string());
    let words = words.collect::<Vec<_>>().join("\n");
    (faults, words)
}

#[test]
fn no_frontend_and_no_backend_has_the_address_that_probes_come_from() {
    let both = ProbeSource {
        ipv4: Some(SOURCE),
        ipv6: Some(SOURCE6),
    };
    let [vip, dip] = [Ipv4Addr::new(20, 20, 20, 100), Ipv4Addr::new(10, 0, 0, 1)].map(IpAddr::V4);
    let vip6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 100));
    let dip6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
    let frontend = SpecError::ProbeSourceFrontend { frontend: 0 };
    let backend = SpecError::ProbeSourceBackend {
        pool: 0,
        backend: 0,
    };
    for (vip, dip, source, expected) in [
        (vip, dip, both, &[][..]),
        (vip6, dip6, both, &[]),
        (SOURCE.into(), dip, both, &[frontend]),
        (vip, SOURCE.into(), both, &[backend]),
        (SOURCE6.into(), dip6, both, &[frontend]),
        (vip6, SOURCE6.into(), both, &[backend]),
        // Of another host, or where nobody probes, it is an address as any other.
        (SOURCE.into(), dip, ProbeSource::default(), &[]),
        (vip, SOURCE.into(), ProbeSource::default(), &[]),
    ] {
        let (faults, words) = faults(vip, dip, source);
        assert_eq!(faults, expected, "{vip} {dip} {words}");
    }
    let (_, words) = faults(SOURCE.into(), dip, both);
    assert_eq!(
        words,
        "frontend \"web\" has the address that probes come from: expected another one"
    );
    let (_, words) = faults(vip, SOURCE.into(), both);
    assert_eq!(
        words,
        "backend \"vm\" of pool \"vms\" has the address that probes come from: expected another one"
    );
}
