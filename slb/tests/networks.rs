//! Two networks with the same addresses on three hosts: two host agents over AF_XDP, and a Linux machine whose
//! vms are behind bridges and VXLAN devices with static forwarding entries. Vms of a network reach each other,
//! those of the other do not notice.
//!
//! ```text
//!  blue1 red1        blue2 red2        blue3 red3
//!   host1 (slb)       host2 (slb)       host3 (Linux: bridge, VXLAN)
//!     └────────────── fabric 172.16.0.0/24 ─────┘
//! ```
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use slb_control::Config;
use slb_core::{Frame, HEADROOM, Host, Instant as Time, Key, PortId, Verdict};

use common::vxlan::{Device, INNER, KERNEL, KERNEL_MAC, OUR_MAC, OURS, missing, outer};
use common::world::{Process, World, lacking};

const TENANTS: [(&str, u32); 2] = [("blue", 5001), ("red", 5002)];
const HOSTS: [u32; 3] = [1, 2, 3];

fn mac(host: u32) -> String {
    // The same in both networks.
    format!("02:00:0a:01:00:1{host}")
}

struct Site {
    world: World,
    hosts: Vec<Process>,
}

impl Site {
    fn new() -> Self {
        let mut machines = vec!["fabric".to_owned()];
        for host in HOSTS {
            machines.push(format!("host{host}"));
            machines.extend(TENANTS.map(|(tenant, _)| format!("{tenant}{host}")));
        }
        let names: Vec<&str> = machines.iter().map(String::as_str).collect();
        let world = World::new("n", &names);
        for machine in &machines {
            world.on(
                machine,
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 \
                 net.ipv4.conf.default.send_redirects=0 net.ipv6.conf.all.accept_dad=0 \
                 net.ipv6.conf.default.accept_dad=0",
            );
        }
        world.on(
            "fabric",
            "ip link add fabric address 02:00:00:00:00:fe mtu 1600 type bridge",
        );
        world.on("fabric", "ip link set fabric up");
        world.on("fabric", "ip address add 172.16.0.1/24 dev fabric");
        let mut site = Self {
            world,
            hosts: Vec::new(),
        };
        for host in HOSTS {
            site.lay_host(host);
        }
        site
    }

    fn lay_host(&mut self, host: u32) {
        let (world, machine) = (&mut self.world, format!("host{host}"));
        world.plain_cable(&machine, "eth0", "fabric", &machine, 1600);
        world.on("fabric", &format!("ip link set {machine} master fabric"));
        world.on(
            &machine,
            &format!("ip address add 172.16.0.10{host}/24 dev eth0"),
        );
        for (tenant, vni) in TENANTS {
            let vm = format!("{tenant}{host}");
            world.plain_cable(&vm, "eth0", &machine, tenant, 1500);
            let own = mac(host);
            for command in [
                format!("ip link set eth0 address {own} up"),
                format!("ip address add 10.1.0.1{host}/16 dev eth0"),
                format!("ip address add fd00:1::1{host}/64 dev eth0"),
            ] {
                world.on(&vm, &command);
            }
            if host == 3 {
                let vxlan = format!("vx-{tenant}");
                for command in [
                    format!("ip link add br-{tenant} type bridge"),
                    format!(
                        "ip link add {vxlan} type vxlan id {vni} local 172.16.0.103 dstport 4789 nolearning"
                    ),
                    format!("ip link set {vxlan} master br-{tenant}"),
                    format!("ip link set {tenant} master br-{tenant}"),
                    format!("ip link set {vxlan} up"),
                    format!("ip link set br-{tenant} up"),
                ] {
                    world.on(&machine, &command);
                }
                for other in [1, 2] {
                    let (theirs, to) = (mac(other), format!("172.16.0.10{other}"));
                    world.on(
                        &machine,
                        &format!("bridge fdb add {theirs} dev {vxlan} dst {to} self permanent"),
                    );
                    world.on(
                        &machine,
                        &format!("bridge fdb add {theirs} dev {vxlan} master static"),
                    );
                    for address in [format!("10.1.0.1{other}"), format!("fd00:1::1{other}")] {
                        world.on(
                            &vm,
                            &format!(
                                "ip neighbour add {address} lladdr {theirs} dev eth0 nud permanent"
                            ),
                        );
                    }
                }
            }
            world.serve(&vm);
        }
        if host != 3 {
            self.start(host);
        }
    }

    fn start(&mut self, host: u32) {
        let mut text = format!(
            "[node]\nrole = \"host\"\nunderlay = \"172.16.0.10{host}\"\nconnections = 1024\nprobing = false\n"
        );
        for (tenant, vni) in TENANTS {
            text += &format!(
                "[[network]]\nname = \"{tenant}\"\nvni = {vni}\n\
                 address_spaces = [\"10.1.0.0/16\", \"fd00:1::/64\"]\n\
                 gateways = [\"10.1.0.1\", \"fd00:1::1\"]\n"
            );
            for of in HOSTS {
                text += &format!(
                    "[[vm]]\nname = \"{tenant}{of}\"\nnetwork = \"{tenant}\"\n\
                     address = [\"10.1.0.1{of}\", \"fd00:1::1{of}\"]\nmac = \"{}\"\n\
                     host = \"172.16.0.10{of}\"\n",
                    mac(of)
                );
            }
        }
        let path = self.world.path(&format!("host{host}.toml"));
        fs::write(&path, text).unwrap();
        let command = format!(
            "{} host --config {} --status {} --ring 1024 --io afxdp:eth0 --io blue{host}=afxdp:blue \
             --io red{host}=afxdp:red 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            path.display(),
            self.world.path(&format!("host{host}.sock")).display(),
            self.world.path("log").display(),
        );
        let process = self.world.start(&format!("host{host}"), &command);
        self.hosts.push(process);
    }

    fn succeeds(&self, machine: &str, command: &str) -> bool {
        let output = self.world.command(machine, command).output();
        output.is_ok_and(|output| output.status.success())
    }

    #[track_caller]
    fn expect(&self, machine: &str, command: &str) {
        let end = Instant::now() + Duration::from_secs(15);
        while !self.succeeds(machine, command) {
            if Instant::now() > end {
                let log = fs::read_to_string(self.world.path("log")).unwrap_or_default();
                let neighbours = self.world.on(machine, "ip neighbour show");
                let of = |host| {
                    let socket = self.world.path(&format!("host{host}.sock"));
                    let slb = env!("CARGO_BIN_EXE_slb");
                    let show = format!("{slb} status --socket {} --once", socket.display());
                    self.world.on("fabric", &show)
                };
                let (one, two) = (of(1), of(2));
                panic!("{machine}: {command} fails: {log}\n{neighbours}\n{one}\n{two}");
            }
            sleep(Duration::from_millis(100));
        }
    }
}

#[test]
#[ignore = "needs root"]
fn vms_of_two_networks_with_the_same_addresses_reach_their_own() {
    if let Some(why) = lacking(&["ethtool", "bridge", "ss"]) {
        skip!("{why}");
    }
    let site = Site::new();
    for (tenant, _) in TENANTS {
        for from in HOSTS {
            for to in HOSTS.into_iter().filter(|&to| to != from) {
                let vm = format!("{tenant}{from}");
                for address in [format!("10.1.0.1{to}"), format!("fd00:1::1{to}")] {
                    site.expect(&vm, &format!("ping -c 1 -W 1 {address}"));
                    // In fragments, too.
                    site.expect(&vm, &format!("ping -c 1 -W 1 -s 4000 {address}"));
                }
                let url = format!("http://10.1.0.1{to}:8080/");
                let said = site.world.on(&vm, &format!("curl -s -m 5 {url}"));
                assert_eq!(said, format!("{tenant}{to} 10.1.0.1{from}\n"));
                let sent = format!("curl -s -m 10 -o /dev/null -w %{{size_download}} {url}1000000");
                let size: usize = site.world.on(&vm, &sent).trim().parse().unwrap();
                assert!(size >= 1_000_000, "{size}");
            }
        }
    }
    // A vm of a host agent knows the others by their own MAC addresses, and one it has not is nobody's.
    let known = site.world.on("blue1", "ip neighbour show");
    for to in [2, 3] {
        for address in [format!("10.1.0.1{to} "), format!("fd00:1::1{to} ")] {
            let line = known.lines().find(|line| line.starts_with(&address));
            assert!(line.is_some_and(|line| line.contains(&mac(to))), "{known}");
        }
    }
    site.expect("blue1", "ping -c 1 -W 1 10.1.0.1");
    site.expect("blue1", "ping -c 1 -W 1 fd00:1::1");
    assert!(!site.succeeds("blue1", "ping -c 1 -W 1 10.1.0.99"));
    // Without the red vm of host 2, nobody answers red ones in its place, though the blue one is there.
    site.world.on("red2", "ip link set eth0 down");
    assert!(!site.succeeds("red1", "ping -c 1 -W 1 10.1.0.12"));
    assert!(!site.succeeds("red3", "ping -c 1 -W 1 10.1.0.12"));
    site.expect("blue1", "ping -c 1 -W 1 10.1.0.12");
}

/// A vm of ours, and the one at the kernel's end.
const VMS: [[u8; 6]; 2] = [[2, 0, 0x0a, 1, 0, 0x11], [2, 0, 0x0a, 1, 0, 0x12]];
const ADDRESSES: [[&str; 2]; 2] = [["10.1.0.17", "10.1.0.18"], ["fd00:1::11", "fd00:1::12"]];

/// A host agent at one end of the tunnel, with the first vm or the second.
fn agent(
    end: usize,
    underlay: usize,
) -> Host<'static, std::sync::Arc<slb_core::snapshot::Snapshot<'static>>> {
    let hosts = [KERNEL[underlay], OURS[underlay]];
    let (own_mac, next_hop) = if end == 0 {
        (KERNEL_MAC, OUR_MAC)
    } else {
        (OUR_MAC, KERNEL_MAC)
    };
    let mut text = format!(
        "[node]\nrole = \"host\"\nunderlay = \"{}\"\nmac = \"{own_mac}\"\nnext_hop = \"{next_hop}\"\n\
         mtu = 8900\nprobing = false\n[[network]]\nname = \"blue\"\nvni = 5001\n\
         address_spaces = [\"10.1.0.0/16\", \"fd00:1::/64\"]\n",
        hosts[end]
    );
    for vm in [0, 1] {
        let [a, b, c, d, e, f] = VMS[vm];
        text += &format!(
            "[[vm]]\nname = \"vm{vm}\"\nnetwork = \"blue\"\naddress = [\"{}\", \"{}\"]\nport = 1\n\
             host = \"{}\"\nmac = \"{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}\"\n",
            ADDRESSES[0][vm], ADDRESSES[1][vm], hosts[vm]
        );
    }
    let config = Config::parse("blue.toml", &text).unwrap();
    let snapshot = config.snapshot(None).unwrap();
    Host::with_capacity(snapshot, 1024, Key::new([1, 2])).expect("its role")
}

/// Passes a frame that arrives by a port through a host agent.
fn through(
    host: &mut Host<'static, std::sync::Arc<slb_core::snapshot::Snapshot<'static>>>,
    port: u16,
    frame: &[u8],
) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(frame);
    let mut frames = [Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap()];
    frames[0].set_port(PortId(port));
    host.process(Time::from_secs(1), &mut frames);
    (frames[0].verdict(), frames[0].bytes().to_vec())
}

/// Datagrams and segments of many sizes, hop limits and traffic classes from the first vm to the second.
fn traffic() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for number in 0..400_u16 {
        let link = PacketBuilder::ethernet2(VMS[0], VMS[1]);
        let ttl = (number % 255) as u8 + 1;
        let data = vec![number as u8; usize::from(number) * 7 % 1400 + 20];
        let mut frame = Vec::new();
        let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let ip = match number % 2 {
            0 => link.ipv4([10, 1, 0, 17], [10, 1, 0, 18], ttl),
            _ => link.ipv6(octets(ADDRESSES[1][0]), octets(ADDRESSES[1][1]), ttl),
        };
        let (from, to) = (1000 + number, 2000 + number % 7);
        match number % 3 {
            0 => ip.udp(from, to).write(&mut frame, &data),
            1 => ip.tcp(from, to, 1, 2).syn().write(&mut frame, &data),
            _ => ip.tcp(from, to, 1, 2).ack(3).write(&mut frame, &data),
        }
        .unwrap();
        // DSCP, without ECN.
        let class = (number as u8 & 0x3f) << 2;
        if number % 2 == 0 {
            frame[15] = class;
            frame[24..26].fill(0);
            let sum = slb_core::wire::checksum::checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            frame[14] |= class >> 4;
            frame[15] |= class << 4;
        }
        all.push(frame);
    }
    all
}

#[test]
#[ignore = "needs root"]
fn what_a_host_agent_carries_between_vms_is_what_a_vxlan_device_does_both_ways() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let directory = tempfile::tempdir().unwrap();
    let frames = traffic();
    for underlay in [0, 1] {
        let Some(device) = Device::new(["n4", "n6"][underlay], underlay) else {
            skip!("a network namespace cannot be made here")
        };
        device.forward_only(&VMS[1..], underlay);
        // What leaves a vm, as the device and a host agent in its place encapsulate it.
        let mut here = agent(0, underlay);
        let carried: Vec<Vec<u8>> = frames
            .iter()
            .map(|frame| {
                let (verdict, carried) = through(&mut here, 1, frame);
                assert_eq!(verdict, Verdict::Forward(PortId(0)));
                carried
            })
            .collect();
        let kernel = device.pass(&frames, false, directory.path());
        assert_eq!(kernel.len(), carried.len(), "over {}", OURS[underlay]);
        let mut there = agent(1, underlay);
        for ((ours, kernel), frame) in carried.iter().zip(&kernel).zip(&frames) {
            assert_eq!(outer(ours, underlay), outer(kernel, underlay));
            assert_eq!(ours[INNER[underlay]..], kernel[INNER[underlay]..]);
            // The host agent at the other end delivers both as they were.
            for sent in [ours, kernel] {
                let (verdict, got) = through(&mut there, 0, sent);
                assert_eq!((verdict, &got), (Verdict::Forward(PortId(1)), frame));
            }
        }
        // What a host agent encapsulates, as the device takes it out.
        let back: Vec<Vec<u8>> = frames
            .iter()
            .map(|frame| {
                let mut frame = frame.clone();
                frame[..6].copy_from_slice(&VMS[0]);
                frame[6..12].copy_from_slice(&VMS[1]);
                let (at, len) = if frame[12] == 8 { (26, 4) } else { (22, 16) };
                let (one, other) = frame[at..at + 2 * len].split_at_mut(len);
                one.swap_with_slice(other);
                frame
            })
            .collect();
        let carried: Vec<Vec<u8>> = back
            .iter()
            .map(|frame| through(&mut there, 1, frame).1)
            .collect();
        let kernel = device.pass(&carried, true, directory.path());
        assert_eq!(kernel, back, "over {}", OURS[underlay]);
    }
}
