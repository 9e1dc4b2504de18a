//! Configurations and Azure's JSON out of pieces in any order: each is read or refused, and what is good
//! compiles, takes packets, and differs from another one in some way that can be told.

use std::sync::OnceLock;

use slb_control::azure::{Input, Inventory, import};
use slb_control::{Config, Diff, Role};
use slb_core::{Frame, HEADROOM, Host, Instant, Key, Mux, Proxy};

/// Lines of configurations, most of them good.
const LINES: &[&str] = &[
    "[[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"",
    "[[frontend]]\nname = \"web6\"\naddress = \"2001:db8::1\"\nicmp_echo = \"forward\"",
    "[[pool]]\nname = \"p\"\nvni = 1\nbackends = [{ name = \"a\", address = \"10.0.0.1\", host = \"172.16.0.1\" }]",
    "[[pool]]\nname = \"q\"\nvni = 16777215\ntable_size = 3\nslow_start = \"1s\"\npassive_failures = 1",
    "backends = [{ name = \"b\", address = \"fd00::1\", host = \"172.16.0.1\", weight = 1000000, instance = 65535 }]",
    "[[probe]]\nname = \"h\"\nprotocol = \"http\"\nport = 80",
    "[[rule]]\nname = \"r\"\nfrontend = \"web\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80",
    "[[rule]]\nname = \"s\"\nfrontend = \"web6\"\npool = \"q\"\nprotocol = \"all\"",
    "[[rule]]\nname = \"t\"\nfrontend = \"web\"\npool = \"p\"\nprotocol = \"udp\"\nfrontend_port = 53",
    "[[rule]]\nname = \"u\"\nfrontend = \"web\"\npool = \"p\"\nprotocol = \"icmp\"",
    "probe = \"h\"",
    "disable_outbound_snat = false",
    "floating_ip = true",
    "tcp_reset = true",
    "answers = \"mux\"",
    "source_nat = \"10.9.9.9\"",
    "distribution = \"source-ip\"",
    "scheduler = \"least-connections\"",
    "idle_timeout = \"30m\"",
    "[[inbound_nat_rule]]\nname = \"n\"\nfrontend = \"web\"\npool = \"p\"\nbackend = \"a\"\nprotocol = \"tcp\"\nfrontend_port = 2222\nbackend_port = 22",
    "[[inbound_nat_pool]]\nname = \"m\"\nfrontend = \"web\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port_start = 5000\nfrontend_port_end = 65535\nbackend_port = 22",
    "[[outbound_rule]]\nname = \"o\"\nfrontends = [\"web\"]\npool = \"p\"",
    "allocated_outbound_ports = 64000",
    "[[port]]\nname = \"x\"\ntype = \"frontend\"\nmode = \"multi\"\naddress = \"10.0.0.9\"",
    "[[source_rewrite]]\nfrom = \"10.0.0.0/8\"\nto = \"11.0.0.0/8\"",
    "[[network]]\nname = \"blue\"\nvni = 1\naddress_spaces = [\"10.0.0.0/8\", \"20.20.20.0/24\"]\ngateways = \"10.0.0.254\"",
    "[[network]]\nname = \"red\"\nvni = 7\naddress_spaces = [\"20.20.20.0/24\", \"20.20.20.128/25\", \"fd00::/8\"]\ngateways = \"20.20.20.100\"",
    "[[network]]\nname = \"green\"\nvni = 16777215\naddress_spaces = [\"fd00::/8\", \"10.9.9.9/8\", \"0.0.0.0/0\"]",
    "[[frontend]]\nname = \"inner\"\naddress = \"20.20.20.129\"\nnetwork = \"red\"",
    "[[rule]]\nname = \"inner\"\nfrontend = \"inner\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80",
    "[[vm]]\nname = \"v\"\nnetwork = \"red\"\naddress = \"20.20.20.100\"\nhost = \"172.16.0.1\"",
    "[[vm]]\nname = \"w\"\nnetwork = \"blue\"\naddress = [\"10.0.0.2\", \"20.20.20.100\"]\nhost = \"172.16.0.2\"\nmac = \"02:00:00:00:00:09\"",
    "[[vm]]\nname = \"x\"\nnetwork = \"red\"\naddress = \"fd00::1\"\nhost = \"172.16.0.1\"\nmac = \"02:00:00:00:00:09\"",
    "[[security_list]]\nname = \"l\"",
    "[[security_list]]\nname = \"m\"",
    "security_list = \"l\"",
    "security_list = [\"l\", \"m\"]",
    "[[security_rule]]\nname = \"g\"\nsecurity_list = \"l\"\npriority = 100\ndirection = \"inbound\"\naccess = \"allow\"",
    "[[security_rule]]\nname = \"h\"\nsecurity_list = \"m\"\npriority = 4096\ndirection = \"outbound\"\naccess = \"deny\"",
    "protocol = \"udp\"",
    "sources = [\"internet\", \"network\", \"load-balancer\", \"10.0.0.0/8\", \"fd00::/8\"]",
    "destinations = \"0.0.0.0/0\"",
    "source_ports = [\"0-65535\", \"7-6\"]",
    "destination_ports = [\"80\", \"1000-65535\"]",
    "priority = 99",
];

const NODES: [&str; 3] = [
    "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\nflows = 64\nflows_per_source = 3\n",
    "[node]\nrole = \"host\"\nunderlay = \"172.16.0.1\"\nconnections = 64\nmuxes = [\"172.16.0.11\"]\n",
    "[node]\nrole = \"proxy\"\nconnections = 64\n",
];

fn text(node: u8, lines: &[u8]) -> String {
    let lines = lines
        .iter()
        .take(24)
        .map(|&line| LINES[usize::from(line) % LINES.len()]);
    let lines: Vec<&str> = lines.collect();
    format!("{}{}\n", NODES[usize::from(node) % 3], lines.join("\n"))
}

/// Gives the mux a packet; other tests check the verdict.
fn take_a_packet(config: &Config) {
    let snapshot = config.snapshot(None).expect("it was found good");
    let mut buffer = [0; HEADROOM + 60];
    let mut frames = [Frame::new(&mut buffer, HEADROOM, 60).expect("room")];
    let now = Instant::from_secs(1);
    match config.node.role {
        Role::Mux => Mux::with_capacity(snapshot, 64, Key::new([1, 2]))
            .expect("its role")
            .process(now, &mut frames),
        Role::Host => Host::with_capacity(snapshot, 64, Key::new([1, 2]))
            .expect("its role")
            .process(now, &mut frames),
        Role::Proxy => {
            Proxy::with_capacity(snapshot, 64, Key::new([1, 2]))
                .expect("its role")
                .process(now, &mut frames);
        }
    }
}

#[test]
fn lines_in_any_order_are_a_configuration_or_are_not() {
    static FIRST: OnceLock<Config> = OnceLock::new();
    bolero::check!()
        .with_type::<(u8, Vec<u8>)>()
        .for_each(|(node, lines)| {
            let text = text(*node, lines);
            match Config::parse("fuzz", &text) {
                Err(errors) => assert!(!errors.0.is_empty()),
                Ok(config) => {
                    take_a_packet(&config);
                    let first =
                        FIRST.get_or_init(|| Config::parse("first", NODES[0]).expect("good"));
                    let diff = Diff::between(first, &config).expect("both compile");
                    assert_eq!(diff.is_empty(), text.trim() == NODES[0].trim(), "{diff}");
                    let same = Diff::between(&config, &config).expect("both compile");
                    assert!(same.is_empty(), "{same}");
                }
            }
        });
}

#[test]
fn arbitrary_text_is_no_configuration() {
    bolero::check!()
        .with_type::<(u8, Vec<u8>)>()
        .for_each(|(node, bytes)| {
            let text = format!(
                "{}{}",
                NODES[usize::from(*node) % 3],
                String::from_utf8_lossy(bytes)
            );
            let _ = Config::parse("fuzz", &text);
            let _ = Inventory::parse("fuzz", &text);
        });
}

/// Parts of load balancers, most of them good, in a list.
const PARTS: &[&str] = &[
    r#"{"name":"f","properties":{"privateIPAddress":"10.0.0.100"}}"#,
    r#"{"name":"f6","zones":["1"],"properties":{"privateIPAddress":"fd00::100","privateIPAddressVersion":"IPv6"}}"#,
    r#"{"name":"p","properties":{"loadBalancerBackendAddresses":[{"name":"a","properties":{"ipAddress":"10.0.0.1","adminState":"Drain"}}]}}"#,
    r#"{"name":"h","properties":{"protocol":"Https","port":443,"intervalInSeconds":5,"numberOfProbes":1}}"#,
    r#"{"name":"r","properties":{"frontendIPConfiguration":{"id":"x/f"},"backendAddressPool":{"id":"x/p"},"probe":{"id":"x/h"},"protocol":"Tcp","frontendPort":80}}"#,
    r#"{"name":"s","properties":{"frontendIPConfiguration":{"id":"x/f6"},"backendAddressPool":{"id":"x/p"},"protocol":"All","frontendPort":0}}"#,
    r#"{"name":"n","properties":{"frontendIPConfiguration":{"id":"x/f"},"protocol":"Udp","frontendPort":9,"backendPort":9,"backendIPConfiguration":{"id":"x/a"}}}"#,
    r#"{"name":"m","properties":{"frontendIPConfiguration":{"id":"x/f"},"protocol":"Tcp","frontendPortRangeStart":5,"frontendPortRangeEnd":4,"backendPort":22}}"#,
    r#"{"name":"o","properties":{"frontendIPConfigurations":[{"id":"x/f"}],"backendAddressPool":{"id":"x/p"},"protocol":"All","allocatedOutboundPorts":1024}}"#,
    r#"{"type":"Microsoft.Network/loadBalancers","name":"lb","properties":{"probes":[null,7,{}],"frontendIPConfigurations":[]}}"#,
    r#"{"resources":[{"type":"Microsoft.Network/networkInterfaces","name":"[concat('n',copyIndex())]","copy":{"count":3},"properties":{"ipConfigurations":[{"name":"c"}]}}]}"#,
    r#"{"type":"Microsoft.Network/publicIPAddresses","name":"i","properties":{"ipAddress":"1.2.3.4"}}"#,
    r#"{"type":"Microsoft.Network/virtualNetworks","name":"v","properties":{"addressSpace":{"addressPrefixes":["10.0.0.0/24"]},"subnets":[{"name":"s","properties":{"addressPrefix":"10.0.0.0/25","networkSecurityGroup":{"id":"/networkSecurityGroups/g"}}}]}}"#,
    r#"{"type":"Microsoft.Network/virtualNetworks/subnets","name":"v/s","properties":{"addressPrefixes":["10.0.0.0/26",7]}}"#,
    r#"{"type":"Microsoft.Network/networkSecurityGroups","name":"g","properties":{"securityRules":[{"name":"r","properties":{"protocol":"*","sourcePortRange":"*","destinationPortRange":"80-90","sourceAddressPrefix":"Internet","destinationAddressPrefixes":["10.0.0.0/8"],"access":"Deny","priority":100,"direction":"Inbound"}}]}}"#,
    r#"{"type":"Microsoft.Network/networkSecurityGroups/securityRules","name":"g/r","properties":{"priority":101,"sourceAddressPrefix":"VirtualNetwork"}}"#,
    r#"{"name":"p","properties":{"virtualNetwork":{"id":"/virtualNetworks/v"},"loadBalancerBackendAddresses":[{"name":"a","properties":{"ipAddress":"10.0.0.1"}}]}}"#,
    r#"{"name":"r","properties":[1,2,{"name":{}}]}"#,
];

#[test]
fn parts_in_any_order_are_imported_or_refused() {
    let more = "[[backend]]\nid = \"a\"\naddress = \"10.0.0.1\"\nhost = \"172.16.0.1\"\n\
                [[nat_pool]]\nid = \"m\"\npool = \"p\"\n";
    let inventories = NODES.map(|node| {
        let text = format!("vni = 1\n{node}{more}");
        Inventory::parse("inventory", &text).expect("good")
    });
    bolero::check!()
        .with_type::<(u8, Vec<u8>, Option<(u16, u8)>)>()
        .for_each(move |(node, parts, change)| {
            let inventory = &inventories[usize::from(*node) % NODES.len()];
            let parts = parts
                .iter()
                .take(16)
                .map(|&part| PARTS[usize::from(part) % PARTS.len()]);
            let parts: Vec<&str> = parts.collect();
            let mut bytes = format!("[{}]", parts.join(",\n")).into_bytes();
            if let Some((at, value)) = change
                && let Some(byte) = bytes.get_mut(usize::from(*at))
            {
                *byte = *value;
            }
            let text = String::from_utf8_lossy(&bytes);
            let input = Input {
                file: "fuzz.json",
                text: &text,
            };
            if let Ok(imported) = import(&[input], inventory)
                && imported.missing.is_none()
            {
                let config = Config::parse("imported", &imported.toml).expect("it was found whole");
                take_a_packet(&config);
            }
        });
}
