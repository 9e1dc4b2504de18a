//! The choice of an outbound connection's port.
//!
//! A vm has its own blocks of ports on each frontend of its outbound rules. A port serves several
//! connections as long as they go to different destinations: only the whole tuple has to be unique.
//! So N ports, over all blocks, carry N connections to each destination, and the next one is
//! refused. A connection gets, in this order:
//!
//! 1. the vm's own port, if it is in the block and free (RFC 4787 §4.2.1);
//! 2. the next free port of the same parity (RFC 4787 §4.2.2), from a place that depends on a
//!    secret (RFC 6056 §3.3.3); for UDP and ICMP the place depends on the vm's side alone, so an
//!    endpoint keeps its port for all destinations (RFC 4787 §4.1 REQ-1), unless there is a conflict;
//! 3. the next free port of the other parity;
//! 4. a port of the other blocks, in the same way.
//!
//! The block that is tried first depends on the vm's address alone (RFC 4787 §4.1 REQ-2).
//!
//! The bitmaps of `port_table` find free ports, so the number of blocks bounds the work for a
//! packet: in each block, the vm's own port, and for each parity at most two pages and one summary
//! for 4096 ports. The connection table confirms each port before it is used. If the two disagree,
//! since the bitmaps' memory is too small, the search continues from port to port, at most
//! `MOST_TRIES` times for a packet.

use super::connection::{Connection, Key, Side};
use super::port_table::{Owner, Pool, PortTable};
use super::rewrite::Rewrite;
use super::table::Connections;
use super::tcp::Direction;
use crate::snapshot::locals::{Block, Local, Nat};
use crate::spec::Protocol;
use crate::spec::snat::GRANULE;
use crate::verdict::PortId;
use crate::wire::protocol;

/// The reason why there is no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPort {
    /// No outbound rule covers the packet.
    NoRule,
    /// All ports are taken for this destination.
    Exhausted,
}

/// The maximum number of lookups for one packet, beyond the first of each block: some 2 µs.
const MOST_TRIES: u32 = 64;

/// The outside tuple of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outside<A> {
    /// The tuple of packets from outside.
    pub(crate) side: Side<A>,
    /// The vm that has the port.
    pub(crate) local: Local,
    /// The block that contains the port.
    pub(crate) block: Block,
}

/// Finds a port for a connection with packets of the tuple `inside`, among the ports of `locals`:
/// the vm's backends with this address.
pub(crate) fn choose<'n, A: Rewrite>(
    (connections, taken): (&Connections<'_, A>, &PortTable<'_>),
    nat: &'n Nat<'_>,
    locals: &(impl Iterator<Item = &'n Local> + Clone),
    (inside, number, zone): (Side<A>, u8, PortId),
    secret: [u64; 2],
) -> Result<Outside<A>, NoPort> {
    let usable = || {
        let blocks = |local| nat.blocks_of(local).iter().map(move |block| (local, block));
        let all = locals.clone().flat_map(blocks);
        all.filter(move |(_, block)| lets_out::<A>(nat, block, number))
    };
    let count = usable().count();
    if count == 0 {
        return Err(NoPort::NoRule);
    }
    let (vm, remote) = inside.addresses.split();
    let of_vm = A::join(vm, A::ZERO.split().0);
    let first = place(of_vm.hash(0, secret), count);
    let start = match number {
        protocol::TCP => inside.addresses.hash(inside.ports.into(), secret),
        _ => of_vm.hash(u64::from(inside.ports & 0xffff), secret),
    };
    let own = (inside.ports as u16).swap_bytes();
    let mut tries = MOST_TRIES;
    for (local, block) in usable().skip(first).chain(usable().take(first)) {
        let Some(front) = A::from_ip(block.address) else {
            continue;
        };
        let granules = nat.granules_of(block);
        let outside = |port: u16| Side {
            addresses: A::join(remote, front),
            ports: inside.ports >> 16 | u32::from(port.swap_bytes()) << 16,
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
            local: *local,
            block: *block,
        };
        let granule = own / GRANULE as u16;
        if granules.binary_search(&granule).is_ok() && is_free(own) {
            return Ok(found(own));
        }
        let owner = Owner::Block(nat.first_granule(block));
        let ports = granules.len() * GRANULE as usize;
        let pool = taken.pool(owner, &outside(0), number, ports);
        // Granules begin at even ports, so a block's n-th port has the parity of n.
        let port_at = |place: u32| {
            let granule = granules.get((place / GRANULE) as usize)?;
            Some(granule * GRANULE as u16 + (place % GRANULE) as u16)
        };
        let port = search(taken, &pool, start, own, &mut tries, |place| {
            port_at(place).filter(|&port| is_free(port))
        });
        if let Some(port) = port {
            return Ok(found(port));
        }
    }
    Err(NoPort::Exhausted)
}

/// Returns the port of the first free place of a pool: with the own port's parity from the place
/// `start` on, wrapping around, then with the other parity. `check` returns the port of a place, if
/// it is really free.
fn search(
    taken: &PortTable<'_>,
    pool: &Pool,
    start: u64,
    own: u16,
    tries: &mut u32,
    check: impl Fn(u32) -> Option<u16>,
) -> Option<u16> {
    let half = pool.count() / 2;
    let start = place(start, half as usize) as u32;
    for parity in [own & 1, !own & 1] {
        let begin = half * u32::from(parity);
        for (from, end) in [(begin + start, begin + half), (begin, begin + start)] {
            let mut from = from;
            while let Some(index) = taken.free_from(pool, from, end) {
                if let Some(port) = check(pool.place_of(index)) {
                    return Some(port);
                }
                *tries = tries.checked_sub(1)?;
                from = index + 1;
            }
        }
    }
    None
}

/// Returns the place of `count` that a hash selects.
fn place(hash: u64, count: usize) -> usize {
    (((hash >> 32) * count as u64) >> 32) as usize
}

/// Returns true if a block's rule covers a protocol, and its frontend has the address family.
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

/// The first port of a balancer's own address for clients (RFC 6056 §3.2), and the number of ports.
const FIRST: u32 = 1024;
const COUNT: u32 = 65_536 - FIRST;

/// Finds a port of `address` for a client with packets of the tuple `outside`, so that the server
/// sees that address instead. Returns the tuple of the server's packets.
pub(crate) fn choose_peer<A: Rewrite>(
    (connections, taken): (&Connections<'_, A>, &PortTable<'_>),
    address: A::Address,
    (outside, server, number, zone): (Side<A>, (A::Address, u16), u8, PortId),
    secret: [u64; 2],
) -> Option<Side<A>> {
    let side = |port: u16| Side {
        addresses: A::join(server.0, address),
        ports: u32::from(server.1) | u32::from(port.swap_bytes()) << 16,
    };
    let pool = peer_pool(taken, &side(0), number, zone);
    let start = outside.addresses.hash(outside.ports.into(), secret);
    let own = (outside.ports as u16).swap_bytes();
    let mut tries = MOST_TRIES;
    let port = search(taken, &pool, start, own, &mut tries, |place| {
        let port = (FIRST + place) as u16;
        let key = Key {
            side: side(port),
            protocol: number,
            direction: Direction::Outward,
            zone,
        };
        connections.is_free(&key).then_some(port)
    })?;
    Some(side(port))
}

/// Returns the pool of all ports of a balancer's own address, for a server with packets of the
/// tuple `inside`.
fn peer_pool<A: Rewrite>(
    taken: &PortTable<'_>,
    inside: &Side<A>,
    number: u8,
    zone: PortId,
) -> Pool {
    taken.pool(Owner::Peer(zone.0), inside, number, COUNT as usize)
}

/// A port that a connection was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    /// The pool of the port, and its place in the pool.
    pub(crate) pool: Pool,
    pub(crate) place: u32,
    /// The index of a SNAT port among all SNAT ports.
    pub(crate) among_all: Option<usize>,
}

/// Returns the port that represents a client to a connection's server, unless it is the client's
/// own port and address.
pub(crate) fn given_to_peer<A: Rewrite>(
    taken: &PortTable<'_>,
    connection: &Connection<A>,
) -> Option<Given> {
    let inside = connection.key(Direction::Outward);
    let outside = connection.side(Direction::Inward);
    let raw_port = (inside.side.ports >> 16) as u16;
    let (_, peer) = inside.side.addresses.split();
    let (client, _) = outside.addresses.split();
    if peer == client && raw_port == outside.ports as u16 {
        return None;
    }
    Some(Given {
        pool: peer_pool(taken, &inside.side, inside.protocol, inside.zone),
        place: u32::from(raw_port.swap_bytes()).checked_sub(FIRST)?,
        among_all: None,
    })
}

/// Returns the SNAT port of a connection that `local` opened; `None` if the port no longer belongs
/// to the local.
pub(crate) fn given_to_local<A: Rewrite>(
    taken: &PortTable<'_>,
    nat: &Nat<'_>,
    local: &Local,
    connection: &Connection<A>,
) -> Option<Given> {
    let outside = connection.side(Direction::Inward);
    let front = outside.addresses.split().1;
    let port = ((outside.ports >> 16) as u16).swap_bytes();
    let block = nat
        .blocks_of(local)
        .iter()
        .find(|block| A::from_ip(block.address) == Some(front))?;
    let granules = nat.granules_of(block);
    let at = granules.binary_search(&(port / GRANULE as u16)).ok()?;
    let first = nat.first_granule(block);
    let place = at * GRANULE as usize + usize::from(port % GRANULE as u16);
    let ports = granules.len() * GRANULE as usize;
    Some(Given {
        pool: taken.pool(Owner::Block(first), &outside, connection.protocol(), ports),
        place: place as u32,
        among_all: Some(first * GRANULE as usize + place),
    })
}
