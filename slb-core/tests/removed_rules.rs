//! Connections of a rule that is gone, at a host agent and a proxy: none of their packets, timeouts and
//! ends is of the rule that has its slot now.

use crate::translated;

use std::time::Duration;

use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, Frontend, Pool, Protocol, Rule, Spec, Terms, Underlay};
use slb_core::state::Age;
use slb_core::stats::RuleCounters;
use translated::{ROLES, SYN, Setup, Web, World};

const CLIENT: u32 = 7;
const HTTPS: Web = Web {
    name: "https",
    port: 443,
    fails: false,
};

/// The reloads that replace one rule by the other: both at once, or one after the other.
const RELOADS: [&[Option<Web>]; 2] = [&[Some(HTTPS)], &[None, Some(HTTPS)]];

fn slot_of(world: &World, name: &str) -> usize {
    let snapshot = world.snapshot();
    let index = snapshot.rule_named(name).expect("a rule");
    snapshot.rule(index).expect("a rule").slot()
}

/// A role with an established connection of the rule "http", whose server this is.
fn connected(setup: Setup) -> (World, u16) {
    let mut world = World::new(setup);
    let server = world.connects(1, CLIENT, SYN).expect("it is served");
    (world, server)
}

/// Has the rule "http" go, and "https" come, which gets its slot.
fn replace(world: &mut World, reload: &[Option<Web>]) {
    let slot = slot_of(world, "http");
    for &web in reload {
        world.setup.web = web;
        world.install();
    }
    assert_eq!(slot_of(world, "https"), slot, "the same slot");
}

fn every_world() -> impl Iterator<Item = (Setup, &'static [Option<Web>])> {
    let setups = ROLES.map(|(role, ipv6)| Setup::new(role, ipv6));
    let all = |setup: Setup| RELOADS.map(|reload| (setup.clone(), reload));
    setups.into_iter().flat_map(all)
}

#[test]
fn connections_of_a_removed_rule_do_not_count_for_the_rule_that_has_its_slot() {
    for (setup, reload) in every_world() {
        let (mut world, server) = connected(setup);
        assert_eq!(world.rule("http").forwarded.packets, 3);
        replace(&mut world, reload);
        let what = format!("{:?} IPv6: {}", world.setup.role, world.setup.ipv6);
        // Before the sweep has seen the connection, and after that.
        for _ in 0..2 {
            // A burst of one packet, and a SYN that is none of an established connection's.
            assert!(world.goes_on(server, CLIENT, SYN), "{what}");
            world.asks(1, CLIENT, SYN).unwrap_or(server);
            let counters = world.rule("https");
            let RuleCounters {
                forwarded,
                syns,
                flows,
                ..
            } = counters;
            assert_eq!((forwarded.packets, syns, flows), (0, 0, 0), "{what}");
            world.advance();
        }
    }
}

#[test]
fn a_rule_that_comes_back_counts_from_the_beginning() {
    for (setup, reload) in every_world() {
        let (mut world, server) = connected(setup);
        replace(&mut world, reload);
        // As many times as there are incarnations in a connection, and more.
        for _ in 0..20 {
            for web in [Web::HTTP, HTTPS] {
                world.setup.web = Some(web);
                world.install();
                assert!(world.goes_on(server, CLIENT, SYN));
                assert_eq!(world.rule(web.name).forwarded.packets, 0);
                world.advance();
            }
        }
    }
}

#[test]
fn connections_of_a_removed_rule_keep_their_idle_timeout() {
    for (setup, reload) in every_world() {
        let idle_timeout = Duration::from_secs(1800);
        let (mut world, server) = connected(Setup {
            idle_timeout,
            ..setup
        });
        world.setup.idle_timeout = Duration::from_secs(240);
        replace(&mut world, reload);
        world.wait(Duration::from_secs(1700));
        assert!(world.goes_on(server, CLIENT, SYN));
        world.wait(Duration::from_secs(1700));
        assert!(world.goes_on(server, CLIENT, SYN));
        world.wait(Duration::from_secs(1900));
        assert!(!world.goes_on(server, CLIENT, SYN), "it has one");
    }
}

#[test]
fn the_probe_of_a_rule_ends_no_connection_of_the_rule_that_had_its_slot() {
    for (setup, reload) in every_world() {
        let terms = Terms {
            tcp_reset: true,
            ..setup.terms
        };
        let (mut world, server) = connected(Setup { terms, ..setup });
        let fails = Web {
            fails: true,
            ..HTTPS
        };
        let reload: Vec<_> = reload.iter().map(|web| web.map(|_| fails)).collect();
        replace(&mut world, &reload);
        world.advance();
        assert!(world.goes_on(server, CLIENT, SYN), "{:?}", world.setup.role);
        let stats = world.stats();
        assert_eq!((stats.resets, stats.resets_suppressed), (0, 0));
    }
    // A probe of its own does.
    for (role, ipv6) in ROLES {
        let mut setup = Setup::new(role, ipv6);
        setup.terms.tcp_reset = true;
        let (mut world, server) = connected(setup);
        world.setup.web = Some(Web {
            fails: true,
            ..Web::HTTP
        });
        world.install();
        world.advance();
        assert!(!world.goes_on(server, CLIENT, SYN), "{role:?}");
    }
}

#[test]
fn connections_of_a_removed_rule_are_not_handed_over_as_anothers() {
    for (setup, reload) in every_world() {
        let (mut world, server) = connected(setup.clone());
        replace(&mut world, reload);
        let (records, _) = world.export();
        let mut next = World::new(world.setup.clone());
        next.import(Age::default(), &records).expect("records");
        assert!(next.goes_on(server, CLIENT, SYN));
        assert_eq!(next.rule("https").forwarded.packets, 0);
        // Those of a rule that stays are.
        let (world, server) = connected(setup.clone());
        let (records, _) = world.export();
        let mut next = World::new(setup);
        next.import(Age::default(), &records).expect("records");
        assert!(next.goes_on(server, CLIENT, SYN));
        assert_eq!(next.rule("http").forwarded.packets, 2);
    }
}

/// Rules by name, for a port each.
fn snapshot(names: &[String], previous: Option<&Snapshot<'_>>) -> Snapshot<'static> {
    let rules: Vec<Rule<'_>> = names
        .iter()
        .zip(1..)
        .map(|(name, port)| Rule {
            name,
            protocol: Protocol::Tcp,
            frontend_port: port,
            backend_port: port,
            ..Rule::default()
        })
        .collect();
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some([172, 16, 0, 9].into()),
            ..Underlay::default()
        },
        frontends: &[Frontend {
            address: [20, 20, 20, 100].into(),
            ..Frontend::default()
        }],
        rules: &rules,
        pools: &[Pool {
            table_size: 7,
            backends: &[Backend {
                address: [10, 0, 0, 1].into(),
                host: [172, 16, 0, 1].into(),
                ..Backend::default()
            }],
            ..Pool::default()
        }],
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).expect("a good spec")
}

/// Connections remember which of the rules that had a slot is theirs for the first slots only.
#[test]
fn slots_beyond_the_first_2048_are_not_given_again_while_there_are_new_ones() {
    let mut names: Vec<String> = (0..3000).map(|n| format!("rule {n}")).collect();
    let mut last = snapshot(&names, None);
    let slot_of = |snapshot: &Snapshot<'_>, index| snapshot.rule(index).expect("a rule").slot();
    let (mut short, mut long) = (5, 2500);
    let first = slot_of(&last, short);
    let mut seen = vec![slot_of(&last, long)];
    for n in 0..10 {
        names[short as usize] = format!("short {n}");
        names[long as usize] = format!("long {n}");
        let next = snapshot(&names, Some(&last));
        assert!(next.follows(&last));
        // Two rules went and two came: one of these gets the short slot.
        let mut slots = [short, long].map(|index| slot_of(&next, index));
        slots.sort_unstable();
        let [again, new] = slots;
        assert_eq!(again, first);
        assert!(new >= 2048 && !seen.contains(&new), "{new} of {seen:?}");
        seen.push(new);
        if slot_of(&next, short) != first {
            core::mem::swap(&mut short, &mut long);
        }
        last = next;
    }
    assert_eq!(last.rule_slots(), 3010);
}
