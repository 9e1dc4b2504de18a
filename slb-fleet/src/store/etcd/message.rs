//! The few messages of etcd's API that are used, in protobuf's encoding.
//!
//! Source: the encoding at <https://protobuf.dev/programming-guides/encoding/>; field numbers from etcd's
//! `api/etcdserverpb/rpc.proto` and `api/mvccpb/kv.proto`.

use super::super::{Condition, Entry, Event, Operation, Revision, StoreError};

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// A message that is being written. Fields with their default value are left out, as protobuf does.
#[derive(Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int(mut self, field: u64, value: i64) -> Self {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value as u64); // negative ones take ten bytes
        }
        self
    }

    fn always(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn bytes(self, field: u64, bytes: &[u8]) -> Self {
        match bytes {
            [] => self,
            bytes => self.always(field, bytes),
        }
    }

    fn message(self, field: u64, message: &Self) -> Self {
        self.always(field, &message.0)
    }
}

/// A field that was read.
enum Value<'b> {
    Int(i64),
    Bytes(&'b [u8]),
    /// A field of fixed length, which no message in use has.
    Other,
}

/// The fields of a message, in their order.
struct Fields<'b>(&'b [u8]);

const CUT: StoreError = StoreError::Malformed("a message ends within a field");

impl<'b> Fields<'b> {
    fn varint(&mut self) -> Result<u64, StoreError> {
        let mut value = 0u64;
        for place in 0..10 {
            let (&byte, rest) = self.0.split_first().ok_or(CUT)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(StoreError::Malformed("a number has more than 64 bits"))
    }

    fn take(&mut self, len: usize) -> Result<&'b [u8], StoreError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Value<'b>)>, StoreError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            VARINT => Value::Int(self.varint()? as i64),
            BYTES => {
                let len = usize::try_from(self.varint()?).map_err(|_| CUT)?;
                Value::Bytes(self.take(len)?)
            }
            FIXED64 => self.take(8).map(|_| Value::Other)?,
            FIXED32 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(StoreError::Malformed("a field of an unknown wire type")),
        };
        Ok(Some((tag >> 3, value)))
    }
}

/// The first key after all that begin with `prefix`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0] // all keys
}

/// `RangeRequest` for one key.
pub(super) fn get(key: &str) -> Message {
    Message::default().bytes(1, key.as_bytes())
}

/// `RangeRequest` for keys that begin with `prefix`, from `from` on, `limit` of them at most; as of a revision,
/// if it is not 0.
pub(super) fn list(prefix: &str, from: &[u8], limit: i64, revision: Revision) -> Message {
    Message::default()
        .bytes(1, from)
        .bytes(2, &end_of(prefix))
        .int(3, limit)
        .int(4, revision)
}

/// `TxnRequest`.
pub(super) fn transaction(conditions: &[Condition], operations: &[Operation]) -> Message {
    let mut message = Message::default();
    for condition in conditions {
        // Results: equal is 0. Targets: created is 1, modified 2.
        let compare = match condition {
            Condition::Absent(key) => Message::default().int(2, 1).bytes(3, key.as_bytes()),
            Condition::CreatedIn(key, revision) => Message::default()
                .int(2, 1)
                .bytes(3, key.as_bytes())
                .int(5, *revision),
            Condition::ModifiedIn(key, revision) => Message::default()
                .int(2, 2)
                .bytes(3, key.as_bytes())
                .int(6, *revision),
        };
        // A revision of 0 has to be there: otherwise the comparison has no other side.
        let compare = match condition {
            Condition::Absent(_) => {
                let mut compare = compare;
                compare.varint(5 << 3 | VARINT);
                compare.varint(0);
                compare
            }
            _ => compare,
        };
        message = message.message(1, &compare);
    }
    for operation in operations {
        let request = match operation {
            Operation::Put(key, value, lease) => {
                let put = Message::default()
                    .bytes(1, key.as_bytes())
                    .bytes(2, value)
                    .int(3, lease.map_or(0, |lease| lease.0));
                Message::default().message(2, &put)
            }
            Operation::Delete(key) => {
                let delete = Message::default().bytes(1, key.as_bytes());
                Message::default().message(3, &delete)
            }
        };
        message = message.message(2, &request);
    }
    message
}

/// `WatchRequest` for the changes after a revision. Large answers come in fragments.
pub(super) fn watch(prefix: &str, revision: Revision) -> Message {
    let create = Message::default()
        .bytes(1, prefix.as_bytes())
        .bytes(2, &end_of(prefix))
        .int(3, revision + 1)
        .int(8, 1);
    Message::default().message(1, &create)
}

/// `LeaseGrantRequest`.
pub(super) fn grant(seconds: i64) -> Message {
    Message::default().int(1, seconds)
}

/// `LeaseRevokeRequest` and `LeaseKeepAliveRequest`.
pub(super) fn lease(id: i64) -> Message {
    Message::default().int(1, id)
}

/// A page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) revision: Revision,
    pub(super) entries: Vec<Entry>,
    pub(super) has_more: bool,
}

pub(super) fn read_page(bytes: &[u8]) -> Result<Page, StoreError> {
    let mut page = Page::default();
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(header)) => page.revision = read_header(header)?,
            (2, Value::Bytes(entry)) => page.entries.push(read_entry(entry)?),
            (3, Value::Int(more)) => page.has_more = more != 0,
            _ => {}
        }
    }
    Ok(page)
}

/// The revision of a `ResponseHeader`.
fn read_header(bytes: &[u8]) -> Result<Revision, StoreError> {
    let (mut revision, mut fields) = (0, Fields(bytes));
    while let Some(field) = fields.next()? {
        if let (3, Value::Int(own)) = field {
            revision = own;
        }
    }
    Ok(revision)
}

fn read_entry(bytes: &[u8]) -> Result<Entry, StoreError> {
    let mut entry = Entry {
        key: String::new(),
        value: Vec::new(),
        created: 0,
        modified: 0,
    };
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(key)) => {
                let key = std::str::from_utf8(key);
                let bad = StoreError::Malformed("a key is not UTF-8");
                key.map_err(|_| bad)?.clone_into(&mut entry.key);
            }
            (2, Value::Int(revision)) => entry.created = revision,
            (3, Value::Int(revision)) => entry.modified = revision,
            (5, Value::Bytes(value)) => value.clone_into(&mut entry.value),
            _ => {}
        }
    }
    Ok(entry)
}

/// A `TxnResponse`: the store's revision, and whether the conditions held.
pub(super) fn read_transaction(bytes: &[u8]) -> Result<(Revision, bool), StoreError> {
    let (mut revision, mut is_done) = (0, false);
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(header)) => revision = read_header(header)?,
            (2, Value::Int(succeeded)) => is_done = succeeded != 0,
            _ => {}
        }
    }
    Ok((revision, is_done))
}

/// The id and the time to live of a `LeaseGrantResponse` or a `LeaseKeepAliveResponse`.
pub(super) fn read_lease(bytes: &[u8]) -> Result<(i64, i64), StoreError> {
    let (mut id, mut seconds) = (0, 0);
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (2, Value::Int(own)) => id = own,
            (3, Value::Int(own)) => seconds = own,
            _ => {}
        }
    }
    Ok((id, seconds))
}

/// The events of a `WatchResponse`.
///
/// # Errors
/// The watch is over.
pub(super) fn read_watch(bytes: &[u8]) -> Result<Vec<Event>, StoreError> {
    let (mut events, mut compacted, mut over) = (Vec::new(), 0, None);
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (4, Value::Int(canceled)) if canceled != 0 => over = over.or(Some(String::new())),
            (5, Value::Int(revision)) => compacted = revision,
            (6, Value::Bytes(why)) => over = Some(String::from_utf8_lossy(why).into_owned()),
            (11, Value::Bytes(event)) => events.push(read_event(event)?),
            _ => {}
        }
    }
    match over {
        None => Ok(events),
        Some(_) if compacted != 0 => Err(StoreError::Compacted),
        Some(why) if why.contains("permission denied") => Err(StoreError::Denied(why)),
        Some(why) => Err(StoreError::Away(format!("the watch was ended: {why}"))),
    }
}

fn read_event(bytes: &[u8]) -> Result<Event, StoreError> {
    let (mut is_gone, mut entry) = (false, None);
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Int(kind)) => is_gone = kind == 1,
            (2, Value::Bytes(bytes)) => entry = Some(read_entry(bytes)?),
            _ => {}
        }
    }
    let entry = entry.ok_or(StoreError::Malformed("an event without a key"))?;
    Ok(match is_gone {
        true => Event::Deleted(entry.key),
        false => Event::Put(entry),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_before_the_next_key() {
        assert_eq!(end_of("/slb/"), b"/slb0");
        assert_eq!(end_of("a\u{7f}"), b"a\x80");
        assert_eq!(end_of(""), [0]);
    }

    #[test]
    fn a_range_request_is_encoded_as_protobuf_says() {
        // Tags: field 1 and 2, length-delimited; field 3, a varint.
        let message = list("ab", b"ab", 300, 0).0;
        assert_eq!(
            message,
            [0x0a, 2, b'a', b'b', 0x12, 2, b'a', b'c', 0x18, 0xac, 0x02]
        );
    }

    #[test]
    fn a_page_reads_back() {
        let entry = Message::default()
            .bytes(1, b"k")
            .int(2, 5)
            .int(3, 7)
            .int(4, 2)
            .bytes(5, b"v");
        let header = Message::default().int(1, -1).int(3, 900);
        let page = Message::default()
            .message(1, &header)
            .message(2, &entry)
            .int(3, 1)
            .int(4, 12);
        let expected = Page {
            revision: 900,
            entries: vec![Entry {
                key: "k".to_owned(),
                value: b"v".to_vec(),
                created: 5,
                modified: 7,
            }],
            has_more: true,
        };
        assert_eq!(read_page(&page.0), Ok(expected));
        for len in 1..page.0.len() {
            // A piece is another message or none, and never a panic.
            let _ = read_page(&page.0[..len]);
        }
    }

    #[test]
    fn no_bytes_make_a_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = read_page(bytes);
            let _ = read_watch(bytes);
            let _ = read_transaction(bytes);
            let _ = read_lease(bytes);
        });
    }
}
