//! Where `dev` keeps what it makes: a folder of the user's choice, or one that goes with
//! the process.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// The folder, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    _lock: fs::File,
    /// Removes the folder when dropped.
    temporary: Option<tempfile::TempDir>,
}

impl State {
    /// Makes or opens the folder. `policy` is the folder being served, which must not hold
    /// its own product.
    pub(super) fn open(wanted: Option<&Path>, policy: Option<&Path>) -> anyhow::Result<Self> {
        let (path, temporary) = match wanted {
            Some(path) => {
                fs::create_dir_all(path).with_context(|| format!("--state {}", path.display()))?;
                (fs::canonicalize(path)?, None)
            }
            None => {
                let folder =
                    tempfile::Builder::new().prefix(".bundlegate-dev-").tempdir().context("temporary folder")?;
                (fs::canonicalize(folder.path())?, Some(folder))
            }
        };
        if temporary.is_none() && policy.is_some_and(|policy| path.starts_with(policy)) {
            bail!("--state {}: it lies inside the policy folder; name a folder outside", path.display());
        }
        let lock = crate::oci::open_lock(&path.join(".lock"));
        let lock = lock.with_context(|| format!("--state {}", path.display()))?;
        if lock.try_lock().is_err() {
            bail!("--state {}: another process uses it; give each a folder of its own", path.display());
        }
        Ok(Self { path, _lock: lock, temporary })
    }

    /// A file or folder in it.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it goes with the process.
    pub(super) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }
}
