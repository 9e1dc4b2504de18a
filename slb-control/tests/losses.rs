//! Changes that are seldom meant, and what is said of them.

use slb_control::Config;

fn config(text: &str) -> Config {
    Config::parse("web.toml", text).unwrap()
}

fn backends(names: std::ops::Range<u32>) -> String {
    let one =
        |n| format!("{{ name = \"b{n}\", address = \"10.0.0.{n}\", host = \"172.16.0.9\" }}, ");
    names.map(one).collect()
}

fn text(rules: &str, web: &str, dns: &str) -> String {
    format!(
        "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
         [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
         [[frontend]]\nname = \"dns\"\naddress = \"20.20.20.101\"\n\
         [[pool]]\nname = \"webs\"\nvni = 1\nbackends = [ {web} ]\n\
         [[pool]]\nname = \"servers\"\nvni = 1\nbackends = [ {dns} ]\n{rules}"
    )
}

fn rule(name: &str, frontend: &str, pool: &str, port: u16) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\nfrontend = \"{frontend}\"\npool = \"{pool}\"\nprotocol = \"udp\"\n\
         frontend_port = {port}\n"
    )
}

#[test]
fn a_vip_that_loses_its_last_rule_is_named() {
    let (web, dns) = (backends(1..5), backends(11..13));
    let (a, b, c) = (
        rule("a", "web", "webs", 80),
        rule("b", "web", "webs", 81),
        rule("c", "dns", "servers", 53),
    );
    let old = config(&text(&[&*a, &*b, &*c].concat(), &web, &dns));
    // One rule of two goes: the VIP still has one.
    let new = config(&text(&[&*b, &*c].concat(), &web, &dns));
    assert_eq!(new.losses(&old), Vec::<String>::new());
    let newer = config(&text(&c, &web, &dns));
    assert_eq!(
        newer.losses(&new),
        [
            "VIP 20.20.20.100 (frontend \"web\") no longer has a rule: all of its packets are dropped"
        ]
    );
    // It has none before and after: that is known.
    assert_eq!(newer.losses(&newer), Vec::<String>::new());
    // A VIP that is no longer configured is gone on purpose.
    let gone = text(&c, &web, &dns).replace(
        "[[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n",
        "",
    );
    assert_eq!(config(&gone).losses(&new), Vec::<String>::new());
}

#[test]
fn a_pool_that_loses_half_of_its_backends_is_named() {
    let rules = rule("a", "web", "webs", 80) + &rule("c", "dns", "servers", 53);
    let of = |web, dns| config(&text(&rules, &backends(web), &backends(dns)));
    let old = of(1..9, 11..14);
    assert_eq!(of(1..6, 11..14).losses(&old), Vec::<String>::new());
    assert_eq!(
        of(1..5, 11..14).losses(&old),
        ["pool \"webs\" loses 4 of its 8 backends"]
    );
    // Others in the place of those that go are others.
    assert_eq!(
        of(5..13, 13..16).losses(&old),
        [
            "pool \"webs\" loses 4 of its 8 backends",
            "pool \"servers\" loses 2 of its 3 backends"
        ]
    );
    // More are no loss.
    assert_eq!(
        of(1..20, 31..40).losses(&of(1..9, 31..32)),
        Vec::<String>::new()
    );
}
