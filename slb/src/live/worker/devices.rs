//! The devices that a worker moves packets of.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use slb_core::PacketIo;
use slb_io_afxdp::AfXdp;
use slb_io_tun::Tun;

use crate::live::pass::Passing;

/// A device that frames are written to for the kernel, for as long as the worker lives.
#[derive(Clone)]
pub(super) struct ToKernel(pub(super) Arc<Passing>);

impl io::Write for ToKernel {
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.0.send(frame).map(|()| frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The requirements of the loop on an I/O besides moving frames.
pub(super) trait LiveIo<'m>: PacketIo<'m, Error = io::Error> {
    /// Waits for packets, or until a bell rings.
    fn wait(&self, most: Duration, bell: Option<BorrowedFd<'_>>) -> io::Result<()>;
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

impl<'m> LiveIo<'m> for Tun<'m> {
    fn wait(&self, most: Duration, bell: Option<BorrowedFd<'_>>) -> io::Result<()> {
        Tun::wait_or(self, most, bell)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.stats().named().to_vec()
    }
}

impl<'m> LiveIo<'m> for AfXdp<'m> {
    fn wait(&self, most: Duration, bell: Option<BorrowedFd<'_>>) -> io::Result<()> {
        AfXdp::wait_or(self, most, bell)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let places = self.places();
        let mut counters = self.stats().named().to_vec();
        counters.push(("frames", places.total as u64));
        counters.push(("frames_free", places.free as u64));
        counters.push(("frames_receiving", places.receiving as u64));
        counters.push(("frames_sending", places.sending as u64));
        counters.push(("frames_lent", places.lent as u64));
        counters
    }
}
