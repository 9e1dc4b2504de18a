//! Configurations that cannot work are refused line by line, and what means nothing to the role is warned of.

use slb_control::Config;

/// The faults of a configuration in one text.
fn faults(text: &str) -> String {
    match Config::parse("f.toml", text) {
        Ok(_) => String::new(),
        Err(errors) => errors.to_string(),
    }
}

/// A configuration whose lines are numbered by the test: `[node]` begins on line 1, the pool on line 11.
fn config(role: &str, node: &str, backends: &[&str], more: &str) -> String {
    let list: String = backends
        .iter()
        .map(|fields| format!("{{ {fields} }},\n"))
        .collect();
    format!(
        "[node]\nrole = \"{role}\"\nunderlay = [\"172.16.0.101\", \"fd00:16::101\"]\n{node}\n\
         [[frontend]]\nname = \"v\"\naddress = \"20.20.20.100\"\n\
         [[frontend]]\nname = \"w\"\naddress = \"20.20.20.101\"\n\
         [[pool]]\nname = \"p\"\nvni = 5001\nbackends = [\n{list}]\n\
         [[rule]]\nname = \"r\"\nfrontend = \"v\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n{more}"
    )
}

const ONE: &str = "name = \"a\", address = \"10.0.0.1\", host = \"172.16.0.101\"";
const TWO: &str = "name = \"b\", address = \"10.0.0.2\", host = \"172.16.0.101\"";

#[track_caller]
fn refused(text: &str, expected: &str) {
    let found = faults(text);
    assert_eq!(found, expected, "{text}");
}

#[test]
fn a_vip_is_no_vms_address() {
    let vm = "name = \"b\", address = \"20.20.20.101\", host = \"172.16.0.101\"";
    for role in ["mux", "host"] {
        refused(
            &config(role, "", &[ONE, vm], ""),
            "f.toml:16: pool \"p\": backend \"b\": address: expected an address of its own, but 20.20.20.101 is \
             frontend \"w\"'s",
        );
        refused(&config(role, "", &[ONE, TWO], ""), "");
    }
}

#[test]
fn no_vm_and_no_neighbour_has_the_nodes_mac_address() {
    let node = "mac = \"02:00:00:00:00:aa\"";
    let with = |field: &str| format!("{TWO}, {field} = \"02:00:00:00:00:aa\"");
    for role in ["mux", "host"] {
        refused(
            &config(role, node, &[ONE, &with("mac")], ""),
            "f.toml:16: pool \"p\": backend \"b\": mac: expected the vm's own, but 02:00:00:00:00:aa is this \
             node's (mac of [node])",
        );
        refused(
            &config(role, node, &[ONE, &with("next_hop")], ""),
            "f.toml:16: pool \"p\": backend \"b\": next_hop: expected a neighbour's MAC address, but \
             02:00:00:00:00:aa is this node's (mac of [node])",
        );
        refused(
            &config(
                role,
                "mac = \"02:00:00:00:00:aa\"\nnext_hop = \"02:00:00:00:00:aa\"",
                &[ONE],
                "",
            ),
            "f.toml:1: node: next_hop: expected the router's MAC address, but 02:00:00:00:00:aa is this node's \
             (mac of [node])",
        );
    }
}

#[test]
fn one_address_on_one_host_has_one_mac_address_and_one_port_one_vm() {
    let pool = |fields: &str| {
        format!("[[pool]]\nname = \"q\"\nvni = 5001\nbackends = [\n{{ {fields} }},\n]\n")
    };
    let again = |fields: &str| {
        format!("name = \"c\", address = \"10.0.0.1\", host = \"172.16.0.102\", {fields}")
    };
    let far = "name = \"a\", address = \"10.0.0.1\", host = \"172.16.0.102\", port = 3";
    for role in ["mux", "host"] {
        refused(
            &config(
                role,
                "",
                &[far],
                &pool(&again("mac = \"02:00:00:00:00:0c\"")),
            ),
            "f.toml:27: pool \"q\": backend \"c\": mac: 10.0.0.1 in network 5001 of host 172.16.0.102 has MAC \
             address 0a:58:0a:00:00:01 by backend \"a\" of pool \"p\" (line 15), and 02:00:00:00:00:0c here: \
             expected one",
        );
        refused(&config(role, "", &[far], &pool(&again("port = 3"))), "");
        let other = "name = \"c\", address = \"10.0.0.9\", host = \"172.16.0.102\", port = 3";
        refused(
            &config(role, "", &[far], &pool(other)),
            "f.toml:27: pool \"q\": backend \"c\": port: port 3 of host 172.16.0.102 has another vm already, \
             backend \"a\" of pool \"p\" (line 15)",
        );
        // Of the next host, port 3 is another one.
        let next = "name = \"c\", address = \"10.0.0.9\", host = \"172.16.0.103\", port = 3";
        refused(&config(role, "", &[far], &pool(next)), "");
    }
}

#[test]
fn an_instance_is_one_backends_whether_ports_go_by_it_or_not() {
    let (one, two) = (
        format!("{ONE}, instance = 4"),
        format!("{TWO}, instance = 4"),
    );
    let expected = "f.toml:16: pool \"p\": backend \"b\": instance: 4 is the instance of backend \"a\" already";
    for more in [
        "",
        "[[outbound_rule]]\nname = \"o\"\nfrontends = [\"v\"]\npool = \"p\"\n",
    ] {
        for role in ["mux", "host"] {
            refused(&config(role, "", &[&one, &two], more), expected);
        }
    }
}

#[test]
fn outbound_rules_share_no_protocol_of_a_pool_under_a_frontend() {
    let rule = |name: &str, frontends: &str, protocol: &str| {
        format!(
            "[[outbound_rule]]\nname = \"{name}\"\nfrontends = [{frontends}]\npool = \"p\"\n\
             protocol = \"{protocol}\"\n"
        )
    };
    let of = |first: &str, second: &str| config("host", "", &[ONE], &(first.to_owned() + second));
    refused(
        &of(
            &rule("o", "\"v\"", "all"),
            &rule("n", "\"w\", \"v\"", "udp"),
        ),
        "f.toml:28: outbound_rule \"n\": lets udp of pool \"p\" out under frontend \"v\", as outbound_rule \"o\" \
         does: expected one rule for both",
    );
    refused(
        &of(&rule("o", "\"v\"", "tcp"), &rule("n", "\"v\"", "udp")),
        "",
    );
    refused(
        &of(&rule("o", "\"v\"", "all"), &rule("n", "\"w\"", "all")),
        "",
    );
}

#[test]
fn source_nat_and_icmp_source_are_no_vips() {
    refused(
        &config("host", "", &[ONE], "source_nat = \"20.20.20.101\"\n"),
        "f.toml:17: rule \"r\": source_nat: expected an address of the balancer's, but 20.20.20.101 is frontend \
         \"w\"'s: answers would be for the VIP",
    );
    refused(
        &config("host", "icmp_source = \"20.20.20.101\"", &[ONE], ""),
        "f.toml:8: frontend \"w\": address: expected an address of its own, but 20.20.20.101 is where ICMP \
         errors come from (icmp_source of [node])",
    );
}

#[test]
fn a_fabric_over_ipv6_carries_1280_bytes() {
    let far = "name = \"a\", address = \"10.0.0.1\", host = \"fd00:16::102\"";
    let why = "expected an mtu of 1280 or more in [node], got 1279:";
    refused(
        &config("mux", "mtu = 1279", &[far], ""),
        &format!(
            "f.toml:15: pool \"p\": backend \"a\": host: {why} fd00:16::102 is reached over IPv6, which needs \
             1280 bytes on every link (RFC 8200 §5)"
        ),
    );
    refused(&config("mux", "mtu = 1280", &[far], ""), "");
    refused(&config("mux", "mtu = 576", &[ONE], ""), "");
    refused(
        &config("host", "mtu = 1279\nmuxes = [\"fd00:16::1\"]", &[ONE], ""),
        &format!(
            "f.toml:1: node: mtu: {why} fd00:16::1 is reached over IPv6, which needs 1280 bytes on every link \
             (RFC 8200 §5)"
        ),
    );
}

const PROXY: &str = "[node]\nrole = \"proxy\"\n\
    [[frontend]]\nname = \"v\"\naddress = \"20.20.20.100\"\n\
    [[pool]]\nname = \"p\"\nbackends = [ { name = \"a\", address = \"10.0.0.1\" } ]\n\
    [[rule]]\nname = \"r\"\nfrontend = \"v\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n";

#[test]
fn source_rewrites_are_of_unicast_addresses_and_apart() {
    let of = |rewrites: &[(&str, &str)]| {
        let section = |(from, to): &(&str, &str)| {
            format!("[[source_rewrite]]\nfrom = \"{from}\"\nto = \"{to}\"\n")
        };
        PROXY.to_owned() + &rewrites.iter().map(section).collect::<String>()
    };
    refused(
        &of(&[
            ("10.1.2.0/24", "192.168.7.0/24"),
            ("10.1.2.3", "192.168.9.9"),
        ]),
        "f.toml:18: source_rewrite 2: 10.1.2.3/32 to 192.168.9.9/32 overlaps 10.1.2.0/24 to 192.168.7.0/24 \
         (source_rewrite 1): expected exceptions before their range, and a different address for each client",
    );
    refused(
        &of(&[
            ("10.1.2.3", "192.168.9.9"),
            ("10.1.2.0/24", "192.168.7.0/24"),
        ]),
        "",
    );
    refused(
        &of(&[("10.1.2.0/24", "239.1.2.0/24")]),
        "f.toml:17: source_rewrite 1: to: expected addresses that hosts can have, got 239.1.2.0/24",
    );
}

#[test]
fn fields_that_mean_nothing_to_the_role_are_warned_of() {
    let warnings = |text: &str| {
        let config = Config::parse("f.toml", text).unwrap_or_else(|errors| panic!("{errors}"));
        let lines = config.warnings().into_iter();
        let unused = lines.filter(|line| line.contains("has no effect"));
        unused.collect::<Vec<_>>()
    };
    let used = "[[inbound_nat_rule]]\nname = \"n\"\nfrontend = \"w\"\npool = \"p\"\nbackend = \"a\"\n\
                protocol = \"tcp\"\nfrontend_port = 22\nbackend_port = 22\n";
    let of = |role: &str, node: &str, more: &str| warnings(&config(role, node, &[ONE], more));
    assert_eq!(of("mux", "flows = 0", used), [""; 0]);
    assert_eq!(
        of("host", "connections = 9\nclamp_mss = true", used),
        [""; 0]
    );
    assert_eq!(
        of("mux", "connections = 9\nclamp_mss = true", used),
        [
            "node: connections has no effect at a mux",
            "node: clamp_mss has no effect at a mux"
        ]
    );
    let rewrite = "[[source_rewrite]]\nfrom = \"10.1.2.3\"\nto = \"10.1.2.4\"\n\
                   [[port]]\nname = \"f\"\ntype = \"frontend\"\n";
    assert_eq!(
        of("host", "flows = 9", &(used.to_owned() + rewrite)),
        [
            "node: flows has no effect at a host",
            "port \"f\" has no effect at a host",
            "source_rewrite 1 has no effect at a host"
        ]
    );
    assert_eq!(warnings(PROXY), [""; 0]);
    let proxy = PROXY
        .replace("role = \"proxy\"", "role = \"proxy\"\ninside = []")
        .replace("address = \"10.0.0.1\"", "address = \"10.0.0.1\", port = 3")
        + "quic = true\n";
    let proxy = proxy.replace("protocol = \"tcp\"", "protocol = \"udp\"");
    assert_eq!(
        warnings(&proxy),
        [
            "node: inside has no effect at a proxy",
            "pool \"p\": backend \"a\": port has no effect at a proxy",
            "rule \"r\": quic has no effect at a proxy"
        ]
    );
}

/// Thousands of rules beside thousands of inbound NAT rules and pools on one frontend: each overlap is found,
/// and named once.
#[test]
fn overlaps_of_thousands_of_ports_are_found() {
    let mut more = String::new();
    for n in 0..6000_u32 {
        let port = 10_000 + n;
        let protocol = if n % 2 == 0 { "tcp" } else { "udp" };
        more += &format!(
            "[[rule]]\nname = \"r{n}\"\nfrontend = \"w\"\npool = \"p\"\nprotocol = \"{protocol}\"\n\
             frontend_port = {port}\n"
        );
        more += &format!(
            "[[inbound_nat_rule]]\nname = \"n{n}\"\nfrontend = \"w\"\npool = \"p\"\nbackend = \"a\"\n\
             protocol = \"{protocol}\"\nfrontend_port = {}\nbackend_port = 22\n",
            port + 6000
        );
    }
    refused(&config("mux", "", &[ONE], &more), "");
    let pool = |start: u32, end: u32| {
        format!(
            "[[inbound_nat_pool]]\nname = \"np\"\nfrontend = \"w\"\npool = \"p\"\nprotocol = \"tcp\"\n\
             frontend_port_start = {start}\nfrontend_port_end = {end}\nbackend_port = 22\n"
        )
    };
    let said = |start, end| {
        let text = config("mux", "", &[ONE], &(more.clone() + &pool(start, end)));
        let said = faults(&text);
        let messages = said.lines().map(|line| {
            let (_, message) = line.split_once("takes ").unwrap_or(("", line));
            message.to_owned()
        });
        messages.collect::<Vec<_>>()
    };
    assert_eq!(
        said(15_997, 15_999),
        ["ports 15997 to 15999 of frontend \"w\", of which rule \"r5998\" takes port 15998"]
    );
    assert_eq!(
        said(16_000, 16_001),
        [
            "ports 16000 to 16001 of frontend \"w\", of which inbound_nat_rule \"n0\" takes port 16000"
        ]
    );
    // Of thousands, a few are named.
    assert_eq!(said(10_000, 15_999).len(), 8);
    assert_eq!(said(22_000, 22_009), [""; 0]);
}
