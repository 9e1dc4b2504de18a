//! `[[public_address]]`: what it becomes, which faults are told where, and what `diff` says.

use slb_control::{Config, Diff};
use slb_core::spec::PublicAddress;

const GOOD: &str = r#"
[node]
role = "mux"
underlay = "172.16.0.11"

[[network]]
name = "blue"
vni = 5001
address_spaces = ["10.1.0.0/16", "fd00:1::/64"]

[[frontend]]
name = "web"
address = "20.20.20.100"

[[pool]]
name = "servers"
network = "blue"
backends = [{ name = "vm1", address = "10.1.0.11", host = "172.16.0.101" }]

[[pool]]
name = "others"
vni = 77
backends = [{ name = "vm1", address = "10.1.0.31", host = "172.16.0.102" }]

[[vm]]
name = "client"
network = "blue"
address = ["10.1.0.21", "fd00:1::21"]
host = "172.16.0.101"

[[public_address]]
address = "40.50.60.1"
vm = "10.1.0.11"

[[public_address]]
address = "2001:db8::21"
network = "blue"
vm = "fd00:1::21"
"#;

const RULE: &str = r#"
[[rule]]
name = "http"
frontend = "web"
pool = "others"
protocol = "tcp"
frontend_port = 80
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("net.toml", text).map_err(|errors| errors.to_string())
}

/// The faults of the good file with more text.
fn faults(more: &str) -> String {
    parse(&format!("{GOOD}{more}")).expect_err("a fault")
}

#[test]
fn a_public_address_has_the_vni_of_its_network_or_backend() {
    let config = parse(GOOD).unwrap();
    let found: Vec<_> = config.with_spec(|spec| spec.public_addresses.to_vec());
    let expected = [("40.50.60.1", "10.1.0.11"), ("2001:db8::21", "fd00:1::21")];
    let expected = expected.map(|(address, vm)| PublicAddress {
        address: address.parse().unwrap(),
        vni: config.networks[0].vni,
        vm: vm.parse().unwrap(),
    });
    assert_eq!(found, expected);
    let outside: Vec<_> = config
        .outside_addresses()
        .map(|one| one.to_string())
        .collect();
    assert_eq!(outside, ["20.20.20.100", "40.50.60.1", "2001:db8::21"]);
    // A backend of a pool without a network, by its pool.
    let more = "[[public_address]]\naddress = \"40.50.60.3\"\nvm = \"10.1.0.31\"\n";
    let config = parse(&format!("{GOOD}{more}")).unwrap();
    assert_eq!(config.public_addresses[2].vni.get(), 77);
}

#[test]
fn faults_are_told_with_their_lines() {
    for (fields, expected) in [
        (
            "address = \"20.20.20.100\"\nnetwork = \"blue\"\nvm = \"10.1.0.21\"",
            "public_address 20.20.20.100: address: expected an address of its own, but frontend \"web\" has \
             20.20.20.100",
        ),
        (
            "address = \"40.50.60.1\"\nnetwork = \"blue\"\nvm = \"10.1.0.21\"",
            "public_address 40.50.60.1: expected an address of its own, but 40.50.60.1 is listed already",
        ),
        (
            "address = \"40.50.60.2\"\nnetwork = \"blue\"\nvm = \"10.1.0.11\"",
            "public_address 40.50.60.2: vm: 10.1.0.11 has the public address 40.50.60.1 already",
        ),
        (
            "address = \"40.50.60.2\"\nnetwork = \"blue\"\nvm = \"10.1.0.99\"",
            "public_address 40.50.60.2: vm: expected the address of a vm in network \"blue\", got 10.1.0.99",
        ),
        (
            "address = \"40.50.60.2\"\nvm = \"10.1.0.21\"",
            "vm: expected the address of a backend, got 10.1.0.21: with a network, the address of any of its vms",
        ),
        (
            "address = \"2001:db8::9\"\nnetwork = \"blue\"\nvm = \"10.1.0.21\"",
            "public_address 2001:db8::9: vm: expected an address of the family of 2001:db8::9, got 10.1.0.21",
        ),
        (
            "address = \"10.1.0.77\"\nnetwork = \"blue\"\nvm = \"10.1.0.21\"",
            "public_address 10.1.0.77: address: expected an address outside of the vm's own network, got 10.1.0.77",
        ),
        (
            "address = \"172.16.0.101\"\nnetwork = \"blue\"\nvm = \"10.1.0.21\"",
            "expected an address of its own, but 172.16.0.101 is the host of",
        ),
        (
            "address = \"172.16.0.11\"\nnetwork = \"blue\"\nvm = \"10.1.0.21\"",
            "expected an address of its own, but 172.16.0.11 is this node",
        ),
        (
            "address = \"224.0.0.1\"\nnetwork = \"blue\"\nvm = \"10.1.0.21\"",
            "address: expected",
        ),
        (
            "address = \"40.50.60.2\"\nnetwork = \"bleu\"\nvm = \"10.1.0.21\"",
            "network: there is no network \"bleu\": did you mean \"blue\"?",
        ),
        (
            "address = \"40.50.60.2\"",
            "public_address 3: vm: is missing",
        ),
    ] {
        let told = faults(&format!("[[public_address]]\n{fields}\n"));
        assert!(told.contains(expected), "{fields}\n{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(!told.contains("net.toml:1:"), "{told}");
    }
}

/// Addresses that something else of the file stands for.
#[test]
fn an_address_that_something_else_has_is_refused() {
    for (what, text, expected) in [
        (
            "ICMP errors",
            GOOD.replace(
                "underlay = \"172.16.0.11\"",
                "underlay = \"172.16.0.11\"\nicmp_source = \"40.50.60.1\"",
            ),
            "public_address 40.50.60.1: address: expected an address of its own, but 40.50.60.1 is where ICMP errors \
             come from",
        ),
        (
            "source_nat",
            format!("{GOOD}{RULE}source_nat = \"40.50.60.1\"\n"),
            "rule \"http\": source_nat: expected an address of the balancer's, but 40.50.60.1 is a public address of \
             a vm",
        ),
        (
            "a probed backend",
            format!(
                "{}{RULE}probe = \"up\"\n\n[[probe]]\nname = \"up\"\nprotocol = \"tcp\"\nport = 80\n",
                GOOD.replace("10.1.0.31", "40.50.60.1")
            ),
            "public_address 40.50.60.1: address: expected an address of its own, but 40.50.60.1 is backend \"vm1\" of \
             pool \"others\", which is probed",
        ),
    ] {
        let told = parse(&text).expect_err(what);
        assert!(told.contains(expected), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

#[test]
fn a_backends_address_in_two_vnis_needs_a_network() {
    let text = GOOD.replace("10.1.0.31", "10.1.0.11");
    let told = parse(&text).expect_err("a fault");
    let expected = "10.1.0.11 is a backend's address in VNI 5001 and in VNI 77: expected a network to say which";
    assert!(told.contains(expected), "{told}");
    let text = text.replacen(
        "vm = \"10.1.0.11\"",
        "network = \"blue\"\nvm = \"10.1.0.11\"",
        1,
    );
    assert_eq!(parse(&text).unwrap().public_addresses[0].vni.get(), 5001);
}

#[test]
fn a_proxy_has_none() {
    let text = r#"
[node]
role = "proxy"
[[frontend]]
name = "web"
address = "20.20.20.100"
[[pool]]
name = "servers"
backends = [{ name = "vm1", address = "10.1.0.11" }]
[[public_address]]
address = "40.50.60.1"
vm = "10.1.0.11"
"#;
    let told = parse(text).expect_err("a fault");
    let expected =
        "public_address 40.50.60.1: is for roles \"mux\" and \"host\": a proxy has no vms";
    assert!(told.contains(expected), "{told}");
}

#[test]
fn diff_says_where_an_address_leads() {
    let old = parse(GOOD).unwrap();
    let new = GOOD.replacen(
        "vm = \"10.1.0.11\"",
        "network = \"blue\"\nvm = \"10.1.0.21\"",
        1,
    );
    let diff = Diff::between(&old, &parse(&new).unwrap()).unwrap();
    assert_eq!(
        diff.changed,
        ["public_address \"40.50.60.1\": vm 10.1.0.11 becomes 10.1.0.21"]
    );
    let new = GOOD.replace("40.50.60.1", "40.50.60.9");
    let diff = Diff::between(&old, &parse(&new).unwrap()).unwrap();
    assert_eq!(diff.removed, ["public_address \"40.50.60.1\""]);
    assert_eq!(diff.added, ["public_address \"40.50.60.9\""]);
}

#[test]
fn a_public_address_that_is_inside_is_warned_of() {
    let host = GOOD.replace("role = \"mux\"", "role = \"host\"");
    let warned = |more: &str| {
        let text = host.replace("[node]", &format!("[node]\n{more}"));
        let warnings = parse(&text).unwrap().warnings();
        let about = warnings.into_iter();
        about
            .filter(|line| line.contains("public_address"))
            .collect::<Vec<_>>()
    };
    assert_eq!(warned(""), [""; 0]);
    assert_eq!(
        warned("inside = [\"10.0.0.0/8\", \"40.50.0.0/16\", \"2001:db8::21/128\"]"),
        [
            "public_address 40.50.60.1 is in 40.50.0.0/16, which is inside: vms that call it keep their own addresses, \
             and get no answer from it",
            "public_address 2001:db8::21 is in 2001:db8::21/128, which is inside: vms that call it keep their own \
             addresses, and get no answer from it",
        ]
    );
}
