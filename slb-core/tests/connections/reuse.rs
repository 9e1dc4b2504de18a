//! Ports that are used again, and SYNs of more than one number.

use slb_core::Verdict;
use slb_core::nat::ConnectionState::{self, *};

use super::packets::{Seg, data, scaled, seg, segment, unreachable};
use super::setup::IDLE;
use super::world::{Dut, Role, World, worlds};

/// The end of the previous connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    BothFins,
    OpenersFin,
    RespondersFin,
    Reset,
    Unseen,
}

pub(super) const ENDS: [(End, ConnectionState); 5] = [
    (End::BothFins, TimeWait),
    (End::OpenersFin, FinWaitInward),
    (End::RespondersFin, FinWaitOutward),
    (End::Reset, Closed),
    (End::Unseen, Established),
];

/// Numbers of the old connection.
pub(super) const OLD: (u32, u32) = (1_500_000_000, 3_000_000_000);

impl World {
    /// An old connection that ended so; returns its state.
    pub(super) fn old(&mut self, end: End) -> ConnectionState {
        self.open(OLD.0, OLD.1);
        let (own, theirs) = (OLD.0 + 1, OLD.1 + 1);
        match end {
            End::BothFins => {
                self.opener(seg("FA", own, theirs));
                self.responder(seg("FA", theirs, own + 1));
                self.opener(seg("A", own + 1, theirs + 1));
            }
            End::OpenersFin => self.opener(seg("FA", own, theirs)),
            End::RespondersFin => self.responder(seg("FA", theirs, own)),
            End::Reset => self.opener(seg("R", own, 0)),
            End::Unseen => {}
        }
        let (_, state) = ENDS[ENDS.iter().position(|&(other, _)| other == end).unwrap()];
        match (self.is_inbound(), state) {
            (false, FinWaitInward) => FinWaitOutward,
            (false, FinWaitOutward) => FinWaitInward,
            (_, state) => state,
        }
    }
}

/// An ISN below the old connection's numbers, one above, and one that wraps.
const NEW: [u32; 3] = [1000, 2_000_000_000, u32::MAX];

#[test]
fn an_answered_syn_on_a_used_port_begins_a_new_connection() {
    for (end, _) in ENDS {
        for own in NEW {
            for mut world in worlds() {
                let name = format!("{end:?}, {own}, {}", world.name());
                world.old(end);
                world.wait(5);
                let theirs = 900_000;
                let [a, b] = [own.wrapping_add(1), theirs + 1];
                world.opener(scaled(seg("S", own, 0), Some(7)));
                world.responder(scaled(seg("SA", theirs, a), Some(9)));
                assert_eq!(world.state(), Some(SynReceived), "{name}");
                world.opener(seg("A", a, b));
                assert_eq!(world.state(), Some(Established), "{name}");
                // Its timer is the rule's.
                for _ in 0..3 {
                    world.wait(IDLE - 10);
                    world.responder(seg("A", b, a));
                    world.sweep();
                    assert_eq!(world.state(), Some(Established), "{name}");
                }
                // Its sequence numbers and window scales are the new ones: 200 000 bytes each way.
                let mut sent = 0;
                while sent < 200_000 {
                    world.opener(data(a.wrapping_add(sent), b, 1000));
                    world.responder(data(b.wrapping_add(sent), a, 1000));
                    sent += 1000;
                }
                let inner = if world.is_inbound() { b } else { a };
                assert!(world.tells_of_mtu(inner), "{name}");
                assert!(world.tells_of_mtu(inner.wrapping_add(199_000)), "{name}");
                assert!(!world.tells_of_mtu(inner.wrapping_add(201_000)), "{name}");
                let old = if world.is_inbound() { OLD.1 } else { OLD.0 };
                assert!(!world.tells_of_mtu(old + 1), "{name}");
                world.ends_idle(b.wrapping_add(sent), a.wrapping_add(sent));
            }
        }
    }
}

#[test]
fn the_new_connections_scale_holds_whatever_the_old_ones_was() {
    for (old, new, is_scaled) in [
        ((None, None), (Some(7), Some(7)), true),
        ((Some(7), Some(7)), (None, None), false),
        ((Some(7), Some(7)), (Some(7), None), false),
        ((Some(14), Some(14)), (None, Some(7)), false),
    ] {
        for mut world in worlds() {
            world.opener(scaled(seg("S", OLD.0, 0), old.0));
            world.responder(scaled(seg("SA", OLD.1, OLD.0 + 1), old.1));
            world.opener(seg("A", OLD.0 + 1, OLD.1 + 1));
            world.opener(scaled(seg("S", 1000, 0), new.0));
            world.responder(scaled(seg("SA", 5000, 1001), new.1));
            world.opener(seg("A", 1001, 5001));
            world.responder(seg("A", 5001, 1001));
            // What lies 400 000 bytes ahead is in a window that is scaled only.
            world.responder(data(5001 + 400_000, 1001, 10));
            world.opener(data(1001 + 400_000, 5001, 10));
            let ahead = if is_scaled { 400_010 } else { 0 };
            world.ends_idle(5001 + ahead, 1001 + ahead);
        }
    }
}

#[test]
fn a_forged_syn_changes_nothing() {
    for (end, _) in ENDS.into_iter().filter(|&(end, _)| end != End::Reset) {
        for mut world in worlds() {
            let state = world.old(end);
            let name = format!("{end:?}, {}", world.name());
            assert_eq!(world.state(), Some(state), "{name}");
            let (own, theirs) = match end {
                End::BothFins => (OLD.0 + 2, OLD.1 + 2),
                End::OpenersFin => (OLD.0 + 2, OLD.1 + 1),
                End::RespondersFin => (OLD.0 + 1, OLD.1 + 2),
                _ => (OLD.0 + 1, OLD.1 + 1),
            };
            world.opener(scaled(seg("S", 1000, 0), Some(14)));
            assert_eq!(world.state(), Some(state), "{name}");
            // The responder challenges it, or answers another one.
            world.responder(seg("A", theirs, own));
            assert_eq!(world.state(), Some(state), "{name}");
            world.responder(seg("SA", 77, 1002));
            world.responder(seg("RA", 0, 1002));
            assert_eq!(world.state(), Some(state), "{name}");
            let inner = if world.is_inbound() { theirs } else { own };
            assert!(world.tells_of_mtu(inner - 1), "{name}");
            assert!(!world.tells_of_mtu(1001), "{name}");
            if end == End::Unseen {
                // Windows stay without scale.
                world.responder(data(theirs + 400_000, own, 10));
                world.ends_idle(theirs, own);
            }
        }
    }
}

#[test]
fn a_challenge_ends_in_the_exact_reset_and_the_syn_that_comes_again_is_new() {
    for mut world in worlds() {
        world.old(End::Unseen);
        world.opener(seg("S", 1000, 0));
        world.responder(seg("A", OLD.1 + 1, OLD.0 + 1));
        assert_eq!(world.state(), Some(Established));
        world.opener(seg("R", OLD.0 + 1, 0));
        assert_eq!(world.state(), Some(Closed));
        world.open(1000, 9000);
        world.ends_idle(9001, 1001);
    }
}

#[test]
fn a_refused_syn_ends_a_connection_that_the_responder_has_forgotten() {
    for mut world in worlds() {
        world.old(End::Unseen);
        world.opener(seg("S", 1000, 0));
        world.responder(seg("RA", 0, 1001));
        assert_eq!(world.state(), Some(Closed), "{}", world.name());
    }
}

/// A firewall before the responder refuses the new connection by an ICMP error.
#[test]
fn an_error_about_a_syn_on_a_used_port_reaches_its_sender() {
    for (end, _) in ENDS.into_iter().filter(|&(end, _)| end != End::Reset) {
        for mut world in worlds() {
            let name = format!("{end:?}, {}", world.name());
            let state = world.old(end);
            world.opener(seg("S", 1000, 0));
            // As the responder gets it: under its name inside, or the outer one of a vm's call.
            let (responder, opener) = world.answers;
            let (opener_side, responder_side) = world.sides();
            for (number, expected) in [(1000, true), (1001, false), (999, false), (77, false)] {
                let refused = segment(opener, responder, seg("S", number, 0));
                let error = unreachable(responder.0, opener.0, &refused);
                let (verdict, frame) = world.give(responder_side, &error);
                let passes = verdict == Verdict::Forward(opener_side);
                assert_eq!(passes, expected, "{name}, {number}: {verdict:?}");
                if passes {
                    let asks = segment(world.asks.0, world.asks.1, seg("S", 1000, 0));
                    assert!(
                        frame.ends_with(&asks),
                        "{name}: it quotes the sender's own SYN"
                    );
                }
            }
            assert_eq!(world.state(), Some(state), "{name}");
        }
    }
}

#[test]
fn of_two_syns_the_one_that_is_answered_counts() {
    for (answered, is_forged) in [(2000, false), (1000, true)] {
        for mut world in worlds() {
            world.opener(scaled(seg("S", 1000, 0), Some(7)));
            world.opener(scaled(seg("S", 2000, 0), Some(7)));
            if is_forged {
                for other in [7000, 8000, 2000] {
                    world.opener(seg("S", other, 0));
                }
            }
            // An answer to neither opens nothing.
            world.responder(seg("SA", 5000, 3001));
            assert_eq!(world.state(), Some(SynSent), "{}", world.name());
            world.responder(scaled(seg("SA", 5000, answered + 1), Some(7)));
            world.opener(seg("A", answered + 1, 5001));
            assert_eq!(world.state(), Some(Established), "{}", world.name());
            world.responder(seg("A", 5001, answered + 1));
            world.opener(data(answered + 1 + 100_000, 5001, 10));
            world.ends_idle(5001, answered + 1 + 100_010);
        }
    }
}

#[test]
fn of_two_unanswered_syns_the_later_counts() {
    for mut world in worlds() {
        world.opener(seg("S", 3_000_000_000, 0));
        world.opener(seg("S", 2_000_000_000, 0));
        world.wait(250);
        let told = world.sweep();
        assert!(told.contains(&(world.answers.0, 2_000_000_001)), "{told:?}");
    }
}

#[test]
fn a_syn_may_bring_data_that_its_answer_acknowledges() {
    for (reuses, acknowledged) in [(false, 1001), (false, 1101), (true, 1101)] {
        for mut world in worlds() {
            if reuses {
                world.old(End::BothFins);
            }
            world.opener(Seg {
                len: 100,
                ..seg("S", 1000, 0)
            });
            world.responder(seg("SA", 5000, acknowledged));
            world.opener(seg("A", 1101, 5001));
            assert_eq!(world.state(), Some(Established), "{}", world.name());
        }
    }
}

#[test]
fn an_acknowledgement_of_nothing_establishes_nothing() {
    for mut world in worlds() {
        world.opener(seg("S", 1000, 0));
        world.responder(seg("SA", 5000, 1001));
        for forged in [5000, 5002, 0, 3_000_000_000] {
            world.opener(seg("A", 1001, forged));
            assert_eq!(world.state(), Some(SynReceived), "{forged}");
        }
        world.opener(seg("A", 1001, 5001));
        assert_eq!(world.state(), Some(Established));
    }
}

#[test]
fn a_connection_that_begins_anew_is_counted_as_a_flow_that_was_taken_up() {
    for mut world in worlds() {
        let place = match (world.role, world.ipv6) {
            (_, false) => 0,
            (Role::Proxy | Role::TaggedProxy, true) => 1,
            (_, true) => 2, // behind the neighbour
        };
        let counted = |world: &World| match &world.dut {
            Dut::Proxy(proxy) => {
                let id = proxy.snapshot().backends()[place].id();
                proxy.backend_counters(id).unwrap()
            }
            Dut::Host(host) => {
                let id = host.snapshot().backends()[place].id();
                host.backend_counters(id).unwrap()
            }
        };
        world.old(End::Unseen);
        let before = counted(&world);
        world.opener(seg("S", 1000, 0));
        world.responder(seg("SA", 5000, 1001));
        world.responder(seg("SA", 5000, 1001));
        let after = counted(&world);
        let accepted = u64::from(world.is_inbound());
        assert_eq!(after.flows - before.flows, 1, "{}", world.name());
        assert_eq!(after.live, before.live, "{}", world.name());
        assert_eq!(after.accepted - before.accepted, accepted);
        assert_eq!(after.failures, before.failures);
    }
}
