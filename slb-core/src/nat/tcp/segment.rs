//! The fields of a TCP segment that connection tracking uses.

use crate::wire::tcp::{Flags, Tcp};

/// The fields of a TCP segment that connection tracking uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First sequence number of the segment.
    pub sequence: u32,
    /// The acknowledgement number; meaningful with [`Flags::ACK`].
    pub acknowledgement: u32,
    /// Number of sequence numbers that the segment occupies: data, SYN and FIN.
    pub len: u32,
    /// The window field of the header, unscaled.
    pub window: u16,
    /// Window scale of the sender in bits (RFC 7323 §2), if the segment is a SYN that has one.
    pub window_shift: Option<u8>,
    /// Control bits of the segment.
    pub flags: Flags,
}

impl Segment {
    /// Reads the fields of a segment. `len` is the length of the whole segment with its header;
    /// `bytes` may have only its beginning.
    #[inline]
    pub fn parse(bytes: &[u8], len: usize) -> Option<Self> {
        let header: &[u8; 20] = bytes.first_chunk()?;
        let flags = Flags(header[13]);
        let header_len = usize::from(header[12] >> 4) * 4;
        let data = len.checked_sub(header_len.max(20))?;
        let window_shift = if flags.contains(Flags::SYN) {
            window_shift(bytes)
        } else {
            None
        };
        let numbers = u32::from(flags.contains(Flags::SYN)) + u32::from(flags.contains(Flags::FIN));
        Some(Self {
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            acknowledgement: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            len: data as u32 + numbers,
            window: u16::from_be_bytes([header[14], header[15]]),
            window_shift,
            flags,
        })
    }

    /// Returns true if the segment neither opens nor closes a connection.
    #[inline]
    pub(in crate::nat) fn is_ordinary(&self) -> bool {
        let special = Flags::SYN.with(Flags::FIN).with(Flags::RST);
        !self.flags.intersects(special)
    }

    #[inline]
    pub(super) fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.len)
    }
}

/// Returns the window scale option of a SYN.
#[cold]
pub(super) fn window_shift(bytes: &[u8]) -> Option<u8> {
    const SCALE: u8 = 3;
    let tcp = Tcp::parse(bytes).ok()?;
    let option = crate::nat::options(tcp.options()).find(|&(kind, _)| kind == SCALE);
    option.and_then(|(_, at)| Some((*tcp.options().get(at + 2)?).min(LARGEST_SHIFT)))
}

/// The largest window scale (RFC 7323 §2.3).
pub(super) const LARGEST_SHIFT: u8 = 14;
