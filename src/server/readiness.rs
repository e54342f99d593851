//! Whether the replica is ready: what `/readyz` answers, and for what it waits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Catalog, drain::DrainSignal};

/// Whether the replica is ready. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    catalog: Catalog,
    /// When the replica is ready at the latest.
    ready_at: Instant,
    drain: DrainSignal,
    /// The names of the bundles whose first version the replica waits for: those of the configuration
    /// at the start. One that a reload adds does not take the replica out of rotation, whether it
    /// has been ready before or not. Nor does one that is added on demand: it was asked for at a
    /// replica that was ready.
    awaited: Vec<String>,
    /// Once ready, the replica stays ready until the drain, whatever happens to bundles.
    was_ready: AtomicBool,
}

impl Readiness {
    /// Waits for the bundles that `catalog` has now, for `ready_after` at most.
    pub(super) fn new(catalog: Catalog, ready_after: Duration, drain: DrainSignal) -> Self {
        let is_configured = |entry: &super::Entry| entry.pattern().is_none();
        let awaited =
            catalog.filter_map(|entry| is_configured(entry).then(|| entry.name().to_owned()));
        Self(Arc::new(Inner {
            catalog,
            ready_at: Instant::now() + ready_after,
            drain,
            awaited,
            was_ready: AtomicBool::new(false),
        }))
    }

    /// Whether the shutdown has begun.
    pub fn is_draining(&self) -> bool {
        self.0.drain.is_draining()
    }

    /// Whether load balancers may send clients here.
    pub fn is_ready(&self) -> bool {
        if self.is_draining() {
            return false;
        }
        if self.0.was_ready.load(Ordering::Relaxed)
            || Instant::now() >= self.0.ready_at
            || self.unsettled().next().is_none()
        {
            self.0.was_ready.store(true, Ordering::Relaxed);
            return true;
        }
        false
    }

    /// The bundles that are neither served nor refused for good, unless the replica is ready
    /// without them.
    pub fn waiting_for(&self) -> Vec<&str> {
        match self.is_ready() {
            true => Vec::new(),
            false => self.unsettled().collect(),
        }
    }

    fn unsettled(&self) -> impl Iterator<Item = &str> {
        let is_unsettled = |name: &&String| {
            let entry = self.0.catalog.get(name);
            entry.is_some_and(|entry| entry.pattern().is_none() && !entry.is_settled())
        };
        self.0
            .awaited
            .iter()
            .filter(is_unsettled)
            .map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::watch, time::advance};

    use super::*;
    use crate::{
        metrics::{BundleScope, Metrics},
        publish::{
            CheckEnd, Event, Failure, FailureClass, Handle, Outcome, Publisher, Step, pending,
            serving,
        },
        server::{Entry, ServerMetrics, drain::Phase},
    };

    const READY_AFTER: Duration = Duration::from_secs(30);

    /// A replica with the bundles `a` and `b`, of which `b` is served.
    struct Replica {
        readiness: Readiness,
        catalog: Catalog,
        a: Publisher,
        _b: Publisher,
        phase: watch::Sender<Phase>,
    }

    impl Replica {
        fn start() -> Self {
            let (a, handle) = pending("a");
            let (b, served) = serving("b", 1);
            let catalog = Catalog::default();
            let (phase, receiver) = watch::channel(Phase::Open);
            for handle in [handle, served] {
                insert(&catalog, handle);
            }
            let drain = DrainSignal::new(receiver);
            Self {
                readiness: Readiness::new(catalog.clone(), READY_AFTER, drain),
                catalog,
                a,
                _b: b,
                phase,
            }
        }

        /// A check of `a` ends with a failure of this class.
        fn fails(&mut self, class: FailureClass) {
            let failure = Failure {
                class,
                step: Step::Resolve,
                digest: None,
                below: Arc::default(),
                etag: None,
                reason: "test",
                message: "a failure".to_owned(),
            };
            let outcome = Outcome::Failed(failure);
            let at = crate::telemetry::now();
            self.a.apply(&Event::Checked { outcome, at }, None).unwrap();
            self.a.record_check(Instant::now(), false, CheckEnd::Failed);
        }
    }

    fn insert(catalog: &Catalog, handle: Handle) {
        let metrics = ServerMetrics::new(&Metrics::new()).unwrap();
        let requests = metrics.bundle(&BundleScope::new(handle.name().into()));
        let reference = "r.example/a:live".parse().unwrap();
        let entry = Entry::new(handle, reference, None, Arc::new(requests));
        catalog.insert(Arc::new(entry));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_may_pass_is_waited_for_until_ready_after_and_no_other() {
        for (class, is_awaited) in [
            (FailureClass::Transient, true),
            (FailureClass::RateLimited(None), true),
            (FailureClass::NotFound, false),
            (FailureClass::Denied, false),
            (FailureClass::Evidence, false),
            (FailureClass::Revoked, false),
            (FailureClass::Defect, false),
        ] {
            let mut replica = Replica::start();
            assert_eq!(replica.readiness.waiting_for(), ["a"]);
            assert!(!replica.readiness.is_ready());
            replica.fails(class);
            assert_eq!(replica.readiness.is_ready(), !is_awaited, "{class:?}");
            advance(READY_AFTER - Duration::from_millis(1)).await;
            assert_eq!(replica.readiness.is_ready(), !is_awaited, "{class:?}");
            advance(Duration::from_millis(1)).await;
            assert!(replica.readiness.is_ready(), "{class:?}");
            assert!(replica.readiness.waiting_for().is_empty(), "{class:?}");
            // Nothing but the drain ends it.
            replica.fails(FailureClass::Transient);
            assert!(replica.readiness.is_ready(), "{class:?}");
            replica.phase.send_replace(Phase::Notice);
            assert!(!replica.readiness.is_ready(), "{class:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn neither_a_bundle_that_a_reload_adds_nor_one_that_it_removes_is_waited_for() {
        let mut replica = Replica::start();
        let (_publisher, added) = pending("c");
        insert(&replica.catalog, added);
        assert_eq!(replica.readiness.waiting_for(), ["a"]);
        replica.fails(FailureClass::Transient);
        assert!(!replica.readiness.is_ready());
        replica.catalog.remove("a");
        assert!(replica.readiness.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_bundle_is_not_waited_for() {
        let replica = Replica::start();
        let entry = replica.catalog.get("a").unwrap();
        entry.handle().set_suspended(true);
        // It may be on the disk.
        assert!(!replica.readiness.is_ready());
        replica.a.record_suspension();
        assert!(replica.readiness.is_ready());
    }
}
