//! `[node]`: this machine and its role.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::PortId;
use slb_core::hash::Hasher;
use slb_core::spec::{self, Prefix, ProbeSource, UdpChecksum};
use slb_core::wire::ethernet::MacAddress;

use crate::document::Span;

/// Role of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Encapsulates packets for VIPs to the hosts of their backends.
    Mux,
    /// Translates between VIPs and the vms that run on this machine.
    Host,
    /// Translates between clients on one side and backends on the other.
    Proxy,
}

impl Role {
    /// Name of the role in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mux => "mux",
            Self::Host => "host",
            Self::Proxy => "proxy",
        }
    }
}

/// `[node]`: this machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// Role of this node.
    pub role: Role,
    /// IPv4 address of the node on the fabric.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address of the node on the fabric.
    pub ipv6: Option<Ipv6Addr>,
    /// MAC address of the node, if configured; else the interface's, if there is one.
    pub mac: Option<MacAddress>,
    /// The MAC address of the fabric's router, if configured; else looked up in the kernel's
    /// neighbour table, if there is one.
    pub next_hop: Option<MacAddress>,
    /// The longest IP packet on the fabric, if configured; else the interface's MTU, if there is
    /// one.
    pub mtu: Option<u16>,
    /// TTL of the outer header.
    pub hop_limit: u8,
    /// The outer UDP checksum.
    pub udp_checksum: UdpChecksum,
    /// The hash of flows.
    pub hasher: Hasher,
    /// The seed of hashes and of Maglev's permutations.
    pub hash_seed: u64,
    /// Capacity of the flow table for each address family; zero for a stateless mux.
    pub flows: usize,
    /// Echo replies per second.
    pub answers_per_second: u32,
    /// "Packet too big" and "fragmentation needed" messages per second.
    pub too_big_per_second: u32,
    /// Other ICMP errors per second.
    pub errors_per_second: u32,
    /// Connections of a host agent or a proxy, of each family.
    pub connections: usize,
    /// Later fragments that can wait for their first one; zero for none.
    pub waiting_fragments: usize,
    /// Flows without connections that a host agent remembers for vms with access lists; zero: none.
    pub direct_flows: usize,
    /// New flows per second of one source, on average; zero for no limit.
    pub flows_per_source: u32,
    /// Burst of new flows of one source.
    pub flows_per_source_at_once: u32,
    /// RSTs per second.
    pub resets_per_second: u32,
    /// Packets per second that a host agent passes on to other hosts.
    pub passes_per_second: u32,
    /// Connections per second that a host agent or a proxy takes up in the middle, after a start
    /// without state.
    pub take_ups_per_second: u32,
    /// Source address of a host agent's ICMP errors over IPv4, if not its underlay address.
    pub icmp_source_ipv4: Option<Ipv4Addr>,
    /// Source address of a host agent's ICMP errors over IPv6, if not its underlay address.
    pub icmp_source_ipv6: Option<Ipv6Addr>,
    /// True if a host agent lowers the maximum segment size in SYNs to what fits VXLAN.
    pub clamp_mss: bool,
    /// The muxes' addresses on the fabric.
    pub muxes: Vec<IpAddr>,
    /// Prefixes that vms of a host agent reach and answer with their own addresses.
    pub inside: Vec<Prefix>,
    /// True if a mux announces a VIP only while one of its backends takes new flows.
    pub withdraw_when_down: bool,
    /// The source addresses of probes, if configured; the default is the kernel's choice, or at a
    /// host agent [`PROBE_SOURCE_IPV4`] and [`PROBE_SOURCE_IPV6`].
    pub probe_sources: Vec<IpAddr>,
    /// Zone of the node.
    pub zone: Option<String>,
    /// True if the node probes backends at all.
    pub probing: bool,
    pub(crate) span: Span,
    /// Fields of the file that have no effect in the role.
    pub(crate) unused: Vec<&'static str>,
}

/// Default source of a host agent's probes of its vms over IPv4: Azure's address, from which vms in
/// Azure accept packets.
pub const PROBE_SOURCE_IPV4: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Default source of probes over IPv6: a unique local address (RFC 4193) that ends in the IPv4
/// address. Answers to a link-local address would not come back by XDP, which leaves them to the
/// kernel.
pub const PROBE_SOURCE_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6c62, 0, 0, 0, 0, 0xa83f, 0x8110);

impl Node {
    /// Returns the source of a host agent's probes; none for the other roles, and if it does not
    /// probe.
    pub fn probe_source(&self) -> ProbeSource {
        if self.role != Role::Host || !self.probing {
            return ProbeSource::default();
        }
        let mut source = ProbeSource {
            ipv4: Some(PROBE_SOURCE_IPV4),
            ipv6: Some(PROBE_SOURCE_IPV6),
        };
        for address in &self.probe_sources {
            match address {
                IpAddr::V4(address) => source.ipv4 = Some(*address),
                IpAddr::V6(address) => source.ipv6 = Some(*address),
            }
        }
        source
    }

    /// Returns true if an address is this node's on the fabric.
    pub fn is(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4 == Some(address),
            IpAddr::V6(address) => self.ipv6 == Some(address),
        }
    }

    /// Changes a host agent's node into one of its muxes: the node gets the first address of each
    /// family in [`muxes`](Self::muxes), since a host accepts no VXLAN from its own address. If
    /// there are no muxes, any sender is accepted, and the address is one for documentation (RFC
    /// 5737, RFC 3849).
    pub fn become_mux(&mut self) {
        let named = |is_ipv6| self.muxes.iter().find(move |mux| mux.is_ipv6() == is_ipv6);
        let ipv4 = match named(false) {
            Some(&IpAddr::V4(mux)) => mux,
            _ => Ipv4Addr::new(192, 0, 2, 1),
        };
        let ipv6 = match named(true) {
            Some(&IpAddr::V6(mux)) => mux,
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        };
        self.role = Role::Mux;
        self.ipv4 = self.ipv4.and(Some(ipv4));
        self.ipv6 = self.ipv6.and(Some(ipv6));
    }

    pub(crate) fn underlay(&self) -> spec::Underlay {
        let usual = spec::Underlay::default();
        spec::Underlay {
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            mac: self.mac.unwrap_or(usual.mac),
            next_hop: self.next_hop.unwrap_or(usual.next_hop),
            mtu: self.mtu.unwrap_or(usual.mtu),
            hop_limit: self.hop_limit,
            udp_checksum: self.udp_checksum,
            port: PortId(0),
        }
    }
}
