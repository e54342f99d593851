//! A Unix socket in the file system that this process listens on.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::{
    net::{UnixListener, UnixSocket as Unbound, UnixStream},
    time::timeout,
};

use crate::oci::{LockMode, lock_with_timeout};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;
/// The time limit of a connection to an existing socket. A process whose backlog is full is alive.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Device and inode of a file, and when it was created, where the system tells: the inode of a file
/// that is removed is used again.
type FileIdentity = (u64, u64, Option<SystemTime>);

/// A socket that only the user of this process can connect to (mode 0600). Its file is removed when
/// this is dropped.
#[derive(Debug)]
pub(super) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// The file: another process may have put another one in its place.
    file: FileIdentity,
}

impl UnixSocket {
    /// Creates the socket in an existing folder. The socket of a process that has ended is replaced.
    ///
    /// # Errors
    /// When another process listens there, there is another file, or the folder can't be written.
    /// The message has the path and a fix.
    pub(super) async fn bind(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| {
            let message = format!("unix:{}: {error}{}", path.display(), hint(&error));
            io::Error::new(error.kind(), message)
        };
        Self::bind_locked(path).await.map_err(named)
    }

    async fn bind_locked(path: &Path) -> io::Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // Of two processes that start at once, the later one must not take the socket of the
        // earlier one for a stale one before that listens.
        let lock = fs::File::open(folder)?;
        lock_with_timeout(&lock, LockMode::Exclusive)?;
        remove_stale(path).await?;
        let socket = Unbound::new_stream()?;
        socket.bind(path)?;
        // Nobody can connect before `listen`.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let listener = socket.listen(BACKLOG)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: identity(path)?,
        })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket on which no process listens.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            let message = "it exists and is no socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Ok(_) => {}
    }
    match timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Ok(_) | Err(_) => {
            let message = "another process listens there";
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
    }
}

fn identity(path: &Path) -> io::Result<FileIdentity> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino(), file.created().ok()))
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; stop it, or configure another path",
        io::ErrorKind::AlreadyExists => "; configure another path",
        io::ErrorKind::NotFound => "; create the folder",
        io::ErrorKind::PermissionDenied => "; use a folder that this user can read and write",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    async fn refusal(path: &Path) -> String {
        UnixSocket::bind(path).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_socket_is_private_and_goes_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let socket = UnixSocket::bind(&path).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        UnixStream::connect(&path).await.unwrap();
        let refused = refusal(&path).await;
        assert!(
            refused.contains("another process listens there; stop it"),
            "{refused}"
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn only_a_socket_without_a_process_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        // The file of a listener that is closed stays.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = UnixSocket::bind(&path).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        // A socket that another process has put in its place is not removed.
        fs::remove_file(&path).unwrap();
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
        drop(other);
        fs::remove_file(&path).unwrap();

        fs::write(&path, "x").unwrap();
        let refused = refusal(&path).await;
        assert!(
            refused.ends_with("it exists and is no socket; configure another path"),
            "{refused}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"x");
        let refused = refusal(&folder.path().join("no/admin.sock")).await;
        assert!(refused.ends_with("; create the folder"), "{refused}");
    }
}
