//! Group commit: those who want a change on the disk share one write of the index.

use std::sync::Arc;

use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::spawn_blocking,
    time::{Duration, Instant, sleep_until},
};

use super::disk::Disk;

/// Between two writes there is this many times what the last one took, so that the index costs
/// a share of the time and not of the number of changes.
const PAUSE_FACTOR: u32 = 4;
/// A change waits for others no longer than this.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// The writes of one folder. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Commits(Arc<Mutex<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    /// The last change that is on the disk.
    written: u64,
    /// The last change that could not be written; the next write tries again.
    failed: u64,
    next: Option<Instant>,
}

impl Commits {
    /// Waits until the change with this number is on the disk. `false` when it could not be
    /// written, which has been logged. Whoever comes first writes for all that came before the
    /// write began. Cancel-safe: a write that has begun comes to its end.
    pub(super) async fn commit(&self, disk: &Arc<Disk>, change: u64) -> bool {
        let progress = Arc::clone(&self.0).lock_owned().await;
        if let Some(known) = progress.outcome(change) {
            return known;
        }
        if let Some(next) = progress.next {
            sleep_until(next).await;
        }
        let disk = Arc::clone(disk);
        let writing = spawn_blocking(move || write(progress, &disk));
        match writing.await {
            Ok(written) => written,
            Err(error) => {
                tracing::error!(%error, "a task of the cache broke off; please report this");
                false
            }
        }
    }
}

impl Progress {
    fn outcome(&self, change: u64) -> Option<bool> {
        if self.written >= change {
            return Some(true);
        }
        (self.failed >= change).then_some(false)
    }
}

/// Writes for all changes until now. Holds the lock, so that nobody writes beside it when it is
/// not waited for any more.
fn write(mut progress: OwnedMutexGuard<Progress>, disk: &Disk) -> bool {
    let (began, until) = (Instant::now(), disk.generation());
    let written = match disk.write() {
        Ok(written) => {
            progress.written = progress.written.max(written);
            true
        }
        Err(error) => {
            tracing::error!(%error, "the cache on disk can't be written; serving goes on from memory");
            progress.failed = progress.failed.max(until);
            false
        }
    };
    let ended = Instant::now();
    progress.next = Some(ended + ((ended - began) * PAUSE_FACTOR).min(MAX_PAUSE));
    written
}
