//! Requests for bundles that no watcher exists for yet.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::Entry;
use crate::traces::Parent;

/// A client that may read a bundle asks for it, and its name matches a pattern. The receiver adds
/// the bundle to the catalog.
#[derive(Debug)]
pub struct Demand<M> {
    /// The bundle's name.
    pub name: String,
    /// The request, if its trace is recorded.
    pub traced: Option<Parent>,
    pub(super) reply: oneshot::Sender<Demanded<M>>,
}

/// What became of a [`Demand`].
#[derive(Debug)]
pub enum Demanded<M> {
    /// The bundle has a watcher now.
    Added(Arc<Entry<M>>),
    /// The bundle gets no watcher, for this reason.
    Refused(Refusal),
    /// No pattern has such a name.
    Unknown,
}

/// Why a bundle that a client asked for gets no watcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whether an attempt to fetch the bundle has failed. Otherwise none was made.
    pub is_withdrawn: bool,
    /// The reason in a sentence, for clients with a credential that may read the bundle.
    pub message: String,
}

/// How an entry that was added on demand is used.
#[derive(Debug)]
pub(super) struct Use {
    /// The resource of the pattern.
    pub(super) pattern: Arc<str>,
    created: Instant,
    /// Milliseconds from `created` to the end of the last request.
    last_used: AtomicU64,
    /// Requests that are being answered.
    requests: AtomicUsize,
}

/// A request that uses an entry; counts until it is dropped.
#[derive(Debug)]
pub struct InUse<M>(Arc<Entry<M>>);

impl<M> Demand<M> {
    /// Whether the client is gone, so that no answer is needed.
    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Answers the client.
    pub fn reply(self, demanded: Demanded<M>) {
        // The client may be gone.
        let _ = self.reply.send(demanded);
    }
}

impl Use {
    pub(super) fn of(pattern: Arc<str>) -> Self {
        Self {
            pattern,
            created: Instant::now(),
            last_used: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
        }
    }

    fn begin(&self) {
        self.requests.fetch_add(1, Ordering::SeqCst);
    }

    fn end(&self) {
        let millis = u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_used.fetch_max(millis, Ordering::SeqCst);
        self.requests.fetch_sub(1, Ordering::SeqCst);
    }

    fn idle_for(&self) -> Duration {
        if self.requests.load(Ordering::SeqCst) > 0 {
            return Duration::ZERO;
        }
        let last_used = Duration::from_millis(self.last_used.load(Ordering::SeqCst));
        self.created.elapsed().saturating_sub(last_used)
    }
}

impl<M> Entry<M> {
    /// The resource of the pattern by which this bundle was added on demand; `None` for a
    /// configured bundle.
    pub fn pattern(&self) -> Option<&str> {
        self.demand.as_ref().map(|demand| &*demand.pattern)
    }

    /// The `bundle` label of its metrics: its name, or the resource of its pattern.
    pub fn label(&self) -> &str {
        self.pattern().unwrap_or_else(|| self.name())
    }

    /// Counts a request for this bundle until the guard is dropped; `None` for a configured bundle,
    /// which never expires.
    pub fn begin_use(self: &Arc<Self>) -> Option<InUse<M>> {
        self.demand.as_ref()?.begin();
        Some(InUse(Arc::clone(self)))
    }

    /// The number of requests that are being answered; `None` for a configured bundle.
    pub fn requests(&self) -> Option<usize> {
        let demand = self.demand.as_ref()?;
        Some(demand.requests.load(Ordering::SeqCst))
    }

    /// The time since the last request ended; zero while there is one, and for a configured bundle.
    pub fn idle_for(&self) -> Duration {
        self.demand.as_ref().map_or(Duration::ZERO, Use::idle_for)
    }
}

impl<M> Drop for InUse<M> {
    fn drop(&mut self) {
        if let Some(demand) = &self.0.demand {
            demand.end();
        }
    }
}
