//! Resets and FINs: the number at which each counts.

use slb_core::nat::ConnectionState::*;

use super::packets::{data, seg};
use super::setup::IDLE;
use super::world::worlds;

#[test]
fn only_a_reset_at_the_expected_number_closes() {
    for mut world in worlds() {
        let name = world.name();
        world.open(1000, 5000);
        world.opener(data(1001, 5001, 100));
        world.responder(data(5001, 1101, 100));
        world.opener(seg("A", 1101, 5101));
        for off in [0, 1, 99, 101, 200, 1000, 6001, 65_635, 1 << 20, 1 << 31] {
            world.opener(seg("R", 1001 + off, 0));
            world.responder(seg("R", 5001 + off, 0));
            world.responder(seg("RA", 5001 + off, 1101));
            assert_eq!(world.state(), Some(Established), "{name}, {off}");
        }
        // The challenge is answered with the exact number.
        world.opener(seg("R", 1102, 0));
        world.responder(seg("A", 5101, 1101));
        assert_eq!(world.state(), Some(Established), "{name}");
        world.opener(seg("R", 1101, 0));
        assert_eq!(world.state(), Some(Closed), "{name}");
        // Late segments still get through, and a SYN begins anew.
        world.wait(200);
        world.responder(data(5101, 1101, 10));
        world.open(7000, 8000);
    }
}

#[test]
fn data_behind_an_inexact_reset_shows_that_it_was_forged() {
    for mut world in worlds() {
        world.open(1000, 5000);
        world.opener(seg("R", 6001, 0));
        world.responder(seg("A", 5001, 1001));
        for round in 0..3 {
            world.wait(IDLE - 10);
            world.opener(data(1001 + 10 * round, 5001, 10));
            world.responder(seg("A", 5001, 1011 + 10 * round));
            assert_eq!(world.sweep(), []);
        }
        world.ends_idle(5001, 1031);
    }
}

#[test]
fn a_reset_that_answers_no_syn_refuses_nothing() {
    for mut world in worlds() {
        world.opener(seg("S", 1000, 0));
        world.responder(seg("R", 0, 0));
        world.responder(seg("RA", 0, 1000));
        world.responder(seg("RA", 0, 1002));
        assert_eq!(world.state(), Some(SynSent), "{}", world.name());
        world.responder(seg("RA", 0, 1001));
        assert_eq!(world.state(), Some(Closed), "{}", world.name());
    }
}

#[test]
fn data_beyond_its_own_fin_shows_that_the_fin_was_forged() {
    for mut world in worlds() {
        let name = world.name();
        world.open(1000, 5000);
        // Out of the window: no receiver takes it.
        world.opener(seg("FA", 1001 + (1 << 20), 5001));
        assert_eq!(world.state(), Some(Established), "{name}");
        world.opener(seg("FA", 1001, 5001));
        world.responder(seg("FA", 5001, 1001));
        assert_eq!(world.state(), Some(TimeWait), "{name}");
        world.opener(data(1001, 5001, 10));
        let [own, theirs] = match world.is_inbound() {
            true => [FinWaitInward, FinWaitOutward],
            false => [FinWaitOutward, FinWaitInward],
        };
        assert_eq!(world.state(), Some(theirs), "{name}");
        world.opener(seg("FA", 1011, 5002));
        assert_eq!(world.state(), Some(TimeWait), "{name}");
        world.responder(data(5001, 1012, 10));
        assert_eq!(world.state(), Some(own), "{name}");
        world.responder(data(5011, 1012, 10));
        world.opener(data(1011, 5021, 10));
        assert_eq!(world.state(), Some(Established), "{name}");
    }
}
