//! Folders that are watched by inotify, for any number of layouts.
//!
//! One inotify instance serves all folders: the system limits the instances of a user to 128.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// The folders that are watched.
#[derive(Debug, Default)]
pub(in crate::registry) struct WatchedFolders {
    /// Made for the first folder. Locked before `watched`, which the thread of the watcher locks.
    watcher: Mutex<Option<RecommendedWatcher>>,
    watched: Arc<Mutex<HashMap<PathBuf, Watched>>>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Device and inode of the folder; `None` once an event says that the folder itself was removed
    /// or replaced: its watch reports nothing more.
    inode: Option<(u64, u64)>,
    listeners: Vec<Weak<Listener>>,
}

/// Who is notified of changes of some names, in whichever watched folder.
#[derive(Debug, Default)]
pub(super) struct Listener {
    event: Notify,
    names: Mutex<HashSet<OsString>>,
}

impl WatchedFolders {
    /// Watches these folders for `listener` from now on, and no others. The paths must be canonical,
    /// so that each folder has one. Folders that are watched already are watched anew only if they
    /// were replaced. Blocks.
    ///
    /// # Errors
    /// When a folder can't be watched, for example because the system's limit is reached.
    pub(super) fn watch(
        &self,
        folders: &BTreeSet<PathBuf>,
        listener: &Arc<Listener>,
    ) -> notify::Result<()> {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        let watcher = match &mut *watcher {
            Some(watcher) => watcher,
            none => none.insert(self.start()?),
        };
        let listener = Arc::downgrade(listener);
        for folder in folders {
            let metadata = fs::metadata(folder).map_err(notify::Error::io)?;
            let inode = Some((metadata.dev(), metadata.ino()));
            let known = self.lock().get(folder).map(|watched| watched.inode);
            if known != Some(inode) {
                if known.is_some() {
                    // It fails where the system has ended the watch together with the folder.
                    let _ = watcher.unwatch(folder);
                }
                watcher.watch(folder, RecursiveMode::NonRecursive)?;
            }
            let mut watched = self.lock();
            let entry = watched.entry(folder.clone()).or_default();
            entry.inode = inode;
            if !entry.listeners.iter().any(|other| other.ptr_eq(&listener)) {
                entry.listeners.push(listener.clone());
            }
        }
        self.forget_unused(watcher, |folder, other| {
            !folders.contains(folder) && other.ptr_eq(&listener)
        });
        Ok(())
    }

    fn start(&self) -> notify::Result<RecommendedWatcher> {
        let watched = Arc::clone(&self.watched);
        notify::recommended_watcher(move |event: notify::Result<Event>| {
            let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                // A read causes access events itself.
                Ok(event) if event.kind.is_access() => {}
                Ok(event) if !event.need_rescan() => {
                    for path in &event.paths {
                        dispatch(&mut watched, path);
                    }
                }
                // Events were lost.
                Ok(_) | Err(_) => watched.values().for_each(|folder| folder.notify(None)),
            }
        })
    }

    /// Removes the listeners that are gone or `is_unused` from their folders, and ends the watches of
    /// folders without a listener.
    fn forget_unused(
        &self,
        watcher: &mut RecommendedWatcher,
        is_unused: impl Fn(&Path, &Weak<Listener>) -> bool,
    ) {
        let mut unused = Vec::new();
        self.lock().retain(|folder, watched| {
            watched
                .listeners
                .retain(|one| one.strong_count() > 0 && !is_unused(folder, one));
            let is_used = !watched.listeners.is_empty();
            if !is_used {
                unused.push(folder.clone());
            }
            is_used
        });
        for folder in unused {
            let _ = watcher.unwatch(&folder);
        }
    }

    /// How many folders are watched.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// Waits for a change. A change that comes between two calls is not lost. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.event.notified().await;
    }

    /// Listens to files and folders of these names, and to no others: a folder above the layout may
    /// have thousands of events a second.
    pub(super) fn set_names(&self, names: HashSet<OsString>) {
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn listens_to(&self, name: &OsStr) -> bool {
        self.names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(name)
    }
}

impl Watched {
    /// Notifies the listeners to a name; without a name, all of them.
    fn notify(&self, name: Option<&OsStr>) {
        for listener in self.listeners.iter().filter_map(Weak::upgrade) {
            if name.is_none_or(|name| listener.listens_to(name)) {
                listener.event.notify_one();
            }
        }
    }
}

/// Notifies the listeners of a path: those of its folder, and of the path itself if it is a watched
/// folder.
fn dispatch(watched: &mut HashMap<PathBuf, Watched>, path: &Path) {
    if let Some(folder) = watched.get_mut(path) {
        folder.inode = None;
        folder.notify(None);
    }
    if let Some(folder) = path.parent().and_then(|folder| watched.get(folder)) {
        folder.notify(path.file_name());
    }
}
