//! Reading packets from pcap and pcapng files, one by one, as Ethernet frames.
//!
//! This module parses records and blocks itself, since the existing crates misread some of them
//! (see docs/dependencies.md). Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng, and for
//! modified pcap and the obsolete Packet Block Wireshark's `wiretap/libpcap.h` and `pcapng.c`.

use std::io::Read;
use std::ops::Range;

use slb_core::Instant;

use crate::error::{Damage, ReadError};
use crate::link::{Header, LinkType};
use crate::stream::Stream;

/// The maximum length of a record or block: longer ones occur only in broken files.
const MAX_BLOCK: usize = 1 << 26;
/// Length of pcap's header.
const HEADER_LEN: usize = 24;
/// The maximum number of interfaces in a section.
const MAX_INTERFACES: usize = 1 << 16;
const SECOND: u64 = 1_000_000_000;

/// Types of pcapng's blocks.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
/// Byte-order magic of a section header.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Options of an interface's description.
const IF_TSRESOL: u16 = 9;
const IF_TSOFFSET: u16 = 14;

/// The next item of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A packet, now in the buffer.
    Packet {
        /// The time of capture.
        timestamp: Instant,
        /// Bytes of the packet in the buffer, as an Ethernet frame.
        len: usize,
        /// Number of bytes that the capture's snap length cut from the end of the packet. The buffer does
        /// not contain them, unless [`Reader::fill_cut`] was called: then they are zero.
        cut: usize,
    },
    /// The next packet was captured after the given time; it stays for the next call.
    Later,
    /// A packet that was left out: its link type is not known, or it is too short for it.
    UnknownLink(LinkType),
    /// A packet that was left out: it is longer than the buffer.
    TooLong,
    /// A packet that was left out: an [`Instant`] cannot represent its time, which is before 1970 or after
    /// 21 July 2554.
    UnknownTime,
    /// The end of the file.
    End,
}

/// Reads a capture as a stream, in constant memory, and decompresses gzip and zstd.
pub struct Reader {
    stream: Stream,
    format: Format,
    interfaces: Vec<Interface>,
    fills_cut: bool,
    packets: u64,
    last: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Pcap {
        is_big_endian: bool,
        /// Bytes before a packet: 16, or 24 in the modified format.
        record_len: usize,
    },
    PcapNg {
        is_big_endian: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: LinkType,
    /// The longest packet that was captured; 0 for no limit.
    snap_len: u32,
    resolution: Resolution,
    /// Seconds to add to its timestamps.
    offset: i64,
}

/// Units of timestamps in a second.
#[derive(Clone, Copy, Debug)]
enum Resolution {
    /// Ten to this.
    Decimal(u32),
    /// Two to this.
    Binary(u32),
}

/// The position of a packet in its record or block.
struct Found {
    /// The timestamp; `None` if an [`Instant`] cannot represent it.
    timestamp: Option<Instant>,
    link: LinkType,
    data: Range<usize>,
    /// Number of bytes that were not captured.
    cut: usize,
}

impl Reader {
    /// Reads the beginning of a capture.
    ///
    /// # Errors
    /// The input is no capture, or cannot be read.
    pub fn new(input: impl Read + Send + 'static) -> Result<Self, ReadError> {
        let at_start = |damage| ReadError {
            packet: 1,
            offset: 0,
            damage,
            input: 0,
        };
        let mut stream = Stream::new(input).map_err(|error| at_start(Damage::Io(error)))?;
        stream.fill(24).map_err(at_start)?;
        let is_short = stream.ahead().len() < HEADER_LEN;
        if let Some(fault) = stream.fault().filter(|_| is_short) {
            return Err(at_start(fault));
        }
        let (format, interface) = begin(stream.ahead()).map_err(|damage| match damage {
            Damage::Malformed if is_short => at_start(Damage::Truncated),
            damage => at_start(damage),
        })?;
        if let Format::Pcap { .. } = format {
            stream.take(HEADER_LEN);
        }
        Ok(Self {
            stream,
            format,
            interfaces: interface.into_iter().collect(),
            fills_cut: false,
            packets: 0,
            last: Instant::ZERO,
        })
    }

    /// Restores the length of packets that a snap length cut, with zeros for the missing bytes.
    pub fn fill_cut(&mut self) {
        self.fills_cut = true;
    }

    /// Returns the number of packets read so far, including those left out.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Returns the number of bytes of the file read so far, before decompression.
    pub fn offset(&self) -> u64 {
        self.stream.bytes_read()
    }

    /// Reads the next packet into `buffer`, unless it was captured after `until`.
    ///
    /// # Errors
    /// The file is damaged from here on.
    pub fn next(&mut self, buffer: &mut [u8], until: Option<Instant>) -> Result<Next, ReadError> {
        loop {
            let read = match self.format {
                Format::Pcap {
                    is_big_endian,
                    record_len,
                } => self.record(is_big_endian, record_len),
                Format::PcapNg { is_big_endian } => self.block(is_big_endian),
            };
            let (len, found) = match read {
                Ok(Some(read)) => read,
                Ok(None) => return Ok(Next::End),
                Err(damage) => {
                    return Err(ReadError {
                        packet: self.packets + 1,
                        offset: self.stream.offset(),
                        damage,
                        input: 0,
                    });
                }
            };
            let Some(found) = found else {
                self.stream.take(len);
                continue;
            };
            let Some(timestamp) = found.timestamp else {
                self.packets += 1;
                self.stream.take(len);
                return Ok(Next::UnknownTime);
            };
            if until.is_some_and(|until| timestamp > until) {
                return Ok(Next::Later);
            }
            let data = self.stream.ahead().get(found.data.clone());
            let data = data.unwrap_or_default();
            let next = found.copy_to(data, timestamp, self.fills_cut, buffer);
            self.last = timestamp;
            self.packets += 1;
            self.stream.take(len);
            return Ok(next);
        }
    }

    /// Reads until `len` bytes are buffered.
    fn fill(&mut self, len: usize) -> Result<(), Damage> {
        if len > MAX_BLOCK {
            return Err(Damage::TooLong);
        }
        self.stream.fill(len)?;
        if self.stream.ahead().len() < len {
            return Err(self.stream.fault().unwrap_or(Damage::Truncated));
        }
        Ok(())
    }

    /// Returns true at the end of the file.
    fn is_at_end(&mut self) -> Result<bool, Damage> {
        self.stream.fill(1)?;
        let is_at_end = self.stream.ahead().is_empty();
        match self.stream.fault().filter(|_| is_at_end) {
            Some(fault) => Err(fault),
            None => Ok(is_at_end),
        }
    }

    /// Takes up the header of another pcap file behind the last record, as captures have it that were appended to each
    /// other. A record cannot look like it: it would be of the year 2055, without a byte of a packet.
    fn begins_again(&mut self) -> Result<bool, Damage> {
        // The version, without a correction of the time zone and a precision.
        let is_version = |ahead: &[u8]| {
            let bytes = ahead.get(4..16).unwrap_or_default();
            bytes.starts_with(&[2, 0, 4, 0]) || bytes.starts_with(&[0, 2, 0, 4])
        };
        let has_zeros = |ahead: &[u8]| ahead.get(8..16) == Some(&[0; 8]);
        if !is_version(self.stream.ahead()) || !has_zeros(self.stream.ahead()) {
            return Ok(false);
        }
        self.stream.fill(HEADER_LEN)?;
        let Ok((format @ Format::Pcap { .. }, interface)) = begin(self.stream.ahead()) else {
            return Ok(false);
        };
        self.format = format;
        self.interfaces = interface.into_iter().collect();
        Ok(true)
    }

    /// The next record of pcap: its length, and the packet in it.
    fn record(
        &mut self,
        is_big_endian: bool,
        record_len: usize,
    ) -> Result<Option<(usize, Option<Found>)>, Damage> {
        if self.is_at_end()? {
            return Ok(None);
        }
        self.fill(record_len)?;
        if self.begins_again()? {
            return Ok(Some((HEADER_LEN, None)));
        }
        let fields = Fields {
            bytes: self.stream.ahead(),
            is_big_endian,
        };
        let (seconds, fraction) = (fields.u32(0)?, fields.u32(4)?);
        let (captured, original) = (fields.u32(8)? as usize, fields.u32(12)?);
        let len = record_len.saturating_add(captured);
        self.fill(len)?;
        let interface = self.interfaces.first().ok_or(Damage::NotACapture)?;
        let nanos = u128::from(seconds) * u128::from(SECOND);
        let nanos = nanos + interface.resolution.nanos(fraction.into());
        let found = Found {
            timestamp: instant(i128::try_from(nanos).unwrap_or(i128::MAX)),
            link: interface.link,
            data: record_len..len,
            cut: (original as usize).saturating_sub(captured),
        };
        Ok(Some((len, Some(found))))
    }

    /// The next block of pcapng: its length, and the packet in it if it holds one.
    fn block(&mut self, is_big_endian: bool) -> Result<Option<(usize, Option<Found>)>, Damage> {
        if self.is_at_end()? {
            return Ok(None);
        }
        self.fill(12)?;
        let mut fields = Fields {
            bytes: self.stream.ahead(),
            is_big_endian,
        };
        let kind = fields.u32(0)?;
        if kind == SECTION_HEADER {
            fields.is_big_endian = match fields.u32(8)? {
                BYTE_ORDER => is_big_endian,
                order if order.swap_bytes() == BYTE_ORDER => !is_big_endian,
                _ => return Err(Damage::Malformed),
            };
        }
        let is_big_endian = fields.is_big_endian;
        let len = fields.u32(4)? as usize;
        if len < 12 || !len.is_multiple_of(4) {
            return Err(Damage::Malformed);
        }
        self.fill(len)?;
        let fields = Fields {
            bytes: self.stream.ahead().get(..len).unwrap_or_default(),
            is_big_endian,
        };
        // The length is at both ends of a block.
        if fields.u32(len - 4)? as usize != len {
            return Err(Damage::Malformed);
        }
        let body = len - 4;
        let least = match kind {
            SECTION_HEADER => 24,
            INTERFACE_DESCRIPTION => 16,
            SIMPLE_PACKET => 12,
            ENHANCED_PACKET | OBSOLETE_PACKET => 28,
            _ => 8,
        };
        if body < least {
            return Err(Damage::Malformed);
        }
        let found = match kind {
            SECTION_HEADER => {
                let (major, minor) = (fields.u16(12)?, fields.u16(14)?);
                if major != 1 {
                    return Err(Damage::Version { major, minor });
                }
                self.interfaces.clear();
                self.format = Format::PcapNg { is_big_endian };
                None
            }
            INTERFACE_DESCRIPTION => {
                let interface = described(&fields, body)?;
                if self.interfaces.len() >= MAX_INTERFACES {
                    return Err(Damage::TooManyInterfaces);
                }
                self.interfaces.push(interface);
                None
            }
            ENHANCED_PACKET => {
                let interface = fields.u32(8)?;
                Some(self.packet(&fields, interface, body)?)
            }
            OBSOLETE_PACKET => {
                let interface = fields.u16(8)?.into();
                Some(self.packet(&fields, interface, body)?)
            }
            SIMPLE_PACKET => {
                // The packet has no timestamp, and belongs to the first interface.
                let interface = self.interfaces.first().ok_or(Damage::UnknownInterface(0))?;
                let original = fields.u32(8)? as usize;
                let limit = match interface.snap_len {
                    0 => usize::MAX,
                    limit => limit as usize,
                };
                let captured = original.min(limit).min(body - 12);
                Some(Found {
                    timestamp: Some(self.last),
                    link: interface.link,
                    data: 12..12 + captured,
                    cut: original - captured,
                })
            }
            _ => None,
        };
        Ok(Some((len, found)))
    }

    /// Reads a packet of an Enhanced Packet Block, or of the obsolete Packet Block, which has the
    /// same layout from its ninth byte on.
    fn packet(&self, fields: &Fields<'_>, interface: u32, body: usize) -> Result<Found, Damage> {
        let known = self.interfaces.get(interface as usize);
        let interface = known.ok_or(Damage::UnknownInterface(interface))?;
        let units = u64::from(fields.u32(12)?) << 32 | u64::from(fields.u32(16)?);
        let (captured, original) = (fields.u32(20)? as usize, fields.u32(24)? as usize);
        if captured > body - 28 {
            return Err(Damage::Malformed);
        }
        Ok(Found {
            timestamp: interface.timestamp(units),
            link: interface.link,
            data: 28..28 + captured,
            cut: original.saturating_sub(captured),
        })
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("packets", &self.packets)
            .finish_non_exhaustive()
    }
}

/// Determines the format from the first bytes, and for pcap its only interface.
fn begin(bytes: &[u8]) -> Result<(Format, Option<Interface>), Damage> {
    const MICROSECONDS: u32 = 0xa1b2_c3d4;
    const NANOSECONDS: u32 = 0xa1b2_3c4d;
    const MODIFIED: u32 = 0xa1b2_cd34;
    let fields = |is_big_endian| Fields {
        bytes,
        is_big_endian,
    };
    if bytes.is_empty() {
        return Err(Damage::Empty);
    }
    let little = fields(false).u32(0).map_err(|_| Damage::NotACapture)?;
    if little == SECTION_HEADER {
        let order = fields(false).u32(8)?;
        let is_big_endian = order.swap_bytes() == BYTE_ORDER;
        return match order == BYTE_ORDER || is_big_endian {
            true => Ok((Format::PcapNg { is_big_endian }, None)),
            false => Err(Damage::NotACapture),
        };
    }
    let is_big_endian = !matches!(little, MICROSECONDS | NANOSECONDS | MODIFIED);
    let fields = fields(is_big_endian);
    let (digits, record_len) = match fields.u32(0)? {
        MICROSECONDS => (6, 16),
        NANOSECONDS => (9, 16),
        MODIFIED => (6, 24),
        _ => return Err(Damage::NotACapture),
    };
    let interface = Interface {
        // The upper bits may have the length of the frame check sequence.
        link: LinkType(fields.u32(20)? as u16),
        snap_len: fields.u32(16)?,
        resolution: Resolution::Decimal(digits),
        offset: 0,
    };
    let format = Format::Pcap {
        is_big_endian,
        record_len,
    };
    Ok((format, Some(interface)))
}

/// Reads an Interface Description Block.
fn described(fields: &Fields<'_>, body: usize) -> Result<Interface, Damage> {
    let mut interface = Interface {
        link: LinkType(fields.u16(8)?),
        snap_len: fields.u32(12)?,
        resolution: Resolution::Decimal(6),
        offset: 0,
    };
    let mut at = 16;
    while at + 4 <= body {
        let (code, len) = (fields.u16(at)?, usize::from(fields.u16(at + 2)?));
        let value = at + 4;
        if code == 0 {
            break;
        }
        if value + len > body {
            return Err(Damage::Malformed);
        }
        match (code, len) {
            (IF_TSRESOL, 1) => {
                let exponent = u32::from(fields.u8(value)?);
                interface.resolution = match exponent & 0x80 {
                    0 => Resolution::Decimal(exponent),
                    _ => Resolution::Binary(exponent & 0x7f),
                };
            }
            (IF_TSOFFSET, 8) => interface.offset = fields.u64(value)?.cast_signed(),
            _ => {}
        }
        at = value + len.next_multiple_of(4);
    }
    Ok(interface)
}

impl Resolution {
    /// Converts units to nanoseconds.
    fn nanos(self, units: u64) -> u128 {
        let units = u128::from(units);
        match self {
            Self::Decimal(digits @ 0..=9) => units * 10u128.pow(9 - digits),
            Self::Decimal(digits) => 10u128
                .checked_pow(digits - 9)
                .map_or(0, |unit| units / unit),
            Self::Binary(bits) => (units * u128::from(SECOND)) >> bits,
        }
    }
}

impl Interface {
    fn timestamp(&self, units: u64) -> Option<Instant> {
        let nanos = i128::try_from(self.resolution.nanos(units)).unwrap_or(i128::MAX);
        instant(nanos.saturating_add(i128::from(self.offset) * i128::from(SECOND)))
    }
}

/// Returns the time this many nanoseconds after 1970, if it can be represented.
fn instant(nanos: i128) -> Option<Instant> {
    u64::try_from(nanos).ok().map(Instant::from_nanos)
}

impl Found {
    fn copy_to(&self, data: &[u8], timestamp: Instant, fills_cut: bool, buffer: &mut [u8]) -> Next {
        let Some((header, payload)) = self.link.to_ethernet(data) else {
            return Next::UnknownLink(self.link);
        };
        let made: &[u8] = match &header {
            Header::Kept => &[],
            Header::Made(header) => header,
        };
        let payload = data.get(payload..).unwrap_or_default();
        let captured = made.len() + payload.len();
        let len = captured + if fills_cut { self.cut } else { 0 };
        let Some(to) = buffer.get_mut(..len) else {
            return Next::TooLong;
        };
        let (front, rest) = to.split_at_mut(made.len());
        let (back, missing) = rest.split_at_mut(payload.len());
        front.copy_from_slice(made);
        back.copy_from_slice(payload);
        missing.fill(0);
        Next::Packet {
            timestamp,
            len,
            cut: self.cut,
        }
    }
}

/// The numbers in a record or block.
struct Fields<'b> {
    bytes: &'b [u8],
    is_big_endian: bool,
}

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Damage> {
        let mut bytes = *self
            .bytes
            .get(at..)
            .and_then(|bytes| bytes.first_chunk::<N>())
            .ok_or(Damage::Malformed)?;
        if !self.is_big_endian {
            bytes.reverse();
        }
        Ok(bytes)
    }

    fn u8(&self, at: usize) -> Result<u8, Damage> {
        self.array(at).map(u8::from_be_bytes)
    }

    fn u16(&self, at: usize) -> Result<u16, Damage> {
        self.array(at).map(u16::from_be_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, Damage> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Damage> {
        self.array(at).map(u64::from_be_bytes)
    }
}
