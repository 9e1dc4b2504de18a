//! The kernel as a router between two links: one to the outside, and one to a vm.

use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant as Clock};

use slb_core::Instant;
use slb_io_pcap::{Format, Writer};

use super::{Namespace, read, sh};

/// One side of the router.
pub struct Leg<'t> {
    /// The router's own MAC address.
    pub own: [u8; 6],
    /// The router's own addresses, IPv4 and IPv6, with the lengths of their prefixes.
    pub addresses: [&'t str; 2],
    /// The MAC address of the only neighbour.
    pub neighbour: [u8; 6],
    /// The neighbour's addresses, IPv4 and IPv6.
    pub neighbours: [&'t str; 2],
}

/// A router in a namespace. Frames are sent to it, and captured, at the other ends of its links.
pub struct Router {
    namespace: Namespace,
    vm_link: String,
    vm: [u8; 6],
    captures: Vec<Child>,
}

impl Drop for Router {
    fn drop(&mut self) {
        for capture in &mut self.captures {
            capture.kill().ok();
            capture.wait().ok();
        }
        sh(&format!("ip link del {}", self.vm_link));
    }
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Router {
    /// Makes a router with default routes to the outside; `None` if no namespace can be made.
    pub fn new(tag: &str, outside: &Leg<'_>, vm: &Leg<'_>) -> Option<Self> {
        let namespace = Namespace::new(tag)?;
        let router = Self {
            vm_link: format!("{}b", namespace.link),
            namespace,
            vm: vm.neighbour,
            captures: Vec::new(),
        };
        for (link, name) in [(&router.namespace.link, "outside"), (&router.vm_link, "vm")] {
            assert!(sh(&format!(
                "ip link add {link} type veth peer name {name} netns {} && ip link set {link} mtu \
                 9000 && sysctl -qw net.ipv6.conf.{link}.disable_ipv6=1 && ip link set {link} up",
                router.namespace.name
            )));
        }
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            "net.ipv4.conf.all.send_redirects=0",
        ] {
            router.run(&format!("sysctl -qw {setting}"));
        }
        for (name, leg) in [("outside", outside), ("vm", vm)] {
            let own = mac(leg.own);
            router.run(&format!("ip link set {name} address {own} mtu 9000 up"));
            for address in leg.addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                router.run(&format!("ip address add {address} dev {name} {nodad}"));
            }
            router.run(&format!("sysctl -qw net.ipv4.conf.{name}.rp_filter=0"));
            let of = mac(leg.neighbour);
            for neighbour in leg.neighbours {
                router.run(&format!(
                    "ip neighbour add {neighbour} lladdr {of} dev {name} nud permanent"
                ));
            }
        }
        let [ipv4, ipv6] = outside.neighbours;
        router.run(&format!("ip route add default via {ipv4}"));
        router.run(&format!("ip -6 route add default via {ipv6}"));
        Some(router)
    }

    /// Runs a command in the router's namespace.
    pub fn run(&self, command: &str) {
        self.namespace.run(command);
    }

    /// Loads an nftables script.
    pub fn load(&self, rules: &str, directory: &Path) {
        let path = directory.join("rules.nft");
        fs::write(&path, rules).unwrap();
        self.run(&format!("nft -f {}", path.display()));
    }

    /// Sends Ethernet frames, those with the vm's source address from the vm and all others from
    /// outside, and returns the frames that come out outside and at the vm: `expected` ones, or
    /// more.
    pub fn forward(
        &mut self,
        frames: impl IntoIterator<Item = Vec<u8>>,
        expected: usize,
        directory: &Path,
    ) -> [Vec<Vec<u8>>; 2] {
        let sent = directory.join("sent.pcap");
        let file = BufWriter::new(fs::File::create(&sent).unwrap());
        let mut writer = Writer::new(file, Format::Pcap).unwrap();
        for frame in frames {
            writer.write(Instant::from_secs(1), &frame).unwrap();
        }
        writer.finish().unwrap();
        let seen = [directory.join("outside.pcap"), directory.join("vm.pcap")];
        for (file, link) in seen.iter().zip([&self.namespace.link, &self.vm_link]) {
            let _ = fs::remove_file(file);
            let tcpdump = Command::new("tcpdump")
                .args(["-i", link, "-Q", "in", "--immediate-mode", "-U"])
                // The usual ring has room for few frames, and loses some on a busy machine.
                .args(["-s", "9100", "-B", "65536", "-w"])
                .arg(file)
                .stderr(Stdio::null())
                .spawn();
            self.captures.push(tcpdump.unwrap());
        }
        let deadline = Clock::now() + Duration::from_secs(10);
        let is_ready = |file: &PathBuf| fs::metadata(file).is_ok_and(|data| data.len() >= 24);
        while !seen.iter().all(is_ready) && Clock::now() < deadline {
            sleep(Duration::from_millis(5));
        }
        let cache = directory.join("sides");
        let (sent, cache) = (sent.display(), cache.display());
        assert!(sh(&format!(
            "tcpprep --mac={} --pcap={sent} --cachefile={cache} >/dev/null 2>&1 && tcpreplay \
             --cachefile={cache} -I {} -i {} --pps 1000 {sent} >/dev/null 2>&1",
            mac(self.vm),
            self.namespace.link,
            self.vm_link
        )));
        let count = || read(&seen[0]).len() + read(&seen[1]).len();
        let deadline = Clock::now() + Duration::from_millis(1500);
        while count() < expected && Clock::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        // Unexpected packets would come at once.
        sleep(Duration::from_millis(50));
        seen.map(|file| read(&file).into_iter().map(|(_, frame)| frame).collect())
    }
}
