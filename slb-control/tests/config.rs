//! A configuration that is wrong is told what, where, and what is allowed.

use std::time::Duration;

use slb_control::{Config, Diff};
use slb_core::PortId;
use slb_core::spec::{BackendState, Echo, PortMode, Protocol, Scheduler};

const GOOD: &str = r#"[node]
role = "mux"
underlay = ["172.16.0.11", "fd00:16::11"]
hash_seed = 1

[[frontend]]
name = "web"
address = "20.20.20.100"

[[frontend]]
name = "web6"
address = "2001:db8:20::100"
icmp_echo = "ignore"

[[pool]]
name = "servers"
vni = 5001
backends = [
  { name = "vm1", address = "10.10.1.11", host = "172.16.0.101", mac = "02:00:0a:0a:01:0b" },
  { name = "vm2", address = "10.10.2.11", host = "172.16.0.102", weight = 2, state = "draining" },
]

[[pool]]
name = "servers6"
vni = 0x1_389
table_size = 4099
backends = [{ name = "vm1", address = "fd00:10::11", host = "fd00:16::101" }]

[[probe]]
name = "health"
protocol = "http"
port = 80
path = "/health"
interval = "15s"

[[rule]]
name = "http"
frontend = "web"
pool = "servers"
probe = "health"
protocol = "tcp"
frontend_port = 80
backend_port = 8080
distribution = "source-ip"
idle_timeout = "30m"
tcp_reset = true

[[rule]]
name = "everything"
frontend = "web6"
pool = "servers6"
protocol = "all"
"#;

#[test]
fn a_good_configuration_says_what_it_says() {
    let config = Config::parse("web.toml", GOOD).unwrap();
    assert_eq!(config.frontends[1].icmp_echo, Echo::Ignore);
    assert_eq!(config.pools[1].vni.get(), 0x1389);
    assert_eq!(config.pools[0].backends[1].weight, 2);
    assert_eq!(config.pools[0].backends[1].state, BackendState::Draining);
    let rule = &config.rules[0];
    assert_eq!(
        (rule.protocol, rule.frontend_port, rule.backend_port),
        (Protocol::Tcp, 80, 8080)
    );
    assert_eq!(
        (rule.idle_timeout, rule.probe),
        (Duration::from_secs(1800), Some(0))
    );
    assert_eq!(config.rules[1].idle_timeout, Duration::from_secs(240));
    let snapshot = config.snapshot(None).unwrap();
    assert_eq!(snapshot.backends().len(), 3);
    assert_eq!(snapshot.pool_table(1).unwrap().len(), 4099);
    let next = config.snapshot(Some(&snapshot)).unwrap();
    assert_eq!(
        (next.generation(), next.backends()[2].id()),
        (2, snapshot.backends()[2].id())
    );
}

/// One change of the good text, and what it is told.
#[track_caller]
fn fault(from: &str, to: &str, expected: &str) {
    assert_eq!(GOOD.matches(from).count(), 1, "{from}");
    let text = GOOD.replace(from, to);
    let errors = Config::parse("web.toml", &text).unwrap_err();
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn fields_that_are_not_known_are_errors_with_a_suggestion() {
    fault(
        "frontend_port = 80",
        "frontent_port = 80\nfrontend_port = 80",
        "web.toml:42: rule \"http\": unknown field \"frontent_port\": did you mean \"frontend_port\"?",
    );
    fault(
        "weight = 2",
        "wieght = 2",
        "web.toml:20: pool \"servers\": backend \"vm2\": unknown field \"wieght\": did you mean \
         \"weight\"?",
    );
    fault(
        "hash_seed = 1",
        "zzz = 1",
        "web.toml:4: node: unknown field \"zzz\": expected \"role\", \"underlay\", \"hash_seed\", \
         \"icmp_source\", \"mac\", \"next_hop\", \"mtu\", \"hop_limit\", \"udp_checksum\", \
         \"hash\", \"hash_key\", \"flows\", \"answers_per_second\", \"too_big_per_second\", \
         \"errors_per_second\", \"connections\", \"waiting_fragments\", \"direct_flows\", \"flows_per_source\", \
         \"flows_per_source_at_once\", \"resets_per_second\", \"passes_per_second\", \
         \"take_ups_per_second\", \"clamp_mss\", \"muxes\", \"inside\", \"withdraw_when_down\", \"probe_sources\", \"zone\" or \"probing\"",
    );
    fault(
        "[[probe]]",
        "[[probes]]",
        "web.toml:29: unknown field \"probes\": did you mean \"probe\"?\nweb.toml:40: rule \
         \"http\": probe: there is no probe \"health\": the file has no [[probe]]",
    );
}

#[test]
fn values_are_told_what_is_allowed() {
    fault(
        "idle_timeout = \"30m\"",
        "idle_timeout = \"2m\"",
        "web.toml:45: rule \"http\": idle_timeout: expected a time from 4m to 30m, such as \"4m\", \
         got \"2m\"",
    );
    fault(
        "frontend_port = 80",
        "frontend_port = 65536",
        "web.toml:42: rule \"http\": frontend_port: expected 0 to 65535, got 65536",
    );
    fault(
        "frontend_port = 80",
        "frontend_port = \"http\"",
        "web.toml:42: rule \"http\": frontend_port: expected 0 to 65535, got \"http\"",
    );
    fault(
        "frontend_port = 80",
        "frontend_port = 0",
        "web.toml:42: rule \"http\": frontend_port: expected 1 to 65535 with \"tcp\" and \"udp\"",
    );
    fault(
        "address = \"20.20.20.100\"",
        "address = \"20.20.20.300\"",
        "web.toml:8: frontend \"web\": address: expected the IPv4 or IPv6 address of a host (unicast, neither loopback nor \
         link-local), got \
         \"20.20.20.300\"",
    );
    fault(
        "protocol = \"tcp\"",
        "protocol = \"sctp\"",
        "web.toml:41: rule \"http\": protocol: expected \"tcp\", \"udp\", \"icmp\" or \
         \"all\", got \"sctp\"",
    );
    fault(
        "table_size = 4099",
        "table_size = 4100",
        "web.toml:26: pool \"servers6\": table_size: expected a prime, got 4100; the next one is \
         4111",
    );
    fault(
        "interval = \"15s\"",
        "interval = \"301s\"",
        "web.toml:34: probe \"health\": interval: expected a time from 5s to 5m, such as \"5s\", \
         got \"301s\"",
    );
    fault(
        "role = \"mux\"",
        "role = \"hub\"",
        "web.toml:2: node: role: expected \"mux\", \"host\" or \"proxy\", got \"hub\"",
    );
    fault(
        "02:00:0a:0a:01:0b",
        "02:00:0a:0a:01",
        "web.toml:19: pool \"servers\": backend \"vm1\": mac: expected the MAC address of one \
         station, such as \"02:00:0a:0a:01:0b\" (no group's, not all zeros), got \"02:00:0a:0a:01\"",
    );
}

#[test]
fn what_is_missing_or_refers_to_nothing_is_named() {
    fault(
        "address = \"20.20.20.100\"\n",
        "\n",
        "web.toml:6: frontend \"web\": address: is missing",
    );
    fault(
        "pool = \"servers\"\n",
        "pool = \"serves\"\n",
        "web.toml:39: rule \"http\": pool: there is no pool \"serves\": did you mean \"servers\"?",
    );
    let errors = Config::parse("empty.toml", "").unwrap_err().to_string();
    assert_eq!(errors, "empty.toml:1: expected a section [node], got none");
    let error = Config::from_path("/nowhere/web.toml")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("/nowhere/web.toml:1: cannot be read: "),
        "{error}"
    );
}

#[test]
fn contradictions_are_found_all_at_once() {
    let text = format!(
        "{GOOD}
[[rule]]
name = \"http\"
frontend = \"web\"
pool = \"servers\"
protocol = \"tcp\"
frontend_port = 80

[[rule]]
name = \"dns\"
frontend = \"web6\"
pool = \"servers\"
protocol = \"udp\"
frontend_port = 53

[[frontend]]
name = \"again\"
address = \"20.20.20.100\"
"
    );
    let errors = Config::parse("web.toml", &text).unwrap_err().to_string();
    let expected = "\
web.toml:48: rule \"everything\": takes all ports of frontend \"web6\" (HA ports), so the frontend can have no rule \"dns\"
web.toml:54: rule \"http\": duplicate name
web.toml:54: rule \"http\": takes tcp port 80 of frontend \"web\", as rule \"http\" does
web.toml:61: rule \"dns\": frontend \"web6\" is 2001:db8:20::100, but backend \"vm1\" of pool \"servers\" is 10.10.1.11
web.toml:68: frontend \"again\": address: 20.20.20.100 is the address of frontend \"web\" already";
    assert_eq!(errors, expected);
}

#[test]
fn a_host_needs_an_underlay_of_its_family() {
    fault(
        "underlay = [\"172.16.0.11\", \"fd00:16::11\"]",
        "underlay = \"172.16.0.11\"",
        "web.toml:27: pool \"servers6\": backend \"vm1\": host: fd00:16::101 is IPv6, but the \
         node's underlay has no such address",
    );
    fault(
        "\"fd00:16::11\"]",
        "\"172.16.0.12\", \"fd00:16::11\"]",
        "web.toml:3: node: underlay: expected one address of each family at most, got \
         172.16.0.11 and 172.16.0.12",
    );
}

#[test]
fn keys_are_asked_for_and_never_shown() {
    fault(
        "hash_seed = 1",
        "hash = \"siphash-1-3\"",
        "web.toml:1: node: hash_key: is missing: \"siphash-1-3\" needs a secret one of 32 \
         hexadecimal digits",
    );
    fault(
        "hash_seed = 1",
        "hash = \"siphash-1-3\"\nhash_key = \"secret\"",
        "web.toml:5: node: hash_key: expected 32 hexadecimal digits (it is secret, so not shown)",
    );
    let text = GOOD.replace(
        "hash_seed = 1",
        "hash = \"siphash-1-3\"\nhash_key = \"000102030405060708090a0b0c0d0e0f\"",
    );
    let config = Config::parse("web.toml", &text).unwrap();
    assert!(!format!("{config:?}").contains("0001020304"));
    let key = "\"000102030405060708090a0b0c0d0e0f\"";
    assert_eq!(config.origin.shown(), text.replace(key, "\"(secret)\""));
    assert!(config.origin.is(&text) && !config.origin.is(&config.origin.shown()));
}

const HOST: &str = r#"[node]
role = "host"
underlay = "172.16.0.101"
muxes = ["172.16.0.11", "172.16.0.12"]

[[frontend]]
name = "web"
address = "20.20.20.100"

[[frontend]]
name = "out"
address = "20.20.20.200"

[[pool]]
name = "servers"
vni = 5001
backends = [
  { name = "vm1", address = "10.10.1.11", host = "172.16.0.101" },
  { name = "vm2", address = "10.10.2.11", host = "172.16.0.102" },
  { name = "vm3", address = "10.10.1.12", host = "172.16.0.101", instance = 4 },
]

[[rule]]
name = "http"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port = 80
backend_port = 8080
answers = "mux"
tcp_reset = true

[[inbound_nat_rule]]
name = "ssh"
frontend = "web"
pool = "servers"
backend = "vm2"
protocol = "tcp"
frontend_port = 2222
backend_port = 22

[[inbound_nat_pool]]
name = "rdp"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port_start = 5000
frontend_port_end = 5009
backend_port = 3389

[[outbound_rule]]
name = "all"
frontends = ["out"]
pool = "servers"
allocated_outbound_ports = 1024
"#;

#[test]
fn a_host_knows_its_vms_and_rules() {
    let config = Config::parse("host.toml", HOST).unwrap();
    let vms = config.vms();
    let ports: Vec<u16> = vms.iter().map(|vm| vm.port.unwrap().0).collect();
    let addresses: Vec<String> = vms.iter().map(|vm| vm.addresses[0].to_string()).collect();
    assert_eq!(ports, [1, 2]);
    assert_eq!(addresses, ["10.10.1.11", "10.10.1.12"]);
    let rule = &config.rules[0];
    assert!(rule.terms.tcp_reset && rule.disable_outbound_snat && !rule.terms.floating_ip);
    assert_eq!(config.inbound_nat.len(), 2);
    assert_eq!(config.outbound[0].allocated_outbound_ports, Some(1024));
    assert_eq!(config.outbound[0].protocol, Protocol::All);
}

#[test]
fn a_rule_may_imply_an_outbound_one() {
    let end = HOST.find("[[outbound_rule]]").unwrap();
    let none = Config::parse("host.toml", &HOST[..end]).unwrap();
    assert!(none.outbound.is_empty());
    let text = HOST[..end].replace("tcp_reset", "disable_outbound_snat = false\ntcp_reset");
    let implied = Config::parse("host.toml", &text).unwrap();
    assert_eq!(implied.outbound.len(), 1);
    assert_eq!(implied.outbound[0].frontends, [0]);
    assert_eq!(implied.outbound[0].allocated_outbound_ports, None);
    let text = HOST.replace("tcp_reset", "disable_outbound_snat = false\ntcp_reset");
    assert_eq!(Config::parse("host.toml", &text).unwrap().outbound.len(), 1);
}

#[track_caller]
fn host_fault(good: &str, bad: &str, expected: &str) {
    assert!(HOST.contains(good), "{good}");
    let errors = Config::parse("host.toml", &HOST.replace(good, bad)).unwrap_err();
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn faults_of_nat_are_told() {
    host_fault(
        "frontend_port = 2222",
        "frontend_port = 80",
        "host.toml:33: inbound_nat_rule \"ssh\": takes port 80 of frontend \"web\", of which rule \
         \"http\" takes port 80",
    );
    host_fault(
        "frontend_port = 2222",
        "frontend_port = 5005",
        "host.toml:42: inbound_nat_pool \"rdp\": takes ports 5000 to 5009 of frontend \"web\", of \
         which inbound_nat_rule \"ssh\" takes port 5005",
    );
    host_fault(
        "backend = \"vm2\"",
        "backend = \"vm22\"",
        "host.toml:37: inbound_nat_rule \"ssh\": backend: there is no backend \"vm22\": did you mean \
         \"vm2\"?",
    );
    host_fault(
        "frontend_port_end = 5009",
        "frontend_port_end = 5003",
        "host.toml:42: inbound_nat_pool \"rdp\": expected a port for each instance of pool \
         \"servers\", 5 of them, got 4 ports (5000 to 5003)",
    );
    host_fault(
        "ports = 1024",
        "ports = 1025",
        "host.toml:55: outbound_rule \"all\": allocated_outbound_ports: expected a multiple of 8, \
         or 0 for an even share, got 1025",
    );
    host_fault(
        "ports = 1024",
        "ports = 16000",
        "host.toml:51: outbound_rule \"all\": allocated_outbound_ports: needs 80000 ports of \
         frontend \"out\" in all, which has 64512 left (each port that a rule takes costs eight)",
    );
    host_fault(
        "muxes = [\"172.16.0.11\", \"172.16.0.12\"]\n",
        "\n",
        "host.toml:23: rule \"http\": answers: \"mux\" needs the muxes' addresses: muxes of [node]",
    );
    host_fault(
        "instance = 4",
        "instance = 1",
        "host.toml:20: pool \"servers\": backend \"vm3\": instance: 1 is the instance of backend \
         \"vm2\" already",
    );
    host_fault(
        "frontends = [\"out\"]",
        "frontends = [\"out\", \"ut\"]",
        "host.toml:53: outbound_rule \"all\": frontends: there is no frontend \"ut\": did you mean \
         \"out\"?",
    );
}

#[test]
fn conflicts_of_a_host_are_found_all_at_once() {
    let text = HOST
        .replace("frontend_port = 2222", "frontend_port = 80")
        .replace("frontend_port_end = 5009", "frontend_port_end = 5003")
        .replace("ports = 1024", "ports = 16000");
    let text = format!(
        "{text}
[[frontend]]
name = \"other\"
address = \"20.20.20.103\"

[[outbound_rule]]
name = \"more\"
frontends = [\"other\"]
pool = \"servers\"
allocated_outbound_ports = 40000
"
    );
    let errors = Config::parse("host.toml", &text).unwrap_err().to_string();
    let expected = [
        "inbound_nat_rule \"ssh\": takes port 80",
        "inbound_nat_pool \"rdp\": expected a port for each instance",
        "outbound_rule \"all\": allocated_outbound_ports: needs 80000 ports of frontend \"out\"",
        "outbound_rule \"more\": allocated_outbound_ports: needs 200000 ports of frontend \"other\"",
    ];
    assert_eq!(errors.lines().count(), expected.len(), "{errors}");
    for (line, expected) in errors.lines().zip(expected) {
        assert!(line.contains(expected), "{line}");
    }
}

const PROXY: &str = r#"[node]
role = "proxy"

[[port]]
name = "clients"
type = "frontend"
mode = "multi"
address = "10.0.1.1"

[[port]]
name = "more"
type = "frontend"
address = "10.0.2.1"

[[port]]
name = "servers"
type = "backend"

[[source_rewrite]]
from = "10.0.1.0/24"
to = "192.168.5.0/24"

[[frontend]]
name = "web"
address = "20.20.20.100"

[[pool]]
name = "servers"
backends = [
  { name = "one", address = "10.10.1.11" },
  { name = "two", address = "10.10.1.12", backend_port = 8081 },
]

[[rule]]
name = "http"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port = 80
backend_port = 8080
scheduler = "least-connections"

[[rule]]
name = "ping"
frontend = "web"
pool = "servers"
protocol = "icmp"
"#;

#[test]
fn a_proxy_knows_its_ports() {
    let config = Config::parse("proxy.toml", PROXY).unwrap();
    assert_eq!(config.ports.mode(), PortMode::Multi);
    assert_eq!(config.ports.by_name("more"), Some(PortId(1)));
    assert_eq!(config.ports.name(PortId(2)), Some("servers"));
    assert_eq!(config.rules[0].scheduler, Scheduler::LeastConnections);
    assert_eq!(config.rules[1].protocol, Protocol::Icmp);
    assert_eq!(config.ports.source_rewrites[0].prefix_len, 24);
    config.with_spec(|spec| {
        let ports = spec.proxy.unwrap();
        assert_eq!(ports.backend, PortId(2));
        assert_eq!(ports.frontends.len(), 2);
        assert_eq!(spec.pools[0].backends[1].backend_port, Some(8081));
    });
}

#[test]
fn a_proxy_without_ports_has_one_of_each() {
    let start = PROXY.find("[[port]]").unwrap();
    let end = PROXY.find("[[source_rewrite]]").unwrap();
    let text = PROXY[..start].to_owned() + &PROXY[end..];
    let config = Config::parse("proxy.toml", &text).unwrap();
    assert_eq!(config.ports.mode(), PortMode::Single);
    assert_eq!(config.ports.by_name("frontend"), Some(PortId(0)));
    assert_eq!(config.ports.by_name("backend"), Some(PortId(1)));
}

#[track_caller]
fn proxy_fault(good: &str, bad: &str, expected: &str) {
    assert!(PROXY.contains(good), "{good}");
    let errors = Config::parse("proxy.toml", &PROXY.replace(good, bad)).unwrap_err();
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn faults_of_ports_are_told() {
    proxy_fault(
        "mode = \"multi\"",
        "mode = \"single\"",
        "proxy.toml:10: port \"more\": expected one frontend port in \"single\" mode: mode = \
         \"multi\" has several",
    );
    proxy_fault(
        "address = \"10.0.2.1\"\n",
        "\n",
        "proxy.toml:10: port \"more\": address: is missing: in \"multi\" mode each frontend port \
         needs one",
    );
    proxy_fault(
        "10.0.2.1",
        "10.0.1.1",
        "proxy.toml:10: port \"more\": address: 10.0.1.1 is the address of port \"clients\" already",
    );
    proxy_fault(
        "10.0.2.1",
        "fd00::1",
        "proxy.toml:13: port \"more\": address: expected the IPv4 address of a host (unicast, neither \
         loopback nor link-local), got \"fd00::1\"",
    );
    proxy_fault(
        "type = \"backend\"",
        "type = \"frontend\"\naddress = \"10.0.3.1\"",
        "proxy.toml:4: port: expected a backend port, got none",
    );
    proxy_fault(
        "to = \"192.168.5.0/24\"",
        "to = \"192.168.5.0/25\"",
        "proxy.toml:21: source_rewrite 1: to: expected a range of the size of 10.0.1.0/24, got \
         192.168.5.0/25",
    );
    proxy_fault(
        "from = \"10.0.1.0/24\"",
        "from = \"10.0.1.7/24\"",
        "proxy.toml:20: source_rewrite 1: from: expected 10.0.1.0/24, got 10.0.1.7/24, which has bits \
         beyond its length",
    );
    proxy_fault(
        "from = \"10.0.1.0/24\"",
        "from = \"10.0.1.0/33\"",
        "proxy.toml:20: source_rewrite 1: from: expected a range such as \"10.0.0.0/24\", or one \
         address, got \"10.0.1.0/33\"",
    );
    proxy_fault(
        "scheduler = \"least-connections\"",
        "scheduler = \"least-connections\"\ndistribution = \"source-ip\"",
        "proxy.toml:34: rule \"http\": scheduler: \"source-ip\" sends a client to the same backend again, \
         \"least-connections\" does not",
    );
    proxy_fault(
        "protocol = \"icmp\"",
        "protocol = \"icmp\"\nfrontend_port = 8",
        "proxy.toml:48: rule \"ping\": frontend_port: expected 0 with \"icmp\", got 8",
    );
    let text = GOOD.replace(
        "frontend_port = 80",
        "frontend_port = 80\nscheduler = \"least-connections\"",
    );
    let errors = Config::parse("web.toml", &text).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "web.toml:36: rule \"http\": scheduler: \"least-connections\" is for role \"proxy\": muxes \
         have to agree"
    );
}

#[test]
fn toml_that_is_none_is_told_so() {
    let errors = Config::parse("web.toml", "[node\nrole = 1").unwrap_err();
    assert_eq!(errors.0[0].line, 1);
}

#[test]
fn arbitrary_text_never_panics() {
    bolero::check!()
        .with_type::<(Vec<(u16, u8)>, u16)>()
        .for_each(|(changes, cut)| {
            let mut bytes = GOOD.as_bytes().to_vec();
            for &(at, value) in changes {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len() - usize::from(*cut) % bytes.len() / 4);
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(config) = Config::parse("fuzz.toml", &text) {
                // What was found good can be compiled.
                if config.pools.iter().all(|pool| pool.table_size < 100_000) {
                    config.snapshot(None).unwrap();
                }
            }
        });
}

#[test]
fn a_diff_says_what_another_configuration_would_change() {
    let old = Config::from_path("../examples/web.toml").unwrap();
    let same = Diff::between(&old, &old).unwrap();
    assert!(same.is_empty(), "{same}");
    assert!(same.rules.iter().all(|rule| rule.changed == 0.0));

    // One of three is drained: its share of the table, and no more than a little else, moves.
    let mut drained = old.clone();
    let backend = drained.backend_mut("vm1").unwrap();
    backend.state = BackendState::Draining;
    let diff = Diff::between(&old, &drained).unwrap();
    assert_eq!(diff.changed, ["backend \"web-servers/vm1\""]);
    let share = 1.0 / f64::from(old.pools[0].backends.iter().map(|b| b.weight).sum::<u32>());
    let rule = &diff.rules[0];
    assert!((rule.bereft - share).abs() < 0.001, "{diff}");
    assert!(rule.changed - rule.bereft < 0.01, "{diff}");

    // Another name is another backend, and what is sized at the start stays so.
    let mut other = old.clone();
    other.pools[0].backends[0].name = "new".to_owned();
    other.node.flows += 1;
    let diff = Diff::between(&old, &other).unwrap();
    assert_eq!(diff.added, ["backend \"web-servers/new\""]);
    assert_eq!(diff.removed, ["backend \"web-servers/vm1\""]);
    assert_eq!(diff.restart, ["flows"]);
    let mut other = old.clone();
    other.node.mtu = Some(9000);
    other.node.hash_seed = 99;
    let reseeded = Diff::between(&old, &other).unwrap();
    assert_eq!(reseeded.changed, ["node: mtu", "node: hash"]);
    assert!(reseeded.rules[0].changed > 0.3, "{reseeded}");
    let said = diff.to_string();
    assert!(
        said.contains("! node: flows takes effect after a restart"),
        "{said}"
    );
}
