//! The reference's four scenarios: their JSON imported, and packets sent as their texts say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;

use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
use slb_control::azure::{Input, Inventory, import};
use slb_control::{Config, Role};
use slb_core::health::{Condition, Health, ProbePolicy};
use slb_core::snapshot::Snapshot;
use slb_core::spec::BackendState;
use slb_core::{Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict};
use std::sync::Arc;

const INVENTORY: &str = r#"
vni = 5001
[node]
role = "mux"
underlay = "172.16.0.101"
muxes = ["172.16.0.101"]
[[public_ip]]
id = "WebPublicIP"
address = "40.50.60.70"
[[public_ip]]
id = "OutboundPublicIP"
address = "40.50.60.70"
[[public_ip]]
id = "ZoneRedundantPublicIP"
address = "40.50.60.70"
"#;

/// The example of the reference whose load balancer has this name, imported.
fn example(name: &str, backends: &[(&str, &str)]) -> Option<Config> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference");
    let text = fs::read_to_string(folder.join("azure-load-balancer.md")).ok()?;
    let blocks = text
        .split("```json\n")
        .filter_map(|b| b.split("\n```").next());
    let named = format!("\"name\": \"{name}\"");
    let text = blocks.into_iter().find(|block| block.contains(&named))?;
    let mut inventory = INVENTORY.to_owned();
    for (id, address) in backends {
        inventory +=
            &format!("[[backend]]\n{id}\naddress = \"{address}\"\nhost = \"172.16.0.101\"\n");
    }
    let inventory = Inventory::parse("inventory", &inventory).expect("a good inventory");
    let imported = import(&[Input { file: name, text }], &inventory);
    let imported = imported.unwrap_or_else(|errors| panic!("{errors}"));
    Some(Config::parse("imported", &imported.toml).unwrap_or_else(|e| panic!("{e}")))
}

/// A mux, and a host agent that all vms are at.
struct World {
    config: Config,
    /// Address, port and MAC address of each vm.
    vms: Vec<(IpAddr, PortId, [u8; 6])>,
    snapshot: Arc<Snapshot<'static>>,
    mux: Mux<'static, Arc<Snapshot<'static>>>,
    host: Host<'static, Arc<Snapshot<'static>>>,
    now: Instant,
}

impl World {
    fn new(config: Config) -> Self {
        let snapshot = config.snapshot(None).expect("good");
        let mut at_host = config.clone();
        at_host.node.role = Role::Host;
        let vms = at_host.vms().into_iter();
        let vms = vms.filter_map(|vm| Some((*vm.addresses.first()?, vm.port?, vm.mac.0)));
        Self {
            vms: vms.collect(),
            mux: Mux::with_capacity(Arc::clone(&snapshot), 10_000, Key::new([1, 2]))
                .expect("its role"),
            host: Host::with_capacity(
                at_host.snapshot(None).expect("good"),
                10_000,
                Key::new([3, 4]),
            )
            .expect("its role"),
            snapshot,
            config,
            now: Instant::from_secs(1),
        }
    }

    /// Puts what probes found in place.
    fn set(&mut self, address: &str, state: BackendState) {
        for pool in &mut self.config.pools {
            for backend in &mut pool.backends {
                if backend.address == ip(address) {
                    backend.state = state;
                }
            }
        }
        self.snapshot = self.config.snapshot(Some(&self.snapshot)).expect("good");
        self.mux
            .install(Arc::clone(&self.snapshot))
            .expect("it follows");
    }

    /// Sends a packet of a client's; the address of the vm that gets it, and the packet as it does.
    fn arrive(&mut self, packet: &[u8]) -> Option<(IpAddr, Vec<u8>)> {
        let bytes = [&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 2, 8, 0], packet].concat();
        let (verdict, bytes) = self.step(&bytes, Step::Mux);
        if !matches!(verdict, Verdict::Forward(_)) {
            return None;
        }
        let (verdict, bytes) = self.step(&bytes, Step::Host(PortId(0)));
        let Verdict::Forward(port) = verdict else {
            panic!("{verdict:?}");
        };
        let vm = self.vms.iter().find(|(_, own, _)| *own == port);
        let (address, ..) = *vm.expect("a vm");
        Some((address, bytes[14..].to_vec()))
    }

    /// Sends a packet of a vm's out; what becomes of it, as the world gets it.
    fn leave(&mut self, vm: &str, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let known = self.vms.iter().find(|(address, ..)| *address == ip(vm));
        let (_, port, mac) = *known.expect("a vm");
        let bytes = [&[2, 0, 0, 0, 0, 9], &mac[..], &[8, 0], packet].concat();
        let (verdict, bytes) = self.step(&bytes, Step::Host(port));
        (verdict, bytes[14..].to_vec())
    }

    fn step(&mut self, bytes: &[u8], step: Step) -> (Verdict, Vec<u8>) {
        self.now = self.now + std::time::Duration::from_micros(10);
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(bytes);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, bytes.len()).expect("room")];
        match step {
            Step::Mux => self.mux.process(self.now, &mut frames),
            Step::Host(port) => {
                frames[0].set_port(port);
                self.host.process(self.now, &mut frames);
            }
        }
        (frames[0].verdict(), frames[0].bytes().to_vec())
    }

    /// Counts the connections that each vm gets, of `count` new ones.
    fn spread(&mut self, count: u32, to: SocketAddrV4) -> BTreeMap<IpAddr, u32> {
        let mut got = BTreeMap::new();
        for number in 0..count {
            let client = Ipv4Addr::from_bits(0x0102_0304 + number * 7919);
            let from = SocketAddrV4::new(client, 1024 + (number % 60_000) as u16);
            let (vm, _) = self.arrive(&syn(from, to)).expect("it gets somewhere");
            *got.entry(vm).or_insert(0) += 1;
        }
        got
    }
}

#[derive(Clone, Copy)]
enum Step {
    Mux,
    Host(PortId),
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn at(text: &str) -> SocketAddrV4 {
    text.parse().expect("an address and a port")
}

fn syn(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    tcp(
        from,
        to,
        etherparse::PacketBuilderStep::<etherparse::TcpHeader>::syn,
    )
}

fn tcp(
    from: SocketAddrV4,
    to: SocketAddrV4,
    flags: impl FnOnce(
        etherparse::PacketBuilderStep<etherparse::TcpHeader>,
    ) -> etherparse::PacketBuilderStep<etherparse::TcpHeader>,
) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64);
    let builder = flags(builder.tcp(from.port(), to.port(), 1, 1000));
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &[]).expect("memory");
    bytes
}

/// Source and destination of a packet, read by etherparse.
fn ends(packet: &[u8]) -> (SocketAddrV4, SocketAddrV4) {
    let headers = PacketHeaders::from_ip_slice(packet).expect("a packet");
    let (net, transport) = (headers.net.expect("IP"), headers.transport);
    let (ip, _) = net.ipv4_ref().expect("IPv4");
    let Some(TransportHeader::Tcp(tcp)) = transport else {
        panic!("{transport:?}");
    };
    (
        SocketAddrV4::new(ip.source.into(), tcp.source_port),
        SocketAddrV4::new(ip.destination.into(), tcp.destination_port),
    )
}

fn shares(got: &BTreeMap<IpAddr, u32>, vms: &[&str]) -> f64 {
    let total: u32 = got.values().sum();
    let own: u32 = vms.iter().filter_map(|vm| got.get(&ip(vm))).sum();
    f64::from(own) / f64::from(total)
}

/// A backend's health as its probe, of the configuration, sees it.
fn health(config: &Config) -> Health {
    let probe = &config.probes[0];
    let policy = ProbePolicy {
        interval: probe.interval,
        timeout: probe.timeout,
        threshold: probe.threshold,
    };
    Health::new(policy, Condition::Healthy, Instant::from_secs(0))
}

/// Answers all its probes alike, until it turns; the time that it does so.
fn until_it_turns(health: &mut Health, is_well: bool) -> u64 {
    loop {
        let now = health.due();
        assert!(health.begin(now));
        let changed = match is_well {
            true => health.succeeded(),
            false => health.failed(),
        };
        if changed.is_some() {
            return now.as_nanos() / 1_000_000_000;
        }
    }
}

macro_rules! example {
    ($($arguments:tt)*) => {
        match example($($arguments)*) {
            Some(config) => config,
            None => skip!("the reference is not beside this project"),
        }
    };
}

#[test]
fn a_web_application() {
    let vms = ["10.0.1.4", "10.0.1.5", "10.0.1.6"];
    let config = example!("WebLB", &vms.map(|vm| ("", vm)));
    let mut vm3 = health(&config);
    let mut world = World::new(config);
    let got = world.spread(3000, at("40.50.60.70:80"));
    for vm in vms {
        let share = shares(&got, &[vm]);
        assert!((0.30..0.37).contains(&share), "{vm}: {share}");
    }
    // "After 2 failures: VM3 removed from pool. Distribution now: 50% VM1, 50% VM2."
    assert_eq!(until_it_turns(&mut vm3, false), 15);
    world.set("10.0.1.6", BackendState::Down);
    let got = world.spread(3000, at("40.50.60.70:80"));
    // Flows of before are pinned: only ports that were not used count.
    assert!(shares(&got, &["10.0.1.6"]) == 0.0, "{got:?}");
    let share = shares(&got, &["10.0.1.4"]);
    assert!((0.45..0.55).contains(&share), "{share}");
}

#[test]
fn three_tiers() {
    let names = |tier: &str, count: usize| -> Vec<String> {
        (1..=count)
            .map(|n| format!("id = \"{tier}VM{n}\""))
            .collect()
    };
    let tier = |name: &str, tier: &str, network: u8, count: usize| {
        let (names, first) = (names(tier, count), 4);
        let addresses: Vec<String> = (0..count)
            .map(|n| format!("10.0.{network}.{}", first + n))
            .collect();
        let pairs = names.iter().zip(&addresses);
        let pairs: Vec<_> = pairs.map(|(n, a)| (n.as_str(), a.as_str())).collect();
        example(name, &pairs).map(World::new)
    };
    let (Some(mut web), Some(mut app), Some(mut database)) = (
        tier("PublicWebLB", "Web", 1, 3),
        tier("InternalAppLB", "App", 2, 3),
        tier("InternalDBLB", "DB", 3, 2),
    ) else {
        skip!("the reference is not beside this project");
    };
    // Step 1: user to web tier.
    let (web_vm, packet) = web
        .arrive(&syn(at("1.2.3.4:5000"), at("40.50.60.70:443")))
        .expect("a vm");
    assert_eq!(
        ends(&packet),
        (at("1.2.3.4:5000"), at(&format!("{web_vm}:443")))
    );
    // Step 2: web tier to app tier, where a client stays at its vm.
    // The vm calls out under 40.50.60.70, but not to the inside: the app vm sees 10.0.1.4.
    let mut call = |web_vm: &str, port: u16| {
        let from = at(&format!("{web_vm}:{port}"));
        let sent = syn(from, at("10.0.2.100:8080"));
        let (verdict, packet) = web.leave(web_vm, &sent);
        assert_eq!((verdict, &packet), (Verdict::Pass, &sent));
        let (vm, packet) = app.arrive(&packet).expect("a vm");
        assert_eq!(ends(&packet), (from, at(&format!("{vm}:8080"))));
        vm
    };
    let ports = 40_000..40_100;
    let app_vms: BTreeSet<IpAddr> = ports.map(|port| call(&web_vm.to_string(), port)).collect();
    assert_eq!(app_vms.len(), 1, "{app_vms:?}");
    // The other web vms are other clients, and so not all at one app vm.
    let all: BTreeSet<IpAddr> = ["10.0.1.4", "10.0.1.5", "10.0.1.6"]
        .map(|web_vm| call(web_vm, 50_000))
        .into();
    assert!(all.len() > 1, "{all:?}");
    let to_the_internet = syn(at("10.0.1.4:50001"), at("93.184.216.34:443"));
    let (verdict, packet) = web.leave("10.0.1.4", &to_the_internet);
    assert_eq!(verdict, Verdict::Forward(PortId(0)));
    assert_eq!(*ends(&packet).0.ip(), Ipv4Addr::new(40, 50, 60, 70));
    // Step 3: app tier to database, which sees the VIP itself.
    let app_vm = app_vms.first().expect("one");
    let (from, vip) = (at(&format!("{app_vm}:50000")), at("10.0.3.100:1433"));
    let (db_vm, packet) = database.arrive(&syn(from, vip)).expect("a vm");
    assert_eq!(ends(&packet), (from, vip));
    // Steps 4 to 6: the answers go straight back, from the VIP.
    let answer = tcp(vip, from, |builder| builder.syn().ack(2));
    let (verdict, packet) = database.leave(&db_vm.to_string(), &answer);
    assert_eq!(verdict, Verdict::Forward(PortId(0)));
    assert_eq!(ends(&packet), (vip, from));
    for (world, vm, port, client, vip) in [
        (
            &mut app,
            *app_vm,
            8080,
            format!("{web_vm}:40000"),
            "10.0.2.100:8080",
        ),
        (
            &mut web,
            web_vm,
            443,
            "1.2.3.4:5000".to_owned(),
            "40.50.60.70:443",
        ),
    ] {
        let answer = tcp(at(&format!("{vm}:{port}")), at(&client), |b| b.syn().ack(2));
        let (verdict, packet) = world.leave(&vm.to_string(), &answer);
        assert_eq!(verdict, Verdict::Forward(PortId(0)));
        assert_eq!(ends(&packet), (at(vip), at(&client)));
    }
}

#[test]
fn outbound_with_2048_ports_each() {
    let vms = ["10.0.1.4", "10.0.1.5", "10.0.1.6"];
    let config = example!(
        "OutboundLB",
        &[
            ("id = \"VM1\"", vms[0]),
            ("id = \"VM2\"", vms[1]),
            ("id = \"VM3\"", vms[2])
        ]
    );
    let mut world = World::new(config);
    let api = at("93.184.216.34:443");
    let (verdict, packet) = world.leave(vms[0], &syn(at("10.0.1.4:55000"), api));
    assert_eq!(verdict, Verdict::Forward(PortId(0)));
    let (outside, to) = ends(&packet);
    assert_eq!((*outside.ip(), to), (Ipv4Addr::new(40, 50, 60, 70), api));
    // Steps 4 to 6: the answer comes back to the vm and its port.
    let answer = tcp(api, outside, |builder| builder.syn().ack(2));
    let (vm, packet) = world.arrive(&answer).expect("a vm");
    assert_eq!(
        (vm, ends(&packet)),
        (ip(vms[0]), (api, at("10.0.1.4:55000")))
    );
    // Each vm has 2048 connections to one place, and its own ports for them.
    let mut taken = BTreeSet::from([outside.port()]);
    for (place, vm) in vms.into_iter().enumerate() {
        let first = if place == 0 { 1 } else { 0 };
        for number in first..2048u16 {
            let from = at(&format!("{vm}:{}", 10_000 + number));
            let (verdict, packet) = world.leave(vm, &syn(from, api));
            assert_eq!(verdict, Verdict::Forward(PortId(0)), "{vm} {number}");
            assert!(taken.insert(ends(&packet).0.port()), "a port twice");
        }
        let (verdict, _) = world.leave(vm, &syn(at(&format!("{vm}:9999")), api));
        assert_eq!(verdict, Verdict::Reply, "{vm}: a RST, by enableTcpReset");
    }
    assert_eq!(taken.len(), 3 * 2048);
    assert!(taken.iter().all(|&port| port >= 1024));
    // Another place is another matter: a port serves several.
    let other = world.leave(vms[0], &syn(at("10.0.1.4:9999"), at("93.184.216.35:443")));
    assert_eq!(other.0, Verdict::Forward(PortId(0)));
}

#[test]
fn a_zone_fails_and_comes_back() {
    let zones = [
        ["10.0.1.4", "10.0.1.5"],
        ["10.0.1.6", "10.0.1.7"],
        ["10.0.1.8", "10.0.1.9"],
    ];
    // "... other VMs", the JSON says: the inventory knows them.
    let listed = zones.concat();
    let listed: Vec<_> = listed
        .into_iter()
        .map(|vm| ("pool = \"ZoneBackends\"", vm))
        .collect();
    let config = example!("ZoneRedundantLB", &listed);
    assert_eq!(config.pools[0].backends.len(), 6);
    let mut one = health(&config);
    let mut world = World::new(config);
    let vip = at("40.50.60.70:80");
    let even = |got: &BTreeMap<IpAddr, u32>, expected: [f64; 3]| {
        for (zone, expected) in zones.iter().zip(expected) {
            let share = shares(got, zone);
            assert!(
                (share - expected).abs() < 0.04,
                "{share}, expected {expected}"
            );
        }
    };
    even(&world.spread(6000, vip), [1.0 / 3.0; 3]);
    // "After 2 consecutive failures (~10 seconds)": the second one is 5 s after the first.
    assert_eq!(until_it_turns(&mut one, false), 5);
    for vm in zones[0] {
        world.set(vm, BackendState::Down);
    }
    let got = world.spread(6000, vip);
    assert_eq!(
        shares(&got, &zones[0]),
        0.0,
        "new connections to the zone that failed"
    );
    even(&got, [0.0, 0.5, 0.5]);
    // "Automatic recovery".
    assert_eq!(until_it_turns(&mut one, true), 15);
    for vm in zones[0] {
        world.set(vm, BackendState::Up);
    }
    world.now = world.now + std::time::Duration::from_secs(300); // what was pinned is forgotten
    even(&world.spread(6000, vip), [1.0 / 3.0; 3]);
}
