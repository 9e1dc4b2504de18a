//! Captured conversations on both ways.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::IpAddr;

use super::super::*;
use super::segment::{Segment, pseudo};
use super::snapshot;
use super::twins::Twins;
use super::{FABRIC, VMS, client, vip, vm};
use crate::host::HostRole;
use crate::proxy::ProxyRole;
use crate::spec::{BackendState, derived_mac};
use crate::wire::checksum::checksum;

/// Ethernet frames of a capture in the classic format; none of another one.
fn frames_of(file: &[u8]) -> Vec<Vec<u8>> {
    let Some((head, mut rest)) = file.split_first_chunk::<24>() else {
        return Vec::new();
    };
    let is_little = matches!(
        head[..4],
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]
    );
    let is_big = matches!(
        head[..4],
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]
    );
    let word = |at: &[u8]| {
        let at = *at.first_chunk().unwrap();
        let word = if is_little {
            u32::from_le_bytes(at)
        } else {
            u32::from_be_bytes(at)
        };
        word as usize
    };
    let mut frames = Vec::new();
    if (is_little || is_big) && word(&head[20..]) == 1 {
        while let Some((record, bytes)) = rest.split_first_chunk::<16>() {
            let Some((frame, next)) = bytes.split_at_checked(word(&record[8..])) else {
                break;
            };
            frames.push(frame.to_vec());
            rest = next;
        }
    }
    frames
}

/// Gives the two ends of untagged TCP and UDP without options the names of flow 0: its client is the end that
/// sends first. Returns the direction; of other frames none, and no change.
fn rename(frame: &mut [u8], clients: &mut Vec<Vec<u8>>) -> Option<Direction> {
    let (is_ipv6, at, len, number) = match *frame.get(..24)? {
        [.., 0x08, 0x00, 0x45, _, _, _, _, _, _, _, _, number] => (false, 26, 4, number),
        [.., 0x86, 0xdd, _, _, _, _, _, _, number, _, _, _] => (true, 22, 16, number),
        _ => return None,
    };
    let transport = at + 2 * len;
    let checksum_at = match number {
        protocol::TCP => transport + 16,
        protocol::UDP => transport + 6,
        _ => return None,
    };
    let ip_len = if is_ipv6 {
        40 + usize::from(u16::from_be_bytes([frame[18], frame[19]]))
    } else {
        usize::from(u16::from_be_bytes([frame[16], frame[17]]))
    };
    let segment = frame
        .get(transport..14 + ip_len)
        .filter(|segment| segment.len() >= 20)?;
    let end = |address: usize, port: usize| {
        [&frame[address..address + len], &segment[port..port + 2]].concat()
    };
    let ends = [end(at, 0), end(at + len, 2)];
    let is_clients = match ends.each_ref().map(|end| clients.contains(end)) {
        [false, false] => {
            clients.push(ends[0].clone());
            true
        }
        [is_clients, _] => is_clients,
    };
    let (source, destination, ports) = if is_clients {
        (client(0, is_ipv6), vip(0, is_ipv6), [1024_u16, 80])
    } else {
        (vm(0, is_ipv6), client(0, is_ipv6), [8080, 1024])
    };
    for (index, address) in [source, destination].into_iter().enumerate() {
        let place = &mut frame[at + index * len..][..len];
        match address {
            IpAddr::V4(address) => place.copy_from_slice(&address.octets()),
            IpAddr::V6(address) => place.copy_from_slice(&address.octets()),
        }
        frame[transport + 2 * index..][..2].copy_from_slice(&ports[index].to_be_bytes());
    }
    if !is_ipv6 {
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..34]).to_be_bytes();
        frame[24..26].copy_from_slice(&sum);
    }
    frame[checksum_at..checksum_at + 2].fill(0);
    let sum = pseudo(source, destination, number, &frame[transport..14 + ip_len]).to_be_bytes();
    frame[checksum_at..checksum_at + 2].copy_from_slice(&sum);
    Some(if is_clients {
        Direction::Inward
    } else {
        Direction::Outward
    })
}

/// Replays captured conversations, and what is no conversation from every side.
fn both_ways_do_the_same_with<R: Role>(frames: &[Vec<u8>], is_proxy: bool) {
    let snapshot = Rc::new(snapshot(is_proxy, BackendState::Up, None));
    let mut twins = Twins::<R>::new(&snapshot, is_proxy);
    let mut clients = Vec::new();
    let mut packets = Vec::new();
    for frame in frames {
        let mut frame = frame.clone();
        let direction = rename(&mut frame, &mut clients);
        if direction != Some(Direction::Inward) {
            packets.push((VMS[0], frame.clone()));
        }
        if direction != Some(Direction::Outward) {
            let mut inner = frame;
            if let Some(mac) = inner.get_mut(..6) {
                mac.copy_from_slice(&derived_mac(vm(0, false)).0);
            }
            packets.push((
                FABRIC,
                if is_proxy {
                    inner
                } else {
                    Segment::ORDINARY.outer.around(&inner)
                },
            ));
        }
        if packets.len() > 20 {
            twins.process(&core::mem::take(&mut packets));
        }
    }
    twins.process(&packets);
}

/// Needs the captures that lie beside the repository on some machines, and passes without them.
#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn both_ways_do_the_same_with_captures() {
    let captures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/captures");
    let files = std::fs::read_dir(captures).into_iter().flatten().flatten();
    for file in files {
        let bytes = std::fs::read(file.path()).unwrap_or_default();
        let mut frames = frames_of(&bytes);
        frames.truncate(3000);
        frames.retain(|frame| frame.len() < 9000);
        both_ways_do_the_same_with::<HostRole>(&frames, false);
        both_ways_do_the_same_with::<ProxyRole>(&frames, true);
    }
}
