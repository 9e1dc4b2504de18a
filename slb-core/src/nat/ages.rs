//! Connections that may be evicted to make room for new ones, in the order of their age.
//!
//! ```text
//!  unanswered  oldest <-> ... <-> newest    only the opener was heard
//!  answered    oldest <-> ... <-> newest    answered once; the opener did not go on, or it is over
//! ```
//!
//! Anyone can begin a connection from a forged address, and servers answer forged packets too. A
//! connection whose opener has proved that it got the answer is in neither list, and is never
//! evicted. With TCP, the handshake is the proof. Other protocols have none: another packet of the
//! opener is evidence, but a flood can send two packets from each source. Flows with that evidence
//! leave the lists as long as they use at most three quarters of the places; the others stay in the
//! list of answered connections. A TCP connection that is over joins the second list: it only waits
//! for late segments, so a full table may reuse its place.
//!
//! The lists are doubly linked through an array beside the connections, so each operation takes
//! constant time.

use super::ConnectionState;
use crate::mem::Mem;
use crate::wire::protocol;

/// No connection.
const NONE: u32 = u32::MAX;

/// List that a connection is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unanswered = 0,
    Answered = 1,
}

/// The value of a link's next newer connection if the connection is in no list.
const UNLISTED: u32 = u32::MAX - 1;
/// Marks the list of answered connections, beside the number of the next older connection.
const ANSWERED: u32 = 1 << 31;
/// Connections beyond this number are in no list, and are never evicted.
const MOST: u32 = ANSWERED - 1;

/// The neighbours of a connection in its list.
#[derive(Clone, Copy, Debug)]
pub struct AgeLink {
    newer: u32,
    /// The next older connection, and the list in the highest bit.
    older: u32,
}

impl AgeLink {
    /// The link of a connection that is in no list.
    pub const EMPTY: Self = Self {
        newer: UNLISTED,
        older: NONE,
    };

    fn kind(self) -> Option<Kind> {
        match (self.newer, self.older & ANSWERED) {
            (UNLISTED, _) => None,
            (_, 0) => Some(Kind::Unanswered),
            _ => Some(Kind::Answered),
        }
    }

    fn older(self) -> u32 {
        let number = self.older & !ANSWERED;
        if number == MOST { NONE } else { number }
    }

    fn set_older(&mut self, number: u32) {
        self.older = self.older & ANSWERED | number.min(MOST);
    }
}

#[derive(Clone, Copy, Debug)]
struct List {
    oldest: u32,
    newest: u32,
    count: u64,
}

/// Both lists, over the connections of a table.
#[derive(Debug)]
pub(crate) struct Ages<'m> {
    links: Mem<'m, AgeLink>,
    lists: [List; 2],
    /// The number of established flows of protocols without a handshake, which are in no list.
    flows: u64,
    /// The maximum number of such flows.
    most_flows: u64,
}

impl<'m> Ages<'m> {
    /// Makes empty lists for a table of `places` places. Connections with numbers beyond `links`
    /// are in no list.
    pub(crate) fn new(mut links: Mem<'m, AgeLink>, places: u64) -> Self {
        links.fill(AgeLink::EMPTY);
        let none = List {
            oldest: NONE,
            newest: NONE,
            count: 0,
        };
        Self {
            links,
            lists: [none; 2],
            flows: 0,
            most_flows: places - places / 4,
        }
    }

    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.lists[kind as usize].count
    }

    pub(crate) fn oldest(&self, kind: Kind) -> Option<u32> {
        let oldest = self.lists[kind as usize].oldest;
        (oldest != NONE).then_some(oldest)
    }

    /// Returns the list that contains a connection.
    pub(crate) fn kind(&self, number: u32) -> Option<Kind> {
        self.links.get(number as usize)?.kind()
    }

    /// Inserts a connection that is in no list as the newest one of a list.
    pub(crate) fn push(&mut self, number: u32, kind: Kind) {
        let list = &mut self.lists[kind as usize];
        let before = list.newest;
        match self.links.get_mut(number as usize) {
            Some(link) if number < MOST && link.kind().is_none() => {
                link.newer = NONE;
                link.older = (kind as u32) << 31;
                link.set_older(before);
            }
            _ => return,
        }
        list.newest = number;
        list.count += 1;
        match self.links.get_mut(before as usize) {
            Some(link) => link.newer = number,
            None => list.oldest = number,
        }
    }

    /// Removes a connection from its list, if it is in one.
    pub(crate) fn remove(&mut self, number: u32) {
        let Some(link) = self.links.get_mut(number as usize) else {
            return;
        };
        let Some(kind) = link.kind() else {
            return;
        };
        let (newer, older) = (link.newer, link.older());
        *link = AgeLink::EMPTY;
        let list = &mut self.lists[kind as usize];
        list.count -= 1;
        match self.links.get_mut(older as usize) {
            Some(link) => link.newer = newer,
            None => list.oldest = newer,
        }
        match self.links.get_mut(newer as usize) {
            Some(link) => link.set_older(older),
            None => list.newest = older,
        }
    }

    /// Reserves a place for one more established flow of a protocol without a handshake.
    ///
    /// Returns false if such flows already use their share: the flow stays in its list.
    pub(crate) fn keep_flow(&mut self) -> bool {
        let has_room = self.flows < self.most_flows;
        self.flows += u64::from(has_room);
        has_room
    }

    /// Records that one of the flows that [`keep_flow`](Self::keep_flow) counts is no longer
    /// established.
    pub(crate) fn release_flow(&mut self) {
        self.flows = self.flows.saturating_sub(1);
    }

    /// Moves a connection to the list for its state: one that was in its handshake or over, or that
    /// is over now.
    ///
    /// Returns false if the connection cannot become established: it is a flow of a protocol
    /// without a handshake, and there are too many.
    #[cold]
    #[inline(never)]
    pub(crate) fn note(&mut self, number: u32, protocol: u8, state: ConnectionState) -> bool {
        use ConnectionState::{Closed, Established, SynReceived, SynSent, TimeWait};
        let kind = self.links.get(number as usize).and_then(|l| l.kind());
        match state {
            SynSent => {}
            // A refused connection keeps its place: anyone may have sent its SYN.
            TimeWait | Closed => self.push(number, Kind::Answered),
            SynReceived => {
                let moves = match protocol {
                    // The client's third segment is still missing. A connection that was over
                    // counts as new.
                    protocol::TCP => kind == Some(Kind::Answered),
                    _ => kind == Some(Kind::Unanswered),
                };
                if moves {
                    self.remove(number);
                    self.push(number, Kind::Answered);
                }
            }
            Established if protocol != protocol::TCP && !self.keep_flow() => return false,
            _ => self.remove(number),
        }
        true
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    const KINDS: [Kind; 2] = [Kind::Unanswered, Kind::Answered];

    #[test]
    fn the_lists_are_in_the_order_of_arrival() {
        bolero::check!()
            .with_type::<Vec<(u8, u8)>>()
            .for_each(|operations| {
                let mut ages = Ages::new(Mem::from(vec![AgeLink::EMPTY; 16]), 16);
                let mut model = [const { Vec::new() }; 2];
                // Miri takes a thousand times as long.
                let most = if cfg!(miri) { 20 } else { usize::MAX };
                for &(operation, number) in operations.iter().take(most) {
                    let number = u32::from(number % 20);
                    let is_listed = model.iter().flatten().any(|&n| n == number);
                    match operation % 4 {
                        kind @ (0 | 1) => {
                            ages.push(number, KINDS[usize::from(kind)]);
                            if !is_listed && number < 16 {
                                model[usize::from(kind)].push(number);
                            }
                        }
                        2 => {
                            ages.remove(number);
                            model
                                .iter_mut()
                                .for_each(|list| list.retain(|&n| n != number));
                        }
                        _ => {
                            ages.note(number, protocol::UDP, ConnectionState::SynReceived);
                            if model[0].contains(&number) {
                                model[0].retain(|&n| n != number);
                                model[1].push(number);
                            }
                        }
                    }
                    for (kind, list) in KINDS.into_iter().zip(&model) {
                        assert_eq!(ages.count(kind), list.len() as u64);
                        assert_eq!(ages.oldest(kind), list.first().copied());
                        let mut backward = Vec::new();
                        let mut at = ages.lists[kind as usize].newest;
                        while at != NONE {
                            backward.push(at);
                            at = ages.links[at as usize].older();
                        }
                        assert!(backward.iter().rev().eq(list));
                    }
                }
            });
    }

    #[test]
    fn who_went_on_after_the_answer_is_in_no_list() {
        use ConnectionState::{Closed, Established, FinWaitOutward, SynReceived, SynSent};
        for (protocol, state, kind) in [
            (protocol::TCP, SynSent, Some(Kind::Unanswered)),
            (protocol::TCP, SynReceived, Some(Kind::Unanswered)),
            (protocol::TCP, Closed, Some(Kind::Unanswered)),
            (protocol::TCP, Established, None),
            (protocol::TCP, FinWaitOutward, None),
            (protocol::UDP, SynSent, Some(Kind::Unanswered)),
            (protocol::UDP, SynReceived, Some(Kind::Answered)),
            (protocol::UDP, Established, None),
        ] {
            let mut ages = Ages::new(Mem::from(vec![AgeLink::EMPTY; 1]), 1);
            ages.push(0, Kind::Unanswered);
            ages.note(0, protocol, state);
            assert_eq!(ages.links[0].kind(), kind, "{protocol} {state:?}");
        }
    }

    #[test]
    fn flows_without_a_handshake_leave_the_lists_up_to_three_quarters_of_the_places() {
        use ConnectionState::{Established, SynReceived};
        let mut ages = Ages::new(Mem::from(vec![AgeLink::EMPTY; 4]), 4);
        for number in 0..4 {
            ages.push(number, Kind::Unanswered);
            assert!(ages.note(number, protocol::UDP, SynReceived));
        }
        for (number, is_kept) in [(0, true), (1, true), (2, true), (3, false)] {
            assert_eq!(ages.note(number, protocol::UDP, Established), is_kept);
        }
        assert_eq!(ages.oldest(Kind::Answered), Some(3));
        ages.release_flow();
        assert!(ages.note(3, protocol::UDP, Established));
        assert_eq!(ages.count(Kind::Answered), 0);
    }

    #[test]
    fn who_is_over_is_among_the_answered_until_it_goes_on() {
        use ConnectionState::{Closed, Established, FinWaitInward, SynReceived, TimeWait};
        for over in [TimeWait, Closed] {
            for (next, kind) in [
                (SynReceived, Some(Kind::Answered)),
                (FinWaitInward, None),
                (Established, None),
            ] {
                let mut ages = Ages::new(Mem::from(vec![AgeLink::EMPTY; 1]), 1);
                ages.push(0, Kind::Unanswered);
                for state in [SynReceived, Established, over] {
                    ages.note(0, protocol::TCP, state);
                }
                assert_eq!(ages.oldest(Kind::Answered), Some(0));
                ages.note(0, protocol::TCP, next);
                assert_eq!(ages.links[0].kind(), kind, "{over:?} {next:?}");
            }
        }
    }
}
