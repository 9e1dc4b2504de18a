//! Hosts with clients and backends of several networks, each with private VIPs, and the fabric between them.

use std::net::IpAddr;

use crate::common::meter::metered;
use etherparse::PacketBuilder;
use slb_core::hash::Distribution;
use slb_core::health::Condition;
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Answers, Backend, BackendState, Echo, Frontend, InboundNat, NatTarget, Network, NetworkVm,
    Outbound, Pool, Prefix, Protocol, Rule, Spec, Terms, Underlay,
};
use slb_core::wire::ethernet::{Ethernet, MacAddress};
use slb_core::wire::ipv4::Ipv4;
use slb_core::wire::vxlan::{Vni, Vxlan};
use slb_core::{DropReason, Host, Instant, Key, PortId, Verdict};

pub const FABRIC: PortId = PortId(0);
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xee];
/// Ports of the VIPs.
pub const HTTP: u16 = 80;
pub const DNS: u16 = 53;
/// The port that leads to the first backend only.
pub const SSH: u16 = 2222;
/// The port that backends serve for [`HTTP`].
pub const SERVED: u16 = 8080;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The VIP of each network, by family.
pub fn vip(is_ipv6: bool) -> IpAddr {
    ip(if is_ipv6 { "fd00:1::100" } else { "10.1.0.100" })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vm {
    pub tenant: usize,
    /// The last part of its addresses.
    pub number: u8,
    pub host: usize,
    /// `None`: a client.
    pub weight: Option<u32>,
}

impl Vm {
    pub fn address(&self, is_ipv6: bool) -> IpAddr {
        match is_ipv6 {
            false => ip(&format!("10.1.0.{}", self.number)),
            true => ip(&format!("fd00:1::{:x}", self.number)),
        }
    }

    pub fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 1, 0, self.number]
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub vnis: Vec<u32>,
    /// True for each network that has the VIPs.
    pub has_vip: Vec<bool>,
    pub vms: Vec<Vm>,
    pub hosts: usize,
    pub distribution: Distribution,
    pub terms: Terms,
    pub echo: Echo,
    /// Private frontends, or with the same rules public ones.
    pub is_private: bool,
    pub ipv6_underlay: bool,
    /// The place of a backend that is unhealthy.
    pub unhealthy: Option<usize>,
    pub mtu: u16,
}

pub type TestHost = Host<'static, Box<Snapshot<'static>>>;

impl Plan {
    /// Two networks with the same addresses: a client and a backend at the first host, and a backend at
    /// each of two others.
    pub fn two_tenants() -> Self {
        let vms = (0..2).flat_map(|tenant| {
            [
                (11, 0, None),
                (21, 0, Some(1)),
                (22, 1, Some(1)),
                (23, 2, Some(1)),
            ]
            .map(|(number, host, weight)| Vm {
                tenant,
                number,
                host,
                weight,
            })
        });
        Self {
            vnis: vec![5001, 5002],
            has_vip: vec![true, true],
            vms: vms.collect(),
            hosts: 3,
            distribution: Distribution::FiveTuple,
            terms: Terms::default(),
            echo: Echo::Answer,
            is_private: true,
            ipv6_underlay: false,
            unhealthy: None,
            mtu: 1600,
        }
    }

    /// Leaves one backend of the first network a weight: the vm with the index `only`.
    pub fn with_only(mut self, only: usize) -> Self {
        for backend in [1, 2, 3] {
            self.vms[backend].weight = Some(u32::from(backend == only));
        }
        self
    }

    pub fn host_address(&self, host: usize) -> IpAddr {
        match self.ipv6_underlay {
            false => ip(&format!("172.16.0.{}", 101 + host)),
            true => ip(&format!("fd00:16::{}", 101 + host)),
        }
    }

    pub fn port_of(&self, vm: usize) -> PortId {
        PortId(vm as u16 + 1)
    }

    pub fn vm_at(&self, host: usize, port: PortId) -> Option<usize> {
        let vm = usize::from(port.0).checked_sub(1)?;
        (self.vms.get(vm)?.host == host).then_some(vm)
    }

    /// The spec of a node: a host, or with another number a mux.
    pub fn with_spec<T>(&self, own: usize, f: impl FnOnce(&Spec<'_>) -> T) -> T {
        let families = [false, true];
        let tenants = 0..self.vnis.len();
        let names: Vec<String> = tenants.clone().map(|n| format!("tenant{n}")).collect();
        let vm_names: Vec<String> = self
            .vms
            .iter()
            .map(|vm| format!("vm{}", vm.number))
            .collect();
        let spaces = ["10.1.0.0/16", "fd00:1::/32"].map(|text| {
            let (address, len) = text.split_once('/').expect("a prefix");
            Prefix {
                address: ip(address),
                len: len.parse().expect("a length"),
            }
        });
        let mut frontends = Vec::new();
        let mut of_tenants = Vec::new();
        for _ in tenants.clone() {
            of_tenants.push(Vec::new());
        }
        let mut backends: Vec<Vec<Backend<'_>>> = Vec::new();
        let mut addresses: Vec<[IpAddr; 2]> = Vec::new();
        for vm in &self.vms {
            addresses.push(families.map(|is_ipv6| vm.address(is_ipv6)));
        }
        for tenant in tenants.clone() {
            for is_ipv6 in families {
                let mut of = Vec::new();
                for (index, vm) in self.vms.iter().enumerate() {
                    let Some(weight) = vm.weight.filter(|_| vm.tenant == tenant) else {
                        continue;
                    };
                    let condition = match self.unhealthy == Some(index) {
                        true => Condition::Unhealthy,
                        false => Condition::Healthy,
                    };
                    of.push(Backend {
                        name: &vm_names[index],
                        address: vm.address(is_ipv6),
                        host: self.host_address(vm.host),
                        mac: Some(MacAddress(vm.mac())),
                        port: (vm.host == own).then_some(self.port_of(index)),
                        weight,
                        condition,
                        state: BackendState::Up,
                        ..Backend::default()
                    });
                }
                backends.push(of);
                if self.has_vip[tenant] {
                    of_tenants[tenant].push(frontends.len());
                    frontends.push((tenant, is_ipv6));
                }
            }
        }
        let frontend_names: Vec<String> = frontends
            .iter()
            .map(|(tenant, is_ipv6)| format!("web{tenant}{is_ipv6}"))
            .collect();
        let rule_names: Vec<[String; 3]> = frontend_names
            .iter()
            .map(|name| ["http", "dns", "ssh"].map(|rule| format!("{rule}-{name}")))
            .collect();
        let pool_names: Vec<String> = tenants
            .clone()
            .flat_map(|tenant| families.map(|is_ipv6| format!("pool{tenant}{is_ipv6}")))
            .collect();
        let networks: Vec<_> = tenants
            .clone()
            .map(|tenant| Network {
                name: &names[tenant],
                vni: Vni::new(self.vnis[tenant]).expect("a VNI"),
                prefixes: &spaces,
                frontends: if self.is_private {
                    &of_tenants[tenant]
                } else {
                    &[]
                },
                ..Network::default()
            })
            .collect();
        let vms: Vec<_> = self
            .vms
            .iter()
            .enumerate()
            .filter(|(_, vm)| vm.weight.is_none())
            .map(|(index, vm)| NetworkVm {
                name: &vm_names[index],
                network: vm.tenant,
                addresses: &addresses[index],
                host: self.host_address(vm.host),
                mac: Some(MacAddress(vm.mac())),
                port: (vm.host == own).then_some(self.port_of(index)),
                ..NetworkVm::default()
            })
            .collect();
        let pools: Vec<_> = backends
            .iter()
            .enumerate()
            .map(|(index, backends)| Pool {
                name: &pool_names[index],
                vni: networks[index / 2].vni,
                table_size: 997,
                backends,
                ..Pool::default()
            })
            .collect();
        let listed: Vec<_> = frontends
            .iter()
            .zip(&frontend_names)
            .map(|((_, is_ipv6), name)| Frontend {
                name,
                address: vip(*is_ipv6),
                icmp_echo: self.echo,
            })
            .collect();
        let pool_of = |frontend: usize| {
            let (tenant, is_ipv6) = frontends[frontend];
            2 * tenant + usize::from(is_ipv6)
        };
        let mut rules = Vec::new();
        let mut nat = Vec::new();
        for frontend in 0..frontends.len() {
            let [http, dns, ssh] = &rule_names[frontend];
            let ports = [
                (http, Protocol::Tcp, HTTP, SERVED),
                (dns, Protocol::Udp, DNS, 0),
            ];
            for (name, protocol, port, served) in ports {
                rules.push(Rule {
                    name,
                    frontend,
                    pool: pool_of(frontend),
                    protocol,
                    frontend_port: port,
                    backend_port: served,
                    distribution: self.distribution,
                    terms: self.terms,
                    ..Rule::default()
                });
            }
            if !backends[pool_of(frontend)].is_empty() {
                nat.push(InboundNat {
                    name: ssh,
                    frontend,
                    pool: pool_of(frontend),
                    target: NatTarget::Backend {
                        port: SSH,
                        backend: 0,
                    },
                    backend_port: 22,
                    ..InboundNat::default()
                });
            }
        }
        let (mut ipv4, mut ipv6) = (None, None);
        match self.host_address(own) {
            IpAddr::V4(address) => ipv4 = Some(address),
            IpAddr::V6(address) => ipv6 = Some(address),
        }
        f(&Spec {
            underlay: Underlay {
                ipv4,
                ipv6,
                mac: MacAddress([2, 0, 0, 0, 0, 101 + own as u8]),
                mtu: self.mtu,
                port: FABRIC,
                ..Underlay::default()
            },
            frontends: &listed,
            rules: &rules,
            inbound_nat: &nat,
            pools: &pools,
            networks: &networks,
            vms: &vms,
            ..Spec::default()
        })
    }

    pub fn host(&self, own: usize) -> TestHost {
        let snapshot = self.with_spec(own, |spec| Snapshot::new(spec, None).expect("a good spec"));
        Host::with_capacity(Box::new(snapshot), 1024, Key::new([1, 2])).expect("its role")
    }

    pub fn net(&self) -> Net {
        Net {
            hosts: (0..self.hosts).map(|own| self.host(own)).collect(),
            plan: self.clone(),
            now: Instant::from_secs(1),
            crossed: 0,
        }
    }
}

/// The end of a packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The vm that got it, and the frame.
    Vm(usize, Vec<u8>),
    /// The reply that the sender got.
    Reply(Vec<u8>),
    Dropped(DropReason),
    /// The kernel gets the packet.
    Passed,
}

impl End {
    pub fn vm(&self) -> usize {
        match self {
            Self::Vm(vm, _) => *vm,
            other => panic!("at no vm: {other:?}"),
        }
    }

    pub fn frame(&self) -> &[u8] {
        match self {
            Self::Vm(_, frame) | Self::Reply(frame) => frame,
            other => panic!("no frame: {other:?}"),
        }
    }
}

pub struct Net {
    pub plan: Plan,
    pub hosts: Vec<TestHost>,
    pub now: Instant,
    /// Times that packets crossed the fabric.
    pub crossed: usize,
}

impl Net {
    /// Puts another configuration in place at one host.
    pub fn install(&mut self, host: usize, plan: &Plan) {
        let next = plan.with_spec(host, |spec| {
            Snapshot::new(spec, Some(self.hosts[host].snapshot())).expect("a good spec")
        });
        self.hosts[host]
            .install(Box::new(next))
            .expect("it follows");
    }

    pub fn install_everywhere(&mut self, plan: &Plan) {
        for host in 0..self.hosts.len() {
            self.install(host, plan);
        }
        self.plan = plan.clone();
    }

    pub fn options(&mut self, options: NatOptions) {
        for host in &mut self.hosts {
            host.set_options(options);
        }
    }

    /// Sends a vm's frame, and follows it from host to host.
    pub fn send(&mut self, vm: usize, frame: &[u8]) -> End {
        let (host, port) = (self.plan.vms[vm].host, self.plan.port_of(vm));
        self.enter(host, port, frame)
    }

    /// Follows a frame that comes in by a host's port.
    pub fn enter(&mut self, mut host: usize, mut port: PortId, frame: &[u8]) -> End {
        let mut frame = frame.to_vec();
        for _ in 0..10 {
            let (verdict, got) = metered(&mut self.hosts[host], self.now, port, &frame);
            match verdict {
                Verdict::Forward(FABRIC) => {
                    (host, frame) = (self.cross(&got), got);
                    port = FABRIC;
                }
                Verdict::Forward(port) => {
                    let vm = self.plan.vm_at(host, port).expect("a vm of the host");
                    return End::Vm(vm, got);
                }
                Verdict::Reply => return End::Reply(got),
                Verdict::Drop(reason) => return End::Dropped(reason),
                Verdict::Pass => return End::Passed,
                Verdict::Flood => panic!("a host floods nothing"),
            }
        }
        panic!("a loop");
    }

    /// The host that a frame on the fabric is for: only VXLAN between hosts is there.
    pub fn cross(&mut self, frame: &[u8]) -> usize {
        self.crossed += 1;
        let (to, vni) = outer(frame).expect("VXLAN");
        assert!(self.plan.vnis.contains(&vni), "VNI {vni}");
        let mut hosts = 0..self.plan.hosts;
        hosts
            .find(|&host| self.plan.host_address(host) == to)
            .expect("a host")
    }
}

/// The destination and the VNI of a VXLAN frame.
pub fn outer(frame: &[u8]) -> Option<(IpAddr, u32)> {
    let link = Ethernet::parse(frame).ok()?;
    let (to, datagram) = if link.ether_type().0 == 0x0800 {
        let ip = Ipv4::parse(link.payload()).ok()?;
        (IpAddr::from(ip.destination()), ip.payload())
    } else {
        let ip = slb_core::wire::ipv6::Ipv6::parse(link.payload()).ok()?;
        (IpAddr::from(ip.destination()), ip.payload())
    };
    let vxlan = Vxlan::parse(datagram.get(8..)?).ok()?;
    Some((to, vxlan.vni().get()))
}

/// A packet's ends and what it says, in a frame between two stations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub from: (IpAddr, u16),
    pub to: (IpAddr, u16),
    pub sequence: u32,
    pub acknowledged: u32,
    /// `S`, `A`, `F`, `R` for TCP; empty: UDP.
    pub flags: String,
    pub payload: Vec<u8>,
}

impl Segment {
    pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: &str) -> Self {
        Self {
            from,
            to,
            sequence: 1000,
            acknowledged: 0,
            flags: flags.to_owned(),
            payload: Vec::new(),
        }
    }

    pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Self {
        Self {
            payload: payload.to_vec(),
            ..Self::tcp(from, to, "")
        }
    }

    pub fn at(mut self, sequence: u32, acknowledged: u32) -> Self {
        (self.sequence, self.acknowledged) = (sequence, acknowledged);
        self
    }

    pub fn with(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub fn frame(&self, mac: [u8; 6], to_mac: [u8; 6]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(mac, to_mac);
        let ip = match (self.from.0, self.to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("two families"),
        };
        let mut frame = Vec::new();
        if self.flags.is_empty() {
            let packet = ip.udp(self.from.1, self.to.1);
            packet.write(&mut frame, &self.payload).expect("written");
            return frame;
        }
        let mut packet = ip.tcp(self.from.1, self.to.1, self.sequence, 65_535);
        for flag in self.flags.chars() {
            packet = match flag {
                'S' => packet.syn(),
                'A' => packet.ack(self.acknowledged),
                'F' => packet.fin(),
                _ => packet.rst(),
            };
        }
        packet.write(&mut frame, &self.payload).expect("written");
        frame
    }

    /// Reads a frame, whose checksums have to be right.
    pub fn of(frame: &[u8]) -> Self {
        use etherparse::{NetSlice, SlicedPacket, TransportSlice};
        let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
        let (from, to): (IpAddr, IpAddr) = match packet.net.expect("IP") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                (header.source.into(), header.destination.into())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                (header.source.into(), header.destination.into())
            }
            other => panic!("{other:?}"),
        };
        let sum = |header: &dyn Fn(IpAddr, IpAddr) -> u16, found: u16| {
            assert_eq!(header(from, to), found, "the checksum");
        };
        match packet.transport.expect("a header") {
            TransportSlice::Tcp(tcp) => {
                let (header, payload) = (tcp.to_header(), tcp.payload());
                let right = |from, to| match (from, to) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => header
                        .calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
                        .expect("short"),
                    (IpAddr::V6(from), IpAddr::V6(to)) => header
                        .calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
                        .expect("short"),
                    _ => unreachable!(),
                };
                sum(&right, header.checksum);
                let flags = [
                    ('S', header.syn),
                    ('A', header.ack),
                    ('F', header.fin),
                    ('R', header.rst),
                ];
                let flags = flags.into_iter().filter(|(_, is_set)| *is_set);
                Self {
                    from: (from, header.source_port),
                    to: (to, header.destination_port),
                    sequence: header.sequence_number,
                    acknowledged: header.acknowledgment_number,
                    flags: flags.map(|(flag, _)| flag).collect(),
                    payload: payload.to_vec(),
                }
            }
            TransportSlice::Udp(udp) => {
                let (header, payload) = (udp.to_header(), udp.payload());
                let right = |from, to| match (from, to) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => header
                        .calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
                        .expect("short"),
                    (IpAddr::V6(from), IpAddr::V6(to)) => header
                        .calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
                        .expect("short"),
                    _ => unreachable!(),
                };
                sum(&right, header.checksum);
                Self::udp(
                    (from, header.source_port),
                    (to, header.destination_port),
                    payload,
                )
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Returns the terms of a rule that answers through a mux, which a private frontend cannot have.
pub fn through_mux() -> Terms {
    Terms {
        answers: Answers::ThroughMux,
        ..Terms::default()
    }
}

pub fn outbound(frontends: &[usize]) -> Outbound<'_> {
    Outbound {
        name: "out",
        frontends,
        pool: 0,
        ..Outbound::default()
    }
}
