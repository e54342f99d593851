//! The files that a configuration names, relative to its folder.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    rc::Rc,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::problem::Problem;
use crate::oci::{check_tilde, read_regular_or_pipe};

/// The files read so far. A file that is named twice is read once: if it changed in between, the
/// configuration would use two different contents.
#[derive(Debug)]
pub(super) struct Files<'a> {
    folder: &'a Path,
    /// The files that the configuration names; `None` for one that is missing or can't be read.
    named: RefCell<BTreeMap<PathBuf, Option<Rc<[u8]>>>>,
}

/// Reads files relative to the folder of the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base<'a> {
    files: &'a Files<'a>,
}

impl<'a> Files<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self {
            folder,
            named: RefCell::default(),
        }
    }

    /// The base for the paths of files.
    pub(super) fn base(&'a self) -> Base<'a> {
        Base { files: self }
    }

    /// The files that the configuration names and that do not exist.
    pub(super) fn missing(&self) -> Vec<PathBuf> {
        let named = self.named.borrow();
        let unread = named.iter().filter(|(_, content)| content.is_none());
        let missing = unread.filter(|(path, _)| !path.exists());
        missing.map(|(path, _)| path.clone()).collect()
    }

    /// The paths of the files that the configuration names.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.named.borrow().keys().cloned().collect()
    }
}

impl<'a> Base<'a> {
    /// The folder of the configuration.
    pub(super) fn folder(self) -> &'a Path {
        self.files.folder
    }

    /// The path of a file, relative to the folder of the configuration.
    pub(super) fn path(self, path: &Path) -> Result<PathBuf, Problem> {
        if path.as_os_str().is_empty() {
            return Err(Problem::new(
                "the path is empty; write one, or remove the key",
            ));
        }
        // The path appears in errors and logs, which are one line.
        if path.to_string_lossy().chars().any(char::is_control) {
            return Err(Problem::new(format!(
                "the path {path:?} has control characters; write another"
            )));
        }
        check_tilde(path).map_err(|error| Problem::new(error.to_string()))?;
        Ok(self.files.folder.join(path))
    }

    /// The content of a file.
    pub(super) fn bytes(self, path: &Path) -> Result<Rc<[u8]>, Problem> {
        let path = self.path(path)?;
        let mut named = self.files.named.borrow_mut();
        let entry = named.entry(path.clone()).or_default();
        match entry {
            Some(bytes) => Ok(bytes.clone()),
            None => Ok(entry.insert(content(&path)?.into()).clone()),
        }
    }

    /// The content of a file that may be missing, by its whole path.
    pub(super) fn readable(self, path: &Path) -> Option<Rc<[u8]>> {
        let mut named = self.files.named.borrow_mut();
        let entry = named.entry(path.to_owned()).or_default();
        if entry.is_none() {
            *entry = content(path).ok().map(Into::into);
        }
        entry.clone()
    }

    /// The content of a file as text. The error does not quote it, as it may be a secret.
    pub(super) fn text(self, path: &Path) -> Result<String, Problem> {
        let bytes = self.bytes(path)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            Problem::new(format!(
                "{} is not UTF-8 text; name the right file",
                path.display()
            ))
        })?;
        Ok(text.to_owned())
    }

    /// The certificates in a PEM file, at least one.
    pub(super) fn certificates(self, path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let bytes = self.bytes(path)?;
        let refused = |what: &str| {
            Problem::new(format!(
                "{} {what}; use PEM certificates (-----BEGIN CERTIFICATE-----)",
                path.display()
            ))
        };
        let chain = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| refused("has malformed PEM"))?;
        if chain.is_empty() {
            return Err(refused("has no certificate"));
        }
        Ok(chain)
    }

    /// The bytes of a PEM file with valid trust anchors.
    pub(super) fn roots(self, path: &Path) -> Result<Vec<u8>, Problem> {
        self.root_store(path)?;
        Ok(self.bytes(path)?.to_vec())
    }

    /// The trust anchors in a PEM file, at least one.
    pub(super) fn root_store(self, path: &Path) -> Result<RootCertStore, Problem> {
        let mut store = RootCertStore::empty();
        for (index, certificate) in self.certificates(path)?.into_iter().enumerate() {
            store.add(certificate).map_err(|error| {
                let which = index + 1;
                Problem::new(format!(
                    "certificate {which} in {} is unusable: {error}; replace it",
                    path.display()
                ))
            })?;
        }
        Ok(store)
    }
}

/// Reads a file or pipe.
fn content(path: &Path) -> Result<Vec<u8>, Problem> {
    match read_regular_or_pipe(path, MAX_FILE_BYTES) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => Err(Problem::new(format!(
            "{} is larger than 1 MiB; name the right file",
            path.display()
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(missing(path)),
        Err(error) => {
            let path = path.display();
            Err(Problem::new(format!(
                "{path} can't be read: {error}; correct the path or its permissions"
            )))
        }
    }
}

/// The problem with a file that does not exist.
pub(super) fn missing(path: &Path) -> Problem {
    let message = format!(
        "{} does not exist; create it, or correct the path",
        path.display()
    );
    Problem::missing(path, message)
}

/// The maximum size of the configuration and of each file that it names, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
