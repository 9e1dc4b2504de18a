//! `[[network]]` and `[[vm]]`: what they become, and which faults are told where.

use slb_control::Config;
use slb_core::PortId;

const GOOD: &str = r#"
[node]
role = "host"
underlay = "172.16.0.101"

[[network]]
name = "blue"
vni = 5001
address_spaces = ["10.1.0.0/16", "fd00:1::/64"]
gateways = "10.1.0.1"

[[network]]
name = "red"
vni = 5002
address_spaces = "10.1.0.0/16"

[[frontend]]
name = "web"
address = "20.20.20.100"

[[pool]]
name = "servers"
network = "blue"
backends = [
    { name = "vm1", address = "10.1.0.11", host = "172.16.0.101" },
    { name = "vm2", address = "10.1.0.12", host = "172.16.0.102" },
]

[[rule]]
name = "http"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port = 80

[[vm]]
name = "client"
network = "blue"
address = ["10.1.0.21", "fd00:1::21"]
host = "172.16.0.101"

[[vm]]
name = "client"
network = "red"
address = "10.1.0.11"
host = "172.16.0.101"
port = 9

[[vm]]
name = "vm1 over IPv6"
network = "blue"
address = "fd00:1::11"
host = "172.16.0.101"
mac = "0a:58:0a:01:00:0b"
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("net.toml", text).map_err(|errors| errors.to_string())
}

#[test]
fn vms_of_networks_are_at_ports_beside_backends() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.pools[0].vni.get(), 5001);
    let vms: Vec<_> = config
        .vms()
        .into_iter()
        .map(|vm| {
            let addresses: Vec<_> = vm.addresses.iter().map(ToString::to_string).collect();
            (vm.name, vm.port, vm.vni.get(), addresses.join(" "))
        })
        .collect();
    let expected = [
        ("vm1", 1, 5001, "10.1.0.11 fd00:1::11"),
        ("client", 2, 5001, "10.1.0.21 fd00:1::21"),
        ("client", 9, 5002, "10.1.0.11"),
    ];
    let expected = expected.map(|(name, port, vni, addresses)| {
        (
            name.to_owned(),
            Some(PortId(port)),
            vni,
            addresses.to_owned(),
        )
    });
    assert_eq!(vms, expected);
    let blue = config.network_of(config.pools[0].vni).unwrap();
    let all: Vec<_> = config
        .addresses_of(blue)
        .map(|address| address.to_string())
        .collect();
    let expected = "10.1.0.11 10.1.0.12 10.1.0.21 fd00:1::21 fd00:1::11 10.1.0.1";
    assert_eq!(all.join(" "), expected);
    // Two networks may have a vm with one MAC address.
    assert_eq!(config.warnings(), Vec::<String>::new());
    config.snapshot(None).unwrap();
}

#[test]
fn other_roles_read_the_same_file() {
    let mux = GOOD
        .replace("\"host\"", "\"mux\"")
        .replace("underlay = \"172.16.0.101\"", "underlay = \"172.16.0.11\"");
    let mux = mux.replace("[node]", "[node]\nprobing = false");
    parse(&mux).unwrap().snapshot(None).unwrap();
    let proxy = GOOD.replace("\"host\"", "\"proxy\"");
    let errors = parse(&proxy).expect_err("no networks");
    assert!(
        errors.contains("network \"blue\": is for role \"host\""),
        "{errors}"
    );
}

#[test]
fn faults_of_networks_have_their_lines() {
    for (old, new, expected) in [
        (
            "vni = 5002",
            "vni = 5001",
            "network \"red\": vni: 5001 is the vni of network \"blue\" already",
        ),
        (
            "name = \"red\"",
            "name = \"red\"\nvni = 5003\naddress_spaces = \"10.9.0.0/16\"\n[[network]]\nname = \"red\"",
            "network \"red\": duplicate name",
        ),
        (
            "network = \"blue\"\nbackends",
            "network = \"bleu\"\nbackends",
            "pool \"servers\": network: there is no network \"bleu\": did you mean \"blue\"?",
        ),
        (
            "network = \"blue\"\nbackends",
            "network = \"blue\"\nvni = 7\nbackends",
            "pool \"servers\": vni: expected either a vni or a network",
        ),
        (
            "\"fd00:1::/64\"]",
            "\"fd00:1::/64\", \"10.1.7.0/24\"]",
            "network \"blue\": address_spaces: 10.1.7.0/24 and 10.1.0.0/16 overlap",
        ),
        (
            "gateways = \"10.1.0.1\"",
            "gateways = \"10.2.0.1\"",
            "network \"blue\": gateways: expected an address in an address space of network \"blue\", got 10.2.0.1",
        ),
        (
            "gateways = \"10.1.0.1\"",
            "gateways = \"10.1.0.12\"",
            "network \"blue\": gateways: expected an address that no vm has, got 10.1.0.12",
        ),
        (
            "address = \"10.1.0.12\"",
            "address = \"10.2.0.12\"",
            "pool \"servers\": backend \"vm2\": address: expected an address in an address space of network \
             \"blue\", got 10.2.0.12",
        ),
        (
            "\"10.1.0.21\", ",
            "\"10.3.0.21\", ",
            "vm \"client\": address: expected an address in an address space of network \"blue\", got 10.3.0.21",
        ),
        (
            "\"10.1.0.21\", ",
            "\"10.1.0.12\", ",
            "vm \"client\": address: 10.1.0.12 is the address of pool \"servers\": backend \"vm2\" in network \
             \"blue\" already",
        ),
        (
            "host = \"172.16.0.101\"\n\n[[vm]]\nname = \"client\"\nnetwork = \"red\"",
            "host = \"fd00::1\"\n\n[[vm]]\nname = \"client\"\nnetwork = \"red\"",
            "vm \"client\": host: fd00::1 is IPv6, but the node's underlay has no such address",
        ),
        (
            "address = \"20.20.20.100\"",
            "address = \"10.1.0.21\"",
            "vm \"client\": address: 10.1.0.21 is the address of frontend \"web\"",
        ),
        (
            "address = \"20.20.20.100\"",
            "address = \"172.16.0.102\"",
            "frontend \"web\": address: expected an address of its own",
        ),
        (
            "name = \"client\"\nnetwork = \"red\"\n",
            "name = \"client\"\nnetwork = \"blue\"\n",
            "duplicate name",
        ),
    ] {
        let text = GOOD.replacen(old, new, 1);
        assert_ne!(text, GOOD, "{old}");
        let errors = parse(&text).expect_err(new);
        assert!(errors.contains(expected), "{new}: {errors}");
        assert!(
            errors.lines().all(|line| line.starts_with("net.toml:")),
            "{errors}"
        );
    }
}

#[test]
fn a_vm_that_is_a_backend_too_has_one_port() {
    let text = GOOD.replace(
        "mac = \"0a:58:0a:01:00:0b\"",
        "mac = \"0a:58:0a:01:00:0b\"\nport = 5",
    );
    // The backend says none, so the vm may.
    assert_eq!(parse(&text).unwrap().vms()[0].port, Some(PortId(5)));
    let text = text.replacen(
        "address = \"10.1.0.11\", host = \"172.16.0.101\"",
        "address = \"10.1.0.11\", host = \"172.16.0.101\", port = 4",
        1,
    );
    let errors = parse(&text).expect_err("two ports");
    assert!(
        errors.contains(
            "vm \"vm1 over IPv6\": port: is one vm with backend \"vm1\" of pool \"servers\" (one MAC address, \
             0a:58:0a:01:00:0b, in one network), which is at port 4, but says port 5"
        ),
        "{errors}"
    );
}

#[test]
fn two_vms_have_two_ports() {
    let text = GOOD.replacen(
        "{ name = \"vm1\", address",
        "{ name = \"vm1\", port = 9, address",
        1,
    );
    let errors = parse(&text).expect_err("one port");
    assert!(
        errors.contains("vm \"client\": port: port 9 has another vm already"),
        "{errors}"
    );
}
