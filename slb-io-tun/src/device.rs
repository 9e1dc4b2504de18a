//! One queue of a TUN or TAP device.

use std::ffi::{c_char, c_int, c_short};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use slb_core::wire::ethernet::{self, EtherType};

/// The layer of a device's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// IP packets: TUN.
    Ip,
    /// Ethernet frames: TAP.
    Ethernet,
}

/// A queue of a device, in non-blocking mode.
#[derive(Debug)]
pub struct Device {
    file: File,
    layer: Layer,
}

/// The reason why a device cannot be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The name is invalid: a name has 1 to 15 bytes, without zeros, slashes and spaces.
    Name(String),
    /// `/dev/net/tun` cannot be opened: the module or the permission to read and write is missing.
    Driver(io::Error),
    /// The device cannot be attached: CAP_NET_ADMIN is missing, the device is of the other kind, or
    /// it is in use.
    Attach(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => {
                write!(f, "{name:?} is no name of a device: expected 1 to 15 bytes")
            }
            Self::Driver(error) => write!(f, "/dev/net/tun cannot be opened: {error}"),
            Self::Attach(error) => write!(
                f,
                "the device cannot be attached to: {error} (it takes CAP_NET_ADMIN, and a device of \
                 this kind that nobody else has)"
            ),
        }
    }
}

impl std::error::Error for OpenError {}

const NAME_LEN: usize = 16;
const IFF_TUN: c_short = 0x0001;
const IFF_TAP: c_short = 0x0002;
const IFF_NO_PI: c_short = 0x1000;
const IFF_MULTI_QUEUE: c_short = 0x0100;

/// The kernel's `struct ifreq`, as far as attaching needs it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Request {
    name: [c_char; NAME_LEN],
    flags: c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == 40);

/// The time for which a device may be busy after its owner has ended, since io_uring releases it
/// later.
const LET_GO: Duration = Duration::from_millis(500);

/// TUNSETIFF.
struct Attach(Request);

// SAFETY: the opcode takes a pointer to a `struct ifreq`, which `as_ptr` gives, and nothing else.
unsafe impl Ioctl for Attach {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        rustix::ioctl::opcode::write::<c_int>(b'T', 202)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

impl Device {
    /// Attaches to a device, and creates it if it does not exist. With `multi_queue`, the device
    /// can be opened several times, always with this flag, and the kernel spreads flows over the
    /// queues.
    ///
    /// # Errors
    /// The name is invalid, or the kernel refuses.
    pub fn open(name: &str, layer: Layer, multi_queue: bool) -> Result<Self, OpenError> {
        const O_NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let bad = |byte: &u8| matches!(byte, 0 | b'/' | b' ');
        if name.is_empty() || name.len() >= NAME_LEN || name.as_bytes().iter().any(bad) {
            return Err(OpenError::Name(name.to_owned()));
        }
        let mut request = Request {
            name: [0; NAME_LEN],
            flags: IFF_NO_PI
                | match layer {
                    Layer::Ip => IFF_TUN,
                    Layer::Ethernet => IFF_TAP,
                }
                | if multi_queue { IFF_MULTI_QUEUE } else { 0 },
            rest: [0; 22],
        };
        for (to, from) in request.name.iter_mut().zip(name.bytes()) {
            *to = from as c_char;
        }
        let end = Instant::now() + LET_GO;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(O_NONBLOCK)
                .open("/dev/net/tun")
                .map_err(OpenError::Driver)?;
            // SAFETY: the file belongs to the TUN driver, which has this opcode.
            match unsafe { ioctl(&file, Attach(request)) } {
                Ok(()) => return Ok(Self { file, layer }),
                Err(Errno::BUSY) if Instant::now() < end => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(OpenError::Attach(error.into())),
            }
        }
    }

    /// Continues to use a device that another process opened and handed over. `layer` is the layer
    /// with which it was opened.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput): the file is not attached to the device `name`. Else its
    /// description in `/proc` cannot be read.
    pub fn from_file(file: OwnedFd, name: &str, layer: Layer) -> io::Result<Self> {
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let attached = about.lines().find_map(|line| line.strip_prefix("iff:"));
        match attached.map(str::trim) == Some(name) {
            true => Ok(Self {
                file: file.into(),
                layer,
            }),
            false => {
                let message = format!("expected a file of the device {name}, got {attached:?}");
                Err(io::Error::new(io::ErrorKind::InvalidInput, message))
            }
        }
    }

    /// Returns the layer of its packets.
    pub fn layer(&self) -> Layer {
        self.layer
    }

    /// Writes a frame: the whole frame to a TAP device, its IP packet to a TUN device. A device
    /// accepts a frame as a whole, or not at all.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput): the frame for a TUN device has no IP packet.
    /// Otherwise the device did not accept the frame: its queue is full, or the device is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let bytes = self.part_of(frame).ok_or(io::ErrorKind::InvalidInput)?;
        (&self.file).write_all(bytes)
    }

    /// Returns the part of a frame that the device carries, if it can.
    pub(crate) fn part_of<'f>(&self, frame: &'f [u8]) -> Option<&'f [u8]> {
        match self.layer {
            Layer::Ethernet => Some(frame),
            Layer::Ip => without_link(frame),
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// Returns the IP packet of an untagged frame.
pub(crate) fn without_link(frame: &[u8]) -> Option<&[u8]> {
    let (header, packet) = frame.split_first_chunk::<{ ethernet::HEADER_LEN }>()?;
    let ether_type = EtherType(u16::from_be_bytes([header[12], header[13]]));
    matches!(ether_type, EtherType::IPV4 | EtherType::IPV6).then_some(packet)
}

impl io::Write for Device {
    /// Writes a frame like [`send`](Self::send).
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.send(frame).map(|()| frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl From<Device> for OwnedFd {
    /// Returns the file of the device, for [`Device::from_file`] in another process.
    fn from(device: Device) -> Self {
        device.file.into()
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_device_can_have_are_refused_before_the_kernel_is_asked() {
        for name in ["", "sixteen-bytes-it", "a b", "a/b", "a\0b"] {
            let opened = Device::open(name, Layer::Ip, false);
            assert!(matches!(opened, Err(OpenError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_device_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let device = Device::from_file(file.into(), "vips", Layer::Ip);
        assert_eq!(device.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
