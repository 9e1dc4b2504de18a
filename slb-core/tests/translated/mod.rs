//! A host agent or a proxy between clients and servers, over either family: packets for it, and what
//! becomes of them.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::health::Condition;
use slb_core::list::{Entry, Filter};
use slb_core::mem::Boxes;
use slb_core::nat::{NatOptions, NatStats};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendHealth, BackendState, Echo, Frontend, FrontendPort, Outbound, Pool, PoolHealth,
    Protocol, ProxyPorts, Rule, Scheduler, Spec, Terms, Underlay, derived_mac,
};
use slb_core::state::{Age, Cursor, Imported, RECORD_MOST, StateError};
use slb_core::stats::RuleCounters;
use slb_core::steer::{Share, Steering};
use slb_core::wire::vxlan::Vni;
use slb_core::{
    Burst, Dataplane, FragmentRoom, Frame, HEADROOM, Host, Instant, Key, PortId, Proxy, Stats,
    Verdict,
};

pub const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
pub const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
pub const FABRIC: PortId = PortId(0);
/// The proxy's port of the backends.
pub const BACKENDS: PortId = PortId(100);
pub const KEY: Key = Key::new([5, 6]);
/// Bytes of the outer headers.
pub const OUTER: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Host,
    Proxy,
}

pub const ROLES: [(Role, bool); 4] = [
    (Role::Host, false),
    (Role::Host, true),
    (Role::Proxy, false),
    (Role::Proxy, true),
];

/// The contents of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Flags as in "SA", sequence number and acknowledgement number.
    Tcp(&'static str, u32, u32),
    Udp,
    /// An echo request from who asks, a reply from who answers.
    Echo,
    /// A protocol without ports.
    Other,
}

pub const SYN: What = What::Tcp("S", 100, 0);
pub const SYN_ACK: What = What::Tcp("SA", 500, 101);
pub const ACK: What = What::Tcp("A", 101, 501);
pub const SERVER_ACK: What = What::Tcp("A", 501, 101);

/// A configuration, to be changed by tests: backends by number.
#[derive(Clone, Debug)]
pub struct Setup {
    pub role: Role,
    pub ipv6: bool,
    pub backends: Vec<(u16, u32, BackendState)>,
    pub terms: Terms,
    pub scheduler: Scheduler,
    pub idle_timeout: Duration,
    pub places: usize,
    /// Clients have addresses that vms reach under their own.
    pub is_client_inside: bool,
    /// True if there is a rule that takes every protocol and port of an address.
    pub has_whole: bool,
    /// Rule for TCP; `None`: there is none.
    pub web: Option<Web>,
    /// Port of a further rule for TCP on the same address, towards the same port of the servers.
    pub also: Option<u16>,
    /// True if a host agent's vms call out.
    pub calls_out: bool,
}

/// Rule for TCP.
#[derive(Clone, Copy, Debug)]
pub struct Web {
    pub name: &'static str,
    pub port: u16,
    /// Every backend fails the rule's probe.
    pub fails: bool,
}

impl Web {
    pub const HTTP: Self = Self {
        name: "http",
        port: 80,
        fails: false,
    };
}

impl Setup {
    pub fn new(role: Role, ipv6: bool) -> Self {
        Self {
            role,
            ipv6,
            backends: vec![(1, 1, BackendState::Up), (2, 1, BackendState::Up)],
            terms: Terms::default(),
            scheduler: Scheduler::Maglev,
            idle_timeout: Duration::from_secs(240),
            places: 1 << 12,
            is_client_inside: false,
            has_whole: true,
            web: Some(Web::HTTP),
            also: None,
            calls_out: true,
        }
    }

    pub fn after(&self, previous: Option<&Snapshot<'_>>) -> Box<Snapshot<'static>> {
        let names: Vec<String> = (0..100).map(|n| format!("vm{n}")).collect();
        let backends: Vec<Backend<'_>> = self
            .backends
            .iter()
            .map(|&(number, weight, state)| Backend {
                name: &names[usize::from(number)],
                address: self.server(number),
                host: HOST.into(),
                mac: Some(derived_mac(self.server(number))),
                port: (self.role == Role::Host).then_some(PortId(number)),
                weight,
                state,
                ..Backend::default()
            })
            .collect();
        let rule = |name, protocol: Protocol, frontend_port: u16| Rule {
            name,
            protocol,
            frontend_port,
            backend_port: if protocol.has_port() { 8080 } else { 0 },
            idle_timeout: self.idle_timeout,
            terms: self.terms,
            scheduler: self.scheduler,
            ..Rule::default()
        };
        let frontend = |name, address| Frontend {
            name,
            address,
            icmp_echo: Echo::Ignore,
        };
        let web = self.web.map(|web| Rule {
            health: web.fails.then_some(0),
            ..rule(web.name, Protocol::Tcp, web.port)
        });
        let whole = self.has_whole.then(|| Rule {
            frontend: 1,
            ..rule("all", Protocol::All, 0)
        });
        let others = [
            rule("dns", Protocol::Udp, 53),
            rule("ping", Protocol::Icmp, 0),
        ];
        let also = self.also.map(|port| rule("also", Protocol::Tcp, port));
        let rules = web.into_iter().chain(others).chain(whole).chain(also);
        let rules: Vec<Rule<'_>> = rules.collect();
        let failing = vec![
            BackendHealth {
                condition: Condition::Unhealthy,
                ..BackendHealth::default()
            };
            backends.len()
        ];
        let spec = Spec {
            underlay: Underlay {
                ipv4: Some(HOST),
                port: FABRIC,
                mtu: 1600,
                ..Underlay::default()
            },
            frontends: &[
                frontend("web", self.vip()),
                frontend("whole", self.whole()),
                frontend("out", self.front()),
            ],
            rules: &rules,
            health: &[PoolHealth {
                pool: 0,
                backends: &failing,
            }],
            pools: &[Pool {
                name: "servers",
                vni: Vni::new(5001).unwrap(),
                table_size: 251,
                backends: &backends,
                ..Pool::default()
            }],
            outbound: match self.role {
                Role::Host if self.calls_out => &[Outbound {
                    name: "out",
                    frontends: &[2],
                    pool: 0,
                    protocol: Protocol::All,
                    allocated_outbound_ports: Some(8192),
                    idle_timeout: Duration::from_secs(240),
                    tcp_reset: false,
                }],
                Role::Host | Role::Proxy => &[],
            },
            muxes: &[MUX.into()],
            proxy: (self.role == Role::Proxy).then_some(ProxyPorts {
                frontends: &[FrontendPort {
                    port: FABRIC,
                    address: None,
                }],
                backend: BACKENDS,
                ..ProxyPorts::default()
            }),
            ..Spec::default()
        };
        Box::new(Snapshot::new(&spec, previous).unwrap())
    }

    pub fn server(&self, number: u16) -> IpAddr {
        if self.ipv6 {
            Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, number).into()
        } else {
            Ipv4Addr::new(10, 10, 1, number as u8).into()
        }
    }

    fn address(&self, number: u8) -> IpAddr {
        if self.ipv6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, number.into()).into()
        } else {
            Ipv4Addr::new(20, 20, 20, number).into()
        }
    }

    pub fn vip(&self) -> IpAddr {
        self.address(100)
    }

    /// The VIP whose rule takes every protocol.
    pub fn whole(&self) -> IpAddr {
        self.address(101)
    }

    /// The address that servers call out from.
    pub fn front(&self) -> IpAddr {
        self.address(102)
    }

    /// A client's end, of a number below 2^26.
    pub fn client(&self, number: u32) -> (IpAddr, u16) {
        let port = 1024 + (number & 0x3ff) as u16;
        let [_, b, c, d] = (number >> 10).to_be_bytes();
        let address: IpAddr = if self.ipv6 {
            let [low, high] = [u16::from_be_bytes([c, d]), b.into()];
            let [first, second] = match self.is_client_inside {
                true => [0xfd00, 0xc],
                false => [0x2001, 0xdb8],
            };
            Ipv6Addr::new(first, second, 0xc, 0, 0, 0, high, low).into()
        } else if self.is_client_inside {
            Ipv4Addr::new(10, 128 + b, c, d).into()
        } else {
            Ipv4Addr::new(11 + b, c, d, 1).into()
        };
        (address, port)
    }

    /// The end of the service that a packet is for, and of the backend.
    pub fn service(&self, what: What) -> ((IpAddr, u16), u16) {
        match what {
            What::Tcp(..) => ((self.vip(), 80), 8080),
            What::Udp => ((self.vip(), 53), 8080),
            What::Echo => ((self.vip(), 0), 0),
            What::Other => ((self.whole(), 0), 0),
        }
    }
}

/// The fate of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

impl Outcome {
    pub fn is_forwarded(&self) -> bool {
        matches!(self.verdict, Verdict::Forward(_))
    }

    /// Source and destination.
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        addresses(&self.bytes)
    }
}

pub fn addresses(frame: &[u8]) -> (IpAddr, IpAddr) {
    match SlicedPacket::from_ethernet(frame).unwrap().net.unwrap() {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => unreachable!("not IP"),
    }
}

pub fn ports(frame: &[u8]) -> (u16, u16) {
    match SlicedPacket::from_ethernet(frame).unwrap().transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => (0, 0),
    }
}

/// An Ethernet frame.
pub fn packet(from: (IpAddr, u16), to: (IpAddr, u16), what: What, answers: bool) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1]);
    let ip = match (from.0, to.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => link.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("of one family"),
    };
    // Of an echo, the asking side's port is the identifier.
    let identifier = if answers { to.1 } else { from.1 };
    let mut bytes = Vec::new();
    match (what, from.0, answers) {
        (What::Tcp(flags, sequence, acknowledgement), ..) => {
            let mut step = ip.tcp(from.1, to.1, sequence, 60_000);
            for flag in flags.chars() {
                step = match flag {
                    'S' => step.syn(),
                    'A' => step.ack(acknowledgement),
                    'F' => step.fin(),
                    'R' => step.rst(),
                    other => unreachable!("{other}"),
                };
            }
            step.write(&mut bytes, b"")
        }
        (What::Udp, ..) => ip.udp(from.1, to.1).write(&mut bytes, b"datagram"),
        (What::Echo, IpAddr::V4(_), false) => ip
            .icmpv4_echo_request(identifier, 1)
            .write(&mut bytes, b"ping"),
        (What::Echo, IpAddr::V4(_), true) => ip
            .icmpv4_echo_reply(identifier, 1)
            .write(&mut bytes, b"ping"),
        (What::Echo, IpAddr::V6(_), false) => ip
            .icmpv6_echo_request(identifier, 1)
            .write(&mut bytes, b"ping"),
        (What::Echo, IpAddr::V6(_), true) => ip
            .icmpv6_echo_reply(identifier, 1)
            .write(&mut bytes, b"ping"),
        // Reserved for experiments (RFC 3692).
        (What::Other, ..) => ip.write(&mut bytes, 253.into(), b"payload"),
    }
    .unwrap();
    bytes
}

enum Dut {
    Host(Box<Host<'static, Box<Snapshot<'static>>>>),
    Proxy(Box<Proxy<'static, Box<Snapshot<'static>>>>),
}

/// The role, its configuration and its clock.
pub struct World {
    pub setup: Setup,
    pub now: Instant,
    dut: Dut,
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let snapshot = setup.after(None);
        let places = setup.places;
        let dut = match setup.role {
            Role::Host => Dut::Host(Box::new(
                Host::with_capacity(snapshot, places, KEY).expect("its role"),
            )),
            Role::Proxy => Dut::Proxy(Box::new(
                Proxy::with_capacity(snapshot, places, KEY).expect("its role"),
            )),
        };
        Self {
            setup,
            now: Instant::from_secs(1_700_000_000),
            dut,
        }
    }

    /// The same with room for fragments that come before their first one.
    pub fn with_room(mut self) -> Self {
        let room = FragmentRoom::build(128, KEY, &mut Boxes).expect("memory");
        self.dut = match self.dut {
            Dut::Host(host) => Dut::Host(Box::new(host.with_fragment_room(room))),
            Dut::Proxy(proxy) => Dut::Proxy(Box::new(proxy.with_fragment_room(room))),
        };
        self
    }

    /// Has the role take up connections that began before now.
    pub fn take_up(&mut self) {
        match &mut self.dut {
            Dut::Host(host) => host.take_up(self.now),
            Dut::Proxy(proxy) => proxy.take_up(self.now),
        }
    }

    /// Gives a host agent other options.
    pub fn set_options(&mut self, options: NatOptions) {
        match &mut self.dut {
            Dut::Host(host) => host.set_options(options),
            Dut::Proxy(proxy) => proxy.set_options(options),
        }
    }

    /// Puts the setup as it is now in place.
    pub fn install(&mut self) {
        match &mut self.dut {
            Dut::Host(host) => {
                let next = self.setup.after(Some(host.snapshot()));
                host.install(next).expect("it follows");
            }
            Dut::Proxy(proxy) => {
                let next = self.setup.after(Some(proxy.snapshot()));
                proxy.install(next).expect("it follows");
            }
        }
    }

    pub fn set(&mut self, backends: &[(u16, u32, BackendState)]) {
        self.setup.backends = backends.to_vec();
        self.install();
    }

    pub fn process(&mut self, frames: &mut [Frame<'_>]) {
        match &mut self.dut {
            Dut::Host(host) => host.process(self.now, frames),
            Dut::Proxy(proxy) => proxy.process(self.now, frames),
        }
    }

    pub fn stats(&self) -> Stats {
        match &self.dut {
            Dut::Host(host) => host.stats(),
            Dut::Proxy(proxy) => proxy.stats(),
        }
    }

    /// Connections of a server that count as live.
    pub fn live(&self, server: u16) -> u64 {
        let find = |snapshot: &Snapshot<'_>| {
            let place = self.setup.backends.iter().position(|b| b.0 == server);
            snapshot.backends()[place.expect("a backend")].id()
        };
        let counters = match &self.dut {
            Dut::Host(host) => host.backend_counters(find(host.snapshot())),
            Dut::Proxy(proxy) => proxy.backend_counters(find(proxy.snapshot())),
        };
        counters.expect("counters").live
    }

    /// Counters of a rule.
    pub fn rule(&self, name: &str) -> RuleCounters {
        let counters = match &self.dut {
            Dut::Host(host) => host.rule_counters(name),
            Dut::Proxy(proxy) => proxy.rule_counters(name),
        };
        counters.expect("a rule with counters")
    }

    pub fn snapshot(&self) -> &Snapshot<'static> {
        match &self.dut {
            Dut::Host(host) => host.snapshot(),
            Dut::Proxy(proxy) => proxy.snapshot(),
        }
    }

    pub fn connections(&self) -> NatStats {
        self.stats().connections
    }

    /// Lets time pass, in which what is due is done.
    pub fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.advance();
    }

    /// All connections as records, and how many calls that took.
    pub fn export(&self) -> (Vec<u8>, usize) {
        let (mut all, mut next, mut calls) = (Vec::new(), Some(Cursor::START), 0);
        let mut buffer = [0; 5 * RECORD_MOST];
        while let Some(cursor) = next {
            let exported = match &self.dut {
                Dut::Host(host) => host.export(cursor, &mut buffer),
                Dut::Proxy(proxy) => proxy.export(cursor, &mut buffer),
            };
            all.extend(&buffer[..exported.len]);
            next = exported.next;
            calls += 1;
        }
        (all, calls)
    }

    /// The connections that a filter wants, looked for in steps of so many places.
    pub fn list(&self, filter: &Filter<'_>, step: usize) -> Vec<Entry> {
        let (mut all, mut next) = (Vec::new(), Some(Cursor::START));
        while let Some(cursor) = next {
            let mut each = |_: Cursor, entry: &Entry| {
                all.push(*entry);
                all.len() % 3 != 0
            };
            let listed = match &self.dut {
                Dut::Host(host) => host.list(cursor, step, filter, &mut each),
                Dut::Proxy(proxy) => proxy.list(cursor, step, filter, &mut each),
            };
            assert!(listed.places <= step);
            next = listed.next;
        }
        all
    }

    pub fn import(&mut self, age: Age, records: &[u8]) -> Result<Imported, StateError> {
        match &mut self.dut {
            Dut::Host(host) => host.import(self.now, age, records),
            Dut::Proxy(proxy) => proxy.import(self.now, age, records),
        }
    }

    /// The same of one of several workers.
    pub fn import_share(
        &mut self,
        age: Age,
        records: &[u8],
        share: Share<'_>,
    ) -> Result<Imported, StateError> {
        match &mut self.dut {
            Dut::Host(host) => host.import_share(self.now, age, records, share),
            Dut::Proxy(proxy) => proxy.import_share(self.now, age, records, share),
        }
    }

    /// The worker that has the connection of a frame.
    pub fn owner(&self, steering: &Steering, port: PortId, bytes: &[u8]) -> Option<u16> {
        let mut buffer = bytes.to_vec();
        let mut frame = Frame::new(&mut buffer, 0, bytes.len()).unwrap();
        frame.set_port(port);
        match &self.dut {
            Dut::Host(host) => steering.owner(host.snapshot(), &frame),
            Dut::Proxy(proxy) => steering.owner(proxy.snapshot(), &frame),
        }
    }

    /// Packets of the role's own, or that waited, which go on now.
    pub fn released(&mut self) -> Vec<Outcome> {
        let mut memory = vec![[0; 2048]; 4];
        let mut spare = Burst::new();
        for buffer in &mut memory {
            let frame = Frame::new(buffer, HEADROOM, 0).unwrap();
            spare.push(frame).expect("room");
        }
        match &mut self.dut {
            Dut::Host(host) => Dataplane::advance(&mut **host, self.now, &mut spare),
            Dut::Proxy(proxy) => Dataplane::advance(&mut **proxy, self.now, &mut spare),
        }
        let used = spare.iter().filter(|frame| !frame.is_empty());
        let outcome = |frame: &Frame<'_>| Outcome {
            verdict: frame.verdict(),
            bytes: frame.bytes().to_vec(),
        };
        used.map(outcome).collect()
    }

    /// Returns the number of a server's SNAT ports in use, and the number of connections that use
    /// them.
    pub fn snat(&self, server: u16) -> (u64, u64) {
        let Dut::Host(host) = &self.dut else {
            unreachable!("a proxy has none");
        };
        let place = self.setup.backends.iter().position(|b| b.0 == server);
        let id = host.snapshot().backends()[place.expect("a backend")].id();
        let counters = host.snat_counters(id).expect("counters");
        (counters.used, counters.connections)
    }

    /// Calls `advance` as often as it takes to look at each connection.
    pub fn advance(&mut self) {
        for _ in 0..=self.setup.places / 2048 {
            match &mut self.dut {
                Dut::Host(host) => Dataplane::advance(&mut **host, self.now, &mut Burst::new()),
                Dut::Proxy(proxy) => Dataplane::advance(&mut **proxy, self.now, &mut Burst::new()),
            }
        }
    }

    /// Sends a frame that came by a port.
    pub fn give(&mut self, port: PortId, bytes: &[u8]) -> Outcome {
        let mut buffer = vec![0xa5; HEADROOM + bytes.len() + HEADROOM];
        buffer[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
        let mut frame = Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap();
        frame.set_port(port);
        self.process(std::slice::from_mut(&mut frame));
        Outcome {
            verdict: frame.verdict(),
            bytes: frame.bytes().to_vec(),
        }
    }

    /// A client's packet as it comes to the role: a host gets it for server `home`.
    pub fn packet_of(&self, home: u16, number: u32, what: What) -> Vec<u8> {
        let (service, _) = self.setup.service(what);
        let inner = packet(self.setup.client(number), service, what, false);
        match self.setup.role {
            Role::Host => encapsulated(&inner, self.setup.server(home)),
            Role::Proxy => inner,
        }
    }

    /// Sends a client's packet; returns the server that it reached.
    pub fn asks(&mut self, home: u16, number: u32, what: What) -> Result<u16, Verdict> {
        let bytes = self.packet_of(home, number, what);
        let outcome = self.give(FABRIC, &bytes);
        if !outcome.is_forwarded() {
            return Err(outcome.verdict);
        }
        let (from, to) = outcome.addresses();
        assert_eq!(from, self.setup.client(number).0);
        let server = (1..100).find(|&n| self.setup.server(n) == to);
        Ok(server.expect("it is translated"))
    }

    /// A server's answer to a client, and the port that it comes by.
    pub fn answer_of(&self, server: u16, number: u32, what: What) -> (PortId, Vec<u8>) {
        let (_, port) = self.setup.service(what);
        let from = (self.setup.server(server), port);
        let mut bytes = packet(from, self.setup.client(number), what, true);
        bytes[6..12].copy_from_slice(&derived_mac(from.0).0);
        let port = match self.setup.role {
            Role::Host => PortId(server),
            Role::Proxy => BACKENDS,
        };
        (port, bytes)
    }

    /// Sends a server's answer; returns where it claims to come from.
    pub fn answers(&mut self, server: u16, number: u32, what: What) -> Result<IpAddr, Verdict> {
        let (port, bytes) = self.answer_of(server, number, what);
        let outcome = self.give(port, &bytes);
        if !outcome.is_forwarded() {
            return Err(outcome.verdict);
        }
        Ok(outcome.addresses().0)
    }

    /// A whole connection: asked, answered, and asked again. Returns its server.
    pub fn connects(&mut self, home: u16, number: u32, what: What) -> Result<u16, Verdict> {
        let is_tcp = matches!(what, What::Tcp(..));
        let (first, answer, second) = if is_tcp {
            (SYN, SYN_ACK, ACK)
        } else {
            (what, what, what)
        };
        let server = self.asks(home, number, first)?;
        let seen = self.answers(server, number, answer)?;
        assert_eq!(seen, self.setup.service(what).0.0);
        assert_eq!(self.asks(home, number, second), Ok(server));
        Ok(server)
    }

    /// Has a server's port call a far end; returns the port of the frontend that it calls from.
    pub fn calls(
        &mut self,
        (server, port): (u16, u16),
        far: (IpAddr, u16),
        what: What,
    ) -> Result<u16, Verdict> {
        let from = (self.setup.server(server), port);
        let mut bytes = packet(from, far, what, false);
        bytes[6..12].copy_from_slice(&derived_mac(from.0).0);
        let outcome = self.give(PortId(server), &bytes);
        if outcome.verdict != Verdict::Forward(FABRIC) {
            return Err(outcome.verdict);
        }
        assert_eq!(outcome.addresses(), (self.setup.front(), far.0));
        Ok(ports(&outcome.bytes).0)
    }

    /// Has a far end answer the port of the frontend that a server called from; returns the server's end.
    pub fn returns(
        &mut self,
        server: u16,
        far: (IpAddr, u16),
        port: u16,
        what: What,
    ) -> Result<(IpAddr, u16), Verdict> {
        let inner = packet(far, (self.setup.front(), port), what, true);
        let outcome = self.give(FABRIC, &encapsulated(&inner, self.setup.server(server)));
        if outcome.verdict != Verdict::Forward(PortId(server)) {
            return Err(outcome.verdict);
        }
        Ok((outcome.addresses().1, ports(&outcome.bytes).1))
    }

    /// Returns true if a packet of an open connection reaches `server`, and its answer the client.
    pub fn goes_on(&mut self, server: u16, number: u32, what: What) -> bool {
        let is_tcp = matches!(what, What::Tcp(..));
        let (ask, answer) = if is_tcp {
            (ACK, SERVER_ACK)
        } else {
            (what, what)
        };
        let vip = self.setup.service(what).0.0;
        self.answers(server, number, answer) == Ok(vip)
            && self.asks(server, number, ask) == Ok(server)
    }
}

/// A frame in VXLAN, as a mux sends it to a vm.
pub fn encapsulated(inner: &[u8], vm: IpAddr) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0x13, 0x89, 0];
    payload.extend(derived_mac(vm).0);
    payload.extend(&inner[6..]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(MUX.octets(), HOST.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut frame, &payload)
        .unwrap();
    frame[40..42].fill(0); // no checksum: the inner ones count
    frame
}
