//! `--take-over`: a process that starts beside the one that runs, and goes on in its place.
//!
//! ```text
//!  new                                          the one that runs
//!  reads the configuration, makes its tables
//!  "slb-take" ────────── ROLE.handover ───────► stops its workers, writes the state
//!  takes the state, opens the devices   ◄────── "ready"
//!  packets go on                                ends
//!  opens the status, metrics and probes ◄────── the connection is closed
//! ```
//! All that takes long is done before the old process is asked, so packets stand still for as long as the
//! state takes to cross and devices to open. The socket is in the state's directory, and for this user only.
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
use std::io::{self, Read as _, Write as _};
use std::os::fd::IntoRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{error, info, warn};

const REQUEST: &[u8; 8] = b"slb-take";
const EXPORT: &[u8; 8] = b"slb-give";
const IMPORT: &[u8; 8] = b"slb-move";
/// The longest name of a backend with its pool, and the longest state of a vm: seven million connections.
const NAME_MOST: u64 = 4096;
pub(super) const STATE_MOST: u64 = 1 << 30;
/// How long a program waits for a process that runs.
const TO_ANSWER: Duration = Duration::from_secs(60);
const READY: &[u8; 5] = b"ready";
/// How long the one that runs waits for what who connects has to say.
const TO_ASK: Duration = Duration::from_millis(100);
/// How long it may take to stop and to write its state.
const TO_STOP: Duration = Duration::from_secs(30);
/// How long it may take to end afterwards: it gives its memory back.
const TO_END: Duration = Duration::from_secs(30);

/// The socket of a process that can be asked to hand over. Its name goes with it, unless it is another's by
/// then.
pub(super) struct Handover {
    listener: UnixListener,
    path: PathBuf,
    is_handed_over: bool,
}

impl Handover {
    /// Listens in the place of an earlier process that does no more.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let listen = || {
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
        };
        match listen() {
            Ok(listener) => Some(Self {
                listener,
                path: path.to_owned(),
                is_handed_over: false,
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

    /// Returns the next request of another process.
    pub(super) fn request(&mut self) -> Option<Request> {
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
            REQUEST => {
                info!("another process takes over");
                // The name is that of the next one now.
                self.is_handed_over = true;
                let _ = fs::remove_file(&self.path);
                Some(Request::TakeOver(Heir(stream)))
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
    /// To stop, and to leave all to the one that asks.
    TakeOver(Heir),
    /// The connections of the vm that is this backend.
    Export(String, Peer),
    /// To take connections over.
    Import(Vec<u8>, Peer),
}

/// A process that asked for the connections of a vm and waits for them.
pub(super) struct Peer(UnixStream);

impl Peer {
    /// Gives what was asked for. Who asked may be slow: another thread writes.
    pub(super) fn answer(self, bytes: &[u8]) {
        self.tell(1, bytes.to_vec());
    }

    /// Says why not.
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
                warn!("who asked about a vm's connections is gone: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("slb answer".to_owned());
        if let Err(error) = thread.spawn(write) {
            error!("no thread to answer: {error}");
        }
    }
}

/// Reads bytes behind their length.
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

/// Writes bytes behind their length.
fn write_some(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&(bytes.len() as u64).to_be_bytes())?;
    stream.write_all(bytes)
}

/// Asks a host agent that runs for the connections of a vm, by its state's directory.
///
/// # Errors
/// None runs with this directory, or it says why not.
pub(super) fn export_vm(directory: &Path, backend: &str) -> io::Result<Vec<u8>> {
    ask(directory, EXPORT, backend.as_bytes())
}

/// Has a host agent that runs take connections over; gives what became of them.
///
/// # Errors
/// None runs with this directory, or it says why not.
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

impl Drop for Handover {
    fn drop(&mut self) {
        if !self.is_handed_over {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A process that takes over. It goes on alone when this is dropped.
pub(super) struct Heir(UnixStream);

impl Heir {
    /// Says that the state is written and the devices are free.
    pub(super) fn tell(&mut self) {
        if let Err(error) = self.0.write_all(READY) {
            error!("the process that takes over is gone: {error}");
        }
    }

    /// Leaves the connection open until this process ends: then all of its sockets are free.
    pub(super) fn close_at_exit(self) {
        let _ = self.0.into_raw_fd();
    }
}

/// The process that runs, seen by the one that takes over.
pub(super) struct Predecessor {
    path: PathBuf,
    /// Open from the request on.
    stream: Option<UnixStream>,
}

impl Predecessor {
    /// Finds it; `None` where none listens.
    pub(super) fn find(path: &Path) -> Option<Self> {
        match UnixStream::connect(path) {
            // It waits for nobody who has nothing to say yet.
            Ok(_) => Some(Self {
                path: path.to_owned(),
                stream: None,
            }),
            Err(error) => {
                info!("no process to take over from: {}: {error}", path.display());
                None
            }
        }
    }

    /// Has it stop, and waits until its state is written and its devices are free.
    pub(super) fn stop(&mut self) {
        let ask = || {
            let mut stream = UnixStream::connect(&self.path)?;
            stream.write_all(REQUEST)?;
            stream.set_read_timeout(Some(TO_STOP))?;
            let mut told = [0; READY.len()];
            stream.read_exact(&mut told)?;
            match told == *READY {
                true => Ok(stream),
                false => Err(io::Error::other("it does not say that it has stopped")),
            }
        };
        match ask() {
            Ok(stream) => self.stream = Some(stream),
            Err(error) => error!("the process before this one does not stop: {error}"),
        }
    }

    /// Waits until it has ended, and with it its status, metrics and interfaces.
    pub(super) fn wait_for_end(self) {
        let Some(mut stream) = self.stream else {
            return;
        };
        let timeout = stream.set_read_timeout(Some(TO_END));
        let ended = timeout.and_then(|()| stream.read(&mut [0]));
        match ended {
            Ok(0) => {}
            // It was killed, say.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => warn!("the process before this one does not end: {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

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
                // It listens under the name while the old one has not ended.
                let own = Handover::open(&path);
                predecessor.wait_for_end();
                own
            }
        });
        let begin = Instant::now();
        let mut heir = loop {
            if let Some(Request::TakeOver(heir)) = old.request() {
                break heir;
            }
            assert!(begin.elapsed() < Duration::from_secs(10));
        };
        heir.tell();
        drop(old);
        drop(heir);
        let new = new.join().expect("it ends");
        assert!(new.is_some() && path.exists(), "the name is the new one's");
        drop(new);
        assert!(!path.exists());
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
