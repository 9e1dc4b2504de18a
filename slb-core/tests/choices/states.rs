//! The state of a mux's flow after each segment, told by how long the flow stays pinned.

use std::time::Duration;

use slb_core::Instant;
use slb_core::spec::BackendState;

use crate::common::*;

const IDLE: Duration = Duration::from_secs(1800);
const START: Instant = Instant::from_secs(10);

/// Sends segments of one flow, a second apart, then nothing for `silence` while its backend begins to drain;
/// returns whether the flow is still pinned to it.
fn stays_pinned(segments: &[&str], ipv6: bool, silence: Duration) -> bool {
    let mut setup = Setup::new(8);
    setup.idle_timeout = IDLE;
    let mut mux = pinned(&setup);
    let segment = |flags: &str| match ipv6 {
        true => tcp6(50_000, flags),
        false => tcp(CLIENT, 50_000, flags),
    };
    let mut now = START;
    let mut backend = 0;
    for flags in segments {
        now = now + Duration::from_secs(1);
        backend = backends_of(&mut mux, now, &[segment(flags)])[0];
    }
    setup.set_state(backend, BackendState::Draining);
    mux.install(setup.after(Some(mux.snapshot())).into())
        .expect("it follows");
    backends_of(&mut mux, now + silence, &[segment("A")])[0] == backend
}

#[test]
fn a_flow_lasts_as_long_as_its_state_says() {
    let transitory = Duration::from_secs(300);
    for ipv6 in [false, true] {
        for (segments, is_there) in [
            (&["S"][..], false),
            (&["S", "S"], false),
            (&["S", "A"], true),
            // A SYN, which anyone can forge, makes no established flow half-open.
            (&["S", "A", "S"], true),
            (&["S", "A", "FA"], true),
            (&["S", "A", "R"], false),
            // A SYN after a FIN asks for a new connection, which is half-open.
            (&["S", "A", "FA", "S"], false),
            (&["S", "A", "FA", "S", "A"], true),
            (&["S", "A", "R", "A"], true),
        ] {
            let found = stays_pinned(segments, ipv6, transitory);
            assert_eq!(found, is_there, "{segments:?}, IPv6 {ipv6}");
            assert!(
                stays_pinned(segments, ipv6, Duration::from_secs(200)),
                "{segments:?}"
            );
            assert!(
                !stays_pinned(segments, ipv6, IDLE + Duration::from_secs(10)),
                "{segments:?}"
            );
        }
    }
}
