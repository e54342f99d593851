//! The files that a configuration names, relative to its own folder.

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
use crate::oci::read_regular_or_pipe;

/// What has been read so far. A file that is named twice is read once: between two looks it
/// could change, and half of the configuration would mean the one content, half the other.
#[derive(Debug)]
pub(super) struct Files<'a> {
    folder: &'a Path,
    read: RefCell<BTreeMap<PathBuf, Entry>>,
}

/// The folder that relative paths start from, and what was read there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base<'a> {
    files: &'a Files<'a>,
    /// Whether a change of what is read through it is to be noticed.
    live: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// Nothing where it can't be read.
    bytes: Option<Rc<[u8]>>,
    live: bool,
}

impl<'a> Files<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self { folder, read: RefCell::default() }
    }

    /// For what is read once, or as often as it is needed.
    pub(super) fn base(&'a self) -> Base<'a> {
        Base { files: self, live: false }
    }

    /// For what is taken again whenever it changes.
    pub(super) fn live(&'a self) -> Base<'a> {
        Base { files: self, live: true }
    }

    /// What is taken again whenever it changes.
    pub(super) fn all_live(&self) -> Vec<PathBuf> {
        self.read.borrow().iter().filter(|(_, entry)| entry.live).map(|(path, _)| path.clone()).collect()
    }
}

impl<'a> Base<'a> {
    /// Where relative paths start from.
    pub(super) fn folder(self) -> &'a Path {
        self.files.folder
    }

    /// Where the file is.
    pub(super) fn path(self, path: &Path) -> Result<PathBuf, Problem> {
        if path.as_os_str().is_empty() {
            return Err(Problem::new("the path is empty; write one, or remove the key"));
        }
        // Errors and logs that name it are one line.
        if path.to_string_lossy().chars().any(char::is_control) {
            return Err(Problem::new(format!("the path {path:?} has control characters; write another")));
        }
        Ok(self.files.folder.join(path))
    }

    /// Its whole content.
    pub(super) fn bytes(self, path: &Path) -> Result<Rc<[u8]>, Problem> {
        let path = self.path(path)?;
        let mut read = self.files.read.borrow_mut();
        let entry = read.entry(path.clone()).or_default();
        entry.live |= self.live;
        match &entry.bytes {
            Some(bytes) => Ok(bytes.clone()),
            None => Ok(entry.bytes.insert(content(&path)?.into()).clone()),
        }
    }

    /// Its content as text. The error doesn't quote it: it may be a secret.
    pub(super) fn text(self, path: &Path) -> Result<String, Problem> {
        let bytes = self.bytes(path)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| Problem::new(format!("{} is no text in UTF-8; name the right file", path.display())))?;
        Ok(text.to_owned())
    }

    /// The certificates of a PEM file, at least one.
    pub(super) fn certificates(self, path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let bytes = self.bytes(path)?;
        let refused = |what: &str| {
            Problem::new(format!("{} {what}; give PEM certificates (-----BEGIN CERTIFICATE-----)", path.display()))
        };
        let chain = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| refused("holds malformed PEM"))?;
        if chain.is_empty() {
            return Err(refused("holds no certificate"));
        }
        Ok(chain)
    }

    /// The bytes of a PEM file of trust anchors.
    pub(super) fn roots(self, path: &Path) -> Result<Vec<u8>, Problem> {
        let mut store = RootCertStore::empty();
        for (index, certificate) in self.certificates(path)?.into_iter().enumerate() {
            store.add(certificate).map_err(|error| {
                let which = index + 1;
                Problem::new(format!("certificate {which} in {} is unusable: {error}; replace it", path.display()))
            })?;
        }
        Ok(self.bytes(path)?.to_vec())
    }
}

/// The content of a file that is named somewhere.
fn content(path: &Path) -> Result<Vec<u8>, Problem> {
    match read_regular_or_pipe(path, LARGEST) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => {
            Err(Problem::new(format!("{} is larger than 1 MiB; name the right file", path.display())))
        }
        Err(error) => {
            let path = path.display();
            Err(Problem::new(format!("{path} can't be read: {error}; correct the path or its permissions")))
        }
    }
}

/// Neither the configuration nor a file that it names is longer, in bytes.
pub(super) const LARGEST: u64 = 1 << 20;
