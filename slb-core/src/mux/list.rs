//! Iteration over pinned flows, for reports.

use core::ops::Deref;
use core::time::Duration;

use super::Pipeline;
use super::pin::timeout_of;
use crate::flow::{Addresses, FlowProtocol, TICK_SHIFT, Table, Ticks};
use crate::list::{Ends, Entry, EntryState, Filter, Like, Listed};
use crate::nat::Direction;
use crate::packet::Tuple;
use crate::snapshot::{BackendId, Snapshot};
use crate::state::Cursor;
use crate::wire::protocol;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    #[cold]
    pub(super) fn list(
        &self,
        from: Cursor,
        most: usize,
        filter: &Filter<'_>,
        each: &mut dyn FnMut(Cursor, &Entry) -> bool,
    ) -> Listed {
        let Some(flows) = &self.tables.flows else {
            return Listed {
                places: 0,
                next: None,
            };
        };
        let (is_ipv6, first) = from.place();
        let snapshot = &*self.snapshot;
        match is_ipv6 {
            false => list(snapshot, &flows.ipv4, (is_ipv6, first, most), filter, each),
            true => list(snapshot, &flows.ipv6, (is_ipv6, first, most), filter, each),
        }
    }
}

fn list<A: Addresses>(
    snapshot: &Snapshot<'_>,
    table: &Table<'_, A>,
    (is_ipv6, first, most): (bool, usize, usize),
    filter: &Filter<'_>,
    each: &mut dyn FnMut(Cursor, &Entry) -> bool,
) -> Listed {
    let end = table.places();
    let like = Like::<A>::of(&filter.outside).filter(|_| filter.inside == Ends::default());
    let Some(like) = like else {
        return Listed {
            places: 0,
            next: Cursor::after(is_ipv6, end, end),
        };
    };
    let last = end.min(first.saturating_add(most));
    let mut place = first;
    while let Some(next) = table.next_like(place, last, &like) {
        place = next + 1;
        let Some(entry) = entry(snapshot, table, next) else {
            continue;
        };
        let cursor = Cursor::after(is_ipv6, next, end).unwrap_or(Cursor::START);
        if filter.takes(&entry) && !each(cursor, &entry) {
            return Listed {
                places: place - first,
                next: Cursor::after(is_ipv6, place, end),
            };
        }
    }
    Listed {
        places: last.saturating_sub(first),
        next: Cursor::after(is_ipv6, last, end),
    }
}

fn entry<A: Addresses>(
    snapshot: &Snapshot<'_>,
    table: &Table<'_, A>,
    place: usize,
) -> Option<Entry> {
    let (key, value, state, left) = table.at(place)?;
    let (source, destination) = key.addresses.unpack();
    let [a, b, c, d] = key.ports.to_le_bytes();
    let (source_port, destination_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let (protocol, source_port, destination_port) = match key.protocol {
        FlowProtocol::Tcp => (protocol::TCP, source_port, destination_port),
        FlowProtocol::Udp => (protocol::UDP, source_port, destination_port),
        FlowProtocol::Other => (key.ports as u8, 0, 0),
    };
    let outside = Tuple {
        source,
        destination,
        source_port,
        destination_port,
        protocol,
    };
    let rule = snapshot.rule_of(&outside);
    let rule = rule.and_then(|rule| snapshot.rule(rule));
    let timeout = rule.and_then(|rule| timeout_of(state, rule.idle_timeout, left));
    Some(Entry {
        outside,
        inside: None,
        opener: Direction::Inward,
        state: EntryState::Flow(state),
        backend: snapshot.backend_identity(BackendId::from_value(value)),
        rule: rule.and_then(|rule| snapshot.rule_identity(rule.slot())),
        port: None,
        timeout: timeout.map(duration),
        left: duration(left),
    })
}

fn duration(ticks: Ticks) -> Duration {
    Duration::from_nanos(u64::from(ticks.0) << TICK_SHIFT)
}
