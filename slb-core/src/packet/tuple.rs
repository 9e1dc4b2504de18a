//! The five-tuple of a flow.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::hash::{Distribution, TupleHasher, ports_and_protocol};
use crate::wire::protocol;

/// The five-tuple of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The sender's port; zero if the protocol has none.
    pub source_port: u16,
    /// The receiver's port; zero if the protocol has none.
    pub destination_port: u16,
    /// The IP protocol's number.
    pub protocol: u8,
}

impl Tuple {
    /// Returns the hash by which muxes choose a slot: the hash of the parts of the tuple that the
    /// distribution mode includes. Ports count as zero for a protocol without ports. `None` if the
    /// two addresses are of different families.
    ///
    /// [`maglev::Table`](crate::maglev::Table) has an example.
    pub fn hash(&self, hasher: &impl TupleHasher, distribution: Distribution) -> Option<u64> {
        let ports = u32::from(self.source_port.swap_bytes())
            | u32::from(self.destination_port.swap_bytes()) << 16;
        let last = ports_and_protocol(ports, self.protocol) & distribution.mask();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let word = |address: Ipv4Addr| u64::from(u32::from_le_bytes(address.octets()));
                Some(hasher.ipv4(&[word(source) | word(destination) << 32, last]))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let [a, b] = words(source);
                let [c, d] = words(destination);
                Some(hasher.ipv6(&[a, b, c, d, last]))
            }
            _ => None,
        }
    }
}

pub(super) fn words(address: Ipv6Addr) -> [u64; 2] {
    let bits = u128::from_le_bytes(address.octets());
    [bits as u64, (bits >> 64) as u64]
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            protocol::TCP => "tcp",
            protocol::UDP => "udp",
            protocol::ICMP => "icmp",
            protocol::ICMPV6 => "icmpv6",
            other => {
                return write!(f, "protocol {other} {} > {}", self.source, self.destination);
            }
        };
        if matches!(self.protocol, protocol::TCP | protocol::UDP) {
            let source = SocketAddr::new(self.source, self.source_port);
            let destination = SocketAddr::new(self.destination, self.destination_port);
            write!(f, "{name} {source} > {destination}")
        } else {
            write!(f, "{name} {} > {}", self.source, self.destination)
        }
    }
}
