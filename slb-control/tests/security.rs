//! Access lists: how they are read, which are refused, and what a difference says of them.

use slb_control::{Config, Diff};
use slb_core::nat::Direction;
use slb_core::spec::{Access, Peers, Prefix, SecurityProtocol};

const GOOD: &str = r#"
[node]
role = "host"
underlay = "172.16.0.101"

[[security_list]]
name = "web"

[[security_list]]
name = "closed"

[[security_rule]]
security_list = "web"
name = "https"
priority = 100
direction = "inbound"
access = "allow"
protocol = "tcp"
sources = ["internet", "10.9.0.0/16", "fd00::7"]
destinations = "network"
source_ports = "any"
destination_ports = ["443", "8000-8010"]

[[security_rule]]
security_list = "web"
name = "out"
priority = 100
direction = "outbound"
access = "deny"

[[network]]
name = "blue"
vni = 5001
address_spaces = "10.1.0.0/16"
security_list = "closed"

[[pool]]
name = "servers"
network = "blue"
security_list = ["web"]
backends = [
    { name = "vm1", address = "10.1.0.11", host = "172.16.0.101" },
]

[[vm]]
name = "other"
network = "blue"
address = "10.1.0.12"
host = "172.16.0.101"
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("acl.toml", text).map_err(|errors| errors.to_string())
}

/// The errors of the file with one text in the place of another.
#[track_caller]
fn fault(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "{old}");
    parse(&GOOD.replacen(old, new, 1)).expect_err(new)
}

#[test]
fn a_list_is_read_as_written() {
    let config = parse(GOOD).expect("good");
    let [web, closed] = &config.security_lists[..] else {
        panic!("{:?}", config.security_lists);
    };
    assert_eq!((&*web.name, web.rules.len()), ("web", 2));
    assert_eq!((&*closed.name, closed.rules.len()), ("closed", 0));
    let [https, out] = &web.rules[..] else {
        panic!("{:?}", web.rules);
    };
    let prefix = |address: &str, len| {
        let address = address.parse().expect("an address");
        Peers::Prefix(Prefix { address, len })
    };
    assert_eq!(
        https.sources,
        [
            Peers::Internet,
            prefix("10.9.0.0", 16),
            prefix("fd00::7", 128)
        ]
    );
    assert_eq!(https.destinations, [Peers::Network]);
    assert_eq!(https.source_ports, [[0u16; 2]; 0]);
    assert_eq!(https.destination_ports, [[443, 443], [8000, 8010]]);
    let decision = (https.direction, https.access, https.protocol);
    assert_eq!(
        decision,
        (Direction::Inward, Access::Allow, SecurityProtocol::Tcp)
    );
    let decision = (out.direction, out.access, out.protocol);
    assert_eq!(
        decision,
        (Direction::Outward, Access::Deny, SecurityProtocol::Any)
    );
    assert_eq!(config.networks[0].security_lists, [1]);
    assert_eq!(config.pools[0].security_lists, [0]);
    assert_eq!(config.network_vms[0].security_lists, [0usize; 0]);
    let snapshot = config.snapshot(None).expect("good");
    assert_eq!(snapshot.security_rules(0), Some(8));
    // The lists of vms elsewhere are not compiled.
    let mux = GOOD
        .replace("\"host\"", "\"mux\"")
        .replace("underlay = \"172.16.0.101\"", "underlay = \"172.16.0.11\"");
    let mux = parse(&mux).expect("good").snapshot(None).expect("good");
    assert_eq!((mux.security_rules(0), mux.security_slots()), (None, 0));
}

#[test]
fn what_cannot_be_meant_is_a_fault() {
    for (old, new, expected) in [
        (
            "security_list = \"web\"",
            "security_list = \"wep\"",
            "there is no security_list \"wep\": did you mean \"web\"?",
        ),
        ("[\"web\"]", "[\"web\", \"web\"]", "\"web\" is named twice"),
        (
            "\"closed\"\n\n[[pool]]",
            "\"open\"\n\n[[pool]]",
            "there is no security_list \"open\"",
        ),
        (
            "[[security_list]]\nname = \"closed\"",
            "[[security_list]]\nname = \"web\"\n\n[[security_list]]\nname = \"closed\"",
            "duplicate name",
        ),
        (
            "name = \"out\"",
            "name = \"https\"",
            "duplicate name: line 12 has it already",
        ),
        (
            "direction = \"outbound\"",
            "direction = \"inbound\"",
            "expected a priority of its own, but 100 is that of inbound rule \"https\" too",
        ),
        (
            "priority = 100",
            "priority = 99",
            "expected 100 to 4096, got 99",
        ),
        (
            "access = \"deny\"",
            "access = \"drop\"",
            "expected \"allow\" or \"deny\", got \"drop\"",
        ),
        (
            "\"10.9.0.0/16\"",
            "\"10.9.0.1/16\"",
            "expected 10.9.0.0/16, got 10.9.0.1/16, which has bits beyond its length",
        ),
        (
            "\"network\"",
            "\"VirtualNetwork\"",
            "expected \"any\", \"network\", \"load-balancer\", \"internet\", an address",
        ),
        (
            "[\"internet\",",
            "[\"any\",",
            "expected \"any\" alone, got other values too",
        ),
        (
            "\"8000-8010\"",
            "\"8010-8000\"",
            "expected \"any\", a port such as \"443\", or a range",
        ),
        (
            "protocol = \"tcp\"",
            "protocol = \"icmp\"",
            "expected \"any\", since packets of protocol \"icmp\" have no ports",
        ),
    ] {
        let said = fault(old, new);
        assert!(said.contains(expected), "{new}: {said}");
    }
    let proxy = r#"
[node]
role = "proxy"
[[port]]
name = "clients"
type = "frontend"
[[port]]
name = "servers"
type = "backend"
[[security_list]]
name = "web"
"#;
    let said = parse(proxy).expect_err("a proxy's");
    assert!(
        said.contains("security_list \"web\": is for role \"host\""),
        "{said}"
    );
}

#[test]
fn too_many_rules_are_refused_at_once() {
    let mut text = GOOD.to_owned();
    for n in 0..1000 {
        text += &format!(
            "[[security_rule]]\nsecurity_list = \"closed\"\nname = \"{n}\"\npriority = {}\ndirection = \"inbound\"\naccess = \"deny\"\n",
            100 + n
        );
    }
    let config = parse(&text).expect("a thousand are good");
    assert_eq!(config.security_lists[1].rules.len(), 1000);
    text += "[[security_rule]]\nsecurity_list = \"closed\"\nname = \"more\"\npriority = 4000\ndirection = \"inbound\"\naccess = \"deny\"\n";
    let said = parse(&text).expect_err("one too many");
    assert!(
        said.contains("expected at most 1000 rules, got 1001"),
        "{said}"
    );
}

#[test]
fn a_difference_names_rules_and_where_lists_apply() {
    let old = parse(GOOD).expect("good");
    let text = GOOD
        .replace("\"8000-8010\"", "\"8000-8020\"")
        .replace("[\"web\"]", "[\"web\", \"closed\"]")
        .replace("security_list = \"closed\"\n", "")
        + "\n[[security_list]]\nname = \"new\"\n\n[[security_rule]]\nsecurity_list = \"new\"\nname = \"one\"\n\
           priority = 200\ndirection = \"inbound\"\naccess = \"allow\"\n";
    let new = parse(&text).expect("good");
    let diff = Diff::between(&old, &new).expect("both compile").to_string();
    for line in [
        "+ security_list \"new\"",
        "+ security_rule \"new/one\"",
        "~ security_rule \"web/https\": destination_ports 443, 8000-8010 becomes 443, 8000-8020",
        "~ network \"blue\": security_list closed becomes none",
        "~ pool \"servers\"",
    ] {
        assert!(diff.contains(line), "{line}: {diff}");
    }
    assert!(Diff::between(&old, &old).expect("both compile").is_empty());
}
