//! Sequence numbers that wrap, a responder that closes first, and two ends that open at once.

use slb_core::nat::ConnectionState::*;

use super::packets::{Seg, data, seg};
use super::setup::IDLE;
use super::world::{World, worlds};

/// First numbers of the opener and the responder, so that either wraps at each place of a short
/// connection, or crosses the middle of the numbers.
fn first_numbers() -> impl Iterator<Item = (u32, u32)> {
    let edges = [0, 1 << 31];
    let offsets = [0, 1, 2, 50, 101, 102, 103];
    edges.into_iter().flat_map(move |edge: u32| {
        offsets.into_iter().flat_map(move |offset| {
            let near = edge.wrapping_sub(offset);
            [(near, 7000), (7000, near), (near, near)]
        })
    })
}

/// Moves a segment's numbers.
fn moved(segment: Seg, own: u32, theirs: u32) -> Seg {
    Seg {
        seq: segment.seq.wrapping_add(own),
        ack: segment.ack.wrapping_add(theirs),
        ..segment
    }
}

/// Every role and family, with a connection from each pair of numbers. Its ends' numbers count from
/// there.
fn open_worlds() -> impl Iterator<Item = (World, (u32, u32))> {
    first_numbers().flat_map(|(own, theirs)| {
        worlds().map(move |mut world| {
            world.open(own, theirs);
            world.opener(moved(data(1, 1, 100), own, theirs));
            world.responder(moved(data(1, 101, 100), theirs, own));
            world.opener(moved(seg("A", 101, 101), own, theirs));
            (world, (own, theirs))
        })
    })
}

#[test]
fn a_reset_counts_at_the_exact_number_wherever_numbers_wrap() {
    for (mut world, (own, theirs)) in open_worlds() {
        let name = format!("{}, from {own} and {theirs}", world.name());
        for off in [1, 99, u32::MAX, u32::MAX - 99, 65_635, 1 << 31] {
            world.opener(moved(seg("R", 101u32.wrapping_add(off), 0), own, 0));
            world.responder(moved(seg("R", 101u32.wrapping_add(off), 0), theirs, 0));
            assert_eq!(world.state(), Some(Established), "{name}, {off}");
        }
        world.responder(moved(seg("R", 101, 0), theirs, 0));
        assert_eq!(world.state(), Some(Closed), "{name}");
    }
}

#[test]
fn idle_ends_are_reset_at_their_numbers_wherever_numbers_wrap() {
    for (mut world, (own, theirs)) in open_worlds() {
        world.ends_idle(theirs.wrapping_add(101), own.wrapping_add(101));
    }
}

#[test]
fn either_end_closes_first_wherever_numbers_wrap() {
    for (mut world, (own, theirs)) in open_worlds() {
        let name = format!("{}, from {own} and {theirs}", world.name());
        // The responder closes, and the opener pauses and goes on.
        world.responder(moved(seg("FA", 101, 101), theirs, own));
        world.opener(moved(seg("A", 101, 102), own, theirs));
        for round in 0..3 {
            world.wait(IDLE - 10);
            assert_eq!(world.sweep(), [], "{name}");
            world.opener(moved(data(101 + 10 * round, 102, 10), own, theirs));
            world.responder(moved(seg("A", 102, 111 + 10 * round), theirs, own));
            let state = world.state();
            assert!(
                matches!(state, Some(FinWaitInward | FinWaitOutward)),
                "{name}: {state:?}"
            );
        }
        world.opener(moved(seg("FA", 131, 102), own, theirs));
        assert_eq!(world.state(), Some(TimeWait), "{name}");
        world.responder(moved(seg("A", 102, 132), theirs, own));
        world.wait(235);
        world.sweep();
        assert_eq!(world.state(), Some(TimeWait), "{name}");
        world.wait(10);
        assert_eq!(world.sweep(), [], "{name}");
        assert_eq!(world.state(), None, "{name}");
    }
}

/// RFC 9293 §3.5, figure 8.
#[test]
fn two_ends_that_open_at_once_have_one_connection() {
    for (own, theirs) in first_numbers() {
        for mut world in worlds() {
            let name = format!("{}, from {own} and {theirs}", world.name());
            world.opener(moved(seg("S", 0, 0), own, 0));
            world.responder(moved(seg("S", 0, 0), theirs, 0));
            world.opener(moved(seg("SA", 0, 1), own, theirs));
            world.responder(moved(seg("SA", 0, 1), theirs, own));
            world.opener(moved(seg("A", 1, 1), own, theirs));
            world.responder(moved(data(1, 1, 10), theirs, own));
            world.opener(moved(seg("A", 1, 11), own, theirs));
            assert_eq!(world.state(), Some(Established), "{name}");
            world.ends_idle(theirs.wrapping_add(11), own.wrapping_add(1));
        }
    }
}
