//! Reads and writes of many frames in one system call, by io_uring.
//!
//! A batch is complete when a call returns, so the call borrows its frames like any other function,
//! and the kernel uses no frame between two calls. Operations do not block (`RWF_NOWAIT`): a read
//! without a frame returns an error.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use slb_core::BURST;

/// A buffer to read into, and the result.
pub(crate) struct Read<'a> {
    pub(crate) device: BorrowedFd<'a>,
    pub(crate) room: &'a mut [u8],
    pub(crate) result: io::Result<usize>,
}

/// A frame to write, and the result.
pub(crate) struct Write<'a> {
    pub(crate) device: BorrowedFd<'a>,
    pub(crate) bytes: &'a [u8],
    pub(crate) result: io::Result<usize>,
}

pub(crate) struct Uring {
    ring: IoUring,
    /// The beginning and the size of the memory that the kernel has mapped for good.
    mapped: (usize, usize),
}

/// The maximum size of a batch: the reads of a burst, or its writes. A flooded frame has several
/// writes, which may need several batches.
pub(crate) const BATCH: usize = BURST;

impl Uring {
    /// Makes a ring for frames in `memory`, which the kernel maps permanently.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or allows no more locked memory.
    pub(crate) fn new(memory: &mut [u8]) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .build(BATCH as u32)
            .or_else(|_| IoUring::new(BATCH as u32))?;
        let all = libc::iovec {
            iov_base: memory.as_mut_ptr().cast(),
            iov_len: memory.len(),
        };
        // SAFETY: the memory is valid and outlives the ring, whose owner borrows it. Reads go only
        // into buffers of a batch, which borrows the bytes exclusively.
        unsafe { ring.submitter().register_buffers(&[all]) }?;
        Ok(Self {
            ring,
            mapped: (memory.as_ptr().addr(), memory.len()),
        })
    }

    /// Reads a frame into each room, in their order.
    ///
    /// # Errors
    /// The ring failed. Each read's result shows its outcome.
    pub(crate) fn read(&mut self, batch: &mut [Read<'_>]) -> io::Result<()> {
        for batch in batch.chunks_mut(BATCH) {
            for (at, read) in batch.iter_mut().enumerate() {
                let fd = Fd(read.device.as_raw_fd());
                let (place, len) = (read.room.as_mut_ptr(), read.room.len() as u32);
                let entry = match is_inside(self.mapped, place.addr(), read.room.len()) {
                    true => opcode::ReadFixed::new(fd, place, len, 0)
                        .rw_flags(libc::RWF_NOWAIT)
                        .build(),
                    false => opcode::Read::new(fd, place, len)
                        .rw_flags(libc::RWF_NOWAIT)
                        .build(),
                };
                // SAFETY: only the batch uses the room until all of it is complete, below.
                unsafe { push(&mut self.ring, at, &entry) }?;
            }
            finish(&mut self.ring, batch.len(), |at, result| {
                batch[at].result = result;
            })?;
        }
        Ok(())
    }

    /// Writes all frames, in their order.
    ///
    /// # Errors
    /// The ring failed. Each write's result shows its outcome.
    pub(crate) fn write(&mut self, batch: &mut [Write<'_>]) -> io::Result<()> {
        for batch in batch.chunks_mut(BATCH) {
            for (at, write) in batch.iter().enumerate() {
                let fd = Fd(write.device.as_raw_fd());
                let (place, len) = (write.bytes.as_ptr(), write.bytes.len() as u32);
                let entry = match is_inside(self.mapped, place.addr(), write.bytes.len()) {
                    true => opcode::WriteFixed::new(fd, place, len, 0).build(),
                    false => opcode::Write::new(fd, place, len).build(),
                };
                // SAFETY: the batch borrows the bytes until all of it is complete, below.
                unsafe { push(&mut self.ring, at, &entry) }?;
            }
            finish(&mut self.ring, batch.len(), |at, result| {
                batch[at].result = result;
            })?;
        }
        Ok(())
    }
}

fn is_inside((base, size): (usize, usize), place: usize, len: usize) -> bool {
    place >= base && place + len <= base + size
}

/// Puts an entry with a number into the ring.
///
/// # Safety
/// The memory that the entry points to stays valid until [`finish`] has returned.
unsafe fn push(ring: &mut IoUring, number: usize, entry: &Entry) -> io::Result<()> {
    let entry = entry.clone().user_data(number as u64);
    // SAFETY: guaranteed by the caller.
    let pushed = unsafe { ring.submission().push(&entry) };
    // A batch has at most as many entries as the ring, which is empty between two batches.
    pushed.map_err(|_| io::Error::other("the submission ring is full"))
}

/// Submits the entries of the ring, and waits until all are complete.
fn finish(
    ring: &mut IoUring,
    count: usize,
    mut done: impl FnMut(usize, io::Result<usize>),
) -> io::Result<()> {
    let mut left = count;
    while left > 0 {
        match ring.submit_and_wait(left) {
            Ok(_) => {}
            // A signal, or the kernel asks for a retry: submitted entries continue.
            Err(error) if is_passing(&error) => {}
            // The kernel may still access memory that would return to the caller.
            Err(error) => {
                eprintln!("io_uring: {error}, with {left} of {count} under way");
                std::process::abort();
            }
        }
        for completion in ring.completion() {
            left -= 1;
            let result = match usize::try_from(completion.result()) {
                Ok(len) => Ok(len),
                Err(_) => Err(io::Error::from_raw_os_error(-completion.result())),
            };
            done(completion.user_data() as usize, result);
        }
    }
    Ok(())
}

fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EINTR, libc::EAGAIN, libc::EBUSY];
    error
        .raw_os_error()
        .is_some_and(|code| passing.contains(&code))
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").finish_non_exhaustive()
    }
}
