//! Captures as traffic of a VIP.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use slb_core::packet::{Packet, Parsed, Part};
use slb_core::wire::checksum;
use slb_core::wire::ipv4::Ipv4;
use slb_core::wire::ipv6::Ipv6;

use super::scenario::{DIP, DIP6, KERNEL_VM, Scenario, Side, VM, frame};
use crate::common::{checksum_error, read};

/// A capture as it would be if the first one who is spoken to were a VIP, with our vm behind it.
pub(super) fn scenario_of(path: &Path) -> Option<Scenario> {
    let is_unicast = |address: &IpAddr| match address {
        IpAddr::V4(a) => {
            !(a.is_multicast() || a.is_broadcast() || a.is_loopback() || a.is_unspecified())
                && a.octets()[0] < 224
        }
        IpAddr::V6(a) => {
            !(a.is_multicast()
                || a.is_loopback()
                || a.is_unspecified()
                || a.is_unicast_link_local())
        }
    };
    let mut vip = None;
    let mut traffic = Vec::new();
    let mut firsts = BTreeMap::new();
    for (_, bytes) in read(path) {
        let Parsed::Ip(packet) = Packet::parse(&bytes) else {
            continue;
        };
        let tuple = packet.tuple();
        let link = slb_core::wire::ethernet::Ethernet::parse(&bytes).unwrap();
        let ip = &link.payload()[..packet.ip_len()];
        if !is_unicast(&tuple.source) || packet.hop_limit() < 3 {
            continue;
        }
        // The kernel translates these; ours are dropped, since their checksum is about another destination.
        let is_on_source_route = match ip[0] >> 4 {
            4 => Ipv4::parse(ip).unwrap().is_on_source_route(),
            _ => Ipv6::parse(ip).unwrap().is_on_source_route(),
        };
        if is_on_source_route {
            continue;
        }
        // Neither the kernel nor ours translates a packet with a wrong header checksum.
        if checksum_error(&bytes).is_some_and(|error| error != 0) {
            continue;
        }
        let is_icmp = matches!(tuple.protocol, 1 | 58);
        if vip.is_none() && is_unicast(&tuple.destination) && !is_icmp {
            vip = Some(tuple.destination);
        }
        // Who spoke first decides whose a connection is; the vm's own are not this test's matter.
        let ends = [
            (tuple.source, tuple.source_port),
            (tuple.destination, tuple.destination_port),
        ];
        let name = (tuple.protocol, ends[0].min(ends[1]), ends[0].max(ends[1]));
        let first = *firsts.entry(name).or_insert(tuple.source);
        if !is_icmp && Some(first) == vip {
            continue;
        }
        if Some(tuple.destination) == vip {
            traffic.push((Side::Client, ip.to_vec()));
        } else if Some(tuple.source) == vip && !is_icmp && is_unicast(&tuple.destination) {
            let dip = if ip[0] >> 4 == 4 {
                DIP.into()
            } else {
                DIP6.into()
            };
            traffic.extend(from_vm(ip, dip).map(|packet| (Side::Vm, packet)));
        }
        if traffic.len() == 150 {
            break;
        }
    }
    Some(Scenario {
        name: path.file_name()?.to_string_lossy().into_owned(),
        vip: vip?,
        ports: None,
        outbound: None,
        is_public: false,
        traffic,
    })
}

/// Gives a packet another source, its checksums changed along.
fn from_vm(packet: &[u8], dip: IpAddr) -> Option<Vec<u8>> {
    let framed = frame(VM, KERNEL_VM, packet);
    let Parsed::Ip(parsed) = Packet::parse(&framed) else {
        return None;
    };
    let transport = framed.len() - packet.len();
    let mut packet = packet.to_vec();
    let (at, new) = match dip {
        IpAddr::V4(dip) => (12, dip.octets().to_vec()),
        IpAddr::V6(dip) => (8, dip.octets().to_vec()),
    };
    let header = match dip {
        IpAddr::V4(_) => usize::from(packet[0] & 15) * 4,
        // Only plain ones: extension headers are the captures' own tests.
        IpAddr::V6(_) if matches!(packet[6], 6 | 17 | 58) => 40,
        IpAddr::V6(_) => return None,
    };
    let field = match parsed.tuple().protocol {
        6 => Some(16),
        17 => Some(6),
        58 => Some(2),
        _ => None,
    };
    let _ = transport;
    for place in (0..new.len()).step_by(2) {
        let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (old, new) = (word(&packet, at + place), word(&new, place));
        let mut fields = Vec::new();
        if dip.is_ipv4() {
            fields.push(10);
        }
        if parsed.part() != Part::Later {
            fields.extend(field.map(|field| header + field));
        }
        for field in fields {
            if field + 2 > packet.len() {
                return None;
            }
            let sum = word(&packet, field);
            if sum != 0 || field == 10 {
                let sum = checksum::update(sum, old, new);
                packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            }
        }
        packet[at + place..at + place + 2].copy_from_slice(&new.to_be_bytes());
    }
    Some(packet)
}
