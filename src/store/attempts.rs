//! Sets aside artifacts whose verification or opening crashes the process.
//!
//! A panic in a parser ends one attempt. A stack overflow, an abort or the kernel's OOM killer ends
//! the process, and, because the artifact is in the cache or under its tag, the next process as
//! well. So each attempt is recorded in a log before it begins and after it has ended. An attempt
//! that an earlier process did not end runs alone, so that the next crash can be attributed to it.
//! After the second crash in the same step the artifact is set aside, until the limits or the
//! version change; the first crash may have been a power cut or an unrelated kill.
//!
//! The log is not synced: it has to survive the process, not a power cut. [`super`] describes its
//! format.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write as _},
    mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Duration, timeout},
};

use crate::oci::{Digest, open_regular};

/// The name of the log in the cache folder.
const FILE_NAME: &str = "attempts.log";
/// Crashes in one step after which an artifact is set aside.
const MAX_DEATHS: u32 = 2;
/// The maximum size of a log that is read; a log is rewritten long before it reaches this size.
const MAX_READ_BYTES: u64 = 8 << 20;
const REWRITE_BYTES: u64 = 1 << 20;
/// The maximum size of the lines that wait for a stalled disk.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// The maximum time that an attempt waits for its line to be written, and for others to end if it
/// has to run alone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
const EXCLUSIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of concurrent attempts.
const MAX_CONCURRENT: u32 = 1 << 10;

/// A step of an artifact under certain limits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct AttemptKey {
    /// The manifest's digest.
    digest: Digest,
    step: String,
    /// A word that identifies the limits.
    limits: String,
}

/// The attempts of one cache folder.
#[derive(Debug)]
pub(super) struct Attempts {
    path: PathBuf,
    permits: Arc<Semaphore>,
    /// The number of times in a row that the process has died during a step.
    deaths: Mutex<BTreeMap<AttemptKey, u32>>,
    queue: Mutex<Queue>,
    /// Held while writing.
    file: Mutex<LogFile>,
}

#[derive(Debug, Default)]
struct Queue {
    lines: String,
    written: Vec<oneshot::Sender<()>>,
    has_writer: bool,
    /// The disk has stalled. Until a line is written, attempts do not wait for theirs.
    is_stalled: bool,
    next: u64,
}

#[derive(Debug, Default)]
struct LogFile {
    file: Option<fs::File>,
    length: u64,
    running: BTreeMap<u64, AttemptKey>,
}

/// An artifact that is set aside, because the process died while working on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process died {deaths} times in a row at the step `{step}` of {digest}; it is set aside until the limits or \
     the version change, or {} is removed while the gateway is stopped", file.display()
)]
pub struct SetAside {
    /// The manifest's digest.
    pub digest: Digest,
    /// The step of the pipeline.
    pub step: String,
    /// The number of crashes in a row.
    pub deaths: u32,
    /// The log that records them.
    pub file: PathBuf,
}

/// The permission to run a step that may end the process.
#[derive(Debug, Default)]
pub struct Attempt(Option<Registration>);

#[derive(Debug)]
struct Registration {
    attempts: Arc<Attempts>,
    number: u64,
    key: AttemptKey,
    runtime: Handle,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Attempt {
    /// Runs the step. A panic passes through and does not count as a crash.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        let Self(_until_the_end) = self;
        work()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.attempts.end(self.number, &self.key, &self.runtime);
    }
}

impl Attempts {
    /// Reads the log of the last process. A log that can't be read or written costs this protection
    /// only, which is logged.
    pub(super) fn open(folder: &Path) -> Self {
        let path = folder.join(FILE_NAME);
        let deaths = match read(&path) {
            Ok(text) => deaths_in(&text),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the log of crashes can't be read");
                BTreeMap::new()
            }
        };
        for (key, deaths) in &deaths {
            let (digest, step, set_aside) = (&key.digest, &key.step, *deaths >= MAX_DEATHS);
            tracing::warn!(%digest, step, deaths, set_aside, "the process died during this step");
        }
        let attempts = Self {
            path,
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT as usize)),
            deaths: Mutex::new(deaths),
            queue: Mutex::default(),
            file: Mutex::default(),
        };
        let rewritten = attempts.rewrite(&mut attempts.log_file());
        attempts.log(rewritten);
        attempts
    }

    /// Whether an artifact is set aside under these limits.
    pub(super) fn set_aside(&self, digest: &Digest, limits: &str) -> Option<SetAside> {
        let deaths = self.deaths();
        let matching = deaths
            .iter()
            .filter(|(key, _)| key.digest == *digest && key.limits == limits);
        let (key, deaths) = matching
            .max_by_key(|(_, deaths)| **deaths)
            .filter(|(_, deaths)| **deaths >= MAX_DEATHS)?;
        Some(SetAside {
            digest: digest.clone(),
            step: key.step.clone(),
            deaths: *deaths,
            file: self.path.clone(),
        })
    }

    /// Records that `step` of an artifact begins. Waits at most a second for a stalled disk; the
    /// attempt then runs unrecorded.
    pub(super) async fn begin(
        self: &Arc<Self>,
        digest: &Digest,
        step: &str,
        limits: &str,
    ) -> Attempt {
        let key = AttemptKey {
            digest: digest.clone(),
            step: step.to_owned(),
            limits: limits.to_owned(),
        };
        let is_suspect = self.deaths().contains_key(&key);
        let permits = Arc::clone(&self.permits).acquire_many_owned(if is_suspect {
            MAX_CONCURRENT
        } else {
            1
        });
        // An attempt that never ends must not block the others forever.
        let permit = timeout(EXCLUSIVE_TIMEOUT, permits)
            .await
            .ok()
            .and_then(Result::ok);
        let runtime = Handle::current();
        let (number, written) = {
            let mut queue = self.queue();
            queue.next += 1;
            let number = queue.next;
            let line = format!("begin {number} {key}\n");
            (number, self.push(&mut queue, &line, &runtime))
        };
        let registration = Registration {
            attempts: Arc::clone(self),
            number,
            key,
            runtime,
            _permit: permit,
        };
        if let Some(written) = written
            && timeout(WRITE_TIMEOUT, written).await.is_err()
        {
            self.queue().is_stalled = true;
        }
        Attempt(Some(registration))
    }

    /// Records an orderly exit: attempts that are still running do not count as crashes.
    pub(super) async fn end_all(self: &Arc<Self>) {
        let written = {
            let mut queue = self.queue();
            self.push(&mut queue, "exit\n", &Handle::current())
        };
        if let Some(written) = written {
            let _ = timeout(WRITE_TIMEOUT, written).await;
        }
    }

    fn end(self: &Arc<Self>, number: u64, key: &AttemptKey, runtime: &Handle) {
        let was_suspect = self.deaths().remove(key).is_some();
        let cleared = if was_suspect {
            format!("absolve {key}\n")
        } else {
            String::new()
        };
        let mut queue = self.queue();
        // The end of an attempt is not awaited.
        drop(self.push(&mut queue, &format!("end {number}\n{cleared}"), runtime));
    }

    /// Queues a line. Returns a receiver that is notified once it is written, unless the disk has
    /// stalled.
    fn push(
        self: &Arc<Self>,
        queue: &mut Queue,
        line: &str,
        runtime: &Handle,
    ) -> Option<oneshot::Receiver<()>> {
        if queue.lines.len() > MAX_QUEUED_BYTES {
            return None;
        }
        queue.lines.push_str(line);
        let (written, receiver) = oneshot::channel();
        queue.written.push(written);
        if !mem::replace(&mut queue.has_writer, true) {
            let attempts = Arc::clone(self);
            runtime.spawn_blocking(move || attempts.write_queued());
        }
        (!queue.is_stalled).then_some(receiver)
    }

    /// Writes queued lines until none is left. Runs on one thread at a time.
    fn write_queued(&self) {
        let mut log = self.log_file();
        loop {
            let (lines, written) = {
                let mut queue = self.queue();
                if queue.lines.is_empty() {
                    queue.has_writer = false;
                    return;
                }
                (mem::take(&mut queue.lines), mem::take(&mut queue.written))
            };
            let result = self.write(&mut log, &lines);
            self.log(result);
            self.queue().is_stalled = false;
            for written in written {
                let _ = written.send(());
            }
        }
    }

    fn write(&self, log: &mut LogFile, lines: &str) -> io::Result<()> {
        for line in lines.lines() {
            apply_line(line, &mut log.running, &mut BTreeMap::new());
        }
        let Some(file) = &mut log.file else {
            return Ok(());
        };
        file.write_all(lines.as_bytes())?;
        log.length += lines.len() as u64;
        if log.length > REWRITE_BYTES {
            self.rewrite(log)
        } else {
            Ok(())
        }
    }

    /// Replaces the log by the lines that still count.
    fn rewrite(&self, log: &mut LogFile) -> io::Result<()> {
        let mut text = format!("version {VERSION}\n");
        let deaths = self.deaths().clone();
        text.extend(
            deaths
                .iter()
                .map(|(key, deaths)| format!("died {deaths} {key}\n")),
        );
        text.extend(
            log.running
                .iter()
                .map(|(number, key)| format!("begin {number} {key}\n")),
        );
        log.file = None;
        let folder = self.path.parent().unwrap_or_else(|| Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".tmp-")
            .tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        if !deaths.is_empty() {
            file.as_file().sync_all()?;
        }
        log.file = Some(file.persist(&self.path).map_err(|error| error.error)?);
        log.length = text.len() as u64;
        Ok(())
    }

    fn log(&self, result: io::Result<()>) {
        if let Err(error) = result {
            tracing::error!(path = %self.path.display(), %error, "attempts can't be recorded");
        }
    }

    fn deaths(&self) -> MutexGuard<'_, BTreeMap<AttemptKey, u32>> {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_file(&self) -> MutexGuard<'_, LogFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn read(path: &Path) -> io::Result<String> {
    let file = match open_regular(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MAX_READ_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_READ_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The crashes that a log records. Malformed lines are ignored, and so is the log of another
/// version, which may not crash.
fn deaths_in(text: &str) -> BTreeMap<AttemptKey, u32> {
    if text.lines().next() != Some(&format!("version {VERSION}")) {
        return BTreeMap::new();
    }
    let (mut running, mut deaths) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines().skip(1) {
        apply_line(line, &mut running, &mut deaths);
    }
    for key in running.into_values() {
        *deaths.entry(key).or_default() += 1;
    }
    deaths
}

fn apply_line(
    line: &str,
    running: &mut BTreeMap<u64, AttemptKey>,
    deaths: &mut BTreeMap<AttemptKey, u32>,
) {
    let words: Vec<_> = line.split(' ').collect();
    match words[..] {
        ["begin", number, step, limits, digest] => {
            if let (Ok(number), Some(key)) = (number.parse(), AttemptKey::of(step, limits, digest))
            {
                running.insert(number, key);
            }
        }
        ["end", number] => {
            number
                .parse()
                .ok()
                .and_then(|number: u64| running.remove(&number));
        }
        ["died", count, step, limits, digest] => {
            if let (Ok(count), Some(key)) = (count.parse(), AttemptKey::of(step, limits, digest)) {
                deaths.insert(key, count);
            }
        }
        ["absolve", step, limits, digest] => {
            AttemptKey::of(step, limits, digest).and_then(|key| deaths.remove(&key));
        }
        ["exit"] => running.clear(),
        _ => {}
    }
}

impl AttemptKey {
    fn of(step: &str, limits: &str, digest: &str) -> Option<Self> {
        Some(Self {
            digest: digest.parse().ok()?,
            step: step.to_owned(),
            limits: limits.to_owned(),
        })
    }
}

impl std::fmt::Display for AttemptKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            digest,
            step,
            limits,
        } = self;
        write!(f, "{step} {limits} {digest}")
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::spawn_blocking;

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    /// Leaves the log of a process that dies during `step` of each of these.
    async fn die(folder: &Path, step: &str, of: &[&str]) {
        let attempts = Arc::new(Attempts::open(folder));
        for text in of {
            mem::forget(attempts.begin(&digest(text), step, "l").await);
        }
    }

    fn is_set_aside(folder: &Path, text: &str, limits: &str) -> bool {
        Attempts::open(folder)
            .set_aside(&digest(text), limits)
            .is_some()
    }

    #[tokio::test]
    async fn an_artifact_that_crashed_twice_in_one_step_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        die(folder.path(), "open", &["a"]).await;
        let attempts = Attempts::open(folder.path());
        assert_eq!(
            attempts.set_aside(&digest("a"), "l"),
            None,
            "one crash may have been a power cut"
        );
        drop(attempts);
        die(folder.path(), "open", &["a"]).await;
        let set_aside = Attempts::open(folder.path())
            .set_aside(&digest("a"), "l")
            .unwrap();
        assert_eq!((set_aside.step.as_str(), set_aside.deaths), ("open", 2));
        let text = set_aside.to_string();
        assert!(
            text.contains("attempts.log") && text.contains(digest("a").as_str()),
            "{text}"
        );
        assert!(
            !is_set_aside(folder.path(), "a", "other"),
            "other limits may do"
        );
        assert!(!is_set_aside(folder.path(), "b", "l"));
        assert!(
            is_set_aside(folder.path(), "a", "l"),
            "it stays set aside, however often the process starts"
        );
    }

    #[tokio::test]
    async fn crashes_in_different_steps_or_with_a_success_in_between_do_not_add_up() {
        let folder = tempfile::tempdir().unwrap();
        die(folder.path(), "verify", &["a"]).await;
        die(folder.path(), "open", &["a"]).await;
        assert!(!is_set_aside(folder.path(), "a", "l"));
        let attempts = Arc::new(Attempts::open(folder.path()));
        let attempt = attempts.begin(&digest("a"), "open", "l").await;
        spawn_blocking(|| attempt.run(|| {})).await.unwrap();
        attempts.end_all().await;
        die(folder.path(), "open", &["a"]).await;
        assert!(!is_set_aside(folder.path(), "a", "l"));
    }

    #[tokio::test]
    async fn neither_an_orderly_exit_nor_a_panic_is_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            let attempts = Arc::new(Attempts::open(folder.path()));
            mem::forget(attempts.begin(&digest("a"), "open", "l").await);
            let attempt = attempts.begin(&digest("b"), "open", "l").await;
            spawn_blocking(|| attempt.run(|| panic!("in a parser")))
                .await
                .unwrap_err();
            attempts.end_all().await;
        }
        assert!(!is_set_aside(folder.path(), "a", "l") && !is_set_aside(folder.path(), "b", "l"));
    }

    /// Otherwise an artifact that happens to be opened concurrently each time is set aside as well.
    #[tokio::test]
    async fn an_attempt_that_may_have_crashed_runs_alone() {
        let folder = tempfile::tempdir().unwrap();
        die(folder.path(), "open", &["a", "b"]).await;
        let attempts = Arc::new(Attempts::open(folder.path()));
        let concurrent = attempts.begin(&digest("c"), "open", "l").await;
        let [a, b] = ["a", "b"].map(digest);
        let suspect = attempts.begin(&a, "open", "l");
        tokio::pin!(suspect);
        assert!(
            timeout(Duration::from_millis(50), &mut suspect)
                .await
                .is_err(),
            "not concurrently with another"
        );
        drop(concurrent);
        let alone = suspect.await;
        let next = attempts.begin(&b, "open", "l");
        tokio::pin!(next);
        assert!(
            timeout(Duration::from_millis(50), &mut next).await.is_err(),
            "nor another concurrently with it"
        );
        drop(alone);
        drop(next.await);
        assert!(attempts.deaths().is_empty());
    }

    #[tokio::test]
    async fn the_log_of_another_version_and_malformed_lines_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let line = format!("died 2 open l {}\n", digest("a"));
        for (text, is_aside) in [
            (format!("version {VERSION}\n{line}"), true),
            (format!("version 0.0.0\n{line}"), false),
            (line.clone(), false),
            (
                format!("version {VERSION}\ndied 9999999999 open l x\nbegin\n\u{0}\nend x\n{line}"),
                true,
            ),
            (String::new(), false),
        ] {
            fs::write(&path, &text).unwrap();
            assert_eq!(is_set_aside(folder.path(), "a", "l"), is_aside, "{text}");
        }
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(!is_set_aside(folder.path(), "a", "l"));
    }

    #[tokio::test]
    async fn the_log_stays_small_and_keeps_the_lines_that_count() {
        let folder = tempfile::tempdir().unwrap();
        die(folder.path(), "open", &["a"]).await;
        let attempts = Arc::new(Attempts::open(folder.path()));
        mem::forget(attempts.begin(&digest("b"), "open", "l").await);
        attempts.log_file().length = REWRITE_BYTES;
        drop(attempts.begin(&digest("c"), "open", "l").await);
        attempts.end_all().await;
        let text = fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        assert!(
            text.len() < 1000 && deaths_in(&text.replace("exit\n", "")).len() == 2,
            "{text}"
        );
    }
}
