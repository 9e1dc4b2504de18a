//! A packet in a caller's buffer, with room to grow at both ends.
//!
//! ```text
//!   buf                off                    off + len              cap
//!    |     headroom     |        bytes()          |      tailroom      |
//! ```
//!
//! The layout equals C's `struct slb_frame`, so both languages can read a burst as an array. A
//! frame borrows the *memory*, not the I/O that it came from: it can outlive a call, and forgetting
//! a frame at worst leaks a buffer.

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::slice;

use crate::prefetch::{CACHE_LINE, prefetch_address};
use crate::verdict::{DropReason, PortId, Verdict};

/// Capacity of a burst in frames.
pub const BURST: usize = 64;

/// A packet, from its Ethernet header on and without the frame check sequence, in a buffer that the
/// frame exclusively borrows for `'m`.
///
/// Invariants: `buf` is valid for reads and writes of `cap` bytes for `'m`, nothing else
/// accesses them meanwhile, and `off + len <= cap`.
#[repr(C)]
pub struct Frame<'m> {
    buf: NonNull<u8>,
    cap: u32,
    off: u32,
    len: u32,
    port: PortId,
    verdict: u8,
    reason: u8,
    memory: PhantomData<&'m mut [u8]>,
}

const PASS: u8 = 0;
const FORWARD: u8 = 1;
const REPLY: u8 = 2;
const DROP: u8 = 3;
const FLOOD: u8 = 4;

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Frame<'static>>() == 24);

// SAFETY: a frame is an exclusive loan of plain bytes, which any thread may hold.
unsafe impl Send for Frame<'_> {}
// SAFETY: a shared frame only permits reading the bytes.
unsafe impl Sync for Frame<'_> {}

impl<'m> Frame<'m> {
    /// A frame without memory, for the unused entries of a burst.
    pub const EMPTY: Self = Self {
        buf: NonNull::dangling(),
        cap: 0,
        off: 0,
        len: 0,
        port: PortId(0),
        verdict: PASS,
        reason: 0,
        memory: PhantomData,
    };

    /// Makes a frame with a packet of `len` bytes that starts `headroom` bytes into `buf`; the rest
    /// is tailroom.
    ///
    /// Returns `None` if the packet does not fit, or if the buffer has more than `u32::MAX` bytes.
    pub fn new(buf: &'m mut [u8], headroom: usize, len: usize) -> Option<Self> {
        let cap = u32::try_from(buf.len()).ok()?;
        if headroom.checked_add(len)? > buf.len() {
            return None;
        }
        Some(Self {
            buf: NonNull::from(buf).cast(),
            cap,
            off: u32::try_from(headroom).ok()?,
            len: u32::try_from(len).ok()?,
            ..Self::EMPTY
        })
    }

    /// Returns the packet, from its Ethernet header on.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `off <= cap`, so the pointer stays inside the buffer.
        let start = unsafe { self.buf.add(self.off as usize) };
        // SAFETY: `off + len <= cap`; the bytes are initialised and only `self` reaches them.
        unsafe { slice::from_raw_parts(start.as_ptr(), self.len as usize) }
    }

    /// Returns the packet, to be changed in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `off <= cap`, so the pointer stays inside the buffer.
        let start = unsafe { self.buf.add(self.off as usize) };
        // SAFETY: `off + len <= cap`, and `&mut self` makes this the only access.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), self.len as usize) }
    }

    /// Returns the packet's length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns true if there is no packet, as in a frame that was never filled.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of free bytes before the packet.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.off as usize
    }

    /// Returns the number of free bytes after the packet.
    #[inline]
    pub fn tailroom(&self) -> usize {
        (self.cap - self.off - self.len) as usize
    }

    /// Grows the packet by `N` bytes at its front and returns them, to be written. Returns `None`,
    /// without a change, if the headroom is too small.
    #[inline]
    pub fn push_front<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        let n = u32::try_from(N).ok()?;
        self.off = self.off.checked_sub(n)?;
        self.len += n; // off + len is as before
        self.bytes_mut().first_chunk_mut()
    }

    /// Replaces the packet's first `old` bytes by `N` bytes, truncates the packet after its first
    /// `end` bytes, and returns all of it; the caller writes the `N` bytes. Returns `None`, without
    /// a change, if the headroom is too small or the packet too short.
    #[inline]
    pub(crate) fn replace_front<const N: usize>(
        &mut self,
        old: usize,
        end: usize,
    ) -> Option<&mut [u8]> {
        let kept = end.checked_sub(old)?;
        if end > self.len() {
            return None;
        }
        let off = (self.headroom() + old).checked_sub(N)?;
        // Both fit: `off + N + kept` is where the first `end` bytes ended.
        self.off = off as u32;
        self.len = (N + kept) as u32;
        Some(self.bytes_mut())
    }

    /// Starts loading the packet's headers, and the line before them, for new headers.
    #[inline]
    pub(crate) fn prefetch(&self) {
        let first = self.buf.as_ptr().wrapping_add(self.off as usize);
        prefetch_address(first);
        prefetch_address(first.wrapping_sub(CACHE_LINE));
    }

    /// Grows the packet by `n` bytes at its end and returns them, to be written; they have the
    /// buffer's old contents. Returns `None`, without a change, if the tailroom is too small.
    pub fn push_back(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.tailroom() {
            return None;
        }
        let old = self.len();
        self.len += u32::try_from(n).ok()?;
        self.bytes_mut().get_mut(old..)
    }

    /// Sets the packet to `bytes`, with room before it for the outer headers. Returns `None`,
    /// without a change, if the buffer is too small.
    pub(crate) fn fill(&mut self, bytes: &[u8]) -> Option<()> {
        let len = u32::try_from(bytes.len()).ok()?;
        let fits = |off: &u32| {
            let end = off.checked_add(len);
            end.is_some_and(|end| end <= self.cap)
        };
        let least = crate::HEADROOM as u32;
        let off = [self.off.max(least), least].into_iter().find(fits)?;
        (self.off, self.len) = (off, len); // off + len <= cap
        self.bytes_mut().copy_from_slice(bytes);
        Some(())
    }

    /// Removes `n` bytes from the front. Returns false, without a change, if the packet is shorter.
    #[inline]
    pub fn trim_front(&mut self, n: usize) -> bool {
        if n > self.len() {
            return false;
        }
        #[expect(clippy::cast_possible_truncation, reason = "n <= len, which is a u32")]
        let n = n as u32;
        self.off += n;
        self.len -= n;
        true
    }

    /// Truncates the packet to its first `len` bytes. Returns false, without a change, if it is
    /// shorter.
    #[inline]
    pub fn truncate(&mut self, len: usize) -> bool {
        if len > self.len() {
            return false;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "len <= self.len, which is a u32"
        )]
        let len = len as u32;
        self.len = len;
        true
    }

    /// Narrows the packet to the bytes from `start` to `end`. Returns false, without a change, if
    /// they are not all in the packet.
    #[inline]
    pub(crate) fn narrow(&mut self, start: u32, end: u32) -> bool {
        if start > end || end > self.len {
            return false;
        }
        self.off += start;
        self.len = end - start;
        true
    }

    /// Returns the port at which the frame arrived; after [`Verdict::Forward`], the port by which
    /// it should leave.
    #[inline]
    pub fn port(&self) -> PortId {
        self.port
    }

    /// Sets the port at which the frame arrived.
    #[inline]
    pub fn set_port(&mut self, port: PortId) {
        self.port = port;
    }

    /// Returns the verdict of the last dataplane that processed the frame; `Pass` if none has.
    #[inline]
    pub fn verdict(&self) -> Verdict {
        match self.verdict {
            FORWARD => Verdict::Forward(self.port),
            REPLY => Verdict::Reply,
            FLOOD => Verdict::Flood,
            DROP => match DropReason::ALL.get(usize::from(self.reason).wrapping_sub(1)) {
                Some(&reason) => Verdict::Drop(reason),
                None => Verdict::Pass, // only a C caller could have written it
            },
            _ => Verdict::Pass,
        }
    }

    /// Sets the verdict.
    #[inline]
    pub fn set_verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Forward(port) => {
                self.verdict = FORWARD;
                self.port = port;
            }
            Verdict::Reply => self.verdict = REPLY,
            Verdict::Flood => self.verdict = FLOOD,
            Verdict::Pass => self.verdict = PASS,
            Verdict::Drop(reason) => {
                self.verdict = DROP;
                self.reason = reason as u8 + 1; // in C, 0 is none
            }
        }
    }

    /// Returns the address of the buffer's first byte, by which an I/O with its own memory
    /// recognizes a returned buffer.
    pub fn buffer_address(&self) -> usize {
        self.buf.as_ptr().addr()
    }

    /// Returns the whole buffer.
    pub fn into_buffer(self) -> &'m mut [u8] {
        // SAFETY: `buf` is valid for `cap` bytes for `'m`, and the frame, the only other access to
        // them, is consumed.
        unsafe { slice::from_raw_parts_mut(self.buf.as_ptr(), self.cap as usize) }
    }
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("len", &self.len)
            .field("headroom", &self.headroom())
            .field("tailroom", &self.tailroom())
            .field("port", &self.port)
            .field("verdict", &self.verdict())
            .finish()
    }
}

/// Up to [`BURST`] frames, inline.
#[derive(Debug)]
pub struct Burst<'m> {
    frames: [Frame<'m>; BURST],
    len: usize,
}

impl<'m> Burst<'m> {
    /// An empty burst.
    pub const fn new() -> Self {
        Self {
            frames: [const { Frame::EMPTY }; BURST],
            len: 0,
        }
    }

    /// Adds a frame; returns it as an error if the burst is full.
    pub fn push(&mut self, frame: Frame<'m>) -> Result<(), Frame<'m>> {
        match self.frames.get_mut(self.len) {
            Some(place) => {
                *place = frame;
                self.len += 1;
                Ok(())
            }
            None => Err(frame),
        }
    }

    /// Removes and returns the last frame.
    pub fn pop(&mut self) -> Option<Frame<'m>> {
        let last = self.len.checked_sub(1)?;
        self.len = last;
        self.frames
            .get_mut(last)
            .map(|place| core::mem::replace(place, Frame::EMPTY))
    }

    /// Removes all frames, and yields them in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Frame<'m>> + '_ {
        let len = core::mem::take(&mut self.len);
        self.frames
            .iter_mut()
            .take(len)
            .map(|place| core::mem::replace(place, Frame::EMPTY))
    }

    /// Returns true if no further frame fits.
    pub fn is_full(&self) -> bool {
        self.len == BURST
    }
}

impl Default for Burst<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'m> Deref for Burst<'m> {
    type Target = [Frame<'m>];

    fn deref(&self) -> &Self::Target {
        self.frames.get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for Burst<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.frames.get_mut(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_and_trimming_keep_inside_the_buffer() {
        let mut buf = [0u8; 16];
        let mut frame = Frame::new(&mut buf, 4, 8).unwrap();
        assert_eq!((frame.headroom(), frame.len(), frame.tailroom()), (4, 8, 4));
        frame.push_front::<4>().unwrap().copy_from_slice(b"head");
        assert!(frame.push_front::<1>().is_none());
        frame.push_back(4).unwrap().copy_from_slice(b"tail");
        assert!(frame.push_back(1).is_none());
        assert_eq!(frame.bytes(), b"head\0\0\0\0\0\0\0\0tail");
        assert!(!frame.trim_front(17));
        assert!(frame.trim_front(12));
        assert_eq!(frame.bytes(), b"tail");
        assert!(!frame.truncate(5));
        assert!(frame.truncate(1));
        assert_eq!(
            (frame.headroom(), frame.bytes(), frame.tailroom()),
            (12, &b"t"[..], 3)
        );
        assert_eq!(frame.into_buffer().len(), 16);
    }

    #[test]
    fn a_frame_that_does_not_fit_is_refused() {
        let mut buf = [0u8; 16];
        assert!(Frame::new(&mut buf, 9, 8).is_none());
        assert!(Frame::new(&mut buf, usize::MAX, 8).is_none());
        assert!(Frame::new(&mut buf, 16, 0).is_some());
    }

    #[test]
    fn verdicts_are_kept() {
        let mut frame = Frame::EMPTY;
        frame.set_port(PortId(7));
        for verdict in [
            Verdict::Reply,
            Verdict::Flood,
            Verdict::Pass,
            Verdict::Forward(PortId(9)),
        ] {
            frame.set_verdict(verdict);
            assert_eq!(frame.verdict(), verdict);
        }
        for &reason in DropReason::ALL {
            frame.set_verdict(Verdict::Drop(reason));
            assert_eq!(frame.verdict(), Verdict::Drop(reason));
        }
        assert_eq!(frame.port(), PortId(9));
    }

    #[test]
    fn a_burst_keeps_order_and_refuses_the_65th() {
        let mut memory = [[0u8; 4]; BURST + 1];
        let mut burst = Burst::new();
        let mut refused = 0;
        for (i, buf) in memory.iter_mut().enumerate() {
            buf[0] = i as u8;
            refused += usize::from(burst.push(Frame::new(buf, 0, 1).unwrap()).is_err());
        }
        assert_eq!((burst.len(), refused), (BURST, 1));
        assert_eq!(burst.pop().unwrap().bytes(), [63]);
        let first: [u8; 63] = core::array::from_fn(|i| i as u8);
        assert!(burst.drain().map(|frame| frame.bytes()[0]).eq(first));
        assert!(burst.is_empty() && burst.pop().is_none());
    }
}
