//! The bytes of a capture: buffered, and decompressed from gzip or zstd.

use std::io::{self, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, FrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// The number of bytes that are read at once, and the minimum size of the buffer, which grows with
/// the longest record.
const ROOM: usize = 1 << 18;

/// RFC 1952 §2.3.1.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// RFC 8878 §3.1.1.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// RFC 8878 §3.1.2, behind a first byte whose last four bits are the user's.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// An input that may cross threads.
type Input = Box<dyn Read + Send>;

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
            Box::new(MultiGzDecoder::new(whole))
        } else if is_zstd {
            Box::new(Zstd::new(BufReader::new(whole)))
        } else {
            Box::new(whole)
        };
        Ok(Self {
            input,
            buffer: vec![0; ROOM],
            start: 0,
            end: 0,
            offset: 0,
            read,
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
    pub(crate) fn fill(&mut self, len: usize) -> io::Result<()> {
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
        while self.end - self.start < len {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.input.read(room) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The compressed data is truncated, and so are its contents.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
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

/// The frames of a zstd file, concatenated.
struct Zstd<R> {
    input: R,
    decoder: FrameDecoder,
    is_within_frame: bool,
    /// A decoding error, reported after all bytes decoded before it.
    failed: Option<io::Error>,
}

impl<R: Read> Zstd<R> {
    fn new(input: R) -> Self {
        Self {
            input,
            decoder: FrameDecoder::new(),
            is_within_frame: false,
            failed: None,
        }
    }

    /// Reads a frame's beginning; returns false if there are no more frames.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            let mut magic = Vec::new();
            self.input.by_ref().take(4).read_to_end(&mut magic)?;
            if magic.is_empty() {
                return Ok(false);
            }
            if !is_skippable(&magic) {
                let frame = Cursor::new(magic).chain(&mut self.input);
                self.decoder.init(frame).map_err(|error| damaged(&error))?;
                return Ok(true);
            }
            let mut len = [0; 4];
            self.input.read_exact(&mut len)?;
            let len = u64::from(u32::from_le_bytes(len));
            io::copy(&mut self.input.by_ref().take(len), &mut io::sink())?;
        }
    }

    fn check(&self) -> io::Result<()> {
        let (said, found) = (
            self.decoder.get_checksum_from_data(),
            self.decoder.get_calculated_checksum(),
        );
        if said.is_some() && said != found {
            return Err(io::Error::other("zstd: the checksum of a frame is wrong"));
        }
        Ok(())
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_within_frame {
                if !self.begin()? {
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
                self.failed = decoded.err().as_ref().map(damaged);
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            self.check()?;
            self.is_within_frame = false;
        }
    }
}
