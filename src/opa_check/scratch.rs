//! The working folder of `opa`.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::{running, sandbox::Unavailable};
use crate::oci::Blob;

/// A folder with mode 0700, removed when dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    _folder: TempDir,
}

/// The capabilities file in the folder.
pub(super) const CAPABILITIES: &str = "capabilities.json";
/// The bundle in the folder.
pub(super) const BUNDLE: &str = "bundle.tar.gz";

impl Scratch {
    /// Creates an empty folder.
    pub(super) async fn empty() -> Result<Self, Unavailable> {
        Self::create(|_| Ok(())).await
    }

    /// Creates a folder with a bundle and the capabilities for `opa`.
    pub(super) async fn with_bundle(
        capabilities: Arc<[u8]>,
        bundle: &Blob,
    ) -> Result<Self, Unavailable> {
        let bundle = bundle.clone();
        Self::create(move |folder| {
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

    async fn create(
        fill: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, Unavailable> {
        let made = spawn_blocking(move || {
            let private = fs::Permissions::from_mode(0o700);
            let folder = tempfile::Builder::new()
                .prefix("bundlegate-opa-")
                .permissions(private)
                .tempdir()?;
            // The program runs in this folder, where a relative TMPDIR would lead elsewhere.
            let scratch = Self {
                path: fs::canonicalize(folder.path())?,
                _folder: folder,
            };
            running::register_folder(&scratch.path);
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
        running::unregister_folder(&self.path);
    }
}
