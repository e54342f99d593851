//! Files under watch by their content, however they are replaced.

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

/// Not every file system tells of changes, and a link may change anywhere on the way.
const LOOK_AGAIN: Duration = Duration::from_millis(750);
/// Between two looks at least: a folder in which a log is written has thousands of events a
/// second, each of which would read and hash all files.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
/// Editors write a file in several steps, and people several files.
const SETTLE: Duration = Duration::from_millis(100);
/// A program that writes all the time is not waited for: a token that is removed is refused after
/// two seconds at most.
const STEPS: usize = 10;
/// No file of a configuration is longer.
const LARGEST: u64 = 2 << 20;

/// Tells when the content of a file becomes another one.
///
/// The folders are watched, not the files: editors put a new file in the place of the old one,
/// and Kubernetes swaps the link that leads to all of them. What counts is the content alone.
#[derive(Debug)]
pub(super) struct WatchedFiles {
    /// `None` where the system has no more to give; then there is only [`LOOK_AGAIN`].
    watcher: Option<RecommendedWatcher>,
    happened: Arc<Notify>,
    folders: BTreeSet<PathBuf>,
    contents: Contents,
}

/// What files hold, by path; `None` for one that can't be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Contents(BTreeMap<PathBuf, Option<Digest>>);

impl WatchedFiles {
    /// None yet.
    pub(super) fn new() -> Self {
        let happened = Arc::new(Notify::new());
        let notified = Arc::clone(&happened);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading makes events, too.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                notified.notify_one();
            }
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, "files can't be watched; they are looked at every {LOOK_AGAIN:?}");
        }
        Self { watcher: watcher.ok(), happened, folders: BTreeSet::new(), contents: Contents::default() }
    }

    /// The contents at the last [`Self::watch`].
    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Watches these files from now on, and no others.
    pub(super) fn watch(&mut self, contents: Contents) {
        self.contents = contents;
        let Some(watcher) = &mut self.watcher else { return };
        // Anew each time: a folder that was replaced tells nothing any more.
        for folder in &self.folders {
            let _ = watcher.unwatch(folder);
        }
        self.folders = self.contents.0.keys().flat_map(|path| folders(path)).collect();
        // One that is not there can't be watched, and one in it is looked for all the same.
        self.folders.retain(|folder| watcher.watch(folder, RecursiveMode::NonRecursive).is_ok());
    }

    /// Waits until a file holds something else than at the last [`Self::watch`]. Cancel-safe.
    pub(super) async fn changed(&self) {
        loop {
            let _ = timeout(LOOK_AGAIN, self.happened.notified()).await;
            let mut now = self.look().await;
            if now == self.contents {
                sleep(BETWEEN_LOOKS).await;
                continue;
            }
            for _ in 0..STEPS {
                sleep(SETTLE).await;
                let later = self.look().await;
                if later == now {
                    break;
                }
                now = later;
            }
            return;
        }
    }

    /// Off the async threads.
    async fn look(&self) -> Contents {
        let contents = self.contents.clone();
        let now = spawn_blocking(move || contents.again()).await;
        now.unwrap_or_default()
    }
}

impl Contents {
    /// What these files hold now. Blocks.
    pub(super) fn of<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        Self(paths.into_iter().map(|path| (path.clone(), content(path))).collect())
    }

    /// What the same files hold now. Blocks.
    pub(super) fn again(&self) -> Self {
        Self::of(self.0.keys())
    }
}

/// The digest of a regular file: a pipe can be read only once.
fn content(path: &Path) -> Option<Digest> {
    read_regular(path, LARGEST).ok().map(|bytes| Digest::sha256(&bytes))
}

/// Where a file is looked for, and where it is.
fn folders(path: &Path) -> impl Iterator<Item = PathBuf> {
    let real = fs::canonicalize(path).ok();
    let parent = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => Some(folder.to_owned()),
        Some(_) => Some(PathBuf::from(".")),
        None => None,
    };
    [parent(path), real.as_deref().and_then(parent)].into_iter().flatten()
}
