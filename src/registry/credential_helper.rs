//! Runs docker's credential helpers (docker-credential-helpers, `credentials/credentials.go`), and
//! keeps their answers for a bounded time.

use std::{
    collections::HashMap,
    env,
    ffi::OsString,
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::docker_auths::Login;
use crate::telemetry::cut;

/// A longer answer of a helper is an error.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// The part of a helper's stderr that is kept; the rest is read and dropped, so that the helper
/// does not block.
const MAX_STDERR_BYTES: usize = 4096;
/// A longer explanation of a helper is cut.
const MAX_EXPLANATION_BYTES: usize = 300;
/// How long stderr is read after the helper has ended: a process that it left behind may hold
/// stderr open.
const STDERR_GRACE: Duration = Duration::from_millis(100);
/// The time for which the answer of a helper is used again. Helpers for clouds answer with tokens
/// that last an hour (GCR) to 12 hours (ECR); one that is refused is dropped before.
const MAX_ANSWER_AGE: Duration = Duration::from_secs(300);
/// The time for which a failure, "no credentials", or credentials that the registry refuses are
/// used again, so that thousands of bundles don't start thousands of helpers.
const MIN_RUN_INTERVAL: Duration = Duration::from_secs(5);
/// The user name by which a helper marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";
/// The text by which every helper reports that it has no credentials
/// (docker-credential-helpers, `credentials/error.go`).
const NOT_FOUND: &str = "credentials not found";
const NO_PROGRAM: &str = "no such program in PATH; install it";
/// A helper that was just written may be open for writing in a process forked meanwhile.
const BUSY_RETRIES: usize = 20;
const BUSY_RETRY_DELAY: Duration = Duration::from_millis(10);

/// One helper, and how it is run.
#[derive(Clone)]
pub(super) struct Helper {
    /// The part of the program's name after `docker-credential-`.
    pub(super) name: String,
    /// The folders in which the program is looked up, instead of this process's `PATH`.
    pub(super) search_path: Option<OsString>,
    /// The time in which it must answer.
    pub(super) deadline: Duration,
}

/// Why a helper gave no answer. Contains no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("docker-credential-{helper} {verb}: {reason}")]
pub struct HelperError {
    /// Its name without `docker-credential-`.
    pub helper: String,
    /// `get`, `store` or `erase`.
    pub verb: &'static str,
    /// How it failed.
    pub reason: String,
}

/// The last answer of each helper for one registry. Requests that need the same answer wait for
/// one run.
#[derive(Debug, Default)]
pub(super) struct HelperCache {
    answers: tokio::sync::Mutex<HashMap<String, Answer>>,
}

#[derive(Debug)]
struct Answer {
    at: Instant,
    login: Result<Option<Login>, HelperError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Credentials {
    username: String,
    secret: String,
}

/// Kills the process group of a helper when dropped, unless the helper has ended.
struct Group(Option<Pid>);

impl HelperCache {
    /// The credentials that `helper` has for `server`, at most [`MAX_ANSWER_AGE`] old. `refused`
    /// are credentials that the registry has refused; the helper is asked again if it gave these.
    pub(super) async fn get(
        &self,
        helper: &Helper,
        server: &str,
        refused: Option<&Login>,
    ) -> Result<Option<Login>, HelperError> {
        // Held while the helper runs: it ends at its deadline.
        let mut answers = self.answers.lock().await;
        if let Some(answer) = answers.get(&helper.name)
            && answer.is_usable(refused)
        {
            return answer.login.clone();
        }
        let login = helper.get(server).await;
        let answer = Answer {
            at: Instant::now(),
            login: login.clone(),
        };
        answers.insert(helper.name.clone(), answer);
        login
    }
}

impl Answer {
    fn is_usable(&self, refused: Option<&Login>) -> bool {
        let limit = match &self.login {
            Ok(Some(login)) if Some(login) != refused => MAX_ANSWER_AGE,
            _ => MIN_RUN_INTERVAL,
        };
        self.at.elapsed() < limit
    }
}

impl Helper {
    /// The credentials for `server`; `None` if the helper has none.
    pub(super) async fn get(&self, server: &str) -> Result<Option<Login>, HelperError> {
        let failed = |reason: String| self.failed("get", reason);
        let (status, stdout, stderr) = self.run("get", server).await?;
        if status.success() {
            return parse(&stdout).map_err(|_| {
                failed(explained(
                    "its answer is not JSON with credentials",
                    &stderr,
                ))
            });
        }
        let message = String::from_utf8_lossy(&stdout);
        if message.contains(NOT_FOUND) {
            return Ok(None);
        }
        // Helpers print their error on stdout, and log on stderr. An answer in spite of the
        // failure is not shown: it may hold a secret.
        let message = match message.contains('{') {
            true => status.to_string(),
            false if message.trim().is_empty() => status.to_string(),
            false => one_line(&message),
        };
        Err(failed(explained(&message, &stderr)))
    }

    /// Checks that the program is in `PATH`.
    pub(super) fn find_program(&self) -> Result<(), HelperError> {
        let path = self.search_path.clone().or_else(|| env::var_os("PATH"));
        let program = format!("docker-credential-{}", self.name);
        let mut folders = path.iter().flat_map(env::split_paths);
        match folders.any(|folder| folder.join(&program).is_file()) {
            true => Ok(()),
            false => Err(self.failed("get", NO_PROGRAM.to_owned())),
        }
    }

    /// Runs `store` or `erase`. The secret goes through the pipe, not through the arguments, which
    /// every user of the machine can read.
    pub(super) async fn change(&self, verb: &'static str, input: &str) -> Result<(), HelperError> {
        let (status, stdout, stderr) = self.run(verb, input).await?;
        if status.success() {
            return Ok(());
        }
        let message = one_line(&String::from_utf8_lossy(&stdout));
        let message = match message.is_empty() {
            true => status.to_string(),
            false => message,
        };
        Err(self.failed(verb, explained(&message, &stderr)))
    }

    /// Runs the helper with the environment of this process. Returns its status, stdout and the
    /// beginning of its stderr.
    async fn run(
        &self,
        verb: &'static str,
        input: &str,
    ) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), HelperError> {
        let started = self.start(verb).await;
        let mut child = started.map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::NotFound => NO_PROGRAM.to_owned(),
                _ => error.to_string(),
            };
            self.failed(verb, reason)
        })?;
        let mut group = Group::of(&child);
        let mut stderr = Vec::new();
        let ended = timeout(self.deadline, exchange(&mut child, input, &mut stderr)).await;
        let (status, stdout) = match ended {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => return Err(self.failed(verb, explained(&error.to_string(), &stderr))),
            Err(_) => {
                let limit = humantime::format_duration(self.deadline);
                let reason = format!("no answer within {limit}; killed");
                return Err(self.failed(verb, explained(&reason, &stderr)));
            }
        };
        // The helper has ended: its process id may be another's from now on.
        group.0 = None;
        Ok((status, stdout, stderr))
    }

    async fn start(&self, verb: &str) -> io::Result<Child> {
        let mut command = Command::new(format!("docker-credential-{}", self.name));
        command
            .arg(verb)
            .envs(self.search_path.iter().map(|path| ("PATH", path)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for _ in 0..BUSY_RETRIES {
            match command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    sleep(BUSY_RETRY_DELAY).await;
                }
                started => return started,
            }
        }
        command.spawn()
    }

    fn failed(&self, verb: &'static str, reason: String) -> HelperError {
        HelperError {
            helper: self.name.clone(),
            verb,
            reason,
        }
    }
}

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Fails if all its processes have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Writes the input, closes stdin, and reads until the helper has closed its stdout and ended.
async fn exchange(
    child: &mut Child,
    input: &str,
    stderr: &mut Vec<u8>,
) -> io::Result<(ExitStatus, Vec<u8>)> {
    let (stdin, stdout, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A helper that does not read its input explains why on stdout.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let read = async {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            let mut stdout = stdout.take(MAX_ANSWER_BYTES + 1);
            stdout.read_to_end(&mut bytes).await?;
        }
        Ok::<_, io::Error>(bytes)
    };
    let mut answer = std::pin::pin!(async {
        let ((), answer) = tokio::join!(write, read);
        let answer = answer?;
        if answer.len() as u64 > MAX_ANSWER_BYTES {
            return Err(io::Error::other("its answer is longer than 1 MiB"));
        }
        Ok((child.wait().await?, answer))
    });
    let mut errors = std::pin::pin!(drain(errors, stderr));
    let mut is_drained = false;
    let ended = loop {
        tokio::select! {
            ended = &mut answer => break ended?,
            () = &mut errors, if !is_drained => is_drained = true,
        }
    };
    if !is_drained {
        let _ = timeout(STDERR_GRACE, errors).await;
    }
    Ok(ended)
}

/// Reads a stream to its end, and keeps its first [`MAX_STDERR_BYTES`].
async fn drain(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut chunk).await {
        let room = MAX_STDERR_BYTES - kept.len();
        kept.extend_from_slice(&chunk[..length.min(room)]);
    }
}

/// The credentials in the answer of a helper; `None` where both fields are empty.
pub(super) fn parse(answer: &[u8]) -> Result<Option<Login>, serde_json::Error> {
    let Credentials { username, secret } = serde_json::from_slice(answer)?;
    Ok(match username.as_str() {
        "" if secret.is_empty() => None,
        TOKEN_USER => Some(Login::IdentityToken {
            token: secret,
            username: String::new(),
            password: String::new(),
        }),
        _ => Some(Login::Password {
            username,
            password: secret,
        }),
    })
}

/// A reason with the helper's stderr.
fn explained(reason: &str, stderr: &[u8]) -> String {
    match one_line(&String::from_utf8_lossy(stderr)) {
        stderr if stderr.is_empty() => reason.to_owned(),
        stderr => format!("{reason} (stderr: {stderr})"),
    }
}

/// A text as one line without control characters, cut.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let line: String = words.join(" ");
    let line: String = line.chars().filter(|shown| !shown.is_control()).collect();
    cut(&line, MAX_EXPLANATION_BYTES).into_owned()
}

impl std::fmt::Debug for Helper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Helper({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    /// A folder with `docker-credential-test`, a shell script.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(script: &str) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            let program = folder.0.path().join("docker-credential-test");
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            folder
        }

        fn helper(&self, deadline: Duration) -> Helper {
            let path = env::var("PATH").unwrap();
            Helper {
                name: "test".to_owned(),
                search_path: Some(format!("{}:{path}", self.0.path().display()).into()),
                deadline,
            }
        }

        fn calls(&self) -> usize {
            fs::read_to_string(self.0.path().join("calls")).map_or(0, |text| text.lines().count())
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_helper_gets_the_server_on_stdin_and_answers_with_credentials() {
        let folder = Folder::with(
            r#"read server; printf '{"ServerURL":"%s","Username":"%s","Secret":"pw"}' "$server" "$1-$server""#,
        );
        let login = folder.helper(LONG).get("r.example").await.unwrap();
        let expected = Login::Password {
            username: "get-r.example".to_owned(),
            password: "pw".to_owned(),
        };
        assert_eq!(login, Some(expected));
    }

    #[tokio::test]
    async fn a_helper_without_credentials_is_no_error_and_another_failure_has_its_stderr() {
        let folder = Folder::with("echo 'credentials not found in native keychain'; exit 1");
        assert_eq!(folder.helper(LONG).get("r.example").await, Ok(None));
        let folder = Folder::with("echo 'no token'; printf 'first\nsecond' >&2; exit 3");
        let error = folder.helper(LONG).get("r.example").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "docker-credential-test get: no token (stderr: first second)"
        );
        // Its output may hold the secret.
        let folder = Folder::with(r#"echo '{"Username":"a","Secret":"s3cret"}'; exit 1"#);
        let error = folder.helper(LONG).get("r.example").await.unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        let folder = Folder::with(r#"echo 'Secret s3cret'"#);
        let error = folder.helper(LONG).get("r.example").await.unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_killed_with_its_children() {
        let folder =
            Folder::with("echo waiting >&2; sleep 1000 & echo $! > \"${0%/*}/child\"; wait");
        let helper = folder.helper(Duration::from_secs(2));
        let error = helper.get("r.example").await.unwrap_err();
        assert!(
            error.reason.contains("no answer within 2s") && error.reason.contains("waiting"),
            "{error}"
        );
        let child = fs::read_to_string(folder.0.path().join("child")).unwrap();
        let process = format!("/proc/{}/stat", child.trim());
        // Killed, and perhaps not yet reaped.
        let is_gone = || fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "));
        for _ in 0..1000 {
            if is_gone() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("the child {child} still runs");
    }

    #[tokio::test]
    async fn the_output_of_a_helper_is_bounded() {
        let folder = Folder::with("cat /dev/zero | tr '\\0' x");
        let error = folder.helper(LONG).get("r.example").await.unwrap_err();
        assert!(error.reason.contains("longer than 1 MiB"), "{error}");
        let folder = Folder::with("head -c 300000 /dev/zero | tr '\\0' x >&2; echo no; exit 1");
        let error = folder.helper(LONG).get("r.example").await.unwrap_err();
        assert!(error.reason.len() < 2 * MAX_EXPLANATION_BYTES, "{error}");
    }

    #[tokio::test]
    async fn a_missing_helper_is_named() {
        let folder = Folder::with("");
        let helper = Helper {
            name: "absent".to_owned(),
            ..folder.helper(LONG)
        };
        let error = helper.get("r.example").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "docker-credential-absent get: no such program in PATH; install it"
        );
    }

    #[tokio::test]
    async fn thousands_of_requests_start_one_helper_and_a_refused_answer_another() {
        const SCRIPT: &str = r#"echo >> "${0%/*}/calls"; n=$(wc -l < "${0%/*}/calls"); echo "{\"Username\":\"u\",\"Secret\":\"$n\"}""#;
        let folder = Folder::with(SCRIPT);
        let (cache, helper) = (HelperCache::default(), folder.helper(LONG));
        let asked = (0..1000).map(|_| cache.get(&helper, "r.example", None));
        let answers = futures_util::future::join_all(asked).await;
        assert_eq!(folder.calls(), 1);
        let first = answers[0].clone().unwrap();
        assert!(answers.iter().all(|answer| answer == &Ok(first.clone())));
        // Refused at once: the helper would say the same again.
        let again = cache.get(&helper, "r.example", first.as_ref()).await;
        assert_eq!((again, folder.calls()), (Ok(first.clone()), 1));
        cache.age(MIN_RUN_INTERVAL).await;
        let second = cache.get(&helper, "r.example", first.as_ref()).await;
        assert!(second.is_ok_and(|second| second != first));
        assert_eq!(folder.calls(), 2);
        cache.age(MAX_ANSWER_AGE).await;
        cache.get(&helper, "r.example", None).await.unwrap();
        assert_eq!(folder.calls(), 3);
    }

    impl HelperCache {
        /// Makes every answer older.
        async fn age(&self, by: Duration) {
            for answer in self.answers.lock().await.values_mut() {
                answer.at -= by;
            }
        }
    }
}
