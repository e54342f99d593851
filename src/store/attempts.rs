//! Which artifacts the process was verifying or opening when it died.
//!
//! A panic in a parser ends one attempt; a stack overflow, an abort, or the kernel's memory
//! killer end the process, and with the artifact in the cache or under its tag so do they the
//! next one. So each attempt is noted in a file before it begins and after it has ended. What
//! an earlier process did not end is tried alone, so that its next death is no other's; after
//! the second death in the same step it is set aside, until the limits or the version change.
//! The first may have been a power cut, or a kill that had nothing to do with it.
//!
//! The notes are not synced: they are to survive the process, not the power.

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

/// Of the notes, in the cache folder.
const FILE: &str = "attempts.log";
/// Deaths in one step after which an artifact is set aside.
const MAX_DEATHS: u32 = 2;
/// A longer file is not read, and begun anew long before.
const READ_LIMIT: u64 = 8 << 20;
const REWRITE_FROM: u64 = 1 << 20;
/// Notes that wait for a disk that hangs take no more memory than this.
const MAX_WAITING: usize = 1 << 20;
/// How long an attempt waits for its note, and for others to end before it goes on alone.
const NOTE_TIMEOUT: Duration = Duration::from_secs(1);
const ALONE_TIMEOUT: Duration = Duration::from_secs(10);
/// More attempts than this don't run at a time.
const TURNS: u32 = 1 << 10;

/// A step of an attempt with what it depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    /// Of the manifest.
    digest: Digest,
    step: String,
    /// Of the limits that hold.
    limits: String,
}

/// The notes of one folder.
#[derive(Debug)]
pub(super) struct Attempts {
    path: PathBuf,
    turns: Arc<Semaphore>,
    /// How often the process has died of what.
    deaths: Mutex<BTreeMap<Subject, u32>>,
    queue: Mutex<Queue>,
    /// Held while writing.
    file: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Queue {
    lines: String,
    written: Vec<oneshot::Sender<()>>,
    is_being_written: bool,
    /// A note was waited for in vain; until one is written nobody waits.
    hangs: bool,
    next: u64,
}

#[derive(Debug, Default)]
struct Notes {
    file: Option<fs::File>,
    length: u64,
    running: BTreeMap<u64, Subject>,
}

/// An artifact that the process has died of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process died {deaths} times in a row at the step `{step}` of {digest}; it is set aside until the limits or \
     the version change, or {} is removed while the gateway is stopped", file.display()
)]
pub struct SetAside {
    /// Of the manifest.
    pub digest: Digest,
    /// Where in the pipeline.
    pub step: String,
    /// How often.
    pub deaths: u32,
    /// Where that is noted.
    pub file: PathBuf,
}

/// The permission to try something that may end the process. Whoever has it begins soon.
#[derive(Debug, Default)]
pub struct Attempt(Option<Noted>);

#[derive(Debug)]
struct Noted {
    attempts: Arc<Attempts>,
    number: u64,
    subject: Subject,
    runtime: Handle,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Attempt {
    /// Runs `work`, which the attempt was for. A panic passes through, and is no death.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        let Self(_until_the_end) = self;
        work()
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.attempts.end(self.number, &self.subject, &self.runtime);
    }
}

impl Attempts {
    /// Reads what the last process left. A file that can't be read or written costs the
    /// protection only, which is logged.
    pub(super) fn open(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let deaths = match read(&path) {
            Ok(text) => deaths_in(&text),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the notes of what the process died of can't be read");
                BTreeMap::new()
            }
        };
        for (subject, deaths) in &deaths {
            let (digest, step, set_aside) = (&subject.digest, &subject.step, *deaths >= MAX_DEATHS);
            tracing::warn!(%digest, step, deaths, set_aside, "the process died during this step");
        }
        let attempts = Self {
            path,
            turns: Arc::new(Semaphore::new(TURNS as usize)),
            deaths: Mutex::new(deaths),
            queue: Mutex::default(),
            file: Mutex::default(),
        };
        let begun = attempts.begin_anew(&mut attempts.notes());
        attempts.log(begun);
        attempts
    }

    /// Whether an artifact is set aside under these limits.
    pub(super) fn set_aside(&self, digest: &Digest, limits: &str) -> Option<SetAside> {
        let deaths = self.deaths();
        let of_it = deaths.iter().filter(|(subject, _)| subject.digest == *digest && subject.limits == limits);
        let (subject, deaths) =
            of_it.max_by_key(|(_, deaths)| **deaths).filter(|(_, deaths)| **deaths >= MAX_DEATHS)?;
        Some(SetAside { digest: digest.clone(), step: subject.step.clone(), deaths: *deaths, file: self.path.clone() })
    }

    /// Notes that `step` of an artifact begins. Waits for a disk that hangs no longer than a
    /// second; the attempt goes on without a note then.
    pub(super) async fn begin(self: &Arc<Self>, digest: &Digest, step: &str, limits: &str) -> Attempt {
        let subject = Subject { digest: digest.clone(), step: step.to_owned(), limits: limits.to_owned() };
        let is_suspect = self.deaths().contains_key(&subject);
        let turns = Arc::clone(&self.turns).acquire_many_owned(if is_suspect { TURNS } else { 1 });
        // One that never ends must not keep all others from beginning.
        let turn = timeout(ALONE_TIMEOUT, turns).await.ok().and_then(Result::ok);
        let runtime = Handle::current();
        let (number, written) = {
            let mut queue = self.queue();
            queue.next += 1;
            let number = queue.next;
            let line = format!("begin {number} {subject}\n");
            (number, self.push(&mut queue, &line, &runtime))
        };
        let noted = Noted { attempts: Arc::clone(self), number, subject, runtime, _turn: turn };
        if let Some(written) = written
            && timeout(NOTE_TIMEOUT, written).await.is_err()
        {
            self.queue().hangs = true;
        }
        Attempt(Some(noted))
    }

    /// Says that the process ends in order: what is running ends with it, and is no death.
    pub(super) async fn end_all(self: &Arc<Self>) {
        let written = {
            let mut queue = self.queue();
            self.push(&mut queue, "exit\n", &Handle::current())
        };
        if let Some(written) = written {
            let _ = timeout(NOTE_TIMEOUT, written).await;
        }
    }

    fn end(self: &Arc<Self>, number: u64, subject: &Subject, runtime: &Handle) {
        let was_suspect = self.deaths().remove(subject).is_some();
        let absolved = if was_suspect { format!("absolve {subject}\n") } else { String::new() };
        let mut queue = self.queue();
        // Nobody waits for it.
        drop(self.push(&mut queue, &format!("end {number}\n{absolved}"), runtime));
    }

    /// Gives what tells when the line is written, unless the disk is known to hang.
    fn push(self: &Arc<Self>, queue: &mut Queue, line: &str, runtime: &Handle) -> Option<oneshot::Receiver<()>> {
        if queue.lines.len() > MAX_WAITING {
            return None;
        }
        queue.lines.push_str(line);
        let (written, told) = oneshot::channel();
        queue.written.push(written);
        if !mem::replace(&mut queue.is_being_written, true) {
            let attempts = Arc::clone(self);
            runtime.spawn_blocking(move || attempts.write_waiting());
        }
        (!queue.hangs).then_some(told)
    }

    /// One thread at a time, however long it takes.
    fn write_waiting(&self) {
        let mut notes = self.notes();
        loop {
            let (lines, written) = {
                let mut queue = self.queue();
                if queue.lines.is_empty() {
                    queue.is_being_written = false;
                    return;
                }
                (mem::take(&mut queue.lines), mem::take(&mut queue.written))
            };
            let result = self.write(&mut notes, &lines);
            self.log(result);
            self.queue().hangs = false;
            for written in written {
                let _ = written.send(());
            }
        }
    }

    fn write(&self, notes: &mut Notes, lines: &str) -> io::Result<()> {
        for line in lines.lines() {
            follow(line, &mut notes.running, &mut BTreeMap::new());
        }
        let Some(file) = &mut notes.file else { return Ok(()) };
        file.write_all(lines.as_bytes())?;
        notes.length += lines.len() as u64;
        if notes.length > REWRITE_FROM { self.begin_anew(notes) } else { Ok(()) }
    }

    /// Replaces the file by what of it still counts.
    fn begin_anew(&self, notes: &mut Notes) -> io::Result<()> {
        let mut text = format!("version {VERSION}\n");
        let deaths = self.deaths().clone();
        text.extend(deaths.iter().map(|(subject, deaths)| format!("died {deaths} {subject}\n")));
        text.extend(notes.running.iter().map(|(number, subject)| format!("begin {number} {subject}\n")));
        notes.file = None;
        let folder = self.path.parent().unwrap_or_else(|| Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        if !deaths.is_empty() {
            file.as_file().sync_all()?;
        }
        notes.file = Some(file.persist(&self.path).map_err(|error| error.error)?);
        notes.length = text.len() as u64;
        Ok(())
    }

    fn log(&self, result: io::Result<()>) {
        if let Err(error) = result {
            tracing::error!(path = %self.path.display(), %error, "what the process may die of can't be noted");
        }
    }

    fn deaths(&self) -> MutexGuard<'_, BTreeMap<Subject, u32>> {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
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
    file.take(READ_LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > READ_LIMIT {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// How often the process has died of what, by the notes of its predecessors. Lines that make
/// no sense are left out; another version may fare better, so its notes don't count.
fn deaths_in(text: &str) -> BTreeMap<Subject, u32> {
    if text.lines().next() != Some(&format!("version {VERSION}")) {
        return BTreeMap::new();
    }
    let (mut running, mut deaths) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines().skip(1) {
        follow(line, &mut running, &mut deaths);
    }
    for subject in running.into_values() {
        *deaths.entry(subject).or_default() += 1;
    }
    deaths
}

fn follow(line: &str, running: &mut BTreeMap<u64, Subject>, deaths: &mut BTreeMap<Subject, u32>) {
    let words: Vec<_> = line.split(' ').collect();
    match words[..] {
        ["begin", number, step, limits, digest] => {
            if let (Ok(number), Some(subject)) = (number.parse(), Subject::of(step, limits, digest)) {
                running.insert(number, subject);
            }
        }
        ["end", number] => {
            number.parse().ok().and_then(|number: u64| running.remove(&number));
        }
        ["died", count, step, limits, digest] => {
            if let (Ok(count), Some(subject)) = (count.parse(), Subject::of(step, limits, digest)) {
                deaths.insert(subject, count);
            }
        }
        ["absolve", step, limits, digest] => {
            Subject::of(step, limits, digest).and_then(|subject| deaths.remove(&subject));
        }
        ["exit"] => running.clear(),
        _ => {}
    }
}

impl Subject {
    fn of(step: &str, limits: &str, digest: &str) -> Option<Self> {
        Some(Self { digest: digest.parse().ok()?, step: step.to_owned(), limits: limits.to_owned() })
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { digest, step, limits } = self;
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

    /// What a process leaves that dies at `step` of each of these.
    async fn die(folder: &Path, step: &str, of: &[&str]) {
        let attempts = Arc::new(Attempts::open(folder));
        for text in of {
            mem::forget(attempts.begin(&digest(text), step, "l").await);
        }
    }

    fn is_set_aside(folder: &Path, text: &str, limits: &str) -> bool {
        Attempts::open(folder).set_aside(&digest(text), limits).is_some()
    }

    #[tokio::test]
    async fn what_the_process_died_of_twice_in_one_step_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        die(folder.path(), "open", &["a"]).await;
        let attempts = Attempts::open(folder.path());
        assert_eq!(attempts.set_aside(&digest("a"), "l"), None, "once may have been a power cut");
        drop(attempts);
        die(folder.path(), "open", &["a"]).await;
        let set_aside = Attempts::open(folder.path()).set_aside(&digest("a"), "l").unwrap();
        assert_eq!((set_aside.step.as_str(), set_aside.deaths), ("open", 2));
        let told = set_aside.to_string();
        assert!(told.contains("attempts.log") && told.contains(digest("a").as_str()), "{told}");
        assert!(!is_set_aside(folder.path(), "a", "other"), "other limits may do");
        assert!(!is_set_aside(folder.path(), "b", "l"));
        assert!(is_set_aside(folder.path(), "a", "l"), "it stays set aside, however often the process starts");
    }

    #[tokio::test]
    async fn deaths_in_different_steps_or_with_a_success_in_between_are_not_added_up() {
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
    async fn neither_an_end_in_order_nor_a_panic_is_a_death() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            let attempts = Arc::new(Attempts::open(folder.path()));
            mem::forget(attempts.begin(&digest("a"), "open", "l").await);
            let attempt = attempts.begin(&digest("b"), "open", "l").await;
            spawn_blocking(|| attempt.run(|| panic!("in a parser"))).await.unwrap_err();
            attempts.end_all().await;
        }
        assert!(!is_set_aside(folder.path(), "a", "l") && !is_set_aside(folder.path(), "b", "l"));
    }

    /// Otherwise what happens to be opened beside it each time is set aside, too.
    #[tokio::test]
    async fn what_may_have_been_a_death_is_tried_alone() {
        let folder = tempfile::tempdir().unwrap();
        die(folder.path(), "open", &["a", "b"]).await;
        let attempts = Arc::new(Attempts::open(folder.path()));
        let beside = attempts.begin(&digest("c"), "open", "l").await;
        let [a, b] = ["a", "b"].map(digest);
        let suspect = attempts.begin(&a, "open", "l");
        tokio::pin!(suspect);
        assert!(timeout(Duration::from_millis(50), &mut suspect).await.is_err(), "not beside another");
        drop(beside);
        let alone = suspect.await;
        let next = attempts.begin(&b, "open", "l");
        tokio::pin!(next);
        assert!(timeout(Duration::from_millis(50), &mut next).await.is_err(), "nor another beside it");
        drop(alone);
        drop(next.await);
        assert!(attempts.deaths().is_empty());
    }

    #[tokio::test]
    async fn notes_of_another_version_and_lines_without_sense_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let line = format!("died 2 open l {}\n", digest("a"));
        for (text, is_aside) in [
            (format!("version {VERSION}\n{line}"), true),
            (format!("version 0.0.0\n{line}"), false),
            (line.clone(), false),
            (format!("version {VERSION}\ndied 9999999999 open l x\nbegin\n\u{0}\nend x\n{line}"), true),
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
    async fn the_file_stays_small_and_keeps_what_counts() {
        let folder = tempfile::tempdir().unwrap();
        die(folder.path(), "open", &["a"]).await;
        let attempts = Arc::new(Attempts::open(folder.path()));
        mem::forget(attempts.begin(&digest("b"), "open", "l").await);
        attempts.notes().length = REWRITE_FROM;
        drop(attempts.begin(&digest("c"), "open", "l").await);
        attempts.end_all().await;
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(text.len() < 1000 && deaths_in(&text.replace("exit\n", "")).len() == 2, "{text}");
    }
}
