//! The wires: clients at the proxy's frontend ports, and a router with the servers at its backend
//! port. The proxy is a bump in the wire: clients send to the router's MAC address, and it to theirs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, FrontendPort, Pool, PortMode, Protocol, ProxyPorts,
    Rule, Scheduler, Spec, Terms,
};
use slb_core::{Burst, Frame, Instant, Key, PortId, Proxy, Verdict};

use crate::world::stack::{Outcome, Stack};

pub const CLIENTS: usize = 6;
pub const SERVERS: usize = 4;
const FRONTENDS: usize = 3;
const BACKEND: PortId = PortId(9);
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const KEY: Key = Key::new([0x1234_5678, 0x9abc_def0]);

pub fn vip(ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100).into()
    } else {
        Ipv4Addr::new(20, 20, 20, 100).into()
    }
}

pub fn client(number: usize, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, number as u16 + 1).into()
    } else {
        Ipv4Addr::new(10, 0, (number % FRONTENDS) as u8, number as u8 + 1).into()
    }
}

pub fn server(number: usize, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, number as u16 + 1).into()
    } else {
        Ipv4Addr::new(10, 10, 0, number as u8 + 1).into()
    }
}

fn mac(client: usize) -> [u8; 6] {
    [2, 0, 0, 0, 1, client as u8]
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub mode: PortMode,
    pub ipv6: bool,
    pub scheduler: Scheduler,
    pub terms: Terms,
    /// Weight, state, and whether it is configured at all.
    pub servers: [(u32, BackendState, bool); SERVERS],
    /// Packets out of a thousand that are lost, and as many are doubled.
    pub loss: u64,
    /// A packet takes up to so many milliseconds.
    pub delay: u64,
}

impl Plan {
    pub fn new(seed: u64, mode: PortMode) -> Self {
        Self {
            seed,
            mode,
            ipv6: false,
            scheduler: Scheduler::Maglev,
            terms: Terms::default(),
            servers: [(1, BackendState::Up, true); SERVERS],
            loss: 0,
            delay: 1,
        }
    }

    /// The frontend port that a client is at.
    fn port(&self, client: usize) -> PortId {
        match self.mode {
            PortMode::Single => PortId(0),
            PortMode::Multi => PortId((client % FRONTENDS) as u16),
        }
    }

    pub fn snapshot(&self, previous: Option<&Snapshot<'_>>) -> Snapshot<'static> {
        let names: Vec<String> = (0..SERVERS).map(|n| format!("server{n}")).collect();
        let configured = (0..SERVERS).filter(|&n| self.servers[n].2);
        let backends: Vec<Backend<'_>> = configured
            .map(|n| Backend {
                name: &names[n],
                address: server(n, self.ipv6),
                weight: self.servers[n].0,
                state: self.servers[n].1,
                ..Backend::default()
            })
            .collect();
        let frontends = match self.mode {
            PortMode::Single => 1,
            PortMode::Multi => FRONTENDS,
        };
        let ports: Vec<FrontendPort> = (0..frontends)
            .map(|n| FrontendPort {
                port: PortId(n as u16),
                // Of the port's first client.
                address: Some(Ipv4Addr::new(10, 0, n as u8, n as u8 + 1)),
            })
            .collect();
        let spec = Spec {
            frontends: &[Frontend {
                name: "web",
                address: vip(self.ipv6),
                icmp_echo: Echo::Answer,
            }],
            rules: &[Rule {
                name: "http",
                protocol: Protocol::Tcp,
                frontend_port: 80,
                backend_port: 8080,
                scheduler: self.scheduler,
                terms: self.terms,
                ..Rule::default()
            }],
            pools: &[Pool {
                name: "servers",
                table_size: 251,
                backends: &backends,
                ..Pool::default()
            }],
            proxy: Some(ProxyPorts {
                mode: self.mode,
                frontends: &ports,
                backend: BACKEND,
                source_rewrites: &[],
            }),
            ..Spec::default()
        };
        Snapshot::new(&spec, previous).unwrap()
    }
}

/// Where a frame is about to arrive.
#[derive(Clone, Copy, Debug)]
enum Place {
    Proxy(PortId),
    /// The wire of a frontend port.
    Clients(PortId),
    Router,
}

pub struct World {
    pub plan: Plan,
    /// Milliseconds.
    pub now: u64,
    random: u64,
    on_the_way: BTreeMap<(u64, u64), (Place, Vec<u8>)>,
    sent: u64,
    pub proxy: Proxy<'static, Box<Snapshot<'static>>>,
    pub clients: Vec<Stack>,
    pub servers: Vec<Stack>,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let stack = |address, seed| Stack::new(&[address], plan.seed + seed as u64);
        let clients = (0..CLIENTS).map(|n| stack(client(n, plan.ipv6), n));
        let servers = (0..SERVERS).map(|n| {
            let mut server = stack(server(n, plan.ipv6), 100 + n);
            server.serve(8080);
            server
        });
        Self {
            now: 0,
            random: plan.seed | 1,
            on_the_way: BTreeMap::new(),
            sent: 0,
            proxy: Proxy::with_capacity(Box::new(plan.snapshot(None)), 1 << 14, KEY)
                .expect("its role"),
            clients: clients.collect(),
            servers: servers.collect(),
            plan,
        }
    }

    /// A number below `most`, the same in every run of one seed.
    pub fn random(&mut self, most: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % most
    }

    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan);
        let next = self.plan.snapshot(Some(self.proxy.snapshot()));
        self.proxy.install(Box::new(next)).expect("it follows");
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

    fn leave(&mut self, verdict: Verdict, from: PortId, frame: &[u8]) {
        let out = match verdict {
            Verdict::Forward(port) => vec![port],
            Verdict::Reply => vec![from],
            Verdict::Flood => {
                assert_eq!((from, self.plan.mode), (BACKEND, PortMode::Multi));
                (0..FRONTENDS as u16).map(PortId).collect()
            }
            Verdict::Pass => panic!("seed {}: passed {frame:02x?}", self.plan.seed),
            Verdict::Drop(_) => return,
        };
        for port in out {
            let place = if port == BACKEND {
                Place::Router
            } else {
                Place::Clients(port)
            };
            self.send(place, frame);
        }
    }

    fn arrive(&mut self, place: Place, frame: &[u8]) {
        let ipv6 = self.plan.ipv6;
        match place {
            Place::Proxy(port) => {
                let mut buffer = vec![0xa5; 128 + frame.len() + 128];
                buffer[128..128 + frame.len()].copy_from_slice(frame);
                let mut frames = [Frame::new(&mut buffer, 128, frame.len()).unwrap()];
                frames[0].set_port(port);
                self.proxy.process(self.clock(), &mut frames);
                let (verdict, bytes) = (frames[0].verdict(), frames[0].bytes().to_vec());
                self.leave(verdict, port, &bytes);
            }
            Place::Clients(port) => {
                let here = (0..CLIENTS).filter(|&n| self.plan.port(n) == port);
                let mut here = here.filter(|&n| frame[..6] == mac(n));
                if let Some(number) = here.next() {
                    assert_eq!(frame[6..12], ROUTER);
                    self.clients[number].deliver(frame[14..].to_vec());
                }
            }
            Place::Router => {
                assert_eq!(frame[..6], ROUTER, "seed {}", self.plan.seed);
                let ip = etherparse::IpSlice::from_slice(&frame[14..]).unwrap();
                let to = ip.destination_addr();
                let number = (0..SERVERS).find(|&n| to == server(n, ipv6));
                let number = number.unwrap_or_else(|| panic!("seed {}: {to}", self.plan.seed));
                self.servers[number].deliver(frame[14..].to_vec());
            }
        }
    }

    pub fn clock(&self) -> Instant {
        Instant::from_secs(1_750_000_000) + Duration::from_millis(self.now)
    }

    fn step(&mut self) {
        self.now += 1;
        let later = self.on_the_way.split_off(&(self.now + 1, 0));
        for (place, frame) in std::mem::replace(&mut self.on_the_way, later).into_values() {
            self.arrive(place, &frame);
        }
        let ether_type = if self.plan.ipv6 { [0x86, 0xdd] } else { [8, 0] };
        let is_own = |packet: &[u8]| packet[0] >> 4 == 6 && packet[24] == 0xff;
        for number in 0..CLIENTS {
            for packet in self.clients[number].run(self.now as i64) {
                let frame = [&ROUTER[..], &mac(number), &ether_type, &packet].concat();
                self.send(Place::Proxy(self.plan.port(number)), &frame);
            }
        }
        for number in 0..SERVERS {
            for packet in self.servers[number].run(self.now as i64) {
                if is_own(&packet) {
                    continue; // multicast of the stack's own
                }
                let ip = etherparse::IpSlice::from_slice(&packet).unwrap();
                let to = ip.destination_addr();
                let client = (0..CLIENTS).find(|&n| to == client(n, self.plan.ipv6));
                let to = client.unwrap_or_else(|| panic!("seed {}: {to}", self.plan.seed));
                let frame = [&mac(to)[..], &ROUTER, &ether_type, &packet].concat();
                self.send(Place::Proxy(BACKEND), &frame);
            }
        }
        self.advance();
    }

    /// Lets the proxy send what it has to say itself.
    fn advance(&mut self) {
        let mut memory = vec![[0u8; 256]; 16];
        let mut spare = Burst::new();
        for buffer in &mut memory {
            spare.push(Frame::new(buffer, 64, 0).unwrap()).unwrap();
        }
        self.proxy.advance(self.clock(), &mut spare);
        let made = spare.iter().filter(|frame| !frame.is_empty());
        let made: Vec<_> = made
            .map(|frame| (frame.verdict(), frame.bytes().to_vec()))
            .collect();
        for (verdict, frame) in made {
            self.leave(verdict, BACKEND, &frame);
        }
    }

    pub fn run(&mut self, millis: u64) {
        for _ in 0..millis {
            self.step();
        }
    }

    /// Skips time in which nothing happens, but for what the proxy does by itself.
    pub fn skip(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.now += 99;
            self.step();
        }
    }

    pub fn count(&self, outcome: Outcome) -> usize {
        let all = self.clients.iter().flat_map(Stack::outcomes);
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
