//! The bundles that are served, by name, and the patterns of bundles that are added when a client
//! asks for them. Entries come and go while requests run.

mod demand;
mod pattern;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};

use self::demand::Use;
pub use self::{
    demand::{Demand, Demanded, InUse, Refusal},
    pattern::{Pattern, PatternError},
};
use crate::{
    oci::{Digest, Reference},
    publish::{Checked, Handle, Hint, Status, View},
    rollout::Staged,
    traces::Span,
};

/// Demands in the queue of the gateway; it answers each within microseconds, unless it is applying
/// a configuration. Further clients wait for a place in the queue.
const MAX_DEMANDS: usize = 1024;
/// How often a demand is made that gets no reply.
const MAX_ASKED: usize = 2;

/// The bundles by name. Cheap to clone; the clones are one catalog.
///
/// `M` is what the server counts for each bundle. The entry carries it, so that a request that has
/// found its bundle needs no second lookup to be counted.
#[derive(Debug)]
pub struct Catalog<M>(Arc<Inner<M>>);

#[derive(Debug)]
struct Inner<M> {
    entries: RwLock<BTreeMap<String, Arc<Entry<M>>>>,
    patterns: RwLock<Arc<[Arc<Pattern>]>>,
    demands: mpsc::Sender<Demand<M>>,
}

/// One bundle, as it is configured at one time. A change of the bundle's watcher or of its
/// fallback makes another entry, and this one outdated.
#[derive(Debug)]
pub struct Entry<M> {
    handle: Handle,
    /// The same for all entries of a bundle, from its addition to its removal.
    metrics: Arc<M>,
    reference: Reference,
    /// Watches the configured reference while the bundle is still served from an earlier one, and where
    /// versions are rolled out in steps.
    successor: Option<Handle>,
    /// The roll-out, where versions are rolled out in steps.
    staged: Option<Staged>,
    outdated: AtomicBool,
    /// `None` for a configured bundle.
    demand: Option<Use>,
}

impl<M> Default for Catalog<M> {
    /// A catalog without patterns.
    fn default() -> Self {
        Self::with_demands().0
    }
}

impl<M> Clone for Catalog<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Catalog<M> {
    /// A catalog, and the demands of its clients.
    pub fn with_demands() -> (Self, mpsc::Receiver<Demand<M>>) {
        let (demands, receiver) = mpsc::channel(MAX_DEMANDS);
        let inner = Inner {
            entries: RwLock::default(),
            patterns: RwLock::new(Arc::default()),
            demands,
        };
        (Self(Arc::new(inner)), receiver)
    }

    /// Replaces the patterns.
    pub fn set_patterns(&self, patterns: impl IntoIterator<Item = Arc<Pattern>>) {
        let patterns = patterns.into_iter().collect();
        *self
            .0
            .patterns
            .write()
            .unwrap_or_else(PoisonError::into_inner) = patterns;
    }

    /// Whether a bundle of this name can be added on demand.
    pub fn has_pattern_of(&self, name: &str) -> bool {
        let patterns = self.0.patterns.read();
        let patterns = Arc::clone(&patterns.unwrap_or_else(PoisonError::into_inner));
        patterns
            .iter()
            .any(|pattern| pattern.reference(name).is_some())
    }

    /// Asks for a bundle that is added on demand. The caller has checked that the client may read
    /// it, and sets a deadline: no demand is answered while a configuration is applied.
    /// Cancel-safe.
    pub async fn demand(&self, name: &str) -> Demanded<M> {
        for _ in 0..MAX_ASKED {
            if !self.has_pattern_of(name) {
                return Demanded::Unknown;
            }
            let (reply, replied) = oneshot::channel();
            let demand = Demand {
                name: name.to_owned(),
                traced: Span::current(),
                reply,
            };
            if self.0.demands.send(demand).await.is_err() {
                break;
            }
            // The demand is lost if a configuration is applied just then.
            if let Ok(demanded) = replied.await {
                return demanded;
            }
        }
        Demanded::Refused(Refusal {
            is_withdrawn: false,
            message: "a new configuration is being applied; try again".to_owned(),
        })
    }

    /// Replaces all entries. Requests that are held for another entry than the one that now has
    /// its name wake up, and no others.
    pub fn replace(&self, entries: impl IntoIterator<Item = Arc<Entry<M>>>) {
        let entries = entries
            .into_iter()
            .map(|entry| (entry.name().to_owned(), entry))
            .collect();
        let before = std::mem::replace(
            &mut *self
                .0
                .entries
                .write()
                .unwrap_or_else(PoisonError::into_inner),
            entries,
        );
        let now = self
            .0
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for (name, entry) in before {
            if now
                .get(&name)
                .is_none_or(|current| !Arc::ptr_eq(current, &entry))
            {
                entry.set_outdated();
            }
        }
    }

    /// Replaces the entry of one bundle. Requests that are held for the earlier entry wake up.
    pub fn insert(&self, entry: Arc<Entry<M>>) {
        let name = entry.name().to_owned();
        let before = self
            .0
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, Arc::clone(&entry));
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &entry)) {
            before.set_outdated();
        }
    }

    /// Removes the entry of one bundle. Requests that are held for it wake up.
    pub fn remove(&self, name: &str) {
        let removed = self
            .0
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        if let Some(removed) = removed {
            removed.set_outdated();
        }
    }

    /// The bundle that a request's resource names: `/bundles/NAME`, `/bundle/NAME` or `/NAME`,
    /// without the leading slash. The configuration rules out names that make this ambiguous.
    pub fn find(&self, resource: &str) -> Option<Arc<Entry<M>>> {
        let entries = self
            .0
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        entries
            .get(bundle_name(resource))
            .or_else(|| entries.get(resource))
            .cloned()
    }

    /// The bundle of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Entry<M>>> {
        self.0
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    /// What `map` makes of each bundle, by name, without what it makes `None` of. `map` must be
    /// short: the catalog is locked meanwhile.
    pub fn filter_map<T>(&self, map: impl FnMut(&Entry<M>) -> Option<T>) -> Vec<T> {
        self.0
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .map(|entry| &**entry)
            .filter_map(map)
            .collect()
    }

    /// Wakes all requests that are held.
    pub fn wake_waiters(&self) {
        for entry in self.entries() {
            entry.handle.wake_waiters();
        }
    }

    /// All bundles, by name.
    pub fn entries(&self) -> Vec<Arc<Entry<M>>> {
        self.0
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }
}

impl<M> Entry<M> {
    /// A bundle that is served by way of `handle`, and configured with `reference`. While these
    /// differ, `successor` watches the reference.
    pub fn new(
        handle: Handle,
        reference: Reference,
        successor: Option<Handle>,
        metrics: Arc<M>,
    ) -> Self {
        Self {
            handle,
            metrics,
            reference,
            successor,
            staged: None,
            outdated: AtomicBool::new(false),
            demand: None,
        }
    }

    /// A bundle that was added on demand, by the pattern with this resource.
    pub fn on_demand(
        handle: Handle,
        reference: Reference,
        metrics: Arc<M>,
        pattern: Arc<str>,
    ) -> Self {
        Self {
            demand: Some(Use::of(pattern)),
            ..Self::new(handle, reference, None, metrics)
        }
    }

    /// The same entry of a bundle whose versions are rolled out in steps: `handle` has the stable one, if a
    /// plan is known.
    #[must_use]
    pub fn with_rollout(mut self, staged: Staged) -> Self {
        self.staged = Some(staged);
        self
    }

    /// The roll-out, where versions are rolled out in steps.
    pub fn staged(&self) -> Option<&Staged> {
        self.staged.as_ref()
    }

    /// A subscription to what clients get.
    pub fn view(&self) -> View {
        let candidate = self.staged.as_ref();
        let candidate = candidate.and_then(|staged| staged.candidate.as_ref());
        self.handle.view_with(candidate)
    }

    /// The handle to the watcher of the configured reference.
    pub fn newest(&self) -> &Handle {
        self.watching()
    }

    /// The bundle's name.
    pub fn name(&self) -> &str {
        self.handle.name()
    }

    /// The handle to the watcher whose versions clients get.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// What the server counts for the bundle.
    pub fn metrics(&self) -> &M {
        &self.metrics
    }

    /// The configured reference.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The status for `/status`. Its version is the one being served; its checks and failures are
    /// those of the configured reference.
    pub fn status(&self) -> Status {
        let mut status = self.handle.status();
        if let Some(successor) = self.successor.as_ref().map(Handle::status) {
            status.reference = successor.reference;
            status.chosen = successor.chosen;
            status.poll = successor.poll;
            status.last_check = successor.last_check.or(status.last_check);
            status.last_failure = successor.last_failure.or(status.last_failure);
            status.rejected = successor.rejected.or(status.rejected);
        }
        status
    }

    /// Has the registry checked for the configured reference now; see [`Handle::check_now`].
    pub async fn check_now(&self) -> Checked {
        self.watching().check_now().await
    }

    /// Has the registry checked for the configured reference soon; see [`Handle::hint`].
    pub fn hint(&self, hint: Hint) {
        self.watching().hint(hint);
    }

    /// Whether the configured reference names this artifact, and it was refused for lack of valid
    /// evidence.
    pub fn lacks_evidence(&self, digest: &Digest) -> bool {
        self.watching().lacks_evidence(digest)
    }

    /// The handle to the watcher of the configured reference.
    fn watching(&self) -> &Handle {
        self.successor.as_ref().unwrap_or(&self.handle)
    }

    /// Whether waiting longer changes nothing for its clients; see [`Handle::is_settled`].
    pub fn is_settled(&self) -> bool {
        self.handle.is_settled() || self.successor.as_ref().is_some_and(Handle::is_settled)
    }

    /// Whether the catalog has another entry of this name, or none.
    pub fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Acquire)
    }

    /// Waits until [`Self::is_outdated`]. Cancel-safe.
    pub async fn outdated(&self) {
        loop {
            // Before the question, so that no change is missed.
            let woken = self.handle.woken();
            if self.is_outdated() {
                return;
            }
            woken.await;
        }
    }

    /// Wakes the requests that are held for this entry: another one has its name, or none.
    fn set_outdated(&self) {
        self.outdated.store(true, Ordering::Release);
        self.handle.wake_waiters();
    }
}

/// The name in a resource. For a resource that names no bundle, access is checked as if there
/// were a bundle of this name.
pub fn bundle_name(resource: &str) -> &str {
    let stripped = resource
        .strip_prefix("bundles/")
        .or_else(|| resource.strip_prefix("bundle/"));
    stripped.unwrap_or(resource)
}
