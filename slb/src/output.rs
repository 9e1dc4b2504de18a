//! The files that a command writes, and what it prints.
//!
//! A file that is named for output replaces one of the same kind, as other tools do it. It never replaces a
//! file that the command reads, one that the command writes already, or one of another kind, by whatever
//! name: links are followed, and files are told apart by device and inode.

#[cfg(feature = "live")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
#[cfg(feature = "live")]
use std::path::PathBuf;

#[cfg(feature = "azure")]
use slb_control::azure;
#[cfg(any(feature = "azure", feature = "live"))]
use slb_control::{open_file, read_text};

use crate::Failure;

/// Prints to standard output; returns an error where that cannot be written.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::print(format_args!($($text)*)) };
}

/// Prints a line to standard output; returns an error where that cannot be written.
macro_rules! say_line {
    ($($text:tt)*) => {
        $crate::output::print(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Prints to standard error, if that can be written.
macro_rules! tell {
    ($($text:tt)*) => { $crate::output::print_aside(format_args!($($text)*)) };
}

/// Prints a line to standard error, if that can be written.
macro_rules! tell_line {
    ($($text:tt)*) => {
        $crate::output::print_aside(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Prints to standard output.
///
/// # Errors
/// As of [`unwritten`].
pub(crate) fn print(text: fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_fmt(text).and_then(|()| out.flush());
    written.map_err(unwritten)
}

/// Prints to standard error. A message without a reader is lost.
pub(crate) fn print_aside(text: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Prints the last words of a process that must not be kept from ending: the rest is lost once nothing is read for
/// `seconds`.
///
/// # Errors
/// As of the file, or `WouldBlock` where nothing reads it.
#[cfg(feature = "live")]
pub(crate) fn print_if_read(to: impl AsFd, text: &str, seconds: i64) -> io::Result<()> {
    /// A pipe that can be written takes so many bytes at once (`PIPE_BUF`).
    const AT_ONCE: usize = 4096;
    let mut file = File::from(to.as_fd().try_clone_to_owned()?);
    let patience = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    for part in text.as_bytes().chunks(AT_ONCE) {
        if poll(&mut [PollFd::new(&file, PollFlags::OUT)], Some(&patience))? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        file.write_all(part)?;
    }
    Ok(())
}

/// The failure of a command whose standard output cannot be written. A reader that goes away, as in
/// `slb probe ... | head -1`, is no news: the command ends in silence, with the status that the signal would give.
#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
pub(crate) fn unwritten(error: io::Error) -> Failure {
    const SIGPIPE: u8 = 13;
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure {
            status: 128 + SIGPIPE,
            message: String::new(),
        },
        _ => Failure::failed(format!("standard output: {error}")),
    }
}

/// The expected content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A capture: it replaces an empty file or a capture.
    Capture,
    /// An imported configuration: it replaces an empty file or an imported configuration.
    #[cfg(feature = "azure")]
    Configuration,
}

/// An output: the option that names it, and the file.
pub(crate) type Output<'a> = (&'a str, &'a Path);

/// Returns true if a name means standard input or output: `-`.
pub(crate) fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// Reads a file of text, or standard input where its name is `-`; returns what messages call it, and the text.
///
/// # Errors
/// Bad usage, where it cannot be read or is too large.
#[cfg(any(feature = "azure", feature = "live"))]
pub(crate) fn read_input(path: &Path) -> Result<(String, String), Failure> {
    let (name, text) = match is_standard(path) {
        true => (
            "standard input".to_owned(),
            read_text(Ok(io::stdin().lock())),
        ),
        false => (path.display().to_string(), read_text(open_file(path))),
    };
    match text {
        Ok(text) => Ok((name, text)),
        Err(why) => Err(Failure::usage(format!("{name}: {why}"))),
    }
}

/// The identity of a file: its device, and its inode.
type Identity = (u64, u64);

/// Opens all outputs of a command that reads the files `read`; each is empty then.
///
/// # Errors
/// Bad usage, where an output is a file that is read, another output, or a file of another kind. Nothing is
/// changed then.
pub(crate) fn create_all(
    read: &[&Path],
    outputs: &[Output<'_>],
    content: Content,
) -> Result<Vec<File>, Failure> {
    if let Some((option, _)) = outputs.iter().filter(|(_, path)| is_standard(path)).nth(1) {
        let message = format!("{option} -: standard output takes one capture, but is named twice");
        return Err(Failure::usage(message));
    }
    let mut known = identities(read);
    // All of them before the first is changed.
    let mut others = known.clone();
    for &output in outputs {
        check_present(output, &mut others, content)?;
    }
    let files = outputs.iter().map(|&output| open(output, &mut known));
    files.collect()
}

/// Opens the output of a command that reads the files `read`.
///
/// # Errors
/// As of [`create_all`].
pub(crate) fn create(
    read: &[&Path],
    output: Output<'_>,
    content: Content,
) -> Result<File, Failure> {
    let mut known = identities(read);
    check_present(output, &mut known.clone(), content)?;
    open(output, &mut known)
}

/// An output that can be written, and is as it was until that begins.
#[cfg(feature = "live")]
pub(crate) struct Prepared {
    file: File,
    /// True for a regular file that is named.
    is_emptied: bool,
    /// Where the file was made for it, its path.
    made: Option<PathBuf>,
}

#[cfg(feature = "live")]
impl Prepared {
    /// Opens the output of a command, and leaves it as it is.
    ///
    /// # Errors
    /// As of [`create_all`].
    pub(crate) fn open(output: Output<'_>, content: Content) -> Result<Self, Failure> {
        check_present(output, &mut Vec::new(), content)?;
        let (option, path) = output;
        let was_there = is_standard(path) || fs::symlink_metadata(path).is_ok();
        let file = open_as_it_is(output, &mut Vec::new())?;
        let metadata = file
            .metadata()
            .map_err(|error| Failure::failed(format!("{option} {}: {error}", path.display())))?;
        let is_new = !was_there && metadata.is_file() && metadata.len() == 0;
        let made = is_new.then(|| path.to_owned());
        Ok(Self {
            file,
            is_emptied: metadata.is_file() && !is_standard(path),
            made,
        })
    }

    /// Empties the file, to be written from now on.
    pub(crate) fn begin(mut self) -> io::Result<File> {
        self.made = None;
        let file = self.file.try_clone()?;
        if self.is_emptied {
            file.set_len(0)?;
        }
        Ok(file)
    }
}

/// A file that was made and never begun goes again.
#[cfg(feature = "live")]
impl Drop for Prepared {
    fn drop(&mut self) {
        let Some(path) = &self.made else { return };
        let own = self.file.metadata().ok();
        let there = fs::symlink_metadata(path).ok();
        let identities = [own, there].map(|of| of.as_ref().and_then(identity));
        if let [Some(own), Some(there)] = identities
            && own == there
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// The identities of the files that a command reads, and what messages call them.
fn identities(read: &[&Path]) -> Vec<(Identity, String)> {
    let known = read.iter().filter_map(|path| {
        // A file that cannot be asked for cannot be read either, and its reader says so.
        let metadata = fs::metadata(path).ok()?;
        Some((
            identity(&metadata)?,
            format!("{}, which is read", path.display()),
        ))
    });
    known.collect()
}

/// Checks an output whose file is there already.
fn check_present(
    output: Output<'_>,
    known: &mut Vec<(Identity, String)>,
    content: Content,
) -> Result<(), Failure> {
    if is_standard(output.1) {
        return Ok(());
    }
    let Ok(metadata) = fs::metadata(output.1) else {
        return Ok(());
    };
    check(output, &metadata, known)?;
    check_content(output, &metadata, content)
}

fn open(output: Output<'_>, known: &mut Vec<(Identity, String)>) -> Result<File, Failure> {
    let file = open_as_it_is(output, known)?;
    let (option, path) = output;
    let emptied = file
        .metadata()
        .and_then(|metadata| match metadata.is_file() {
            true if !is_standard(path) => file.set_len(0),
            _ => Ok(()),
        });
    let failed =
        |error: io::Error| Failure::failed(format!("{option} {}: {error}", path.display()));
    emptied.map(|()| file).map_err(failed)
}

/// Opens an output, and leaves what is in it.
fn open_as_it_is(
    (option, path): Output<'_>,
    known: &mut Vec<(Identity, String)>,
) -> Result<File, Failure> {
    let failed =
        |error: io::Error| Failure::failed(format!("{option} {}: {error}", path.display()));
    if is_standard(path) {
        let standard = io::stdout();
        if standard.is_terminal() {
            let message =
                format!("{option} -: standard output is a terminal: expected a pipe or a file");
            return Err(Failure::usage(message));
        }
        return standard
            .as_fd()
            .try_clone_to_owned()
            .map(File::from)
            .map_err(failed);
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = options.open(path).map_err(failed)?;
    // What was opened may be another file than the one that was there a moment ago.
    let metadata = file.metadata().map_err(failed)?;
    check((option, path), &metadata, known)?;
    Ok(file)
}

/// The identity of a regular file; devices and pipes can be read and written at once.
fn identity(metadata: &Metadata) -> Option<Identity> {
    metadata.is_file().then(|| (metadata.dev(), metadata.ino()))
}

/// Checks that an output is none of the known files, and makes it one.
fn check(
    (option, path): Output<'_>,
    metadata: &Metadata,
    known: &mut Vec<(Identity, String)>,
) -> Result<(), Failure> {
    let Some(own) = identity(metadata) else {
        return Ok(());
    };
    if let Some((_, other)) = known.iter().find(|(identity, _)| *identity == own) {
        return Err(Failure::usage(format!(
            "{option} {}: is the same file as {other}: expected a file of its own",
            path.display()
        )));
    }
    known.push((own, format!("{option} {}", path.display())));
    Ok(())
}

/// Checks that a file which is there may be replaced.
fn check_content(
    (option, path): Output<'_>,
    metadata: &Metadata,
    content: Content,
) -> Result<(), Failure> {
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(());
    }
    let (is_replaceable, what) = match content {
        Content::Capture => (first_bytes(path).is_ok_and(is_capture), "capture"),
        #[cfg(feature = "azure")]
        Content::Configuration => {
            let marker = azure::FIRST_WORDS.as_bytes();
            let is_imported = |first: [u8; azure::FIRST_WORDS.len()]| first == marker;
            let found = first_bytes(path).is_ok_and(is_imported);
            (found, "configuration made by `slb import`")
        }
    };
    if is_replaceable {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{option} {}: is not a {what}: expected a new file, or a {what} to replace",
        path.display()
    )))
}

fn first_bytes<const N: usize>(path: &Path) -> io::Result<[u8; N]> {
    let mut first = [0; N];
    File::open(path)?.read_exact(&mut first)?;
    Ok(first)
}

/// Returns true if a file that begins so is a capture: pcap in either byte order, with micro- or
/// nanoseconds, or modified (`wiretap/libpcap.h`); or pcapng (its section header block).
fn is_capture(first: [u8; 4]) -> bool {
    const PCAP: [u32; 3] = [0xa1b2_c3d4, 0xa1b2_3c4d, 0xa1b2_cd34];
    const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
    let magic = [u32::from_be_bytes(first), u32::from_le_bytes(first)];
    first == PCAPNG || magic.iter().any(|magic| PCAP.contains(magic))
}
