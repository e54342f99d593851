//! The files that a configuration names, relative to its own folder.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::problem::Problem;

/// The folder that relative paths start from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base<'a>(pub(super) &'a Path);

impl Base<'_> {
    /// Where the file is.
    pub(super) fn path(self, path: &Path) -> Result<PathBuf, Problem> {
        if path.as_os_str().is_empty() {
            return Err(Problem::new("the path is empty; write one, or remove the key"));
        }
        Ok(self.0.join(path))
    }

    /// Its whole content.
    pub(super) fn bytes(self, path: &Path) -> Result<Vec<u8>, Problem> {
        let path = self.path(path)?;
        let failed = |error: std::io::Error| {
            Problem::new(format!("{} can't be read: {error}; correct the path or its permissions", path.display()))
        };
        let mut bytes = Vec::new();
        // Opening checks the permission, too; a device that never ends is cut off.
        File::open(&path).map_err(failed)?.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LARGEST {
            return Err(Problem::new(format!("{} is larger than 1 MiB; name the right file", path.display())));
        }
        Ok(bytes)
    }

    /// Its content as text. The error doesn't quote it: it may be a secret.
    pub(super) fn text(self, path: &Path) -> Result<String, Problem> {
        String::from_utf8(self.bytes(path)?)
            .map_err(|_| Problem::new(format!("{} is no text in UTF-8; name the right file", path.display())))
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
        self.bytes(path)
    }
}

const LARGEST: u64 = 1 << 20;
