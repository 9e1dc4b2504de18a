//! Writing frames to pcap and pcapng files, with timestamps in nanoseconds.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};
use slb_core::Instant;

/// The snap length in the file's header; no packet is truncated.
const SNAPLEN: u32 = 1 << 20;

/// Direction in the flags of a packet (draft-ietf-opsawg-pcapng §4.3.1).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Kind of file that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// pcap with timestamps in nanoseconds.
    #[default]
    Pcap,
    /// pcapng with one interface.
    PcapNg,
}

impl Format {
    /// Returns the format by the extension of a file name: `.pcapng`, otherwise pcap.
    pub fn of(path: &Path) -> Self {
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("pcapng") => Self::PcapNg,
            _ => Self::Pcap,
        }
    }
}

/// Metadata that pcapng stores with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note<'a> {
    /// Number of the interface: zero, or one that [`Writer::add_interface`] returned.
    pub interface: u32,
    /// True for a packet that was sent, false for one that was received; `None` if unknown.
    pub is_sent: Option<bool>,
    /// A comment, empty for none.
    pub comment: &'a str,
}

/// Writes Ethernet frames to a capture.
pub struct Writer<W: Write>(Inner<W>, u32);

enum Inner<W: Write> {
    Pcap(PcapWriter<W>),
    PcapNg(PcapNgWriter<W>),
}

impl<W: Write> Writer<W> {
    /// Begins a capture.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(output: W, format: Format) -> io::Result<Self> {
        let inner = match format {
            Format::Pcap => {
                let header = PcapHeader {
                    snaplen: SNAPLEN,
                    datalink: DataLink::ETHERNET,
                    ts_resolution: TsResolution::NanoSecond,
                    endianness: Endianness::Little, // the same bytes on every machine
                    ..PcapHeader::default()
                };
                Inner::Pcap(PcapWriter::with_header(output, header).map_err(io_error)?)
            }
            Format::PcapNg => {
                let mut writer = PcapNgWriter::new(output).map_err(io_error)?;
                let interface = InterfaceDescriptionBlock {
                    linktype: DataLink::ETHERNET,
                    snaplen: SNAPLEN,
                    options: vec![InterfaceDescriptionOption::IfTsResol(9)],
                };
                writer.write_pcapng_block(interface).map_err(io_error)?;
                Inner::PcapNg(writer)
            }
        };
        // The second field is the number of the last interface.
        Ok(Self(inner, 0))
    }

    /// Returns true if the format can represent the time. The seconds of pcap end on 7 February
    /// 2106.
    pub fn has_time(&self, timestamp: Instant) -> bool {
        match self.0 {
            Inner::Pcap(_) => timestamp.as_nanos() / 1_000_000_000 <= u64::from(u32::MAX),
            Inner::PcapNg(_) => true,
        }
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// The frame cannot be written, or the format cannot represent its time. In the second case nothing
    /// was written, and further frames can be.
    pub fn write(&mut self, timestamp: Instant, frame: &[u8]) -> io::Result<()> {
        self.write_cut(timestamp, frame, 0)
    }

    /// Adds a frame without its last `cut` bytes, as if a snap length had cut them.
    ///
    /// # Errors
    /// The same as for [`write`](Self::write).
    pub fn write_cut(&mut self, timestamp: Instant, frame: &[u8], cut: usize) -> io::Result<()> {
        self.write_noted(timestamp, frame, cut, &Note::default())
    }

    /// Adds an interface to a capture in pcapng, and returns its number; zero in pcap, which has none.
    ///
    /// # Errors
    /// The interface cannot be written.
    pub fn add_interface(&mut self, name: &str) -> io::Result<u32> {
        let Inner::PcapNg(writer) = &mut self.0 else {
            return Ok(0);
        };
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: SNAPLEN,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        };
        writer.write_pcapng_block(interface).map_err(io_error)?;
        self.1 += 1;
        Ok(self.1)
    }

    /// Adds a frame like [`write_cut`](Self::write_cut), with a note, which pcap ignores.
    ///
    /// # Errors
    /// The same as for [`write`](Self::write), or there is no such interface.
    pub fn write_noted(
        &mut self,
        timestamp: Instant,
        frame: &[u8],
        cut: usize,
        note: &Note<'_>,
    ) -> io::Result<()> {
        if !self.has_time(timestamp) {
            let message = "pcap has no time after 2106-02-07: expected pcapng";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let timestamp = Duration::from_nanos(timestamp.as_nanos());
        let len = u32::try_from(frame.len().saturating_add(cut)).map_err(io::Error::other)?;
        match &mut self.0 {
            Inner::Pcap(writer) => {
                let packet = PcapPacket::new(timestamp, len, frame);
                writer.write_packet(&packet).map_err(io_error)?;
            }
            Inner::PcapNg(writer) => {
                let mut options = Vec::new();
                if !note.comment.is_empty() {
                    let comment = Cow::Borrowed(note.comment);
                    options.push(EnhancedPacketOption::Comment(comment));
                }
                if let Some(is_sent) = note.is_sent {
                    let direction = if is_sent { OUTBOUND } else { INBOUND };
                    options.push(EnhancedPacketOption::Flags(direction));
                }
                let packet = EnhancedPacketBlock {
                    interface_id: note.interface,
                    timestamp,
                    original_len: len,
                    data: Cow::Borrowed(frame),
                    options,
                };
                writer.write_pcapng_block(packet).map_err(io_error)?;
            }
        }
        Ok(())
    }

    /// Ends the capture and gives the output back.
    ///
    /// # Errors
    /// The rest of the data cannot be written.
    pub fn finish(self) -> io::Result<W> {
        let mut output = match self.0 {
            Inner::Pcap(writer) => writer.into_writer(),
            Inner::PcapNg(writer) => writer.into_inner(),
        };
        output.flush()?;
        Ok(output)
    }
}

impl<W: Write> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
