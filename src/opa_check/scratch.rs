//! The folder in which `opa` works.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::{program::Opa, running, sandbox::Unavailable};
use crate::oci::Blob;

/// A folder that only this user may enter, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    _folder: TempDir,
}

/// The name of the capabilities file in it.
pub(super) const CAPABILITIES: &str = "capabilities.json";
/// The name of the bundle in it.
pub(super) const BUNDLE: &str = "bundle.tar.gz";

impl Scratch {
    /// An empty one.
    pub(super) async fn empty() -> Result<Self, Unavailable> {
        Self::filled(|_| Ok(())).await
    }

    /// One with a bundle, and the capabilities that `opa` is to obey.
    pub(super) async fn with_bundle(opa: &Opa, bundle: &Blob) -> Result<Self, Unavailable> {
        let (capabilities, bundle) = (opa.capabilities(), bundle.clone());
        Self::filled(move |folder| {
            fs::write(folder.join(CAPABILITIES), &capabilities)?;
            let mut file = fs::File::create_new(folder.join(BUNDLE))?;
            io::copy(&mut bundle.reader(), &mut file)?;
            file.flush()
        })
        .await
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    async fn filled(fill: impl FnOnce(&Path) -> io::Result<()> + Send + 'static) -> Result<Self, Unavailable> {
        let made = spawn_blocking(move || {
            let private = fs::Permissions::from_mode(0o700);
            let folder = tempfile::Builder::new().prefix("bundlegate-opa-").permissions(private).tempdir()?;
            // It becomes the program's own folder, from which a relative path leads elsewhere.
            let scratch = Self { path: fs::canonicalize(folder.path())?, _folder: folder };
            running::begin_folder(&scratch.path);
            fill(&scratch.path)?;
            Ok(scratch)
        });
        match made.await {
            Ok(made) => made.map_err(Unavailable::Scratch),
            Err(error) => Err(Unavailable::Internal(error.to_string())),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        running::end_folder(&self.path);
    }
}
