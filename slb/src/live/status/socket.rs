//! The status socket: a client gets one JSON document, or the answer to a [request]. This file has the socket's name
//! in the file system, and the threads that answer clients.

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use tracing::warn;

use super::PATIENCE;
use crate::Failure;
use crate::live::request;
use crate::live::tell::Tell;

/// The interval of checks that the socket's name exists.
const LOOK: Duration = Duration::from_secs(2);

/// The maximum number of simultaneous clients.
const MOST_CLIENTS: usize = 32;
/// The maximum number of threads that answer. It is above the number of clients, since an answer is completed even if the
/// client is gone.
const MOST_THREADS: usize = MOST_CLIENTS + 8;

/// Returns the paths where the socket of a role may be by default: that of a process started by
/// hand, and that of the packaged service.
pub(crate) fn default_paths(role: &str) -> [PathBuf; 2] {
    let of_service = format!("/run/slb/slb-{role}.sock");
    [default_path(role), PathBuf::from(of_service)]
}

/// Returns the default path of a role's socket: in systemd's runtime directory, if there is one.
fn default_path(role: &str) -> PathBuf {
    let directory = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let directory = directory.unwrap_or_else(|| PathBuf::from("/run"));
    directory.join(format!("slb-{role}.sock"))
}

/// A bound status socket, whose file is removed when it is dropped.
///
/// A name that was removed, by whoever tidies up, is made again: a process whose socket is gone cannot be asked.
pub(crate) struct Place {
    listener: UnixListener,
    name: Name,
}

impl Place {
    /// Opens the socket. Fails only if a path was requested; otherwise there may be no socket.
    pub(crate) fn open(asked: Option<&Path>, role: &str) -> Result<Option<Self>, Failure> {
        let path = asked.map_or_else(|| default_path(role), Path::to_owned);
        match listen(&path) {
            Ok((listener, identity)) => {
                let name = Name { path, identity };
                Ok(Some(Self { listener, name }))
            }
            Err(error) => {
                let said = format!("no status at {}: {error}", path.display());
                match asked {
                    Some(_) => Err(Failure::failed(said)),
                    None => {
                        warn!("{said}");
                        Ok(None)
                    }
                }
            }
        }
    }

    /// Answers in threads of its own: clients that do not read do not block others. Returns the name of the socket, to
    /// be ended with the process.
    pub(crate) fn serve(self, told: Arc<impl Tell>) -> Named {
        let told: Arc<dyn Tell> = told;
        let Self { mut listener, name } = self;
        let named = Named(Arc::new(Mutex::new(Some(name))));
        let own = Named(Arc::clone(&named.0));
        thread::spawn(move || {
            let clients = Arc::new(Clients::default());
            let mut looked = Instant::now();
            let mut said = String::new();
            loop {
                let mut fds = [PollFd::new(&listener, PollFlags::IN)];
                let most = Timespec {
                    tv_sec: LOOK.as_secs() as i64,
                    tv_nsec: 0,
                };
                match poll(&mut fds, Some(&most)) {
                    Ok(0) => {}
                    Ok(_) => match listener.accept() {
                        Ok((client, _)) => clients.answer(client, &told),
                        // Too many open files, say: the next one would fail at once.
                        Err(_) => thread::sleep(Duration::from_millis(100)),
                    },
                    Err(_) => thread::sleep(Duration::from_millis(100)),
                }
                if looked.elapsed() < LOOK {
                    continue;
                }
                looked = Instant::now();
                match own.renew() {
                    Ok(Some(new)) => {
                        listener = new;
                        said.clear();
                    }
                    Ok(None) => {}
                    // What is the same again is not said again.
                    Err(error) if error == said => {}
                    Err(error) => {
                        warn!("{error}");
                        said = error;
                    }
                }
                if own.name().is_none() {
                    return;
                }
            }
        });
        named
    }
}

/// The name of a socket that is served, until it [ends](Self::end).
pub(crate) struct Named(Arc<Mutex<Option<Name>>>);

impl Named {
    fn name(&self) -> MutexGuard<'_, Option<Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens again if the name is gone; `None` if a file has the name, whoever made it.
    fn renew(&self) -> Result<Option<UnixListener>, String> {
        let mut name = self.name();
        let Some(own) = name.as_mut().filter(|own| own.is_gone()) else {
            return Ok(None);
        };
        let path = own.path.display();
        let (listener, identity) = listen(&own.path)
            .map_err(|error| format!("the status socket {path} was removed: no status: {error}"))?;
        own.identity = identity;
        warn!("the status socket {path} was removed: made again");
        Ok(Some(listener))
    }

    /// Removes the name, and no longer creates it.
    pub(crate) fn end(self) {
        *self.name() = None;
    }
}

/// Clients that are being answered.
#[derive(Default)]
struct Clients {
    /// The clients in the order of their arrival, each with its number.
    present: Mutex<VecDeque<(u64, UnixStream)>>,
    /// The number of threads that answer, including those whose client is gone.
    threads: AtomicUsize,
    writer: Writer,
}

/// The count of a thread that answers, for as long as the thread runs.
struct Counting(Arc<Clients>);

impl Counting {
    fn begin(clients: &Arc<Clients>) -> Self {
        clients.threads.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(clients))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clients {
    /// Answers a client in a thread of its own. If there are too many clients, the oldest one is
    /// disconnected. If there are too many threads, waits for one to end, and refuses the client if none does.
    fn answer(self: &Arc<Self>, client: UnixStream, told: &Arc<dyn Tell>) {
        let Ok(own) = client.try_clone() else { return };
        let begin = Instant::now();
        while self.threads.load(Ordering::Relaxed) >= MOST_THREADS {
            if begin.elapsed() >= PATIENCE {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let number = {
            let mut present = self.present();
            if present.len() >= MOST_CLIENTS
                && let Some((_, oldest)) = present.pop_front()
            {
                let _ = oldest.shutdown(Shutdown::Both);
            }
            let number = present.back().map_or(0, |(last, _)| last + 1);
            present.push_back((number, own));
            number
        };
        let (clients, told) = (Arc::clone(self), Arc::clone(told));
        let counting = Counting::begin(self);
        let thread = thread::Builder::new().name("slb status".to_owned());
        let started = thread.spawn(move || {
            let _counting = counting;
            let _: io::Result<()> = answer(&client, &*told, &clients.writer);
            clients.present().retain(|(other, _)| *other != number);
        });
        if started.is_err() {
            self.present().retain(|(other, _)| *other != number);
        }
    }

    fn present(&self) -> MutexGuard<'_, VecDeque<(u64, UnixStream)>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a socket in the file system. Dropping it removes the name, unless another file has
/// it.
pub(crate) struct Name {
    path: PathBuf,
    /// The device and the inode.
    identity: (u64, u64),
}

impl Name {
    fn is_gone(&self) -> bool {
        let now = fs::symlink_metadata(&self.path);
        now.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path);
        if now.is_ok_and(|now| (now.dev(), now.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes one status at a time, so that packets and the control thread have the other CPUs.
#[derive(Default)]
pub(in crate::live) struct Writer(Mutex<()>);

impl Writer {
    /// Returns the status when it is the client's turn; `None` if the client has gone by then.
    pub(in crate::live) fn status(
        &self,
        client: &UnixStream,
        told: &dyn Tell,
    ) -> Option<Result<Value, String>> {
        let _one = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!is_gone(client)).then(|| told.status())
    }
}

/// Returns true if a client has closed its connection, or was disconnected. A client that has only shut down its side for
/// writing is not gone.
fn is_gone(client: &UnixStream) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::empty())];
    let none = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let polled = poll(&mut fds, Some(&none));
    polled.is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

fn answer(mut client: &UnixStream, told: &dyn Tell, writer: &Writer) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    if let Some(asked) = request::read(client)? {
        return request::answer(&asked, client, told, writer);
    }
    if let Some(Ok(document)) = writer.status(client, told) {
        client.write_all(document.to_string().as_bytes())?;
    }
    Ok(())
}

/// A directory beside a path that other users cannot enter; removed when dropped, with its
/// contents.
struct Private(PathBuf);

impl Private {
    fn beside(path: &Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        let directory = directory.join(format!(".slb-{}", std::process::id()));
        // One of a process of the same number that was killed.
        let _ = fs::remove_dir_all(&directory);
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Self(directory))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Listens at a path, for this user only; also returns the device and the inode of the socket. A stale socket at the
/// path is replaced, and nothing else.
///
/// The socket is made in a private directory and gets its name last: whoever can see it finds it listening,
/// and with its final mode.
fn listen(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let private = Private::beside(path)?;
    let new = private.0.join("s");
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    match fs::hard_link(&new, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            expect_stale(path)?;
            let old = private.0.join("old");
            fs::rename(path, &old)?;
            // Of two that start at once, one may have moved away what the other has just put there.
            if let Err(error) = expect_stale(&old) {
                let _ = fs::hard_link(&old, path);
                return Err(error);
            }
            fs::hard_link(&new, path)?;
        }
        linked => linked?,
    }
    let metadata = fs::symlink_metadata(&new)?;
    Ok((listener, (metadata.dev(), metadata.ino())))
}

/// Fails unless a path is a stale socket: one without a listener.
fn expect_stale(path: &Path) -> io::Result<()> {
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return refused("a file that is no socket is there, and stays: expected a path of its own");
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => refused("a running process answers there: expected a path of its own"),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("there is a socket, and it is not known whether it is in use: {error}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use serde_json::json;

    use super::super::tests::shared;
    use super::*;
    use crate::report::metrics::Family;

    /// Asks a process at a socket for its configuration: without workers it has no status to tell.
    fn asked(path: &Path) -> Option<String> {
        let mut stream = UnixStream::connect(path).ok()?;
        stream.write_all(b"{\"ask\":\"config\"}\n").ok()?;
        let mut said = String::new();
        io::Read::read_to_string(&mut stream, &mut said).ok()?;
        Some(said)
    }

    #[track_caller]
    fn wait_until(mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < end, "waited in vain");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_socket_that_was_removed_is_made_again_and_anothers_file_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = folder.path().join("run");
        fs::create_dir(&directory).expect("a directory");
        let path = directory.join("sock");
        let place = || Place::open(Some(&path), "mux").expect("a socket");
        let named = place().expect("it was asked for").serve(shared());
        let is_answered = || asked(&path).is_some_and(|said| said.contains("web.toml"));
        wait_until(is_answered);
        // More than once, and with the directory around it.
        for _ in 0..2 {
            fs::remove_file(&path).expect("it is there");
            assert!(asked(&path).is_none());
            wait_until(is_answered);
        }
        fs::remove_dir_all(&directory).expect("it is there");
        fs::create_dir(&directory).expect("a directory");
        wait_until(is_answered);
        let mode = fs::metadata(&path).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);

        // Another's: neither replaced nor removed in the end.
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, "another's").expect("it can be written");
        thread::sleep(LOOK + LOOK / 2);
        named.end();
        assert_eq!(fs::read(&path).expect("it is there"), b"another's");

        // One that has ended makes none again.
        fs::remove_file(&path).expect("it is there");
        let named = place().expect("it was asked for").serve(shared());
        wait_until(is_answered);
        named.end();
        thread::sleep(LOOK + LOOK / 2);
        assert!(fs::symlink_metadata(&path).is_err());
    }

    /// A process whose status takes as long as the test wants.
    #[derive(Default)]
    struct Slow {
        busy: AtomicUsize,
        goes_on: AtomicBool,
    }

    impl Tell for Slow {
        fn status(&self) -> Result<Value, String> {
            self.busy.fetch_add(1, Ordering::Relaxed);
            while !self.goes_on.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
            Ok(json!("well"))
        }

        fn metrics(&self) -> Result<Vec<Family>, String> {
            Ok(Vec::new())
        }

        fn health(&self) -> Result<(), String> {
            Ok(())
        }

        fn readiness(&self) -> Result<(), String> {
            Ok(())
        }

        fn answer(&self, _: &Value, _: &mut request::Answer<'_>) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_status_is_written_at_a_time_and_none_for_clients_that_have_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sock");
        let place = Place::open(Some(&path), "mux").expect("a socket");
        let told = Arc::new(Slow::default());
        let named = place.expect("it was asked for").serve(Arc::clone(&told));
        let begin = || {
            let stream = UnixStream::connect(&path).expect("it listens");
            stream.shutdown(Shutdown::Write).expect("it is connected");
            stream
        };
        let held: Vec<_> = (0..MOST_THREADS + 2).map(|_| begin()).collect();
        wait_until(|| told.busy.load(Ordering::Relaxed) > 0);
        // The ones that are too many wait for a second, and are refused.
        thread::sleep(3 * PATIENCE);
        assert_eq!(told.busy.load(Ordering::Relaxed), 1);
        drop(held);
        told.goes_on.store(true, Ordering::Relaxed);
        let mut said = String::new();
        let read = io::Read::read_to_string(&mut begin(), &mut said);
        assert!(read.is_ok() && said == "\"well\"", "{read:?}: {said}");
        // The first one and the last one.
        assert_eq!(told.busy.load(Ordering::Relaxed), 2);
        named.end();
    }
}
