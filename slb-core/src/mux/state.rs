//! Export and import of pinned flows as records.

use core::ops::Deref;

use super::Pipeline;
use crate::flow::table::Inserted;
use crate::flow::{Addresses, FlowKey, FlowProtocol, FlowState, Table, Ticks};
use crate::nat::connection::TICK_SHIFT;
use crate::snapshot::{BackendId, Snapshot};
use crate::state::{
    Age, Cursor, EXPORT_STEP, Exported, Imported, Kind, RECORD_MOST, Reader, Records, Refusal,
    StateError, Writer, expect, family_of,
};
use crate::time::Instant;
use crate::wire::protocol;

/// The units of a record in a tick of the table.
const UNITS: u16 = 1 << (crate::flow::TICK_SHIFT - TICK_SHIFT);

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    #[cold]
    pub(super) fn export(&self, from: Cursor, into: &mut [u8]) -> Exported {
        let Some(flows) = &self.tables.flows else {
            return Exported {
                len: 0,
                records: 0,
                next: None,
            };
        };
        let (is_ipv6, place) = from.place();
        match is_ipv6 {
            false => export(&self.snapshot, &flows.ipv4, (is_ipv6, place), into),
            true => export(&self.snapshot, &flows.ipv6, (is_ipv6, place), into),
        }
    }

    #[cold]
    pub(super) fn import(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
    ) -> Result<Imported, StateError> {
        let records = Records::read(records)?;
        self.advance(now);
        let units = u16::try_from(age.elapsed.as_nanos() >> TICK_SHIFT).unwrap_or(u16::MAX);
        let mut imported = Imported::default();
        for (kind, version, body) in records {
            let outcome = expect(Kind::Flow, (kind, version)).and_then(|()| {
                let flows = self.tables.flows.as_mut().ok_or(Refusal::TableFull)?;
                match body {
                    [4, rest @ ..] => {
                        take_over(&self.snapshot, &mut flows.ipv4, Reader(rest), units)
                    }
                    [6, rest @ ..] => {
                        take_over(&self.snapshot, &mut flows.ipv6, Reader(rest), units)
                    }
                    _ => Err(Refusal::Malformed),
                }
            });
            imported.note(outcome);
        }
        Ok(imported)
    }
}

fn export<A: Addresses>(
    snapshot: &Snapshot<'_>,
    table: &Table<'_, A>,
    (is_ipv6, first): (bool, usize),
    into: &mut [u8],
) -> Exported {
    let end = table.places();
    let (mut len, mut records, mut place) = (0, 0, first);
    while place < end.min(first.saturating_add(EXPORT_STEP)) {
        let room = into.get_mut(len..).unwrap_or_default();
        if room.len() < RECORD_MOST {
            break;
        }
        if let Some((key, value, state, left)) = table.at(place)
            && let Some(backend) = snapshot.backend_identity(BackendId::from_value(value))
        {
            let (number, ports) = match key.protocol {
                FlowProtocol::Tcp => (protocol::TCP, key.ports),
                FlowProtocol::Udp => (protocol::UDP, key.ports),
                FlowProtocol::Other => (key.ports as u8, 0),
            };
            let mut record = Writer::new(room, Kind::Flow);
            record.put(&[family_of::<A>(), number, state as u8, 0]);
            record.put(&left.0.saturating_mul(UNITS).to_be_bytes());
            record.put(&[0; 2]);
            record.put(&backend.to_be_bytes());
            record.put(&ports.to_le_bytes());
            record.put_addresses(key.addresses);
            len += record.end();
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

/// Pins the flow of a record.
fn take_over<A: Addresses>(
    snapshot: &Snapshot<'_>,
    table: &mut Table<'_, A>,
    mut body: Reader<'_>,
    elapsed: u16,
) -> Result<(), Refusal> {
    let [number, state, _] = body.take()?;
    let (left, _) = (body.u16()?, body.u16()?);
    let backend = body.u64()?;
    let ports = body.take().map(u32::from_le_bytes)?;
    let addresses = body.addresses()?;
    body.end()?;
    let state = match state {
        1 => FlowState::HalfOpen,
        2 => FlowState::Established,
        3 => FlowState::Closing,
        _ => return Err(Refusal::Malformed),
    };
    let id = snapshot
        .backend_by_identity(backend)
        .ok_or(Refusal::UnknownBackend)?;
    let left = left.checked_sub(elapsed).ok_or(Refusal::Expired)?;
    let key = FlowKey::new(addresses, ports, number);
    if table.find(&key).is_some() {
        return Err(Refusal::TupleTaken);
    }
    let timeout = Ticks(left.div_ceil(UNITS)).min(Ticks::MAX);
    match table.restore(&key, id.get(), state, timeout) {
        Inserted::Refused => Err(Refusal::TableFull),
        Inserted::Pinned | Inserted::Evicted => Ok(()),
    }
}
