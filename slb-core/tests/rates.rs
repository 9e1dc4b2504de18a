//! Rates and other options that change while a role runs.

use crate::common;

use common::{CLIENT, Setup, VIP, pinned, send, tcp};
use etherparse::PacketBuilder;
use slb_core::mem::Mem;
use slb_core::{Instant, Key, MuxOptions, SourceLimiter, Verdict};

fn ping(sequence: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 1, 1])
        .ipv4(CLIENT, VIP, 64)
        .icmpv4_echo_request(7, sequence)
        .write(&mut packet, &[1; 8])
        .unwrap();
    packet
}

fn answered(mux: &mut common::TestMux, at: u64, count: u16) -> usize {
    let pings: Vec<_> = (0..count).map(ping).collect();
    let outcomes = send(mux, Instant::from_secs(at), &pings);
    let replies = outcomes.iter().filter(|one| one.verdict == Verdict::Reply);
    replies.count()
}

#[test]
fn options_can_change_and_what_stays_keeps_what_was_used_of_it() {
    let mut mux = pinned(&Setup::new(3));
    let usual = MuxOptions {
        answers_per_second: 10,
        answers_at_once: 20,
        ..MuxOptions::default()
    };
    mux.set_options(usual);
    assert_eq!(answered(&mut mux, 1, 50), 20);
    // The same again: nothing is given twice.
    mux.set_options(usual);
    assert_eq!(answered(&mut mux, 1, 50), 0);
    // Another kind's rate is no concern of this one's.
    mux.set_options(MuxOptions {
        resets_per_second: 1,
        ..usual
    });
    assert_eq!(answered(&mut mux, 1, 50), 0);
    assert_eq!(answered(&mut mux, 2, 50), 10);
    mux.set_options(MuxOptions {
        answers_per_second: 0,
        ..usual
    });
    assert_eq!(answered(&mut mux, 100, 50), 0);
    mux.set_options(MuxOptions {
        answers_at_once: 30,
        ..usual
    });
    assert_eq!(answered(&mut mux, 100, 50), 30);
}

#[test]
fn another_limit_on_sources_takes_the_place_of_the_first() {
    let mut mux = pinned(&Setup::new(3));
    let key = Key::new([1, 2]);
    let limiter = |at_once| {
        let buckets = vec![Default::default(); 64];
        SourceLimiter::new(Mem::from(buckets), 1, at_once, key)
    };
    let begun = |mux: &mut common::TestMux, first: u16| {
        let syns: Vec<_> = (first..first + 30)
            .map(|port| tcp(CLIENT, port, "S"))
            .collect();
        let outcomes = send(mux, Instant::from_secs(1), &syns);
        let forwarded = outcomes
            .iter()
            .filter(|one| matches!(one.verdict, Verdict::Forward(_)));
        forwarded.count()
    };
    assert_eq!(begun(&mut mux, 1000), 30);
    mux.replace_source_limit(limiter(5));
    assert_eq!(begun(&mut mux, 2000), 5);
    let old = mux.replace_source_limit(limiter(9));
    assert_eq!(begun(&mut mux, 3000), 9);
    // The one that was there before comes back as it was: used up.
    mux.replace_source_limit(old);
    assert_eq!(begun(&mut mux, 4000), 0);
    mux.replace_source_limit(SourceLimiter::new(Mem::empty(), 0, 1, key));
    assert_eq!(begun(&mut mux, 5000), 30);
}
