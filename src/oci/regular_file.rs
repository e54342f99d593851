//! Opening files that other programs can replace: only regular files, and never with a wait.
//!
//! `open` on a FIFO waits for its other end, and reading a device may never end. A folder that
//! is handed over as a source, or shared with other programs, can hold either in the place of
//! any file.

use std::{fs, io, os::unix::fs::OpenOptionsExt as _, path::Path};

use rustix::fs::OFlags;

/// Opens a file for reading. Follows symbolic links.
///
/// # Errors
/// `InvalidInput` when it is not a regular file; whatever the operating system says otherwise.
pub fn open_regular(path: &Path) -> io::Result<fs::File> {
    // Some devices react to being opened, so the file is looked at before, and after that
    // again: it can be replaced in between, for which reason the open does not wait.
    check(&fs::metadata(path)?)?;
    let file = fs::File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Opens a lock file, making an empty one where there is none. Follows no symbolic link, so
/// nothing outside the folder is created.
///
/// # Errors
/// `InvalidInput` when it is there and not a regular file; whatever the operating system says
/// otherwise.
pub fn open_lock_file(path: &Path) -> io::Result<fs::File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    match fs::symlink_metadata(path) {
        Ok(metadata) => check(&metadata)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = fs::File::options().create(true).append(true).custom_flags(flags).open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

fn check(metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, process::Command};

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_without_a_wait() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        symlink("/dev/zero", at("device")).unwrap();
        symlink(at("nothing"), at("dangling")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        for name in ["fifo", "device", "folder"] {
            for open in [open_regular, open_lock_file] {
                let refused = open(&at(name)).unwrap_err();
                assert_eq!(refused.to_string(), "not a regular file", "{name}");
            }
        }
        assert!(open_lock_file(&at("dangling")).is_err());
        assert!(!at("nothing").exists(), "a lock file is created where the link leads");
        open_lock_file(&at("lock")).unwrap();
        open_regular(&at("lock")).unwrap();
    }
}
