//! Runs a program within limits.

use std::{
    ffi::OsStr,
    io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    time::{Instant, sleep, timeout_at},
};

use super::{running, text::one_line};

/// The maximum size of each of the two output streams.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;
/// The memory limit. OPA 1.22 loads a small bundle within 60 MiB, and takes about ten times the
/// size of large JSON data.
const MAX_MEMORY_BYTES: u64 = 2 << 30;
/// The maximum size of a file that the program writes; it has no reason to write any.
#[cfg(target_os = "linux")]
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The limit of CPU time. It ends a program whose supervisor was killed.
#[cfg(target_os = "linux")]
const MAX_CPU_SECONDS: u64 = 600;
/// The maximum number of retries of a start while the program file is open for writing (`ETXTBSY`).
const BUSY_RETRIES: usize = 10;
const BUSY_RETRY_DELAY: Duration = Duration::from_millis(20);
/// The `PATH` of the program, for scripts.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A failure of `opa` to give a verdict. It does not depend on the bundle, so the check is retried.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The program can't be read or started.
    #[error("{program} can't be started: {source}")]
    Start {
        /// The program as configured.
        program: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Its working folder can't be created.
    #[error("no temporary folder for opa: {0}; free space in TMPDIR or make it writable")]
    Scratch(io::Error),
    /// It exceeded the timeout.
    #[error("opa did not end within {}", humantime::format_duration(*limit))]
    TimedOut {
        /// The timeout.
        limit: Duration,
    },
    /// It was killed, or crashed.
    #[error("opa was ended by signal {signal}")]
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// It wrote too much output.
    #[error("opa wrote more than {MAX_OUTPUT_BYTES} bytes")]
    TooMuchOutput,
    /// It exceeded the memory limit.
    #[error("opa needs more than {} MiB of memory", MAX_MEMORY_BYTES >> 20)]
    OutOfMemory,
    /// Its output can't be parsed.
    #[error("opa gave no readable answer ({status}): {output}")]
    Unreadable {
        /// Its exit status.
        status: String,
        /// The start of its output, on one line.
        output: String,
    },
    /// The program on disk is too old.
    #[error("{program} is OPA {version}, and 1.0 or newer is needed")]
    TooOld {
        /// The program as configured.
        program: PathBuf,
        /// Its version.
        version: String,
    },
    /// The program was replaced while it ran.
    #[error("{program} was replaced during the check")]
    Replaced {
        /// The program as configured.
        program: PathBuf,
    },
    /// A task of this process failed.
    #[error("the check of the bundle failed internally: {0}; please report this")]
    Internal(String),
}

/// The output and the exit status of a program.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Output {
    /// The error for output that can't be parsed.
    pub(super) fn unreadable(&self) -> Unavailable {
        let output = if self.stderr.is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let output = one_line(&String::from_utf8_lossy(output));
        // Go prints these when the system refuses it memory; the second was seen with Go 1.26 at
        // the limit of `RLIMIT_DATA`.
        if [
            "fatal error: runtime: out of memory",
            "fatal error: runtime: cannot allocate memory",
        ]
        .iter()
        .any(|words| output.starts_with(words))
        {
            return Unavailable::OutOfMemory;
        }
        Unavailable::Unreadable {
            status: self.status.to_string(),
            output,
        }
    }
}

/// A timeout and the moment at which it expires.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    limit: Duration,
    at: Instant,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self {
            limit,
            at: Instant::now() + limit,
        }
    }

    /// The timeout for the program's own flag, rounded up so that this deadline comes first.
    pub(super) fn seconds(&self) -> u64 {
        self.limit.as_secs() + 1
    }
}

/// Runs `program` in `folder` and waits until it ends. Processes that it leaves behind are killed;
/// all are killed when the future is dropped.
///
/// # Errors
/// When it can't be started, exceeds a limit or is ended by a signal. Its exit code is no error.
pub(super) async fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    folder: &Path,
    deadline: Deadline,
) -> Result<Output, Unavailable> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env_clear();
    command
        .env("PATH", PATH)
        .env("HOME", folder)
        .env("TMPDIR", folder);
    // Makes Go return memory before it reaches the limit, and keeps its crash reports short.
    command
        .env("GOMEMLIMIT", format!("{}B", MAX_MEMORY_BYTES / 4 * 3))
        .env("GOTRACEBACK", "none");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let started = start(&mut command).await;
    let child = started.map_err(|source| Unavailable::Start {
        program: program.to_owned(),
        source,
    })?;
    let group = Group::of(&child);
    group.limit();
    let ended = match timeout_at(deadline.at, collect(child, &group)).await {
        Ok(ended) => ended?,
        Err(_) => {
            return Err(Unavailable::TimedOut {
                limit: deadline.limit,
            });
        }
    };
    match ended.status.signal() {
        Some(signal) => Err(Unavailable::Killed { signal }),
        None => Ok(ended),
    }
}

/// Starts a program. If it was just written, a process that was forked meanwhile may still hold it
/// open for writing until its own `exec`, so `ETXTBSY` is retried.
async fn start(command: &mut Command) -> io::Result<Child> {
    for _ in 0..BUSY_RETRIES {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                sleep(BUSY_RETRY_DELAY).await
            }
            started => return started,
        }
    }
    command.spawn()
}

async fn collect(mut child: Child, group: &Group) -> Result<Output, Unavailable> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let wait = async {
        let status = child
            .wait()
            .await
            .map_err(|error| Unavailable::Internal(error.to_string()));
        // A process left behind would hold the streams open.
        group.kill();
        status
    };
    let (status, stdout, stderr) = tokio::try_join!(wait, capped(stdout), capped(stderr))?;
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

async fn capped(stream: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, Unavailable> {
    let mut bytes = Vec::new();
    let Some(stream) = stream else {
        return Ok(bytes);
    };
    let read = stream
        .take(MAX_OUTPUT_BYTES + 1)
        .read_to_end(&mut bytes)
        .await;
    read.map_err(|error| Unavailable::Internal(error.to_string()))?;
    if bytes.len() as u64 > MAX_OUTPUT_BYTES {
        Err(Unavailable::TooMuchOutput)
    } else {
        Ok(bytes)
    }
}

/// The process group of a program, by the id of its first process. Killed when dropped.
struct Group(Option<i32>);

impl Group {
    fn of(child: &Child) -> Self {
        let group = child.id().map(u32::cast_signed);
        group.iter().copied().for_each(running::register_group);
        Self(group)
    }

    fn kill(&self) {
        self.0.iter().copied().for_each(running::kill_group);
    }

    /// Sets the resource limits from outside, after the start, because setting them before `exec`
    /// takes code in the forked child. The program runs some microseconds without limits.
    #[cfg(target_os = "linux")]
    fn limit(&self) {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let Some(program) = self.0.and_then(Pid::from_raw) else {
            return;
        };
        let limits = [
            // The address space is not limited, because Go reserves much more of it than it uses.
            (Resource::Data, MAX_MEMORY_BYTES),
            (Resource::Fsize, MAX_FILE_BYTES),
            (Resource::Cpu, MAX_CPU_SECONDS),
            (Resource::Core, 0),
        ];
        for (resource, max) in limits {
            let limit = Rlimit {
                current: Some(max),
                maximum: Some(max),
            };
            // Fails if the program has ended or has a lower limit already.
            let _ = prlimit(Some(program), resource, limit);
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn limit(&self) {}
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
