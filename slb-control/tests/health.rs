//! Health of backends by rule: findings of probes, the backends' own traffic, and recovery.

use std::time::Duration;

use slb_control::config::Standing;
use slb_control::{Config, SlowStart};
use slb_core::Instant;
use slb_core::health::Condition;
use slb_core::spec::{BackendHealth, BackendState};

const SICK: BackendHealth = BackendHealth {
    condition: Condition::Unhealthy,
    weight: None,
};

/// Three rules of one pool, two of them with probes of their own, on two frontends.
fn config() -> Config {
    let text = r#"
        [node]
        role = "mux"
        underlay = "172.16.0.11"
        [[frontend]]
        name = "web"
        address = "20.20.20.100"
        [[frontend]]
        name = "other"
        address = "20.20.20.101"
        [[pool]]
        name = "p"
        vni = 1
        slow_start = "10s"
        backends = [
          { name = "a", address = "10.0.0.1", host = "172.16.0.1", weight = 3 },
          { name = "b", address = "10.0.0.2", host = "172.16.0.1" },
        ]
        [[probe]]
        name = "http"
        protocol = "http"
        port = 80
        [[probe]]
        name = "tcp"
        protocol = "tcp"
        port = 443
        [[rule]]
        name = "http"
        frontend = "web"
        pool = "p"
        protocol = "tcp"
        frontend_port = 80
        probe = "http"
        [[rule]]
        name = "https"
        frontend = "other"
        pool = "p"
        protocol = "tcp"
        frontend_port = 443
        probe = "tcp"
        [[rule]]
        name = "plain"
        frontend = "web"
        pool = "p"
        protocol = "tcp"
        frontend_port = 81
    "#;
    Config::parse("health.toml", text).unwrap()
}

/// The rules that give new flows to a backend.
fn served(config: &Config, backend: usize) -> [bool; 3] {
    let snapshot = config.snapshot(None).unwrap();
    let rules = [0, 1, 2];
    let by_snapshot = rules.map(|rule| snapshot.serves(rule, backend as u32));
    let by_config = rules.map(|rule| config.serves(&config.rules[rule as usize], backend));
    assert_eq!(by_snapshot, by_config);
    by_config
}

#[test]
fn a_finding_holds_for_the_rules_of_its_probe() {
    let mut config = config();
    assert_eq!(served(&config, 0), [true; 3]);
    assert_eq!(config.standing(0, 0), Standing::Healthy);
    config.health.set(0, 1, 0, SICK);
    assert_eq!(served(&config, 0), [true, false, true]);
    assert_eq!(served(&config, 1), [true; 3]);
    assert_eq!(config.standing(0, 0), Standing::Partial);
    assert_eq!(config.standing(0, 1), Standing::Healthy);
    config.health.set(0, 0, 0, SICK);
    // The rule without a probe goes on.
    assert_eq!(served(&config, 0), [false, false, true]);
    assert_eq!(config.standing(0, 0), Standing::Partial);
    config.rules.pop();
    assert_eq!(config.standing(0, 0), Standing::Unhealthy);
    // What the configuration says holds whatever probes find.
    config.pools[0].backends[1].state = BackendState::Draining;
    assert_eq!(config.standing(0, 1), Standing::Draining);
    config.pools[0].backends[1].state = BackendState::Down;
    assert_eq!(config.standing(0, 1), Standing::Down);
    // What was observed is apart from it.
    assert_eq!(config.observed(0, 1), Standing::Healthy);
    config.pools[0].backends[1].condition = Condition::Unhealthy;
    assert_eq!(config.standing(0, 1), Standing::Down);
    config.pools[0].backends[1].state = BackendState::Draining;
    assert_eq!(config.standing(0, 1), Standing::Draining);
    assert_eq!(config.observed(0, 1), Standing::Unhealthy);
    config.pools[0].backends[1].state = BackendState::Up;
    assert_eq!(config.standing(0, 1), Standing::Unhealthy);
}

#[test]
fn a_frontend_is_available_by_its_own_rules() {
    let mut config = config();
    for backend in 0..2 {
        config.health.set(0, 1, backend, SICK);
    }
    assert_eq!(config.is_available(0), Some(true));
    assert_eq!(config.is_available(1), Some(false));
    for backend in 0..2 {
        config.health.set(0, 0, backend, SICK);
    }
    // Its rule without a probe still serves.
    assert_eq!(config.is_available(0), Some(true));
    config.rules.pop();
    assert_eq!(config.is_available(0), Some(false));
}

#[test]
fn a_backend_recovers_little_by_little_for_the_rules_that_it_failed() {
    let given = config();
    let mut slow = SlowStart::default();
    // Slots of a rule's table that a backend has, of each rule, and when it is to be asked again.
    let mut shares = |second, is_well: bool| {
        let mut config = given.clone();
        if !is_well {
            config.health.set(0, 0, 0, SICK);
        }
        slow.apply(Instant::from_secs(second), &mut config);
        assert_eq!(config.pools[0].backends[0].weight, 3);
        let snapshot = config.snapshot(None).unwrap();
        let own = snapshot.backends()[0].id();
        let share = |rule| {
            let slots: Vec<_> = snapshot.slots(rule).collect();
            let had = slots.iter().filter(|slot| **slot == Some(own)).count();
            (100.0 * had as f64 / slots.len() as f64).round() as u32
        };
        ([0, 1, 2].map(share), slow.due())
    };
    assert_eq!(shares(100, true), ([75, 75, 75], None));
    assert_eq!(shares(101, false), ([0, 75, 75], None));
    // 3 of 13, then 6 of 16, and all.
    let at = |second| Some(Instant::from_secs(second));
    assert_eq!(shares(200, true), ([23, 75, 75], at(201)));
    assert_eq!(shares(201, true), ([37, 75, 75], at(202)));
    assert_eq!(shares(210, true), ([75, 75, 75], None));
    assert_eq!(given.pools[0].slow_start, Some(Duration::from_secs(10)));
}

#[test]
fn all_rules_of_a_pool_with_one_probe_share_its_findings() {
    let mut config = config();
    config.rules[1].probe = Some(0);
    assert_eq!(config.probed_pools(), [(0, 0)]);
    config.health.set(0, 0, 1, SICK);
    assert_eq!(served(&config, 1), [false, false, true]);
}

/// Two tenants' pools whose backends have one address, each in a network of its own.
fn overlapping(node: &str) -> String {
    format!(
        r#"[node]
{node}
underlay = ["172.16.0.101", "fd00:16::101"]
[[probe]]
name = "p"
protocol = "tcp"
port = 80
[[frontend]]
name = "a"
address = "20.20.20.1"
[[frontend]]
name = "b"
address = "20.20.20.2"
[[pool]]
name = "ta"
vni = 1
backends = [{{ name = "x", address = "10.0.0.1", host = "172.16.0.101" }}]
[[pool]]
name = "tb"
vni = 2
backends = [
  {{ name = "y", address = "10.0.0.1", host = "172.16.0.101", mac = "02:00:00:00:00:02" }},
]
[[rule]]
name = "ra"
frontend = "a"
pool = "ta"
probe = "p"
protocol = "tcp"
frontend_port = 80
[[rule]]
name = "rb"
frontend = "b"
pool = "tb"
probe = "p"
protocol = "tcp"
frontend_port = 80
"#
    )
}

#[test]
fn a_mux_refuses_to_probe_one_address_of_two_networks() {
    let of_mux = overlapping("role = \"mux\"");
    let said = Config::parse("c.toml", &of_mux).unwrap_err().to_string();
    // Both lines, and what to do.
    for part in [
        "c.toml:22: pool \"tb\": backend \"y\": address:",
        "backend \"x\" of pool \"ta\" too (line 17)",
        "network 1",
        "probing = false",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    let ipv6 = of_mux
        .replace("20.20.20.", "2001:db8::")
        .replace("10.0.0.1", "fd00::1");
    assert!(Config::parse("c.toml", &ipv6).is_err());
    // Nobody is asked twice: not where it does not probe, one of them has no probe, both are in one
    // network, or a host agent asks, which has a port for each.
    for good in [
        overlapping("role = \"mux\"\nprobing = false"),
        overlapping("role = \"host\""),
        of_mux.replacen("probe = \"p\"\n", "", 1),
        of_mux
            .replace("vni = 2", "vni = 1")
            .replace("02:00:00:00:00:02", "0a:58:0a:00:00:01"),
    ] {
        let parsed = Config::parse("c.toml", &good);
        assert!(parsed.is_ok(), "{:?}", parsed.err());
    }
}

/// Configurations that were written when the words were others are still read.
#[test]
fn the_states_of_a_backend_have_three_words() {
    let text = |state: &str| {
        format!(
            "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n[[pool]]\nname = \"p\"\nvni = 1\n\
             backends = [{{ name = \"a\", address = \"10.0.0.1\", host = \"172.16.0.1\", state = \"{state}\" }}]\n"
        )
    };
    for (word, state) in [
        ("up", BackendState::Up),
        ("draining", BackendState::Draining),
        ("down", BackendState::Down),
        ("healthy", BackendState::Up),
        ("unhealthy", BackendState::Down),
    ] {
        let config = Config::parse("c.toml", &text(word)).unwrap();
        assert_eq!(config.pools[0].backends[0].state, state, "{word}");
        assert_eq!(config.pools[0].backends[0].condition, Condition::Healthy);
    }
    let error = Config::parse("c.toml", &text("drained"))
        .unwrap_err()
        .to_string();
    let expected = "\"up\", \"draining\" or \"down\"";
    assert!(error.contains(expected), "{error}");
}
