//! Reports changes of a layout folder.
//!
//! One task for each folder waits for inotify events, reads the index once, and publishes its
//! names to the watchers of all bundles of that folder. They still poll: a network file system
//! reports no change that another machine makes.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    sync::watch,
    task::{AbortHandle, spawn_blocking},
    time::{sleep, timeout},
};

use super::{
    folders::{Listener, WatchedFolders},
    index::{Names, SharedLayout},
};
use crate::oci::{Digest, Selector};

/// The time from an event to the read: a change causes several events.
const SETTLE_TIME: Duration = Duration::from_millis(5);
/// The minimum time between two reads of an index that is written continuously.
const MIN_READ_INTERVAL: Duration = Duration::from_millis(100);
/// The index is read this often even without an event, and a watch that failed is tried again.
const RESCAN_INTERVAL: Duration = Duration::from_secs(30);

/// What has changed in a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceChange {
    /// The reference may name another artifact.
    Moved,
    /// Something else, such as a signature.
    Other,
}

/// Waits for changes of the source of one reference.
#[derive(Debug)]
pub struct SourceWatch {
    folder: Watching,
    watched: Watched,
    changes: Option<watch::Receiver<Version>>,
    /// The digest at the last change; the outer `None` before the first one.
    last: Option<Option<Digest>>,
}

/// The part of an index that is watched.
#[derive(Debug)]
enum Watched {
    /// The artifact of this name.
    Name(String),
    /// The only artifact.
    Only,
    /// All of it: a rule chooses among its tags.
    Index,
}

/// How a layout folder is watched.
#[derive(Debug, Clone)]
pub(in crate::registry) struct Watching {
    pub(in crate::registry) root: PathBuf,
    pub(in crate::registry) shared: Arc<SharedLayout>,
    pub(in crate::registry) folders: Arc<WatchedFolders>,
    /// The metric of folders that can't be watched.
    pub(in crate::registry) unwatched: IntGauge,
}

/// The task that follows one folder. Dropping this ends the task.
#[derive(Debug)]
pub(super) struct Follower {
    versions: watch::Receiver<Version>,
    task: AbortHandle,
}

/// The index of a folder, as the task has read it.
#[derive(Debug, Clone, Default)]
pub(super) struct Version {
    number: u64,
    /// `None` while the folder can't be read.
    names: Option<Arc<Names>>,
}

impl SourceWatch {
    /// `None` for a digest, which never moves. `name` is the name of a tag in the index.
    pub(in crate::registry) fn new(
        folder: Watching,
        selector: &Selector,
        name: impl FnOnce(&str) -> String,
    ) -> Option<Self> {
        let watched = match selector {
            Selector::Tag(tag) => Watched::Name(name(tag)),
            Selector::Only => Watched::Only,
            Selector::Rule(_) => Watched::Index,
            Selector::Digest(_) => return None,
        };
        Some(Self {
            folder,
            watched,
            changes: None,
            last: None,
        })
    }

    /// Waits for the next change. `served` is the version that the caller has; the first change is
    /// reported as [`SourceChange::Moved`] if it is not that version. Cancel-safe.
    pub async fn changed(&mut self, served: Option<&Digest>) -> SourceChange {
        let folder = &self.folder;
        let changes = self
            .changes
            .get_or_insert_with(|| folder.shared.follow(folder));
        if changes.changed().await.is_err() {
            // The task has ended: the runtime shuts down.
            return std::future::pending().await;
        }
        let names = changes.borrow_and_update().names.clone();
        let now = names.and_then(|names| match &self.watched {
            Watched::Name(name) => names.find(name).cloned(),
            Watched::Only => names.only().cloned(),
            Watched::Index => None,
        });
        if matches!(self.watched, Watched::Index) {
            return SourceChange::Moved;
        }
        let before = self.last.replace(now.clone());
        let before = before.unwrap_or_else(|| served.cloned());
        if now == before {
            SourceChange::Other
        } else {
            SourceChange::Moved
        }
    }
}

impl Follower {
    pub(super) fn start(folder: &Watching) -> Self {
        let (sender, versions) = watch::channel(Version::default());
        let task = follow(
            folder.root.clone(),
            Arc::downgrade(&folder.shared),
            Arc::clone(&folder.folders),
            Alarm::new(folder.unwatched.clone()),
            sender,
        );
        Self {
            versions,
            task: tokio::spawn(task).abort_handle(),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Version> {
        // This receiver has seen no version, so a version that was read before counts as a change.
        self.versions.clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Follows one folder until the last source of it is gone.
async fn follow(
    root: PathBuf,
    shared: Weak<SharedLayout>,
    folders: Arc<WatchedFolders>,
    mut alarm: Alarm,
    versions: watch::Sender<Version>,
) {
    let listener = Arc::new(Listener::default());
    let mut is_event = true;
    let mut is_retry = false;
    loop {
        let Some(layout) = shared.upgrade() else {
            return;
        };
        let (path, folders, listening) =
            (root.clone(), Arc::clone(&folders), Arc::clone(&listener));
        let read = spawn_blocking(move || {
            // Watched before it is read, so that no change comes in between.
            let watched = watch_folders(&path, &folders, &listening);
            if is_event {
                layout.forget();
            }
            (watched, layout.names(&path).ok())
        });
        let Ok((watched, names)) = read.await else {
            return;
        };
        let error = watched.err();
        if error.as_ref().is_some_and(is_missing) {
            // A folder was removed after its path was read.
            sleep(MIN_READ_INTERVAL).await;
            continue;
        }
        alarm.set(&root, error);
        let is_lost = names.is_none() && versions.borrow().names.is_some();
        if is_lost && !is_retry {
            // A program that does not rename may be writing the index.
            is_retry = true;
            sleep(MIN_READ_INTERVAL).await;
            continue;
        }
        is_retry = false;
        versions.send_if_modified(|version| publish(version, names));
        sleep(MIN_READ_INTERVAL).await;
        is_event = timeout(RESCAN_INTERVAL, listener.changed()).await.is_ok();
        sleep(SETTLE_TIME).await;
    }
}

fn is_missing(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Returns whether subscribers have to wake.
fn publish(version: &mut Version, names: Option<Arc<Names>>) -> bool {
    let is_same = match (&version.names, &names) {
        (Some(before), Some(now)) => Arc::ptr_eq(before, now),
        (None, None) => version.number > 0,
        _ => false,
    };
    if !is_same {
        version.number += 1;
        version.names = names;
    }
    !is_same
}

/// Watches everything whose change may lead to another index: the folder, its parent, and both of
/// the folder that links lead to. While it does not exist, the nearest folder above it.
fn watch_folders(
    root: &Path,
    folders: &WatchedFolders,
    listener: &Arc<Listener>,
) -> notify::Result<()> {
    let real = [root.to_owned(), root.join("index.json")].map(|path| fs::canonicalize(path).ok());
    let [root_real, index_real] = &real;
    let wanted = [
        Some(root),
        root.parent(),
        root_real.as_deref(),
        root_real.as_deref().and_then(Path::parent),
        index_real.as_deref().and_then(Path::parent),
    ];
    listener.set_names(names(&[
        Some(root),
        root_real.as_deref(),
        index_real.as_deref(),
    ]));
    let existing: BTreeSet<PathBuf> = wanted
        .into_iter()
        .flatten()
        .filter_map(nearest_folder)
        .collect();
    folders.watch(&existing, listener)
}

/// The names whose change may concern a layout: its files, and every part of these paths.
fn names(paths: &[Option<&Path>]) -> HashSet<OsString> {
    // Kubernetes replaces the link `..data`, through which the files of a volume are reached.
    let files = ["index.json", "oci-layout", "..data"].map(OsString::from);
    let parts = paths.iter().flatten().flat_map(|path| path.iter());
    files
        .into_iter()
        .chain(parts.map(ToOwned::to_owned))
        .collect()
}

/// The canonical path of the folder if it exists, or else of the nearest one above it.
fn nearest_folder(path: &Path) -> Option<PathBuf> {
    path.ancestors()
        .map(|folder| match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        })
        .find(|folder| folder.is_dir())
        .and_then(|folder| fs::canonicalize(folder).ok())
}

/// Says when a folder can't be watched, in the log and as a metric.
#[derive(Debug)]
struct Alarm {
    unwatched: IntGauge,
    is_raised: bool,
}

impl Alarm {
    fn new(unwatched: IntGauge) -> Self {
        Self {
            unwatched,
            is_raised: false,
        }
    }

    fn set(&mut self, root: &Path, error: Option<notify::Error>) {
        let folder = root.display();
        match error {
            Some(error) if !self.is_raised => {
                self.unwatched.inc();
                tracing::warn!(%folder, %error, "the layout can't be watched, so changes are found at the next poll; \
                    raise fs.inotify.max_user_watches and fs.inotify.max_user_instances if the limit is reached");
            }
            None if self.is_raised => {
                self.unwatched.dec();
                tracing::info!(%folder, "the layout is watched again");
            }
            Some(_) | None => return,
        }
        self.is_raised = !self.is_raised;
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if self.is_raised {
            self.unwatched.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::oci::{Descriptor, Layout, LayoutIndex, media_type};

    const TEST_TIMEOUT: Duration = Duration::from_secs(60);

    fn watching(root: &Path) -> Watching {
        Watching {
            root: root.to_owned(),
            shared: Arc::default(),
            folders: Arc::default(),
            unwatched: IntGauge::new("unwatched", "Folders.").unwrap(),
        }
    }

    fn tag(root: &Path, name: &str, bytes: &[u8]) -> Digest {
        let layout = Layout::create(root).unwrap();
        let entry = Descriptor::of(media_type::OCI_MANIFEST, bytes);
        let set = |index: &mut LayoutIndex| index.set(name, entry.clone());
        layout.update_index(set).unwrap();
        entry.digest
    }

    fn watch_tag(folder: &Watching, tag: &str) -> SourceWatch {
        SourceWatch::new(
            folder.clone(),
            &Selector::Tag(tag.to_owned()),
            str::to_owned,
        )
        .unwrap()
    }

    async fn moved(watch: &mut SourceWatch, what: &str) {
        let moving = async { while watch.changed(None).await != SourceChange::Moved {} };
        timeout(TEST_TIMEOUT, moving)
            .await
            .unwrap_or_else(|_| panic!("{what} is not noticed"));
    }

    #[tokio::test]
    async fn every_way_in_which_a_folder_changes_is_noticed() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("a/b/layout");
        let folder = watching(&root);
        let mut watch = watch_tag(&folder, "live");
        // The folder does not exist yet.
        assert_eq!(watch.changed(None).await, SourceChange::Other);
        tag(&root, "live", b"one");
        moved(&mut watch, "a folder that is created later").await;
        tag(&root, "live", b"two");
        moved(&mut watch, "an index that is replaced").await;
        let aside = outer.path().join("aside");
        fs::rename(&root, &aside).unwrap();
        moved(&mut watch, "a folder that is moved away").await;
        fs::rename(&aside, &root).unwrap();
        moved(&mut watch, "a folder that is moved back").await;
        fs::remove_dir_all(&root).unwrap();
        moved(&mut watch, "a folder that is deleted").await;
        tag(&root, "live", b"three");
        moved(&mut watch, "a folder that is created again").await;
        // In place, as a program without renaming writes.
        let other = tempfile::tempdir().unwrap();
        tag(other.path(), "live", b"four!");
        let index = fs::read(other.path().join("index.json")).unwrap();
        fs::write(root.join("index.json"), index).unwrap();
        moved(&mut watch, "an index that is written in place").await;
    }

    #[tokio::test]
    async fn a_folder_behind_a_link_is_watched_where_the_link_leads() {
        let outer = tempfile::tempdir().unwrap();
        let [one, two, link] = ["one", "two", "link"].map(|name| outer.path().join(name));
        tag(&one, "live", b"one");
        tag(&two, "live", b"two");
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let mut watch = watch_tag(&watching(&link), "live");
        moved(&mut watch, "the first version").await;
        tag(&one, "live", b"three");
        moved(&mut watch, "a change behind the link").await;
        let next = outer.path().join("next");
        std::os::unix::fs::symlink(&two, &next).unwrap();
        fs::rename(&next, &link).unwrap();
        moved(&mut watch, "a link that is replaced").await;
    }

    #[tokio::test]
    async fn a_bundle_is_told_whether_its_own_tag_has_moved() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("layout");
        let served = tag(&root, "mine", b"one");
        let folder = watching(&root);
        let [mut mine, mut other] = ["mine", "other"].map(|tag| watch_tag(&folder, tag));
        // What is served is no news.
        assert_eq!(mine.changed(Some(&served)).await, SourceChange::Other);
        assert_eq!(other.changed(None).await, SourceChange::Other);
        tag(&root, "other", b"two");
        moved(&mut other, "its tag").await;
        assert_eq!(mine.changed(Some(&served)).await, SourceChange::Other);
        assert!(
            SourceWatch::new(folder, &Selector::Digest(served), str::to_owned).is_none(),
            "a digest does not move"
        );
    }

    #[tokio::test]
    async fn all_bundles_of_a_folder_share_one_read() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("layout");
        tag(&root, "live", b"one");
        let folder = watching(&root);
        let mut names = Vec::new();
        for _ in 0..100 {
            let mut changes = folder.shared.follow(&folder);
            changes
                .wait_for(|version| version.names.is_some())
                .await
                .unwrap();
            names.push(changes.borrow().names.clone().unwrap());
        }
        assert!(names.iter().all(|one| Arc::ptr_eq(one, &names[0])));
        // The folder and its parent.
        assert_eq!(folder.folders.count(), 2);
    }

    #[test]
    fn an_alarm_is_raised_once_and_lowered_once() {
        let unwatched = IntGauge::new("unwatched", "Folders.").unwrap();
        let mut alarm = Alarm::new(unwatched.clone());
        let limit = || Some(notify::Error::new(notify::ErrorKind::MaxFilesWatch));
        for (error, count) in [
            (None, 0),
            (limit(), 1),
            (limit(), 1),
            (None, 0),
            (limit(), 1),
        ] {
            alarm.set(Path::new("layout"), error);
            assert_eq!(unwatched.get(), count);
        }
        drop(alarm);
        assert_eq!(unwatched.get(), 0);
    }
}
