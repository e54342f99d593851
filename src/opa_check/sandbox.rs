//! Runs one program within limits.

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

use super::{report::one_line, running};

/// Bytes that the program may write on each of its two output streams.
const MAX_OUTPUT: u64 = 1 << 20;
/// Bytes of memory. OPA 1.22 loads a small bundle within 60 MiB, and takes about ten times the
/// size of large JSON data.
const MAX_MEMORY: u64 = 2 << 30;
/// Bytes of a file that the program writes; it has no reason to write any.
#[cfg(target_os = "linux")]
const MAX_FILE: u64 = 1 << 20;
/// Seconds of processor time. It ends a program whose supervisor was killed.
#[cfg(target_os = "linux")]
const MAX_CPU: u64 = 600;
/// How often and after how long a program that is being written is tried again.
const BUSY_RETRIES: usize = 10;
const BUSY_WAIT: Duration = Duration::from_millis(20);
/// Where a script finds its tools.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why `opa` gave no answer. Says nothing about the bundle, so the check is worth repeating.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The program can't be read or started.
    #[error("{program} can't be started: {source}")]
    Start {
        /// As it was named.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is no folder for it to work in.
    #[error("no temporary folder for opa: {0}; free space in TMPDIR or make it writable")]
    Scratch(io::Error),
    /// It took too long.
    #[error("opa did not end within {}", humantime::format_duration(*limit))]
    TimedOut {
        /// How long it was given.
        limit: Duration,
    },
    /// It was ended from outside, or crashed.
    #[error("opa was ended by signal {signal}")]
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// It writes without end.
    #[error("opa wrote more than {MAX_OUTPUT} bytes")]
    TooMuchOutput,
    /// It needs more memory than it gets.
    #[error("opa needs more than {} MiB of memory", MAX_MEMORY >> 20)]
    OutOfMemory,
    /// What it wrote is no answer.
    #[error("opa gave no readable answer ({status}): {said}")]
    Unreadable {
        /// How it ended.
        status: String,
        /// The end of what it wrote, on one line.
        said: String,
    },
    /// The program on disk is too old.
    #[error("{program} is OPA {version}, and 1.0 or newer is needed")]
    TooOld {
        /// As it was named.
        program: PathBuf,
        /// Its version.
        version: String,
    },
    /// The program was replaced while it ran.
    #[error("{program} was replaced during the check")]
    Replaced {
        /// As it was named.
        program: PathBuf,
    },
    /// A task of ours broke off.
    #[error("the check of the bundle stopped: {0}; please report this")]
    Internal(String),
}

/// What a program wrote, and how it ended by itself.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Ended {
    /// The error that these are no answer.
    pub(super) fn unreadable(&self) -> Unavailable {
        let said = if self.stderr.is_empty() { &self.stdout } else { &self.stderr };
        let said = one_line(&String::from_utf8_lossy(said));
        // Go's words where the system gives it no more memory; the second one was seen with Go 1.26
        // at the limit of `RLIMIT_DATA`.
        if ["fatal error: runtime: out of memory", "fatal error: runtime: cannot allocate memory"]
            .iter()
            .any(|words| said.starts_with(words))
        {
            return Unavailable::OutOfMemory;
        }
        Unavailable::Unreadable { status: self.status.to_string(), said }
    }
}

/// How long a program may run, and until when that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    limit: Duration,
    at: Instant,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self { limit, at: Instant::now() + limit }
    }

    /// Rounded up, so that this deadline comes before one that the program is told.
    pub(super) fn seconds(&self) -> u64 {
        self.limit.as_secs() + 1
    }
}

/// Runs `program` in `folder` to its end. Whatever it started is killed with it, and so are all
/// when the future is dropped.
///
/// # Errors
/// When it can't be started, exceeds a limit or is ended by a signal. Its exit code is no error.
pub(super) async fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    folder: &Path,
    deadline: Deadline,
) -> Result<Ended, Unavailable> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env_clear();
    command.env("PATH", PATH).env("HOME", folder).env("TMPDIR", folder);
    // Go returns memory before it reaches the limit, and keeps its reports of a crash short.
    command.env("GOMEMLIMIT", format!("{}B", MAX_MEMORY / 4 * 3)).env("GOTRACEBACK", "none");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let started = start(&mut command).await;
    let child = started.map_err(|source| Unavailable::Start { program: program.to_owned(), source })?;
    let group = Group::of(&child);
    group.limit();
    let ended = match timeout_at(deadline.at, collect(child, &group)).await {
        Ok(ended) => ended?,
        Err(_) => return Err(Unavailable::TimedOut { limit: deadline.limit }),
    };
    match ended.status.signal() {
        Some(signal) => Err(Unavailable::Killed { signal }),
        None => Ok(ended),
    }
}

/// A program that was just written may be open for writing for a moment longer: in a process
/// that was forked meanwhile, until that starts its own program.
async fn start(command: &mut Command) -> io::Result<Child> {
    for _ in 0..BUSY_RETRIES {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => sleep(BUSY_WAIT).await,
            started => return started,
        }
    }
    command.spawn()
}

async fn collect(mut child: Child, group: &Group) -> Result<Ended, Unavailable> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let wait = async {
        let status = child.wait().await.map_err(|error| Unavailable::Internal(error.to_string()));
        // A process that it left behind would hold the streams open.
        group.kill();
        status
    };
    let (status, stdout, stderr) = tokio::try_join!(wait, capped(stdout), capped(stderr))?;
    Ok(Ended { status, stdout, stderr })
}

async fn capped(stream: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, Unavailable> {
    let mut bytes = Vec::new();
    let Some(stream) = stream else { return Ok(bytes) };
    let read = stream.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await;
    read.map_err(|error| Unavailable::Internal(error.to_string()))?;
    if bytes.len() as u64 > MAX_OUTPUT { Err(Unavailable::TooMuchOutput) } else { Ok(bytes) }
}

/// The processes that a program started, itself included, by the id of the first. Killed when
/// this is dropped.
struct Group(Option<i32>);

impl Group {
    fn of(child: &Child) -> Self {
        let group = child.id().map(u32::cast_signed);
        group.iter().copied().for_each(running::begin_group);
        Self(group)
    }

    fn kill(&self) {
        self.0.iter().copied().for_each(running::end_group);
    }

    /// From outside, after the start: before `exec` it would take code in the forked child. The
    /// program runs some microseconds without limits.
    #[cfg(target_os = "linux")]
    fn limit(&self) {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let Some(program) = self.0.and_then(Pid::from_raw) else { return };
        let limits = [
            // Not the address space, of which Go reserves much more than it uses.
            (Resource::Data, MAX_MEMORY),
            (Resource::Fsize, MAX_FILE),
            (Resource::Cpu, MAX_CPU),
            (Resource::Core, 0),
        ];
        for (resource, most) in limits {
            let limit = Rlimit { current: Some(most), maximum: Some(most) };
            // It fails where the program has ended, or has a lower limit already.
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
