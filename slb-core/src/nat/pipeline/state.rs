//! Export and import of connections as records.

use core::net::IpAddr;
use core::ops::Deref;

use super::establish::note_peer;
use super::sweep::note_imported;
use super::{Pipeline, Role, Table};
use crate::link::Link;
use crate::nat::ages;
use crate::nat::connection::{Connection, Policy, Saved, Side, Span, TICK_SHIFT};
use crate::nat::ports;
use crate::nat::rule_id::ShortRuleId;
use crate::nat::table::Refused;
use crate::nat::tcp::Numbers;
use crate::nat::{ConnectionState, Direction};
use crate::snapshot::Snapshot;
use crate::snapshot::locals::UNNUMBERED;
use crate::state::{
    Age, Cursor, EXPORT_STEP, Exported, Imported, Kind, RECORD_MOST, Reader, Records, Refusal,
    StateError, Writer, expect, family_of,
};
use crate::steer::Share;
use crate::time::Instant;
use crate::verdict::PortId;
use crate::wire::ethernet::MacAddress;
use crate::wire::protocol;
use crate::wire::vxlan::Vni;

const OPENED_OUTWARD: u8 = 1;
const RESETS: u8 = 2;
const CONTESTED: u8 = 4;
const LATER_SYN: u8 = 8;
const SUPERSEDED: u8 = 16;
const UNANSWERED: u8 = 32;
const ANSWERED: u8 = 64;
const MARKS: u8 = 0x7f;

/// A window bound that accepts every number.
const WIDEST: u8 = 0xf0;
/// The scale of a later SYN without one, or of no later SYN.
const NO_SCALE: u8 = 15;

/// The number of connections whose index lines are prefetched before the first one is inserted:
/// memory serves several requests in the time of one.
const AHEAD: usize = 8;

/// A connection's record as read, before it is matched with the configuration.
struct Record<A> {
    marks: u8,
    state: ConnectionState,
    protocol: u8,
    idle: u16,
    remaining: u16,
    backend: u64,
    rule: u64,
    numbers: Numbers,
    /// The vm's MAC address, or the number of the frontend port.
    port: [u8; 6],
    network: u32,
    /// The address of the mux, or the link header.
    way: [u8; 16],
    outside: Side<A>,
    inside: Side<A>,
}

/// The connection of a record, ready to be inserted.
struct Ready<A> {
    connection: Connection<A>,
    /// The marks of the record.
    marks: u8,
    /// The link header, of a proxy.
    way: [u8; 16],
}

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Writes records of all connections, or of those in one zone.
    #[cold]
    pub(crate) fn export<R: Role>(
        &self,
        zone: Option<PortId>,
        from: Cursor,
        into: &mut [u8],
    ) -> Exported {
        match from.place() {
            place @ (false, _) => self.export_family::<u64, R>(zone, place, into),
            place @ (true, _) => self.export_family::<[u64; 4], R>(zone, place, into),
        }
    }

    fn export_family<A: Table, R: Role>(
        &self,
        zone: Option<PortId>,
        (is_ipv6, first): (bool, usize),
        into: &mut [u8],
    ) -> Exported {
        let table = A::table_of(&self.tables.connections);
        let end = table.used() as usize;
        let (mut len, mut records, mut place) = (0, 0, first);
        while place < end.min(first.saturating_add(EXPORT_STEP)) {
            let room = into.get_mut(len..).unwrap_or_default();
            if room.len() < RECORD_MOST {
                break;
            }
            if let Some(connection) = table.at(place as u32)
                && zone.is_none_or(|zone| connection.zone() == zone)
                && let Some(written) = self.write::<A, R>(place as u32, connection, room)
            {
                len += written;
                records += 1;
            }
            place += 1;
        }
        Exported {
            len,
            records,
            next: Cursor::after(is_ipv6, place, end),
        }
    }

    /// Writes a connection's record; `None` if its vm is gone.
    fn write<A: Table, R: Role>(
        &self,
        number: u32,
        connection: &Connection<A>,
        into: &mut [u8],
    ) -> Option<usize> {
        let snapshot = &*self.snapshot;
        let table = A::table_of(&self.tables.connections);
        let saved = connection.save(table.now());
        let (port, network, way) = match R::RECORD {
            Kind::ProxyConnection => {
                let links = A::links_of(&self.tables.links);
                let link = links.get(number as usize).copied().unwrap_or(Link::NONE);
                let [high, low] = saved.zone.0.to_be_bytes();
                ([0, 0, 0, 0, high, low], 0, link.to_bytes())
            }
            _ => {
                let vm = snapshot.nat.vm_by_port(saved.zone)?;
                let mux = connection
                    .via()
                    .and_then(|mux| snapshot.nat.mux_address(mux));
                (vm.mac.0, vm.vni.get(), bytes_of(mux.unwrap_or_default()))
            }
        };
        let list = match table.list_of(number) {
            Some(ages::Kind::Unanswered) => UNANSWERED,
            Some(ages::Kind::Answered) => ANSWERED,
            None => 0,
        };
        let mut marks = list;
        for (is_set, mark) in [
            (saved.policy.opener == Direction::Outward, OPENED_OUTWARD),
            (saved.policy.reset, RESETS),
            (saved.is_contested, CONTESTED),
            (saved.numbers.later.is_some(), LATER_SYN),
            (table.is_superseded(number), SUPERSEDED),
        ] {
            marks |= if is_set { mark } else { 0 };
        }
        let numbers = &saved.numbers;
        let (later, scale) = numbers.later.unwrap_or(([0; 3], NO_SCALE));
        let backend = snapshot.nat.identity_of(saved.policy.server);
        let rule = snapshot.short_rule_identity(saved.policy.rule);
        let mut record = Writer::new(into, R::RECORD);
        record.put(&[family_of::<A>(), saved.protocol, saved.state as u8, marks]);
        record.put(&saved.policy.idle.0.to_be_bytes());
        record.put(&saved.remaining.to_be_bytes());
        record.put(&backend.unwrap_or(0).to_be_bytes());
        record.put(&rule.unwrap_or(0).to_be_bytes());
        for number in numbers.sent.into_iter().chain(numbers.acknowledged) {
            record.put(&number.to_be_bytes());
        }
        record.put(&numbers.windows);
        record.put(&later);
        record.put(&[scale]);
        record.put(&port);
        record.put(&network.to_be_bytes());
        record.put(&way);
        record.put(&saved.outside.ports.to_le_bytes());
        record.put(&saved.inside.ports.to_le_bytes());
        record.put_addresses(saved.outside.addresses);
        record.put_addresses(saved.inside.addresses);
        Some(record.end())
    }

    #[cold]
    pub(crate) fn import<R: Role>(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
        share: Option<Share<'_>>,
    ) -> Result<Imported, StateError> {
        let mut records = Records::read(records)?;
        self.set_clock(now);
        let mut imported = Imported::default();
        while let Some((kind, version, body)) = records.peek() {
            match (expect(R::RECORD, (kind, version)), body) {
                (Ok(()), [4, ..]) => {
                    self.import_some::<u64, R>(&mut records, (age, share), &mut imported);
                    continue;
                }
                (Ok(()), [6, ..]) => {
                    self.import_some::<[u64; 4], R>(&mut records, (age, share), &mut imported);
                    continue;
                }
                (Ok(()), _) => imported.note_some(unreadable(share, Refusal::Malformed)),
                (Err(why), _) => imported.note_some(unreadable(share, why)),
            }
            records.next();
        }
        Ok(imported)
    }

    /// Takes over consecutive records of a family, up to [`AHEAD`].
    fn import_some<A: Table, R: Role>(
        &mut self,
        records: &mut Records<'_>,
        (age, share): (Age, Option<Share<'_>>),
        imported: &mut Imported,
    ) {
        let mut some = [const { None }; AHEAD];
        for place in &mut some {
            match records.peek() {
                Some((kind, version, [family, body @ ..]))
                    if *family == family_of::<A>()
                        && expect(R::RECORD, (kind, version)).is_ok() =>
                {
                    match self.prepare::<A, R>(Reader(body), age, share) {
                        Some(Ok(ready)) => *place = Some(ready),
                        Some(Err(why)) => imported.note(Err(why)),
                        None => {}
                    }
                }
                _ => break,
            }
            records.next();
        }
        for ready in some.into_iter().flatten() {
            imported.note(self.take_over::<A, R>(&ready));
        }
    }

    /// Makes the connection of a record, and prefetches its index lines; returns `None` if another
    /// worker takes it over.
    fn prepare<A: Table, R: Role>(
        &self,
        body: Reader<'_>,
        age: Age,
        share: Option<Share<'_>>,
    ) -> Option<Result<Ready<A>, Refusal>> {
        let record = match read::<A>(body) {
            Ok(record) => record,
            Err(why) => return unreadable(share, why),
        };
        let (remote, _) = record.outside.addresses.unpack();
        if share.is_some_and(|share| !share.has(&self.snapshot, remote)) {
            return None;
        }
        let ready = self.connection_of::<A, R>(record, age);
        if let Ok(ready) = &ready {
            let table = A::table_of(&self.tables.connections);
            for way in [Direction::Inward, Direction::Outward] {
                table.prefetch(table.hash(&ready.connection.key(way)));
            }
        }
        Some(ready)
    }

    /// Returns the connection of a record under the present configuration.
    fn connection_of<A: Table, R: Role>(
        &self,
        mut record: Record<A>,
        age: Age,
    ) -> Result<Ready<A>, Refusal> {
        if age.is_stale && record.protocol == protocol::TCP {
            if record.state == ConnectionState::SynSent {
                return Err(Refusal::Unfinished);
            }
            // The next numbers of both ends are accepted, however far they have advanced.
            record.numbers.windows = record.numbers.windows.map(|window| window | WIDEST);
        }
        let elapsed = age.elapsed.as_nanos() >> TICK_SHIFT;
        let elapsed = u32::try_from(elapsed).unwrap_or(u32::MAX);
        let saved = self.place::<A, R>(&record)?;
        let now = A::table_of(&self.tables.connections).now();
        let mut connection = Connection::restore(&saved, now, elapsed).ok_or(Refusal::Expired)?;
        note_peer::<A, R>(&self.snapshot, &mut connection);
        Ok(Ready {
            connection,
            marks: record.marks,
            way: record.way,
        })
    }

    /// Inserts a connection into the table.
    fn take_over<A: Table, R: Role>(&mut self, ready: &Ready<A>) -> Result<(), Refusal> {
        let Ready {
            connection,
            marks,
            way,
        } = ready;
        let is_superseded = marks & SUPERSEDED != 0;
        if connection.opener() == Direction::Outward {
            let nat = &self.snapshot.nat;
            let local = nat.local(connection.server());
            let given = local.and_then(|local| {
                ports::given_to_local(&self.tables.snat_ports, nat, local, connection)
            });
            given.ok_or(Refusal::PortTaken)?;
        }
        for way in [Direction::Inward, Direction::Outward] {
            let table = A::table(&mut self.tables.connections);
            if is_superseded && way == Direction::Inward {
                continue;
            }
            if let Some(old) = table.leftover(&connection.key(way)) {
                self.end::<A>(old);
            }
        }
        let list = match marks & (UNANSWERED | ANSWERED) {
            0 => None,
            UNANSWERED => Some(ages::Kind::Unanswered),
            _ => Some(ages::Kind::Answered),
        };
        let table = A::table(&mut self.tables.connections);
        let restored = table.restore(*connection, list, is_superseded);
        let number = restored.map_err(|refused| match refused {
            Refused::Full => Refusal::TableFull,
            Refused::Taken => Refusal::TupleTaken,
        })?;
        note_imported(&self.snapshot, connection, &mut self.tables);
        if R::RECORD == Kind::ProxyConnection
            && let Some(place) = A::links(&mut self.tables.links).get_mut(number as usize)
        {
            *place = Link::from_bytes(*way);
        }
        Ok(())
    }

    /// Looks up the items that a record names in the present configuration.
    fn place<A: Table, R: Role>(&self, record: &Record<A>) -> Result<Saved<A>, Refusal> {
        let snapshot = &*self.snapshot;
        let local = snapshot.nat.local_by_identity(record.backend);
        let opener = match record.marks & OPENED_OUTWARD {
            0 => Direction::Inward,
            _ => Direction::Outward,
        };
        let (server, peer) = record.inside.addresses.split();
        let (remote, front) = record.outside.addresses.split();
        // The server is the record's backend, with its own address or the frontend's.
        let is_at = |address: IpAddr| A::from_ip(address) == Some(server) || server == front;
        if local.is_some_and(|local| !is_at(local.address)) {
            return Err(Refusal::Malformed);
        }
        let is_superseded = record.marks & SUPERSEDED != 0;
        if is_superseded && (!R::CHOOSES || record.state != ConnectionState::Closed) {
            return Err(Refusal::Malformed);
        }
        let (zone, server, via) = match R::RECORD {
            Kind::ProxyConnection => {
                // Without its backend, a connection goes on if it is TCP, or if late answers only
                // have to be translated.
                let goes_on = record.protocol == protocol::TCP || is_superseded;
                let server = match local {
                    Some(local) => local.id,
                    None if R::KEEPS_REMOVED && goes_on => UNNUMBERED,
                    None => return Err(Refusal::UnknownBackend),
                };
                let [_, _, _, _, high, low] = record.port;
                let zone = PortId(u16::from_be_bytes([high, low]));
                let proxy = snapshot.nat.proxy.as_ref();
                if !proxy.is_some_and(|ports| ports.is_frontend(zone)) {
                    return Err(Refusal::UnknownPort);
                }
                if opener == Direction::Outward {
                    return Err(Refusal::Malformed);
                }
                (zone, server, Policy::DIRECT)
            }
            _ => {
                let local = local.ok_or(Refusal::UnknownBackend)?;
                let network = Vni::new(record.network).ok_or(Refusal::Malformed)?;
                let vm = snapshot.nat.vm_by_mac(MacAddress(record.port), network);
                let vm = vm.ok_or(Refusal::UnknownPort)?;
                if !snapshot.nat.locals_of(vm).any(|one| one.id == local.id) {
                    return Err(Refusal::UnknownPort);
                }
                let mux = words_of(record.way);
                let via = match mux {
                    [0, 0] => None,
                    address => snapshot.nat.mux_at(address),
                };
                let via = via.and_then(|mux| u8::try_from(mux).ok());
                let (_, vip) = record.outside.addresses.unpack();
                let via = match opener == Direction::Inward && snapshot.is_private_at(vip, vm.port)
                {
                    true => Policy::NETWORK,
                    false => via.unwrap_or(Policy::DIRECT),
                };
                (vm.port, local.id, via)
            }
        };
        let is_to_remote = peer == remote
            && record.inside.ports >> 16 == record.outside.ports & 0xffff
            && server != UNNUMBERED;
        if opener == Direction::Outward && !is_to_remote {
            return Err(Refusal::Malformed);
        }
        let rule = snapshot.rule_of_identity(record.rule);
        Ok(Saved {
            outside: record.outside,
            inside: record.inside,
            protocol: record.protocol,
            zone,
            policy: Policy {
                idle: Span(record.idle),
                rule: rule.unwrap_or(ShortRuleId::NONE),
                server,
                via,
                reset: record.marks & RESETS != 0,
                opener,
                shared: R::SHARED,
            },
            state: record.state,
            numbers: record.numbers,
            is_contested: record.marks & CONTESTED != 0,
            remaining: record.remaining,
        })
    }
}

/// Refuses an unreadable record at the first worker only, which counts it for all workers.
fn unreadable<T>(share: Option<Share<'_>>, why: Refusal) -> Option<Result<T, Refusal>> {
    share
        .is_none_or(|share| share.worker == 0)
        .then_some(Err(why))
}

/// Reads a connection's record after its family.
fn read<A: Table>(mut body: Reader<'_>) -> Result<Record<A>, Refusal> {
    let [protocol, state, marks] = body.take()?;
    let (idle, remaining) = (body.u16()?, body.u16()?);
    let (backend, rule) = (body.u64()?, body.u64()?);
    let sent = [body.u32()?, body.u32()?];
    let acknowledged = [body.u32()?, body.u32()?];
    let windows = body.take()?;
    let later = body.take()?;
    let [scale] = body.take()?;
    let (port, network, way) = (body.take()?, body.u32()?, body.take()?);
    let mut ports = || body.take().map(u32::from_le_bytes);
    let (outside_ports, inside_ports) = (ports()?, ports()?);
    let (outside, inside) = (body.addresses()?, body.addresses()?);
    body.end()?;
    let is_tcp = protocol == protocol::TCP;
    let place = usize::from(state).wrapping_sub(1);
    let state = *ConnectionState::ALL.get(place).ok_or(Refusal::Malformed)?;
    let has_state = match state {
        ConnectionState::SynSent | ConnectionState::SynReceived | ConnectionState::Established => {
            true
        }
        // Protocols without a handshake have one final state.
        ConnectionState::Closed => is_tcp || marks & SUPERSEDED != 0,
        _ => is_tcp,
    };
    // Only unestablished and finished connections may be forgotten.
    let is_lasting = !state.is_handshake() && !state.is_over();
    let lists = marks & (UNANSWERED | ANSWERED);
    if !has_state
        || marks & !MARKS != 0
        || lists == UNANSWERED | ANSWERED
        || is_lasting && lists != 0
        || scale > NO_SCALE
    {
        return Err(Refusal::Malformed);
    }
    Ok(Record {
        marks,
        state,
        protocol,
        idle,
        remaining,
        backend,
        rule,
        numbers: Numbers {
            sent,
            acknowledged,
            windows,
            later: (marks & LATER_SYN != 0).then_some((later, scale)),
        },
        port,
        network,
        way,
        outside: Side {
            addresses: outside,
            ports: outside_ports,
        },
        inside: Side {
            addresses: inside,
            ports: inside_ports,
        },
    })
}

/// Returns the 16 bytes of an address of either family, from its two words.
fn bytes_of([low, high]: [u64; 2]) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

fn words_of(bytes: [u8; 16]) -> [u64; 2] {
    let bits = u128::from_le_bytes(bytes);
    [bits as u64, (bits >> 64) as u64]
}
