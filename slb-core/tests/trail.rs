//! Steps and packets in words, as an embedder prints them.

use crate::common;

use common::{CLIENT, Setup, VIP, tcp};
use slb_core::observe::{Observe, Step, Trail};
use slb_core::packet::{Packet, Parsed};
use slb_core::{DropReason, Frame, HEADROOM, Instant, Key, Mux, PortId, Verdict};

const NOW: Instant = Instant::from_secs(1000);

/// The trail of the last of two frames that a mux processes: to port 9999, then `packet`.
fn trail_of(setup: &Setup, packet: &[u8]) -> Trail {
    let snapshot = setup.snapshot();
    let mut mux = Mux::with_capacity(&snapshot, 1000, Key::new([1, 2])).unwrap();
    let other = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(CLIENT, VIP, 9);
    let mut unwanted = Vec::new();
    other
        .tcp(7, 9999, 1, 1)
        .syn()
        .write(&mut unwanted, &[])
        .unwrap();
    let mut buffers = [unwanted, packet.to_vec()].map(|packet| {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(packet);
        buffer
    });
    let [first, last] = &mut buffers;
    let mut frames = [first, last].map(|buffer| {
        let len = buffer.len() - HEADROOM;
        Frame::new(buffer, HEADROOM, len).unwrap()
    });
    let mut trail = Trail::new(1);
    assert_eq!(trail.verdict(), None);
    mux.process_observed(NOW, &mut frames, &mut trail);
    assert_eq!(trail.verdict(), Some(frames[1].verdict()));
    assert_eq!(frames[0].verdict(), Verdict::Drop(DropReason::NoRule));
    trail
}

#[test]
fn a_trail_is_of_one_frame_and_has_the_names_of_the_spec() {
    let setup = Setup::new(3);
    let trail = trail_of(&setup, &tcp(CLIENT, 50_000, "S"));
    let text = setup.with_spec(|spec| trail.named(spec).to_string());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    let packet = "packet     tcp 198.51.100.10:50000 > 20.20.20.100:80, SYN, ";
    assert!(lines[0].starts_with(packet), "{text}");
    let rule = "rule       \"http\": tcp port 80 of frontend \"web\" (20.20.20.100), to pool ";
    assert!(lines[1].starts_with(rule), "{text}");
    assert!(
        lines[2].starts_with("hash       xxh3 of the five-tuple: 0x"),
        "{text}"
    );
    assert!(lines[2].ends_with(" of 65537"), "{text}");
    assert_eq!(
        lines[3],
        "flow       new: pinned to Maglev's choice from now on"
    );
    assert!(lines[4].starts_with("backend    \"vm"), "{text}");
    assert!(lines[4].contains(" on host 172.17."), "{text}");
    assert!(lines[4].ends_with(", weight 1, healthy"), "{text}");
    assert_eq!(lines[5], "verdict    forward, out of port 3");
}

#[test]
fn without_a_spec_there_are_indexes_in_the_place_of_names() {
    let trail = trail_of(&Setup::new(1), &tcp(CLIENT, 50_000, "S"));
    let text = trail.to_string();
    assert!(text.contains("\nrule       0\n"), "{text}");
    assert!(text.contains("\nbackend    0\n"), "{text}");
    let steps: Vec<String> = trail.steps().map(Step::to_string).collect();
    let labels: Vec<&str> = trail.steps().map(Step::label).collect();
    assert_eq!(
        labels,
        ["packet", "rule", "hash", "flow", "backend", "verdict"]
    );
    let again: String = labels
        .iter()
        .zip(steps)
        .map(|(label, step)| format!("{label:<10} {step}\n"))
        .collect();
    assert_eq!(text, again);
}

#[test]
fn a_drop_says_its_reason_in_words() {
    let verdict = Verdict::Drop(DropReason::NoRule);
    assert_eq!(
        verdict.to_string(),
        "drop, no_rule: no rule of the VIP takes the packet's protocol and port"
    );
}

/// Steps of a frame that are more than there is room for, of which the last one is the verdict.
#[test]
fn a_long_trail_keeps_the_verdict() {
    let mut trail = Trail::new(0);
    for _ in 0..2 * Trail::MOST {
        trail.step(0, Step::Selected(1));
        trail.step(1, Step::Done(Verdict::Pass));
    }
    let verdict = Verdict::Forward(PortId(4));
    trail.step(0, Step::Done(verdict));
    assert_eq!(trail.verdict(), Some(verdict));
    assert_eq!(trail.steps().count(), Trail::MOST);
}

#[test]
fn a_packet_in_a_line_has_flags_fragment_tags_and_traffic_class() {
    let build = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut tagged = Vec::new();
    let tagged_ip = build.single_vlan(etherparse::VlanId::try_new(7).unwrap());
    let mut header = etherparse::Ipv6Header {
        source: [0xfd; 16],
        destination: [0xfe; 16],
        hop_limit: 63,
        traffic_class: 46 << 2 | 1,
        ..Default::default()
    };
    header.set_payload_length(20).unwrap();
    let ip = etherparse::IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default());
    tagged_ip
        .ip(ip)
        .tcp(1, 2, 3, 4)
        .fin()
        .ack(5)
        .write(&mut tagged, &[])
        .unwrap();
    let text = |frame: &[u8]| match Packet::parse(frame) {
        Parsed::Ip(packet) => packet.to_string(),
        other => panic!("{other:?}"),
    };
    let (from, to) = (
        "[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:1",
        "[fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe]:2",
    );
    assert_eq!(
        text(&tagged),
        format!("tcp {from} > {to}, ACK FIN, 1 VLAN tag, 60 bytes of IP, TTL 63, DSCP 46, ECN 1")
    );
    let mut later = Vec::new();
    let ip = etherparse::Ipv4Header {
        more_fragments: false,
        fragment_offset: etherparse::IpFragOffset::try_new(185).unwrap(),
        ..etherparse::Ipv4Header::new(8, 64, etherparse::IpNumber::UDP, CLIENT, VIP).unwrap()
    };
    let build = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
    build
        .ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        .write(&mut later, etherparse::IpNumber::UDP, &[0; 8])
        .unwrap();
    assert_eq!(
        text(&later),
        "udp 198.51.100.10:0 > 20.20.20.100:0, later fragment, 28 bytes of IP, TTL 64, DSCP 0, ECN 0"
    );
}
