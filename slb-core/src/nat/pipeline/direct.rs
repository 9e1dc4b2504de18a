//! Clients that talk to a server's own address, from a port that also has a connection to a frontend
//! of that server.
//!
//! Both conversations have one inside tuple, so an answer of the server may belong to either. The
//! client's packets to the server's own address decide:
//!
//! - TCP: a server has one connection with one tuple. A SYN-ACK that acknowledges the client's SYN
//!   to the server's own address ends the connection to the frontend, which the server has forgotten.
//!   A SYN alone, which may be forged, ends nothing. While the SYN to the frontend is unanswered,
//!   segments that do not answer it belong to the direct connection. A server that still has the
//!   connection to the frontend answers the SYN with an ACK of that connection (RFC 5961 §4), which
//!   goes to the client with the frontend's address. With the server's own address, the client would
//!   answer with a RST at the exact number, so a forged SYN could end the connection to the frontend.
//!   Instead, the client's next SYN is refused: by a RST if the rule has `tcp_reset`, else by an ICMP
//!   error.
//! - Other protocols: answers use the address that the client used last.
//!
//! The host agent does not see packets that the host's kernel forwards to a vm. With TCP, it
//! detects them by a vm's SYN-ACK that acknowledges a SYN of no connection. With other protocols,
//! it cannot detect them.

use core::ops::Deref;

use super::lane::segment_of;
use super::{Lane, NO_CONNECTION, Pipeline, Role, Table};
use crate::frame::Frame;
use crate::nat::Direction;
use crate::nat::connection::{ALL_PORTS, Key};
use crate::nat::tcp::Segment;
use crate::observe::Observe;
use crate::packet::{EchoMessage, Family, Part};
use crate::snapshot::Snapshot;
use crate::verdict::Verdict;
use crate::wire::tcp::Flags;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Records a client's packet to a server's own address, at the connection with its inside
    /// tuple, if there is one. Returns `Some` if the client should be told that the server does not
    /// accept the packet: true for a RST, false for an ICMP error.
    #[cold]
    pub(crate) fn note_direct<A: Table, R: Role>(
        &mut self,
        lane: &Lane,
        segment: Option<&Segment>,
    ) -> Option<bool> {
        let (client, server) = A::of(&lane.packet).unpack();
        if !R::answers_directly(&self.snapshot, lane.zone, client, server) {
            return None;
        }
        let key = Key {
            side: lane.key::<A>().side.reversed(),
            protocol: lane.packet.protocol,
            direction: Direction::Outward,
            zone: if R::SHARED { ALL_PORTS } else { lane.zone },
        };
        let table = A::table(&mut self.tables.connections);
        table
            .find(table.hash(&key), &key)
            .and_then(|number| table.get_mut(number))
            .and_then(|connection| connection.contest(segment))
    }

    /// Records a direct conversation by a packet that crosses a proxy without a lookup: ICMP or a
    /// fragment.
    #[cold]
    pub(crate) fn note_unusual_direct<R: Role>(&mut self, frame: &Frame<'_>, lane: &Lane) {
        let packet = &lane.packet;
        if packet.shape.fault.is_some() || packet.shape.part == Part::Later {
            return;
        }
        let mut lane = *lane;
        if packet.is_icmp() {
            match packet.echo_ports(frame.bytes()) {
                Some(ports) if packet.shape.echo == EchoMessage::Request => {
                    lane.packet.ports = ports;
                }
                _ => return,
            }
        }
        let segment = segment_of(frame, &lane);
        // The sender of a fragmented SYN gets no answer.
        let _: Option<bool> = match packet.shape.family {
            Family::Ipv4 => self.note_direct::<u64, R>(&lane, segment.as_ref()),
            Family::Ipv6 => self.note_direct::<[u64; 4], R>(&lane, segment.as_ref()),
        };
    }

    /// Decides whether a packet with the tuple of a connection and of a direct conversation belongs
    /// to the latter; returns `None` if it belongs to the connection.
    #[cold]
    pub(super) fn settle<A: Table, R: Role>(
        &mut self,
        number: u32,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Option<Verdict> {
        if lane.error.is_some() {
            return None;
        }
        let table = A::table(&mut self.tables.connections);
        if segment.is_some() && table.is_superseded(number) {
            return Some(NO_CONNECTION);
        }
        let (connection, _) = table.get_mut_and_ages(number)?;
        if !connection.is_direct(lane.direction, segment) {
            return None;
        }
        if segment.is_some_and(|segment| segment.flags.contains(Flags::SYN)) {
            self.end::<A>(number); // the server has another connection
        }
        // The packet is handled like a packet without a connection, and opens none.
        R::open::<A, S>(self, frame, lane, segment, seen).err()
    }
}
