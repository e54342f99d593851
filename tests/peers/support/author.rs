//! A policy author at the command line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    time::timeout,
};

/// A person with a home folder: the image store, docker's configuration and everything else
/// is in it.
#[derive(Debug)]
pub(crate) struct Author {
    home: TempDir,
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    /// Most memory that it had at a time, in bytes, as far as it was seen.
    pub(crate) peak: u64,
}

impl Author {
    pub(crate) fn new() -> Self {
        Self { home: TempDir::new().unwrap() }
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes a file, with the folders above it.
    pub(crate) fn write(&self, name: &str, content: &str) {
        let file = self.path(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }

    /// A folder with a policy whose `data.authz.answer` is `answer`.
    pub(crate) fn policy(&self, answer: &str) {
        self.write("policy/authz.rego", &format!("package authz\n\nanswer := \"{answer}\"\n"));
        self.write("policy/.manifest", r#"{"roots": ["authz"]}"#);
    }

    /// Starts `bundlegate` with these words.
    pub(crate) fn start(&self, words: &[&str]) -> Child {
        let path = std::env::join_paths(
            [self.path("bin")].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        );
        Command::new(env!("CARGO_BIN_EXE_bundlegate"))
            .args(words)
            .current_dir(self.home())
            .env_clear()
            .env("HOME", self.home())
            .env("PATH", path.unwrap())
            .env("COSIGN_PASSWORD", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Runs `bundlegate` to its end, whatever that is.
    pub(crate) async fn try_run(&self, words: &[&str], input: &str) -> Done {
        let mut child = self.start(words);
        let mut stdin = child.stdin.take().unwrap();
        // A program that doesn't ask doesn't listen.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        finish(child).await
    }

    /// Runs `bundlegate`, which has to work, and gives its standard output.
    pub(crate) async fn run(&self, words: &[&str]) -> String {
        let done = self.try_run(words, "").await;
        assert_eq!(done.code, Some(0), "{words:?}: {}{}", done.out, done.err);
        done.out.trim().to_owned()
    }
}

/// Waits for the end.
pub(crate) async fn finish(child: Child) -> Done {
    let status = format!("/proc/{}/status", child.id().unwrap());
    let mut peak = 0;
    let mut ended = std::pin::pin!(child.wait_with_output());
    let output = loop {
        let look = timeout(std::time::Duration::from_millis(20), &mut ended).await;
        peak = peak.max(most_memory(&status));
        match look {
            Ok(output) => break output.unwrap(),
            Err(_) => continue,
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr), peak }
}

/// `VmHWM`, while there is such a process.
fn most_memory(status: &str) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}
