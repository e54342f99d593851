//! What checks have started and made, for a process that ends in the middle of one: its tasks
//! are dropped by nobody then.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};

#[derive(Debug)]
struct Running {
    /// Process groups, by the id of their first process.
    groups: BTreeSet<i32>,
    folders: BTreeSet<PathBuf>,
}

static RUNNING: Mutex<Running> = Mutex::new(Running { groups: BTreeSet::new(), folders: BTreeSet::new() });

/// Kills every `opa` that is running, and removes the folders of checks that did not end. For the
/// end of the process; no check may be started any more.
pub fn end_all() {
    let mut running = lock();
    for group in std::mem::take(&mut running.groups) {
        kill(group);
    }
    for folder in std::mem::take(&mut running.folders) {
        // What can't be removed now is the system's to clean up.
        let _ = fs::remove_dir_all(folder);
    }
}

/// Remembers a process group until [`end_group`].
pub(super) fn begin_group(group: i32) {
    lock().groups.insert(group);
}

/// Kills a process group, unless it was killed before: the system may have given its id to
/// another.
pub(super) fn end_group(group: i32) {
    if lock().groups.remove(&group) {
        kill(group);
    }
}

/// Remembers a folder until [`end_folder`].
pub(super) fn begin_folder(folder: &Path) {
    lock().folders.insert(folder.to_owned());
}

/// Forgets a folder, which is about to be removed.
pub(super) fn end_folder(folder: &Path) {
    lock().folders.remove(folder);
}

fn kill(group: i32) {
    if let Some(group) = Pid::from_raw(group) {
        // It fails where all of its processes have ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn lock() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
