//! A mux's output for a packet, read with another project's parser.

mod answers;
mod drops;
mod errors;
mod forwarding;
mod fragments;
mod hashing;

use std::net::Ipv4Addr;

use slb_core::spec::derived_mac;
use slb_core::{DropReason, Instant, Verdict};

use crate::common::*;

fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

/// The packet as it should be inside: other MACs, one hop less, the rest as it was.
fn expected_inner(packet: &[u8], backend: u16) -> Vec<u8> {
    let ipv6 = packet[12..14] == [0x86, 0xdd];
    let mut inner = packet.to_vec();
    inner[..6].copy_from_slice(&derived_mac(dip(backend, ipv6)).0);
    inner[6..12].copy_from_slice(&MUX_MAC);
    if ipv6 {
        inner[21] -= 1;
    } else {
        inner[22] -= 1;
        let header = etherparse::Ipv4Header::from_slice(&inner[14..]).unwrap().0;
        inner[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    }
    inner
}

#[test]
fn rules_and_backends_count_what_they_got() {
    let setup = Setup::new(4);
    let mut mux = pinned(&setup);
    let packets: Vec<_> = flows(300, "S").into_iter().chain(flows(300, "A")).collect();
    let found = backends_of(&mut mux, Instant::from_secs(1), &packets);
    let rule = mux.rule_counters(0).unwrap();
    assert_eq!(
        (rule.forwarded.packets, rule.syns, rule.flows),
        (600, 300, 300)
    );
    assert_eq!(mux.rule_counters(1).unwrap().forwarded.packets, 0);
    let stats = mux.stats();
    assert_eq!(
        (stats.syns, stats.flows.made, stats.forwarded.packets),
        (300, 300, 600)
    );
    let ids: Vec<_> = mux.snapshot().backends()[..4]
        .iter()
        .map(slb_core::snapshot::CompiledBackend::id)
        .collect();
    for (number, id) in (1..).zip(ids) {
        let expected = found.iter().filter(|&&b| b == number).count() as u64;
        let counters = mux.backend_counters(id).unwrap();
        assert_eq!(counters.forwarded.packets, expected);
        assert_eq!(counters.flows, expected / 2);
    }
    let _: Ipv4Addr = MUX;
}

/// Found by `c_functions_in_any_order`: the first sweep was put beyond the end of time.
#[test]
fn a_clock_at_its_end_is_a_clock() {
    for first in [u64::MAX, u64::MAX - 1, u64::MAX - (1 << 20), 0] {
        let mut mux = pinned(&Setup::new(3));
        for now in [first, u64::MAX] {
            let now = Instant::from_nanos(now);
            mux.advance(now);
            for flags in ["S", "A"] {
                let outcome = send(&mut mux, now, &[tcp([10, 1, 1, 1], 7000, flags)]).remove(0);
                assert!(matches!(outcome.verdict, Verdict::Forward(_)));
            }
        }
        assert_eq!(mux.stats().flows.live, 1);
    }
}
