//! The kernel with nftables, in a namespace between two links.

use std::fs;
use std::io::BufWriter;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant as Clock};

use slb_core::Instant;
use slb_io_pcap::{Format, Writer};

use super::scenario::{KERNEL_CLIENT, KERNEL_VM, ROUTER, Received, Scenario, Side, VM, frame};
use crate::common::{Namespace, read, sh};

/// A router in a namespace, between two links of this one.
pub(super) struct Kernel {
    client: Namespace,
    vm_link: String,
    captures: Vec<Child>,
}

impl Drop for Kernel {
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

impl Kernel {
    pub(super) fn new(tag: &str) -> Option<Self> {
        let client = Namespace::new(tag)?;
        let vm_link = format!("{}b", client.link);
        for (link, name) in [(&client.link, "client"), (&vm_link, "vm")] {
            assert!(sh(&format!(
                "ip link add {link} type veth peer name {name} netns {} && ip link set {link} mtu \
                 9000 && sysctl -qw net.ipv6.conf.{link}.disable_ipv6=1 && ip link set {link} up",
                client.name
            )));
        }
        let namespace = &client;
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            "net.ipv4.conf.all.send_redirects=0",
        ] {
            namespace.run(&format!("sysctl -qw {setting}"));
        }
        for (name, address, address6, own) in [
            ("client", "192.0.2.2/24", "fd00:1::2/64", KERNEL_CLIENT),
            ("vm", "10.10.1.254/24", "fd00:10::254/64", KERNEL_VM),
        ] {
            namespace.run(&format!(
                "ip link set {name} address {} mtu 9000 up",
                mac(own)
            ));
            namespace.run(&format!("ip address add {address} dev {name}"));
            namespace.run(&format!("ip address add {address6} dev {name} nodad"));
            namespace.run(&format!("sysctl -qw net.ipv4.conf.{name}.rp_filter=0"));
        }
        for (neighbour, of, at) in [
            ("192.0.2.1", ROUTER, "client"),
            ("fd00:1::1", ROUTER, "client"),
            ("10.10.1.1", VM, "vm"),
            ("fd00:10::1", VM, "vm"),
        ] {
            namespace.run(&format!(
                "ip neighbour add {neighbour} lladdr {} dev {at} nud permanent",
                mac(of)
            ));
        }
        namespace.run("ip route add default via 192.0.2.1");
        namespace.run("ip -6 route add default via fd00:1::1");
        Some(Self {
            client,
            vm_link,
            captures: Vec::new(),
        })
    }

    /// Sends the traffic through it.
    pub(super) fn run(
        mut self,
        scenario: &Scenario,
        expected: usize,
        directory: &Path,
    ) -> Received {
        let rules = directory.join("rules.nft");
        fs::write(&rules, scenario.nft()).unwrap();
        self.client.run(&format!("nft -f {}", rules.display()));
        for setting in [
            "net.netfilter.nf_conntrack_checksum=0",
            "net.netfilter.nf_conntrack_tcp_be_liberal=1",
            "net.netfilter.nf_conntrack_tcp_loose=0",
        ] {
            self.client.run(&format!("sysctl -qw {setting}"));
        }
        let sent = directory.join("sent.pcap");
        let file = BufWriter::new(fs::File::create(&sent).unwrap());
        let mut writer = Writer::new(file, Format::Pcap).unwrap();
        for (side, packet) in &scenario.traffic {
            let bytes = match side {
                Side::Client => frame(ROUTER, KERNEL_CLIENT, packet),
                Side::Vm => frame(VM, KERNEL_VM, packet),
            };
            writer.write(Instant::from_secs(1), &bytes).unwrap();
        }
        writer.finish().unwrap();
        let seen = [directory.join("client.pcap"), directory.join("vm.pcap")];
        for (file, link) in seen.iter().zip([&self.client.link, &self.vm_link]) {
            let _ = fs::remove_file(file);
            let tcpdump = std::process::Command::new("tcpdump")
                .args(["-i", link, "-Q", "in", "--immediate-mode", "-U", "-w"])
                .arg(file)
                .stderr(std::process::Stdio::null())
                .spawn();
            self.captures.push(tcpdump.unwrap());
        }
        let deadline = Clock::now() + Duration::from_secs(10);
        let is_ready = |file: &std::path::PathBuf| fs::metadata(file).is_ok_and(|m| m.len() >= 24);
        while !seen.iter().all(is_ready) && Clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let cache = directory.join("sides");
        let (sent, cache) = (sent.display(), cache.display());
        assert!(sh(&format!(
            "tcpprep --mac={} --pcap={sent} --cachefile={cache} >/dev/null 2>&1 && tcpreplay \
             --cachefile={cache} -I {} -i {} --pps 2000 {sent} >/dev/null 2>&1",
            mac(VM),
            self.client.link,
            self.vm_link
        )));
        // What nobody expects would come at once: a little longer than nothing is waited for it.
        let deadline = Clock::now() + Duration::from_millis(1500);
        let count = || read(&seen[0]).len() + read(&seen[1]).len();
        while count() < expected && Clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(30));
        let frames = |file| read(file).into_iter().map(|(_, frame)| frame).collect();
        Received {
            client: frames(&seen[0]),
            vm: frames(&seen[1]),
        }
    }
}
