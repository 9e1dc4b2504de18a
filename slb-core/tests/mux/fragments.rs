//! Fragments follow their first one.

use slb_core::hash::Distribution;
use slb_core::{DropReason, Instant};

use super::dropped;
use crate::common::*;

/// A UDP datagram in three parts.
fn fragments(port: u16, id: u16) -> Vec<Vec<u8>> {
    let whole = udp_to(CLIENT, port, VIP, 53, &[7; 1000]);
    let (header, payload) = whole.split_at(34);
    let parts = payload.chunks(400);
    let count = parts.len();
    parts
        .enumerate()
        .map(|(i, part)| {
            let mut packet = header.to_vec();
            packet.extend(part);
            packet[16..18].copy_from_slice(&((20 + part.len()) as u16).to_be_bytes());
            packet[18..20].copy_from_slice(&id.to_be_bytes());
            let more = if i + 1 < count { 0x2000u16 } else { 0 };
            packet[20..22].copy_from_slice(&(more | (i * 50) as u16).to_be_bytes());
            righted(packet)
        })
        .collect()
}

fn fragments6(port: u16, id: u32) -> Vec<Vec<u8>> {
    let whole = udp6(port, &[7; 1000]);
    let (header, payload) = whole.split_at(54);
    let parts = payload.chunks(400);
    let count = parts.len();
    parts
        .enumerate()
        .map(|(i, part)| {
            let mut packet = header.to_vec();
            packet[18..20].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
            packet[20] = 44;
            packet.extend([17, 0]);
            packet.extend((((i * 50) << 3) as u16 | u16::from(i + 1 < count)).to_be_bytes());
            packet.extend(id.to_be_bytes());
            packet.extend(part);
            packet
        })
        .collect()
}

#[test]
fn fragments_go_where_their_flow_goes() {
    let setup = Setup::new(20);
    for port in 2000..2040 {
        for mut mux in [pinned(&setup), stateless(&setup)] {
            let whole = udp_to(CLIENT, port, VIP, 53, b"whole");
            let flow = backend_of(&send_one(&mut mux, whole));
            let parts = fragments(port, port);
            assert_eq!(
                backends_of(&mut mux, Instant::from_secs(11), &parts),
                [flow; 3]
            );
            let flow6 = backend_of(&send_one(&mut mux, udp6(port, b"whole")));
            let parts = fragments6(port, port.into());
            assert_eq!(
                backends_of(&mut mux, Instant::from_secs(11), &parts),
                [flow6; 3]
            );
        }
    }
}

#[test]
fn a_later_fragment_without_its_first_is_dropped_by_name() {
    for mut mux in [pinned(&Setup::new(20)), stateless(&Setup::new(20))] {
        let [first, second, _] = fragments(1, 77).try_into().unwrap();
        let reason = dropped(DropReason::FragmentWithoutFirst);
        assert_eq!(send_one(&mut mux, second.clone()).verdict, reason);
        tunnelled(&send_one(&mut mux, first));
        tunnelled(&send_one(&mut mux, second.clone()));
        // Half an hour later, its first fragment is somebody else's.
        let outcome = send(&mut mux, Instant::from_secs(2000), &[second]).remove(0);
        assert_eq!(outcome.verdict, reason);
    }
}

#[test]
fn where_ports_do_not_matter_fragments_need_no_first() {
    let setup = Setup {
        ha_ports: true,
        distribution: Distribution::SourceIp,
        ..Setup::new(20)
    };
    let mut mux = stateless(&setup);
    let flow = backend_of(&send_one(&mut mux, tcp(CLIENT, 1, "S")));
    for part in fragments(1, 77).iter().rev() {
        assert_eq!(backend_of(&send_one(&mut mux, part.clone())), flow);
    }
}
