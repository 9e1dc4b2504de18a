//! Network address translation: connections with a tuple on each side, and the translation of
//! packets between them.
//!
//! - [`connection`](mod@connection): a connection's tuples and timeouts;
//! - [`tcp`]: the states of TCP connections;
//! - `table`, `index`: all connections, found by either tuple in two cache lines;
//! - `ages`: connections that may be evicted;
//! - `direct_flows`: flows of vms with access lists that have no connection;
//! - `rewrite`: headers, checksums and the quotes of ICMP errors;
//! - `readdress`: 1:1 NAT, which needs no state;
//! - [`ports`], `port_table`: the ports of a vm's outbound connections.
//!
//! Behaviour follows RFC 4787 (UDP), RFC 5382 (TCP) and RFC 5508 (ICMP).

pub(crate) mod ages;
pub mod connection;
mod direct_flows;
pub(crate) mod index;
pub(crate) mod pipeline;
pub(crate) mod port_table;
pub mod ports;
pub(crate) mod readdress;
pub(crate) mod rewrite;
pub(crate) mod rule_id;
pub(crate) mod table;
mod tables;
pub mod tcp;

pub use self::ages::AgeLink;
pub use crate::link::Link;
pub use connection::{Connection, ConnectionView};
pub use direct_flows::{DirectFlowSlot, DirectFlows};
pub use index::IndexBucket;
pub use port_table::{PortBucket, PortTable};
pub use table::{ConnectionMemory, NatStats};
pub use tables::{Links, NatOptions, NatTables};
pub use tcp::{ConnectionState, Direction};

use core::fmt;

use self::table::Connections;
use crate::key::{Key, Purpose};
use crate::mem::{Mem, Memory};
use crate::time::Instant;

/// The connections of both families.
pub struct NatTable<'m> {
    pub(crate) ipv4: Connections<'m, u64>,
    pub(crate) ipv6: Connections<'m, [u64; 4]>,
    /// The secret from which ports of translated connections are derived (RFC 6056 §3.3.3).
    pub(crate) port_secret: [u64; 2],
}

impl<'m> NatTable<'m> {
    /// Returns the number of [`IndexBucket`]s for `connections` connections. Including its
    /// [`AgeLink`], an IPv4 connection takes 90.3 bytes, an IPv6 connection 154.3.
    pub const fn index_buckets_for(connections: usize) -> usize {
        index::Index::buckets_for(connections.saturating_mul(2))
    }

    /// Makes a table in the given memory. Keep the key secret: with the key, an attacker can have
    /// connections refused, and can predict SNAT ports.
    pub fn new(
        ipv4: ConnectionMemory<'m, u64>,
        ipv6: ConnectionMemory<'m, [u64; 4]>,
        key: Key,
    ) -> Self {
        let hash_key = key.derive(Purpose::Connections);
        Self {
            ipv4: Connections::new(ipv4, hash_key),
            ipv6: Connections::new(ipv6, hash_key),
            port_secret: key.derive(Purpose::Ports),
        }
    }

    /// Makes a table for the given numbers of connections; returns `None` if the memory is used up.
    pub fn build(ipv4: usize, ipv6: usize, key: Key, memory: &mut impl Memory<'m>) -> Option<Self> {
        let ipv4 = ConnectionMemory {
            connections: memory.take(ipv4, Connection::EMPTY)?,
            index: memory.take(Self::index_buckets_for(ipv4), IndexBucket::EMPTY)?,
            ages: memory.take(ipv4, AgeLink::EMPTY)?,
        };
        let ipv6 = ConnectionMemory {
            connections: memory.take(ipv6, Connection::EMPTY)?,
            index: memory.take(Self::index_buckets_for(ipv6), IndexBucket::EMPTY)?,
            ages: memory.take(ipv6, AgeLink::EMPTY)?,
        };
        Some(Self::new(ipv4, ipv6, key))
    }

    #[inline]
    pub(crate) fn advance(&mut self, now: Instant) {
        self.ipv4.advance(now);
        self.ipv6.advance(now);
    }

    /// Yields the IPv4 connections from the place `first` on, with their places, so that a caller
    /// can list connections in parts.
    pub fn ipv4_from(&self, first: usize) -> impl Iterator<Item = (usize, ConnectionView)> + '_ {
        let all = self.ipv4.iter_from(first);
        all.map(|(place, connection)| (place, connection.view()))
    }

    /// Yields the IPv6 connections from a place on, like [`ipv4_from`](Self::ipv4_from).
    pub fn ipv6_from(&self, first: usize) -> impl Iterator<Item = (usize, ConnectionView)> + '_ {
        let all = self.ipv6.iter_from(first);
        all.map(|(place, connection)| (place, connection.view()))
    }

    /// Returns the sum of the counters of both tables.
    pub fn stats(&self) -> NatStats {
        self.ipv4.stats() + self.ipv6.stats()
    }

    /// Returns the number of connections in each state, in the order of [`ConnectionState::ALL`].
    ///
    /// # Cost
    /// Proportional to all places that were ever used: suitable for metrics, not for the packet
    /// path.
    pub fn states(&self) -> [u64; ConnectionState::ALL.len()] {
        let mut counts = [0; ConnectionState::ALL.len()];
        self.ipv4.count_states(&mut counts);
        self.ipv6.count_states(&mut counts);
        counts
    }
}

impl<A> ConnectionMemory<'_, A> {
    /// Memory without any place: no connection of this family can be made.
    pub fn none() -> Self {
        Self {
            connections: Mem::empty(),
            index: Mem::empty(),
            ages: Mem::empty(),
        }
    }
}

impl fmt::Debug for NatTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatTable")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Yields the options of a TCP header: the kind and the offset of each. Stops at a malformed
/// option.
pub(crate) fn options(bytes: &[u8]) -> impl Iterator<Item = (u8, usize)> + '_ {
    let mut at = 0;
    core::iter::from_fn(move || {
        while bytes.get(at) == Some(&1) {
            at += 1; // padding
        }
        let kind = *bytes.get(at).filter(|&&kind| kind != 0)?;
        let len = usize::from(*bytes.get(at + 1)?);
        if len < 2 || at + len > bytes.len() {
            return None;
        }
        at += len;
        Some((kind, at - len))
    })
}
