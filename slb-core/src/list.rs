//! Listing of the entries of a running role's table, for `slb flows` and `slb connections`.
//!
//! [`Mux::list`](crate::Mux::list), [`Host::list`](crate::Host::list) and
//! [`Proxy::list`](crate::Proxy::list) visit a bounded number of places per call and change
//! nothing, so a live loop can walk its table between two bursts. A [`Filter`] is applied to the
//! words of the table before they are converted into an [`Entry`], so a place that does not match
//! costs a few comparisons.
//!
//! An entry names its backend and its rule by [identity](crate::state#identities), which is stable
//! across configurations; [`rule_names`] and [`backend_identity`] map names to identities.

use core::net::IpAddr;
use core::time::Duration;

use crate::flow::{Addresses, FlowState};
use crate::nat::{ConnectionState, Direction};
use crate::packet::Tuple;
use crate::snapshot;
use crate::spec::{Backend, Pool, Spec};
use crate::state::Cursor;
use crate::verdict::PortId;

/// The state of a flow or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryState {
    /// The state of a mux's flow.
    Flow(FlowState),
    /// The state of a host agent's or a proxy's connection.
    Connection(ConnectionState),
}

impl EntryState {
    /// Name of the state in lists.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flow(FlowState::HalfOpen) => "half_open",
            Self::Flow(FlowState::Established) => "established",
            Self::Flow(FlowState::Closing) => "closing",
            Self::Connection(state) => state.name(),
        }
    }
}

/// A flow that a mux has pinned, or a connection that a host agent or a proxy translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The tuple of packets from the outside: of a client's for a VIP, or of answers to a vm that called out.
    pub outside: Tuple,
    /// The tuple of the server's packets before they are translated; `None` at a mux, which translates nothing.
    pub inside: Option<Tuple>,
    /// Direction of the first packet.
    pub opener: Direction,
    /// The state of the entry.
    pub state: EntryState,
    /// Identity of the backend; `None` if the backend is gone.
    pub backend: Option<u64>,
    /// Identity of the rule; `None` if there is none, or if it is gone.
    pub rule: Option<u64>,
    /// The vm's port at a host agent, the client's at a proxy.
    pub port: Option<PortId>,
    /// Idle timeout of the entry; `None` if a mux does not know it: the rule is gone, or the flow
    /// is closing and may have ended by a FIN or by a RST.
    pub timeout: Option<Duration>,
    /// The remaining time until the entry expires.
    pub left: Duration,
}

impl Entry {
    /// Returns the time since the last packet; `None` if the timeout is not known.
    ///
    /// # Units
    /// A mux counts in steps of 1.07 s, the other roles in steps of 67 ms.
    pub fn idle(&self) -> Option<Duration> {
        self.timeout
            .map(|timeout| timeout.saturating_sub(self.left))
    }
}

/// A range of addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// One of the addresses.
    pub address: IpAddr,
    /// Length of the prefix in bits; a longer one counts as the whole address.
    pub bits: u8,
}

impl Subnet {
    /// Returns the subnet of a single address.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, bits: 128 }
    }

    /// Returns true if the subnet contains an address.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, self.mask(), address) {
            (IpAddr::V4(own), IpAddr::V4(mask), IpAddr::V4(other)) => own & mask == other & mask,
            (IpAddr::V6(own), IpAddr::V6(mask), IpAddr::V6(other)) => own & mask == other & mask,
            _ => false,
        }
    }

    /// The mask, as an address of the same family.
    fn mask(self) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => {
                let bits = u32::from(self.bits).min(32);
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                IpAddr::V4(mask.into())
            }
            IpAddr::V6(_) => {
                let bits = u32::from(self.bits).min(128);
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                IpAddr::V6(mask.into())
            }
        }
    }
}

/// Addresses and ports to match with one side of an entry. `None` matches anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Source addresses.
    pub source: Option<Subnet>,
    /// Destination addresses.
    pub destination: Option<Subnet>,
    /// Source port.
    pub source_port: Option<u16>,
    /// Destination port.
    pub destination_port: Option<u16>,
}

/// Conditions on entries. `None` matches anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter<'a> {
    /// Selects by the ends in [`Entry::outside`].
    pub outside: Ends,
    /// Selects by the ends in [`Entry::inside`], which flows of a mux do not have.
    pub inside: Ends,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// The state to match.
    pub state: Option<EntryState>,
    /// Direction of the first packet.
    pub opener: Option<Direction>,
    /// Identities of backends, one of which has to match.
    pub backends: Option<&'a [u64]>,
    /// Identities of rules, one of which has to match.
    pub rules: Option<&'a [u64]>,
    /// Port of the vm, or of a proxy's client.
    pub port: Option<PortId>,
}

impl Filter<'_> {
    /// Returns true if an entry matches the filter's conditions other than tuples.
    pub(crate) fn takes(&self, entry: &Entry) -> bool {
        let is_one = |wanted: Option<&[u64]>, own: Option<u64>| {
            wanted.is_none_or(|wanted| own.is_some_and(|own| wanted.contains(&own)))
        };
        self.protocol
            .is_none_or(|wanted| wanted == entry.outside.protocol)
            && self.state.is_none_or(|wanted| wanted == entry.state)
            && self.opener.is_none_or(|wanted| wanted == entry.opener)
            && self.port.is_none_or(|wanted| Some(wanted) == entry.port)
            && is_one(self.backends, entry.backend)
            && is_one(self.rules, entry.rule)
    }
}

/// The result of one call of `list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The number of visited places.
    pub places: usize,
    /// The position of the next call; `None` if all entries were visited.
    pub next: Option<Cursor>,
}

/// Conditions on tuples, in the form of a table's words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Like<A> {
    mask: A,
    addresses: A,
    port_mask: u32,
    ports: u32,
}

impl<A: Addresses> Like<A> {
    /// Converts conditions; returns `None` if an address is of the other family, so that no entry
    /// of this table can match.
    pub(crate) fn of(ends: &Ends) -> Option<Self> {
        let words = |end: Option<Subnet>| {
            let (source, _) = A::ZERO.split();
            let Some(subnet) = end else {
                return Some((source, source));
            };
            Some((A::from_ip(subnet.mask())?, A::from_ip(subnet.address)?))
        };
        let (source, destination) = (words(ends.source)?, words(ends.destination)?);
        let mask = A::join(source.0, destination.0);
        let port = |port: Option<u16>| {
            let mask = if port.is_some() { u16::MAX } else { 0 };
            (mask.to_be_bytes(), port.unwrap_or(0).to_be_bytes())
        };
        let ((from_mask, from), (to_mask, to)) =
            (port(ends.source_port), port(ends.destination_port));
        let joined = |[a, b]: [u8; 2], [c, d]: [u8; 2]| u32::from_le_bytes([a, b, c, d]);
        Some(Self {
            mask,
            addresses: A::join(source.1, destination.1).and(mask),
            port_mask: joined(from_mask, to_mask),
            ports: joined(from, to),
        })
    }

    #[inline]
    pub(crate) fn is_like(&self, addresses: A, ports: u32) -> bool {
        (addresses.and(self.mask) == self.addresses) & (ports & self.port_mask == self.ports)
    }
}

/// The identity of a backend.
pub fn backend_identity(pool: &Pool<'_>, backend: &Backend<'_>) -> u64 {
    snapshot::backend_identity(pool, backend)
}

/// The name of a rule, by its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleName<'s> {
    /// A balancing rule, by its name.
    Rule(&'s str),
    /// A port of an inbound NAT rule, by the rule's name.
    InboundNat(&'s str),
    /// The SNAT ports of a frontend, by the frontend's name.
    Outbound(&'s str),
}

impl<'s> RuleName<'s> {
    /// Returns the name alone.
    pub const fn name(self) -> &'s str {
        match self {
            Self::Rule(name) | Self::InboundNat(name) | Self::Outbound(name) => name,
        }
    }
}

/// Yields the identity and the name of each rule of a spec, in the order of their indexes.
///
/// # Cost
/// A hash for each rule and each port of inbound NAT.
pub fn rule_names<'s>(spec: &'s Spec<'s>) -> impl Iterator<Item = (u64, RuleName<'s>)> {
    snapshot::rule_names(spec)
}
