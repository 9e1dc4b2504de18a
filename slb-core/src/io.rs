//! Packet I/O: the trait between the dataplane and devices.

use crate::frame::Burst;

/// A source and sink of frames, such as a NIC queue, a TUN device, a capture or the caller's ring.
///
/// Frames are *moved*: `receive` hands out frames that borrow the memory `'m`, and `transmit`
/// takes them back, so nothing is copied between the I/O and the dataplane, and the loop of
/// three lines (see the [crate]'s first page) borrow-checks.
///
/// An I/O with its own memory has to check in `transmit` that a frame lies inside it, since safe
/// code can pass it any frame. It has to count foreign frames and set them aside.
pub trait PacketIo<'m> {
    /// An error of the device itself. A single bad packet is not an error.
    type Error;

    /// Moves all received frames that fit to the end of `burst`, without waiting, and returns their
    /// number.
    ///
    /// # Errors
    /// The device failed. Frames that were already moved stay in the burst and are valid.
    fn receive(&mut self, burst: &mut Burst<'m>) -> Result<usize, Self::Error>;

    /// Takes every frame out of `burst`, carries out its verdict, and returns the number of frames
    /// that were queued for sending. The burst is empty afterwards, also after an error. Every port
    /// except [its own](crate::Frame::port) gets a copy of a frame to
    /// [flood](crate::Verdict::Flood).
    ///
    /// # Errors
    /// The device failed. Frames that it could not send are lost, and the I/O counts them.
    fn transmit(&mut self, burst: &mut Burst<'m>) -> Result<usize, Self::Error>;

    /// Moves up to `n` empty frames to `spare`, for packets that the dataplane generates, and
    /// returns their number. Give unused ones back with `transmit`, which drops frames without a
    /// verdict to send them.
    fn reserve(&mut self, spare: &mut Burst<'m>, n: usize) -> usize;
}
