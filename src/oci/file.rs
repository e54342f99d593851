//! Reads files whose paths come from users: within a size limit, and without blocking on a pipe, a
//! device or a socket.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
    thread::park_timeout,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};
use tokio::time::Instant;
use zeroize::Zeroizing;

/// A larger file of a password is the wrong file.
pub const MAX_PASSWORD_BYTES: u64 = 1 << 20;
/// The time within which a pipe such as `<(command)` must end.
const PIPE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum wait for a lock that processes hold for milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval between attempts to take a lock.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// The number of bytes that are read from a pipe at a time.
const CHUNK_BYTES: usize = 1 << 16;

/// A path begins with `~`, which means the home folder in a shell only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: `~` is not expanded here; write the whole path, or ./{path} if that is its name")]
pub struct Tilde {
    path: String,
}

/// The password in a file, without white space around it. Blocks.
///
/// # Errors
/// When the file can't be read, is larger than [`MAX_PASSWORD_BYTES`] or is empty. The text has nothing of
/// the password.
pub fn read_password(file: &Path) -> Result<Zeroizing<String>, String> {
    let shown = file.display();
    let bytes = read_regular(file, MAX_PASSWORD_BYTES).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => format!("{shown} is too large; name the right file"),
        _ => format!("{shown} can't be read: {error}; correct the path or its permissions"),
    })?;
    let bytes = Zeroizing::new(bytes);
    let text = str::from_utf8(&bytes)
        .map_err(|_| format!("{shown} is not UTF-8 text; name the right file"))?;
    match text.trim() {
        "" => Err(format!("{shown} is empty; write the password to it")),
        password => Ok(Zeroizing::new(password.to_owned())),
    }
}

/// Refuses a path that begins with `~`: a folder of that name is never what was meant.
///
/// # Errors
/// See [`Tilde`].
pub fn check_tilde(path: &Path) -> Result<(), Tilde> {
    if path.as_os_str().as_encoded_bytes().starts_with(b"~") {
        let path = path.to_string_lossy().escape_debug().to_string();
        return Err(Tilde { path });
    }
    Ok(())
}

/// Opens a regular file for reading, also through a symbolic link. Does not block on a pipe without
/// a writer.
///
/// # Errors
/// `InvalidInput` for anything but a regular file, else the error of the system.
pub fn open_regular(path: &Path) -> io::Result<fs::File> {
    // Opening a device can have effects, so the file is checked before; the second check catches a
    // file that was replaced in between.
    check_regular(&fs::metadata(path)?)?;
    let file = nonblocking().read(true).open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

/// Opens a regular file that has at most `limit` bytes now, and returns it with its size.
///
/// # Errors
/// As [`read_regular`].
pub fn open_regular_within(path: &Path, limit: u64) -> io::Result<(fs::File, u64)> {
    let file = open_regular(path)?;
    match file.metadata()?.len() {
        size if size > limit => Err(too_large(limit)),
        size => Ok((file, size)),
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// `InvalidInput` for anything but a regular file, `FileTooLarge` beyond the limit, else the error
/// of the system.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let (file, _) = open_regular_within(path, limit)?;
    // `/proc` has endless files of length 0, so the read is limited as well.
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    within(bytes, limit)
}

/// Reads a regular file, or a pipe or terminal (`<(command)`, `/dev/stdin`) that ends within 10
/// seconds; at most `limit` bytes. Blocks.
///
/// # Errors
/// As [`read_regular`], and `TimedOut` for a pipe that does not end.
pub fn read_regular_or_pipe(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_within(path, limit, PIPE_TIMEOUT)
}

fn read_within(path: &Path, limit: u64, timeout: Duration) -> io::Result<Vec<u8>> {
    if !is_stream(&fs::metadata(path)?) {
        return read_regular(path, limit);
    }
    let pipe = nonblocking().read(true).open(path)?;
    if !is_stream(&pipe.metadata()?) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the file changed while it was opened; try again",
        ));
    }
    read_pipe(pipe, limit, Instant::now() + timeout)
}

/// Whether a file is a pipe, or a terminal or another device that is read as one.
fn is_stream(metadata: &fs::Metadata) -> bool {
    metadata.file_type().is_fifo() || metadata.file_type().is_char_device()
}

/// Also waits for the first writer of a pipe: `poll` reports the end only after a writer opened it.
fn read_pipe(mut pipe: fs::File, limit: u64, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let ready = poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&left));
        match ready {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the pipe did not end in time",
                ));
            }
            Err(rustix::io::Errno::INTR) => continue,
            ready => drop(ready?),
        }
        match pipe.read(&mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(count) if (bytes.len() + count) as u64 > limit => return Err(too_large(limit)),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens a lock file, and creates it where it is missing. An existing one must be a regular file:
/// opening a pipe for writing would wait for a reader. Follows no symbolic link, so that nothing
/// outside of the folder is created.
///
/// # Errors
/// `InvalidInput` for anything but a regular file, else the error of the system.
pub fn open_lock(path: &Path) -> io::Result<fs::File> {
    match fs::metadata(path) {
        Ok(there) => check_regular(&there)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut options = fs::File::options();
    options.custom_flags(
        (OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW)
            .bits()
            .cast_signed(),
    );
    let file = options.create(true).append(true).open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

/// Takes a lock that other processes hold for milliseconds. Blocks for at most 10 seconds.
///
/// # Errors
/// `TimedOut` when another process does not release it, else the error of the system.
pub fn lock_with_timeout(file: &fs::File, mode: LockMode) -> io::Result<()> {
    lock_within(file, mode, LOCK_TIMEOUT)
}

/// Whether a lock may be held by several processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Any number of processes may hold it.
    Shared,
    /// Only one process may hold it.
    Exclusive,
}

fn lock_within(file: &fs::File, mode: LockMode, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let tried = match mode {
            LockMode::Shared => file.try_lock_shared(),
            LockMode::Exclusive => file.try_lock(),
        };
        match tried {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::Error(error)) => return Err(error),
            Err(fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another process holds it; end that process",
                ));
            }
            Err(fs::TryLockError::WouldBlock) => park_timeout(LOCK_RETRY_INTERVAL),
        }
    }
}

fn nonblocking() -> fs::OpenOptions {
    let mut options = fs::File::options();
    options.custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed());
    options
}

fn check_regular(metadata: &fs::Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let name = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    let sentence = format!("it is {name}, not a regular file");
    let kind = if kind.is_dir() {
        io::ErrorKind::IsADirectory
    } else {
        io::ErrorKind::InvalidInput
    };
    Err(io::Error::new(kind, sentence))
}

fn within(bytes: Vec<u8>, limit: u64) -> io::Result<Vec<u8>> {
    if bytes.len() as u64 > limit {
        Err(too_large(limit))
    } else {
        Ok(bytes)
    }
}

fn too_large(limit: u64) -> io::Error {
    let limit = match limit {
        limit if limit.is_multiple_of(1 << 20) => format!("{} MiB", limit >> 20),
        limit => format!("{limit} bytes"),
    };
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("it is larger than {limit}"),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn pipe_in(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        path
    }

    #[test]
    fn only_a_regular_file_is_opened_and_no_open_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = pipe_in(folder.path());
        for (path, what) in [
            (pipe.as_path(), "a pipe"),
            (Path::new("/dev/zero"), "a device"),
            (folder.path(), "a folder"),
        ] {
            for error in [
                open_regular(path).unwrap_err(),
                read_regular(path, 9).unwrap_err(),
                open_lock(path).unwrap_err(),
            ] {
                assert_eq!(
                    error.to_string(),
                    format!("it is {what}, not a regular file")
                );
            }
        }
        assert_eq!(
            read_regular(Path::new("/nowhere/x"), 9).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn open_lock_follows_no_symbolic_link() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::os::unix::fs::symlink(at("nothing"), at("dangling")).unwrap();
        assert!(open_lock(&at("dangling")).is_err());
        assert!(!at("nothing").exists());
        open_lock(&at("lock")).unwrap();
        open_regular(&at("lock")).unwrap();
    }

    #[test]
    fn a_file_longer_than_the_limit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_regular(&path, 5).unwrap(), b"12345");
        assert_eq!(
            read_regular(&path, 4).unwrap_err().to_string(),
            "it is larger than 4 bytes"
        );
        assert_eq!(read_regular_or_pipe(&path, 5).unwrap(), b"12345");
        // Sparse: nothing of it is read.
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert_eq!(
            read_regular(&path, 1 << 20).unwrap_err().to_string(),
            "it is larger than 1 MiB"
        );
    }

    #[test]
    fn a_pipe_is_read_to_its_end_or_to_the_timeout() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = pipe_in(folder.path());
        let writer = |bytes: &'static [u8]| {
            let pipe = pipe.clone();
            std::thread::spawn(move || {
                fs::File::options()
                    .write(true)
                    .open(pipe)
                    .unwrap()
                    .write_all(bytes)
            })
        };
        let writing = writer(b"a key");
        assert_eq!(read_regular_or_pipe(&pipe, 9).unwrap(), b"a key");
        writing.join().unwrap().unwrap();
        let writing = writer(b"more than nine");
        assert_eq!(
            read_regular_or_pipe(&pipe, 9).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        drop(writing.join());
        let no_writer = read_within(&pipe, 9, Duration::from_millis(20)).unwrap_err();
        assert_eq!(no_writer.kind(), io::ErrorKind::TimedOut);
        let endless = read_regular_or_pipe(Path::new("/dev/zero"), 1 << 20).unwrap_err();
        assert_eq!(endless.to_string(), "it is larger than 1 MiB");
        let held = fs::File::options()
            .read(true)
            .write(true)
            .open(&pipe)
            .unwrap();
        let never_ends = read_within(&pipe, 9, Duration::from_millis(20)).unwrap_err();
        assert_eq!(never_ends.kind(), io::ErrorKind::TimedOut);
        drop(held);
    }

    #[test]
    fn a_lock_that_is_not_released_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join(".lock"), folder.path().join(".lock"));
        let (one, other) = (open_lock(&one).unwrap(), open_lock(&other).unwrap());
        lock_within(&one, LockMode::Shared, Duration::ZERO).unwrap();
        lock_within(&other, LockMode::Shared, Duration::ZERO).unwrap();
        let refused =
            lock_within(&one, LockMode::Exclusive, Duration::from_millis(20)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    }
}
