//! The differences between the roles that translate.

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

/// The differences between the roles that translate.
pub(crate) trait Role: Sized {
    /// State that one frame leaves for the next, until the snapshot changes.
    type Last: Default;
    /// Packets go on as through a router: each loses a hop, and has to fit.
    const ROUTES: bool;
    /// Inward packets arrive in VXLAN.
    const TUNNELS: bool;
    /// Names on the inside are those of all ports.
    const SHARED: bool;
    /// TCP connections go on when their backend is no longer configured.
    const KEEPS_REMOVED: bool;
    /// True if the role has several backends to choose from.
    const CHOOSES: bool;
    /// The kind of this role's records in exported state.
    const RECORD: Kind;
    /// Packets of none of its connections may be of one at another node: see
    /// [`elsewhere`](Self::elsewhere).
    const PASSES_ON: bool;

    /// Returns which way a frame's packet goes on the fast path; `None` if the frame takes the
    /// slow path.
    fn direction(
        snapshot: &Snapshot<'_>,
        frame: &Frame<'_>,
        last: &mut Self::Last,
    ) -> Option<Direction>;

    /// Finds the packet in a frame of the inward direction; `None` if the frame takes the slow
    /// path.
    fn inward(snapshot: &Snapshot<'_>, frame: &Frame<'_>, last: &mut Self::Last) -> Option<Origin>;

    /// The port that a packet leaves by on the fast path, of a connection with this zone; `None`
    /// where it takes the slow path.
    fn leaves_by(snapshot: &Snapshot<'_>, zone: PortId, direction: Direction) -> Option<PortId>;

    /// Finds where a frame comes from, and reads it: stage 1.
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

    /// The connection that a packet begins.
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

    /// Finds out where a packet from outside goes on that is of no connection at its vm.
    fn elsewhere<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &mut Frame<'_>,
        _: &Lane,
        _: &Asked<'_>,
        _: &mut impl Observe,
    ) -> Elsewhere {
        Elsewhere::Here
    }

    /// The connection of a segment from outside that is of none, and begins none.
    fn take_up<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &Frame<'_>,
        _: &Lane,
        _: &Segment,
        _rule: u32,
    ) -> TakeUp<A> {
        TakeUp::Not
    }

    /// The number of the mux that a packet came by, or [`Policy::DIRECT`].
    fn via<'s, S: Deref<Target = Snapshot<'s>>>(
        _: &Pipeline<'_, S>,
        _: &Frame<'_>,
        _: &Lane,
    ) -> u8 {
        Policy::DIRECT
    }

    /// The backend that a new connection from outside goes to under a rule: its place among all.
    fn choose<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        lane: &Lane,
        rule: u32,
        seen: &mut impl Observe,
    ) -> Option<u32>;

    /// Decides about a packet from outside that no rule takes.
    fn not_ours(snapshot: &Snapshot<'_>, lane: &Lane, found: RuleMatch) -> Verdict;

    /// Returns true if a server's packet to a client, outside of all connections, leaves
    /// untranslated. `zone` is that of the client's packet.
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

    /// Decides about neighbour discovery.
    fn neighbour_discovery(snapshot: &Snapshot<'_>, lane: &Lane) -> Verdict;

    /// Sends a packet on that is of no connection, from a vm to a private VIP of its network; `None` for any
    /// other packet.
    fn call<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &mut Frame<'_>,
        _: &Lane,
        _: Option<&Segment>,
        _: &mut impl Observe,
    ) -> Option<Verdict> {
        None
    }

    /// The outer header towards the mux or the host that a connection's packets leave through, if they do.
    fn tunnel<'a, A: Table>(
        snapshot: &'a Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
    ) -> Option<&'a Template>;

    /// Returns true if a connection's packet stays on this node: both its ends are vms of it.
    fn stays<A: Table>(_: &Snapshot<'_>, _: &Connection<A>, _: Direction) -> bool {
        false
    }

    /// Makes a translated packet of a connection ready to leave; returns by which port. `opened_by` is the
    /// place of the link header that the connection was opened with, where the role keeps it.
    fn leave<A: Table>(
        snapshot: &Snapshot<'_>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        packet: &Packet,
        connection: (&Connection<A>, Option<&Link>),
        tunnel: Option<&Template>,
    ) -> Result<PortId, Verdict>;

    /// Sets the next hop of a translated packet to that of its connection's end, if link headers do
    /// not stay. `opened_by` is the link header that the connection was opened with.
    #[inline]
    fn readdress(_: &Snapshot<'_>, _: &mut Frame<'_>, _: Direction, _: u16, _: Option<&Link>) {}

    /// Returns the port and the link header for a packet to a connection's end that the role makes.
    fn way_to<A: Table>(
        snapshot: &Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
        opened_by: Option<Link>,
    ) -> Option<(PortId, Link)>;
}
