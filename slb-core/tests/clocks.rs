//! However the caller's clock moves between two packets, no connection ends but by its idle
//! timeout, and no packet leaves untranslated.

use crate::common;
use crate::translated;

use std::time::Duration;

use slb_core::{Instant, Key, SourceLimiter, Verdict};

use common::{Setup as MuxSetup, backend_of, pinned, send, tcp, tcp6};
use translated::{ACK, ROLES, Role, SERVER_ACK, SYN, SYN_ACK, Setup, What, World};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
const YEAR: u64 = 365 * 24 * HOUR;

/// Jumps of a clock that is set late: between years and all that a clock can show.
const SET_LATE: [u64; 6] = [2 * YEAR, 9 * YEAR, 1 << 58, 53 * YEAR, 1 << 63, u64::MAX];

const KINDS: [What; 4] = [SYN, What::Udp, What::Echo, What::Other];

fn plus(now: Instant, nanos: u64) -> Instant {
    Instant::from_nanos(now.as_nanos().saturating_add(nanos))
}

#[test]
fn a_clock_that_is_set_late_ends_no_connection() {
    for (role, ipv6) in ROLES {
        for first in [0, SECOND, 1000 * HOUR] {
            for jump in SET_LATE {
                let mut world = World::new(Setup::new(role, ipv6));
                world.now = Instant::from_nanos(first);
                let open = |world: &mut World, from: u32| {
                    (from..)
                        .zip(KINDS)
                        .map(|(number, what)| world.connects(1, number, what).unwrap())
                        .collect::<Vec<_>>()
                };
                let old = open(&mut world, 10);
                world.now = plus(world.now, jump);
                for (number, (what, server)) in (10..).zip(KINDS.into_iter().zip(old)) {
                    assert!(
                        world.goes_on(server, number, what),
                        "{role:?} {jump} {what:?}"
                    );
                }
                // New ones live, as long as they should.
                open(&mut world, 5000);
                assert_eq!(world.connections().live, 8, "{role:?} {first} {jump}");
                if jump < 1 << 63 {
                    world.wait(Duration::from_secs(30));
                    assert_eq!(world.connections().live, 8, "{role:?} {first} {jump}");
                    world.wait(Duration::from_secs(2000));
                    world.wait(Duration::from_secs(2000));
                    assert_eq!(world.connections().live, 0, "{role:?} {first} {jump}");
                }
            }
        }
    }
}

/// The connection that a vm opened goes on, and its SNAT port comes back afterwards.
#[test]
fn a_clock_that_is_set_late_ends_no_call_of_a_vm_and_keeps_none_of_its_ports() {
    for ipv6 in [false, true] {
        for what in [SYN, What::Udp] {
            let (answer, ask, again) = match what {
                SYN => (SYN_ACK, ACK, SERVER_ACK),
                _ => (what, what, what),
            };
            for jump in SET_LATE {
                let mut world = World::new(Setup::new(Role::Host, ipv6));
                world.now = Instant::from_nanos(SECOND);
                let far = world.setup.client(7);
                let open = |world: &mut World, own: u16| {
                    let port = world.calls((1, own), far, what).unwrap();
                    let vm = (world.setup.server(1), own);
                    assert_eq!(world.returns(1, far, port, answer), Ok(vm));
                    assert_eq!(world.calls((1, own), far, ask), Ok(port));
                    port
                };
                let port = open(&mut world, 5000);
                world.now = plus(world.now, jump);
                let vm = (world.setup.server(1), 5000);
                assert_eq!(
                    world.calls((1, 5000), far, ask),
                    Ok(port),
                    "{what:?} {jump}"
                );
                assert_eq!(
                    world.returns(1, far, port, again),
                    Ok(vm),
                    "{what:?} {jump}"
                );
                open(&mut world, 5001);
                assert_eq!(world.snat(1), (2, 2), "{what:?} {jump}");
                if jump < 1 << 63 {
                    world.wait(Duration::from_secs(30));
                    assert_eq!(world.snat(1), (2, 2), "{what:?} {jump}");
                    world.wait(Duration::from_secs(2000));
                    world.wait(Duration::from_secs(2000));
                    assert_eq!(world.snat(1), (0, 0), "{what:?} {jump}");
                    assert_eq!(world.connections().live, 0, "{what:?} {jump}");
                }
            }
        }
    }
}

#[test]
fn a_clock_that_is_set_back_ends_no_connection_and_keeps_none_for_ever() {
    for (role, ipv6) in ROLES {
        for back in [1, SECOND, HOUR, 10 * YEAR, 50 * YEAR] {
            let mut world = World::new(Setup::new(role, ipv6));
            world.now = Instant::from_nanos(50 * YEAR);
            let old = world.connects(1, 10, SYN).unwrap();
            world.now = Instant::from_nanos(50 * YEAR - back);
            world.advance();
            assert!(world.goes_on(old, 10, SYN), "{role:?} {back}");
            world.connects(1, 20, SYN).unwrap();
            world.wait(Duration::from_secs(200));
            assert_eq!(world.connections().live, 2, "{role:?} {back}");
            world.wait(Duration::from_secs(50));
            assert_eq!(world.connections().live, 0, "{role:?} {back}");
        }
    }
}

#[test]
fn a_gap_of_hours_or_days_ends_what_was_idle_and_nothing_new() {
    for (role, ipv6) in ROLES {
        for gap in [241 * SECOND, 2 * HOUR, 24 * HOUR, 300 * 24 * HOUR] {
            let mut world = World::new(Setup::new(role, ipv6));
            let old = world.connects(1, 10, SYN).unwrap();
            world.now = plus(world.now, gap);
            assert!(world.asks(old, 10, What::Tcp("A", 101, 501)).is_err());
            world.connects(1, 20, SYN).unwrap();
            world.wait(Duration::from_secs(2));
            assert_eq!(world.connections().live, 1, "{role:?} {gap}");
        }
    }
}

/// Ticks of a connection's deadline are 32 bits: they wrap within this test.
#[test]
fn a_connection_lives_as_long_as_it_should_after_years_of_uptime() {
    let mut world = World::new(Setup::new(Role::Proxy, false));
    world.setup.places = 1;
    let end = (1 << 58) + YEAR;
    let mut passed = 0;
    let mut number = 0;
    while passed < end {
        let step = Duration::from_nanos(2 * HOUR - 441 * SECOND);
        world.wait(step);
        assert_eq!(world.connections().live, 0, "after {passed}");
        number = (number + 1) % 10_000;
        let server = world.connects(1, number, SYN).unwrap();
        world.wait(Duration::from_secs(200));
        assert!(world.goes_on(server, number, SYN), "after {passed}");
        world.wait(Duration::from_secs(241));
        assert_eq!(world.connections().live, 0, "after {passed}");
        passed += 2 * HOUR;
    }
}

#[test]
fn a_mux_keeps_its_flows_whatever_its_clock_does() {
    let of_ipv4 = |port, flags: &str| tcp(common::CLIENT, port, flags);
    keeps_its_flows(of_ipv4);
    keeps_its_flows(tcp6);
}

fn keeps_its_flows(segment: impl Fn(u16, &str) -> Vec<u8>) {
    for first in [0, SECOND, 60 * YEAR] {
        let jumps = SET_LATE.map(|jump| first.saturating_add(jump));
        let back = [0, 10 * YEAR, first - first.min(HOUR)];
        for jump in jumps.into_iter().chain(back) {
            let mut setup = MuxSetup::new(8);
            let mut mux = pinned(&setup);
            let now = Instant::from_nanos(first);
            let homes: Vec<u16> = (0..200)
                .map(|port| {
                    let opened = [segment(2000 + port, "S"), segment(2000 + port, "A")];
                    backend_of(&send(&mut mux, now, &opened)[1])
                })
                .collect();
            // Maglev moves some of them, the flow table none.
            setup.backends.pop();
            setup.backends.push(common::TestBackend {
                name: "vm8".into(),
                number: 8,
                weight: 0,
                state: slb_core::spec::BackendState::Draining,
            });
            let next = setup.after(Some(mux.snapshot()));
            mux.install(next.into()).expect("it follows");
            let now = Instant::from_nanos(jump);
            mux.advance(now);
            for (port, home) in (2000..).zip(&homes) {
                let packet = segment(port, "A");
                let outcome = &send(&mut mux, now, &[packet])[0];
                assert_eq!(backend_of(outcome), *home, "from {first} to {jump}");
            }
            assert!(homes.contains(&8));
            let flows = mux.stats().flows;
            assert_eq!((flows.live, flows.expired), (200, 0), "{first} {jump}");
            // They end in time.
            if jump < u64::MAX - HOUR {
                for second in 0..400 {
                    mux.advance(plus(now, second * SECOND));
                }
                assert_eq!(mux.stats().flows.live, 0, "{first} {jump}");
            }
        }
    }
}

#[test]
fn limits_go_on_whatever_the_clock_does() {
    for jump in SET_LATE {
        for (from, to) in [(SECOND, jump), (jump, SECOND)] {
            let setup = MuxSetup::new(2);
            let limiter =
                SourceLimiter::build(64, 10, 10, Key::new([1, 2]), &mut slb_core::mem::Boxes);
            let mut mux = pinned(&setup).with_source_limit(limiter.unwrap());
            let mut begun = |now: u64| {
                let now = Instant::from_nanos(now);
                let syns: Vec<_> = (0..100)
                    .map(|n| {
                        tcp(
                            common::CLIENT,
                            1024 + (now.as_nanos() as u16 ^ n) % 60_000,
                            "S",
                        )
                    })
                    .collect();
                let outcomes = send(&mut mux, now, &syns);
                let forwarded = outcomes
                    .iter()
                    .filter(|o| matches!(o.verdict, Verdict::Forward(_)));
                forwarded.count()
            };
            let to = to.min(u64::MAX - 10 * SECOND);
            assert!((10..=20).contains(&begun(from)), "{from} {to}");
            begun(to);
            // A second brings ten, before and after.
            let later = begun(to + SECOND);
            assert!((10..=20).contains(&later), "{later} from {from} to {to}");
        }
    }
}
