//! All trust roots of a configuration, each refreshed by a task.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::{
    BadRoot, RefreshError, Refreshed, RootSource, TrustRoot, TrustRootMetrics, TrustRootRefresher,
    TrustRootStatus, tuf_store::TufStore,
};
use crate::telemetry;

/// The trust roots in use. Each refreshable one has a task, which ends when this is dropped.
#[derive(Debug)]
pub struct TrustRoots {
    folder: Option<PathBuf>,
    metrics: TrustRootMetrics,
    current: watch::Sender<BTreeMap<String, TrustRoot>>,
    seen: watch::Receiver<BTreeMap<String, TrustRoot>>,
    /// What operators see of the same roots.
    statuses: watch::Sender<BTreeMap<String, TrustRootStatus>>,
    active: BTreeMap<String, ActiveRoot>,
    /// Roots that were opened for a configuration which may still be rejected.
    opened: Mutex<BTreeMap<String, OpenedRoot>>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct ActiveRoot {
    source: RootSource,
    /// The refresher's store, for the refresher that replaces it.
    store: TufStore,
    task: Option<Task>,
}

/// A handle that stops the refresher of a root.
#[derive(Debug)]
struct Task {
    /// Set before the abort: the task may be about to publish on another thread.
    retired: Arc<AtomicBool>,
    handle: AbortHandle,
}

#[derive(Debug)]
struct OpenedRoot {
    source: RootSource,
    root: TrustRoot,
    refresher: Option<TrustRootRefresher>,
}

impl TrustRoots {
    /// Creates an empty set. The last valid roots are stored in `folder`.
    pub fn new(folder: Option<PathBuf>, metrics: TrustRootMetrics) -> Self {
        let (current, seen) = watch::channel(BTreeMap::new());
        Self {
            folder,
            metrics,
            current,
            seen,
            statuses: watch::Sender::default(),
            active: BTreeMap::new(),
            opened: Mutex::default(),
            tasks: JoinSet::new(),
        }
    }

    /// The current root of this name and source: the one that its repository delivered last, else
    /// the one on disk, else the initial one. The configuration that it is read for need not be
    /// applied. Blocks to read a small file.
    ///
    /// # Errors
    /// When the source is not a root.
    pub fn current(&self, name: &str, source: &RootSource) -> Result<TrustRoot, BadRoot> {
        let known = self.current.borrow().get(name).cloned();
        if let (Some(active), Some(root)) = (self.active.get(name), &known)
            && active.source == *source
        {
            return Ok(root.clone());
        }
        let new = self.open(name, source, known.as_ref())?;
        let root = new.root.clone();
        self.opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), new);
        Ok(root)
    }

    /// Replaces the set of roots that are refreshed. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When one is not a root; then nothing changes.
    pub fn set_sources(&mut self, sources: &BTreeMap<String, RootSource>) -> Result<(), BadRoot> {
        let mut opened =
            std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner));
        let mut new = BTreeMap::new();
        for (name, source) in sources {
            if self
                .active
                .get(name)
                .is_some_and(|active| active.source == *source)
            {
                continue;
            }
            let one = match opened
                .remove(name)
                .filter(|opened| opened.source == *source)
            {
                Some(opened) => opened,
                None => self.open(name, source, self.current.borrow().get(name))?,
            };
            new.insert(name.clone(), one);
        }
        let gone: Vec<_> = self
            .active
            .keys()
            .filter(|name| !sources.contains_key(*name))
            .cloned()
            .collect();
        for name in gone.iter().chain(new.keys()) {
            if let Some(task) = self.active.remove(name).and_then(|active| active.task) {
                task.retired.store(true, Ordering::Release);
                task.handle.abort();
            }
            self.metrics.remove_expiry(name);
        }
        self.current.send_modify(|current| {
            gone.iter().for_each(|name| drop(current.remove(name)));
            current.extend(
                new.iter()
                    .map(|(name, opened)| (name.clone(), opened.root.clone())),
            );
        });
        self.statuses.send_modify(|statuses| {
            gone.iter().for_each(|name| drop(statuses.remove(name)));
            let new = new.iter().map(|(name, opened)| {
                let status = TrustRootStatus::new(&opened.source, opened.root.clone());
                (name.clone(), status)
            });
            statuses.extend(new);
        });
        // Removes the results of aborted tasks.
        while self.tasks.try_join_next().is_some() {}
        // The caller has just set these roots, so they are not reported as changed.
        self.seen.mark_unchanged();
        for (
            name,
            OpenedRoot {
                source, refresher, ..
            },
        ) in new
        {
            let store = refresher
                .as_ref()
                .map(TrustRootRefresher::store)
                .unwrap_or_default();
            let task = refresher.map(|refresher| self.spawn(refresher));
            self.active.insert(
                name,
                ActiveRoot {
                    source,
                    store,
                    task,
                },
            );
        }
        Ok(())
    }

    /// What operators see of the roots, by name.
    pub fn statuses(&self) -> watch::Receiver<BTreeMap<String, TrustRootStatus>> {
        self.statuses.subscribe()
    }

    /// Waits until a root differs from what it was at the last call of this or of
    /// [`Self::set_sources`]. Cancel-safe.
    pub async fn changed(&mut self) {
        // The channel can't be closed: `self` holds its sender.
        let _ = self.seen.changed().await;
    }

    /// Waits until every root has been fetched, but not longer than `timeout`.
    pub async fn wait_until_fetched(&self, timeout: Duration) {
        let mut current = self.current.subscribe();
        let fetched = current.wait_for(|roots| roots.values().all(|root| !root.is_pending()));
        let _ = tokio::time::timeout(timeout, fetched).await;
    }

    fn open(
        &self,
        name: &str,
        source: &RootSource,
        known: Option<&TrustRoot>,
    ) -> Result<OpenedRoot, BadRoot> {
        let store = self
            .active
            .get(name)
            .map(|active| active.store.clone())
            .unwrap_or_default();
        let refresher = TrustRootRefresher::resume(
            &store,
            name,
            source,
            self.folder.as_deref(),
            self.metrics.clone(),
        )?;
        let Some(mut refresher) = refresher else {
            return Ok(OpenedRoot {
                source: source.clone(),
                root: source.initial(name)?,
                refresher: None,
            });
        };
        // Policies that hold the same root get the expiry of this one.
        if let Some(known) = known.filter(|known| known.revision() == refresher.root().revision())
            && known.expires().is_some()
            && refresher.root().expires().is_some()
        {
            refresher.share_freshness(known.freshness());
        }
        Ok(OpenedRoot {
            source: source.clone(),
            root: refresher.root().clone(),
            refresher: Some(refresher),
        })
    }

    fn spawn(&mut self, refresher: TrustRootRefresher) -> Task {
        refresher.record_expiry();
        let (current, statuses) = (self.current.clone(), self.statuses.clone());
        let retired = Arc::new(AtomicBool::new(false));
        let is_retired = Arc::clone(&retired);
        let report = move |root: &TrustRoot, refreshed: &Result<Refreshed, RefreshError>| {
            // Checked while the maps are locked.
            let is_retired = || is_retired.load(Ordering::Acquire);
            statuses.send_if_modified(|statuses| match statuses.get_mut(root.name()) {
                Some(status) if !is_retired() => {
                    status.record(root, refreshed, telemetry::now());
                    true
                }
                _ => false,
            });
            if *refreshed != Ok(Refreshed::Changed) {
                return;
            }
            current.send_if_modified(|roots| match roots.get_mut(root.name()) {
                Some(known) if !is_retired() => {
                    *known = root.clone();
                    true
                }
                _ => false,
            });
        };
        let handle = self.tasks.spawn(refresher.run(report));
        Task { retired, handle }
    }
}
