//! A ring between the kernel and one thread: one produces, the other consumes.
//!
//! ```text
//!            consumer            producer
//!   ──┬─────────┬───────────────────┬──────────
//!     │ free    │ filled            │ free
//!   ──┴─────────┴───────────────────┴──────────
//! ```
//! Both counters only increase, and wrap at 2^32; an entry's index is a counter modulo the ring's
//! size, which is a power of two. An entry belongs to the producer until the producer moves its
//! counter past it with *release*, and to the consumer once the consumer reads that counter with
//! *acquire*. Source: the kernel's Documentation/networking/af_xdp.rst, "Rings".

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::net::xdp::{XdpRingFlags, XdpRingOffset};

/// The shared memory of a ring.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: Option<NonNull<AtomicU32>>,
    entries: NonNull<T>,
    /// The ring's size less one.
    mask: u32,
    /// The mapping, which all pointers above refer to.
    _map: MmapRaw,
}

impl<T> Shared<T> {
    /// Maps a ring of a socket with `len` entries, whose parts are at the kernel's offsets.
    fn map(socket: &OwnedFd, page: u64, parts: &XdpRingOffset, len: u32) -> io::Result<Self> {
        assert!(len.is_power_of_two(), "the kernel has taken no other size");
        let bytes = parts.desc as usize + len as usize * size_of::<T>();
        let map = MmapOptions::new()
            .offset(page)
            .len(bytes)
            .populate()
            .map_raw(socket.as_raw_fd())?;
        let at = |offset: u64| {
            assert!(offset as usize + size_of::<u32>() <= bytes);
            // SAFETY: the offset is inside the mapping, as checked above.
            let place = unsafe { map.as_mut_ptr().add(offset as usize) };
            NonNull::new(place).ok_or(io::ErrorKind::InvalidData)
        };
        Ok(Self {
            producer: at(parts.producer)?.cast(),
            consumer: at(parts.consumer)?.cast(),
            flags: parts.flags.map(&at).transpose()?.map(NonNull::cast),
            entries: at(parts.desc)?.cast(),
            mask: len - 1,
            _map: map,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: the pointer is inside the mapping, which lives as long as `self`; both sides
        // access it atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    /// Returns a pointer to an entry, which is always inside the ring.
    fn entry(&self, counter: u32) -> NonNull<T> {
        // SAFETY: the masked index is less than the ring's size, which is the number of mapped
        // entries.
        unsafe { self.entries.add((counter & self.mask) as usize) }
    }
}

// SAFETY: the pointers refer to the ring's own mapping, which any thread may hold; each end is used
// through `&mut`, by one thread at a time.
unsafe impl<T: Send> Send for Shared<T> {}

/// The producing end of a ring whose consumer is the kernel.
#[derive(Debug)]
pub(crate) struct Producer<T> {
    shared: Shared<T>,
    /// The count of written entries, which `submit` shows to the kernel.
    written: u32,
    /// The last seen count of entries that the kernel has consumed.
    consumed: u32,
}

impl<T: Copy> Producer<T> {
    pub(crate) fn map(
        socket: &OwnedFd,
        page: u64,
        parts: &XdpRingOffset,
        len: u32,
    ) -> io::Result<Self> {
        let shared = Shared::map(socket, page, parts, len)?;
        // Zero, unless another process used this end before.
        let written = shared.producer().load(Ordering::Acquire);
        let consumed = shared.consumer().load(Ordering::Acquire);
        Ok(Self {
            shared,
            written,
            consumed,
        })
    }

    /// Returns the number of entries that were ever written, modulo 2^32.
    pub(crate) fn written(&self) -> u32 {
        self.written
    }

    /// Returns the number of entries that can be written.
    #[inline]
    pub(crate) fn room(&mut self) -> u32 {
        let len = self.shared.mask + 1;
        if self.written.wrapping_sub(self.consumed) == len {
            self.consumed = self.shared.consumer().load(Ordering::Acquire);
        }
        len - self.written.wrapping_sub(self.consumed)
    }

    /// Writes an entry; returns it as an error if the ring is full.
    #[inline]
    pub(crate) fn push(&mut self, value: T) -> Result<(), T> {
        if self.room() == 0 {
            return Err(value);
        }
        let entry = self.shared.entry(self.written);
        // SAFETY: the entry is mapped, and free: the kernel does not read it before `submit`.
        unsafe { entry.write(value) };
        self.written = self.written.wrapping_add(1);
        Ok(())
    }

    /// Makes written entries visible to the kernel.
    #[inline]
    pub(crate) fn submit(&self) {
        self.shared
            .producer()
            .store(self.written, Ordering::Release);
    }

    /// Returns true if the kernel has not yet consumed all entries.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.shared.consumer().load(Ordering::Relaxed) != self.written
    }

    /// Returns true if the kernel has to be woken for new entries.
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.shared.flags.is_none_or(|flags| {
            // SAFETY: the pointer is inside the mapping; only the kernel writes the flags,
            // atomically.
            let flags = unsafe { flags.as_ref() }.load(Ordering::Relaxed);
            flags & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
        })
    }
}

/// The consuming end of a ring whose producer is the kernel.
#[derive(Debug)]
pub(crate) struct Consumer<T> {
    shared: Shared<T>,
    /// The count of read entries, which `release` shows to the kernel.
    read: u32,
    /// The last seen count of entries that the kernel has produced.
    produced: u32,
}

impl<T: Copy> Consumer<T> {
    pub(crate) fn map(
        socket: &OwnedFd,
        page: u64,
        parts: &XdpRingOffset,
        len: u32,
    ) -> io::Result<Self> {
        let shared = Shared::map(socket, page, parts, len)?;
        // Zero, unless another process used this end before.
        let read = shared.consumer().load(Ordering::Acquire);
        Ok(Self {
            shared,
            read,
            produced: read,
        })
    }

    /// Returns the number of entries that were ever read, modulo 2^32.
    pub(crate) fn read(&self) -> u32 {
        self.read
    }

    /// Reads the next entry, if there is one.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.read == self.produced {
            self.produced = self.shared.producer().load(Ordering::Acquire);
            if self.read == self.produced {
                return None;
            }
        }
        let entry = self.shared.entry(self.read);
        // SAFETY: the entry is mapped, and the kernel wrote it before moving its counter past it;
        // the kernel does not write it again before `release`.
        let value = unsafe { entry.read() };
        self.read = self.read.wrapping_add(1);
        Some(value)
    }

    /// Returns the entries that were read to the kernel.
    #[inline]
    pub(crate) fn release(&self) {
        self.shared.consumer().store(self.read, Ordering::Release);
    }
}
