//! Traffic, and the configurations of both sides for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_control::Config;

/// The side that a packet comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Vm,
}

pub(super) const DIP: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 1);
pub(super) const DIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1);

/// MAC addresses: the client's router, the vm, and the kernel's on either side.
pub(super) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(super) const VM: [u8; 6] = [0x0a, 0x58, 10, 10, 1, 1];
pub(super) const KERNEL_CLIENT: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(super) const KERNEL_VM: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// Packets in the order in which they are sent, each an IP packet.
pub(super) type Traffic = Vec<(Side, Vec<u8>)>;

/// The packets that each side gets, in order.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) client: Vec<Vec<u8>>,
    pub(super) vm: Vec<Vec<u8>>,
}

/// Traffic, and the translation of its addresses.
pub(super) struct Scenario {
    pub(super) name: String,
    pub(super) vip: IpAddr,
    /// The frontend port and the backend's; `None`: addresses only.
    pub(super) ports: Option<(u16, u16)>,
    /// The address that the vm calls out under.
    pub(super) outbound: Option<IpAddr>,
    /// True if the VIP is a public address of the vm, in both directions, and no rule leads there.
    pub(super) is_public: bool,
    pub(super) traffic: Traffic,
}

impl Scenario {
    pub(super) fn dip(&self) -> IpAddr {
        if self.vip.is_ipv4() {
            DIP.into()
        } else {
            DIP6.into()
        }
    }

    pub(super) fn config(&self) -> Config {
        let (vip, dip) = (self.vip, self.dip());
        let node = "[node]\nrole = \"host\"\nunderlay = [\"172.16.0.101\", \"fd00:16::101\"]\nmtu = 9000\n\
                    muxes = [\"172.16.0.101\"]\n";
        let pool = format!(
            "[[pool]]\nname = \"p\"\nvni = 5001\ntable_size = 3\nbackends = [{{ name = \"vm\", \
             address = \"{dip}\", host = \"172.16.0.101\", mac = \"0a:58:0a:0a:01:01\" }}]\n"
        );
        if self.is_public {
            let public = format!("[[public_address]]\naddress = \"{vip}\"\nvm = \"{dip}\"\n");
            let text = format!("{node}{pool}{public}");
            let parsed = Config::parse(&self.name, &text);
            return parsed.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        }
        let rule = match self.ports {
            None => "protocol = \"all\"".to_owned(),
            Some((frontend, backend)) => {
                format!("protocol = \"tcp\"\nfrontend_port = {frontend}\nbackend_port = {backend}")
            }
        };
        let udp = match self.ports {
            None => String::new(),
            Some((frontend, backend)) => format!(
                "[[rule]]\nname = \"u\"\nfrontend = \"f\"\npool = \"p\"\nprotocol = \"udp\"\n\
                 frontend_port = {frontend}\nbackend_port = {backend}\n"
            ),
        };
        let outbound = self.outbound.map_or(String::new(), |address| {
            format!(
                "[[frontend]]\nname = \"o\"\naddress = \"{address}\"\n[[outbound_rule]]\nname = \
                 \"o\"\nfrontends = [\"o\"]\npool = \"p\"\nallocated_outbound_ports = 64512\n"
            )
        });
        let text = format!(
            "{node}[[frontend]]\nname = \"f\"\naddress = \"{vip}\"\nicmp_echo = \"forward\"\n{pool}\
             [[rule]]\nname = \"r\"\nfrontend = \"f\"\npool = \"p\"\n{rule}\n{udp}{outbound}"
        );
        Config::parse(&self.name, &text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    }

    pub(super) fn nft(&self) -> String {
        let family = if self.vip.is_ipv4() { "ip" } else { "ip6" };
        let (vip, dip) = (self.vip, self.dip());
        let to = |port: u16| match dip {
            IpAddr::V4(dip) => format!("{dip}:{port}"),
            IpAddr::V6(dip) => format!("[{dip}]:{port}"),
        };
        let dnat = match self.ports {
            None => format!("{family} daddr {vip} dnat to {dip}"),
            Some((frontend, backend)) => format!(
                "{family} daddr {vip} tcp dport {frontend} dnat to {to}\n{family} daddr {vip} udp \
                 dport {frontend} dnat to {to}",
                to = to(backend)
            ),
        };
        let snat = self.outbound.map_or(String::new(), |address| {
            format!("{family} saddr {dip} snat to {address}")
        });
        format!(
            "table {family} nat {{\nchain pre {{ type nat hook prerouting priority dstnat;\n{dnat}\n}}\n\
             chain post {{ type nat hook postrouting priority srcnat;\n{snat}\n}}\n}}\n"
        )
    }
}

pub(super) fn frame(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [&destination[..], &source, &ether_type, packet].concat()
}
