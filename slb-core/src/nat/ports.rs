//! The port that a connection to the outside goes out from.
//!
//! A vm has blocks of ports that are its alone, on each frontend of its outbound rule. A port serves
//! several connections at once as long as they go to different places, so what has to be unlike all
//! others is the whole tuple. Which port is tried first:
//!
//! 1. the vm's own, where it is among those of the block (RFC 4787 §4.2.1);
//! 2. of the same parity (RFC 4787 §4.2.2), from a place on that nobody can guess (RFC 6056 §3.3.3);
//!    for UDP and ICMP the place depends on the vm's side alone, so an endpoint keeps its port
//!    whomever it talks to (RFC 4787 §4.1 REQ-1), as far as there is no conflict;
//! 3. any other of the block, and then the other blocks.
//!
//! The block that is tried first depends on the vm's address alone (RFC 4787 §4.1 REQ-2).

use super::connection::{Key, Side};
use super::rewrite::Rewrite;
use super::table::Connections;
use super::tcp::Direction;
use crate::service::Protocol;
use crate::service::nat::{Block, GRANULE, Local, Nat};
use crate::verdict::PortId;
use crate::wire::protocol;

/// Why there is no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPort {
    /// No outbound rule lets it out.
    NoRule,
    /// All are taken, for this destination.
    Exhausted,
}

/// So many are tried for one packet, some 30 µs: a vm that is out of ports delays nobody. Beyond
/// that, a vm of more ports is out of them where so many in a row are taken.
const MOST_TRIES: u32 = 1024;

/// What a connection to the outside is called there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outside<A> {
    /// As packets from there have it.
    pub(crate) side: Side<A>,
    /// The block that its port is of.
    pub(crate) block: Block,
}

/// Finds a port for a connection of `local`'s whose packets are `inside`.
pub(crate) fn choose<A: Rewrite>(
    connections: &Connections<'_, A>,
    nat: &Nat<'_>,
    local: &Local,
    (inside, number, zone): (Side<A>, u8, PortId),
    secret: [u64; 2],
) -> Result<Outside<A>, NoPort> {
    let usable = || {
        let all = nat.blocks_of(local).iter();
        all.filter(move |block| lets_out::<A>(nat, block, number))
    };
    let count = usable().count();
    let (vm, _) = inside.addresses.split();
    let place = |of: A, rest: u64, count: usize| {
        let hash = of.hash(rest, secret);
        (((hash >> 32) * count as u64) >> 32) as usize
    };
    let first = place(A::join(vm, A::ZERO.split().0), 0, count);
    let blocks = usable().skip(first).chain(usable().take(first));
    let mut tries = MOST_TRIES;
    for block in blocks {
        let Some(front) = A::from_ip(block.address) else {
            continue;
        };
        let granules = nat.granules_of(block);
        let ports = granules.len() * GRANULE as usize;
        let outside = |port: u16| {
            let addresses = A::join(inside.addresses.split().1, front);
            let ports = inside.ports >> 16 | u32::from(port.swap_bytes()) << 16;
            Side { addresses, ports }
        };
        let is_free = |port: u16| {
            connections.is_free(&Key {
                side: outside(port),
                protocol: number,
                direction: Direction::Inward,
                zone,
            })
        };
        let found = |port| Outside {
            side: outside(port),
            block: *block,
        };
        let own = (inside.ports as u16).swap_bytes();
        let granule = own / GRANULE as u16;
        if granules.binary_search(&granule).is_ok() && is_free(own) {
            return Ok(found(own));
        }
        let start = match number {
            protocol::TCP => place(inside.addresses, inside.ports.into(), ports),
            _ => place(
                A::join(vm, A::ZERO.split().0),
                u64::from(inside.ports & 0xffff),
                ports,
            ),
        };
        // Granules begin at even ports: of a block's n-th port, n says which it is.
        let parity = usize::from(own & 1);
        for other in [0, 1] {
            let parity = parity ^ other;
            let half = ports / 2;
            for step in 0..half {
                let mut place = start / 2 + step;
                if place >= half {
                    place -= half;
                }
                let place = 2 * place + parity;
                let Some(granule) = granules.get(place / GRANULE as usize) else {
                    continue;
                };
                let port = granule * GRANULE as u16 + (place as u16 & (GRANULE as u16 - 1));
                if is_free(port) {
                    return Ok(found(port));
                }
                tries -= 1;
                if tries == 0 {
                    return Err(NoPort::Exhausted);
                }
            }
        }
    }
    Err(if count == 0 {
        NoPort::NoRule
    } else {
        NoPort::Exhausted
    })
}

/// Whether a block's rule lets a protocol out, and its frontend is of the family.
fn lets_out<A: Rewrite>(nat: &Nat<'_>, block: &Block, number: u8) -> bool {
    let protocols = nat
        .outbound(block.outbound)
        .map(|outbound| outbound.protocol);
    let allowed = match protocols {
        Some(Protocol::Tcp) => number == protocol::TCP,
        Some(Protocol::Udp) => number == protocol::UDP,
        Some(Protocol::Icmp) => number == A::ICMP,
        Some(Protocol::All) => matches!(number, protocol::TCP | protocol::UDP) || number == A::ICMP,
        None => false,
    };
    allowed && A::from_ip(block.address).is_some()
}

/// The first port that a balancer's own address gives clients (RFC 6056 §3.2), and how many there
/// are.
const FIRST: u32 = 1024;
const COUNT: u32 = 65_536 - FIRST;
/// So many are tried: in a table where half of an address's ports go to one place, all are taken
/// once in 2^64.
const TRIES: u32 = 64;

/// Finds a port of `address` for a client whose packets are `outside`, so that the server sees that
/// address instead. What it gets is what the server's own packets are.
pub(crate) fn choose_peer<A: Rewrite>(
    connections: &Connections<'_, A>,
    address: A::Address,
    (outside, server, number, zone): (Side<A>, (A::Address, u16), u8, PortId),
    secret: [u64; 2],
) -> Option<Side<A>> {
    let hash = outside.addresses.hash(outside.ports.into(), secret);
    let mut offset = (((hash >> 32) * u64::from(COUNT)) >> 32) as u32;
    let parity = u32::from((outside.ports as u16).swap_bytes()) & 1;
    for _ in 0..TRIES {
        let port = (FIRST + offset) & !1 | parity;
        let ports = u32::from(server.1) | u32::from((port as u16).swap_bytes()) << 16;
        let side = Side {
            addresses: A::join(server.0, address),
            ports,
        };
        let key = Key {
            side,
            protocol: number,
            direction: Direction::Outward,
            zone,
        };
        if connections.is_free(&key) {
            return Some(side);
        }
        offset += 2;
        if offset >= COUNT {
            offset -= COUNT;
        }
    }
    None
}

/// The place of a port among all that locals have, by which its users are counted.
pub(crate) fn place_of<A: Rewrite>(
    nat: &Nat<'_>,
    local: &Local,
    outside: &Side<A>,
) -> Option<usize> {
    let front = outside.addresses.split().1;
    let port = ((outside.ports >> 16) as u16).swap_bytes();
    let block = nat
        .blocks_of(local)
        .iter()
        .find(|block| A::from_ip(block.address) == Some(front))?;
    let at = nat
        .granules_of(block)
        .binary_search(&(port / GRANULE as u16))
        .ok()?;
    let first = nat.first_granule(block) + at;
    Some(first * GRANULE as usize + usize::from(port % GRANULE as u16))
}
