//! Which folders may become the cache, and which are one. Nothing in a folder is changed before
//! that is settled: `cache.directory: /tmp` must neither close /tmp nor delete what is in it.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use super::{
    disk::{DiskError, INDEX_LIMIT},
    record::{Note, Record},
};
use crate::oci::{Descriptor, Layout, LayoutIndex, open_lock, open_regular};

/// `oci-layout` in a cache: what the specification wants, and whose folder it is. Written
/// before anything else, so that a crash leaves nothing that the next start takes for foreign.
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0","dev.bundlegate.cache":1}"#;
const MARKER_NAME: &str = "oci-layout";
/// What the cache of an earlier version without a bundle consists of, and the root of a volume.
const EMPTY_CACHE: [&str; 7] = [".index.lock", ".lock", "blobs", "index.json", MARKER_NAME, "tuf", LOST_FOUND];
/// The root of a fresh volume has this one.
const LOST_FOUND: &str = "lost+found";

/// Makes the folder a private, locked cache, or finds that it is one. The lock is held as long
/// as the file is open.
pub(super) fn claim(path: &Path) -> Result<fs::File, DiskError> {
    let failed = |source| DiskError::Io { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let is_empty = is_empty(path).map_err(failed)?;
    if !is_empty && !is_cache(path)? {
        return Err(DiskError::NotACache { path: path.to_owned() });
    }
    make_private(path)?;
    if is_empty {
        mark_new(path).map_err(failed)?;
    }
    let lock = open_lock(&path.join(".lock")).map_err(failed)?;
    lock.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => DiskError::Locked { path: path.to_owned() },
        fs::TryLockError::Error(source) => failed(source),
    })?;
    Ok(lock)
}

/// Whether the folder proves to be a cache whatever its index says.
pub(super) fn is_marked(path: &Path) -> bool {
    let mut text = Vec::with_capacity(MARKER.len() + 1);
    let file = open_regular(&path.join(MARKER_NAME));
    let read = file.and_then(|file| file.take(MARKER.len() as u64 + 1).read_to_end(&mut text));
    read.is_ok() && text == MARKER
}

/// Marks the cache of an earlier version.
pub(super) fn mark(path: &Path) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(path)?;
    file.write_all(MARKER)?;
    file.as_file().sync_all()?;
    file.persist(path.join(MARKER_NAME)).map_err(|error| error.error)?;
    Ok(())
}

/// Whether every entry is one that a cache writes. An index without entries proves nothing.
pub(super) fn is_ours(index: &LayoutIndex) -> bool {
    index.manifests.iter().all(is_entry_of_ours)
}

fn is_entry_of_ours(entry: &Descriptor) -> bool {
    Record::from_entry(entry).is_some() || Note::from_entry(entry).is_some()
}

fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        if entry?.file_name() != LOST_FOUND {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a folder that holds something is a cache, of this version or an earlier one. A lock
/// file proves nothing: other programs have some, too.
fn is_cache(path: &Path) -> Result<bool, DiskError> {
    let marked = is_marked(path);
    let Ok(layout) = Layout::open(path) else { return Ok(false) };
    match layout.index_within(INDEX_LIMIT) {
        Ok(index) if index.manifests.is_empty() && !marked => Ok(is_empty_cache(path, &layout)?),
        Ok(index) => Ok(is_ours(&index)),
        Err(_) => Ok(marked),
    }
}

/// Whether this is what an earlier version left of a cache in which nothing was kept: if it is
/// somebody else's, they lose nothing.
fn is_empty_cache(path: &Path, layout: &Layout) -> Result<bool, DiskError> {
    let failed = |source| DiskError::Io { path: path.to_owned(), source };
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

fn mark_new(path: &Path) -> io::Result<()> {
    let marker = fs::File::options().write(true).create_new(true).open(path.join(MARKER_NAME));
    match marker {
        // Another process was faster; the lock decides whose it is.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        marker => {
            let mut marker = marker?;
            marker.write_all(MARKER)?;
            marker.sync_all()
        }
    }
}

/// Other users must neither read private policy nor plant their own.
fn make_private(path: &Path) -> Result<(), DiskError> {
    let failed = |source| DiskError::Io { path: path.to_owned(), source };
    let folder = fs::metadata(path).map_err(failed)?;
    // A file of our own tells who we are without asking the system for it.
    let probe = tempfile::tempfile_in(path).and_then(|probe| probe.metadata()).map_err(failed)?;
    if folder.uid() != probe.uid() {
        return Err(DiskError::Foreign { path: path.to_owned() });
    }
    if folder.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}
