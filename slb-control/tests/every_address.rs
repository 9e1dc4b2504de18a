//! Each field of the configuration that has an address refuses those that no host can have. The reader itself names
//! its sections and fields, so one that is added later is tried, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_control::Config;
use toml::{Table, Value};

/// A field that no section has, and that resembles none.
const UNKNOWN: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";

/// A host agent with each section that one has.
const HOST: &str = r#"
[node]
role = "host"
underlay = ["172.16.0.101", "fd00:16::101"]
[[network]]
name = "blue"
vni = 7001
address_spaces = ["10.10.0.0/16", "fd00:10::/64"]
gateways = "10.10.0.1"
[[vm]]
name = "other"
network = "blue"
address = "10.10.9.9"
host = "172.16.0.102"
[[public_address]]
address = "40.50.60.1"
network = "blue"
vm = "10.10.9.9"
[[security_list]]
name = "closed"
[[security_rule]]
security_list = "closed"
name = "in"
priority = 100
direction = "inbound"
access = "allow"
[[frontend]]
name = "web"
address = "20.20.20.100"
[[frontend]]
name = "out"
address = "20.20.20.200"
[[probe]]
name = "health"
protocol = "https"
port = 80
[[pool]]
name = "servers"
network = "blue"
backends = [{ name = "vm1", address = "10.10.1.11", host = "172.16.0.101" }]
[[rule]]
name = "http"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port = 80
[[inbound_nat_rule]]
name = "console"
frontend = "web"
pool = "servers"
backend = "vm1"
protocol = "tcp"
frontend_port = 5000
backend_port = 22
[[inbound_nat_pool]]
name = "ssh"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port_start = 2200
frontend_port_end = 2299
backend_port = 22
[[outbound_rule]]
name = "updates"
frontends = "out"
pool = "servers"
"#;

/// A proxy with the sections that only a proxy has.
const PROXY: &str = r#"
[node]
role = "proxy"
[[port]]
name = "clients"
type = "frontend"
[[port]]
name = "servers"
type = "backend"
[[source_rewrite]]
from = "192.0.2.7"
to = "10.99.2.7"
[[frontend]]
name = "web"
address = "20.20.20.100"
[[pool]]
name = "servers"
backends = [{ name = "one", address = "10.10.1.11" }]
[[rule]]
name = "http"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port = 80
"#;

/// A section, by the names on the way to it; of several, the first one.
type Path = Vec<String>;

fn parse(document: &Table) -> Result<Config, String> {
    Config::parse("f.toml", &document.to_string()).map_err(|errors| errors.to_string())
}

/// The section at a path.
fn section<'t>(document: &'t mut Table, path: &[String]) -> &'t mut Table {
    path.iter()
        .fold(document, |table, name| match table.get_mut(name) {
            Some(Value::Table(table)) => table,
            Some(Value::Array(all)) => all[0].as_table_mut().expect("a table"),
            other => panic!("{path:?} is missing in the test's file: {other:?}"),
        })
}

/// The file with a field of a section set.
fn with(text: &str, path: &[String], field: &str, value: Value) -> Table {
    let mut document: Table = text.parse().expect("TOML");
    section(&mut document, path).insert(field.to_owned(), value);
    document
}

/// The fields that a section may have, as the reader says.
fn fields(text: &str, path: &[String]) -> Vec<String> {
    let told = parse(&with(text, path, UNKNOWN, Value::from(1))).expect_err("an unknown field");
    let at = format!("unknown field \"{UNKNOWN}\": expected ");
    let (_, listed) = told.split_once(&at).expect("a list of fields");
    let listed = listed.lines().next().unwrap_or_default();
    let names = listed.split('"').skip(1).step_by(2);
    names.map(str::to_owned).collect()
}

/// Fields with addresses: the file, the path of the section, the field, and what the reader expects there.
fn address_fields() -> Vec<(&'static str, Path, String, String)> {
    let mut found = Vec::new();
    for text in [HOST, PROXY] {
        let known: Table = text.parse().expect("TOML");
        let mut paths: Vec<Path> = fields(text, &[])
            .into_iter()
            .map(|name| vec![name])
            .collect();
        // Each section is in one of the two files.
        let all = [HOST, PROXY].map(|text| text.parse::<Table>().expect("TOML"));
        paths.retain(|path| {
            assert!(
                all.iter().any(|file| file.contains_key(&path[0])),
                "no file has {path:?}"
            );
            known.contains_key(&path[0])
        });
        paths.push(vec!["pool".to_owned(), "backends".to_owned()]);
        for path in paths {
            for field in fields(text, &path) {
                let Err(told) = parse(&with(text, &path, &field, Value::from("@"))) else {
                    continue;
                };
                let expected = told.lines().find_map(|line| {
                    let (_, rest) = line.split_once(&format!("{field}: expected "))?;
                    rest.split_once(", got \"@\"")
                        .map(|(expected, _)| expected.to_owned())
                });
                let expected = expected.unwrap_or_default();
                let is_mac = expected.contains("MAC address");
                if !is_mac && (expected.contains("address") || expected.contains("range")) {
                    found.push((text, path.clone(), field, expected));
                }
            }
        }
    }
    found
}

/// A random address of those that no host has.
fn impossible(kind: u8, bits: u128) -> IpAddr {
    let ipv4 = |first: u32, len: u32| {
        let rest = u32::MAX.checked_shr(len).unwrap_or(0);
        IpAddr::from(Ipv4Addr::from_bits(first | (bits as u32 & rest)))
    };
    let ipv6 = |first: u128, len: u32| {
        let rest = u128::MAX.checked_shr(len).unwrap_or(0);
        IpAddr::from(Ipv6Addr::from_bits(first | (bits & rest)))
    };
    match kind % 13 {
        0 => ipv4(0, 32),
        1 => ipv4(0, 8),
        2 => ipv4(0x7f00_0000, 8),
        3 => ipv4(0xe000_0000, 4),
        4 => ipv4(0xf000_0000, 4),
        5 => ipv4(u32::MAX, 32),
        6 => ipv6(0, 128),
        7 => ipv6(1, 128),
        8 => ipv6(0, 96),
        9 => ipv6(0xffff << 32, 96),
        10 => ipv6(0xff << 120, 8),
        // Link-local addresses, which some fields take.
        11 => ipv4(0xa9fe_0000, 16),
        _ => ipv6(0xfe80 << 112, 10),
    }
}

#[test]
fn every_field_refuses_addresses_that_no_host_has() {
    let fields = address_fields();
    let names: Vec<String> = fields
        .iter()
        .map(|(_, path, field, _)| format!("{}.{field}", path.join(".")))
        .collect();
    for known in [
        "node.underlay",
        "node.muxes",
        "node.inside",
        "node.probe_sources",
        "node.icmp_source",
        "network.address_spaces",
        "network.gateways",
        "vm.address",
        "vm.host",
        "public_address.address",
        "public_address.vm",
        "security_rule.sources",
        "security_rule.destinations",
        "frontend.address",
        "pool.backends.address",
        "pool.backends.host",
        "rule.source_nat",
        "inbound_nat_rule.source_nat",
        "inbound_nat_pool.source_nat",
        "port.address",
        "source_rewrite.from",
        "source_rewrite.to",
    ] {
        assert!(
            names.iter().any(|name| name == known),
            "{known} is not in {names:?}"
        );
    }
    bolero::check!()
        .with_iterations(300)
        .with_type::<(u8, u128, bool)>()
        .for_each(|&(kind, bits, in_list)| {
            let address = impossible(kind, bits);
            for (text, path, field, expected) in &fields {
                if kind % 13 > 10 && (field == "probe_sources" || field == "inside") {
                    continue;
                }
                let len = if address.is_ipv4() { 32 } else { 128 };
                let value = match expected.contains("length") {
                    true => format!("{address}/{len}"),
                    false => address.to_string(),
                };
                let value = match in_list {
                    true => Value::Array(vec![Value::from(value)]),
                    false => Value::from(value),
                };
                let told = parse(&with(text, path, field, value)).expect_err(&format!(
                    "{path:?} {field} takes {address}, which no host has"
                ));
                let place = format!("{field}: expected ");
                let is_told = told.lines().any(|line| {
                    let (_, rest) = line.split_once("f.toml:").expect("the file");
                    let line_number = rest.split(':').next().and_then(|n| n.parse::<u32>().ok());
                    line_number.is_some() && rest.contains(&place)
                });
                assert!(is_told, "{path:?} {field} {address}: {told}");
            }
        });
}

/// Each change of the file has a fault at its item.
#[test]
fn addresses_that_others_have_are_refused() {
    let host =
        |path: &str, field: &str, value: Value| (HOST, path.to_owned(), field.to_owned(), value);
    let proxy =
        |path: &str, field: &str, value: Value| (PROXY, path.to_owned(), field.to_owned(), value);
    let texts = |all: &[&str]| Value::Array(all.iter().map(|&text| Value::from(text)).collect());
    for ((text, path, field, value), expected) in [
        // The ends of an address space.
        (
            host("vm", "address", "10.10.0.0".into()),
            "vm \"other\": address: expected an address that a host can have, but 10.10.0.0 is the first or the last of 10.10.0.0/16",
        ),
        (
            host("vm", "address", "10.10.255.255".into()),
            "10.10.255.255 is the first or the last of 10.10.0.0/16",
        ),
        (
            host("vm", "address", "fd00:10::".into()),
            "vm \"other\": address: expected an address that a host can have, but fd00:10:: is the first of fd00:10::/64",
        ),
        (
            host("pool.backends", "address", "10.10.255.255".into()),
            "pool \"servers\": backend \"vm1\": address: expected an address that a host can have, but 10.10.255.255",
        ),
        (
            host("network", "gateways", "10.10.0.0".into()),
            "network \"blue\": gateways: expected an address that a router can have, but 10.10.0.0",
        ),
        // Addresses outside of the network.
        (
            host("vm", "address", "10.11.0.1".into()),
            "vm \"other\": address: expected an address in an address space of network \"blue\", got 10.11.0.1",
        ),
        (
            host("pool.backends", "address", "10.11.0.1".into()),
            "pool \"servers\": backend \"vm1\": address: expected an address in an address space of network \"blue\", got 10.11.0.1",
        ),
        (
            host("network", "gateways", "10.11.0.1".into()),
            "network \"blue\": gateways: expected an address in an address space of network \"blue\", got 10.11.0.1",
        ),
        // One address twice.
        (
            host("vm", "address", texts(&["10.10.9.9", "10.10.9.9"])),
            "vm \"other\": address: 10.10.9.9 is named twice",
        ),
        (
            host("network", "gateways", texts(&["10.10.0.1", "10.10.0.1"])),
            "network \"blue\": gateways: 10.10.0.1 is named twice",
        ),
        (
            host("node", "muxes", texts(&["172.16.0.9", "172.16.0.9"])),
            "node: muxes: 172.16.0.9 is named twice",
        ),
        (
            host("node", "inside", texts(&["10.0.0.0/8", "10.0.0.0/8"])),
            "node: inside: 10.0.0.0/8 is named twice",
        ),
        (
            host(
                "network",
                "address_spaces",
                texts(&["10.10.0.0/16", "10.10.0.0/16"]),
            ),
            "network \"blue\": address_spaces: 10.10.0.0/16 is named twice",
        ),
        (
            host("vm", "address", "10.10.1.11".into()),
            "vm \"other\": address: 10.10.1.11 is the address of pool \"servers\": backend \"vm1\" in network \"blue\" already",
        ),
        (
            host("vm", "address", "10.10.0.1".into()),
            "network \"blue\": gateways: expected an address that no vm has, got 10.10.0.1",
        ),
        // Machines of the fabric.
        (
            host("vm", "host", "20.20.20.100".into()),
            "frontend \"web\": address: expected an address of its own, but 20.20.20.100 is the host of vm \"other\"",
        ),
        (
            host("frontend", "address", "172.16.0.101".into()),
            "frontend \"web\": address: expected an address of its own, but 172.16.0.101 is this node",
        ),
        (
            host("node", "muxes", "20.20.20.100".into()),
            "frontend \"web\": address: expected an address of its own, but 20.20.20.100 is a mux",
        ),
        // The prober's.
        (
            host("vm", "address", "168.63.129.16".into()),
            "vm \"other\": address: expected an address of its own, but 168.63.129.16 is where probes come from",
        ),
        (
            host("frontend", "address", "168.63.129.16".into()),
            "frontend \"web\": address: expected an address of its own, but 168.63.129.16 is where probes come from",
        ),
        (
            host("node", "probe_sources", "10.10.0.1".into()),
            "network \"blue\": gateways: expected an address of its own, but 10.10.0.1 is where probes come from",
        ),
        (
            host("node", "probe_sources", "10.10.9.9".into()),
            "vm \"other\": address: expected an address of its own, but 10.10.9.9 is where probes come from",
        ),
        // Prefixes.
        (
            host("node", "inside", "10.0.0.1/8".into()),
            "node: inside: expected 10.0.0.0/8, got 10.0.0.1/8, which has bits beyond its length",
        ),
        (
            host(
                "network",
                "address_spaces",
                texts(&["10.10.0.1/16", "fd00:10::/64"]),
            ),
            "network \"blue\": address_spaces: expected 10.10.0.0/16, got 10.10.0.1/16",
        ),
        (
            proxy("source_rewrite", "to", "10.10.1.11".into()),
            "source_rewrite 1: to: expected addresses of the balancer's, but 10.10.1.11 in 10.10.1.11/32 is that of backend \"one\" of pool \"servers\"",
        ),
        (
            proxy("source_rewrite", "to", "20.20.20.100".into()),
            "source_rewrite 1: to: expected addresses of the balancer's, but 20.20.20.100 in 20.20.20.100/32 is frontend \"web\"'s",
        ),
    ] {
        let path: Path = path.split('.').map(str::to_owned).collect();
        let told = parse(&with(text, &path, &field, value)).expect_err(expected);
        assert!(told.contains(expected), "expected {expected}\n{told}");
    }
    parse(&HOST.parse().expect("TOML")).expect("a good file");
    parse(&PROXY.parse().expect("TOML")).expect("a good file");
}

/// The first and the last address of a prefix that has two, and of one that has one, are hosts'.
#[test]
fn short_prefixes_have_no_addresses_of_their_own() {
    for (space, address) in [
        ("10.10.1.10/31", "10.10.1.10"),
        ("10.10.1.10/31", "10.10.1.11"),
        ("10.10.1.11/32", "10.10.1.11"),
    ] {
        let text = HOST.replace("10.10.0.0/16", &format!("{space}\", \"10.11.0.0/16"));
        let text = text
            .replace("10.10.0.1", "10.11.0.1")
            .replace("10.10.9.9", "10.11.9.9");
        let text = text.replace("10.10.1.11\", host", &format!("{address}\", host"));
        parse(&text.parse().expect("TOML"))
            .unwrap_or_else(|told| panic!("{space} {address}: {told}"));
    }
}
