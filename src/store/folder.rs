//! Decides whether a folder is a cache or may become one. Until then nothing in it is changed:
//! `cache.directory: /tmp` must neither restrict /tmp nor delete its files.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::{
    fs::{Access, access},
    process::geteuid,
};

use super::{
    error::{DiskError, FolderError},
    index::INDEX_LIMIT,
    record::{HistoryEntry, Record},
};
use crate::oci::{Descriptor, Layout, LayoutIndex, open_lock, open_regular};

/// `oci-layout` in a cache: the content that the specification requires, and a key that marks the
/// folder as a cache. Written before anything else, so that the next start recognises the folder
/// after a crash.
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0","dev.bundlegate.cache":1}"#;
const MARKER_NAME: &str = "oci-layout";
/// The names in an empty cache of an earlier version.
const EMPTY_CACHE: [&str; 7] = [
    ".index.lock",
    ".lock",
    "blobs",
    "index.json",
    MARKER_NAME,
    "tuf",
    LOST_FOUND,
];
/// The only name in the root of a fresh volume.
const LOST_FOUND: &str = "lost+found";

/// Opens the folder as a private, locked cache, and makes it one if it is empty. The lock is held
/// as long as the file is open.
pub(super) fn claim(path: &Path) -> Result<fs::File, DiskError> {
    let failed = |source| DiskError::Io {
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let is_empty = is_empty(path).map_err(failed)?;
    if !is_empty && !is_cache(path)? {
        return Err(DiskError::NotACache {
            path: path.to_owned(),
        });
    }
    make_private(path)?;
    if is_empty {
        mark_new(path).map_err(failed)?;
    }
    let lock = open_lock(&path.join(".lock")).map_err(failed)?;
    lock.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => DiskError::Locked {
            path: path.to_owned(),
        },
        fs::TryLockError::Error(source) => failed(source),
    })?;
    Ok(lock)
}

/// Checks whether this user can use the folder as a cache, without changing anything. It does not
/// check whether another process uses it, which may end before this one starts. Blocks.
///
/// # Errors
/// When the folder, or if it is missing the one in which it would be created, can't be written,
/// belongs to another user, or is not a cache.
pub fn check(path: &Path) -> Result<(), FolderError> {
    Ok(check_usable(path)?)
}

fn check_usable(path: &Path) -> Result<(), DiskError> {
    let failed = |source| DiskError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = match fs::metadata(path) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return check_creatable(path),
        Err(error) => return Err(failed(error)),
    };
    if !folder.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    check_writable(path)?;
    if !is_empty(path).map_err(failed)? && !is_cache(path)? {
        return Err(DiskError::NotACache {
            path: path.to_owned(),
        });
    }
    if folder.uid() != geteuid().as_raw() {
        return Err(DiskError::Foreign {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Checks that a missing folder can be created in the nearest one above it that exists.
fn check_creatable(path: &Path) -> Result<(), DiskError> {
    let above = path.ancestors().skip(1).map(|folder| match folder {
        folder if folder.as_os_str().is_empty() => Path::new("."),
        folder => folder,
    });
    let mut above = above.filter(|folder| folder.exists());
    match above.next() {
        Some(folder) => check_writable(folder),
        None => Ok(()),
    }
}

fn check_writable(folder: &Path) -> Result<(), DiskError> {
    let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    access(folder, wanted).map_err(|error| DiskError::Io {
        path: folder.to_owned(),
        source: error.into(),
    })
}

/// Whether the folder is marked as a cache, regardless of its index.
pub(super) fn is_marked(path: &Path) -> bool {
    let mut text = Vec::with_capacity(MARKER.len() + 1);
    let file = open_regular(&path.join(MARKER_NAME));
    let read = file.and_then(|file| file.take(MARKER.len() as u64 + 1).read_to_end(&mut text));
    read.is_ok() && text == MARKER
}

/// Marks a cache of an earlier version.
pub(super) fn mark(path: &Path) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(path)?;
    file.write_all(MARKER)?;
    file.as_file().sync_all()?;
    file.persist(path.join(MARKER_NAME))
        .map_err(|error| error.error)?;
    Ok(())
}

/// Whether every entry is one that a cache writes. An index without entries proves nothing.
pub(super) fn is_cache_index(index: &LayoutIndex) -> bool {
    index.manifests.iter().all(is_cache_entry)
}

fn is_cache_entry(entry: &Descriptor) -> bool {
    Record::from_entry(entry).is_some() || HistoryEntry::from_entry(entry).is_some()
}

fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let is_left = name == MARKER_NAME && is_interrupted_marker(path);
        if name != LOST_FOUND && !is_left {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a folder that is not empty is a cache, of this version or an earlier one. A lock file
/// proves nothing: other programs have lock files, too.
fn is_cache(path: &Path) -> Result<bool, DiskError> {
    let marked = is_marked(path);
    let Ok(layout) = Layout::open(path) else {
        return Ok(false);
    };
    match layout.index_within(INDEX_LIMIT) {
        Ok(index) if index.manifests.is_empty() && !marked => Ok(is_empty_cache(path, &layout)?),
        Ok(index) => Ok(is_cache_index(&index)),
        Err(_) => Ok(marked),
    }
}

/// Whether this is an empty cache of an earlier version. If it belongs to another program, that
/// program loses nothing.
fn is_empty_cache(path: &Path, layout: &Layout) -> Result<bool, DiskError> {
    let failed = |source| DiskError::Io {
        path: path.to_owned(),
        source,
    };
    if !path.join(".lock").is_file() || !layout.blobs()?.is_empty() {
        return Ok(false);
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !EMPTY_CACHE.iter().any(|known| name == *known) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a crash or a full disk has cut the marker short.
fn is_interrupted_marker(path: &Path) -> bool {
    let mut text = Vec::with_capacity(MARKER.len());
    let file = open_regular(&path.join(MARKER_NAME));
    let read = file.and_then(|file| file.take(MARKER.len() as u64).read_to_end(&mut text));
    read.is_ok() && text.len() < MARKER.len() && MARKER.starts_with(&text)
}

/// Writes the same bytes as another process may be writing; the lock decides which one owns the
/// folder.
fn mark_new(path: &Path) -> io::Result<()> {
    let mut marker = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join(MARKER_NAME))?;
    marker.write_all(MARKER)?;
    marker.sync_all()
}

/// Other users must neither read private policy nor write their own.
fn make_private(path: &Path) -> Result<(), DiskError> {
    let failed = |source| DiskError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = fs::metadata(path).map_err(failed)?;
    // The owner of a new file is the effective user.
    let probe = tempfile::tempfile_in(path)
        .and_then(|probe| probe.metadata())
        .map_err(failed)?;
    if folder.uid() != probe.uid() {
        return Err(DiskError::Foreign {
            path: path.to_owned(),
        });
    }
    if folder.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}
