//! The parts of a configuration, as C structs.

use core::ffi::c_char;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use slb_core::health::Condition;
use slb_core::spec::{Answers, BackendState, Protocol, Terms};
use slb_core::wire::ethernet::MacAddress;

use crate::builder::Fault;

/// An IP address.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_address {
    /// 4, 6, or 0 for none.
    pub family: u8,
    /// The address in network byte order; IPv4 uses the first four bytes.
    pub bytes: [u8; 16],
}

impl slb_address {
    pub(crate) fn optional(&self, field: &'static str) -> Result<Option<IpAddr>, Fault> {
        let [a, b, c, d, ..] = self.bytes;
        match self.family {
            0 => Ok(None),
            4 => Ok(Some(Ipv4Addr::new(a, b, c, d).into())),
            6 => Ok(Some(Ipv6Addr::from(self.bytes).into())),
            other => Err(Fault::expected(
                field,
                "an address of family 4, 6 or 0",
                other,
            )),
        }
    }

    pub(crate) fn required(&self, field: &'static str) -> Result<IpAddr, Fault> {
        let missing = Fault::expected(field, "an address of family 4 or 6", self.family);
        self.optional(field)?.ok_or(missing)
    }

    pub(crate) fn of(address: IpAddr) -> Self {
        let mut bytes = [0; 16];
        match address {
            IpAddr::V4(address) => {
                bytes[..4].copy_from_slice(&address.octets());
                Self { family: 4, bytes }
            }
            IpAddr::V6(address) => Self {
                family: 6,
                bytes: address.octets(),
            },
        }
    }
}

/// A MAC address, or none.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_mac {
    /// Not 0: the address is set.
    pub given: u8,
    /// The six bytes of the address.
    pub bytes: [u8; 6],
}

impl slb_mac {
    pub(crate) fn optional(&self) -> Option<MacAddress> {
        (self.given != 0).then_some(MacAddress(self.bytes))
    }
}

/// This node's addresses on the fabric, and its settings for encapsulation. With all zeros there
/// are no addresses, and the other fields have their defaults.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_underlay {
    /// Outer source address over IPv4, or none.
    pub ipv4: slb_address,
    /// Outer source address over IPv6, or none.
    pub ipv6: slb_address,
    /// This node's MAC address.
    pub mac: slb_mac,
    /// The MAC address of the fabric's router.
    pub next_hop: slb_mac,
    /// The longest IP packet on the fabric; 0: 1500.
    pub mtu: u16,
    /// The port that encapsulated packets leave by.
    pub port: u16,
    /// TTL of the outer header; 0: 64.
    pub hop_limit: u8,
    /// The outer UDP checksum: 0: zero over IPv4, computed over IPv6; 1: zero; 2: computed.
    pub udp_checksum: u8,
}

/// The protocol of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum slb_protocol {
    /// TCP to one port.
    SLB_TCP = 0,
    /// UDP to one port.
    SLB_UDP = 1,
    /// Echo requests.
    SLB_ICMP = 2,
    /// HA ports: every protocol and port.
    SLB_ALL = 3,
}

/// Administrative state of a backend, set by the operator for all rules. Observed health is separate, so a backend can
/// be draining and unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum slb_state {
    /// The backend gets new flows while it is healthy.
    SLB_UP = 0,
    /// The backend is out of service: it gets no new flows, and connections of rules with `tcp_reset` are
    /// reset.
    SLB_DOWN = 1,
    /// The backend keeps its flows and gets no new ones.
    SLB_DRAINING = 2,
}

pub(crate) fn protocol(number: u8) -> Result<Protocol, Fault> {
    Ok(match number {
        0 => Protocol::Tcp,
        1 => Protocol::Udp,
        2 => Protocol::Icmp,
        3 => Protocol::All,
        other => {
            return Err(Fault::expected(
                "protocol",
                "one of enum slb_protocol",
                other,
            ));
        }
    })
}

pub(crate) fn state(number: u8) -> Result<BackendState, Fault> {
    Ok(match number {
        0 => BackendState::Up,
        1 => BackendState::Down,
        2 => BackendState::Draining,
        other => return Err(Fault::expected("state", "one of enum slb_state", other)),
    })
}

pub(crate) const fn condition(healthy: u8) -> Condition {
    match healthy {
        0 => Condition::Unhealthy,
        _ => Condition::Healthy,
    }
}

/// A VIP.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_frontend {
    /// Name of the frontend, unique among them.
    pub name: *const c_char,
    /// Address of the frontend, the VIP.
    pub address: slb_address,
    /// Echo requests: 0: answered here; 1: to the HA-ports rule's pool; 2: dropped.
    pub icmp_echo: u8,
}

/// A pool of backends.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_pool {
    /// Name of the pool, unique among them.
    pub name: *const c_char,
    /// The VXLAN network of its backends, 0 to 16777215.
    pub vni: u32,
    /// Slots of its Maglev table, a prime; 0: 65537.
    pub table_size: u32,
}

/// A backend server. Zeros are the defaults of all fields except name and addresses.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_backend {
    /// Name of the backend, unique in its pool.
    pub name: *const c_char,
    /// Address of the backend.
    pub address: slb_address,
    /// The underlay address of its host; none for a proxy.
    pub host: slb_address,
    /// MAC address of the backend; none: derived from its address.
    pub mac: slb_mac,
    /// The MAC address of the next hop to its host; none: the underlay's. At a proxy, the destination MAC address of
    /// packets to the backend; none: their link headers stay.
    pub next_hop: slb_mac,
    /// Weight: the backend's share of new flows relative to the others; 0 means 1. To give it none,
    /// set its state.
    pub weight: u32,
    /// Instance number in the pool, which determines its ports; 0 or negative: its index in the
    /// pool.
    pub instance: i32,
    /// The port of this node for the backend's vm; 0 or negative if the vm runs on another host.
    pub port: i32,
    /// The backend's port instead of the rule's; 0: the rule's.
    pub backend_port: u16,
    /// Administrative state, of enum slb_state.
    pub state: u8,
    /// Not 0: the backend was observed to fail, for example by its traffic; this applies to all
    /// rules. Results of probes, which rules refer to, are set with `slb_builder_set_health`.
    pub unhealthy: u8,
}

/// The terms of a rule's connections. All zeros are the defaults.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_terms {
    /// Source address that backends see instead of the client's; none: the client's.
    pub source_nat: slb_address,
    /// Idle timeout of a flow in seconds, 240 to 1800; 0: 240.
    pub idle_timeout: u16,
    /// Not 0: backends see the VIP and the frontend port.
    pub floating_ip: u8,
    /// Not 0: both ends get a RST when a connection expires.
    pub tcp_reset: u8,
    /// Not 0: answers go back through the mux that the client's last packet came through.
    pub through_mux: u8,
    /// Not 0: UDP under a load-balancing rule is QUIC, so that packet headers show if a connection
    /// begins.
    pub quic: u8,
}

/// A load-balancing rule.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_rule {
    /// Name of the rule, unique among them.
    pub name: *const c_char,
    /// Index of the rule's frontend.
    pub frontend: usize,
    /// Index of the rule's pool.
    pub pool: usize,
    /// The port that clients use; 0 with `SLB_ICMP` and `SLB_ALL`.
    pub frontend_port: u16,
    /// The port that backends serve; 0: as `frontend_port`.
    pub backend_port: u16,
    /// A value of enum slb_protocol.
    pub protocol: u8,
    /// The fields that choose a backend: 0: the five-tuple; 1: the source and destination address;
    /// 2: these and the protocol.
    pub distribution: u8,
    /// The choice of a backend, at a proxy: 0: Maglev; 1: the fewest live connections.
    pub scheduler: u8,
    /// Further terms of the rule's connections.
    pub terms: slb_terms,
}

/// Frontend ports that lead to one backend each.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_inbound_nat {
    /// Name of the inbound NAT rule or pool, unique among them.
    pub name: *const c_char,
    /// Index of the rule's frontend.
    pub frontend: usize,
    /// Index of the rule's pool.
    pub pool: usize,
    /// Index of the rule's backend in the pool; negative for a NAT pool, with a port for each
    /// backend.
    pub backend: i32,
    /// The port that clients use; for a NAT pool, the port of instance 0.
    pub first_port: u16,
    /// The last port of a NAT pool.
    pub last_port: u16,
    /// The port that the backend serves.
    pub backend_port: u16,
    /// `SLB_TCP` or `SLB_UDP`.
    pub protocol: u8,
    /// Further terms of the rule's connections.
    pub terms: slb_terms,
}

/// An outbound rule: lets the vms of a pool connect out with the addresses of frontends.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_outbound {
    /// Name of the outbound rule, unique among them.
    pub name: *const c_char,
    /// Indexes of its frontends.
    pub frontends: *const usize,
    /// Number of frontends.
    pub frontend_count: usize,
    /// Index of the rule's pool.
    pub pool: usize,
    /// SNAT ports of each backend, a multiple of 8; 0: an even share.
    pub allocated_outbound_ports: u32,
    /// Idle timeout of a flow in seconds, 240 to 1800; 0: 240.
    pub idle_timeout: u16,
    /// `SLB_TCP`, `SLB_UDP` or `SLB_ALL`.
    pub protocol: u8,
    /// Not 0: both ends get a RST when a connection expires.
    pub tcp_reset: u8,
}

/// A prefix of addresses.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_prefix {
    /// An address of the prefix.
    pub address: slb_address,
    /// The number of bits that all addresses of the prefix share.
    pub length: u8,
}

/// A network of vms. Host agents connect the vms in VXLAN, and answer ARP and neighbour discovery
/// for them. Backends belong to the network with their pool's VNI.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_network {
    /// Name of the network.
    pub name: *const c_char,
    /// Address spaces of the network.
    pub prefixes: *const slb_prefix,
    /// Number of address spaces.
    pub prefix_count: usize,
    /// Addresses of the network's routers, which host agents answer for.
    pub gateways: *const slb_address,
    /// Number of gateways.
    pub gateway_count: usize,
    /// VXLAN network identifier, unique among networks.
    pub vni: u32,
}

/// A vm of a network that is no backend, or further addresses of one that is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_vm {
    /// Name of the vm.
    pub name: *const c_char,
    /// Index of its network.
    pub network: usize,
    /// Addresses of the vm, at least one.
    pub addresses: *const slb_address,
    /// Number of addresses.
    pub address_count: usize,
    /// The underlay address of its host.
    pub host: slb_address,
    /// MAC address of the vm; none: derived from its first address.
    pub mac: slb_mac,
    /// The port of this node for the vm; 0 or negative if the vm runs on another host.
    pub port: i32,
    /// MAC address of the next hop to its host; none: the underlay's.
    pub next_hop: slb_mac,
}

pub(crate) fn idle(seconds: u16) -> Result<Duration, Fault> {
    match seconds {
        0 => Ok(Duration::from_secs(240)),
        240..=1800 => Ok(Duration::from_secs(seconds.into())),
        other => Err(Fault::expected(
            "idle_timeout",
            "0, or 240 to 1800 seconds",
            other,
        )),
    }
}

impl slb_terms {
    pub(crate) fn terms(&self) -> Result<Terms, Fault> {
        Ok(Terms {
            floating_ip: self.floating_ip != 0,
            tcp_reset: self.tcp_reset != 0,
            answers: match self.through_mux {
                0 => Answers::Direct,
                _ => Answers::ThroughMux,
            },
            source_nat: self.source_nat.optional("source_nat")?,
            quic: self.quic != 0,
        })
    }
}
