//! Hosts of any generations and any packets between them: a packet is passed on eight times at most, no host
//! gets it twice, and what hosts remember is bounded.

use crate::passing;

use bolero::TypeGenerator;
use passing::{Fleet, HOSTS, Node, VMS, Weights, snapshot};
use slb_core::wire::checksum::update;

#[derive(Clone, Debug, TypeGenerator)]
enum Event {
    /// A host gets other weights; others may never hear of them.
    Change {
        host: u8,
        weights: [u8; VMS],
    },
    /// The client sends a packet by a mux that has any weights.
    Packet {
        kind: u8,
        port: u8,
        numbers: (u32, u32),
        weights: [u8; VMS],
        /// Where behind the outer headers, and the byte that is put there.
        changes: Vec<(u8, u8)>,
        forged: Option<Forged>,
    },
    Wait(u8),
}

/// A mark that a host made up.
#[derive(Clone, Debug, TypeGenerator)]
struct Forged {
    host: u8,
    mark: [u8; 5],
}

/// Behind the outer headers of a frame.
const INNER: usize = 50;
const MARK: u8 = 0x72;
const MOST_EVENTS: usize = 40;

fn weights(of: &[u8; VMS], least: u32) -> Weights {
    of.map(|weight| least + u32::from(weight % 3))
}

/// Returns true if a frame's mark says that it goes back to who takes it.
fn is_passed_back(frame: &[u8]) -> bool {
    frame[INNER + 6] == MARK && frame[INNER + 7] & 0x18 == 0x10
}

/// Makes a frame one of a host's, with a mark; of another host than the one that it goes to.
fn forge(frame: &mut [u8], forged: &Forged) {
    let to = frame[33];
    let mut from = 101 + forged.host % HOSTS as u8;
    if from == to {
        from = 101 + (forged.host % HOSTS as u8 + 1) % HOSTS as u8;
    }
    let mut sum = u16::from_be_bytes([frame[24], frame[25]]);
    let old = [[frame[26], frame[27]], [frame[28], frame[29]]].map(u16::from_be_bytes);
    let new = [[172, 16], [0, from]].map(u16::from_be_bytes);
    for (old, new) in old.into_iter().zip(new) {
        sum = update(sum, old, new);
    }
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[26..30].copy_from_slice(&[172, 16, 0, from]);
    frame[INNER + 6] = MARK;
    frame[INNER + 7..INNER + 12].copy_from_slice(&forged.mark);
}

/// Checks the way of the last packet.
fn check_way(fleet: &Fleet, is_forged: bool) {
    let is_vxlan = |frame: &&Vec<u8>| frame[36..38] == 4789u16.to_be_bytes();
    let frames: Vec<&Vec<u8>> = fleet.on_fabric.iter().take_while(is_vxlan).collect();
    let mut visited = Vec::new();
    // Without a kind it is no mark, and the packet as good as a mux's.
    if is_forged && frames[0][INNER + 7] & 0x18 != 0x18 {
        visited.push(frames[0][29]);
    }
    for (place, frame) in frames.iter().enumerate() {
        let is_given = is_forged && place == 0;
        if is_passed_back(frame) && !is_given {
            assert_eq!(place + 1, frames.len(), "who takes it keeps it");
        } else {
            assert!(!visited.contains(&frame[33]), "{visited:?}");
        }
        visited.push(frame[33]);
    }
    assert!(frames.len() <= 9, "{} hops", frames.len() - 1);
}

#[test]
fn hosts_of_any_generations_pass_any_packet_on_a_few_times_and_never_twice_to_one() {
    bolero::check!()
        .with_type::<(bool, Vec<Event>)>()
        .for_each(|(is_ipv6, events)| {
            let mut fleet = Fleet::new(*is_ipv6);
            let mut packets = 0;
            for event in events.iter().take(MOST_EVENTS) {
                match event {
                    Event::Change { host, weights: of } => {
                        let host = usize::from(*host) % HOSTS;
                        let previous = fleet.hosts[host].snapshot();
                        let node = Node::Host(host);
                        let next = snapshot(node, *is_ipv6, weights(of, 0), &[], Some(previous));
                        fleet.hosts[host].install(next).expect("it follows");
                    }
                    Event::Wait(seconds) => fleet.now += u64::from(*seconds),
                    Event::Packet {
                        kind,
                        port,
                        numbers,
                        weights: of,
                        changes,
                        forged,
                    } => {
                        let port = 2000 + u16::from(*port);
                        let packet = match kind % 4 {
                            0 => fleet.syn(port, numbers.0),
                            1 => fleet.datagram(port),
                            _ => fleet.segment(port, numbers.0, numbers.1),
                        };
                        let mut frame = fleet.sent_by(weights(of, 1), &packet);
                        if let Some(forged) = forged {
                            forge(&mut frame, forged);
                        }
                        for &(at, byte) in changes {
                            // The inner source MAC address is what the other hosts go by.
                            let at = INNER + usize::from(at);
                            if at < frame.len() && !(INNER + 6..INNER + 12).contains(&at) {
                                frame[at] = byte;
                            }
                        }
                        fleet.deliver(frame);
                        check_way(&fleet, forged.is_some());
                        packets += 1;
                    }
                }
            }
            for host in &fleet.hosts {
                let live = host.stats().connections.live;
                assert!(live <= packets, "{live} connections of {packets} packets");
                for slot in 0..251 {
                    let owners = host.snapshot().owners(0, slot).count();
                    assert!(owners <= VMS.min(8), "{owners} owners");
                }
            }
        });
}
