//! The differences between the translating roles.

use core::net::IpAddr;
use core::ops::Deref;

use super::{Asked, Elsewhere, Lane, Opened, Origin, Pipeline, Table, TakeUp};
use crate::frame::Frame;
use crate::link::Link;
use crate::nat::connection::{Connection, Policy};
use crate::nat::tcp::{Direction, Segment};
use crate::observe::Observe;
use crate::packet::Packet;
use crate::snapshot::{RuleMatch, Snapshot};
use crate::state::Kind;
use crate::tunnel::encapsulation::Template;
use crate::verdict::{DropReason, PortId, Verdict};

/// The differences between the translating roles.
pub(crate) trait Role: Sized {
    /// State that one frame leaves for the next, until the snapshot changes.
    type Last: Default;
    /// True if the role forwards like a router: each packet loses a hop, and has to fit.
    const ROUTES: bool;
    /// True if inward packets arrive in VXLAN.
    const TUNNELS: bool;
    /// True if inside tuples are shared by all ports.
    const SHARED: bool;
    /// True if TCP connections go on when their backend is no longer configured.
    const KEEPS_REMOVED: bool;
    /// True if the role has several backends to choose from.
    const CHOOSES: bool;
    /// The kind of this role's records in exported state.
    const RECORD: Kind;
    /// True if packets without a connection may belong to one at another node; see
    /// [`elsewhere`](Self::elsewhere).
    const PASSES_ON: bool;

    /// True if the role counts the traffic of each vm.
    const METERS: bool = false;

    /// Returns true if the traffic of the vm at a port with an address stays inside: it counts as the network's, and
    /// not as the Internet's.
    fn is_inside(_: &Snapshot<'_>, _: PortId, _: IpAddr) -> bool {
        false
    }

    /// Returns the direction of a frame's packet on the fast path; `None` if the frame takes the
    /// slow path.
    fn direction(
        snapshot: &Snapshot<'_>,
        frame: &Frame<'_>,
        last: &mut Self::Last,
    ) -> Option<Direction>;

    /// Finds the packet in a frame of the inward direction; `None` if the frame takes the slow
    /// path.
    fn inward(snapshot: &Snapshot<'_>, frame: &Frame<'_>, last: &mut Self::Last) -> Option<Origin>;

    /// Returns the port by which a packet of a connection with this zone leaves on the fast path;
    /// `None` if it takes the slow path.
    fn leaves_by(snapshot: &Snapshot<'_>, zone: PortId, direction: Direction) -> Option<PortId>;

    /// Stage 1: finds the source of a frame, and parses it.
    ///
    /// # Errors
    /// The verdict of a frame that concerns no connection.
    fn arrive<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        last: &mut Self::Last,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict>;

    /// Returns the connection that a packet begins.
    ///
    /// # Errors
    /// The verdict of a packet that begins no connection.
    fn open<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<Opened<A>, Verdict>;

    /// Finds the destination of a packet from outside that belongs to no connection at its vm.
    fn elsewhere<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &mut Frame<'_>,
        _: &Lane,
        _: &Asked<'_>,
        _: &mut impl Observe,
    ) -> Elsewhere {
        Elsewhere::Here
    }

    /// Returns true if no other vm can have a connection that was taken up and that its vm refuses. `lane` is that
    /// of the refusal.
    fn is_last_asked<A: Table>(_: &Snapshot<'_>, _: &Lane, _: &Connection<A>) -> bool {
        true
    }

    /// Decides about taking up the connection of a segment from outside that belongs to none and
    /// begins none.
    fn take_up<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &Frame<'_>,
        _: &Lane,
        _: &Segment,
        _rule: u32,
    ) -> TakeUp<A> {
        TakeUp::Not
    }

    /// Returns the number of the mux that a packet came through, or [`Policy::DIRECT`].
    fn via<'s, S: Deref<Target = Snapshot<'s>>>(
        _: &Pipeline<'_, S>,
        _: &Frame<'_>,
        _: &Lane,
    ) -> u8 {
        Policy::DIRECT
    }

    /// Returns the backend of a rule's new connection from outside, as an index among all backends.
    fn choose<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        lane: &Lane,
        rule: u32,
        seen: &mut impl Observe,
    ) -> Option<u32>;

    /// Decides about a packet from outside that matches no rule.
    fn not_ours(snapshot: &Snapshot<'_>, lane: &Lane, found: RuleMatch) -> Verdict;

    /// Returns true if a server's packet to a client, outside of all connections, leaves
    /// untranslated. `zone` is the zone of the client's packet.
    fn answers_directly(
        snapshot: &Snapshot<'_>,
        zone: PortId,
        client: IpAddr,
        server: IpAddr,
    ) -> bool;

    /// Decides about a packet that matches no connection, for the given reason.
    fn unmatched(snapshot: &Snapshot<'_>, lane: &Lane, reason: DropReason) -> Verdict;

    /// Decides about an untouched frame that matches no connection and would be passed.
    fn pass<'s, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &mut Frame<'_>,
        _: &Lane,
        _: &mut impl Observe,
    ) -> Verdict {
        Verdict::Pass
    }

    /// Decides about a frame that no connection has, and that is to leave by a port: an untouched one for a vm, or
    /// an answer.
    fn deliver<'s, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &mut Frame<'_>,
        _: &Lane,
        port: PortId,
        _: &mut impl Observe,
    ) -> Verdict {
        Verdict::Forward(port)
    }

    /// Decides whether a connection may begin.
    ///
    /// # Errors
    /// The verdict of its first packet if it may not.
    fn admit<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &Lane,
        _: &Connection<A>,
        _: &mut impl Observe,
    ) -> Result<(), Verdict> {
        Ok(())
    }

    /// Gives a packet back the address that it arrived with, before it is refused, and returns its
    /// lane.
    fn as_arrived<'s, S: Deref<Target = Snapshot<'s>>>(
        _: &Pipeline<'_, S>,
        _: &mut Frame<'_>,
        lane: &Lane,
    ) -> Lane {
        *lane
    }

    /// Returns true if a packet is judged by its ports, or translated by itself if no connection has it, so that later
    /// fragments need their first one even if no connection has them.
    fn judges(_: &Snapshot<'_>, _: &Lane) -> bool {
        false
    }

    /// Decides about neighbour discovery.
    fn neighbour_discovery(snapshot: &Snapshot<'_>, lane: &Lane) -> Verdict;

    /// Forwards a packet without a connection from a vm to a private VIP of its network; returns
    /// `None` for any other packet.
    fn call<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &mut Frame<'_>,
        _: &Lane,
        _: Option<&Segment>,
        _: &mut impl Observe,
    ) -> Option<Verdict> {
        None
    }

    /// Returns the outer header towards the mux or host through which a connection's packets leave,
    /// if any.
    fn tunnel<'a, A: Table>(
        snapshot: &'a Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
    ) -> Option<&'a Template>;

    /// Returns true if a connection's packet stays on this node: both ends are vms of the node.
    fn stays<A: Table>(_: &Snapshot<'_>, _: &Connection<A>, _: Direction) -> bool {
        false
    }

    /// Prepares a translated packet of a connection for departure, and returns its port.
    /// `opened_by` is the place of the link header that the connection was opened with, if the role
    /// keeps it.
    fn leave<A: Table>(
        snapshot: &Snapshot<'_>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        packet: &Packet,
        connection: (&Connection<A>, Option<&Link>),
        tunnel: Option<&Template>,
    ) -> Result<PortId, Verdict>;

    /// Sets the destination MAC address of a translated packet to the next hop of its connection's
    /// end, unless link headers stay. `opened_by` is the link header that the connection was opened
    /// with.
    #[inline]
    fn readdress(_: &Snapshot<'_>, _: &mut Frame<'_>, _: Direction, _: u16, _: Option<&Link>) {}

    /// Returns the port and the link header for a generated packet to a connection's end.
    fn way_to<A: Table>(
        snapshot: &Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
        opened_by: Option<Link>,
    ) -> Option<(PortId, Link)>;
}
