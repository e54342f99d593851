//! Writes a watcher's decisions to disk, in the background: a failing disk delays a publication by
//! [`FLUSH_TIMEOUT`], and the next check not at all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    time::{Duration, Instant, sleep_until, timeout},
};

use super::Pipeline;
use crate::{publish::Snapshot, store::Change};

/// The longest wait of a publication for the disk. A healthy disk needs less.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a confirmation waits for those of other bundles, to be written together. One that a
/// crash loses costs a check of the registry.
const CONFIRM_DELAY: Duration = Duration::from_secs(1);

/// The updates of one bundle to be written. They are written one at a time, in the order of the
/// decisions; of several that wait for a slow disk, the newest replaces the others.
#[derive(Debug, Default)]
pub(super) struct PersistQueue {
    next: Mutex<Next>,
    wake: Notify,
    flushed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Next {
    update: Option<Update>,
    /// How many updates there have been.
    number: u64,
}

/// A change of what the disk records.
#[derive(Debug)]
pub(super) enum Update {
    /// The version is served; `history` includes it.
    Keep {
        snapshot: Arc<Snapshot>,
        checked: Option<Timestamp>,
        history: Bytes,
    },
    /// The version being served was confirmed by the registry, or verified again.
    Confirm {
        snapshot: Arc<Snapshot>,
        checked: Option<Timestamp>,
    },
    /// The bundle is withdrawn.
    Forget { history: Bytes },
}

impl PersistQueue {
    /// Adds an update, and returns its number. Never waits.
    pub(super) fn enqueue(&self, update: Update) -> u64 {
        let mut next = self.lock();
        next.update = Some(coalesce(next.update.take(), update));
        next.number += 1;
        self.wake.notify_one();
        next.number
    }

    /// Waits until an update, or the one that replaced it, has been written or has failed, for
    /// [`FLUSH_TIMEOUT`] at most.
    pub(super) async fn flushed(&self, number: u64) {
        let mut flushed = self.flushed.subscribe();
        let _ = timeout(
            FLUSH_TIMEOUT,
            flushed.wait_for(|flushed| *flushed >= number),
        )
        .await;
    }

    /// Writes updates until it is dropped. The write under way is then still completed, and updates
    /// that wait are not written.
    pub(super) async fn work(&self, pipeline: &Pipeline) {
        // The confirmation that is not on disk yet.
        let mut confirmed = None;
        loop {
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                change = later(&confirmed) => {
                    confirmed = None;
                    pipeline.store.flush(change).await;
                    continue;
                }
            }
            let (update, number) = self.take();
            match update {
                Some(Update::Keep {
                    snapshot,
                    checked,
                    history,
                }) => {
                    Box::pin(pipeline.persist(&snapshot, checked, history)).await;
                }
                Some(Update::Confirm { snapshot, checked }) => {
                    let at = confirmed.map_or_else(|| Instant::now() + CONFIRM_DELAY, |(_, at)| at);
                    confirmed = pipeline
                        .confirm(&snapshot, checked)
                        .map(|change| (change, at));
                }
                Some(Update::Forget { history }) => pipeline.remove(history).await,
                None => {}
            }
            self.flushed.send_replace(number);
        }
    }

    fn take(&self) -> (Option<Update>, u64) {
        let mut next = self.lock();
        (next.update.take(), next.number)
    }

    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until a confirmation is to be written.
async fn later(confirmed: &Option<(Change, Instant)>) -> Change {
    match confirmed {
        Some((change, at)) => {
            sleep_until(*at).await;
            *change
        }
        None => std::future::pending().await,
    }
}

/// The update to write when `newer` comes while `waiting` has not been written.
fn coalesce(waiting: Option<Update>, newer: Update) -> Update {
    match (waiting, newer) {
        // The time of a check is meaningless without the bundle.
        (Some(Update::Keep { history, .. }), Update::Confirm { snapshot, checked }) => {
            Update::Keep {
                snapshot,
                checked,
                history,
            }
        }
        (Some(forget @ Update::Forget { .. }), Update::Confirm { .. }) => forget,
        (_, newer) => newer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::snapshot;

    fn keep(version: u8) -> Update {
        Update::Keep {
            snapshot: snapshot(version),
            checked: None,
            history: Bytes::from(vec![version]),
        }
    }

    fn forget() -> Update {
        Update::Forget {
            history: Bytes::new(),
        }
    }

    fn confirm(seconds: i64) -> Update {
        Update::Confirm {
            snapshot: snapshot(1),
            checked: Timestamp::from_second(seconds).ok(),
        }
    }

    /// The update that is written if the disk hangs until all of these were enqueued.
    fn after_all(updates: impl IntoIterator<Item = Update>) -> Update {
        updates
            .into_iter()
            .fold(None, |waiting, update| Some(coalesce(waiting, update)))
            .unwrap()
    }

    #[test]
    fn of_versions_that_wait_the_newest_is_written() {
        let Update::Keep { snapshot: kept, .. } = after_all([keep(1), keep(2)]) else {
            panic!("not kept")
        };
        assert_eq!(kept.etag(), snapshot(2).etag());
    }

    #[test]
    fn no_version_comes_back_after_it_was_withdrawn() {
        assert!(matches!(
            after_all([keep(1), forget()]),
            Update::Forget { .. }
        ));
        assert!(matches!(
            after_all([keep(1), forget(), confirm(1)]),
            Update::Forget { .. }
        ));
        assert!(matches!(
            after_all([keep(1), forget(), keep(2)]),
            Update::Keep { .. }
        ));
    }

    #[test]
    fn a_version_that_waits_is_written_with_the_newest_check() {
        let Update::Keep { checked, .. } = after_all([keep(1), confirm(1), confirm(2)]) else {
            panic!("not kept")
        };
        assert_eq!(checked.unwrap().as_second(), 2);
        assert!(matches!(
            after_all([confirm(1), confirm(2)]),
            Update::Confirm { .. }
        ));
        assert!(matches!(
            after_all([confirm(1), keep(1)]),
            Update::Keep { checked: None, .. }
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_disk_delays_a_publication_by_flush_timeout() {
        let (queue, began) = (PersistQueue::default(), Instant::now());
        let first = queue.enqueue(keep(1));
        queue.flushed(first).await;
        assert_eq!(began.elapsed(), FLUSH_TIMEOUT);
        // Its replacement has been written.
        queue.enqueue(keep(2));
        queue.flushed.send_replace(queue.take().1);
        queue.flushed(first).await;
        assert_eq!(began.elapsed(), FLUSH_TIMEOUT);
    }
}
