//! Group commit: one write of the index serves all changes that wait for it.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    runtime::Handle,
    sync::watch,
    task::spawn_blocking,
    time::{Duration, Instant, sleep_until},
};

use super::disk::Disk;

/// The pause between two writes is this many times the duration of the last one, so that the share
/// of time spent on the index is bounded for any number of changes.
const PAUSE_FACTOR: u32 = 4;
/// The maximum pause between two writes.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// The writes of one cache folder. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Commits(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    progress: watch::Sender<Progress>,
    writer: Mutex<Writer>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// The last change that is written.
    written: u64,
    /// The last change that could not be written; the next write retries it.
    failed: u64,
}

#[derive(Debug, Default)]
struct Writer {
    is_running: bool,
    /// The earliest time of the next write.
    next: Option<Instant>,
}

impl Commits {
    /// Requests a write of all changes so far, and returns at once. A task of its own writes, and
    /// ends when nothing is left, so changes of a bundle are written even if its watcher ends. The
    /// task keeps the folder locked until then.
    pub(super) fn request(&self, disk: &Arc<Disk>, runtime: &Handle) {
        let mut writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if disk.generation() <= self.0.progress.borrow().written {
            return;
        }
        if !mem::replace(&mut writer.is_running, true) {
            runtime.spawn(write_all(Arc::clone(&self.0), Arc::clone(disk)));
        }
    }

    /// Waits until a requested change is written. Returns `false` when it could not be written,
    /// which has been logged.
    pub(super) async fn is_written(&self, change: u64) -> bool {
        let mut progress = self.0.progress.subscribe();
        let settled = progress
            .wait_for(|progress| progress.written >= change || progress.failed >= change)
            .await;
        settled.is_ok_and(|progress| progress.written >= change)
    }
}

impl Inner {
    /// Another task may have written meanwhile, so progress only advances.
    fn report(&self, Progress { written, failed }: Progress) {
        self.progress.send_modify(|progress| {
            progress.written = progress.written.max(written);
            progress.failed = progress.failed.max(failed);
        });
    }
}

async fn write_all(commits: Arc<Inner>, disk: Arc<Disk>) {
    loop {
        let next = commits
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next;
        if let Some(next) = next {
            sleep_until(next).await;
        }
        let (began, until) = (Instant::now(), disk.generation());
        let writing = Arc::clone(&disk);
        let result = match spawn_blocking(move || writing.write()).await {
            Ok(Ok(written)) => Ok(written),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let mut progress = *commits.progress.borrow();
        match result {
            Ok(written) => progress.written = progress.written.max(written),
            Err(error) => {
                tracing::error!(
                    error,
                    "the cache on disk can't be written; serving continues from memory"
                );
                progress.failed = progress.failed.max(until);
            }
        }
        let ended = Instant::now();
        let is_done = {
            let mut writer = commits
                .writer
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            writer.next = Some(ended + ((ended - began) * PAUSE_FACTOR).min(MAX_PAUSE));
            let is_done = disk.generation() <= progress.written.max(progress.failed);
            writer.is_running = !is_done;
            is_done
        };
        if is_done {
            // Before the waiters are notified, because one of them may reopen the folder.
            drop(disk);
            return commits.report(progress);
        }
        commits.report(progress);
    }
}
