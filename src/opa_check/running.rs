//! The processes and folders of running checks, so that a process which exits during a check can
//! end and remove them: an exit does not drop its tasks.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};

#[derive(Debug)]
struct Running {
    /// The process groups, by the id of their first process.
    groups: BTreeSet<i32>,
    folders: BTreeSet<PathBuf>,
}

static RUNNING: Mutex<Running> = Mutex::new(Running {
    groups: BTreeSet::new(),
    folders: BTreeSet::new(),
});

/// Kills every running `opa` and removes the folders of unfinished checks. For the exit of this
/// process: no check may start afterwards.
pub fn kill_all() {
    let mut running = lock();
    for group in std::mem::take(&mut running.groups) {
        kill(group);
    }
    for folder in std::mem::take(&mut running.folders) {
        // A leftover in the temporary folder is cleaned up by the system.
        let _ = fs::remove_dir_all(folder);
    }
}

/// Registers a process group until [`kill_group`].
pub(super) fn register_group(group: i32) {
    lock().groups.insert(group);
}

/// Kills a process group, unless it was killed before: the system may have reused its id.
pub(super) fn kill_group(group: i32) {
    if lock().groups.remove(&group) {
        kill(group);
    }
}

/// Registers a folder until [`unregister_folder`].
pub(super) fn register_folder(folder: &Path) {
    lock().folders.insert(folder.to_owned());
}

/// Unregisters a folder that is about to be removed.
pub(super) fn unregister_folder(folder: &Path) {
    lock().folders.remove(folder);
}

fn kill(group: i32) {
    if let Some(group) = Pid::from_raw(group) {
        // Fails if all its processes have ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn lock() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
