//! Zones of nodes, frontends and backends.

use slb_control::config::Standing;
use slb_control::{Config, Diff};

/// The frontends have no zone, one, and three.
const FRONTENDS: &str = r#"
[[frontend]]
name = "everywhere"
address = "20.20.20.100"
[[frontend]]
name = "two"
address = "20.20.20.102"
zones = "2"
[[frontend]]
name = "redundant"
address = "20.20.20.103"
zones = ["1", "2", "3"]
"#;

const POOL: &str = r#"
[[probe]]
name = "alive"
protocol = "tcp"
port = 80
[[pool]]
name = "web"
vni = 5001
backends = [
  { name = "a1", address = "10.0.0.1", host = "172.16.0.101", weight = 2, zone = "1" },
  { name = "a2", address = "10.0.0.2", host = "172.16.0.102", zone = "2" },
  { name = "b2", address = "10.0.0.3", host = "172.16.0.102", weight = 3, zone = "2" },
  { name = "none", address = "10.0.0.4", host = "172.16.0.104", weight = 4 },
]
[[rule]]
name = "http"
frontend = "two"
pool = "web"
probe = "alive"
protocol = "tcp"
frontend_port = 80
[[rule]]
name = "https"
frontend = "redundant"
pool = "web"
protocol = "tcp"
frontend_port = 443
[[rule]]
name = "all"
frontend = "everywhere"
pool = "web"
probe = "alive"
protocol = "tcp"
frontend_port = 80
"#;

fn text(node: &str) -> String {
    format!("[node]\nunderlay = \"172.16.0.11\"\n{node}\n{FRONTENDS}{POOL}")
}

fn read(text: &str) -> Config {
    Config::parse("zones.toml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn at(node: &str) -> Config {
    read(&text(node))
}

#[test]
fn a_zonal_frontend_is_announced_by_muxes_of_its_zone_and_of_none() {
    for (node, expected) in [
        ("zone = \"1\"", &["everywhere", "redundant"][..]),
        ("zone = \"2\"", &["everywhere", "two", "redundant"]),
        ("zone = \"4\"", &["everywhere", "redundant"]),
        ("", &["everywhere", "two", "redundant"]),
    ] {
        let config = at(&format!("role = \"mux\"\n{node}"));
        let announced = config.frontends.iter().filter(|own| config.announces(own));
        let announced: Vec<&str> = announced.map(|own| &*own.name).collect();
        assert_eq!(announced, expected, "{node}");
    }
    let zones = |config: Config| -> Vec<Option<String>> {
        let all = config.frontends.iter();
        all.map(|own| own.zone().map(str::to_owned)).collect()
    };
    assert_eq!(
        zones(at("role = \"mux\"")),
        [None, Some("2".to_owned()), None]
    );
    let none = text("role = \"mux\"").replace("zones = \"2\"", "zones = []");
    assert_eq!(zones(read(&none)), [None, None, None]);
}

#[test]
fn zones_without_a_name_or_named_twice_are_faults() {
    let long = "z".repeat(65);
    for (was, is, expected) in [
        (
            "zones = \"2\"",
            "zones = \"\"".to_owned(),
            "frontend \"two\": zones: expected the name of a zone of 64 bytes at most, such as \"1\", got \"\"",
        ),
        (
            "zones = \"2\"",
            "zones = [\"2\", \"2\"]".to_owned(),
            "frontend \"two\": zones: zone \"2\" is named twice",
        ),
        (
            "zones = \"2\"",
            "zones = [2]".to_owned(),
            "frontend \"two\": zones: expected a string, got 2",
        ),
        (
            "weight = 2, zone = \"1\"",
            "zone = \"\"".to_owned(),
            "backend \"a1\": zone: expected the name of a zone",
        ),
        (
            "role = \"mux\"",
            format!("role = \"mux\"\nzone = \"{long}\""),
            "node: zone: expected the name of a zone",
        ),
    ] {
        let good = text("role = \"mux\"");
        let bad = good.replacen(was, &is, 1);
        assert_ne!(bad, good);
        let said = Config::parse("f", &bad).expect_err("a fault").to_string();
        assert!(said.contains(expected), "{said}");
    }
    let longest = "z".repeat(64);
    at(&format!("role = \"mux\"\nzone = \"{longest}\""));
}

#[test]
fn shares_of_zones_are_those_of_their_backends_that_take_new_flows() {
    let mut config = at("role = \"mux\"\nzone = \"1\"");
    let shares = |config: &Config| -> Vec<(String, usize, usize, f64)> {
        let all = config.zone_shares(0).into_iter();
        all.map(|own| {
            let zone = own.zone.unwrap_or("-").to_owned();
            (zone, own.backends, own.serving, own.share)
        })
        .collect()
    };
    let is = |zone: &str, backends, serving, share| (zone.to_owned(), backends, serving, share);
    assert_eq!(
        shares(&config),
        [is("-", 1, 1, 0.4), is("1", 1, 1, 0.2), is("2", 2, 2, 0.4)]
    );
    // One that fails for some rules only goes on with the others.
    config.set_failing(|_, _, backend| backend.zone.as_deref() == Some("2"));
    assert_eq!(config.standing(0, 1), Standing::Partial);
    assert_eq!(shares(&config)[2], is("2", 2, 2, 0.4));
    let without = text("role = \"mux\"").replace(
        "pool = \"web\"\nprotocol",
        "pool = \"web\"\nprobe = \"alive\"\nprotocol",
    );
    let mut config = read(&without);
    config.set_failing(|_, _, backend| backend.zone.as_deref() == Some("2"));
    assert_eq!(config.standing(0, 1), Standing::Unhealthy);
    assert_eq!(shares(&config)[2], is("2", 2, 0, 0.0));
    assert_eq!(shares(&config)[1], is("1", 1, 1, 2.0 / 6.0));
    // The shares are those of the table that packets are sent by.
    let snapshot = config.snapshot(None).expect("it compiles");
    let mut slots = [0.0; 3];
    for id in snapshot.slots(0) {
        let place = snapshot.backend_index(id.expect("a backend"));
        let backend = &config.pools[0].backends[place.expect("it is there") as usize];
        slots[match backend.zone.as_deref() {
            None => 0,
            Some("1") => 1,
            Some(_) => 2,
        }] += 1.0 / f64::from(config.pools[0].table_size);
    }
    for (own, slots) in shares(&config).iter().zip(slots) {
        assert!((own.3 - slots).abs() < 1e-4, "{own:?}, {slots}");
    }
    let none = text("role = \"mux\"")
        .replace(", zone = \"1\"", "")
        .replace(", zone = \"2\"", "");
    assert_eq!(shares(&read(&none)), []);
}

#[test]
fn zones_that_are_seldom_meant_are_warned_of() {
    let of_mux = at("role = \"mux\"").warnings();
    assert_eq!(
        of_mux,
        ["node: has no zone, so this mux also announces the frontends of single zones: \"two\""]
    );
    assert_eq!(at("role = \"mux\"\nzone = \"1\"").warnings(), [""; 0]);
    let one_host = text("role = \"mux\"\nzone = \"1\"").replace(
        "host = \"172.16.0.102\", zone",
        "host = \"172.16.0.101\", zone",
    );
    assert_eq!(
        read(&one_host).warnings(),
        [
            "backends \"a1\" and \"a2\" have one host, 172.16.0.101, and are in zones \"1\" and \"2\""
        ]
    );
    let host = text("role = \"host\"\nzone = \"1\"").replace("172.16.0.11\"", "172.16.0.102\"");
    let said = read(&host).warnings();
    assert_eq!(
        said[0],
        "backend \"a2\" of this host is in zone \"2\", and the node in zone \"1\""
    );
    assert_eq!(said.len(), 2);
}

#[test]
fn a_difference_names_zones_and_what_a_mux_announces() {
    let old = at("role = \"mux\"\nzone = \"2\"");
    let new = text("role = \"mux\"\nzone = \"1\"")
        .replace("zones = [\"1\", \"2\", \"3\"]", "zones = [\"1\", \"2\"]")
        .replacen(
            "host = \"172.16.0.102\", zone = \"2\"",
            "host = \"172.16.0.102\"",
            1,
        );
    let diff = Diff::between(&old, &read(&new)).expect("good");
    assert_eq!(
        diff.changed,
        [
            "node: zone \"2\" becomes \"1\"",
            "frontend \"two\": is no longer announced by this mux",
            "frontend \"redundant\": zones [\"1\", \"2\", \"3\"] becomes [\"1\", \"2\"]",
            "backend \"web/a2\": zone \"2\" becomes none",
        ]
    );
    assert!(diff.rules.iter().all(|rule| rule.changed == 0.0));
    let same = Diff::between(&old, &old.clone()).expect("good");
    assert!(same.is_empty());
}
