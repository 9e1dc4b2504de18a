//! NAT beside Linux's nftables, with real captures, whose servers become VIPs, and with generated
//! traffic, in both directions.
//!
//! Both translate each packet to the same bytes, except for the TTL: addresses, ports, checksums and
//! the packets that ICMP errors quote.

mod captured;
mod kernel;
mod made;
mod public;
mod scenario;

use captured::scenario_of;
use kernel::kernels;
use made::made;
use public::public;
use scenario::{KERNEL_CLIENT, KERNEL_VM, ROUTER, Received, Scenario, Side, VM, frame};

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use etherparse::defrag::IpDefragPool;
use slb_control::Role;
use slb_core::packet::{Packet, Parsed, Part};
use slb_core::snapshot::Snapshot;
use slb_core::{Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict};

use crate::common::{captures, checksum_error, has, is_root, without_ttl};

/// Sends the traffic through a mux and a host of ours.
fn ours(scenario: &Scenario) -> Received {
    let config = scenario.config();
    let mut at_mux = config.clone();
    at_mux.node.role = Role::Mux;
    let snapshot: Arc<Snapshot<'static>> = at_mux.snapshot(None).unwrap();
    let mut mux = Mux::with_capacity(snapshot, 1000, Key::new([1, 2])).expect("its role");
    let mut host = Host::with_capacity(config.snapshot(None).unwrap(), 1000, Key::new([3, 4]))
        .expect("its role");
    let mut received = Received::default();
    for (number, (side, packet)) in scenario.traffic.iter().enumerate() {
        let now = Instant::from_nanos(1_000_000 * (1 + number as u64));
        let bytes = match side {
            Side::Client => frame(ROUTER, KERNEL_CLIENT, packet),
            Side::Vm => frame(VM, KERNEL_VM, packet),
        };
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(&bytes);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap()];
        if *side == Side::Client {
            mux.process(now, &mut frames);
            if !matches!(frames[0].verdict(), Verdict::Forward(_)) {
                continue;
            }
        }
        frames[0].set_port(PortId(u16::from(*side == Side::Vm)));
        host.process(now, &mut frames);
        match frames[0].verdict() {
            Verdict::Forward(PortId(0)) => received.client.push(frames[0].bytes().to_vec()),
            Verdict::Forward(_) => received.vm.push(frames[0].bytes().to_vec()),
            _ => {}
        }
    }
    received
}

/// The identity of packets: all of the IP packet but TTL and header checksum, and the error of the
/// checksum. Fragments count as the datagram that they make up: the kernel reassembles them and
/// fragments them again, and drops those that stay incomplete.
fn essence(frames: &[Vec<u8>]) -> BTreeMap<(Vec<u8>, Option<u16>), usize> {
    let mut all = BTreeMap::new();
    let mut pool = IpDefragPool::<(), ()>::new();
    for frame in frames {
        let Parsed::Ip(packet) = Packet::parse(frame) else {
            panic!("no IP packet was sent: {frame:02x?}")
        };
        let key = if packet.part() == Part::Whole {
            (without_ttl(frame), checksum_error(frame))
        } else {
            let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
            let Ok(Some(whole)) = pool.process_sliced_packet(&sliced, (), ()) else {
                continue;
            };
            let tuple = packet.tuple();
            let ends = format!("{} {} {}", tuple.source, tuple.destination, tuple.protocol);
            ([ends.as_bytes(), &whole.payload].concat(), None)
        };
        *all.entry(key).or_default() += 1;
    }
    all
}

fn tuple_of(frame: &[u8]) -> Option<slb_core::packet::Tuple> {
    match Packet::parse(frame) {
        Parsed::Ip(packet) => Some(packet.tuple()),
        _ => None,
    }
}

/// Compares what both made of a scenario; returns how many packets they agree about.
fn compare(scenario: &Scenario, directory: &Path, tag: &str) -> Option<usize> {
    let ours = ours(scenario);
    let expected = ours.client.len() + ours.vm.len();
    let kernel = kernels(scenario, tag, expected, directory)?;
    // Of the kernel's, what it translated: what it only routed, or says itself, is not our matter.
    let translated = |frames: Vec<Vec<u8>>, to_vm: bool| -> Vec<Vec<u8>> {
        let own: [IpAddr; 4] = [
            "192.0.2.2".parse().unwrap(),
            "10.10.1.254".parse().unwrap(),
            "fd00:1::2".parse().unwrap(),
            "fd00:10::254".parse().unwrap(),
        ];
        let is_ours = |frame: &Vec<u8>| {
            tuple_of(frame).is_some_and(|tuple| {
                let (source, destination) = (tuple.source, tuple.destination);
                let fronts = [Some(scenario.vip), scenario.outbound];
                !own.contains(&source)
                    && if to_vm {
                        destination == scenario.dip()
                    } else {
                        fronts.contains(&Some(source))
                    }
            })
        };
        frames.into_iter().filter(is_ours).collect()
    };
    for (name, ours, kernel) in [
        ("to the vm", ours.vm, translated(kernel.vm, true)),
        (
            "to the client",
            ours.client,
            translated(kernel.client, false),
        ),
    ] {
        let (ours, kernel) = (essence(&ours), essence(&kernel));
        for ((packet, error), count) in &ours {
            let other = kernel.get(&(packet.clone(), *error)).copied().unwrap_or(0);
            assert_eq!(
                *count,
                other,
                "{}, {name}: ours has {count}, the kernel {other} of {:02x?} {error:?}",
                scenario.name,
                &packet[..packet.len().min(80)]
            );
        }
        for (packet, error) in kernel.keys() {
            assert!(
                ours.contains_key(&(packet.clone(), *error)),
                "{}, {name}: the kernel alone has {:02x?} {error:?}",
                scenario.name,
                &packet[..packet.len().min(80)]
            );
        }
    }
    Some(expected)
}

/// Says why this cannot run here, if it cannot.
fn missing() -> Option<String> {
    if !is_root() {
        return Some("root is needed for network namespaces".to_owned());
    }
    let tools = ["tcpdump", "tcpreplay", "tcpprep", "nft"];
    let missing = tools.iter().find(|tool| !has(tool));
    missing.map(|tool| format!("{tool} is not installed"))
}

#[test]
#[ignore = "needs root"]
fn captures_are_translated_as_nftables_translates_them() {
    let Some(captures) = captures() else {
        skip!("the shared captures are not there")
    };
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut total, mut files) = (0, 0);
    for (number, path) in captures.iter().enumerate() {
        let Some(scenario) = scenario_of(path) else {
            continue;
        };
        let Some(count) = compare(&scenario, directory.path(), &format!("n{number}")) else {
            skip!("a network namespace cannot be made here")
        };
        total += count;
        files += usize::from(count > 0);
    }
    println!("{total} packets of {files} captures, as nftables has them");
    assert!(total > 1200, "{total} packets");
}

#[test]
#[ignore = "needs root"]
fn made_traffic_is_translated_as_nftables_translates_it() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let directory = tempfile::tempdir().unwrap();
    for (tag, ipv6) in [("m4", false), ("m6", true)] {
        let scenario = made(ipv6);
        let sent = scenario.traffic.len();
        let Some(count) = compare(&scenario, directory.path(), tag) else {
            skip!("a network namespace cannot be made here")
        };
        // Every packet comes through.
        assert_eq!(count, sent, "{}", scenario.name);
        // The datagrams that came in pieces were put together, and compared.
        let ours = essence(&ours(&scenario).vm);
        assert_eq!(
            ours.keys().filter(|(whole, _)| whole.len() > 1500).count(),
            3
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_public_address_is_translated_as_nftables_translates_one_to_one() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let directory = tempfile::tempdir().unwrap();
    for (tag, ipv6) in [("p4", false), ("p6", true)] {
        let scenario = public(ipv6);
        let sent = scenario.traffic.len();
        let Some(count) = compare(&scenario, directory.path(), tag) else {
            skip!("a network namespace cannot be made here")
        };
        // Every packet comes through.
        assert_eq!(count, sent, "{}", scenario.name);
    }
}
