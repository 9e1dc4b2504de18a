//! The time that each state of a connection lasts.

use slb_core::nat::ConnectionState::*;

use super::packets::{data, datagram, seg};
use super::reuse::End;
use super::setup::IDLE;
use super::world::{World, worlds, worlds_with};

#[test]
fn each_state_lasts_as_long_as_it_should() {
    // RFC 5382 §5 REQ-5: four minutes.
    type Prepare = fn(&mut World);
    let states: [(&str, Prepare, u64); 7] = [
        ("syn", |w| w.opener(seg("S", 1000, 0)), 240),
        (
            "syn-ack",
            |w| {
                w.opener(seg("S", 1000, 0));
                w.responder(seg("SA", 5000, 1001));
            },
            240,
        ),
        ("established", |w| w.open(1000, 5000), IDLE),
        (
            "half-closed by the opener",
            |w| _ = w.old(End::OpenersFin),
            IDLE,
        ),
        (
            "half-closed by the responder",
            |w| _ = w.old(End::RespondersFin),
            IDLE,
        ),
        ("closed", |w| _ = w.old(End::BothFins), 240),
        ("reset", |w| _ = w.old(End::Reset), 240),
    ];
    for (name, prepare, seconds) in states {
        for mut world in worlds_with(false) {
            prepare(&mut world);
            let state = world.state();
            world.wait(seconds - 5);
            world.sweep();
            assert_eq!(world.state(), state, "{name}, {}", world.name());
            world.wait(5);
            world.sweep();
            assert_eq!(world.state(), None, "{name}, {}", world.name());
        }
    }
}

#[test]
fn a_half_closed_connection_may_pause_and_go_on() {
    for mut world in worlds() {
        world.open(1000, 5000);
        world.opener(seg("FA", 1001, 5001));
        world.responder(seg("A", 5001, 1002));
        for round in 0..4 {
            world.wait(IDLE - 10);
            assert_eq!(world.sweep(), []);
            world.responder(data(5001 + 10 * round, 1002, 10));
            world.opener(seg("A", 1002, 5011 + 10 * round));
        }
        world.responder(seg("FA", 5041, 1002));
        assert_eq!(world.state(), Some(TimeWait));
    }
}

#[test]
fn a_slow_answer_is_an_answer() {
    for mut world in worlds() {
        world.opener(seg("S", 1000, 0));
        world.wait(230);
        assert_eq!(world.sweep(), []);
        world.responder(seg("SA", 5000, 1001));
        world.wait(230);
        assert_eq!(world.sweep(), []);
        world.opener(seg("A", 1001, 5001));
        assert_eq!(world.state(), Some(Established));
    }
}

#[test]
fn the_idle_timeout_of_a_udp_rule_holds_answered_or_not() {
    for is_answered in [false, true] {
        for mut world in worlds() {
            let name = format!("{}, answered: {is_answered}", world.name());
            world.asks.1.1 = 53;
            let (own, other) = world.sides();
            let question = datagram(world.asks.0, world.asks.1);
            let question = world.pass(own, &question).unwrap();
            let answer = datagram(question.to, question.from);
            if is_answered {
                assert!(world.pass(other, &answer).is_some());
            }
            world.wait(IDLE - 5);
            world.sweep();
            let late = world.pass(other, &answer).expect(&name);
            assert_eq!((late.to, late.from), world.asks, "{name}");
            world.wait(IDLE + 5);
            world.sweep();
            assert_eq!(world.state(), None, "{name}");
        }
    }
}
