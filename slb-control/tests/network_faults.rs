//! `slb check` refuses networks, vms and prefixes that cannot work, and lets two networks share addresses.

use std::fmt::Write as _;

use slb_control::{Config, Diff};

/// Two networks with vms at two hosts, and a VIP of the first one.
const GOOD: &str = r#"
[node]
role = "host"
underlay = "172.16.0.101"

[[network]]
name = "blue"
vni = 5001
address_spaces = ["10.1.0.0/16", "fd00:1::/64"]
gateways = ["10.1.0.1", "fd00:1::1"]

[[network]]
name = "red"
vni = 5002
address_spaces = ["10.1.0.0/16", "fd00:1::/64"]

[[frontend]]
name = "web"
address = "10.1.0.100"

[[pool]]
name = "servers"
network = "blue"
backends = [
    { name = "vm1", address = "10.1.0.11", host = "172.16.0.101" },
]

[[rule]]
name = "http"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port = 80

[[vm]]
name = "blue2"
network = "blue"
address = ["10.1.0.12", "fd00:1::12"]
host = "172.16.0.102"

[[vm]]
name = "red1"
network = "red"
address = ["10.1.0.21", "fd00:1::21"]
host = "172.16.0.102"
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("net.toml", text).map_err(|errors| errors.to_string())
}

/// The file with one text in the place of another.
#[track_caller]
fn with(old: &str, new: &str) -> String {
    let text = GOOD.replacen(old, new, 1);
    assert_ne!(text, GOOD, "{old}");
    text
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    let errors = parse(text).expect_err(expected);
    assert!(errors.contains(expected), "{errors}");
    assert!(errors.starts_with("net.toml:"), "{errors}");
}

/// As a mux reads it.
fn at_mux(text: &str, probing: bool) -> String {
    let node = format!("role = \"mux\"\nprobing = {probing}");
    text.replace("role = \"host\"", &node)
        .replace("underlay = \"172.16.0.101\"", "underlay = \"172.16.0.11\"")
}

#[test]
fn a_vip_may_be_an_address_of_another_network() {
    parse(GOOD).expect("good").snapshot(None).expect("good");
    let vm = with("\"10.1.0.21\"", "\"10.1.0.100\"");
    let backend = GOOD.to_owned()
        + "[[pool]]\nname = \"others\"\nnetwork = \"red\"\nbackends = [\n\
           { name = \"red2\", address = \"10.1.0.100\", host = \"172.16.0.101\" } ]\n";
    let gateway = with(
        "name = \"red\"\n",
        "name = \"red\"\ngateways = \"10.1.0.100\"\n",
    );
    for text in [&vm, &backend, &gateway] {
        parse(text).expect("good").snapshot(None).expect("good");
        parse(&at_mux(text, false))
            .expect("good")
            .snapshot(None)
            .expect("good");
    }
    // A rule, inbound NAT or an outbound rule that leads into the network makes it the VIP there, too.
    let rule = "\n[[rule]]\nname = \"s\"\nfrontend = \"web\"\npool = \"others\"\nprotocol = \"tcp\"\nfrontend_port = 443\n";
    let nat = "\n[[inbound_nat_pool]]\nname = \"s\"\nfrontend = \"web\"\npool = \"others\"\nprotocol = \"tcp\"\n\
               frontend_port_start = 2000\nfrontend_port_end = 2009\nbackend_port = 22\n";
    let outbound = "\n[[outbound_rule]]\nname = \"s\"\nfrontends = \"web\"\npool = \"others\"\n";
    let other = "[[pool]]\nname = \"others\"\nnetwork = \"red\"\nbackends = [\n\
                 { name = \"red3\", address = \"10.1.0.31\", host = \"172.16.0.102\" } ]\n";
    for lead in [rule, nat, outbound] {
        refused(
            &(vm.clone() + other + lead),
            "vm \"red1\": address: 10.1.0.100 is the address of frontend \"web\", which leads into the vm's network",
        );
        refused(
            &(backend.clone() + lead),
            "pool \"others\": backend \"red2\": address: expected an address of its own, but 10.1.0.100 is frontend \
             \"web\"'s",
        );
        refused(
            &(gateway.clone() + other + lead),
            "network \"red\": gateways: expected an address of its own, but 10.1.0.100 is the address of frontend \
             \"web\", which leads into the network",
        );
    }
}

#[test]
fn a_mux_that_probes_has_one_way_to_an_address() {
    let probe = "\n[[probe]]\nname = \"up\"\nprotocol = \"tcp\"\nport = 80\n\
                 [[frontend]]\nname = \"other\"\naddress = \"10.1.0.200\"\n\
                 [[pool]]\nname = \"others\"\nnetwork = \"red\"\nbackends = [\n\
                 { name = \"red2\", address = \"10.1.0.100\", host = \"172.16.0.101\" } ]\n\
                 [[rule]]\nname = \"o\"\nfrontend = \"other\"\npool = \"others\"\nprotocol = \"tcp\"\n\
                 frontend_port = 80\nprobe = \"up\"\n";
    let text = GOOD.to_owned() + probe;
    parse(&text).expect("a host agent probes its vms in their networks");
    parse(&at_mux(&text, false)).expect("nothing is probed");
    refused(
        &at_mux(&text, true),
        "pool \"others\": backend \"red2\": address: 10.1.0.100 is the address of frontend \"web\" too: a mux probes \
         by address",
    );
}

#[test]
fn a_gateway_is_neither_a_vip_nor_a_probes_source() {
    for (old, new, expected) in [
        (
            "address = \"10.1.0.100\"",
            "address = \"10.1.0.1\"",
            "network \"blue\": gateways: expected an address of its own, but 10.1.0.1 is the address of frontend \
             \"web\", which leads into the network",
        ),
        (
            "[node]",
            "[node]\nprobe_sources = [\"10.1.0.1\"]",
            "network \"blue\": gateways: expected an address of its own, but 10.1.0.1 is where probes come from",
        ),
        (
            "gateways = [\"10.1.0.1\", \"fd00:1::1\"]",
            "gateways = [\"10.1.0.1\", \"fd00:1::12\"]",
            "network \"blue\": gateways: expected an address that no vm has, got fd00:1::12",
        ),
    ] {
        refused(&with(old, new), expected);
    }
    let text = with(
        "[node]",
        "[node]\nprobing = false\nprobe_sources = [\"10.1.0.1\"]",
    );
    parse(&text).expect("nobody probes");
}

#[test]
fn a_mac_address_of_a_network_is_at_one_host() {
    let second = |mac: &str, host: &str, network: &str| {
        format!(
            "{GOOD}\n[[vm]]\nname = \"twin\"\nnetwork = \"{network}\"\naddress = \"10.1.0.77\"\nhost = \"{host}\"\n\
             mac = \"{mac}\"\n"
        )
    };
    // Derived from 10.1.0.11, which vm1 at the first host has.
    let derived = "0a:58:0a:01:00:0b";
    refused(
        &second(derived, "172.16.0.102", "blue"),
        "vm \"twin\": mac: 0a:58:0a:01:00:0b in network \"blue\" is the MAC address of pool \"servers\": backend \
         \"vm1\" at host 172.16.0.101 already (line 25): expected one of its own, or one host",
    );
    let named = second(derived, "172.16.0.101", "blue").replace("\"twin\"", "\"vm1\"");
    parse(&named).expect("further addresses of one vm");
    parse(&second(derived, "172.16.0.102", "red")).expect("networks are apart");
    parse(&second("02:00:00:00:00:77", "172.16.0.102", "blue")).expect("one of its own");
}

#[test]
fn prefixes_have_no_bits_beyond_their_length() {
    for (old, new, expected) in [
        (
            "\"10.1.0.0/16\", ",
            "\"10.1.7.9/16\", ",
            "network \"blue\": address_spaces: expected 10.1.0.0/16, got 10.1.7.9/16, which has bits beyond its length",
        ),
        (
            "\"fd00:1::/64\"]",
            "\"fd00:1::5/64\"]",
            "expected fd00:1::/64, got fd00:1::5/64, which has bits beyond its length",
        ),
        (
            "[node]",
            "[node]\ninside = [\"10.0.0.1/8\"]",
            "node: inside: expected 10.0.0.0/8, got 10.0.0.1/8",
        ),
    ] {
        refused(&with(old, new), expected);
    }
    let proxy = "[node]\nrole = \"proxy\"\n[[frontend]]\nname = \"f\"\naddress = \"20.0.0.1\"\n\
                 [[pool]]\nname = \"p\"\nbackends = [{ name = \"b\", address = \"10.0.0.1\" }]\n\
                 [[rule]]\nname = \"r\"\nfrontend = \"f\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
                 [[source_rewrite]]\nfrom = \"10.2.0.9/24\"\nto = \"10.3.0.0/24\"\n";
    refused(
        proxy,
        "source_rewrite 1: from: expected 10.2.0.0/24, got 10.2.0.9/24",
    );
    parse(&proxy.replace("10.2.0.9/24", "10.2.0.0/24")).expect("a whole range");
}

#[test]
fn address_spaces_are_of_hosts_and_addresses_are_said_once() {
    for space in [
        "224.0.0.0/4",
        "240.0.0.0/4",
        "127.1.0.0/16",
        "169.254.0.0/16",
        "0.0.0.0/8",
        "ff02::/16",
        "fe80::/64",
        "::1/128",
        "::ffff:10.0.0.0/104",
    ] {
        refused(
            &with(
                "\"10.1.0.0/16\", ",
                &format!("\"10.1.0.0/16\", \"{space}\", "),
            ),
            "network \"blue\": address_spaces: expected addresses that hosts can have, got ",
        );
    }
    for space in ["0.0.0.0/0", "::/0"] {
        let spaces = "address_spaces = [\"10.1.0.0/16\", \"fd00:1::/64\"]\ngateways";
        let other = if space == "::/0" {
            "10.1.0.0/16"
        } else {
            "fd00:1::/64"
        };
        let new = format!("address_spaces = [\"{other}\", \"{space}\"]\ngateways");
        parse(&with(spaces, &new)).expect("hosts are among them");
    }
    refused(
        &with("\"10.1.0.12\", ", "\"10.1.0.12\", \"10.1.0.12\", "),
        "vm \"blue2\": address: 10.1.0.12 is named twice",
    );
}

#[test]
fn a_diff_shows_networks_and_vms() {
    let old = parse(GOOD).expect("good");
    let lines = |text: &str| {
        let diff = Diff::between(&old, &parse(text).expect("good")).expect("both compile");
        assert_eq!(diff.is_empty(), text == GOOD);
        diff.to_string()
    };
    assert_eq!(lines(GOOD), "no difference\n");
    for (old, new, expected) in [
        (
            "address_spaces = [\"10.1.0.0/16\", \"fd00:1::/64\"]\ngateways",
            "address_spaces = [\"10.0.0.0/8\", \"fd00:1::/64\"]\ngateways",
            "~ network \"blue\": address_spaces 10.1.0.0/16 fd00:1::/64 becomes 10.0.0.0/8 fd00:1::/64\n",
        ),
        (
            "gateways = [\"10.1.0.1\", \"fd00:1::1\"]\n",
            "",
            "~ network \"blue\": gateways 10.1.0.1 fd00:1::1 becomes none\n",
        ),
        (
            "vni = 5002",
            "vni = 5003",
            "~ network \"red\": vni 5002 becomes 5003\n",
        ),
        (
            "name = \"blue2\"",
            "name = \"blue3\"",
            "+ vm \"blue/blue3\"\n- vm \"blue/blue2\"\n",
        ),
        (
            "address = [\"10.1.0.21\", \"fd00:1::21\"]\nhost = \"172.16.0.102\"",
            "address = [\"10.1.0.21\", \"fd00:1::21\"]\nhost = \"172.16.0.103\"",
            "~ vm \"red/red1\": host 172.16.0.102 becomes 172.16.0.103\n",
        ),
        (
            "\"10.1.0.21\", ",
            "\"10.1.0.22\", ",
            "~ vm \"red/red1\": address 10.1.0.21 fd00:1::21 becomes 10.1.0.22 fd00:1::21, mac 0a:58:0a:01:00:15 \
             becomes 0a:58:0a:01:00:16\n",
        ),
    ] {
        assert_eq!(lines(&with(old, new)), expected, "{new}");
    }
    let more = GOOD.to_owned()
        + "[[network]]\nname = \"green\"\nvni = 5003\naddress_spaces = \"10.3.0.0/16\"\n\
           [[vm]]\nname = \"g\"\nnetwork = \"green\"\naddress = \"10.3.0.1\"\nhost = \"172.16.0.101\"\n";
    assert_eq!(lines(&more), "+ network \"green\"\n+ vm \"green/g\"\n");
}

/// As many networks as a file may have, each with a vm, a VIP, a pool and a rule: a check that walks through all
/// of one kind for each of another takes minutes.
#[test]
fn sixteen_thousand_networks_are_checked_and_their_faults_told() {
    const COUNT: u32 = 1 << 14;
    let file = |len: u32, named: &str| {
        let mut text =
            "[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\nprobing = false\n".to_owned();
        for n in 0..COUNT {
            let (high, low) = (n >> 8, n & 255);
            let _ = writeln!(
                text,
                "[[network]]\nname = \"n{n}\"\nvni = {n}\naddress_spaces = \"10.{high}.{low}.0/{len}\"\n\
                 [[vm]]\nname = \"v\"\nnetwork = \"{named}{n}\"\naddress = \"10.{high}.{low}.1\"\nhost = \"172.16.0.9\"",
            );
        }
        text
    };
    let good = parse(&file(24, "n")).expect("good");
    assert_eq!(good.network_vms.len(), COUNT as usize);
    for (text, fault) in [
        (file(8, "n"), "which has bits beyond its length"),
        (file(24, "m"), "there is no network \"m0\": did you mean"),
    ] {
        let errors = parse(&text).expect_err("faults");
        assert!(errors.contains(fault), "{}", &errors[..500]);
        assert!(
            errors.lines().count() > COUNT as usize / 2,
            "each has its line"
        );
    }
}

/// A proxy's file with `network` is told what is the matter with it, not that the field is unknown.
#[test]
fn networks_in_a_proxys_file_are_said_to_be_the_hosts() {
    let text = r#"
[node]
role = "proxy"

[[port]]
name = "clients"
type = "frontend"

[[port]]
name = "servers"
type = "backend"

[[frontend]]
name = "web"
address = "20.20.20.100"
network = "blue"

[[pool]]
name = "servers"
network = "blue"
backends = [{ name = "vm1", address = "10.1.0.11" }]

[[rule]]
name = "http"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port = 80
"#;
    let told = Config::parse("p.toml", text).unwrap_err().to_string();
    let why = "networks are the hosts': expected no field \"network\" for role \"proxy\", which serves public \
               addresses only";
    assert_eq!(
        told.trim_end(),
        format!(
            "p.toml:16: frontend \"web\": network: {why}\np.toml:20: pool \"servers\": network: {why}"
        )
    );
    let public = text.replace("network = \"blue\"\n", "");
    assert!(Config::parse("p.toml", &public).is_ok());
    // Another unknown field is not taken for it.
    let other = text.replace("network = ", "netwrk = ");
    let told = Config::parse("p.toml", &other).unwrap_err().to_string();
    assert!(
        told.contains("unknown field \"netwrk\": expected \"name\""),
        "{told}"
    );
    assert!(!told.contains("\"network\""), "{told}");
}
