//! Files that a user names, opened without waiting for anyone.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::path::Path;

/// Opens a file to read it. Opening a FIFO would block until somebody writes to it, and a device may have no end, so
/// both are refused, as are directories and sockets. Descriptors that the caller was given, such as `/dev/stdin` and
/// a shell's `<(command)`, are read whatever they are.
///
/// # Errors
/// [`InvalidInput`](io::ErrorKind::InvalidInput): the file is not a regular file; the message names its type. Else it
/// cannot be opened.
pub fn open_file(path: impl AsRef<Path>) -> io::Result<File> {
    let path = path.as_ref();
    if is_descriptor(path) {
        return File::open(path);
    }
    // Opening some devices does something, so the type is looked at first.
    expect_regular(fs::metadata(path)?.file_type())?;
    let mut options = OpenOptions::new();
    options.read(true);
    // The file may be replaced by a FIFO in between.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path)?;
    expect_regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Returns true for the name of a descriptor that this process has: `/dev/stdin`, `/dev/fd/3`, `/proc/self/fd/3`.
pub fn is_descriptor(path: &Path) -> bool {
    let of = |directory: &str| path.parent() == Some(Path::new(directory));
    path == Path::new("/dev/stdin") || of("/dev/fd") || of("/proc/self/fd")
}

fn expect_regular(found: FileType) -> io::Result<()> {
    match found.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("expected a regular file, got {}", name(found)),
        )),
    }
}

#[cfg(unix)]
fn name(found: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt as _;
    match found {
        of if of.is_dir() => "a directory",
        of if of.is_fifo() => "a FIFO",
        of if of.is_socket() => "a socket",
        of if of.is_char_device() => "a character device",
        of if of.is_block_device() => "a block device",
        _ => "a file of another type",
    }
}

#[cfg(not(unix))]
fn name(found: FileType) -> &'static str {
    match found.is_dir() {
        true => "a directory",
        false => "a file of another type",
    }
}
