//! Bundle tarballs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::run;

/// A file that is pushed to a registry.
#[derive(Debug)]
pub(crate) struct Artifact {
    folder: TempDir,
}

/// File names and their contents.
pub(crate) type Files<'a> = &'a [(&'a str, &'a str)];

impl Artifact {
    /// A bundle in which `data.authz.answer` is `answer`, which is its revision as well.
    pub(crate) async fn answering(answer: &str) -> Self {
        let policy = format!("package authz\n\nanswer := \"{answer}\"\n");
        Self::built(answer, &[("authz.rego", &policy)]).await
    }

    /// An artifact with the bundle that `opa build` makes of `files`.
    pub(crate) async fn built(revision: &str, files: Files<'_>) -> Self {
        let folder = TempDir::new().unwrap();
        let sources = folder.path().join("sources");
        for (name, content) in files {
            let file = sources.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        run(
            "opa",
            folder.path(),
            &["build", "--bundle", "sources", "--revision", revision],
        )
        .await;
        Self { folder }
    }

    /// Any bytes.
    pub(crate) fn raw(bytes: &[u8]) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("bundle.tar.gz"), bytes).unwrap();
        Self { folder }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("bundle.tar.gz")
    }
}

impl AsRef<Path> for Artifact {
    fn as_ref(&self) -> &Path {
        self.folder.path()
    }
}
