//! A client-side balancer chooses what a mux chooses.

use crate::common;

use std::net::IpAddr;

use common::*;
use slb_core::maglev::{MaglevError, Member, Table};
use slb_core::observe::Step;
use slb_core::packet::Tuple;
use slb_core::spec::BackendState;
use slb_core::{Frame, HEADROOM, Instant, Key, Mux};

#[test]
fn a_table_agrees_with_a_mux_of_the_same_names() {
    let mut setup = Setup::new(20);
    setup.backends[4].weight = 3;
    setup.set_state(9, BackendState::Draining);
    let (table, pool) = setup.with_spec(|spec| {
        let pool = &spec.pools[0];
        let members = pool.backends.iter().map(|backend| Member {
            name: backend.name,
            weight: if backend.is_eligible() {
                backend.weight
            } else {
                0
            },
        });
        let members: Vec<_> = members.collect();
        let table = Table::with_members(&members, pool.table_size, spec.hash_seed);
        (table.expect("good"), pool.backends.len())
    });
    let snapshot = setup.snapshot();
    let mut mux = Mux::stateless(&snapshot, Key::new([1, 2])).expect("a mux");
    let mut seen_all = vec![0; pool];
    for port in 0..2000 {
        let packet = tcp(CLIENT, port, "S");
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(&packet);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len()).expect("room")];
        let (mut key, mut selected) = (None, None);
        let mut observe = |_: usize, step| match step {
            Step::Hashed { hash, .. } => key = Some(hash),
            Step::Selected(index) => selected = Some(index as usize),
            _ => {}
        };
        mux.process_observed(Instant::from_secs(1000), &mut frames, &mut observe);
        let tuple = Tuple {
            source: CLIENT.into(),
            destination: VIP.into(),
            source_port: port,
            destination_port: 80,
            protocol: 6,
        };
        let hash = tuple.hash(&setup.hasher, setup.distribution);
        assert_eq!(hash, key);
        let chosen = table.choose(hash.expect("one family"));
        assert_eq!(chosen, selected);
        seen_all[chosen.expect("a backend")] += 1;
    }
    assert_eq!(seen_all.iter().filter(|count| **count == 0).count(), 1);
    assert!(seen_all[4] > seen_all[5], "{seen_all:?}");
}

#[test]
fn what_is_no_table_is_told() {
    let twice = Table::new(["a", "b", "a"], 0);
    assert!(matches!(twice, Err(MaglevError::DuplicateName { .. })));
    let member = Member {
        name: "a",
        weight: 0,
    };
    let not_prime = Table::with_members(&[member], 250, 0);
    assert_eq!(not_prime, Err(MaglevError::SizeNotPrime { size: 250 }));
    let idle = Table::with_members(&[member], 251, 0).expect("good");
    assert_eq!(idle.choose(u64::MAX), None);
    let none = Table::new([], 0).expect("good");
    assert_eq!(none.choose(7), None);
}

/// In each mode and with each hasher, over both families, a tuple's hash is the one that a mux computes of a
/// packet.
#[test]
fn the_hash_of_a_tuple_is_that_of_its_packet() {
    use slb_core::hash::{Distribution, Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, Xxh3};
    let hashers = [
        Hasher::Xxh3(Xxh3::new(9)),
        Hasher::SipHash13(SipHash13::new([7; 16])),
        Hasher::Toeplitz(Toeplitz::new(&MICROSOFT_KEY)),
    ];
    let modes = [
        Distribution::FiveTuple,
        Distribution::SourceIp,
        Distribution::SourceIpProtocol,
    ];
    for (hasher, distribution) in hashers.iter().flat_map(|h| modes.map(|m| (h, m))) {
        let mut setup = Setup::new(3);
        setup.hasher = hasher.clone();
        setup.distribution = distribution;
        let snapshot = setup.snapshot();
        let mut mux = Mux::stateless(&snapshot, Key::new([1, 2])).expect("a mux");
        let ipv6 = (client6().into(), vip6().into());
        for (ends, udp) in [
            ((CLIENT.into(), VIP.into()), false),
            (ipv6, false),
            (ipv6, true),
        ] {
            let (source, destination): (IpAddr, IpAddr) = ends;
            let port = if udp { 53 } else { 80 };
            let build = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
            let ip = match (source, destination) {
                (IpAddr::V4(a), IpAddr::V4(b)) => build.ipv4(a.octets(), b.octets(), 9),
                (IpAddr::V6(a), IpAddr::V6(b)) => build.ipv6(a.octets(), b.octets(), 9),
                _ => unreachable!("one family"),
            };
            let mut buffer = vec![0; HEADROOM];
            let written = if udp {
                ip.udp(1234, port).write(&mut buffer, &[])
            } else {
                ip.tcp(1234, port, 1, 1).syn().write(&mut buffer, &[])
            };
            written.expect("memory");
            let len = buffer.len() - HEADROOM;
            let mut frames = [Frame::new(&mut buffer, HEADROOM, len).expect("room")];
            let mut seen = None;
            let mut observe = |_: usize, step| {
                if let Step::Hashed { hash, .. } = step {
                    seen = Some(hash);
                }
            };
            mux.process_observed(Instant::from_secs(1000), &mut frames, &mut observe);
            let tuple = Tuple {
                source,
                destination,
                source_port: 1234,
                destination_port: port,
                protocol: if udp { 17 } else { 6 },
            };
            assert!(seen.is_some(), "{tuple}");
            assert_eq!(
                tuple.hash(hasher, distribution),
                seen,
                "{tuple} {distribution:?}"
            );
        }
    }
    let mixed = Tuple {
        source: CLIENT.into(),
        destination: vip6().into(),
        source_port: 1,
        destination_port: 2,
        protocol: 6,
    };
    assert_eq!(
        mixed.hash(&Hasher::default(), Distribution::FiveTuple),
        None
    );
}
