//! The world between the stacks: clients, a router with ECMP over the muxes, the fabric, and hosts
//! with vms. The fabric loses, doubles, delays and reorders packets, all from one seed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use slb_core::hash::{Hasher, Xxh3};
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Answers, Backend, BackendState, Echo, Frontend, InboundNat, NatTarget, Outbound, Pool,
    Protocol, Rule, Spec, Terms, Underlay, derived_mac,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{Burst, Frame, Host, Instant, Key, Mux, PortId, Stats, Verdict};

use super::stack::{Outcome, Stack};

type Shared = Arc<Snapshot<'static>>;

pub const CLIENTS: usize = 6;
pub const HOSTS: usize = 3;
pub const VMS_PER_HOST: usize = 2;
pub const VMS: usize = HOSTS * VMS_PER_HOST;
/// The underlay port of every node; vms are at the ports from 1 on.
const FABRIC: PortId = PortId(0);
/// The ports that vms serve.
pub const HTTP: u16 = 8080;
pub const SSH: u16 = 22;
/// The ports of datagrams: of flows, and of QUIC.
pub const DNS: u16 = 53;
pub const QUIC: u16 = 443;
/// The port that clients serve.
pub const ELSEWHERE: u16 = 7000;

pub fn vip(ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100).into()
    } else {
        Ipv4Addr::new(20, 20, 20, 100).into()
    }
}

/// The address that vms call out under.
pub fn outbound_vip(ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x200).into()
    } else {
        Ipv4Addr::new(20, 20, 20, 200).into()
    }
}

pub fn client(number: usize, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, number as u16 + 1).into()
    } else {
        Ipv4Addr::new(198, 51, 100, number as u8 + 1).into()
    }
}

pub fn vm(number: usize, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, number as u16 + 1).into()
    } else {
        Ipv4Addr::new(10, 10, 0, number as u8 + 1).into()
    }
}

fn mux_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 0, 11 + number as u8)
}

fn host_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 0, 101 + number as u8)
}

/// The parameters of the world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub muxes: usize,
    pub ipv6: bool,
    pub terms: Terms,
    pub outbound_reset: bool,
    pub idle: Duration,
    pub allocated_outbound_ports: Option<u32>,
    pub states: [BackendState; VMS],
    pub weights: [u32; VMS],
    /// The vm whose seat each vm has.
    pub seats: [usize; VMS],
    /// Flows that each mux pins; zero: none, Maglev alone decides.
    pub flows: usize,
    /// Clients talk by datagrams, every other one over QUIC.
    pub datagrams: bool,
    /// Hosts pass on what is of none of their connections.
    pub passes_on: bool,
    /// Packets out of a thousand that are lost, and as many are doubled.
    pub loss: u64,
    /// A packet takes up to so many milliseconds.
    pub delay: u64,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            muxes: 2,
            ipv6: false,
            terms: Terms::default(),
            outbound_reset: false,
            idle: Duration::from_secs(240),
            allocated_outbound_ports: Some(256),
            states: [BackendState::Up; VMS],
            weights: [1; VMS],
            seats: std::array::from_fn(|vm| vm),
            flows: 1 << 14,
            datagrams: false,
            passes_on: true,
            loss: 0,
            delay: 1,
        }
    }

    pub fn through_mux(mut self) -> Self {
        self.terms.answers = Answers::ThroughMux;
        self
    }

    /// The rule of a port for datagrams.
    fn of_datagrams(&self, name: &'static str, port: u16) -> Rule<'static> {
        Rule {
            name,
            frontend: 0,
            pool: 0,
            protocol: Protocol::Udp,
            frontend_port: port,
            backend_port: port,
            idle_timeout: self.idle,
            terms: Terms {
                quic: port == QUIC,
                tcp_reset: false,
                ..self.terms
            },
            ..Rule::default()
        }
    }

    fn nat_options(&self) -> NatOptions {
        let usual = NatOptions::default();
        NatOptions {
            passes_per_second: if self.passes_on {
                usual.passes_per_second
            } else {
                0
            },
            ..usual
        }
    }

    /// The snapshot of a node: of a mux, or of the host of this number.
    pub fn snapshot(&self, node: Node, previous: Option<&Snapshot<'_>>) -> Snapshot<'static> {
        let names: Vec<String> = (0..VMS).map(|vm| format!("vm{vm}")).collect();
        let backends: Vec<Backend<'_>> = (0..VMS)
            .map(|number| Backend {
                name: &names[number],
                address: vm(number, self.ipv6),
                host: host_address(number / VMS_PER_HOST).into(),
                state: self.states[number],
                weight: self.weights[number],
                seat: Some(&names[self.seats[number]]),
                port: match node {
                    Node::Host(host) if number / VMS_PER_HOST == host => {
                        Some(PortId((number % VMS_PER_HOST) as u16 + 1))
                    }
                    _ => None,
                },
                ..Backend::default()
            })
            .collect();
        let muxes: Vec<IpAddr> = (0..self.muxes).map(|mux| mux_address(mux).into()).collect();
        let own = match node {
            Node::Mux(mux) => mux_address(mux),
            Node::Host(host) => host_address(host),
        };
        let spec = Spec {
            hasher: Hasher::Xxh3(Xxh3::new(7)),
            hash_seed: 7,
            underlay: Underlay {
                ipv4: Some(own),
                mac: derived_mac(own.into()),
                port: FABRIC,
                ..Underlay::default()
            },
            frontends: &[
                Frontend {
                    name: "web",
                    address: vip(self.ipv6),
                    icmp_echo: Echo::Answer,
                },
                Frontend {
                    name: "out",
                    address: outbound_vip(self.ipv6),
                    icmp_echo: Echo::Answer,
                },
            ],
            rules: &[
                Rule {
                    name: "http",
                    frontend: 0,
                    pool: 0,
                    protocol: Protocol::Tcp,
                    frontend_port: 80,
                    backend_port: if self.terms.floating_ip { 80 } else { HTTP },
                    idle_timeout: self.idle,
                    terms: self.terms,
                    ..Rule::default()
                },
                self.of_datagrams("dns", DNS),
                self.of_datagrams("http3", QUIC),
            ],
            health: &[],
            probe_source: slb_core::spec::ProbeSource::default(),
            pools: &[Pool {
                name: "servers",
                vni: Vni::new(5001).unwrap(),
                table_size: 251,
                backends: &backends,
                ..Pool::default()
            }],
            inbound_nat: &[InboundNat {
                name: "ssh",
                frontend: 0,
                pool: 0,
                target: NatTarget::Pool {
                    first: 2200,
                    last: 2299,
                },
                protocol: Protocol::Tcp,
                backend_port: SSH,
                idle_timeout: self.idle,
                terms: Terms::default(),
            }],
            outbound: &[Outbound {
                name: "out",
                frontends: &[1],
                pool: 0,
                protocol: Protocol::All,
                allocated_outbound_ports: self.allocated_outbound_ports,
                idle_timeout: self.idle,
                tcp_reset: self.outbound_reset,
            }],
            muxes: &muxes,
            inside: slb_core::spec::INSIDE,
            proxy: None,
            now: Instant::ZERO,
            ..Spec::default()
        };
        Snapshot::new(&spec, previous).unwrap()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    Mux(usize),
    Host(usize),
}

/// Where a frame is about to arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Node(Node, PortId),
    Client(usize),
    Vm(usize),
}

pub struct World {
    pub plan: Plan,
    /// Milliseconds.
    pub now: u64,
    random: u64,
    /// The frames on the way, by arrival time; the second number keeps the order of frames that
    /// arrive at once.
    on_the_way: BTreeMap<(u64, u64), (Place, Vec<u8>)>,
    sent: u64,
    pub muxes: Vec<Option<Mux<'static, Shared>>>,
    /// The router sends each flow to the mux so many places further.
    pub turn: usize,
    pub hosts: Vec<Host<'static, Shared>>,
    /// Hosts without power: what comes to them, and to and from their vms, is lost.
    dead_hosts: [bool; HOSTS],
    pub clients: Vec<Stack>,
    pub vms: Vec<Stack>,
    /// Frames that nodes passed on, or sent to nowhere.
    pub astray: Vec<String>,
}

const KEY: Key = Key::new([0x1234_5678, 0x9abc_def0]);

impl World {
    pub fn new(plan: Plan) -> Self {
        let muxes = (0..plan.muxes)
            .map(|mux| {
                let snapshot = Arc::new(plan.snapshot(Node::Mux(mux), None));
                Some(Mux::with_capacity(snapshot, plan.flows, KEY).expect("its role"))
            })
            .collect();
        let hosts = (0..HOSTS)
            .map(|host| {
                let snapshot = Arc::new(plan.snapshot(Node::Host(host), None));
                Host::with_capacity(snapshot, 1 << 14, KEY)
                    .expect("its role")
                    .with_options(plan.nat_options())
            })
            .collect();
        let clients = (0..CLIENTS)
            .map(|number| {
                let mut stack = Stack::new(&[client(number, plan.ipv6)], plan.seed + number as u64);
                stack.serve(ELSEWHERE);
                stack
            })
            .collect();
        let vms = (0..VMS)
            .map(|number| {
                let mut addresses = vec![vm(number, plan.ipv6)];
                if plan.terms.floating_ip {
                    addresses.push(vip(plan.ipv6));
                }
                let mut stack = Stack::new(&addresses, plan.seed + 100 + number as u64);
                for port in [HTTP, 80, SSH] {
                    stack.serve(port);
                }
                for port in [DNS, QUIC] {
                    stack.answer(port, number as u8, port == QUIC);
                }
                stack
            })
            .collect();
        Self {
            random: plan.seed | 1,
            plan,
            now: 0,
            on_the_way: BTreeMap::new(),
            sent: 0,
            muxes,
            turn: 0,
            hosts,
            dead_hosts: [false; HOSTS],
            clients,
            vms,
            astray: Vec::new(),
        }
    }

    /// A number below `most`, the same in every run of one seed.
    pub fn random(&mut self, most: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % most
    }

    /// Takes a mux away: what is on its way to it is lost, and the router spreads flows anew.
    pub fn kill_mux(&mut self, number: usize) {
        self.muxes[number] = None;
    }

    /// Takes a host away with its vms, for good.
    pub fn kill_host(&mut self, number: usize) {
        self.dead_hosts[number] = true;
    }

    /// Forgets a host's connections, as a restart does.
    pub fn restart_host(&mut self, number: usize) {
        let snapshot = Arc::new(self.plan.snapshot(Node::Host(number), None));
        self.hosts[number] = Host::with_capacity(snapshot, 1 << 14, KEY)
            .expect("its role")
            .with_options(self.plan.nat_options());
    }

    /// Gives every node a new configuration.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Plan)) {
        self.reconfigure_some(change, |_| true);
    }

    /// Gives all hosts and some of the muxes a new configuration.
    pub fn reconfigure_some(
        &mut self,
        change: impl FnOnce(&mut Plan),
        is_reached: impl Fn(usize) -> bool,
    ) {
        change(&mut self.plan);
        self.install_at_muxes(is_reached);
        for (number, host) in self.hosts.iter_mut().enumerate() {
            let snapshot = self
                .plan
                .snapshot(Node::Host(number), Some(host.snapshot()));
            host.install(Arc::new(snapshot)).expect("it follows");
        }
    }

    /// Gives the muxes a new configuration of which no host hears, as where only muxes probe.
    pub fn reconfigure_muxes(&mut self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan);
        self.install_at_muxes(|_| true);
    }

    fn install_at_muxes(&mut self, is_reached: impl Fn(usize) -> bool) {
        for (number, mux) in self.muxes.iter_mut().enumerate() {
            if let Some(mux) = mux.as_mut().filter(|_| is_reached(number)) {
                let snapshot = self.plan.snapshot(Node::Mux(number), Some(mux.snapshot()));
                mux.install(Arc::new(snapshot)).expect("it follows");
            }
        }
    }

    pub fn host_stats(&self, host: usize) -> Stats {
        self.hosts[host].stats()
    }

    fn send(&mut self, place: Place, frame: &[u8]) {
        let copies = match self.random(1000) {
            roll if roll < self.plan.loss => 0,
            roll if roll < 2 * self.plan.loss => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let arrival = self.now + 1 + self.random(self.plan.delay);
            self.sent += 1;
            self.on_the_way
                .insert((arrival, self.sent), (place, frame.to_vec()));
        }
    }

    /// The router: where a frame goes by its destination address.
    fn route(&mut self, frame: &[u8]) {
        let ip = etherparse::IpSlice::from_slice(&frame[14..])
            .unwrap_or_else(|error| panic!("seed {}: {error}: {frame:02x?}", self.plan.seed));
        let (source, destination) = (ip.source_addr(), ip.destination_addr());
        let ipv6 = destination.is_ipv6();
        let place = if destination == vip(ipv6) || destination == outbound_vip(ipv6) {
            let alive: Vec<usize> = (0..self.muxes.len())
                .filter(|&mux| self.muxes[mux].is_some())
                .collect();
            // ECMP by addresses and ports; an ICMP error has its own.
            let ports = ip.payload().payload.get(..4).unwrap_or_default();
            let hash = ports.iter().fold(source.to_string().len(), |sum, &byte| {
                sum.wrapping_mul(31).wrapping_add(byte.into())
            });
            alive
                .get(hash.wrapping_add(self.turn) % alive.len().max(1))
                .map(|&mux| Place::Node(Node::Mux(mux), FABRIC))
        } else if let Some(number) = (0..CLIENTS).find(|&c| destination == client(c, ipv6)) {
            Some(Place::Client(number))
        } else if let Some(host) = (0..HOSTS).find(|&h| destination == host_address(h)) {
            Some(Place::Node(Node::Host(host), FABRIC))
        } else {
            (0..self.muxes.len())
                .find(|&mux| destination == mux_address(mux))
                .map(|mux| Place::Node(Node::Mux(mux), FABRIC))
        };
        match place {
            Some(place) => self.send(place, frame),
            None => self.astray.push(format!("{source} > {destination}")),
        }
    }

    /// Lets a node see a frame, and does with it what the node says.
    fn arrive(&mut self, node: Node, port: PortId, frame: &[u8]) {
        if matches!(node, Node::Host(host) if self.dead_hosts[host]) {
            return;
        }
        let mut buffer = vec![0xa5; 128 + frame.len() + 128];
        buffer[128..128 + frame.len()].copy_from_slice(frame);
        let mut frames = [Frame::new(&mut buffer, 128, frame.len()).unwrap()];
        frames[0].set_port(port);
        let now = self.clock();
        match node {
            Node::Mux(number) => match &mut self.muxes[number] {
                Some(mux) => mux.process(now, &mut frames),
                None => return, // it died meanwhile
            },
            Node::Host(number) => self.hosts[number].process(now, &mut frames),
        }
        let out = match frames[0].verdict() {
            Verdict::Forward(out) => out,
            // A vm that is told something.
            Verdict::Reply if port != FABRIC => {
                assert_eq!(frames[0].bytes()[..6], frame[6..12], "for another vm");
                let Node::Host(host) = node else {
                    panic!("a mux has no vms");
                };
                let number = host * VMS_PER_HOST + usize::from(port.0) - 1;
                let bytes = frames[0].bytes().to_vec();
                return self.send(Place::Vm(number), &bytes);
            }
            Verdict::Reply => port,
            Verdict::Pass => {
                self.astray.push(format!("{node:?} passed {frame:02x?}"));
                return;
            }
            Verdict::Drop(_) | Verdict::Flood => return,
        };
        let bytes = frames[0].bytes().to_vec();
        self.leave(node, out, &bytes);
    }

    fn leave(&mut self, node: Node, port: PortId, frame: &[u8]) {
        match (node, port) {
            (_, FABRIC) => self.route(frame),
            (Node::Host(host), PortId(vm_port)) => {
                let number = host * VMS_PER_HOST + usize::from(vm_port) - 1;
                let mac = derived_mac(vm(number, self.plan.ipv6));
                assert_eq!(frame[..6], mac.0, "for another vm");
                self.send(Place::Vm(number), frame);
            }
            _ => panic!("a mux has no vms"),
        }
    }

    /// Returns the nodes' time, counted from 1970: their tables do not mind.
    pub fn clock(&self) -> Instant {
        Instant::from_secs(1_750_000_000) + Duration::from_millis(self.now)
    }

    /// One millisecond.
    pub fn step(&mut self) {
        self.now += 1;
        let later = self.on_the_way.split_off(&(self.now + 1, 0));
        let arriving = std::mem::replace(&mut self.on_the_way, later);
        for (place, frame) in arriving.into_values() {
            match place {
                Place::Node(node, port) => self.arrive(node, port, &frame),
                Place::Client(number) => self.clients[number].deliver(frame[14..].to_vec()),
                Place::Vm(number) => self.vms[number].deliver(frame[14..].to_vec()),
            }
        }
        self.run_stacks();
        self.advance_hosts();
    }

    fn run_stacks(&mut self) {
        let ether_type = if self.plan.ipv6 { [0x86, 0xdd] } else { [8, 0] };
        let link = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9][..], &ether_type].concat();
        let frame = |packet: &[u8]| [&link, packet].concat();
        for number in 0..CLIENTS {
            for packet in self.clients[number].run(self.now as i64) {
                self.route(&frame(&packet));
            }
        }
        for number in 0..VMS {
            for packet in self.vms[number].run(self.now as i64) {
                if packet[0] >> 4 == 6 && packet[24] == 0xff {
                    continue; // multicast of the stack's own
                }
                let port = PortId((number % VMS_PER_HOST) as u16 + 1);
                let place = Place::Node(Node::Host(number / VMS_PER_HOST), port);
                self.send(place, &frame(&packet));
            }
        }
    }

    /// Lets hosts send what they have to say themselves.
    fn advance_hosts(&mut self) {
        let now = self.clock();
        for number in 0..HOSTS {
            let mut memory = vec![[0u8; 256]; 16];
            let mut spare = Burst::new();
            for buffer in &mut memory {
                spare.push(Frame::new(buffer, 64, 0).unwrap()).unwrap();
            }
            self.hosts[number].advance(now, &mut spare);
            let sent: Vec<_> = spare
                .iter()
                .filter_map(|frame| match frame.verdict() {
                    Verdict::Forward(port) => Some((port, frame.bytes().to_vec())),
                    _ => None,
                })
                .collect();
            for (port, frame) in sent {
                self.leave(Node::Host(number), port, &frame);
            }
        }
    }

    pub fn run(&mut self, millis: u64) {
        for _ in 0..millis {
            self.step();
        }
    }

    /// Skips time in which nothing happens, but for what hosts do by themselves.
    pub fn skip(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.now += 99;
            self.step();
        }
    }

    /// Returns the number of clients' connections with an outcome, here and at vms.
    pub fn count(&self, outcome: Outcome) -> usize {
        let all = self
            .clients
            .iter()
            .chain(&self.vms)
            .flat_map(Stack::outcomes);
        all.filter(|&other| other == outcome).count()
    }

    /// Runs until no connection is under way, or for so long.
    pub fn finish(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end && self.count(Outcome::UnderWay) > 0 {
            self.step();
        }
    }
}
