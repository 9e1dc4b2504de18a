//! `slb init`: a first configuration, from a capture of the traffic to balance.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use slb_control::Config;
use slb_core::wire::protocol;

use crate::Failure;
use crate::cli::InitOptions;
use crate::destinations::{Count, Service, Services};
use crate::output::is_standard;
use crate::report::counted;

/// Bytes that VXLAN adds over IPv6: outer Ethernet, IPv6, UDP and VXLAN, less the outer Ethernet.
const OVERHEAD: usize = 70;
/// The usual MTU of a fabric.
const USUAL_MTU: usize = 1600;
const LARGEST_MTU: usize = 65_535;

pub(crate) fn run(options: &InitOptions) -> Result<(), Failure> {
    let paths: Vec<&Path> = options.from.iter().map(AsRef::as_ref).collect();
    let services = Services::of(&paths)?;
    for line in services.left_out() {
        tell_line!("warning: {line}");
    }
    let found: Vec<(Service, Count)> = services
        .by_packets()
        .into_iter()
        .filter(|(service, _)| can_be_balanced(service))
        .take(options.services)
        .collect();
    let names = paths.iter().map(|path| path.display().to_string());
    let names = names.collect::<Vec<_>>().join(" ");
    if found.is_empty() {
        return Err(Failure::failed(format!(
            "{names}: no TCP or UDP packet for an address that a VIP can have was read; \
             expected a capture of the traffic that is to be balanced"
        )));
    }
    let text = configuration(&names, &found);
    // The result is valid for any capture.
    Config::parse("the configuration", &text).map_err(Failure::failed)?;
    match &options.out {
        Some(path) if !is_standard(path) => {
            let failed = |error: std::io::Error| {
                Failure::failed(format!("--out {}: {error}", path.display()))
            };
            let file = OpenOptions::new().write(true).create_new(true).open(path);
            let mut file = file.map_err(failed)?;
            file.write_all(text.as_bytes()).map_err(failed)
        }
        _ => crate::manual::print(text.as_bytes()),
    }
}

/// Returns true if a mux can have a rule for a service: TCP or UDP, at an address that a host can
/// have.
fn can_be_balanced(service: &Service) -> bool {
    let has_ports = matches!(service.protocol, protocol::TCP | protocol::UDP);
    // RFC 1122 §3.2.1.3, RFC 3927 §2.7, RFC 4291 §2.5.6
    let is_host = match service.address {
        IpAddr::V4(address) => {
            !matches!(address.octets()[0], 0 | 224..)
                && !address.is_loopback()
                && !address.is_link_local()
        }
        IpAddr::V6(address) => {
            let is_other =
                address.is_unspecified() || address.is_multicast() || address.is_loopback();
            !is_other && !address.is_unicast_link_local() && address.to_ipv4_mapped().is_none()
        }
    };
    has_ports && service.port > 0 && is_host
}

fn name_of(number: u8) -> &'static str {
    match number {
        protocol::TCP => "tcp",
        _ => "udp",
    }
}

/// A source of example addresses that do not occur in the capture.
struct Free(BTreeSet<IpAddr>);

impl Free {
    fn ipv4(&mut self, first: [u8; 4]) -> IpAddr {
        let first = Ipv4Addr::from(first).to_bits();
        self.next((first..).map(|bits| Ipv4Addr::from_bits(bits).into()))
    }

    fn ipv6(&mut self, first: [u16; 8]) -> IpAddr {
        let first = Ipv6Addr::from(first).to_bits();
        self.next((first..).map(|bits| Ipv6Addr::from_bits(bits).into()))
    }

    fn next(&mut self, mut all: impl Iterator<Item = IpAddr>) -> IpAddr {
        let free = all.find(|address| !self.0.contains(address));
        let free = free.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.0.insert(free);
        free
    }
}

/// Returns the text: a frontend for each address, a rule for each service, and a pool of two
/// backends for each family.
fn configuration(names: &str, found: &[(Service, Count)]) -> String {
    // The names are in a comment, which a line break would end.
    let names = names.replace(char::is_control, "?");
    let mut free = Free(found.iter().map(|(service, _)| service.address).collect());
    let longest = found
        .iter()
        .map(|(_, count)| count.longest)
        .max()
        .unwrap_or(0);
    let mtu = (longest + OVERHEAD).clamp(USUAL_MTU, LARGEST_MTU);
    let underlay = (
        free.ipv4([172, 16, 0, 11]),
        free.ipv6([0xfd00, 0x16, 0, 0, 0, 0, 0, 0x11]),
    );
    let mut text = format!(
        "# A mux for the busiest services in {names}, written by slb init. The rules come from the capture;\n\
         # the underlay addresses, hosts and backends are examples. Replace them with your own.\n\
         # Try: slb check FILE; slb replay FILE --in {names}\n\n\
         [node]\nrole = \"mux\"\nunderlay = [\"{}\", \"{}\"]\nmtu = {mtu}\n",
        underlay.0, underlay.1
    );
    let mut frontends = BTreeMap::new();
    for (service, _) in found {
        let number = frontends.len() + 1;
        let is_new = !frontends.contains_key(&service.address);
        let name = frontends
            .entry(service.address)
            .or_insert_with(|| format!("vip{number}"));
        if is_new {
            let _ = write!(
                text,
                "\n[[frontend]]\nname = \"{name}\"\naddress = \"{}\"\n",
                service.address
            );
        }
    }
    for (is_ipv6, pool) in [(false, "backends"), (true, "backends6")] {
        if !found
            .iter()
            .any(|(service, _)| service.address.is_ipv6() == is_ipv6)
        {
            continue;
        }
        let _ = write!(
            text,
            "\n[[pool]]\nname = \"{pool}\"\nvni = 5001\nbackends = [\n"
        );
        for number in 1..=2_u8 {
            let (address, host) = match is_ipv6 {
                false => (
                    free.ipv4([10, 10, number, 11]),
                    free.ipv4([172, 16, 0, 100 + number]),
                ),
                true => (
                    free.ipv6([0xfd00, 0x10, u16::from(number), 0, 0, 0, 0, 0x11]),
                    free.ipv6([0xfd00, 0x16, 0, 0, 0, 0, 0, 0x100 + u16::from(number)]),
                ),
            };
            // It is one vm in both families, so it has one MAC address.
            let _ = writeln!(
                text,
                "  {{ name = \"vm{number}\", address = \"{address}\", host = \"{host}\", mac = \"02:00:0a:0a:0{number}:0b\" }},",
            );
        }
        text += "]\n";
    }
    for (service, count) in found {
        let frontend = frontends.get(&service.address).map_or("", String::as_str);
        let (protocol, port) = (name_of(service.protocol), service.port);
        let pool = if service.address.is_ipv6() {
            "backends6"
        } else {
            "backends"
        };
        let _ = write!(
            text,
            "\n# {} of {}\n[[rule]]\nname = \"{frontend}-{protocol}-{port}\"\nfrontend = \"{frontend}\"\n\
             pool = \"{pool}\"\nprotocol = \"{protocol}\"\nfrontend_port = {port}\n",
            counted(count.packets, "packet"),
            counted(count.flows, "flow")
        );
    }
    text
}
