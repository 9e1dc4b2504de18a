//! Packets out of a pcap or pcapng file, one by one, as Ethernet frames.

use std::io::Read;

use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, PcapBlockOwned, PcapError, create_reader};
use slb_core::Instant;

use crate::error::{Damage, ReadError};
use crate::link::{Header, LinkType};

/// Room for blocks to begin with; it grows up to [`MAX_BLOCK`].
const BUFFER: usize = 1 << 20;
/// The longest block: no capture has longer ones, broken files announce them.
const MAX_BLOCK: usize = 1 << 26;

/// What the reader has next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A packet, now in the buffer.
    Packet {
        /// When it was captured.
        timestamp: Instant,
        /// Its bytes in the buffer, as an Ethernet frame.
        len: usize,
    },
    /// A packet captured later than asked for; it stays for the next call.
    Later,
    /// A packet that was left out: its link type is not known, or it is too short for it.
    UnknownLink(LinkType),
    /// A packet that was left out: it is longer than the buffer.
    TooLong,
    /// Nothing: the file is at its end.
    End,
}

/// Reads a capture as a stream, in constant memory.
pub struct Reader {
    blocks: Box<dyn PcapReaderIterator + Send>,
    interfaces: Vec<Interface>,
    /// Of pcapng: whether the section's numbers are big-endian.
    is_big_endian: Option<bool>,
    packets: u64,
    offset: u64,
    last: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: LinkType,
    /// Units of its timestamps in a second.
    resolution: u64,
    /// Seconds to add to its timestamps.
    offset: i64,
}

impl Reader {
    /// Reads the beginning of a capture.
    ///
    /// # Errors
    /// It is none.
    pub fn new(input: impl Read + Send + 'static) -> Result<Self, ReadError> {
        let at_start = |damage| ReadError {
            packet: 1,
            offset: 0,
            damage,
        };
        let blocks = create_reader(BUFFER, input).map_err(|error| {
            at_start(match error {
                PcapError::ReadError => Damage::Io(std::io::ErrorKind::Other.into()),
                _ => Damage::NotACapture,
            })
        })?;
        let interfaces = Vec::new();
        Ok(Self {
            blocks,
            interfaces,
            is_big_endian: None,
            packets: 0,
            offset: 0,
            last: Instant::ZERO,
        })
    }

    /// Packets read so far, those left out included.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Bytes of the file read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads the next packet into `buffer`, unless it was captured after `until`.
    ///
    /// # Errors
    /// The file is damaged from here on.
    pub fn next(&mut self, buffer: &mut [u8], until: Option<Instant>) -> Result<Next, ReadError> {
        loop {
            if self.is_shorter_than_a_block() {
                return Err(self.error(Damage::Malformed));
            }
            let (len, found) = match self.blocks.next() {
                Ok((len, PcapBlockOwned::NG(Block::SectionHeader(section)))) => {
                    self.is_big_endian = Some(section.big_endian());
                    let block = PcapBlockOwned::NG(Block::SectionHeader(section));
                    match interpret(&block, &mut self.interfaces, self.last) {
                        Ok(_) => (len, None),
                        Err(damage) => return Err(self.error(damage)),
                    }
                }
                Ok((len, block)) => match interpret(&block, &mut self.interfaces, self.last) {
                    Ok(None) => (len, None),
                    Ok(Some(packet)) if until.is_some_and(|until| packet.timestamp > until) => {
                        return Ok(Next::Later);
                    }
                    Ok(Some(packet)) => {
                        self.last = packet.timestamp;
                        (len, Some(packet.copy_to(buffer)))
                    }
                    Err(damage) => return Err(self.error(damage)),
                },
                Err(PcapError::Eof) => return Ok(Next::End),
                Err(PcapError::Incomplete(_)) => {
                    self.refill()?;
                    continue;
                }
                Err(PcapError::BufferTooSmall) => {
                    self.grow()?;
                    continue;
                }
                Err(PcapError::UnexpectedEof) => return Err(self.error(Damage::Truncated)),
                Err(PcapError::HeaderNotRecognized) => {
                    return Err(self.error(Damage::NotACapture));
                }
                Err(_) => return Err(self.error(Damage::Malformed)),
            };
            self.blocks.consume(len);
            self.offset += len as u64;
            if let Some(next) = found {
                self.packets += 1;
                return Ok(next);
            }
        }
    }

    /// Whether the next block of pcapng says that it is shorter than what every block begins and ends with.
    /// The parser would subtract that all the same.
    fn is_shorter_than_a_block(&self) -> bool {
        let (Some(is_big_endian), Some([_, _, _, _, a, b, c, d])) =
            (self.is_big_endian, self.blocks.data().first_chunk())
        else {
            return false;
        };
        let len = [*a, *b, *c, *d];
        let len = if is_big_endian {
            u32::from_be_bytes(len)
        } else {
            u32::from_le_bytes(len)
        };
        len < 12
    }

    fn refill(&mut self) -> Result<(), ReadError> {
        let exhausted = self.blocks.reader_exhausted();
        let too_small = match self.blocks.refill() {
            Ok(()) => false,
            Err(PcapError::ReadError) => {
                return Err(self.error(Damage::Io(std::io::ErrorKind::Other.into())));
            }
            Err(_) => true,
        };
        if too_small {
            return self.grow();
        }
        // At the end of the file a refill adds nothing: half a block will never be whole.
        if exhausted && !self.blocks.data().is_empty() {
            return Err(self.error(Damage::Truncated));
        }
        Ok(())
    }

    fn grow(&mut self) -> Result<(), ReadError> {
        let size = (self.blocks.data().len().max(BUFFER) * 2).next_power_of_two();
        if size > MAX_BLOCK || !self.blocks.grow(size) {
            return Err(self.error(Damage::TooLong));
        }
        match self.blocks.refill() {
            Ok(()) => Ok(()),
            Err(_) => Err(self.error(Damage::TooLong)),
        }
    }

    fn error(&self, damage: Damage) -> ReadError {
        ReadError {
            packet: self.packets + 1,
            offset: self.offset,
            damage,
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("packets", &self.packets)
            .finish_non_exhaustive()
    }
}

/// A packet as it lies in the file.
struct RawPacket<'a> {
    timestamp: Instant,
    link: LinkType,
    data: &'a [u8],
}

impl RawPacket<'_> {
    fn copy_to(&self, buffer: &mut [u8]) -> Next {
        let Some((header, payload)) = self.link.to_ethernet(self.data) else {
            return Next::UnknownLink(self.link);
        };
        let made: &[u8] = match &header {
            Header::Kept => &[],
            Header::Made(header) => header,
        };
        let payload = self.data.get(payload..).unwrap_or_default();
        let len = made.len() + payload.len();
        let Some(to) = buffer.get_mut(..len) else {
            return Next::TooLong;
        };
        let (front, back) = to.split_at_mut(made.len());
        front.copy_from_slice(made);
        back.copy_from_slice(payload);
        Next::Packet {
            timestamp: self.timestamp,
            len,
        }
    }
}

/// What a block says: a packet, or something to remember for the packets that follow.
fn interpret<'a>(
    block: &'a PcapBlockOwned<'_>,
    interfaces: &mut Vec<Interface>,
    last: Instant,
) -> Result<Option<RawPacket<'a>>, Damage> {
    match block {
        PcapBlockOwned::LegacyHeader(header) => {
            let resolution = if header.is_nanosecond_precision() {
                1_000_000_000
            } else {
                1_000_000
            };
            // The upper bits may say how long the frame check sequence is.
            let link = LinkType(header.network.0 as u16);
            *interfaces = vec![Interface {
                link,
                resolution,
                offset: 0,
            }];
            Ok(None)
        }
        PcapBlockOwned::Legacy(packet) => {
            let interface = interfaces.first().ok_or(Damage::NotACapture)?;
            let fraction = u64::from(packet.ts_usec) * (1_000_000_000 / interface.resolution);
            let nanos = u64::from(packet.ts_sec) * 1_000_000_000 + fraction;
            let data = packet
                .data
                .get(..packet.caplen as usize)
                .unwrap_or(packet.data);
            let timestamp = Instant::from_nanos(nanos);
            Ok(Some(RawPacket {
                timestamp,
                link: interface.link,
                data,
            }))
        }
        PcapBlockOwned::NG(Block::SectionHeader(section)) => {
            let (major, minor) = (section.major_version, section.minor_version);
            interfaces.clear();
            if major == 1 {
                Ok(None)
            } else {
                Err(Damage::Version { major, minor })
            }
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            interfaces.push(Interface {
                link: LinkType(interface.linktype.0 as u16),
                resolution: interface.ts_resolution().ok_or(Damage::Malformed)?.max(1),
                offset: interface.if_tsoffset,
            });
            Ok(None)
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let unknown = Damage::UnknownInterface(packet.if_id);
            let interface = interfaces.get(packet.if_id as usize).ok_or(unknown)?;
            let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
            let timestamp = interface.timestamp(units);
            Ok(Some(RawPacket {
                timestamp,
                link: interface.link,
                data: packet.packet_data(),
            }))
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            // It has no timestamp, and is of the first interface.
            let interface = interfaces.first().ok_or(Damage::UnknownInterface(0))?;
            Ok(Some(RawPacket {
                timestamp: last,
                link: interface.link,
                data: packet.packet_data(),
            }))
        }
        PcapBlockOwned::NG(_) => Ok(None),
    }
}

impl Interface {
    fn timestamp(&self, units: u64) -> Instant {
        let nanos = i128::from(units) * 1_000_000_000 / i128::from(self.resolution);
        let nanos = nanos + i128::from(self.offset) * 1_000_000_000;
        Instant::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
    }
}
