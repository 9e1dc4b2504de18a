//! The ports of fragmented datagrams: only the first fragment has them, and the others go where it
//! went.

use crate::flow::table::Inserted;
use crate::flow::{Addresses, FlowKey, FlowState, FlowTable, Table, Ticks};
use crate::packet::{Family, Packet};

/// Fragments of one datagram come within this time (RFC 1122 §3.3.2: 60 s and more).
const LIFETIME: Ticks = Ticks(56);

/// Keeps the ports of a datagram, whose first fragment this is.
pub(crate) fn remember(table: &mut FlowTable<'_>, packet: &Packet) {
    match packet.shape.family {
        Family::Ipv4 => keep(&mut table.ipv4, &ipv4_key(packet), packet.ports),
        Family::Ipv6 => keep(&mut table.ipv6, &ipv6_key(packet), packet.ports),
    }
}

/// The ports of a datagram, of which this is a later fragment.
pub(crate) fn recall(table: &FlowTable<'_>, packet: &Packet) -> Option<u32> {
    Some(match packet.shape.family {
        Family::Ipv4 => table.ipv4.value(table.ipv4.find(&ipv4_key(packet))?),
        Family::Ipv6 => table.ipv6.value(table.ipv6.find(&ipv6_key(packet))?),
    })
}

fn keep<A: Addresses>(table: &mut Table<'_, A>, key: &FlowKey<A>, ports: u32) {
    match table.find(key) {
        Some(found) => {
            table.set_value(found, ports);
            table.update(found, LIFETIME, |state| state);
        }
        None => {
            // Half-open, so that newer datagrams push out older ones where it gets tight.
            let hash = table.hash(key);
            let _: Inserted = table.insert(hash, key, ports, FlowState::HalfOpen, LIFETIME);
        }
    }
}

fn ipv4_key(packet: &Packet) -> FlowKey<u64> {
    // RFC 791: source, destination, protocol and identification name a datagram.
    let identification = packet.identification | u32::from(packet.protocol) << 16;
    FlowKey::fragment(packet.addresses[0], identification)
}

fn ipv6_key(packet: &Packet) -> FlowKey<[u64; 4]> {
    FlowKey::fragment(packet.addresses, packet.identification)
}
