//! Buffers for the frames of an I/O that has its own memory.

use alloc::vec::Vec;
use core::fmt;

use crate::HEADROOM;
use crate::frame::Frame;

/// Length of a cache line in bytes, to which buffers are aligned.
const LINE: usize = 64;

/// A pool of equal buffers in one piece of memory, each free or lent out as a frame.
///
/// Nothing is allocated after [`new`](Self::new).
///
/// # Examples
/// ```
/// use slb_core::pool::FramePool;
///
/// let mut memory = vec![0; FramePool::memory_for(2, 1518)];
/// let mut pool = FramePool::new(&mut memory, 1518);
/// let frame = pool.frame().expect("two buffers are free");
/// let index = pool.index_of(&frame).expect("the frame is the pool's");
/// assert!(index < pool.len());
/// pool.put(frame.into_buffer());
/// ```
pub struct FramePool<'m> {
    free: Vec<&'m mut [u8]>,
    base: usize,
    stride: usize,
    len: usize,
}

impl<'m> FramePool<'m> {
    /// Offset of a received packet in its buffer, in bytes: room for the outer headers, in whole
    /// cache lines.
    pub const START: usize = HEADROOM.next_multiple_of(LINE);

    /// Divides memory into buffers for frames of up to `frame_len` bytes. The rest of the memory is
    /// not used.
    pub fn new(memory: &'m mut [u8], frame_len: usize) -> Self {
        let (base, stride) = (memory.as_ptr().addr(), stride_for(frame_len));
        let free: Vec<_> = memory.chunks_exact_mut(stride).rev().collect();
        Self {
            len: free.len(),
            free,
            base,
            stride,
        }
    }

    /// Returns the bytes of memory for `frames` frames of up to `frame_len` bytes.
    pub const fn memory_for(frames: usize, frame_len: usize) -> usize {
        frames * stride_for(frame_len)
    }

    /// Takes a free buffer, of at least [`START`](Self::START) and the length of a frame.
    #[inline]
    pub fn take(&mut self) -> Option<&'m mut [u8]> {
        self.free.pop()
    }

    /// Takes a free buffer as a frame without a packet, with headroom.
    #[inline]
    pub fn frame(&mut self) -> Option<Frame<'m>> {
        Frame::new(self.take()?, Self::START, 0)
    }

    /// Frees a buffer. A buffer of another pool is dropped.
    #[inline]
    pub fn put(&mut self, buffer: &'m mut [u8]) {
        let is_own = buffer.len() == self.stride && self.index_at(buffer.as_ptr().addr()).is_some();
        if is_own {
            self.free.push(buffer); // there is room for all buffers of the pool
        }
    }

    /// Returns the number of buffers, free and lent out.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if the memory has no room for a buffer.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the index of a frame's buffer, below [`len`](Self::len); `None` for a frame in other
    /// memory.
    #[inline]
    pub fn index_of(&self, frame: &Frame<'_>) -> Option<usize> {
        self.index_at(frame.buffer_address())
    }

    #[inline]
    fn index_at(&self, address: usize) -> Option<usize> {
        let offset = address.checked_sub(self.base)?;
        let index = offset / self.stride;
        (offset % self.stride == 0 && index < self.len).then_some(index)
    }
}

/// Returns the length of a buffer: an odd number of cache lines, so that buffers do not share cache
/// sets.
const fn stride_for(frame_len: usize) -> usize {
    (FramePool::START + frame_len).next_multiple_of(2 * LINE) + LINE
}

impl fmt::Debug for FramePool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramePool")
            .field("len", &self.len)
            .field("free", &self.free.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn each_buffer_is_lent_once_and_comes_back() {
        let mut memory = vec![0; FramePool::memory_for(3, 1518)];
        let mut pool = FramePool::new(&mut memory, 1518);
        let frames: Vec<_> = core::iter::from_fn(|| pool.frame()).collect();
        let mut indexes: Vec<_> = frames.iter().map(|frame| pool.index_of(frame)).collect();
        indexes.sort();
        assert_eq!(indexes, [Some(0), Some(1), Some(2)]);
        for frame in frames {
            assert!(frame.headroom() >= HEADROOM && frame.tailroom() >= 1518);
            pool.put(frame.into_buffer());
        }
        assert_eq!(core::iter::from_fn(|| pool.take()).count(), 3);
    }

    #[test]
    fn buffers_of_others_are_not_taken() {
        let (mut memory, mut other) = (
            vec![0; FramePool::memory_for(1, 1518)],
            vec![0; FramePool::memory_for(1, 1518)],
        );
        let mut pool = FramePool::new(&mut memory, 1518);
        let own = pool.take().unwrap();
        let (part, rest) = own.split_at_mut(FramePool::START);
        let frame = Frame::new(&mut other, FramePool::START, 0).unwrap();
        assert_eq!(pool.index_of(&frame), None);
        pool.put(frame.into_buffer());
        // Parts of an own buffer are no buffers either.
        pool.put(part);
        pool.put(rest);
        assert!(pool.take().is_none());
    }

    #[test]
    fn too_little_memory_has_no_buffer() {
        let mut memory = vec![0; FramePool::memory_for(1, 64) - 1];
        let mut pool = FramePool::new(&mut memory, 64);
        assert!(pool.is_empty() && pool.frame().is_none());
        assert!(FramePool::new(&mut [], usize::MAX / 2).is_empty());
    }
}
