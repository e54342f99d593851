//! The state folder of `dev`: `--state`, or a temporary folder that is removed on exit.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// The state folder, locked while this value exists.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    _lock: fs::File,
    /// Removes the folder on drop.
    temporary: Option<tempfile::TempDir>,
}

impl State {
    /// Creates or opens the folder. It must not be inside `policy`, the folder being built.
    pub(super) fn open(wanted: Option<&Path>, policy: Option<&Path>) -> anyhow::Result<Self> {
        let (path, temporary) = match wanted {
            Some(path) => {
                fs::create_dir_all(path).with_context(|| format!("--state {}", path.display()))?;
                (fs::canonicalize(path)?, None)
            }
            None => {
                let folder = tempfile::Builder::new()
                    .prefix(".bundlegate-dev-")
                    .tempdir()
                    .context("temporary folder")?;
                (fs::canonicalize(folder.path())?, Some(folder))
            }
        };
        if temporary.is_none() && policy.is_some_and(|policy| path.starts_with(policy)) {
            bail!(
                "--state {}: the folder is inside the policy folder; name one outside",
                path.display()
            );
        }
        let lock = crate::oci::open_lock(&path.join(".lock"));
        let lock = lock.with_context(|| format!("--state {}", path.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "--state {}: another process uses the folder; name a different one",
                path.display()
            );
        }
        Ok(Self {
            path,
            _lock: lock,
            temporary,
        })
    }

    /// The path of a file or folder inside.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder is removed on exit.
    pub(super) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }
}
