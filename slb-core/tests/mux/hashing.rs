//! Distribution modes and hashers.

use slb_core::Instant;
use slb_core::hash::{Distribution, Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, TupleHasher};

use crate::common::*;

#[test]
fn distribution_modes_hash_what_they_say() {
    let backends = |distribution, packets: &[Vec<u8>]| {
        let setup = Setup {
            distribution,
            ha_ports: true,
            ..Setup::new(50)
        };
        let found = backends_of(&mut stateless(&setup), Instant::ZERO, packets);
        found
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    let ports: Vec<_> = (0..200).map(|port| tcp(CLIENT, port, "S")).collect();
    let clients: Vec<_> = (0..200).map(|i| tcp([10, 0, 0, i], 1, "S")).collect();
    let protocols = [tcp(CLIENT, 1, "S"), udp_to(CLIENT, 1, VIP, 80, b"")];
    assert!(backends(Distribution::FiveTuple, &ports) > 40);
    assert_eq!(backends(Distribution::SourceIp, &ports), 1);
    assert_eq!(backends(Distribution::SourceIpProtocol, &ports), 1);
    for mode in [Distribution::SourceIp, Distribution::SourceIpProtocol] {
        assert!(backends(mode, &clients) > 40);
    }
    assert_eq!(backends(Distribution::SourceIp, &protocols), 1);
    let differing = (0..50u8)
        .filter(|&i| {
            let of = |packet| {
                let setup = Setup {
                    distribution: Distribution::SourceIpProtocol,
                    ha_ports: true,
                    ..Setup::new(50)
                };
                backend_of(&send_one(&mut stateless(&setup), packet))
            };
            let client = [10, 9, 8, i];
            of(tcp(client, 1, "S")) != of(udp_to(client, 1, VIP, 80, b""))
        })
        .count();
    assert!(
        differing > 40,
        "TCP and UDP of {differing} clients of 50 part"
    );
}

#[test]
fn every_hasher_spreads_flows_and_a_custom_one_is_asked() {
    struct Last;
    impl TupleHasher for Last {
        fn ipv4(&self, message: &[u64; 2]) -> u64 {
            message[0] & 0xff_0000_0000 << 24 // nothing that varies here
        }
        fn ipv6(&self, message: &[u64; 5]) -> u64 {
            message[4] << 48
        }
    }
    let packets = flows(2000, "S");
    let distinct = |hasher| {
        let setup = Setup {
            hasher,
            ..Setup::new(50)
        };
        let found = backends_of(&mut stateless(&setup), Instant::ZERO, &packets);
        found
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    assert_eq!(distinct(Hasher::default()), 50);
    assert_eq!(distinct(Hasher::SipHash13(SipHash13::new([9; 16]))), 50);
    assert_eq!(
        distinct(Hasher::Toeplitz(Toeplitz::new(&MICROSOFT_KEY))),
        50
    );
    assert_eq!(distinct(Hasher::Custom(&Last)), 1);
}
