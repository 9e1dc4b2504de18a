//! Iteration over connections, for reports.

use core::ops::Deref;

use super::{Pipeline, Role, Table};
use crate::list::{Entry, EntryState, Filter, Like, Listed};
use crate::nat::Direction;
use crate::nat::connection::{Connection, Span};
use crate::snapshot::Snapshot;
use crate::state::Cursor;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    #[cold]
    pub(crate) fn list<R: Role>(
        &self,
        from: Cursor,
        most: usize,
        filter: &Filter<'_>,
        each: &mut dyn FnMut(Cursor, &Entry) -> bool,
    ) -> Listed {
        let (is_ipv6, first) = from.place();
        match is_ipv6 {
            false => self.list_family::<u64, R>((is_ipv6, first, most), filter, each),
            true => self.list_family::<[u64; 4], R>((is_ipv6, first, most), filter, each),
        }
    }

    fn list_family<A: Table, R: Role>(
        &self,
        (is_ipv6, first, most): (bool, usize, usize),
        filter: &Filter<'_>,
        each: &mut dyn FnMut(Cursor, &Entry) -> bool,
    ) -> Listed {
        let table = A::table_of(&self.tables.connections);
        let end = table.used() as usize;
        let likes = Like::<A>::of(&filter.outside).zip(Like::<A>::of(&filter.inside));
        let Some((outside, inside)) = likes else {
            return Listed {
                places: 0,
                next: Cursor::after(is_ipv6, end, end),
            };
        };
        let last = end.min(first.saturating_add(most));
        for place in first..last {
            let Some(connection) = table.at(place as u32) else {
                continue;
            };
            let is_like = |like: &Like<A>, way| {
                let side = connection.side(way);
                like.is_like(side.addresses, side.ports)
            };
            if !is_like(&outside, Direction::Inward) || !is_like(&inside, Direction::Outward) {
                continue;
            }
            let entry = self.entry::<A>(connection);
            let cursor = Cursor::after(is_ipv6, place, end).unwrap_or(Cursor::START);
            if filter.takes(&entry) && !each(cursor, &entry) {
                return Listed {
                    places: place + 1 - first,
                    next: Cursor::after(is_ipv6, place + 1, end),
                };
            }
        }
        Listed {
            places: last.saturating_sub(first),
            next: Cursor::after(is_ipv6, last, end),
        }
    }

    fn entry<A: Table>(&self, connection: &Connection<A>) -> Entry {
        let (snapshot, now) = (&*self.snapshot, A::table_of(&self.tables.connections).now());
        let view = connection.view();
        let left = connection.deadline.wrapping_sub(now);
        Entry {
            outside: view.outside,
            inside: Some(view.inside),
            opener: connection.opener(),
            state: EntryState::Connection(view.state),
            backend: snapshot.nat.identity_of(connection.server()),
            rule: snapshot.short_rule_identity(connection.rule()),
            port: Some(connection.zone()),
            timeout: Some(connection.lifetime().duration()),
            left: Span(u16::try_from(left).unwrap_or(u16::MAX)).duration(),
        }
    }
}
