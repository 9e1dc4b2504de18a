//! The fast path for packets that only need translation: unfragmented TCP and UDP packets of
//! established connections, without IP options, VLAN tags or extension headers, that neither open
//! nor close a connection. Nearly all packets are of this kind.
//!
//! | loop | reads | prefetches |
//! |---|---|---|
//! | [read](Pipeline::read_plain) | headers | the index's cache line |
//! | [look up](Pipeline::look_up_plain) | the index | the connection's cache lines |
//! | [translate](Pipeline::translate_plain) | the connection | |
//!
//! Unusual packets leave the fast path for the slow path, which parses the frame again. The fast
//! path changes a frame, a connection or a counter only after its last check, so the slow path
//! alone defines the semantics. The tests `both_ways_of_a_host_agent_do_the_same` and
//! `both_ways_of_a_proxy_do_the_same` compare the two paths.

mod head;
#[cfg(all(test, feature = "alloc"))]
mod tests;

use core::ops::Deref;

use self::head::{Plain, numbers};
use super::{Lane, Pipeline, Role, leave_through};
use crate::frame::{BURST, Frame};
use crate::nat::connection::{ALL_PORTS, INSIDE_ACCOUNT, OUTWARD_ACCOUNT};
use crate::nat::rule_id::ShortRuleId;
use crate::nat::table::{Connections, NONE};
use crate::nat::{ConnectionState, Direction, NatTables};
use crate::observe::{ConnectionStep, Observe, Step};
use crate::snapshot::Snapshot;
use crate::stats::{BackendCounters, Count, RuleCounters, VmCounters};
use crate::tunnel::decapsulation::{COMMON, CommonHead};
use crate::verdict::{PortId, Verdict};
use crate::wire::vxlan::Vni;
use crate::wire::{ethernet, protocol};

/// Place of a packet in its frame, and what is known of its origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// Offset of the end of the packet's link-layer frame, in bytes from the beginning of the frame.
    pub(crate) end: u32,
    /// The port that qualifies the connection's name: see [`Lane::zone`].
    pub(crate) zone: PortId,
    /// ECN field of the outer header; zero without one.
    pub(crate) ecn: u8,
}

/// The next step of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Ipv4Inward,
    Ipv4Outward,
    Ipv6Inward,
    Ipv6Outward,
    /// The slow path, in the [`Lane`] of the same index.
    Long,
    /// None: the frame has its verdict.
    Done,
}

/// A frame on the fast path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainLane {
    /// Hash of the packet's key.
    hash: u64,
    /// Number of the connection that the packet most likely belongs to.
    candidate: u32,
    /// See [`Origin::end`].
    end: u32,
    zone: PortId,
    way: Way,
}

const _: () = assert!(size_of::<PlainLane>() <= 24);

impl PlainLane {
    pub(crate) const EMPTY: Self = Self {
        hash: 0,
        candidate: NONE,
        end: 0,
        zone: PortId(0),
        way: Way::Done,
    };
}

/// Consecutive packets of one rule and one server, which are counted at once.
#[derive(Debug)]
struct Run {
    /// Rule, server and kind of traffic: see [`Connection::account`](crate::nat::Connection::account).
    account: u64,
    /// Index of the server's counters.
    counters: u32,
    count: Count,
    /// Port of the vm.
    vm: PortId,
    /// Bytes of each packet that do not reach the vm's port.
    outer: u64,
    /// Direction of the packets.
    direction: Direction,
    /// Count of all earlier runs of the burst.
    total: Count,
}

impl Run {
    /// Account of no connection: no server has the number 65535.
    const NO_ACCOUNT: u64 = u64::MAX;

    const EMPTY: Self = Self {
        account: Self::NO_ACCOUNT,
        counters: NONE,
        count: Count {
            packets: 0,
            bytes: 0,
        },
        vm: PortId(0),
        outer: 0,
        direction: Direction::Inward,
        total: Count {
            packets: 0,
            bytes: 0,
        },
    };

    /// Adds the count to the counters of rule, server and vm.
    // Out of line, so that the path of packets within a run keeps its values in registers.
    #[cold]
    #[inline(never)]
    fn end(
        &mut self,
        rules: &mut [RuleCounters],
        backends: &mut [BackendCounters],
        vms: &mut [VmCounters],
    ) {
        let count = core::mem::take(&mut self.count);
        self.total += count;
        let rule = ShortRuleId::from_bits((self.account >> 16) as u16);
        if let Some(counters) = rule.counters(rules) {
            counters.forwarded += count;
        }
        if let Some(counters) = backends.get_mut(self.counters as usize) {
            counters.forwarded += count;
        }
        if let Some(row) = vms.get_mut(usize::from(self.vm.0)) {
            let is_inside = self.account & INSIDE_ACCOUNT != 0;
            let bytes = count.bytes - count.packets * self.outer;
            *row.of(is_inside, self.direction) += Count { bytes, ..count };
        }
    }
}

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Sets the verdict of each frame of a burst. Without `SHORT`, all frames take the slow path.
    #[inline]
    pub(crate) fn process<R: Role, const SHORT: bool>(
        &mut self,
        frames: &mut [Frame<'_>],
        (lanes, plain): (&mut [Lane; BURST], &mut [PlainLane; BURST]),
        last: &mut R::Last,
        seen: &mut impl Observe,
    ) {
        for frame in frames.iter() {
            frame.prefetch();
        }
        let mut received = Count::default();
        let all = frames
            .iter_mut()
            .zip(lanes.iter_mut())
            .zip(plain.iter_mut());
        for (place, ((frame, lane), plain)) in (0..).zip(all) {
            received.add(frame.len());
            if !(SHORT && self.read_plain::<R>(frame, plain, last)) {
                let goes_on = self.classify::<R>(frame, place, lane, last, seen);
                plain.way = if goes_on { Way::Long } else { Way::Done };
            }
        }
        self.stats.received += received;
        for ((_, lane), plain) in frames.iter().zip(lanes.iter_mut()).zip(plain.iter_mut()) {
            self.look_up_plain(lane, plain);
        }
        let mut run = Run::EMPTY;
        let all = frames.iter_mut().zip(lanes).zip(plain);
        for (place, ((frame, lane), plain)) in (0..).zip(all) {
            match plain.way {
                Way::Done => {}
                Way::Long => self.translate::<R>(frame, lane, seen),
                _ => {
                    let done = self.translate_any::<R>(frame, place.into(), plain, &mut run, seen);
                    if done.is_none() {
                        self.take_long_way::<R>(frame, place, lane, last, seen);
                    }
                }
            }
        }
        let NatTables {
            rules,
            backends,
            vms,
            ..
        } = &mut self.tables;
        run.end(rules, backends, vms);
        self.stats.forwarded += run.total;
    }

    /// Sends a frame that left the fast path on the slow path.
    #[cold]
    #[inline(never)]
    fn take_long_way<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        place: u8,
        lane: &mut Lane,
        last: &mut R::Last,
        seen: &mut impl Observe,
    ) {
        if self.classify::<R>(frame, place, lane, last, seen) {
            self.look_up(lane);
            self.translate::<R>(frame, lane, seen);
        }
    }

    /// Reads a frame's headers, and hashes its key. Returns false if the frame takes the slow path.
    #[inline(always)]
    fn read_plain<R: Role>(
        &mut self,
        frame: &Frame<'_>,
        lane: &mut PlainLane,
        last: &mut R::Last,
    ) -> bool {
        self.read_if_plain::<R>(frame, lane, last).is_some()
    }

    #[inline(always)]
    fn read_if_plain<R: Role>(
        &mut self,
        frame: &Frame<'_>,
        lane: &mut PlainLane,
        last: &mut R::Last,
    ) -> Option<()> {
        match R::direction(&self.snapshot, frame, last)? {
            Direction::Inward => {
                let origin = R::inward(&self.snapshot, frame, last)?;
                self.read_head::<R, false>(frame, lane, &origin)
            }
            Direction::Outward => {
                let zone = if R::SHARED { ALL_PORTS } else { frame.port() };
                let end = frame.len() as u32;
                self.read_head::<R, true>(frame, lane, &Origin { end, zone, ecn: 0 })
            }
        }
    }

    #[inline(always)]
    fn read_head<R: Role, const OUTWARD: bool>(
        &mut self,
        frame: &Frame<'_>,
        lane: &mut PlainLane,
        origin: &Origin,
    ) -> Option<()> {
        let Origin { end, zone, ecn } = *origin;
        let direction = direction(OUTWARD);
        let link = frame.bytes().get(start::<R>(OUTWARD)..end as usize)?;
        let connections = &self.tables.connections;
        if let Some(head) = <u64 as Plain>::read(link, ecn) {
            lane.hash = hash(&connections.ipv4, head, direction, zone);
            lane.way = if OUTWARD {
                Way::Ipv4Outward
            } else {
                Way::Ipv4Inward
            };
        } else {
            let head = <[u64; 4] as Plain>::read(link, ecn)?;
            lane.hash = hash(&connections.ipv6, head, direction, zone);
            lane.way = if OUTWARD {
                Way::Ipv6Outward
            } else {
                Way::Ipv6Inward
            };
        }
        (lane.end, lane.zone) = (end, zone);
        Some(())
    }

    /// Looks a frame up in the index, and prefetches its connection.
    #[inline(always)]
    fn look_up_plain(&self, lane: &mut Lane, plain: &mut PlainLane) {
        let connections = &self.tables.connections;
        // The likeliest shapes first: comparisons cost less than a jump table.
        if matches!(plain.way, Way::Ipv4Inward | Way::Ipv4Outward) {
            plain.candidate = connections.ipv4.candidate(plain.hash);
        } else if matches!(plain.way, Way::Ipv6Inward | Way::Ipv6Outward) {
            plain.candidate = connections.ipv6.candidate(plain.hash);
        } else if plain.way == Way::Long {
            self.look_up(lane);
        }
    }

    #[inline(always)]
    fn translate_any<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        place: usize,
        lane: &PlainLane,
        run: &mut Run,
        seen: &mut impl Observe,
    ) -> Option<()> {
        match lane.way {
            Way::Ipv4Inward => {
                self.translate_plain::<u64, R, false, false>(frame, place, lane, run, seen)
            }
            Way::Ipv4Outward => {
                self.translate_plain::<u64, R, true, false>(frame, place, lane, run, seen)
            }
            Way::Ipv6Inward => {
                self.translate_plain::<[u64; 4], R, false, false>(frame, place, lane, run, seen)
            }
            Way::Ipv6Outward => {
                self.translate_plain::<[u64; 4], R, true, false>(frame, place, lane, run, seen)
            }
            Way::Long | Way::Done => None,
        }
    }

    /// Translates a packet that leaves through a mux or a network.
    // Out of line, so that packets that do not have their hop taken in place without asking.
    #[inline(never)]
    fn translate_into_tunnel<A: Plain, R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        place: usize,
        lane: &PlainLane,
        run: &mut Run,
        seen: &mut impl Observe,
    ) -> Option<()> {
        self.translate_plain::<A, R, true, true>(frame, place, lane, run, seen)
    }

    /// Translates a packet of an established connection, and gives its frame the verdict. Returns
    /// `None`, and changes nothing, if the packet takes the slow path.
    #[inline(always)]
    fn translate_plain<A: Plain, R: Role, const OUTWARD: bool, const TUNNELLED: bool>(
        &mut self,
        frame: &mut Frame<'_>,
        place: usize,
        lane: &PlainLane,
        run: &mut Run,
        seen: &mut impl Observe,
    ) -> Option<()> {
        let direction = direction(OUTWARD);
        let Self {
            snapshot, tables, ..
        } = self;
        let NatTables {
            connections,
            rules,
            backends,
            links,
            vms,
            ..
        } = tables;
        let table = A::table(connections);
        let now = table.now();
        let connection = table.get_mut(lane.candidate)?;
        if R::ROUTES && OUTWARD && !TUNNELLED && connection.via().is_some() {
            return self.translate_into_tunnel::<A, R>(frame, place, lane, run, seen);
        }
        let zone = if R::SHARED && OUTWARD {
            ALL_PORTS
        } else {
            lane.zone
        };
        let (len, headroom) = (frame.len(), frame.headroom());
        let vni = CommonHead::of(frame.bytes()).map_or_else(Vni::default, |head| head.vni());
        let head = frame.bytes_mut().get_mut(start::<R>(OUTWARD)..)?;
        let head: &mut A::Head = A::head_mut(head)?;
        let key = A::key(head, direction, zone);
        let ip_len = A::ip_len(head);
        let goes_on = if R::SHARED && OUTWARD {
            connection.goes_on_with::<true>(&key, now)
        } else {
            connection.goes_on_with::<false>(&key, now)
        };
        if !goes_on {
            return None;
        }
        let mut tunnel = None;
        if R::ROUTES {
            let mtu = snapshot.underlay().mtu;
            let most = if TUNNELLED {
                let by = R::tunnel(snapshot, connection, direction)?;
                tunnel = Some(by).filter(|by| by.has_room(headroom));
                tunnel?.inner_mtu(mtu)
            } else if OUTWARD {
                mtu.into()
            } else {
                u32::MAX // as long as the fabric brought it
            };
            if A::hop_limit(head) <= 1 || ip_len > most {
                return None;
            }
        }
        let to_port = R::leaves_by(snapshot, connection.zone(), direction)?;
        let mut account = connection.account();
        if R::METERS && OUTWARD {
            account ^= OUTWARD_ACCOUNT;
        }
        if run.account != account {
            let local = snapshot.nat.local(connection.server())?;
            if R::CHOOSES && local.suspect {
                return None;
            }
            run.end(rules, backends, vms);
            (run.account, run.counters) = (account, local.counters);
            (run.vm, run.direction) = (connection.zone(), direction);
            run.outer = start::<R>(OUTWARD) as u64; // no bytes follow the inner frame
        }
        // Nothing can fail from here on.
        if R::TUNNELS && !OUTWARD {
            let port = lane.zone;
            seen.step(place, Step::Decapsulated { vni, port });
        }
        seen.step(place, Step::Parsed(A::packet(head, &key)));
        if key.protocol == protocol::TCP {
            let (end, acknowledged, window) = numbers(A::tcp(head), ip_len - A::HEADER_LEN);
            connection.note_numbers(direction, end, acknowledged, window);
        }
        connection.keep_alive(now);
        let to = connection.translated(direction);
        let deltas = connection.deltas(direction);
        let hops = u8::from(R::ROUTES && !TUNNELLED); // encapsulation takes its own
        A::rename(head, key.protocol, &to, deltas, hops);
        let found = ConnectionStep::Found(ConnectionState::Established);
        seen.step(place, Step::Connection(found));
        seen.step(place, Step::Translated(to.tuple(key.protocol)));
        if let Some(tunnel) = tunnel {
            let packet = A::packet(head, &key);
            let ways = (connection.zone(), lane.hash);
            let left = leave_through(snapshot, tunnel, frame, &packet, ways);
            debug_assert!(left.is_ok(), "the headroom was checked");
        } else if R::ROUTES && OUTWARD {
            A::readdress(head, snapshot.underlay());
            // Padding belongs to the incoming link.
            frame.narrow(0, ethernet::HEADER_LEN as u32 + ip_len);
        } else if R::ROUTES {
            frame.narrow(start::<R>(OUTWARD) as u32, lane.end);
        } else {
            let opened_by = A::links_of(links).get(lane.candidate as usize);
            R::readdress(snapshot, frame, direction, connection.server(), opened_by);
        }
        run.count.add(len);
        let verdict = Verdict::Forward(to_port);
        frame.set_verdict(verdict);
        seen.step(place, Step::Done(verdict));
        Some(())
    }
}

const fn direction(is_outward: bool) -> Direction {
    if is_outward {
        Direction::Outward
    } else {
        Direction::Inward
    }
}

/// Offset of a packet's link header in its frame, in bytes.
const fn start<R: Role>(is_outward: bool) -> usize {
    if R::TUNNELS && !is_outward { COMMON } else { 0 }
}

/// Hashes a packet's key, and prefetches the index's cache line.
#[inline(always)]
fn hash<A: Plain>(
    table: &Connections<'_, A>,
    head: &A::Head,
    direction: Direction,
    zone: PortId,
) -> u64 {
    let hash = table.hash(&A::key(head, direction, zone));
    table.prefetch(hash);
    hash
}
