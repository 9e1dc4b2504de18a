//! Flows and connections one by one: all are there, once, with what packets made of them, and a filter takes
//! what it says.

use crate::common;
use crate::translated;

use std::time::Duration;

use common::{backend_of, pinned, send_one, tcp, tcp6, udp_to};
use slb_core::flow::FlowState;
use slb_core::list::{
    Ends, Entry, EntryState, Filter, RuleName, Subnet, backend_identity, rule_names,
};
use slb_core::nat::{ConnectionState, Direction};
use slb_core::state::Cursor;
use slb_core::{Instant, Mux, PortId};
use translated::{ACK, ROLES, Role, SYN, SYN_ACK, Setup, What, World, packet};

/// Pinned flows of both families, in every state.
fn mux() -> (common::TestMux, common::Setup) {
    let setup = common::Setup::new(5);
    let mut mux = pinned(&setup);
    for number in 0..60 {
        let client = [198, 51, 100 + (number % 3) as u8, number as u8];
        send_one(&mut mux, tcp(client, 40_000 + number, "S"));
        if number % 2 == 0 {
            send_one(&mut mux, tcp(client, 40_000 + number, "A"));
        }
        if number % 6 == 0 {
            send_one(&mut mux, tcp(client, 40_000 + number, "FA"));
        }
        send_one(&mut mux, tcp6(50_000 + number, "S"));
        if number % 10 == 0 {
            send_one(&mut mux, udp_to(client, 9, common::VIP, 53, b"asks"));
        }
    }
    (mux, setup)
}

fn flows(mux: &common::TestMux, filter: &Filter<'_>, step: usize) -> Vec<Entry> {
    let (mut all, mut next) = (Vec::new(), Some(Cursor::START));
    while let Some(cursor) = next {
        let listed = mux.list(cursor, step, filter, &mut |_, entry| {
            all.push(*entry);
            all.len() % 3 != 0
        });
        assert!(listed.places <= step);
        next = listed.next;
    }
    all
}

/// Returns true if an entry matches a filter, without the words of a table.
fn is_wanted(entry: &Entry, filter: &Filter<'_>) -> bool {
    let contains = |subnet: Option<Subnet>, address: std::net::IpAddr| {
        subnet.is_none_or(|subnet| match (subnet.address, address) {
            (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) => {
                let shift = 32 - u32::from(subnet.bits.min(32));
                (u64::from(u32::from(a)) >> shift) == (u64::from(u32::from(b)) >> shift)
            }
            (std::net::IpAddr::V6(a), std::net::IpAddr::V6(b)) => {
                (0..u32::from(subnet.bits.min(128)))
                    .all(|bit| (u128::from(a) ^ u128::from(b)) << bit >> 127 == 0)
            }
            _ => false,
        })
    };
    let is_between = |ends: &Ends, tuple: Option<slb_core::packet::Tuple>| match tuple {
        None => *ends == Ends::default(),
        Some(tuple) => {
            contains(ends.source, tuple.source)
                && contains(ends.destination, tuple.destination)
                && ends
                    .source_port
                    .is_none_or(|port| port == tuple.source_port)
                && ends
                    .destination_port
                    .is_none_or(|port| port == tuple.destination_port)
        }
    };
    let is_one = |wanted: Option<&[u64]>, own: Option<u64>| {
        wanted.is_none_or(|wanted| wanted.iter().any(|one| Some(*one) == own))
    };
    is_between(&filter.outside, Some(entry.outside))
        && is_between(&filter.inside, entry.inside)
        && filter
            .protocol
            .is_none_or(|wanted| entry.outside.protocol == wanted)
        && filter.state.is_none_or(|state| state == entry.state)
        && filter.opener.is_none_or(|opener| opener == entry.opener)
        && filter.port.is_none_or(|port| Some(port) == entry.port)
        && is_one(filter.backends, entry.backend)
        && is_one(filter.rules, entry.rule)
}

/// Filters that some of the entries pass, and others do not.
fn for_each_filter(all: &[Entry], mut each: impl FnMut(&Filter<'_>)) {
    let none = Filter::default();
    each(&none);
    let empty: &[u64] = &[];
    each(&Filter {
        backends: Some(empty),
        ..none
    });
    for entry in all.iter().step_by(all.len() / 12 + 1) {
        let (outside, backend, rule) = (entry.outside, entry.backend.unwrap_or(0), entry.rule);
        let ends = Ends::default();
        for bits in [0, 1, 8, 24, 27, 32, 64, 127, 128] {
            let subnet = Some(Subnet {
                address: outside.source,
                bits,
            });
            let source = Ends {
                source: subnet,
                ..ends
            };
            let destination = Ends {
                destination: subnet,
                ..ends
            };
            for outside in [source, destination] {
                each(&Filter { outside, ..none });
            }
            each(&Filter {
                inside: source,
                ..none
            });
        }
        let whole = Ends {
            source: Some(Subnet::host(outside.source)),
            destination: Some(Subnet::host(outside.destination)),
            source_port: Some(outside.source_port),
            destination_port: Some(outside.destination_port),
        };
        let port_of_source = Ends {
            source_port: Some(outside.source_port),
            ..ends
        };
        let port_of_destination = Ends {
            destination_port: Some(outside.destination_port),
            ..ends
        };
        for outside in [whole, port_of_source, port_of_destination] {
            each(&Filter { outside, ..none });
        }
        if let Some(tuple) = entry.inside {
            each(&Filter {
                inside: Ends {
                    source: Some(Subnet::host(tuple.source)),
                    source_port: Some(tuple.source_port),
                    ..ends
                },
                outside: port_of_destination,
                ..none
            });
        }
        let rules = [rule.unwrap_or(0), 77];
        for filter in [
            Filter {
                protocol: Some(outside.protocol),
                ..none
            },
            Filter {
                state: Some(entry.state),
                ..none
            },
            Filter {
                opener: Some(entry.opener),
                ..none
            },
            Filter {
                port: entry.port,
                ..none
            },
            Filter {
                backends: Some(&[1, backend]),
                ..none
            },
            Filter {
                rules: Some(&rules),
                ..none
            },
        ] {
            each(&filter);
        }
    }
}

#[test]
fn a_filter_takes_the_flows_that_are_as_it_says() {
    let (mux, _) = mux();
    let all = flows(&mux, &Filter::default(), usize::MAX);
    assert_eq!(all.len() as u64, mux.stats().flows.live);
    let mut some = 0;
    for_each_filter(&all, |filter| {
        let wanted: Vec<Entry> = all
            .iter()
            .filter(|e| is_wanted(e, filter))
            .copied()
            .collect();
        some += usize::from(!wanted.is_empty() && wanted.len() < all.len());
        for step in [1, 7, 256, usize::MAX] {
            assert_eq!(flows(&mux, filter, step), wanted, "{filter:?}");
        }
    });
    assert!(some > 50, "{some} filters tell flows apart");
}

#[test]
fn a_filter_takes_the_connections_that_are_as_it_says() {
    for (role, ipv6) in ROLES {
        let mut world = World::new(Setup::new(role, ipv6));
        for number in 0..24 {
            let what = [SYN, What::Udp, What::Echo, What::Other][number as usize % 4];
            let server = world.asks(1 + (number % 2) as u16, number, what).unwrap();
            if number % 3 == 0 && what == SYN {
                world.answers(server, number, SYN_ACK).unwrap();
            }
            if role == Role::Host {
                let from = (world.setup.server(server), 4000 + number as u16);
                let out = packet(from, world.setup.client(number), SYN, false);
                assert!(world.give(PortId(server), &out).is_forwarded());
            }
        }
        let all = world.list(&Filter::default(), usize::MAX);
        assert_eq!(all.len() as u64, world.connections().live);
        let mut some = 0;
        for_each_filter(&all, |filter| {
            let wanted: Vec<Entry> = all
                .iter()
                .filter(|e| is_wanted(e, filter))
                .copied()
                .collect();
            some += usize::from(!wanted.is_empty() && wanted.len() < all.len());
            for step in [1, 7, usize::MAX] {
                assert_eq!(world.list(filter, step), wanted, "{role:?}: {filter:?}");
            }
        });
        assert!(some > 50, "{role:?}: {some} filters tell connections apart");
    }
}

#[test]
fn a_flow_has_its_backend_rule_state_and_times() {
    let setup = common::Setup::new(5);
    let mut mux: Mux<'_, _> = pinned(&setup);
    let outcome = send_one(&mut mux, tcp(common::CLIENT, 40_000, "S"));
    let backend = backend_of(&outcome);
    let one = |mux: &common::TestMux| match flows(mux, &Filter::default(), 256)[..] {
        [entry] => entry,
        ref other => panic!("{other:?}"),
    };
    let entry = one(&mux);
    setup.with_spec(|spec| {
        let pool = &spec.pools[0];
        let own = &pool.backends[usize::from(backend) - 1];
        assert_eq!(entry.backend, Some(backend_identity(pool, own)));
        let mut names = rule_names(spec);
        let name = names.find(|(rule, _)| Some(*rule) == entry.rule);
        assert!(matches!(name, Some((_, RuleName::Rule(_)))), "{name:?}");
    });
    assert_eq!(entry.state, EntryState::Flow(FlowState::HalfOpen));
    assert_eq!((entry.inside, entry.port), (None, None));
    assert_eq!(entry.opener, Direction::Inward);
    assert_eq!(entry.outside.source_port, 40_000);
    assert!(
        entry
            .idle()
            .is_some_and(|idle| idle < Duration::from_secs(2))
    );

    let later = Instant::from_secs(10) + Duration::from_secs(60);
    mux.process(later, &mut []);
    let idle = one(&mux).idle().unwrap();
    assert!((59..62).contains(&idle.as_secs()), "{idle:?}");
}

#[test]
fn a_connection_has_both_names_and_times() {
    for (role, ipv6) in ROLES {
        let mut world = World::new(Setup::new(role, ipv6));
        let server = world.connects(1, 5, SYN).unwrap();
        world.asks(1, 5, ACK).unwrap();
        world.wait(Duration::from_secs(30));
        let all = world.list(&Filter::default(), 256);
        let [entry] = all[..] else {
            panic!("{all:?}");
        };
        let (address, port) = world.setup.client(5);
        assert_eq!(
            (entry.outside.source, entry.outside.source_port),
            (address, port)
        );
        assert_eq!(entry.outside.destination, world.setup.vip());
        assert_eq!(entry.outside.destination_port, 80);
        let inside = entry.inside.expect("it is translated");
        assert_eq!(
            (inside.source, inside.source_port),
            (world.setup.server(server), 8080)
        );
        let state = EntryState::Connection(ConnectionState::Established);
        assert_eq!(entry.state, state, "{role:?}");
        assert_eq!(entry.timeout.map(|timeout| timeout.as_secs()), Some(240));
        let idle = entry.idle().expect("it has a timeout").as_secs_f64();
        assert!((29.9..30.2).contains(&idle), "{idle}");
        assert!(entry.backend.is_some() && entry.rule.is_some());
        let port = (role == Role::Host).then_some(PortId(server));
        assert_eq!(entry.port, port.or(Some(translated::FABRIC)));
    }
}

#[test]
fn the_place_of_an_entry_leads_to_its_record() {
    let (mux, _) = mux();
    let (mut next, mut seen) = (Some(Cursor::START), 0);
    while let Some(cursor) = next {
        let listed = mux.list(cursor, 100, &Filter::default(), &mut |place, entry| {
            let mut record = [0; slb_core::state::RECORD_MOST];
            let exported = mux.export(place, &mut record);
            assert_eq!(exported.records, 1);
            let ports = [record[24], record[25], record[26], record[27]];
            let outside = entry.outside;
            let (from, to) = (outside.source_port, outside.destination_port);
            assert_eq!(ports[..2], from.to_be_bytes());
            assert_eq!(ports[2..], to.to_be_bytes());
            seen += 1;
            true
        });
        next = listed.next;
    }
    assert_eq!(seen, mux.stats().flows.live);
}
