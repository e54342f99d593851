//! Writes to disk what a watcher has decided, beside its work: a disk in trouble delays what
//! is published by a moment, and the next check not at all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    time::{Duration, Instant, sleep_until, timeout},
};

use super::{Pipeline, Snapshot};
use crate::store::Change;

/// What a disk in order needs at most.
const MOMENT: Duration = Duration::from_secs(2);
/// A confirmation that a crash takes away costs a check of the registry. So it waits for those
/// of other bundles, which are written together.
const CONFIRM_DELAY: Duration = Duration::from_secs(1);

/// Holds what is to be written next. One thing at a time is written, so that they follow each
/// other as they were decided; of what a slow disk has not come to, the newest replaces the rest.
#[derive(Debug, Default)]
pub(super) struct Scribe {
    next: Mutex<Next>,
    called: Notify,
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Next {
    entry: Option<Entry>,
    /// How many entries there have been.
    number: u64,
}

/// What the disk should say from now on.
#[derive(Debug)]
pub(super) enum Entry {
    /// This is served, and that is what was served so far.
    Keep { snapshot: Arc<Snapshot>, checked: Option<Timestamp>, history: Bytes },
    /// What is served was confirmed, by the registry or by the judge.
    Confirm { snapshot: Arc<Snapshot>, checked: Option<Timestamp> },
    /// Nothing is served.
    Forget { history: Bytes },
}

impl Scribe {
    /// Never waits. Gives the entry's number.
    pub(super) fn put_down(&self, entry: Entry) -> u64 {
        let mut next = self.lock();
        next.entry = Some(following(next.entry.take(), entry));
        next.number += 1;
        self.called.notify_one();
        next.number
    }

    /// Waits until an entry, or what replaced it, has been written or could not be; on a disk
    /// in trouble no longer than a moment.
    pub(super) async fn written(&self, number: u64) {
        let mut written = self.written.subscribe();
        let _ = timeout(MOMENT, written.wait_for(|written| *written >= number)).await;
    }

    /// Writes for ever. When it is dropped, what is being written is still completed, what
    /// waits is not.
    pub(super) async fn work(&self, pipeline: &Pipeline) {
        // What has been confirmed and is not on the disk yet.
        let mut confirmed = None;
        loop {
            tokio::select! {
                biased;
                () = self.called.notified() => {}
                change = later(&confirmed) => {
                    confirmed = None;
                    pipeline.store.flush(change).await;
                    continue;
                }
            }
            let (entry, number) = self.take();
            match entry {
                Some(Entry::Keep { snapshot, checked, history }) => {
                    Box::pin(pipeline.keep(&snapshot, checked, history)).await;
                }
                Some(Entry::Confirm { snapshot, checked }) => {
                    let at = confirmed.map_or_else(|| Instant::now() + CONFIRM_DELAY, |(_, at)| at);
                    confirmed = pipeline.confirm(&snapshot, checked).map(|change| (change, at));
                }
                Some(Entry::Forget { history }) => pipeline.forget(history).await,
                None => {}
            }
            self.written.send_replace(number);
        }
    }

    fn take(&self) -> (Option<Entry>, u64) {
        let mut next = self.lock();
        (next.entry.take(), next.number)
    }

    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The change, when it is time to bring it to the disk.
async fn later(confirmed: &Option<(Change, Instant)>) -> Change {
    match confirmed {
        Some((change, at)) => {
            sleep_until(*at).await;
            *change
        }
        None => std::future::pending().await,
    }
}

/// What to write when `newer` comes while `waiting` has not been written.
fn following(waiting: Option<Entry>, newer: Entry) -> Entry {
    match (waiting, newer) {
        // The time of a check says nothing without the bundle.
        (Some(Entry::Keep { history, .. }), Entry::Confirm { snapshot, checked }) => {
            Entry::Keep { snapshot, checked, history }
        }
        (Some(forget @ Entry::Forget { .. }), Entry::Confirm { .. }) => forget,
        (_, newer) => newer,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::state::tests::snapshot, *};

    fn keep(version: u8) -> Entry {
        Entry::Keep { snapshot: snapshot(version), checked: None, history: Bytes::from(vec![version]) }
    }

    fn forget() -> Entry {
        Entry::Forget { history: Bytes::new() }
    }

    fn confirm(seconds: i64) -> Entry {
        Entry::Confirm { snapshot: snapshot(1), checked: Timestamp::from_second(seconds).ok() }
    }

    /// What a disk writes that could write nothing while all of these were decided.
    fn after_all(entries: impl IntoIterator<Item = Entry>) -> Entry {
        entries.into_iter().fold(None, |waiting, entry| Some(following(waiting, entry))).unwrap()
    }

    #[test]
    fn of_versions_that_wait_the_newest_is_written() {
        let Entry::Keep { snapshot: kept, .. } = after_all([keep(1), keep(2)]) else { panic!("not kept") };
        assert_eq!(kept.etag(), snapshot(2).etag());
    }

    #[test]
    fn no_version_comes_back_after_it_was_withdrawn() {
        assert!(matches!(after_all([keep(1), forget()]), Entry::Forget { .. }));
        assert!(matches!(after_all([keep(1), forget(), confirm(1)]), Entry::Forget { .. }));
        assert!(matches!(after_all([keep(1), forget(), keep(2)]), Entry::Keep { .. }));
    }

    #[test]
    fn a_version_that_waits_is_written_with_the_newest_check() {
        let Entry::Keep { checked, .. } = after_all([keep(1), confirm(1), confirm(2)]) else { panic!("not kept") };
        assert_eq!(checked.unwrap().as_second(), 2);
        assert!(matches!(after_all([confirm(1), confirm(2)]), Entry::Confirm { .. }));
        assert!(matches!(after_all([confirm(1), keep(1)]), Entry::Keep { checked: None, .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_in_trouble_is_waited_for_no_longer_than_a_moment() {
        let (scribe, began) = (Scribe::default(), Instant::now());
        let first = scribe.put_down(keep(1));
        scribe.written(first).await;
        assert_eq!(began.elapsed(), MOMENT);
        // What replaced it has been written.
        scribe.put_down(keep(2));
        scribe.written.send_replace(scribe.take().1);
        scribe.written(first).await;
        assert_eq!(began.elapsed(), MOMENT);
    }
}
