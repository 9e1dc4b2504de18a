//! A mux, a host agent with some vms, a router and a client: the smallest site that balances.
//!
//! ```text
//!  client 198.51.100.10 ── router ──┬─────────────┐
//!                                  mux           host ──┬─ vm1
//!                              172.16.0.11   172.16.0.101 └─ vm2
//! ```
//! All vms have one address, each in a network of its own. Over AF_XDP they are behind veth, over TUN behind
//! tap devices, and the node's addresses are 172.17.0.11 and 172.17.0.101.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::fabric;
use super::lab::Io;
use super::world::World;

pub const DIP: &str = "10.10.1.11";
pub const DIP6: &str = "fd00:10:1::11";
/// The vms' gateway. Over AF_XDP the host's kernel takes what is for it, if it gets it.
pub const GATEWAY_MAC: &str = "02:00:00:00:00:01";

pub struct Site {
    pub world: World,
    pub io: Io,
}

impl Site {
    /// Makes a site with `vms` vms, further machines, and VIPs that are routed to the mux. `kind`
    /// distinguishes sites that run at once.
    pub fn new(io: Io, kind: &str, (vms, more): (u32, &[&str]), vips: &[&str]) -> Self {
        let kind = format!("{kind}{}", if io == Io::AfXdp { "x" } else { "t" });
        let of_vms: Vec<String> = (1..=vms).map(|number| format!("vm{number}")).collect();
        let mut machines = vec!["client", "router", "mux", "host"];
        machines.extend(of_vms.iter().map(String::as_str));
        machines.extend(more);
        let site = Self {
            world: World::new(&kind, &machines),
            io,
        };
        for machine in machines {
            site.world.on(
                machine,
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0",
            );
        }
        fabric::lay_edge(&site.world);
        for (machine, number) in [("mux", 11), ("host", 101)] {
            site.lay_node(machine, number);
        }
        for vip in vips {
            let (family, length, mux) = match vip.contains(':') {
                true => ("-6", 128, "fd00:16::11"),
                false => ("-4", 32, "172.16.0.11"),
            };
            let route = format!("ip {family} route add {vip}/{length}");
            site.on("router", &[&format!("{route} via {mux}")]);
            if io == Io::Tun {
                site.on("mux", &[&format!("{route} dev slb0")]);
            }
        }
        for number in 1..=vms {
            site.lay_vm(number);
        }
        site
    }

    pub fn on(&self, machine: &str, commands: &[&str]) {
        fabric::run(&self.world, machine, commands);
    }

    /// The third number of the addresses that nodes have.
    pub fn network(&self) -> u32 {
        if self.io == Io::Tun { 17 } else { 16 }
    }

    /// Connects a node to the fabric, with this number for the last part of its addresses.
    pub fn lay_node(&self, machine: &str, number: u32) {
        fabric::lay_node(&self.world, machine, number);
        if self.io == Io::Tun {
            self.on(
                machine,
                &[
                    "ip tuntap add dev slb0 mode tun",
                    "ip link set slb0 mtu 1600 txqueuelen 5000 up",
                    &format!("ip route add 172.17.0.{number}/32 dev slb0"),
                    &format!("ip -6 route add fd00:17::{number}/128 dev slb0"),
                ],
            );
            self.on(
                "router",
                &[
                    &format!("ip route add 172.17.0.{number}/32 via 172.16.0.{number}"),
                    &format!("ip route add fd00:17::{number}/128 via fd00:16::{number}"),
                ],
            );
        }
    }

    /// A vm, whose end at the host is `to-vmN`; over TUN there is a tap device `vmN` beside it.
    fn lay_vm(&self, number: u32) {
        let vm = format!("vm{number}");
        let device = format!("to-{vm}");
        self.world.plain_cable(&vm, "eth0", "host", &device, 1500);
        match self.io {
            Io::AfXdp => self.on(
                "host",
                &[&format!("ip link set {device} address {GATEWAY_MAC}")],
            ),
            Io::Tun => self.on(
                "host",
                &[
                    &format!("ip tuntap add dev {vm} mode tap"),
                    &format!("ip link add bridge{number} type bridge"),
                    &format!("ip link set {vm} master bridge{number} up"),
                    &format!("ip link set {device} master bridge{number}"),
                    &format!("ip link set bridge{number} up"),
                ],
            ),
        }
        self.on(
            &vm,
            &[
                &format!("ip link set eth0 address 02:00:0a:0a:0{number}:0b up"),
                &format!("ip address add {DIP}/24 dev eth0"),
                &format!("ip address add {DIP6}/64 dev eth0"),
                "ip route add default via 10.10.1.1",
                "ip route add default via fd00:10:1::1",
            ],
        );
        // The networks have one gateway too, and no device of the kernel's that could be it.
        for gateway in ["10.10.1.1", "fd00:10:1::1"] {
            let own = format!("lladdr {GATEWAY_MAC} nud permanent dev eth0");
            self.on(&vm, &[&format!("ip neighbour replace {gateway} {own}")]);
        }
    }

    /// The devices of a role, as `--io` takes them.
    pub fn devices(&self, role: &str, vms: u32) -> String {
        if role == "mux" {
            return match self.io {
                Io::AfXdp => "--io afxdp:eth0".to_owned(),
                Io::Tun => "--io tun:slb0".to_owned(),
            };
        }
        let mut all = match self.io {
            Io::AfXdp => "--io 0=afxdp:eth0".to_owned(),
            Io::Tun => "--io 0=tun:slb0".to_owned(),
        };
        for number in 1..=vms {
            all += &match self.io {
                Io::AfXdp => format!(" --io vm{number}=afxdp:to-vm{number}"),
                Io::Tun => format!(" --io vm{number}=tap:vm{number}"),
            };
        }
        all
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < end, "waited in vain: {what}");
            sleep(Duration::from_millis(20));
        }
    }
}
