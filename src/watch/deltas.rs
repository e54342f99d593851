//! Computes the deltas between the versions of one bundle, off the async threads.
//!
//! Before a version is published, it is compared with the one before it, which nearly all clients run; so the clients
//! that wait for a change share one delta. With versions before that one it is compared once a client runs one of them.

use std::{
    collections::VecDeque,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::Notify,
    time::{Duration, Instant, timeout},
};

use super::Pipeline;
use crate::{
    bundle::{DeltaLimits, NoDelta},
    publish::{BaseVersion, FromBase, Snapshot, opaque_tag},
};

/// How long a publication waits for a thread to compute its delta, when other bundles change at the same time.
const THREAD_WAIT: Duration = Duration::from_secs(1);
/// How long a publication waits for its delta to be computed. 20 MiB of data take about a second.
const PUBLICATION_WAIT: Duration = Duration::from_secs(5);
/// How long computing one of the other deltas may take.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(30);

/// Which deltas are computed (`delta`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeltaOptions {
    /// The number of versions before the current one from which there are deltas.
    pub history: usize,
    /// The largest size of a delta, as a part of that of the bundle.
    pub ratio: f64,
    /// Bytes that the earlier versions may take, and bytes that computing one delta may take.
    pub memory: u64,
}

/// The versions of one bundle between which deltas are computed.
#[derive(Debug)]
pub struct Deltas {
    options: DeltaOptions,
    /// Those that were served, oldest first.
    served: Mutex<VecDeque<BaseVersion>>,
    /// The one that is served now.
    current: Mutex<Option<Arc<Snapshot>>>,
    /// Another one is served.
    changed: Notify,
}

impl Deltas {
    /// Without a version yet.
    pub fn new(options: DeltaOptions) -> Self {
        Self {
            options,
            served: Mutex::default(),
            current: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Compares a version that is about to be published with the one that is served, for
    /// [`THREAD_WAIT`] and [`PUBLICATION_WAIT`] at most. Cancel-safe.
    pub(super) async fn prepare(&self, pipeline: &Pipeline, target: &Arc<Snapshot>) {
        if let Some(served) = &*lock(&self.current) {
            target.continue_comparisons_of(served);
        }
        let bases = self.bases_of(target);
        target.allow_comparisons_with(&bases);
        let newest = bases.into_iter().next();
        let Some(base) = newest.filter(|base| !target.was_compared_with(base)) else {
            return;
        };
        if let Ok(permit) = timeout(THREAD_WAIT, pipeline.pool.compare_permit(true)).await {
            let comparing = self.compare(pipeline, permit, base, target, PUBLICATION_WAIT);
            // It ends at its deadline, but may see that late. It then keeps its permit.
            let _ = timeout(PUBLICATION_WAIT, comparing).await;
        }
    }

    /// Records that a version is served. The oldest ones are forgotten.
    pub(super) fn record(&self, version: &Arc<Snapshot>) {
        let mut served = lock(&self.served);
        served.retain(|earlier| earlier.etag() != version.etag());
        served.push_back(version.base_version());
        let size = |served: &VecDeque<BaseVersion>| {
            let earlier = served.len().saturating_sub(1);
            served
                .iter()
                .take(earlier)
                .map(BaseVersion::size)
                .sum::<u64>()
        };
        while served.len() > self.options.history + 1 || size(&served) > self.options.memory {
            served.pop_front();
        }
        drop(served);
        version.allow_comparisons_with(&self.bases_of(version));
        let replaced = lock(&self.current).replace(Arc::clone(version));
        if let Some(replaced) = replaced.filter(|it| !it.shares_comparisons_with(version)) {
            replaced.end_comparisons();
        }
        self.changed.notify_one();
    }

    /// Records that no version is served.
    pub(super) fn withdraw(&self) {
        if let Some(current) = lock(&self.current).take() {
            current.end_comparisons();
            self.changed.notify_one();
        }
    }

    /// Compares the version that is served with the earlier ones that clients run, until it is dropped.
    pub(super) async fn work(&self, pipeline: &Pipeline) {
        loop {
            let current = lock(&self.current).clone();
            let request = async {
                match current {
                    Some(target) => (target.next_request().await, target),
                    None => pending().await,
                }
            };
            let (tag, target) = tokio::select! {
                () = self.changed.notified() => continue,
                request = request => request,
            };
            let bases = self.bases_of(&target);
            if let Some(base) = bases.into_iter().find(|base| base.has_tag(&tag)) {
                let permit = pipeline.pool.compare_permit(false).await;
                // Another version may have taken its place meanwhile.
                if target.can_be_compared(opaque_tag(&tag)) {
                    self.compare(pipeline, permit, base, &target, BACKGROUND_LIMIT)
                        .await;
                }
            }
            target.end_comparison(&tag);
        }
    }

    /// The versions from which there may be deltas to this one, newest first.
    fn bases_of(&self, target: &Snapshot) -> Vec<BaseVersion> {
        let served = lock(&self.served);
        let others = served.iter().rev();
        let others = others.filter(|earlier| earlier.etag() != target.etag());
        others.take(self.options.history).cloned().collect()
    }

    async fn compare(
        &self,
        pipeline: &Pipeline,
        permit: super::pool::ComparePermit,
        base: BaseVersion,
        target: &Arc<Snapshot>,
        limit: Duration,
    ) {
        let began = Instant::now();
        let limits = DeltaLimits {
            memory: self.options.memory,
            deadline: Instant::now() + limit,
            ratio: self.options.ratio,
        };
        let (target, space) = (Arc::clone(target), pipeline.store.space());
        let (base_tag, target_tag) = (base.etag().to_owned(), target.etag().to_owned());
        let comparing = permit.run(move || target.compare_with(&base, &limits, space));
        // A panic of a parser ends no more than this attempt.
        let compared = comparing.await.unwrap_or(Err(NoDelta::Data));
        let (outcome, bytes) = match &compared {
            Ok(FromBase::Delta(delta)) => ("computed", Some(delta.bytes().size())),
            Ok(FromBase::Nothing) => ("no_change", None),
            Err(reason) => (reason.label(), None),
        };
        pipeline.metrics.count_delta(outcome);
        let (bundle, duration_ms) = (&*pipeline.name, began.elapsed().as_millis());
        match compared {
            Err(reason @ NoDelta::NotProved) => {
                tracing::error!(bundle, base = base_tag, etag = target_tag, "{reason}");
            }
            Err(reason) => tracing::debug!(
                bundle,
                base = base_tag,
                etag = target_tag,
                duration_ms,
                "no delta: {reason}"
            ),
            Ok(_) => tracing::debug!(
                bundle,
                base = base_tag,
                etag = target_tag,
                outcome,
                bytes,
                duration_ms,
                "compared with an earlier version"
            ),
        }
    }
}

impl Drop for Deltas {
    fn drop(&mut self) {
        self.withdraw();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::snapshot;

    fn deltas(history: usize, memory: u64) -> Deltas {
        Deltas::new(DeltaOptions {
            history,
            ratio: 0.5,
            memory,
        })
    }

    fn bases(deltas: &Deltas, target: u8) -> Vec<String> {
        let bases = deltas.bases_of(&snapshot(target));
        bases.iter().map(|base| base.etag().to_owned()).collect()
    }

    fn etags(versions: &[u8]) -> Vec<String> {
        let etag = |version: &u8| snapshot(*version).etag().to_owned();
        versions.iter().map(etag).collect()
    }

    #[test]
    fn the_last_versions_that_were_served_are_kept_each_once() {
        let deltas = deltas(2, 1 << 20);
        assert!(bases(&deltas, 1).is_empty());
        for version in [1, 2, 3, 4] {
            deltas.record(&snapshot(version));
        }
        assert_eq!(bases(&deltas, 4), etags(&[3, 2]));
        assert_eq!(
            bases(&deltas, 5),
            etags(&[4, 3]),
            "one that is not served yet"
        );
        deltas.record(&snapshot(2));
        assert_eq!(bases(&deltas, 2), etags(&[4, 3]), "a rollback");
    }

    #[test]
    fn earlier_versions_take_no_more_than_the_memory() {
        let size = snapshot(1).content().bytes().size();
        let deltas = deltas(10, size * 5 / 2);
        for version in [1, 2, 3, 4, 5] {
            deltas.record(&snapshot(version));
        }
        assert_eq!(bases(&deltas, 5), etags(&[4, 3]));
    }
}
