//! The memory that sockets receive into and send from.

use std::fmt;
use std::io;
use std::ptr::NonNull;

use memmap2::{Advice, MmapMut, MmapOptions};
use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};
use slb_core::HEADROOM;

/// Bytes before each received packet, of which the kernel sees to (its `XDP_PACKET_HEADROOM`): more
/// than any encapsulation takes.
pub const KERNEL_HEADROOM: usize = 256;
const _: () = assert!(KERNEL_HEADROOM >= HEADROOM);

/// The smallest chunk, and the usual one: a packet of 1500 bytes, its link header, and VXLAN.
pub const SMALL_CHUNK: usize = 2048;
/// The largest: the kernel takes no more than a page.
pub const LARGE_CHUNK: usize = 4096;

/// Chunks of memory, one for each frame, on huge pages where the kernel has them.
pub struct Umem {
    map: MmapMut,
    chunk: usize,
    is_huge: bool,
    /// True if an I/O has used the memory: its sockets may outlive it, so no other may.
    pub(crate) is_used: bool,
}

impl Umem {
    /// Memory for `frames` frames of up to `chunk` bytes with their headroom.
    ///
    /// # Errors
    /// There is not so much memory.
    ///
    /// # Panics
    /// `chunk` is neither [`SMALL_CHUNK`] nor [`LARGE_CHUNK`].
    pub fn new(frames: usize, chunk: usize) -> io::Result<Self> {
        const HUGE_BITS: u8 = 21;
        assert!(
            [SMALL_CHUNK, LARGE_CHUNK].contains(&chunk),
            "expected {SMALL_CHUNK} or {LARGE_CHUNK}, got {chunk}"
        );
        let bytes = frames
            .max(1)
            .checked_mul(chunk)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let huge = bytes.next_multiple_of(1 << HUGE_BITS);
        let reserved = MmapOptions::new()
            .len(huge)
            .huge(Some(HUGE_BITS))
            .populate()
            .map_anon();
        let is_huge = reserved.is_ok();
        let map = match reserved {
            Ok(map) => map,
            Err(_) => {
                let map = MmapMut::map_anon(bytes)?;
                // Else it is as good as any memory.
                let _: io::Result<()> = map.advise(Advice::HugePage);
                map
            }
        };
        Ok(Self {
            map,
            chunk,
            is_huge,
            is_used: false,
        })
    }

    /// The chunk that packets of up to `mtu` bytes, from their IP header on, need; `None` where
    /// there is none.
    pub fn chunk_for(mtu: usize) -> Option<usize> {
        // A link header with two VLAN tags.
        let bytes = KERNEL_HEADROOM + 22 + mtu;
        [SMALL_CHUNK, LARGE_CHUNK]
            .into_iter()
            .find(|&chunk| bytes <= chunk)
    }

    /// Returns the number of frames that there is memory for.
    pub fn frames(&self) -> usize {
        self.map.len() / self.chunk
    }

    /// Returns true if the memory is on huge pages that were set aside (`vm.nr_hugepages`).
    pub fn is_huge(&self) -> bool {
        self.is_huge
    }

    /// Returns the registration of the memory for the kernel.
    pub(crate) fn registration(&self) -> XdpUmemReg {
        XdpUmemReg {
            addr: self.map.as_ptr().addr() as u64,
            len: (self.frames() * self.chunk) as u64,
            chunk_size: self.chunk as u32,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        }
    }

    pub(crate) fn chunks(&mut self) -> Chunks {
        Chunks {
            base: NonNull::from(&mut self.map[..]).cast(),
            chunk: self.chunk as u64,
            bytes: (self.frames() * self.chunk) as u64,
        }
    }
}

impl fmt::Debug for Umem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Umem")
            .field("frames", &self.frames())
            .field("chunk", &self.chunk)
            .field("is_huge", &self.is_huge)
            .finish_non_exhaustive()
    }
}

/// The chunks of the memory. An address is an offset from the beginning of the memory, as the
/// kernel has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunks {
    base: NonNull<u8>,
    chunk: u64,
    bytes: u64,
}

// SAFETY: an address of memory that any thread may use; who may, is said where it is used.
unsafe impl Send for Chunks {}

impl Chunks {
    /// The addresses of all chunks.
    pub(crate) fn all(&self) -> impl Iterator<Item = u64> + use<> {
        (0..self.bytes).step_by(self.chunk as usize)
    }

    /// The chunk that an address lies in, and how far into it; `None` where it is in none.
    #[inline]
    pub(crate) fn of(&self, address: u64) -> Option<(u64, usize)> {
        let within = address & (self.chunk - 1);
        (address < self.bytes).then_some((address - within, within as usize))
    }

    /// The chunk that begins at a place in memory and has `len` bytes, if it is one of these.
    #[inline]
    pub(crate) fn at(&self, place: usize, len: usize) -> Option<u64> {
        let offset = place.checked_sub(self.base.as_ptr().addr())? as u64;
        let is_chunk = offset & (self.chunk - 1) == 0 && len as u64 == self.chunk;
        (is_chunk && offset < self.bytes).then_some(offset)
    }

    /// The bytes of a chunk.
    ///
    /// `chunk` is one that [`all`](Self::all) gives, the memory lives for `'m`, and the chunk is
    /// not used elsewhere meanwhile, by the kernel neither.
    #[inline]
    pub(crate) unsafe fn lend<'m>(&self, chunk: u64) -> &'m mut [u8] {
        // SAFETY: the chunk is inside the memory, as the caller has it.
        let start = unsafe { self.base.add(chunk as usize) };
        // SAFETY: so are all its bytes, which were zero to begin with, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.chunk as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_one_chunk_or_none() {
        let mut umem = Umem::new(8, SMALL_CHUNK).unwrap();
        assert!(umem.frames() >= 8);
        let last = umem.frames() as u64 * 2048 - 1;
        let chunks = umem.chunks();
        assert_eq!(chunks.of(0), Some((0, 0)));
        assert_eq!(chunks.of(2048 + 256), Some((2048, 256)));
        assert_eq!(chunks.of(last), Some((last - 2047, 2047)));
        assert_eq!(chunks.of(last + 1), None);
        let base = chunks.base.as_ptr().addr();
        assert_eq!(chunks.at(base + 4096, 2048), Some(4096));
        // A part of a chunk is none, nor is what begins inside one, before them, or behind them.
        assert_eq!(chunks.at(base + 4096, 1024), None);
        assert_eq!(chunks.at(base + 1, 2048), None);
        assert_eq!(chunks.at(base - 2048, 2048), None);
        assert_eq!(chunks.at(base + last as usize + 1, 2048), None);
        assert_eq!(chunks.all().count(), umem.frames());
    }

    #[test]
    fn packets_get_the_chunk_that_they_need() {
        assert_eq!(Umem::chunk_for(1500), Some(SMALL_CHUNK));
        assert_eq!(Umem::chunk_for(1770), Some(SMALL_CHUNK));
        assert_eq!(Umem::chunk_for(1771), Some(LARGE_CHUNK));
        assert_eq!(Umem::chunk_for(3818), Some(LARGE_CHUNK));
        assert_eq!(Umem::chunk_for(9000), None);
    }
}
