//! Flows and ports that move when one configuration replaces another, and the owners of ports.

use slb_control::{Config, Diff};

fn host() -> String {
    std::fs::read_to_string("../examples/host.toml").unwrap()
}

fn read(text: &str) -> Config {
    Config::parse("test.toml", text).unwrap()
}

fn diff(old: &str, new: &str) -> Diff {
    assert_ne!(old, new);
    Diff::between(&read(old), &read(new)).unwrap()
}

/// The lines of a difference about ports.
fn ports(diff: &Diff) -> Vec<String> {
    diff.ports.iter().map(ToString::to_string).collect()
}

const VM1: &str = "  { name = \"vm1\", address = \"10.10.1.11\", host = \"172.16.0.101\", mac = \"02:00:0a:0a:01:0b\" },\n";
const VM2: &str = "  { name = \"vm2\", address = \"10.10.1.12\", host = \"172.16.0.101\", mac = \"02:00:0a:0a:01:0c\" },\n";

#[test]
fn ports_have_their_backends() {
    let config = read(&host());
    let inbound = config.inbound_ports();
    let of = |place: usize| {
        let one = &inbound[place];
        (one.port, one.backend.as_str(), one.backend_port)
    };
    assert_eq!(inbound.len(), 2);
    assert_eq!(of(0), (2200, "web-servers/vm1", 22));
    assert_eq!(of(1), (2201, "web-servers/vm2", 22));
    let outbound = config.outbound_ports();
    let lines: Vec<String> = outbound.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        ["web-servers/vm1 1024-2047", "web-servers/vm2 2048-3071"]
    );
    assert!(
        outbound
            .iter()
            .all(|one| one.address.to_string() == "20.20.20.200")
    );
    // A rule's port takes eight ports out of a block, which goes on behind them.
    let beside = host()
        + "[[rule]]\nname = \"inside\"\nfrontend = \"outbound\"\npool = \"web-servers\"\n\
                           protocol = \"udp\"\nfrontend_port = 1500\n";
    assert_eq!(
        read(&beside).outbound_ports()[0].to_string(),
        "web-servers/vm1 1024-1495, 1504-2055"
    );
}

#[test]
fn a_backend_that_is_put_before_others_moves_their_ports() {
    // vm2 leaves its place, and vm3 takes it.
    let new = host().replace(
        VM2,
        "  { name = \"vm3\", address = \"10.10.1.13\", host = \"172.16.0.101\", mac = \"02:00:0a:0a:01:0d\" },\n",
    );
    let moved = diff(&host(), &new);
    let expected = [
        "20.20.20.100 tcp port 2201: from web-servers/vm2 port 22 to web-servers/vm3 port 22",
        "20.20.20.200 SNAT ports 2048 to 3071: from web-servers/vm2 to web-servers/vm3",
    ];
    assert_eq!(ports(&moved), expected);
    let said = moved.to_string();
    assert!(
        said.contains(&format!(
            "ports that move; connections through them end:\n  {}\n",
            expected[0]
        )),
        "{said}"
    );
    // With an instance of its own it keeps them, wherever it stands.
    let kept = host().replace(
        "backends = [\n",
        "backends = [\n  { name = \"vm3\", address = \"10.10.1.13\", host = \"172.16.0.101\", instance = 2 },\n",
    );
    let kept = kept
        .replace(
            "\"02:00:0a:0a:01:0b\" }",
            "\"02:00:0a:0a:01:0b\", instance = 0 }",
        )
        .replace(
            "\"02:00:0a:0a:01:0c\" }",
            "\"02:00:0a:0a:01:0c\", instance = 1 }",
        );
    assert!(ports(&diff(&host(), &kept)).is_empty());
}

#[test]
fn vms_that_swap_their_ports_are_named() {
    // Ports are counted in the order of the file, so one that goes moves those behind it.
    let fewer = diff(&host(), &host().replace(VM1, ""));
    let said = fewer.to_string();
    assert!(said.contains("~ vm \"vm2\": port 2 becomes 1\n"), "{said}");
    let (one, two) = (
        VM1.replace(" }", ", port = 2 }"),
        VM2.replace(" }", ", port = 1 }"),
    );
    let swapped = diff(&host(), &host().replace(VM1, &one).replace(VM2, &two));
    let said = swapped.to_string();
    assert!(said.contains("~ vm \"vm1\": port 1 becomes 2\n"), "{said}");
    assert!(said.contains("~ vm \"vm2\": port 2 becomes 1\n"), "{said}");
}

#[test]
fn fields_of_the_node_are_named_each_for_itself() {
    for (field, value) in [
        ("mtu", "1400"),
        ("mac", "\"02:00:00:00:00:77\""),
        ("next_hop", "\"02:00:00:00:00:78\""),
        ("hop_limit", "9"),
        ("udp_checksum", "\"zero\""),
    ] {
        let role = "role = \"host\"";
        let mut old = host().replace("mtu = 1600", "");
        for said in [
            "mac = \"02:00:00:00:01:01\"",
            "next_hop = \"02:00:00:00:00:02\"",
        ] {
            old = old.replacen(said, "", 1);
        }
        let new = old.replacen(role, &format!("{field} = {value}\n{role}"), 1);
        let new = diff(&old, &new);
        assert_eq!(new.changed, [format!("node: {field}")]);
    }
}

#[test]
fn ports_that_lead_nowhere_and_other_ports_of_backends_are_named() {
    let gone = diff(&host(), &host().replace(VM2, ""));
    assert_eq!(
        ports(&gone),
        [
            "20.20.20.100 tcp port 2201: from web-servers/vm2 port 22 to no backend",
            "20.20.20.200 SNAT ports 2048 to 3071: from web-servers/vm2 to no backend",
        ]
    );
    let ssh = diff(
        &host(),
        &host().replace("backend_port = 22\n", "backend_port = 2222\n"),
    );
    assert_eq!(ssh.changed, ["inbound NAT \"ssh\""]);
    assert_eq!(
        ports(&ssh)[0],
        "20.20.20.100 tcp port 2200: from web-servers/vm1 port 22 to web-servers/vm1 port 2222"
    );
    let start = host().replace("frontend_port_start = 2200", "frontend_port_start = 2201");
    assert_eq!(
        ports(&diff(&host(), &start)),
        [
            "20.20.20.100 tcp port 2200: from web-servers/vm1 port 22 to no backend",
            "20.20.20.100 tcp port 2201: from web-servers/vm2 port 22 to web-servers/vm1 port 22",
        ]
    );
}

#[test]
fn backends_that_change_places_change_ports() {
    let vm1 = VM2
        .replace("vm2", "vm1")
        .replace(".12\"", ".11\"")
        .replace(":0c\"", ":0b\"");
    let swapped = host().replace(&format!("{vm1}{VM2}"), &format!("{VM2}{vm1}"));
    let moved = diff(&host(), &swapped);
    let expected = [
        "20.20.20.100 tcp port 2200: from web-servers/vm1 port 22 to web-servers/vm2 port 22",
        "20.20.20.100 tcp port 2201: from web-servers/vm2 port 22 to web-servers/vm1 port 22",
        "20.20.20.200 SNAT ports 1024 to 2047: from web-servers/vm1 to web-servers/vm2",
        "20.20.20.200 SNAT ports 2048 to 3071: from web-servers/vm2 to web-servers/vm1",
    ];
    assert_eq!(ports(&moved), expected);
    assert!(!moved.is_empty());
    let said = moved.to_string();
    assert!(!said.contains("no difference"), "{said}");
    for line in expected {
        assert!(said.contains(&format!("  {line}\n")), "{said}");
    }
    // Ports that are told apart by instances, and vms that name their ports, stay whatever their order.
    let with = |text: String| {
        text.replace(":0b\" }", ":0b\", instance = 0, port = 1 }")
            .replace(":0c\" }", ":0c\", instance = 1, port = 2 }")
    };
    let same = diff(&with(host()), &with(swapped));
    assert!(same.is_empty(), "{same}");
    assert_eq!(same.to_string(), "no difference\n");
}

#[test]
fn blocks_of_another_size_move_in_part() {
    let new = host().replace(
        "allocated_outbound_ports = 1024",
        "allocated_outbound_ports = 2048",
    );
    assert_eq!(
        ports(&diff(&host(), &new)),
        ["20.20.20.200 SNAT ports 2048 to 3071: from web-servers/vm2 to web-servers/vm1"]
    );
    let new = host().replace(
        "allocated_outbound_ports = 1024",
        "allocated_outbound_ports = 512",
    );
    assert_eq!(
        ports(&diff(&host(), &new)),
        [
            "20.20.20.200 SNAT ports 1536 to 2047: from web-servers/vm1 to web-servers/vm2",
            "20.20.20.200 SNAT ports 2048 to 3071: from web-servers/vm2 to no backend",
        ]
    );
}

#[test]
fn another_distribution_spreads_flows_anew() {
    let new = host().replace(
        "frontend_port = 80\n",
        "frontend_port = 80\ndistribution = \"source-ip\"\n",
    );
    let diff = diff(&host(), &new);
    let rule = &diff.rules[0];
    // Two backends of one weight: every second flow stays by chance.
    assert!((rule.changed - 0.5).abs() < 0.001, "{}", rule.changed);
    let said = diff.to_string();
    assert!(
        said.contains(
            "rule \"http\": 50.00 %, flows are rehashed: distribution \"five-tuple\" becomes \"source-ip\""
        ),
        "{said}"
    );
}

#[test]
fn rates_change_while_running_and_table_sizes_do_not() {
    let with = |line: &str| {
        let old = host();
        let new = old.replace("role = \"host\"\n", &format!("role = \"host\"\n{line}\n"));
        let diff = diff(&old, &new);
        (diff.changed, diff.restart)
    };
    for (line, field) in [
        ("answers_per_second = 5", "node: answers_per_second"),
        ("too_big_per_second = 5", "node: too_big_per_second"),
        ("errors_per_second = 5", "node: errors_per_second"),
        ("resets_per_second = 5", "node: resets_per_second"),
        ("flows_per_source = 5", "node: flows_per_source"),
        ("clamp_mss = true", "node: clamp_mss"),
        ("icmp_source = \"172.16.0.9\"", "node: icmp_source"),
    ] {
        assert_eq!(with(line), (vec![field.to_owned()], vec![]), "{line}");
    }
    for (line, field) in [
        ("connections = 5", "connections"),
        ("flows = 5", "flows"),
        ("waiting_fragments = 5", "waiting_fragments"),
    ] {
        assert_eq!(with(line), (vec![], vec![field]), "{line}");
    }
}

#[test]
fn a_rule_that_takes_anothers_port_is_told_with_its_flows() {
    let renamed = host().replace("[[rule]]\nname = \"http\"\n", "[[rule]]\nname = \"web\"\n");
    // Its name alone moves nothing.
    let rules = diff(&host(), &renamed).rules;
    let shares: Vec<_> = rules
        .iter()
        .map(|rule| (&*rule.rule, rule.changed))
        .collect();
    assert_eq!(shares, [("web", 0.0)]);
    let fewer = renamed.replace(VM2, "");
    assert_ne!(renamed, fewer);
    let rule = &diff(&host(), &fewer).rules[0];
    assert!((rule.ended - 0.5).abs() < 0.01, "{}", rule.ended);
    // A rule of another port has no flows that could move.
    let other = renamed.replace("frontend_port = 80\n", "frontend_port = 81\n");
    assert!(diff(&host(), &other).rules.is_empty());
}

/// Two frontends whose names are swapped, and a rule whose frontend is: all that changed is named.
#[test]
fn a_rule_that_changes_says_what() {
    let text = |first: &str, second: &str, more: &str| {
        format!(
            "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
             [[frontend]]\nname = \"{first}\"\naddress = \"20.20.20.1\"\n\
             [[frontend]]\nname = \"{second}\"\naddress = \"20.20.20.2\"\n\
             [[pool]]\nname = \"p\"\nvni = 1\nbackends = [{{ name = \"b\", address = \"10.0.0.1\", host = \"172.16.0.101\" }}]\n\
             [[rule]]\nname = \"r\"\nfrontend = \"b\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n{more}"
        )
    };
    let swapped = diff(&text("a", "b", ""), &text("b", "a", ""));
    assert_eq!(
        swapped.changed,
        [
            "frontend \"b\": address 20.20.20.2 becomes 20.20.20.1",
            "frontend \"a\": address 20.20.20.1 becomes 20.20.20.2",
        ]
    );
    let other = text("b", "a", "").replace("frontend = \"b\"", "frontend = \"a\"");
    let moved = diff(&text("a", "b", ""), &other);
    assert!(
        moved
            .changed
            .contains(&"rule \"r\": frontend b becomes a".to_owned()),
        "{:?}",
        moved.changed
    );
    let before = text("a", "b", "");
    for (more, expected) in [
        ("tcp_reset = true", "tcp_reset false becomes true"),
        ("floating_ip = true", "floating_ip false becomes true"),
        ("idle_timeout = \"5m\"", "idle_timeout 4m becomes 5m"),
        ("backend_port = 81", "backend_port 80 becomes 81"),
        (
            "distribution = \"source-ip\"",
            "distribution five-tuple becomes source-ip",
        ),
    ] {
        let changed = diff(&before, &text("a", "b", more)).changed;
        assert_eq!(changed, [format!("rule \"r\": {expected}")]);
    }
}
