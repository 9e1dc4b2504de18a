//! Packet I/O: the one trait between the dataplane and the world.

use crate::frame::Burst;

/// A source and sink of frames: a NIC queue, a TUN device, a capture, a ring of the caller's.
///
/// Frames are *moved*: `receive` hands out frames that borrow the memory `'m`, and `transmit`
/// takes them back, so nothing is copied between the I/O and the dataplane, and the loop of
/// three lines (see the [crate]'s first page) borrow-checks.
///
/// An I/O with memory of its own has to check, in `transmit`, that a frame lies inside it: safe
/// code can hand it any frame. One that is not its own it must count and set aside.
pub trait PacketIo<'m> {
    /// An error of the device itself. A single bad packet is no error.
    type Error;

    /// Moves received frames to the end of `burst`, as many as are there and fit, without
    /// waiting; returns how many.
    ///
    /// # Errors
    /// The device failed. Frames that were already moved stay in the burst and are good.
    fn receive(&mut self, burst: &mut Burst<'m>) -> Result<usize, Self::Error>;

    /// Takes every frame out of `burst` and does with it what its verdict says; returns how
    /// many were queued for sending. The burst is empty afterwards, also on an error. Of a frame
    /// to [flood](crate::Verdict::Flood), each port but [its own](crate::Frame::port) gets a copy.
    ///
    /// # Errors
    /// The device failed; frames it could not send are lost, and counted by the I/O.
    fn transmit(&mut self, burst: &mut Burst<'m>) -> Result<usize, Self::Error>;

    /// Moves up to `n` empty frames to `spare`, for packets that the dataplane makes itself;
    /// returns how many. Those not used go back with `transmit`, which drops what has no
    /// verdict to send it.
    fn reserve(&mut self, spare: &mut Burst<'m>, n: usize) -> usize;
}
