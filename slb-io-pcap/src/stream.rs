//! The bytes of a capture: buffered, and decompressed from gzip or zstd.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, FrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::error::Damage;

/// The number of bytes that are read at once, and the minimum size of the buffer, which grows with
/// the longest record.
const ROOM: usize = 1 << 18;

/// RFC 1952 §2.3.1.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// RFC 8878 §3.1.1.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// RFC 8878 §3.1.2, behind a first byte whose last four bits are the user's.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// Bytes of a capture, which may cross threads.
type Input = Box<dyn Source + Send>;

/// Bytes that may be packed.
trait Source {
    /// Reads some bytes; none at the end.
    ///
    /// # Errors
    /// The bytes cannot be read or are damaged. [`Damage::Cut`] and [`Damage::Behind`] come after all whole bytes.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Damage>;
}

impl<R: Read> Source for Plain<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Damage> {
        self.0.read(buffer).map_err(Damage::Io)
    }
}

/// A file that is not packed.
struct Plain<R>(R);

/// The bytes of a capture, in constant memory.
pub(crate) struct Stream {
    input: Input,
    /// A buffer, whose bytes from `start` to `end` were read and not consumed yet.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The number of bytes consumed so far.
    offset: u64,
    /// Bytes read from the file so far, before decompression.
    read: Arc<AtomicU64>,
    /// The way in which packed data ended where it should not.
    fault: Option<Ending>,
}

/// An end of packed data that is none.
#[derive(Clone, Copy)]
enum Ending {
    Cut(&'static str),
    Behind(&'static str, u64),
}

impl Stream {
    /// Reads the first bytes, which identify the compression.
    pub(crate) fn new(input: impl Read + Send + 'static) -> io::Result<Self> {
        let read = Arc::new(AtomicU64::new(0));
        let mut input = Counted {
            input,
            read: Arc::clone(&read),
        };
        let mut first = Vec::new();
        input.by_ref().take(4).read_to_end(&mut first)?;
        let is_zstd = first == ZSTD || is_skippable(&first);
        let is_gzip = first.starts_with(&GZIP);
        let whole = Cursor::new(first).chain(input);
        let input: Input = if is_gzip {
            Box::new(Gzip::new(Packed::new(whole)))
        } else if is_zstd {
            Box::new(Zstd::new(Packed::new(whole)))
        } else {
            Box::new(Plain(whole))
        };
        Ok(Self {
            input,
            buffer: vec![0; ROOM],
            start: 0,
            end: 0,
            offset: 0,
            read,
            fault: None,
        })
    }

    /// Returns the fault of packed data at its end, once all bytes before were read.
    pub(crate) fn fault(&self) -> Option<Damage> {
        self.fault.map(|fault| match fault {
            Ending::Cut(packing) => Damage::Cut { packing },
            Ending::Behind(packing, at) => Damage::Behind { packing, at },
        })
    }

    /// Returns the position of the next byte to consume, after decompression.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the number of bytes read from the file, before decompression.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Reads until `len` bytes are buffered, or the file ends.
    ///
    /// # Errors
    /// The bytes cannot be read, or are damaged.
    pub(crate) fn fill(&mut self, len: usize) -> Result<(), Damage> {
        if self.end - self.start >= len {
            return Ok(());
        }
        if self.buffer.len() - self.start < len {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.buffer.len() < len {
                self.buffer.resize(len.next_power_of_two(), 0);
            }
        }
        while self.end - self.start < len && self.fault.is_none() {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.input.read(room) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                Err(Damage::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(Damage::Cut { packing }) => self.fault = Some(Ending::Cut(packing)),
                Err(Damage::Behind { packing, at }) => {
                    self.fault = Some(Ending::Behind(packing, at));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the buffered bytes.
    pub(crate) fn ahead(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Consumes buffered bytes.
    pub(crate) fn take(&mut self, len: usize) {
        let len = len.min(self.end - self.start);
        self.start += len;
        self.offset += len as u64;
    }
}

/// A file that counts the bytes read.
struct Counted<R> {
    input: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Returns true if a frame with this magic number is one that zstd skips.
fn is_skippable(magic: &[u8]) -> bool {
    matches!(magic, [0x50..=0x5f, rest @ ..] if rest == SKIPPABLE)
}

/// Converts an error of the zstd decoder into an I/O error.
fn damaged(error: &FrameDecoderError) -> io::Error {
    let why = match error {
        FrameDecoderError::WindowSizeTooBig { requested: bytes }
        | FrameDecoderError::FrameHeaderError(FrameHeaderError::WindowTooBig { got: bytes })
        | FrameDecoderError::FailedToInitialize(FrameHeaderError::WindowTooBig { got: bytes }) => {
            format!("a frame needs {bytes} bytes of memory, which is more than any should")
        }
        FrameDecoderError::DictNotProvided { dict_id } => {
            format!("a frame needs dictionary {dict_id}, and dictionaries are not supported")
        }
        _ => "a frame is damaged".to_owned(),
    };
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {why}"))
}

/// A packed file: its bytes, and whether they are at their end.
struct Packed<R> {
    input: BufReader<R>,
    /// Bytes given out so far.
    offset: u64,
    is_at_end: bool,
}

impl<R: Read> Packed<R> {
    fn new(input: R) -> Self {
        Self {
            input: BufReader::new(input),
            offset: 0,
            is_at_end: false,
        }
    }

    /// Reads up to four bytes that tell what comes next.
    fn magic(&mut self) -> io::Result<Vec<u8>> {
        let mut magic = Vec::new();
        self.by_ref().take(4).read_to_end(&mut magic)?;
        Ok(magic)
    }

    /// The fault of bytes that are none of the packing's: none if there are only zeros to the end of the file, with
    /// which tapes and disks fill blocks up.
    fn behind(&mut self, first: &[u8], packing: &'static str) -> Result<(), Damage> {
        let at = self.offset - first.len() as u64;
        let mut is_zeros = first.iter().all(|&byte| byte == 0);
        while is_zeros {
            let some = self.fill_buf().map_err(Damage::Io)?;
            if some.is_empty() {
                return Ok(());
            }
            is_zeros = some.iter().all(|&byte| byte == 0);
            let len = some.len();
            self.consume(len);
        }
        Err(Damage::Behind { packing, at })
    }
}

impl<R: Read> Read for Packed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.offset += count as u64;
        self.is_at_end |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

impl<R: Read> BufRead for Packed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let some = self.input.fill_buf()?;
        self.is_at_end |= some.is_empty();
        Ok(some)
    }

    fn consume(&mut self, count: usize) {
        self.offset += count as u64;
        self.input.consume(count);
    }
}

/// The input of a member: its first bytes, which were read to tell its kind, and the rest of the file.
type Member<R> = io::Chain<Cursor<Vec<u8>>, Packed<R>>;

/// The members of a gzip file, one behind the other.
struct Gzip<R> {
    state: State<R>,
}

enum State<R> {
    Between(Packed<R>),
    Within(Box<GzDecoder<Member<R>>>),
    Ended,
}

impl<R: Read> Gzip<R> {
    fn new(input: Packed<R>) -> Self {
        Self {
            state: State::Between(input),
        }
    }
}

impl<R: Read> Source for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Damage> {
        const PACKING: &str = "gzip";
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Ok(0),
                State::Between(mut input) => {
                    let magic = input.magic().map_err(Damage::Io)?;
                    if magic.is_empty() {
                        return Ok(0);
                    }
                    if magic.len() < GZIP.len() && GZIP.starts_with(&magic) {
                        return Err(Damage::Cut { packing: PACKING });
                    }
                    if !magic.starts_with(&GZIP) {
                        return input.behind(&magic, PACKING).map(|()| 0);
                    }
                    let member = Cursor::new(magic).chain(input);
                    self.state = State::Within(Box::new(GzDecoder::new(member)));
                }
                State::Within(mut member) => match member.read(buffer) {
                    Ok(0) => {
                        let (_, input) = member.into_inner().into_inner();
                        self.state = State::Between(input);
                    }
                    Ok(count) => {
                        self.state = State::Within(member);
                        return Ok(count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                        self.state = State::Within(member);
                        return Err(Damage::Io(error));
                    }
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        return Err(Damage::Cut { packing: PACKING });
                    }
                    Err(error) => {
                        let is_cut = member.get_ref().get_ref().1.is_at_end;
                        return Err(
                            match is_cut && error.kind() != io::ErrorKind::InvalidInput {
                                true => Damage::Cut { packing: PACKING },
                                false => Damage::Io(io::Error::new(
                                    error.kind(),
                                    format!("gzip: {error}"),
                                )),
                            },
                        );
                    }
                },
            }
        }
    }
}

/// The frames of a zstd file, concatenated.
struct Zstd<R> {
    input: Packed<R>,
    decoder: FrameDecoder,
    is_within_frame: bool,
    is_ended: bool,
    /// Decoding error, kept until all bytes decoded before it were handed out.
    failed: Option<Damage>,
}

impl<R: Read> Zstd<R> {
    const PACKING: &str = "zstd";

    fn new(input: Packed<R>) -> Self {
        Self {
            input,
            decoder: FrameDecoder::new(),
            is_within_frame: false,
            is_ended: false,
            failed: None,
        }
    }

    /// Reads a frame's beginning; returns false if there are no more frames.
    fn begin(&mut self) -> Result<bool, Damage> {
        loop {
            let magic = self.input.magic().map_err(Damage::Io)?;
            if magic.is_empty() {
                return Ok(false);
            }
            if magic.len() < ZSTD.len() && ZSTD.starts_with(&magic) {
                return Err(Damage::Cut {
                    packing: Self::PACKING,
                });
            }
            if magic == ZSTD {
                let frame = Cursor::new(magic).chain(&mut self.input);
                let begun = self.decoder.init(frame);
                begun.map_err(|error| self.fault(&error))?;
                return Ok(true);
            }
            if !is_skippable(&magic) {
                return self.input.behind(&magic, Self::PACKING).map(|()| false);
            }
            let mut len = [0; 4];
            let read = self.input.read_exact(&mut len);
            let len = u64::from(u32::from_le_bytes(len));
            let skipped =
                read.and_then(|()| io::copy(&mut self.input.by_ref().take(len), &mut io::sink()));
            match skipped {
                Ok(skipped) if skipped == len => {}
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    return Err(Damage::Io(error));
                }
                _ => {
                    return Err(Damage::Cut {
                        packing: Self::PACKING,
                    });
                }
            }
        }
    }

    fn fault(&self, error: &FrameDecoderError) -> Damage {
        match self.input.is_at_end {
            true => Damage::Cut {
                packing: Self::PACKING,
            },
            false => Damage::Io(damaged(error)),
        }
    }

    fn check(&self) -> Result<(), Damage> {
        let (said, found) = (
            self.decoder.get_checksum_from_data(),
            self.decoder.get_calculated_checksum(),
        );
        if said.is_some() && said != found {
            let error = io::Error::other("zstd: the checksum of a frame is wrong");
            return Err(Damage::Io(error));
        }
        Ok(())
    }
}

impl<R: Read> Source for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Damage> {
        if buffer.is_empty() || self.is_ended {
            return Ok(0);
        }
        loop {
            if !self.is_within_frame {
                if !self.begin()? {
                    self.is_ended = true;
                    return Ok(0);
                }
                self.is_within_frame = true;
            }
            while self.failed.is_none()
                && !self.decoder.is_finished()
                && self.decoder.can_collect() < buffer.len()
            {
                let missing = buffer.len() - self.decoder.can_collect();
                let some = BlockDecodingStrategy::UptoBytes(missing);
                let decoded = self.decoder.decode_blocks(&mut self.input, some);
                self.failed = decoded.err().map(|error| self.fault(&error));
            }
            let count = self.decoder.read(buffer).map_err(Damage::Io)?;
            if count > 0 {
                return Ok(count);
            }
            if let Some(damage) = self.failed.take() {
                return Err(damage);
            }
            self.check()?;
            self.is_within_frame = false;
        }
    }
}
