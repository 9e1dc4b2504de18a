//! A million flows through sixteen muxes and a hundred host agents whose configuration changes: each
//! packet reaches the vm that had the flow's SYN.
//!
//! Half of the muxes pin flows, the others do not. Routers spread flows by a modulo over the muxes that are
//! there, so one mux more or less moves nearly every flow to another mux. Hosts install a change before
//! muxes do.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Frontend, Pool, Protocol, Rule, Spec, Underlay, derived_mac,
};
use slb_core::state::{Age, Cursor, Exported};
use slb_core::wire::checksum::checksum;
use slb_core::wire::vxlan::Vni;
use slb_core::{Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict};

const FLOWS: u32 = 1_000_000;
const MUXES: usize = 16;
/// Each has one vm; the last ten are not in use at the beginning.
const HOSTS: usize = 110;
const IN_USE: usize = 100;
const VIP: Ipv4Addr = Ipv4Addr::new(20, 20, 20, 100);
const FABRIC: PortId = PortId(0);
const VM: PortId = PortId(1);
const MOST_HOPS: u32 = 8;

const SYN: u8 = 2;
const ACK: u8 = 16;

type Shared = Box<Snapshot<'static>>;

/// The weight and state of each backend, and the backend whose seat it has.
type Wanted = Vec<(u32, BackendState, usize)>;

fn mux_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 0, number as u8 + 1)
}

fn host_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 17, 0, number as u8 + 1)
}

fn vm_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, 0, number as u8 + 1)
}

/// Compiles the snapshot of a mux (`of` is none) or of a host.
fn snapshot(
    wanted: &Wanted,
    own: Ipv4Addr,
    of: Option<usize>,
    (now, previous): (Instant, Option<&Snapshot<'_>>),
) -> Shared {
    let names: Vec<String> = (0..HOSTS).map(|n| format!("vm{n}")).collect();
    let backend = |number: usize| Backend {
        name: &names[number],
        address: vm_address(number).into(),
        host: host_address(number).into(),
        weight: wanted[number].0,
        state: wanted[number].1,
        seat: Some(&names[wanted[number].2]),
        port: (of == Some(number)).then_some(VM),
        ..Backend::default()
    };
    let backends: Vec<Backend<'_>> = (0..HOSTS).map(backend).collect();
    // One more is added later.
    let muxes: Vec<_> = (0..=MUXES).map(|n| mux_address(n).into()).collect();
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(own),
            mtu: 1600,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            icmp_echo: slb_core::spec::Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            protocol: Protocol::Tcp,
            frontend_port: 80,
            backend_port: 8080,
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "vms",
            vni: Vni::new(5001).expect("small"),
            backends: &backends,
            ..Pool::default()
        }],
        muxes: &muxes,
        now,
        ..Spec::default()
    };
    Box::new(Snapshot::new(&spec, previous).expect("a good spec"))
}

/// An Ethernet frame with a TCP segment that carries nothing.
fn segment(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8, numbers: [u32; 2]) -> [u8; 54] {
    let mut bytes = [0; 54];
    bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3, 8, 0]);
    bytes[14..24].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
    bytes[26..30].copy_from_slice(&from.0.octets());
    bytes[30..34].copy_from_slice(&to.0.octets());
    let sum = checksum(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes[34..36].copy_from_slice(&from.1.to_be_bytes());
    bytes[36..38].copy_from_slice(&to.1.to_be_bytes());
    bytes[38..42].copy_from_slice(&numbers[0].to_be_bytes());
    bytes[42..46].copy_from_slice(&numbers[1].to_be_bytes());
    (bytes[46], bytes[47]) = (0x50, flags);
    bytes[48..50].copy_from_slice(&60_000_u16.to_be_bytes());
    let mut pseudo = Vec::with_capacity(32);
    pseudo.extend(&bytes[26..34]);
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(&bytes[34..54]);
    let sum = checksum(&pseudo);
    bytes[50..52].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn client(flow: u32) -> (Ipv4Addr, u16) {
    let address = Ipv4Addr::from_bits(0x0b00_0001 + flow / 50_000);
    (address, 10_000 + (flow % 50_000) as u16)
}

/// Returns the hash by which routers spread flows.
fn ecmp(flow: u32) -> u64 {
    let mixed = u64::from(flow)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
}

/// Flows that a mux has room for: every other mux pins none.
fn flows_of(number: usize) -> usize {
    if number.is_multiple_of(2) { 200_000 } else { 0 }
}

/// The time between the last packet of a process and the first one of the next.
const GAP: Age = Age::exact(Duration::from_millis(5));

/// All records of a role.
fn records(export: impl Fn(Cursor, &mut [u8]) -> Exported) -> Vec<u8> {
    let (mut all, mut next) = (Vec::new(), Some(Cursor::START));
    let mut some = vec![0; 1 << 16];
    while let Some(from) = next {
        let exported = export(from, &mut some);
        all.extend(&some[..exported.len]);
        next = exported.next;
    }
    all
}

struct Fleet {
    muxes: Vec<Mux<'static, Shared>>,
    /// The present muxes.
    live: Vec<usize>,
    hosts: Vec<Host<'static, Shared>>,
    host_by_address: BTreeMap<[u8; 4], usize>,
    wanted: Wanted,
    now: Instant,
    /// The vm of each flow.
    homes: Vec<u8>,
    buffer: Vec<u8>,
    detours: u32,
}

impl Fleet {
    fn new(passes_on: bool) -> Self {
        let wanted: Wanted = (0..HOSTS)
            .map(|n| (if n < IN_USE { 10 } else { 0 }, BackendState::Up, n))
            .collect();
        let now = Instant::from_secs(1000);
        let key = |n: usize| Key::new([n as u64 + 1, 7]);
        let hosts = (0..HOSTS).map(|number| {
            let snapshot = snapshot(&wanted, host_address(number), Some(number), (now, None));
            let mut options = slb_core::nat::NatOptions::default();
            if !passes_on {
                options.passes_per_second = 0;
                options.passes_at_once = 0;
            }
            Host::with_capacity(snapshot, 16_384, key(number))
                .expect("its role")
                .with_options(options)
        });
        let mut fleet = Self {
            muxes: Vec::new(),
            live: Vec::new(),
            hosts: hosts.collect(),
            host_by_address: (0..HOSTS).map(|n| (host_address(n).octets(), n)).collect(),
            wanted,
            now,
            homes: Vec::new(),
            buffer: vec![0; HEADROOM + 256],
            detours: 0,
        };
        for _ in 0..MUXES {
            fleet.add_mux();
        }
        fleet
    }

    /// Every other mux pins flows.
    fn add_mux(&mut self) {
        let number = self.muxes.len();
        let snapshot = snapshot(&self.wanted, mux_address(number), None, (self.now, None));
        let key = Key::new([number as u64 + 1, 8]);
        let mux = Mux::with_capacity(snapshot, flows_of(number), key);
        self.muxes.push(mux.expect("its role"));
        self.live.push(number);
    }

    fn install_at_hosts(&mut self) {
        self.now = self.now + Duration::from_secs(1);
        for (number, host) in self.hosts.iter_mut().enumerate() {
            let own = host_address(number);
            let previous = (self.now, Some(host.snapshot()));
            let next = snapshot(&self.wanted, own, Some(number), previous);
            host.install(next).expect("the next one");
        }
    }

    fn install_at_muxes(&mut self, which: impl Fn(usize) -> bool) {
        for &number in self.live.iter().filter(|&&number| which(number)) {
            let mux = &mut self.muxes[number];
            let previous = (self.now, Some(mux.snapshot()));
            let next = snapshot(&self.wanted, mux_address(number), None, previous);
            mux.install(next).expect("the next one");
        }
    }

    /// Replaces a host agent by another one with its records. Returns how many these are.
    fn restart_host(&mut self, number: usize) -> u64 {
        let old = &self.hosts[number];
        // The configuration tells a host that starts the former owners; here, the earlier snapshot does.
        let previous = (self.now, Some(old.snapshot()));
        let snapshot = snapshot(&self.wanted, host_address(number), Some(number), previous);
        let key = Key::new([number as u64 + 1, 9]);
        let mut new = Host::with_capacity(snapshot, 16_384, key).expect("its role");
        let records = records(|from, into| old.export(from, into));
        let imported = new.import(self.now, GAP, &records).expect("records");
        assert_eq!(imported.all_refused(), 0, "host {number}: {imported:?}");
        self.hosts[number] = new;
        imported.taken
    }

    /// Replaces a mux by another one with its records. Returns how many these are.
    fn restart_mux(&mut self, number: usize) -> u64 {
        let old = &self.muxes[number];
        let start = (self.now, None);
        let snapshot = snapshot(&self.wanted, mux_address(number), None, start);
        let key = Key::new([number as u64 + 1, 10]);
        let mut new = Mux::with_capacity(snapshot, flows_of(number), key).expect("its role");
        let records = records(|from, into| old.export(from, into));
        let imported = new.import(self.now, GAP, &records).expect("records");
        self.muxes[number] = new;
        imported.taken
    }

    fn change(&mut self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted);
        self.install_at_hosts();
        self.install_at_muxes(|_| true);
    }

    /// The vm that a client's segment reaches, by the mux that routers choose.
    fn arrives(&mut self, flow: u32, flags: u8, numbers: [u32; 2]) -> Option<usize> {
        let bytes = segment(client(flow), (VIP, 80), flags, numbers);
        self.buffer[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(&bytes);
        let frame = Frame::new(&mut self.buffer, HEADROOM, bytes.len()).expect("room");
        let mut frames = [frame];
        let mux = self.live[ecmp(flow) as usize % self.live.len()];
        self.muxes[mux].process(self.now, &mut frames);
        for hop in 0..=MOST_HOPS {
            if frames[0].verdict() != Verdict::Forward(FABRIC) {
                return None;
            }
            let outer: [u8; 4] = *frames[0].bytes()[30..].first_chunk().expect("IPv4");
            let host = self.host_by_address[&outer];
            frames[0].set_port(FABRIC);
            self.hosts[host].process(self.now, &mut frames);
            if frames[0].verdict() == Verdict::Forward(VM) {
                self.detours += u32::from(hop != 0);
                return Some(host);
            }
        }
        None
    }

    /// The present owner and the former ones of each slot, as the first host knows them.
    fn owners(&self) -> Vec<Vec<usize>> {
        let snapshot = self.hosts[0].snapshot();
        let number = |id| snapshot.backend_index(id).expect("configured") as usize;
        let slots = 0..Pool::default().table_size as usize;
        let of_slot = |slot| snapshot.owners(0, slot).map(number).collect();
        slots.map(of_slot).collect()
    }

    fn open(&mut self, flow: u32) {
        let home = self.arrives(flow, SYN, [100, 0]).expect("a new flow");
        let vm = (vm_address(home), 8080);
        let mut bytes = segment(vm, client(flow), SYN | ACK, [500, 101]);
        bytes[6..12].copy_from_slice(&derived_mac(vm.0.into()).0);
        self.buffer[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(&bytes);
        let mut frames = [Frame::new(&mut self.buffer, HEADROOM, bytes.len()).expect("room")];
        frames[0].set_port(VM);
        self.hosts[home].process(self.now, &mut frames);
        assert_eq!(frames[0].verdict(), Verdict::Forward(FABRIC), "the answer");
        assert_eq!(self.arrives(flow, ACK, [101, 501]), Some(home), "{flow}");
        self.homes.push(home as u8);
    }

    /// Some new flows, then a packet of every `step`th flow: how many reach another vm, or none.
    fn wrong(&mut self, step: usize) -> u32 {
        let first = self.homes.len() as u32;
        for flow in first..first + 2_000 {
            self.open(flow);
        }
        let flows = (0..self.homes.len() as u32).step_by(step);
        let mut wrong = 0;
        for flow in flows {
            let home = usize::from(self.homes[flow as usize]);
            wrong += u32::from(self.arrives(flow, ACK, [101, 501]) != Some(home));
        }
        wrong
    }
}

fn drain(backend: usize) -> impl Fn(&mut Wanted) {
    move |wanted| wanted[backend].0 = 0
}

#[test]
fn a_million_flows_stay_while_muxes_and_backends_change() {
    let mut fleet = Fleet::new(true);
    for flow in 0..FLOWS {
        fleet.open(flow);
    }
    let looked = |fleet: &mut Fleet, what: &str, step: usize| {
        let before = fleet.detours;
        let wrong = fleet.wrong(step);
        println!(
            "{what}: {} by a detour, {wrong} wrong",
            fleet.detours - before
        );
        assert_eq!(wrong, 0, "{what}");
    };
    looked(&mut fleet, "nothing happened", 10);
    // Changes are quicker than flows come.
    fleet.now = fleet.now + Duration::from_secs(120);

    // A tenth of the backends is replaced at once, and a mux dies.
    fleet.live.remove(3);
    fleet.change(|wanted| {
        for backend in 0..10 {
            wanted[backend].0 = 0;
            wanted[IN_USE + backend].0 = 10;
        }
    });
    looked(&mut fleet, "a tenth replaced, a mux gone", 1);

    fleet.add_mux();
    looked(&mut fleet, "a mux more", 1);

    for backend in 10..14 {
        fleet.change(drain(backend));
        looked(&mut fleet, "one drained after the other", 20);
    }
    // They come back step by step.
    for weight in 1..=3 {
        fleet.change(|wanted| (10..14).for_each(|backend| wanted[backend].0 = weight * 3));
        looked(&mut fleet, "a ramp", 20);
    }
    for turn in 0..4 {
        fleet.change(|wanted| {
            for backend in [20, 30, 40] {
                wanted[backend].1 = match turn % 2 {
                    0 => BackendState::Down,
                    _ => BackendState::Up,
                };
            }
        });
        looked(&mut fleet, "flaps", 20);
    }

    // Half of the muxes are a generation behind.
    drain(50)(&mut fleet.wanted);
    fleet.install_at_hosts();
    fleet.install_at_muxes(|number| number < MUXES / 2);
    looked(&mut fleet, "half of the muxes behind", 1);
    fleet.install_at_muxes(|number| number >= MUXES / 2);
    looked(&mut fleet, "all of them again", 1);
}

/// All backends are replaced, ten at a time, by ones that take their seats: each slot moves once. Each host agent and
/// mux is replaced by one that imports its records, some before their backends are, the others after that.
#[test]
fn flows_stay_while_all_backends_are_replaced_in_their_seats_and_all_processes_restart() {
    let mut fleet = Fleet::new(true);
    for flow in 0..100_000 {
        fleet.open(flow);
    }
    let first_owners = fleet.owners();
    let (mut of_hosts, mut of_muxes) = (0, 0);
    for (round, first) in (0..IN_USE).step_by(10).enumerate() {
        if first == 40 {
            fleet.live.remove(5);
        }
        for number in first..first + 5 {
            of_hosts += fleet.restart_host(number);
        }
        fleet.change(|wanted| {
            for backend in first..first + 10 {
                // Those that were replaced before come back under another seat, their flows still here.
                let next = (backend + IN_USE) % HOSTS;
                wanted[next] = (10, BackendState::Up, backend);
                wanted[backend].0 = 0;
            }
        });
        for number in first + 5..first + 10 {
            of_hosts += fleet.restart_host(number);
        }
        for number in [round, round + 10] {
            if fleet.live.contains(&number) {
                of_muxes += fleet.restart_mux(number);
            }
        }
        assert_eq!(fleet.wrong(3), 0, "from {first} on");
    }
    for number in IN_USE..HOSTS {
        of_hosts += fleet.restart_host(number);
    }
    assert_eq!(fleet.wrong(1), 0, "in the end");
    println!(
        "{} flows: {of_hosts} records of hosts and {of_muxes} of muxes were imported, {} detours",
        fleet.homes.len(),
        fleet.detours
    );
    assert!(of_hosts >= 100_000 && of_muxes >= 40_000);
    let moved = |(before, now): (&Vec<usize>, &Vec<usize>)| {
        assert_eq!(
            (before.len(), now.len()),
            (1, 2),
            "an owner and a former one"
        );
        assert_eq!(now[1], before[0]);
        (before[0] + IN_USE) % HOSTS == now[0]
    };
    assert!(first_owners.iter().zip(&fleet.owners()).all(moved));
}

/// The same breaks flows where hosts pass nothing on: the test above tests that they do.
#[test]
fn without_passing_on_a_change_breaks_flows() {
    let mut fleet = Fleet::new(false);
    for flow in 0..20_000 {
        fleet.open(flow);
    }
    fleet.live.remove(3);
    fleet.change(drain(0));
    assert!(fleet.wrong(1) > 50);
}
