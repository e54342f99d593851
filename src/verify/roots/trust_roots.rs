//! All roots of a configuration, as they are at the moment.

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

use super::{BadRoot, RootSource, TrustRoot, TrustRootRefresher, tuf_store::TufStore};
use crate::metrics::Metrics;

/// The roots that are relied on, each kept fresh by a task that ends with this.
#[derive(Debug)]
pub struct TrustRoots {
    folder: Option<PathBuf>,
    metrics: Metrics,
    current: watch::Sender<BTreeMap<String, TrustRoot>>,
    seen: watch::Receiver<BTreeMap<String, TrustRoot>>,
    active: BTreeMap<String, ActiveRoot>,
    /// OpenedRoot for a configuration that may yet be refused.
    opened: Mutex<BTreeMap<String, OpenedRoot>>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct ActiveRoot {
    source: RootSource,
    /// What its refresher holds, for the one that follows it.
    store: TufStore,
    task: Option<Task>,
}

/// Ends the task that keeps a root.
#[derive(Debug)]
struct Task {
    /// It may be about to publish, on another thread.
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
    /// None yet. `folder` is where the last good ones are kept.
    pub fn new(folder: Option<PathBuf>, metrics: Metrics) -> Self {
        let (current, seen) = watch::channel(BTreeMap::new());
        Self {
            folder,
            metrics,
            current,
            seen,
            active: BTreeMap::new(),
            opened: Mutex::default(),
            tasks: JoinSet::new(),
        }
    }

    /// The root of this name and source as it is now: what its repository delivered last, or
    /// what is on disk of that, or what it begins with. For reading a configuration, which
    /// need not be adopted. May read a small file, and blocks for it.
    ///
    /// # Errors
    /// When the source is no root.
    pub fn current(&self, name: &str, source: &RootSource) -> Result<TrustRoot, BadRoot> {
        let known = self.current.borrow().get(name).cloned();
        if let (Some(active), Some(root)) = (self.active.get(name), &known)
            && active.source == *source
        {
            return Ok(root.clone());
        }
        let new = self.open(name, source, known.as_ref())?;
        let root = new.root.clone();
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), new);
        Ok(root)
    }

    /// Keeps these roots fresh from now on, and no others. Within a Tokio runtime.
    ///
    /// # Errors
    /// When one is no root; then nothing changes.
    pub fn set_sources(&mut self, sources: &BTreeMap<String, RootSource>) -> Result<(), BadRoot> {
        let mut opened = std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner));
        let mut new = BTreeMap::new();
        for (name, source) in sources {
            if self.active.get(name).is_some_and(|active| active.source == *source) {
                continue;
            }
            let one = match opened.remove(name).filter(|opened| opened.source == *source) {
                Some(opened) => opened,
                None => self.open(name, source, self.current.borrow().get(name))?,
            };
            new.insert(name.clone(), one);
        }
        let gone: Vec<_> = self.active.keys().filter(|name| !sources.contains_key(*name)).cloned().collect();
        for name in gone.iter().chain(new.keys()) {
            if let Some(task) = self.active.remove(name).and_then(|active| active.task) {
                task.retired.store(true, Ordering::Release);
                task.handle.abort();
            }
            let _ = self.metrics.trust_root_expires.remove_label_values(&[name]);
        }
        self.current.send_modify(|current| {
            gone.iter().for_each(|name| drop(current.remove(name)));
            current.extend(new.iter().map(|(name, opened)| (name.clone(), opened.root.clone())));
        });
        // Those that were aborted are of no more use.
        while self.tasks.try_join_next().is_some() {}
        // Whoever adopts knows.
        self.seen.mark_unchanged();
        for (name, OpenedRoot { source, refresher, .. }) in new {
            let store = refresher.as_ref().map(TrustRootRefresher::store).unwrap_or_default();
            let task = refresher.map(|refresher| self.spawn(refresher));
            self.active.insert(name, ActiveRoot { source, store, task });
        }
        Ok(())
    }

    /// Waits until a root is another one than it was when somebody last waited or adopted.
    /// Cancel-safe.
    pub async fn changed(&mut self) {
        // Can't be closed: we hold the other end.
        let _ = self.seen.changed().await;
    }

    /// Waits until every root is there, `timeout` at most.
    pub async fn wait_until_fetched(&self, timeout: Duration) {
        let mut current = self.current.subscribe();
        let fetched = current.wait_for(|roots| roots.values().all(|root| !root.is_pending()));
        let _ = tokio::time::timeout(timeout, fetched).await;
    }

    fn open(&self, name: &str, source: &RootSource, known: Option<&TrustRoot>) -> Result<OpenedRoot, BadRoot> {
        let store = self.active.get(name).map(|active| active.store.clone()).unwrap_or_default();
        let refresher = TrustRootRefresher::resume(&store, name, source, self.folder.as_deref(), self.metrics.clone())?;
        let Some(mut refresher) = refresher else {
            return Ok(OpenedRoot { source: source.clone(), root: source.initial(name)?, refresher: None });
        };
        // Policies that hold the same root are as fresh as this one will be.
        if let Some(known) = known.filter(|known| known.revision() == refresher.root().revision())
            && known.expires().is_some()
            && refresher.root().expires().is_some()
        {
            refresher.share_freshness(known.freshness());
        }
        Ok(OpenedRoot { source: source.clone(), root: refresher.root().clone(), refresher: Some(refresher) })
    }

    fn spawn(&mut self, refresher: TrustRootRefresher) -> Task {
        refresher.record_expiry();
        let (current, retired) = (self.current.clone(), Arc::new(AtomicBool::new(false)));
        let published = retired.clone();
        let handle = self.tasks.spawn(refresher.run(move |root| {
            current.send_if_modified(|roots| match roots.get_mut(root.name()) {
                // Looked at while nobody else can change the map.
                Some(known) if !published.load(Ordering::Acquire) => {
                    *known = root.clone();
                    true
                }
                _ => false,
            });
        }));
        Task { retired, handle }
    }
}
