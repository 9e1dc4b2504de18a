//! `--take-over`: a process that starts beside the one that runs, and goes on in its place.
//!
//! ```text
//!  new                                          the one that runs
//!  reads the configuration, makes its tables
//!  "slb-pass" ────────── ROLE.handover ───────► stops its workers, writes the state
//!  takes the state                      ◄────── its devices, open
//!  packets go on
//!  attaches its XDP programs            ◄────── "free": it has none attached any more that is not pinned
//!                                               ends
//!  opens the status, metrics and probes ◄────── the connection is closed
//! ```
//! All that takes long is done before the old process is asked. Devices cross as open files (unix(7),
//! SCM_RIGHTS; [`handed`](super::handed)): packets that come meanwhile wait in them, and none is lost, for as long
//! as the state takes to cross. The interface that VIPs are announced by exists as long as one of the two has it,
//! so that no VIP is withdrawn. The socket is in the state's directory, and for this user only.
//!
//! Versions that do not know "slb-pass" close the connection, and are asked by "slb-take" then: they close their
//! devices, and say "ready" with the interface of announced VIPs.
//!
//! The connections of a vm that moves to another host go by the same socket, with `slb state export` and
//! `slb state import`:
//! ```text
//!  "slb-give", length, name of a backend  ─► its host agent    ─► 1, length, a state file
//!  "slb-move", length, a state file       ─► its new host agent ─► 1, length, what became of it
//!                                                               ─► 0, length, why not
//! ```
//! Lengths are big-endian, in 8 bytes.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tracing::{error, info, warn};

use super::handed::Devices;

const REQUEST: &[u8; 8] = b"slb-take";
const REQUEST_OPEN: &[u8; 8] = b"slb-pass";
const EXPORT: &[u8; 8] = b"slb-give";
const IMPORT: &[u8; 8] = b"slb-move";
/// The maximum length of a backend's name with its pool.
const NAME_MOST: u64 = 4096;
/// The maximum length of a vm's state in bytes: seven million connections.
pub(super) const STATE_MOST: u64 = 1 << 30;
/// The time that a program waits for a running process.
const TO_ANSWER: Duration = Duration::from_secs(60);
const READY: &[u8; 5] = b"ready";
const FREE: &[u8; 4] = b"free";
/// The interval of checks that the socket's name exists.
const LOOK: Duration = Duration::from_secs(2);
/// The time that the running process waits for a request after a connection.
const TO_ASK: Duration = Duration::from_millis(100);
/// The maximum time to stop and to write the state.
const TO_STOP: Duration = Duration::from_secs(30);
/// The maximum time to end afterwards, while the process frees its memory.
const TO_END: Duration = Duration::from_secs(30);

/// The socket for requests to hand over. Dropping it removes its name, unless the name belongs to
/// another process by then.
pub(super) struct Handover {
    listener: UnixListener,
    path: PathBuf,
    is_handed_over: bool,
    /// The time of the last check that the name exists.
    looked: Instant,
}

impl Handover {
    /// Listens at the socket's path, after an earlier process has stopped listening.
    pub(super) fn open(path: &Path) -> Option<Self> {
        match Self::listen(path) {
            Ok(listener) => Some(Self {
                listener,
                path: path.to_owned(),
                is_handed_over: false,
                looked: Instant::now(),
            }),
            Err(error) => {
                warn!(
                    "no process can take over from this one: {}: {error}",
                    path.display()
                );
                None
            }
        }
    }

    fn listen(path: &Path) -> io::Result<UnixListener> {
        match fs::symlink_metadata(path) {
            Ok(present) if !present.file_type().is_socket() => {
                let why = "a file that is no socket is there, and stays";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
            }
            Ok(_) => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Listens again if the socket's name was removed, since otherwise no process could take over.
    fn renew(&mut self) {
        if self.is_handed_over || self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let now = fs::symlink_metadata(&self.path);
        let is_gone = now.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_gone && let Ok(listener) = Self::listen(&self.path) {
            warn!("{} was removed: made again", self.path.display());
            self.listener = listener;
        }
    }

    /// Returns the next request of another process.
    pub(super) fn request(&mut self) -> Option<Request> {
        self.renew();
        let (mut stream, _) = self.listener.accept().ok()?;
        let mut request = [0; REQUEST.len()];
        let asks = stream.set_nonblocking(false).is_ok()
            && stream.set_read_timeout(Some(TO_ASK)).is_ok()
            && stream.set_write_timeout(Some(TO_STOP)).is_ok()
            && stream.read_exact(&mut request).is_ok();
        if !asks {
            return None;
        }
        match &request {
            REQUEST | REQUEST_OPEN => {
                info!("another process takes over");
                // The name now belongs to the next process.
                self.is_handed_over = true;
                let _ = fs::remove_file(&self.path);
                Some(Request::TakeOver(Heir {
                    stream,
                    takes_devices: request == *REQUEST_OPEN,
                }))
            }
            EXPORT => {
                let name = read_some(&mut stream, NAME_MOST).ok()?;
                let name = String::from_utf8(name).ok()?;
                Some(Request::Export(name, Peer(stream)))
            }
            IMPORT => {
                let state = read_some(&mut stream, STATE_MOST).ok()?;
                Some(Request::Import(state, Peer(stream)))
            }
            _ => None,
        }
    }
}

/// A request to a running process.
pub(super) enum Request {
    /// Stop, and hand over to the requesting process.
    TakeOver(Heir),
    /// Export the connections of this backend's vm.
    Export(String, Peer),
    /// Import connections.
    Import(Vec<u8>, Peer),
}

/// A process that asked for the connections of a vm and waits for them.
pub(super) struct Peer(UnixStream);

impl Peer {
    /// Sends the result in another thread, since the other process may be slow.
    pub(super) fn answer(self, bytes: &[u8]) {
        self.tell(1, bytes.to_vec());
    }

    /// Sends the reason of a refusal.
    pub(super) fn refuse(self, why: &str) {
        self.tell(0, why.as_bytes().to_vec());
    }

    fn tell(self, is_given: u8, bytes: Vec<u8>) {
        let Self(mut stream) = self;
        let write = move || {
            let written = stream
                .write_all(&[is_given])
                .and_then(|()| write_some(&mut stream, &bytes));
            if let Err(error) = written {
                warn!("the command for a vm's connections has ended: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("slb answer".to_owned());
        if let Err(error) = thread.spawn(write) {
            error!("no thread to answer: {error}");
        }
    }
}

/// Reads bytes after their length.
fn read_some(stream: &mut UnixStream, most: u64) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    let len = u64::from_be_bytes(len);
    if len > most {
        let message = format!("expected {most} bytes at most, got {len}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut bytes = Vec::new();
    io::Read::by_ref(stream).take(len).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == len {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Writes bytes after their length.
fn write_some(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&(bytes.len() as u64).to_be_bytes())?;
    stream.write_all(bytes)
}

/// Requests the connections of a vm from a running host agent, by its state directory.
///
/// # Errors
/// No host agent runs with this directory, or it refuses the request.
pub(super) fn export_vm(directory: &Path, backend: &str) -> io::Result<Vec<u8>> {
    ask(directory, EXPORT, backend.as_bytes())
}

/// Makes a running host agent take over connections, and returns the result.
///
/// # Errors
/// No host agent runs with this directory, or it refuses the request.
pub(super) fn import_vm(directory: &Path, state: &[u8]) -> io::Result<Vec<u8>> {
    ask(directory, IMPORT, state)
}

fn ask(directory: &Path, what: &[u8; 8], bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(directory.join("host.handover"))?;
    stream.set_read_timeout(Some(TO_ANSWER))?;
    stream.set_write_timeout(Some(TO_ANSWER))?;
    stream.write_all(what)?;
    write_some(&mut stream, bytes)?;
    let mut is_given = [0];
    stream.read_exact(&mut is_given)?;
    let answer = read_some(&mut stream, STATE_MOST)?;
    match is_given {
        [1] => Ok(answer),
        _ => Err(io::Error::other(
            String::from_utf8_lossy(&answer).into_owned(),
        )),
    }
}

impl AsFd for Handover {
    /// Returns a descriptor that is readable when there is a request.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if !self.is_handed_over {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A process that takes over. Dropping this closes the connection to it.
pub(super) struct Heir {
    stream: UnixStream,
    takes_devices: bool,
}

impl Heir {
    /// Returns true if the process takes over open devices.
    pub(super) fn takes_devices(&self) -> bool {
        self.takes_devices
    }

    /// Reports that the state is written, and hands over the devices, if the process takes them.
    pub(super) fn give(&mut self, devices: &Devices) {
        if self.takes_devices
            && let Err(error) = devices.send(&mut self.stream)
        {
            error!("the process that takes over has ended: {error}");
        }
    }

    /// Reports that this process no longer uses any device. A process that takes no devices now
    /// gets the interface of announced VIPs, if there is one.
    pub(super) fn tell(&mut self, announced: Option<BorrowedFd<'_>>) {
        let told = match self.takes_devices {
            true => self.stream.write_all(FREE),
            false => send_ready(&mut self.stream, announced),
        };
        if let Err(error) = told {
            error!("the process that takes over has ended: {error}");
        }
    }

    /// Returns the id of the process.
    pub(super) fn pid(&self) -> Option<u32> {
        let peer = socket_peercred(&self.stream).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }

    /// Leaves the connection open until this process ends and all its sockets are free.
    pub(super) fn close_at_exit(self) {
        let _ = self.stream.into_raw_fd();
    }
}

/// Sends [`READY`], with a file beside it.
fn send_ready(stream: &mut UnixStream, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let files: Vec<_> = file.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    // Without a file nothing is beside it.
    if !files.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(
            &*stream,
            &[IoSlice::new(READY)],
            &mut beside,
            SendFlags::NOSIGNAL,
        )
    })?;
    stream.write_all(READY.get(sent..).unwrap_or_default())
}

/// Receives [`READY`], and the file that may come beside it.
fn receive_ready(stream: &mut UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut told = [0; READY.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut told)];
        recvmsg(&*stream, &mut parts, &mut beside, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut file = None;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            file = files.last();
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(told.get_mut(received.bytes..).unwrap_or_default())?;
    match told == *READY {
        true => Ok(file),
        false => Err(io::Error::other("it does not report that it has stopped")),
    }
}

/// The running process, as seen by the process that takes over.
pub(super) struct Predecessor {
    path: PathBuf,
    /// Open from the request on.
    stream: Option<UnixStream>,
    /// True if the process reports when it no longer uses any device.
    says_free: bool,
    /// The interface of its announced VIPs.
    announced: Option<OwnedFd>,
}

impl Predecessor {
    /// Finds the running process; returns `None` if none listens.
    pub(super) fn find(path: &Path) -> Option<Self> {
        match UnixStream::connect(path) {
            // It waits for nobody who has nothing to say yet.
            Ok(_) => Some(Self {
                path: path.to_owned(),
                stream: None,
                says_free: false,
                announced: None,
            }),
            Err(error) => {
                info!("no process to take over from: {}: {error}", path.display());
                None
            }
        }
    }

    /// Makes the process stop, and waits until its state is written. Returns its open devices.
    pub(super) fn stop(&mut self) -> Devices {
        let ask = |request: &[u8; 8]| {
            let mut stream = UnixStream::connect(&self.path)?;
            stream.write_all(request)?;
            stream.set_read_timeout(Some(TO_STOP))?;
            Ok::<_, io::Error>(stream)
        };
        let devices = ask(REQUEST_OPEN).and_then(|mut stream| {
            let devices = Devices::receive(&mut stream)?;
            Ok((stream, devices))
        });
        match devices {
            Ok((stream, mut devices)) => {
                (self.stream, self.says_free) = (Some(stream), true);
                self.announced = devices.announced.take();
                return devices;
            }
            Err(error) => info!("the previous process hands over no devices: {error}"),
        }
        let ready = ask(REQUEST).and_then(|mut stream| {
            let announced = receive_ready(&mut stream)?;
            Ok((stream, announced))
        });
        match ready {
            Ok((stream, announced)) => (self.stream, self.announced) = (Some(stream), announced),
            Err(error) => error!("the previous process does not stop: {error}"),
        }
        Devices::default()
    }

    /// Waits until the process no longer uses any device.
    pub(super) fn wait_until_free(&mut self) {
        let Some(stream) = self.stream.as_mut().filter(|_| self.says_free) else {
            return;
        };
        let mut told = [0; FREE.len()];
        if let Err(error) = stream.read_exact(&mut told) {
            warn!("the previous process does not report that it has stopped: {error}");
        }
    }

    /// Waits until the process has ended, with its status, metrics and interfaces; returns the
    /// interface of announced VIPs that it handed over.
    pub(super) fn wait_for_end(self) -> Option<OwnedFd> {
        let announced = self.announced;
        let Some(mut stream) = self.stream else {
            return announced;
        };
        let timeout = stream.set_read_timeout(Some(TO_END));
        let ended = timeout.and_then(|()| stream.read(&mut [0]));
        match ended {
            Ok(0) => {}
            // For example, the process was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => warn!("the previous process does not end: {other:?}"),
        }
        announced
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek as _;
    use std::os::fd::AsFd as _;
    use std::thread;

    use super::*;

    #[test]
    fn without_an_interface_nothing_is_beside_the_word() {
        let (mut old, mut new) = UnixStream::pair().expect("a pair");
        send_ready(&mut old, None).expect("it is read");
        assert!(receive_ready(&mut new).expect("it is right").is_none());
        // An earlier version sends a word without more; what is another word, or cut off, is none.
        old.write_all(READY).expect("it is read");
        assert!(receive_ready(&mut new).expect("it is right").is_none());
        old.write_all(b"wrong").expect("it is read");
        assert!(receive_ready(&mut new).is_err());
        old.write_all(b"rea").expect("it is read");
        drop(old);
        assert!(receive_ready(&mut new).is_err());
        assert!(receive_ready(&mut new).is_err());
    }

    #[test]
    fn who_asks_is_told_and_strangers_are_not_heard() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("host.handover");
        assert!(Predecessor::find(&path).is_none());
        let mut old = Handover::open(&path).expect("it is writable");
        assert!(old.request().is_none());
        let mut stranger = UnixStream::connect(&path).expect("it listens");
        stranger.write_all(b"GET / HTTP").expect("it listens");
        assert!(old.request().is_none());
        drop(UnixStream::connect(&path).expect("it listens"));
        assert!(old.request().is_none());

        let new = thread::spawn({
            let path = path.clone();
            move || {
                let mut predecessor = Predecessor::find(&path).expect("it listens");
                // It makes its tables meanwhile.
                thread::sleep(2 * TO_ASK);
                predecessor.stop();
                predecessor.wait_until_free();
                // It listens under the name while the old one has not ended.
                let own = Handover::open(&path);
                (own, predecessor.wait_for_end())
            }
        });
        let begin = Instant::now();
        let mut heir = loop {
            if let Some(Request::TakeOver(heir)) = old.request() {
                break heir;
            }
            assert!(begin.elapsed() < Duration::from_secs(10));
        };
        assert_eq!(heir.pid(), Some(std::process::id()));
        let mut announced = tempfile::tempfile().expect("a file");
        announced.write_all(b"vips").expect("it is writable");
        heir.give(&Devices {
            announced: announced.try_clone().map(Into::into).ok(),
            ..Devices::default()
        });
        heir.tell(None);
        // The other one has it, however this one ends.
        drop(announced);
        drop(old);
        drop(heir);
        let (new, announced) = new.join().expect("it ends");
        let mut announced = fs::File::from(announced.expect("a file was handed over"));
        let mut text = String::new();
        announced.rewind().expect("a file");
        announced.read_to_string(&mut text).expect("a file");
        assert_eq!(text, "vips");
        assert!(new.is_some() && path.exists(), "the name is the new one's");
        drop(new);
        assert!(!path.exists());
    }

    /// A version that hands no devices over closes the connection of a request that it does not know.
    #[test]
    fn an_earlier_version_is_asked_to_close_its_devices() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("host.handover");
        let old = UnixListener::bind(&path).expect("it is writable");
        let new = thread::spawn(move || {
            let mut predecessor = Predecessor::find(&path).expect("it listens");
            let devices = predecessor.stop();
            predecessor.wait_until_free();
            (devices, predecessor.wait_for_end())
        });
        let mut asked = Vec::new();
        loop {
            let (mut stream, _) = old.accept().expect("it asks");
            let mut request = Vec::new();
            let most = REQUEST.len() as u64;
            let read = io::Read::by_ref(&mut stream)
                .take(most)
                .read_to_end(&mut request);
            read.expect("it asks or goes away");
            let is_known = request == REQUEST;
            asked.push(request);
            if is_known {
                let vips = tempfile::tempfile().expect("a file");
                send_ready(&mut stream, Some(vips.as_fd())).expect("it is read");
                break;
            }
        }
        assert_eq!(asked, [&b""[..], REQUEST_OPEN, REQUEST]);
        let (devices, announced) = new.join().expect("it ends");
        assert!(devices.tun.is_empty() && devices.cards.is_empty());
        assert!(announced.is_some());
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_stays() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("host.handover");
        fs::write(&path, "notes of mine").expect("it is writable");
        assert!(Handover::open(&path).is_none());
        assert_eq!(fs::read(&path).expect("it is there"), b"notes of mine");
    }

    #[test]
    fn a_name_that_was_removed_is_made_again_until_another_process_takes_over() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("host.handover");
        let mut handover = Handover::open(&path).expect("it is writable");
        let ago = Instant::now().checked_sub(2 * LOOK);
        let ago = ago.expect("the machine runs for longer");
        fs::remove_file(&path).expect("it is there");
        handover.looked = ago;
        assert!(handover.request().is_none());
        assert!(UnixStream::connect(&path).is_ok());
        // The name is the next one's then.
        fs::remove_file(&path).expect("it is there");
        (handover.looked, handover.is_handed_over) = (ago, true);
        assert!(handover.request().is_none());
        assert!(!path.exists());
    }

    #[test]
    fn a_name_that_a_killed_process_left_is_taken() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("mux.handover");
        let mut killed = Handover::open(&path).expect("it is writable");
        killed.is_handed_over = true; // so that its end leaves the name
        drop(killed);
        assert!(Predecessor::find(&path).is_none());
        assert!(Handover::open(&path).is_some());
    }
}
