//! Watches files by their content, whichever way they are replaced.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::oci::{Digest, read_regular};

/// The files are read this often even without an event: not every file system reports changes, and
/// any link on the way to a file may change.
const SCAN_INTERVAL: Duration = Duration::from_millis(750);
/// The minimum time between two scans: a folder in which a log is written has thousands of events a
/// second, each of which would read and hash all files.
const MIN_SCAN_INTERVAL: Duration = Duration::from_millis(200);
/// A change is reported once the files have not changed for this long: an editor writes a file in
/// several steps, and an operator changes several files.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// The maximum number of times that settling is waited for. A program that writes continuously
/// delays no reload: a token that is removed is refused after two seconds at most.
const MAX_SETTLE_STEPS: usize = 10;
/// The maximum size of a watched file, in bytes.
const MAX_FILE_BYTES: u64 = 2 << 20;

/// Waits for a change of the content of files.
///
/// The folders are watched, not the files: editors replace a file by a new one, and Kubernetes
/// replaces the link through which all of them are reached. Only the content is compared.
#[derive(Debug)]
pub(super) struct WatchedFiles {
    /// `None` where the system's limit of watches is reached; then [`SCAN_INTERVAL`] remains.
    watcher: Option<RecommendedWatcher>,
    event: Arc<Notify>,
    folders: BTreeSet<PathBuf>,
    contents: Contents,
}

/// The digests of files by path; `None` for a file that can't be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Contents(BTreeMap<PathBuf, Option<Digest>>);

impl WatchedFiles {
    /// Watches no file yet.
    pub(super) fn new() -> Self {
        let event = Arc::new(Notify::new());
        let notified = Arc::clone(&event);
        let watcher = notify::recommended_watcher(move |result: notify::Result<notify::Event>| {
            // A scan causes access events itself.
            if result.is_ok_and(|event| !event.kind.is_access()) {
                notified.notify_one();
            }
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, "files can't be watched; they are read every {SCAN_INTERVAL:?}");
        }
        Self {
            watcher: watcher.ok(),
            event,
            folders: BTreeSet::new(),
            contents: Contents::default(),
        }
    }

    /// The contents at the last [`Self::watch`].
    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Watches these files from now on, and no others.
    pub(super) fn watch(&mut self, contents: Contents) {
        self.contents = contents;
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        // The folders are watched anew each time, because the watch of a folder that was replaced
        // reports nothing.
        for folder in &self.folders {
            let _ = watcher.unwatch(folder);
        }
        self.folders = self
            .contents
            .0
            .keys()
            .flat_map(|path| folders(path))
            .collect();
        // A missing folder can't be watched; the scans find its files once it exists.
        self.folders
            .retain(|folder| watcher.watch(folder, RecursiveMode::NonRecursive).is_ok());
    }

    /// Waits until the content of a file differs from that of the last [`Self::watch`].
    /// Cancel-safe.
    pub(super) async fn changed(&self) {
        loop {
            let _ = timeout(SCAN_INTERVAL, self.event.notified()).await;
            let mut now = self.scan().await;
            if now == self.contents {
                sleep(MIN_SCAN_INTERVAL).await;
                continue;
            }
            for _ in 0..MAX_SETTLE_STEPS {
                sleep(SETTLE_TIME).await;
                let later = self.scan().await;
                if later == now {
                    break;
                }
                now = later;
            }
            return;
        }
    }

    /// Reads the files on a blocking thread.
    async fn scan(&self) -> Contents {
        let contents = self.contents.clone();
        let now = spawn_blocking(move || contents.again()).await;
        now.unwrap_or_default()
    }
}

impl Contents {
    /// Reads these files. Blocks.
    pub(super) fn of<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        Self(
            paths
                .into_iter()
                .map(|path| (path.clone(), content(path)))
                .collect(),
        )
    }

    /// Reads the same files again. Blocks.
    pub(super) fn again(&self) -> Self {
        Self::of(self.0.keys())
    }
}

/// The digest of a regular file. A pipe is not read: its content can be read only once.
fn content(path: &Path) -> Option<Digest> {
    read_regular(path, MAX_FILE_BYTES)
        .ok()
        .map(|bytes| Digest::sha256(&bytes))
}

/// The folders of a path and of the file that it leads to.
fn folders(path: &Path) -> impl Iterator<Item = PathBuf> {
    let real = fs::canonicalize(path).ok();
    let parent = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => Some(folder.to_owned()),
        Some(_) => Some(PathBuf::from(".")),
        None => None,
    };
    [parent(path), real.as_deref().and_then(parent)]
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use notify::event::{AccessKind, EventKind};

    use super::*;

    #[tokio::test]
    async fn events_of_other_files_do_not_set_the_pace_of_the_scans() {
        let folder = tempfile::tempdir().unwrap();
        let (token, log) = (folder.path().join("token"), folder.path().join("log"));
        fs::write(&token, "1").unwrap();
        let mut files = WatchedFiles::new();
        files.watch(Contents::of([&token]));
        // Counts how often the file is opened.
        let opened = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&opened);
        let mut observer =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if matches!(event.unwrap().kind, EventKind::Access(AccessKind::Open(_))) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
            .unwrap();
        observer.watch(&token, RecursiveMode::NonRecursive).unwrap();
        const SCANS: u32 = 6;
        let began = tokio::time::Instant::now();
        // The events are those of the kernel, so time can't be paused.
        let written = async {
            let mut lines = 0;
            while began.elapsed() < MIN_SCAN_INTERVAL * SCANS {
                fs::write(&log, format!("{lines}")).unwrap();
                lines += 1;
                sleep(Duration::from_millis(1)).await;
            }
            lines
        };
        let lines = tokio::select! {
            lines = written => lines,
            () = files.changed() => panic!("the log is no watched file"),
        };
        // On a busy machine this has taken longer, and the observer is late.
        let limit = began.elapsed().div_duration_f64(MIN_SCAN_INTERVAL) as u32 + 1;
        let observed = async {
            while opened.load(Ordering::Relaxed) == 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(60), observed)
            .await
            .expect("the file is scanned");
        let scans = opened.load(Ordering::Relaxed);
        assert!(
            scans <= limit,
            "{scans} scans, {limit} allowed, while {lines} lines were written"
        );
        // A change that comes between two scans is not lost.
        fs::write(&token, "2").unwrap();
        timeout(Duration::from_secs(60), files.changed())
            .await
            .expect("the change is noticed");
    }
}
