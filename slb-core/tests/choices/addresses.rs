//! Addresses that no vm reaches by another name.

use slb_core::{Instant, Verdict};

use crate::snat_world::{Family, Kind, Plan, vm};

#[test]
fn packets_to_addresses_of_a_link_or_a_machine_are_never_translated() {
    let cases = [
        (
            Family::Ipv4,
            &[
                "224.0.0.251",
                "255.255.255.255",
                "169.254.9.9",
                "0.0.0.0",
                "127.0.0.1",
            ][..],
        ),
        (Family::Ipv6, &["ff02::fb", "fe80::9", "::", "::1"][..]),
    ];
    for (family, addresses) in cases {
        for address in addresses {
            for kind in [Kind::Tcp, Kind::Udp, Kind::Echo] {
                // Without prefixes that are inside, which would hide it.
                let mut world = Plan::new(family, 1).inside(&[]).world();
                let to = (address.parse().unwrap(), 443);
                let packet = kind.request((vm(family, 0), 40_000), to);
                let (verdict, out) = world.of_vm(Instant::from_secs(1), 0, &packet);
                assert_eq!(verdict, Verdict::Pass, "{kind:?} to {address}");
                assert_eq!(out[14..], packet, "{kind:?} to {address}");
                assert_eq!(world.snat().connections, 0);
            }
        }
    }
}
