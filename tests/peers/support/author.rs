//! A policy author at the command line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    time::{Instant, timeout},
};

use super::{
    PATIENCE,
    programs::{program, search_path},
};

/// A person with a home folder, where every command is typed: the image store, docker's
/// configuration and everything else is in it.
#[derive(Debug)]
pub(crate) struct Author {
    home: TempDir,
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Most memory that it had at a time, in bytes, as far as it was seen.
    pub(crate) peak: u64,
}

impl Author {
    pub(crate) fn new() -> Self {
        Self {
            home: TempDir::new().unwrap(),
        }
    }

    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let author = Self::new();
        files
            .iter()
            .for_each(|(name, content)| author.write(name, content));
        author
    }

    /// With a policy in `policy` by which readers may read and owners may do everything.
    pub(crate) fn with_policy() -> Self {
        Self::with(&POLICY)
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
        self.write(
            "policy/authz.rego",
            &format!("package authz\n\nanswer := \"{answer}\"\n"),
        );
        self.write("policy/.manifest", r#"{"roots": ["authz"]}"#);
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Starts `bundlegate` with these words.
    pub(crate) fn start(&self, words: &[&str]) -> Child {
        self.spawn(Path::new(env!("CARGO_BIN_EXE_bundlegate")), words)
    }

    /// Runs `bundlegate` to its end, whatever that is.
    pub(crate) async fn run(&self, words: &[&str]) -> Ran {
        self.run_with(words, "").await
    }

    /// The same with a text on standard input.
    pub(crate) async fn run_with(&self, words: &[&str], input: &str) -> Ran {
        let mut child = self.start(words);
        let mut stdin = child.stdin.take().unwrap();
        // A program that doesn't ask doesn't listen.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        Ran::of(child).await
    }

    /// Runs a peer to its end, whatever that is.
    pub(crate) async fn peer(&self, name: &str, words: &[&str]) -> Ran {
        Ran::of(self.spawn(&program(name), words)).await
    }

    /// Types a line for the shell, which finds bundlegate and the peers by their names.
    pub(crate) async fn shell(&self, line: &str) -> Ran {
        self.peer("sh", &["-euc", line]).await
    }

    /// Types a line, which has to work, and gives what it says on standard output.
    pub(crate) async fn line(&self, line: &str) -> String {
        let ran = self.shell(line).await;
        assert_eq!(ran.code, Some(0), "{line}: {ran:?}");
        ran.told()
    }

    /// Types a line with `--json` at its end, and gives the document.
    pub(crate) async fn json(&self, line: &str) -> Value {
        let text = self.line(&format!("{line} --json")).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
    }

    /// What this OPA makes of `bundle.tar.gz` for somebody who wants to do something.
    pub(crate) async fn decides(&self, opa: &str, query: &str, input: &str) -> Value {
        self.write("input.json", input);
        let words = [
            "eval",
            "--bundle",
            "bundle.tar.gz",
            "--input",
            "input.json",
            "--format",
            "json",
            query,
        ];
        self.peer(opa, &words).await.json()["result"][0]["expressions"][0]["value"].take()
    }

    /// With nothing of the machine's own settings.
    fn spawn(&self, program: &Path, words: &[&str]) -> Child {
        let peers = search_path();
        let path = [self.path("bin")]
            .into_iter()
            .chain(std::env::split_paths(&peers));
        let mut command = Command::new(program);
        command
            .args(words)
            .current_dir(self.home())
            .env_clear()
            .env("HOME", self.home());
        command
            .env("PATH", std::env::join_paths(path).unwrap())
            .env("COSIGN_PASSWORD", "rose bud");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()))
    }
}

impl Ran {
    /// Waits for the end.
    pub(crate) async fn of(child: Child) -> Self {
        let status = format!("/proc/{}/status", child.id().unwrap());
        let (began, mut peak) = (Instant::now(), 0);
        let mut ended = std::pin::pin!(child.wait_with_output());
        let output = loop {
            let look = timeout(Duration::from_millis(20), &mut ended).await;
            peak = peak.max(most_memory(&status));
            match look {
                Ok(output) => break output.unwrap(),
                Err(_) => assert!(began.elapsed() < PATIENCE, "{status}: it does not end"),
            }
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            peak,
        }
    }

    /// Its standard output, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// The same without the end of the last line.
    #[track_caller]
    pub(crate) fn told(self) -> String {
        self.ok().trim_end().to_owned()
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// It ended badly, in whatever way another program does.
    #[track_caller]
    pub(crate) fn failed(self) {
        assert!(self.code.is_some_and(|code| code != 0), "{self:?}");
    }

    /// It failed with one line that says why, which is given.
    #[track_caller]
    pub(crate) fn refused(self, why: &str) -> String {
        assert_eq!(
            (self.code, self.stderr.lines().count()),
            (Some(1), 1),
            "{self:?}"
        );
        assert!(
            self.stderr.starts_with("bundlegate: ") && self.stderr.contains(why),
            "{self:?} lacks {why:?}"
        );
        self.stderr
    }
}

/// `VmHWM`, while there is such a process.
fn most_memory(status: &str) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

const POLICY: [(&str, &str); 4] = [
    ("policy/.manifest", r#"{ "roots": ["authz", "roles"] }"#),
    (
        "policy/authz/authz.rego",
        "package authz\n\n# METADATA\n# entrypoint: true\ndefault allow := false\n\n\
         allow if input.action in data.roles[input.role]\n\nallow if input.user == input.owner\n",
    ),
    (
        "policy/authz/authz_test.rego",
        "package authz_test\n\nimport data.authz\n\n\
         test_owners if authz.allow with input as {\"user\": \"ann\", \"owner\": \"ann\"}\n",
    ),
    ("policy/roles/data.json", r#"{ "reader": ["read"] }"#),
];

/// Somebody whom that policy lets in, and somebody whom it does not.
pub(crate) const READER: &str =
    r#"{ "role": "reader", "action": "read", "user": "bob", "owner": "ann" }"#;
pub(crate) const WRITER: &str =
    r#"{ "role": "reader", "action": "write", "user": "bob", "owner": "ann" }"#;
