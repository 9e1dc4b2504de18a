//! The memory of packets, for receiving and sending.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};
use slb_core::HEADROOM;

/// The number of bytes that the kernel leaves before each received packet (`XDP_PACKET_HEADROOM`):
/// enough for any encapsulation.
pub const KERNEL_HEADROOM: usize = 256;
const _: () = assert!(KERNEL_HEADROOM >= HEADROOM);

/// The smallest and default chunk size: enough for a packet of 1500 bytes with link header and
/// VXLAN.
pub const SMALL_CHUNK: usize = 2048;
/// The largest chunk size: the kernel allows at most a page.
pub const LARGE_CHUNK: usize = 4096;

/// Huge pages have 2 MiB.
const HUGE_BITS: u8 = 21;

/// Chunks of memory, one for each frame, on huge pages if the kernel has them.
pub struct Umem {
    map: MmapRaw,
    /// The file of the memory, if another process can take it over.
    file: Option<OwnedFd>,
    chunk: usize,
    is_huge: bool,
    /// True if an I/O has used the memory: its sockets may outlive it, so no other may.
    pub(crate) is_used: bool,
}

impl Umem {
    /// Allocates memory for `frames` frames of up to `chunk` bytes, including headroom.
    ///
    /// # Errors
    /// There is not enough memory.
    ///
    /// # Panics
    /// `chunk` is neither [`SMALL_CHUNK`] nor [`LARGE_CHUNK`].
    pub fn new(frames: usize, chunk: usize) -> io::Result<Self> {
        let bytes = bytes_for(frames, chunk)?;
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
                // Without huge pages, the memory is still usable.
                let _: io::Result<()> = map.advise(Advice::HugePage);
                map
            }
        };
        Ok(Self {
            map: map.into(),
            file: None,
            chunk,
            is_huge,
            is_used: false,
        })
    }

    /// Allocates memory like [`new`](Self::new), which another process can take over by its
    /// [file](Self::file). Without reserved huge pages, most kernels use only small pages for it
    /// (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`).
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    ///
    /// # Panics
    /// As for [`new`](Self::new).
    pub fn shareable(frames: usize, chunk: usize) -> io::Result<Self> {
        let bytes = bytes_for(frames, chunk)?;
        let make = |flags: MemfdFlags, len: usize| {
            let file = memfd_create("slb packets", flags | MemfdFlags::CLOEXEC)?;
            ftruncate(&file, len as u64)?;
            let is_huge = flags.contains(MemfdFlags::HUGETLB);
            let mut options = MmapOptions::new();
            options.len(len);
            if is_huge {
                options.populate();
            }
            let map = options.map_raw(file.as_raw_fd())?;
            Ok::<_, io::Error>(Self {
                map,
                file: Some(file),
                chunk,
                is_huge,
                is_used: false,
            })
        };
        let huge = bytes.next_multiple_of(1 << HUGE_BITS);
        let own = match make(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, huge) {
            Ok(own) => return Ok(own),
            Err(_) => make(MemfdFlags::empty(), bytes)?,
        };
        // Without huge pages, the memory is still usable.
        let _: io::Result<()> = own.map.advise(Advice::HugePage);
        Ok(own)
    }

    /// Takes over memory that another process made with [`shareable`](Self::shareable) and no
    /// longer uses.
    ///
    /// # Errors
    /// The file is no such memory: its length is not a multiple of `chunk`, or it cannot be mapped.
    ///
    /// # Panics
    /// As for [`new`](Self::new).
    pub fn from_file(file: OwnedFd, chunk: usize) -> io::Result<Self> {
        bytes_for(1, chunk)?;
        let len = usize::try_from(fstat(&file)?.st_size).unwrap_or(0);
        if len == 0 || !len.is_multiple_of(chunk) {
            let message = format!("expected memory of chunks of {chunk} bytes, got {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let map = MmapOptions::new()
            .len(len)
            .populate()
            .map_raw(file.as_raw_fd())?;
        Ok(Self {
            map,
            file: Some(file),
            chunk,
            is_huge: false,
            is_used: false,
        })
    }

    /// Returns the file of memory that another process can take over; `None` for memory of
    /// [`new`](Self::new).
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }

    /// Returns the length of a chunk in bytes.
    pub fn chunk(&self) -> usize {
        self.chunk
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

    /// Returns the number of frames that fit the memory.
    pub fn frames(&self) -> usize {
        self.map.len() / self.chunk
    }

    /// Returns true if the memory is on reserved huge pages (`vm.nr_hugepages`).
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
            // No mapping begins at zero.
            base: NonNull::new(self.map.as_mut_ptr()).unwrap_or(NonNull::dangling()),
            chunk: self.chunk as u64,
            bytes: (self.frames() * self.chunk) as u64,
        }
    }
}

/// Returns the length of `frames` chunks in bytes.
fn bytes_for(frames: usize, chunk: usize) -> io::Result<usize> {
    assert!(
        [SMALL_CHUNK, LARGE_CHUNK].contains(&chunk),
        "expected {SMALL_CHUNK} or {LARGE_CHUNK}, got {chunk}"
    );
    let bytes = frames.max(1).checked_mul(chunk);
    Ok(bytes.ok_or(io::ErrorKind::OutOfMemory)?)
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

/// The chunks of the memory. An address is an offset from the beginning of the memory, as in the
/// kernel's interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunks {
    base: NonNull<u8>,
    chunk: u64,
    bytes: u64,
}

// SAFETY: the address may be used by any thread; each use states its conditions.
unsafe impl Send for Chunks {}

impl Chunks {
    /// Yields the addresses of all chunks.
    pub(crate) fn all(&self) -> impl Iterator<Item = u64> + use<> {
        (0..self.bytes).step_by(self.chunk as usize)
    }

    /// Returns the chunk of an address, and the offset in the chunk; `None` if the address is in no
    /// chunk.
    #[inline]
    pub(crate) fn of(&self, address: u64) -> Option<(u64, usize)> {
        let within = address & (self.chunk - 1);
        (address < self.bytes).then_some((address - within, within as usize))
    }

    /// Returns the chunk that begins at a place in memory and has `len` bytes, if there is one.
    #[inline]
    pub(crate) fn at(&self, place: usize, len: usize) -> Option<u64> {
        let offset = place.checked_sub(self.base.as_ptr().addr())? as u64;
        let is_chunk = offset & (self.chunk - 1) == 0 && len as u64 == self.chunk;
        (is_chunk && offset < self.bytes).then_some(offset)
    }

    /// Returns the bytes of a chunk.
    ///
    /// `chunk` is one that [`all`](Self::all) yields, the memory lives for `'m`, and nothing else
    /// uses the chunk meanwhile, including the kernel.
    #[inline]
    pub(crate) unsafe fn lend<'m>(&self, chunk: u64) -> &'m mut [u8] {
        // SAFETY: the chunk is inside the memory, as the caller guarantees.
        let start = unsafe { self.base.add(chunk as usize) };
        // SAFETY: all bytes of the chunk are inside the memory and initialised, and have no other
        // owner.
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
    fn memory_that_is_handed_over_has_the_same_bytes() {
        let mut first = Umem::shareable(8, SMALL_CHUNK).unwrap();
        assert!(Umem::new(1, SMALL_CHUNK).unwrap().file().is_none());
        let file = first.file().unwrap().try_clone_to_owned().unwrap();
        let mut second = Umem::from_file(file, SMALL_CHUNK).unwrap();
        assert_eq!(first.frames(), second.frames());
        let (one, other) = (first.chunks(), second.chunks());
        // SAFETY: the chunk is one of the memory's, and nobody else uses either mapping.
        unsafe { one.lend(2048) }.fill(7);
        // SAFETY: the same.
        assert!(unsafe { other.lend(2048) }.iter().all(|&byte| byte == 7));
        // Memory that ends within a chunk is refused.
        let cut = memfd_create("cut", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&cut, 2049).unwrap();
        assert!(Umem::from_file(cut, SMALL_CHUNK).is_err());
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
