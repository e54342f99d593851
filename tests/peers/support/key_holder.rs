//! bundlegate's own command line, in a folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};

use super::PATIENCE;

/// Somebody at a desk: the folder is the home, too.
#[derive(Debug)]
pub(crate) struct KeyHolder {
    folder: TempDir,
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What `COSIGN_PASSWORD` is.
pub(crate) const KEY_PASSWORD: &str = "rose bud";

impl KeyHolder {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Runs bundlegate.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        self.finish(Command::new(env!("CARGO_BIN_EXE_bundlegate")).args(arguments)).await
    }

    /// Runs bundlegate or another program with another password.
    pub(crate) async fn finish_with(&self, password: &str, command: &mut Command) -> Ran {
        self.end(command.env("COSIGN_PASSWORD", password)).await
    }

    /// Runs any other program to its end, whatever that is.
    pub(crate) async fn finish(&self, command: &mut Command) -> Ran {
        self.finish_with(KEY_PASSWORD, command).await
    }

    async fn end(&self, command: &mut Command) -> Ran {
        command.current_dir(self.folder()).env("HOME", self.folder());
        command.env_remove("BUNDLEGATE_STORE").env_remove("BUNDLEGATE_REGISTRY").env_remove("DOCKER_CONFIG");
        let ended = timeout(PATIENCE, command.kill_on_drop(true).output()).await;
        let output = ended.unwrap_or_else(|_| panic!("{command:?} does not end")).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Ran {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// It ended badly, in whatever way another program does.
    #[track_caller]
    pub(crate) fn failed(self) {
        assert!(self.code.is_some_and(|code| code != 0), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn refused(self, why: &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.stderr.contains(why), "{self:?} lacks {why:?}");
    }
}
