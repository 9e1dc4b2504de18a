//! Devices that cross open to the process that takes over: it goes on where this one stops, and what comes
//! meanwhile waits in them.
//!
//! ```text
//!  length (4), a list in JSON ─► the files that the list names, in its order, some beside each byte "f"
//! ```
//! A queue of a TUN device is one file. The AF_XDP sockets of a worker share the memory of their packets, which
//! is a file, too; the list says which of its chunks the kernel does not have. The length is big-endian.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::{Value, json};
use slb_io_afxdp::{Detached, LARGE_CHUNK, Queue, SMALL_CHUNK, Umem};

use super::device::{Queues, TunKey};

/// Files beside one byte: the kernel takes 253.
const FILES: usize = 128;
/// The longest list, in bytes: 256 queues with the largest rings have less.
const LIST_MOST: u32 = 64 << 20;

/// Open devices, on their way from one process to another.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub(super) tun: Vec<(TunKey, OwnedFd)>,
    pub(super) cards: Vec<OpenCards>,
    /// The device for packets that are the kernel's, by name.
    pub(super) pass: Option<(String, OwnedFd)>,
    /// The interface of announced VIPs.
    pub(super) announced: Option<OwnedFd>,
}

/// The AF_XDP sockets of a worker, and the memory of their packets.
#[derive(Debug)]
pub(super) struct OpenCards {
    /// Number of the interface, queue and port of each socket.
    pub(super) queues: Vec<[u32; 3]>,
    pub(super) memory: OwnedFd,
    /// Bytes of a chunk.
    pub(super) chunk: usize,
    pub(super) detached: Detached,
}

impl OpenCards {
    /// The names of queues in the list.
    pub(super) fn names_of(queues: &[Queue]) -> Vec<[u32; 3]> {
        let name = |queue: &Queue| [queue.interface.index, queue.queue, queue.port.0.into()];
        queues.iter().map(name).collect()
    }

    /// Maps the memory. `None` if the sockets are of other queues, or have smaller rings or chunks or fewer
    /// chunks than asked for.
    pub(super) fn open(
        self,
        queues: &[Queue],
        ring: u32,
        chunk: usize,
        frames: usize,
    ) -> Option<(Umem, Detached)> {
        let fits = self.queues == Self::names_of(queues)
            && self.detached.ring == ring
            && self.chunk >= chunk
            && [SMALL_CHUNK, LARGE_CHUNK].contains(&self.chunk);
        let memory = fits.then(|| Umem::from_file(self.memory, self.chunk).ok())??;
        (memory.frames() >= frames).then_some((memory, self.detached))
    }
}

impl Devices {
    /// Takes out the devices that a worker goes on with.
    pub(super) fn take_for(&mut self, queues: &Queues) -> Self {
        let mut own = Self::default();
        match queues {
            Queues::Tun(wanted) => {
                for queue in wanted {
                    let place = self.tun.iter().position(|(key, _)| *key == queue.key());
                    own.tun
                        .extend(place.map(|place| self.tun.swap_remove(place)));
                }
            }
            Queues::AfXdp(wanted, _) => {
                let names = OpenCards::names_of(wanted);
                let place = self.cards.iter().position(|open| open.queues == names);
                own.cards
                    .extend(place.map(|place| self.cards.swap_remove(place)));
            }
        }
        own
    }

    /// Adds the devices of a worker that has stopped.
    pub(super) fn extend(&mut self, more: Self) {
        self.tun.extend(more.tun);
        self.cards.extend(more.cards);
    }

    /// Sends the devices to the process that takes over.
    ///
    /// # Errors
    /// The other process is gone, or the kernel does not pass the files on.
    pub(super) fn send(&self, stream: &mut UnixStream) -> io::Result<()> {
        let list = self.list().to_string();
        let len = u32::try_from(list.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        stream.write_all(&len.to_be_bytes())?;
        stream.write_all(list.as_bytes())?;
        let mut files: Vec<BorrowedFd<'_>> = Vec::new();
        files.extend(self.tun.iter().map(|(_, file)| file.as_fd()));
        for open in &self.cards {
            files.push(open.memory.as_fd());
            files.extend(open.detached.sockets.iter().map(|socket| socket.as_fd()));
        }
        files.extend(self.pass.iter().map(|(_, file)| file.as_fd()));
        files.extend(self.announced.iter().map(|file| file.as_fd()));
        for some in files.chunks(FILES) {
            send_files(stream, some)?;
        }
        Ok(())
    }

    /// Receives devices from the process before this one.
    ///
    /// # Errors
    /// The other process is gone, or does not send what it says.
    pub(super) fn receive(stream: &mut UnixStream) -> io::Result<Self> {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let len = u32::from_be_bytes(len);
        if len > LIST_MOST {
            return Err(bad(&format!("a list of {len} bytes")));
        }
        let mut list = Vec::new();
        io::Read::by_ref(stream)
            .take(len.into())
            .read_to_end(&mut list)?;
        if list.len() as u64 != u64::from(len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let list: Value = serde_json::from_slice(&list).map_err(|error| bad(&error.to_string()))?;
        Self::from_list(&list, stream).map_err(|error| match error {
            None => bad("a list with other fields"),
            Some(error) => error,
        })
    }

    fn list(&self) -> Value {
        let tun = self.tun.iter().map(|(key, _)| key.to_list());
        let cards = self.cards.iter().map(|open| {
            json!({
                "queues": open.queues,
                "chunk": open.chunk,
                "ring": open.detached.ring,
                "free": open.detached.free,
            })
        });
        json!({
            "tun": tun.collect::<Vec<_>>(),
            "cards": cards.collect::<Vec<_>>(),
            "pass": self.pass.as_ref().map(|(name, _)| name),
            "announced": self.announced.is_some(),
        })
    }

    /// `None` as the error: the list is not one of this version's.
    fn from_list(list: &Value, stream: &UnixStream) -> Result<Self, Option<io::Error>> {
        let mut files = Files {
            stream,
            received: Vec::new().into_iter(),
            left: 0,
        };
        let tun: Vec<TunKey> = all(&list["tun"], TunKey::from_list).ok_or(None)?;
        let cards = all(&list["cards"], |open| {
            let queues = all(&open["queues"], |name| {
                let name = all(name, |part| u32::try_from(part.as_u64()?).ok())?;
                <[u32; 3]>::try_from(name).ok()
            })?;
            let free = all(&open["free"], Value::as_u64)?;
            let ring = u32::try_from(open["ring"].as_u64()?).ok()?;
            let chunk = usize::try_from(open["chunk"].as_u64()?).ok()?;
            Some((queues, chunk, ring, free))
        });
        let cards = cards.ok_or(None)?;
        let pass = match &list["pass"] {
            Value::Null => None,
            name => Some(name.as_str().ok_or(None)?.to_owned()),
        };
        let is_announced = list["announced"].as_bool().ok_or(None)?;
        let of_cards = cards.iter().map(|(queues, ..)| queues.len() + 1);
        files.left = tun.len()
            + of_cards.sum::<usize>()
            + usize::from(pass.is_some())
            + usize::from(is_announced);
        let mut own = Self::default();
        for key in tun {
            own.tun.push((key, files.next()?));
        }
        for (queues, chunk, ring, free) in cards {
            let memory = files.next()?;
            let sockets = queues.iter().map(|_| files.next());
            let sockets = sockets.collect::<io::Result<Vec<_>>>()?;
            own.cards.push(OpenCards {
                queues,
                memory,
                chunk,
                detached: Detached {
                    sockets,
                    ring,
                    free,
                },
            });
        }
        if let Some(name) = pass {
            own.pass = Some((name, files.next()?));
        }
        if is_announced {
            own.announced = Some(files.next()?);
        }
        Ok(own)
    }
}

/// The items of a list, if each is right.
fn all<T>(list: &Value, item: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    list.as_array()?.iter().map(item).collect()
}

fn bad(what: &str) -> io::Error {
    let message = format!("expected a list of open devices, got {what}");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Files that come in the order of a list.
struct Files<'s> {
    stream: &'s UnixStream,
    received: std::vec::IntoIter<OwnedFd>,
    /// The number of files that have not come yet.
    left: usize,
}

impl Files<'_> {
    fn next(&mut self) -> io::Result<OwnedFd> {
        if self.received.len() == 0 {
            let files = receive_files(self.stream, self.left.min(FILES))?;
            self.left -= files.len();
            self.received = files.into_iter();
        }
        self.received.next().ok_or_else(|| bad("fewer files"))
    }
}

/// Sends files beside a byte.
fn send_files(stream: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !beside.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(
            stream,
            &[IoSlice::new(b"f")],
            &mut beside,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// Receives so many files beside a byte.
fn receive_files(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut byte)];
        recvmsg(stream, &mut parts, &mut beside, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut files = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            files.extend(some);
        }
    }
    match received.bytes == 1 && files.len() == count {
        true => Ok(files),
        false => Err(bad(&format!("{} of {count} files", files.len()))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().expect("a file").into()
    }

    fn inode(file: &OwnedFd) -> u64 {
        let file = File::from(file.try_clone().expect("a file"));
        file.metadata().expect("a file").ino()
    }

    fn open(count: u32) -> OpenCards {
        OpenCards {
            queues: (0..count).map(|queue| [7, queue, 0]).collect(),
            memory: file(),
            chunk: SMALL_CHUNK,
            detached: Detached {
                sockets: (0..count).map(|_| file()).collect(),
                ring: 2048,
                free: vec![0, 4096],
            },
        }
    }

    #[test]
    fn devices_cross_with_their_files() {
        let key = TunKey::from_list(&json!(["slb0", "ethernet", true, 3])).expect("a key");
        let devices = Devices {
            tun: vec![(key.clone(), file())],
            // More files than go beside one byte.
            cards: vec![open(3), open(200)],
            pass: Some(("slb-pass".to_owned(), file())),
            announced: Some(file()),
        };
        let (mut old, mut new) = UnixStream::pair().expect("a pair");
        let sent = devices.send(&mut old);
        sent.expect("the socket has room");
        let got = Devices::receive(&mut new).expect("it is whole");
        assert_eq!(got.tun.len(), 1);
        assert_eq!(got.tun[0].0, key);
        assert_eq!(inode(&got.tun[0].1), inode(&devices.tun[0].1));
        for (got, sent) in got.cards.iter().zip(&devices.cards) {
            assert_eq!(got.queues, sent.queues);
            assert_eq!(inode(&got.memory), inode(&sent.memory));
            let (got, sent) = (&got.detached, &sent.detached);
            assert_eq!((got.ring, &got.free), (sent.ring, &sent.free));
            let inodes = |files: &[OwnedFd]| files.iter().map(inode).collect::<Vec<_>>();
            assert_eq!(inodes(&got.sockets), inodes(&sent.sockets));
        }
        assert_eq!(got.cards.len(), 2);
        let (name, pass) = got.pass.expect("it was sent");
        assert_eq!(name, "slb-pass");
        assert_eq!(inode(&pass), inode(&devices.pass.expect("it is here").1));
        let announced = got.announced.expect("it was sent");
        assert_eq!(
            inode(&announced),
            inode(&devices.announced.expect("it is here"))
        );
    }

    #[test]
    fn lists_that_are_cut_off_or_wrong_are_refused() {
        let list = Devices::default().list().to_string();
        let mut whole = (list.len() as u32).to_be_bytes().to_vec();
        whole.extend(list.as_bytes());
        let receive = |bytes: &[u8]| {
            let (mut old, mut new) = UnixStream::pair().expect("a pair");
            old.write_all(bytes).expect("the socket has room");
            drop(old);
            Devices::receive(&mut new)
        };
        assert!(receive(&whole).is_ok());
        for len in 0..whole.len() {
            assert!(receive(&whole[..len]).is_err(), "{len} bytes");
        }
        for wrong in [
            r#"{"tun":[],"cards":[],"pass":7,"announced":false}"#,
            r#"{"tun":[["slb0"]],"cards":[],"pass":null,"announced":false}"#,
            r#"{"tun":[],"cards":[{}],"pass":null,"announced":false}"#,
            // The file does not come.
            r#"{"tun":[],"cards":[],"pass":null,"announced":true}"#,
            "[]",
        ] {
            let mut bytes = (wrong.len() as u32).to_be_bytes().to_vec();
            bytes.extend(wrong.as_bytes());
            assert!(receive(&bytes).is_err(), "{wrong}");
        }
        assert!(receive(&u32::MAX.to_be_bytes()).is_err());
    }

    #[test]
    fn sockets_of_other_queues_or_rings_are_left() {
        let queue = |number: u32| Queue {
            port: slb_core::PortId(0),
            interface: slb_io_afxdp::Interface::find("lo").expect("an interface"),
            queue: number,
        };
        let wanted = [queue(0), queue(1)];
        let names = OpenCards::names_of(&wanted);
        let of = |len: u64| {
            let memory = tempfile::tempfile().expect("a file");
            memory.set_len(len).expect("a length");
            OpenCards {
                queues: names.clone(),
                memory: memory.into(),
                ..open(2)
            }
        };
        let mut devices = Devices {
            cards: vec![open(2), of(8 * 2048)],
            ..Devices::default()
        };
        let own = devices.take_for(&Queues::AfXdp(wanted.to_vec(), 1500));
        assert_eq!((own.cards.len(), devices.cards.len()), (1, 1));
        let fits = |open: OpenCards, ring, chunk, frames| {
            open.open(&wanted, ring, chunk, frames).is_some()
        };
        assert!(fits(of(8 * 2048), 2048, SMALL_CHUNK, 8));
        assert!(!fits(of(8 * 2048), 1024, SMALL_CHUNK, 8));
        assert!(!fits(of(8 * 2048), 2048, LARGE_CHUNK, 8));
        assert!(!fits(of(8 * 2048), 2048, SMALL_CHUNK, 9));
        assert!(!fits(of(8 * 2048 + 1), 2048, SMALL_CHUNK, 8));
        assert!(!fits(open(2), 2048, SMALL_CHUNK, 1));
    }
}
