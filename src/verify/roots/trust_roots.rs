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

use super::{BadRoot, RootKeeper, RootSource, TrustRoot, tuf_store::Shelf};
use crate::metrics::Metrics;

/// The roots that are relied on, each kept fresh by a task that ends with this.
#[derive(Debug)]
pub struct LiveRoots {
    folder: Option<PathBuf>,
    metrics: Metrics,
    current: watch::Sender<BTreeMap<String, TrustRoot>>,
    seen: watch::Receiver<BTreeMap<String, TrustRoot>>,
    adopted: BTreeMap<String, Adopted>,
    /// Opened for a configuration that may yet be refused.
    opened: Mutex<BTreeMap<String, Opened>>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Adopted {
    source: RootSource,
    /// What its keeper holds, for the one that follows it.
    held: Shelf,
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
struct Opened {
    source: RootSource,
    root: TrustRoot,
    keeper: Option<RootKeeper>,
}

impl LiveRoots {
    /// None yet. `folder` is where the last good ones are kept.
    pub fn new(folder: Option<PathBuf>, metrics: Metrics) -> Self {
        let (current, seen) = watch::channel(BTreeMap::new());
        Self {
            folder,
            metrics,
            current,
            seen,
            adopted: BTreeMap::new(),
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
        if let (Some(adopted), Some(root)) = (self.adopted.get(name), &known)
            && adopted.source == *source
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
    pub fn adopt(&mut self, sources: &BTreeMap<String, RootSource>) -> Result<(), BadRoot> {
        let mut opened = std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner));
        let mut new = BTreeMap::new();
        for (name, source) in sources {
            if self.adopted.get(name).is_some_and(|adopted| adopted.source == *source) {
                continue;
            }
            let one = match opened.remove(name).filter(|opened| opened.source == *source) {
                Some(opened) => opened,
                None => self.open(name, source, self.current.borrow().get(name))?,
            };
            new.insert(name.clone(), one);
        }
        let gone: Vec<_> = self.adopted.keys().filter(|name| !sources.contains_key(*name)).cloned().collect();
        for name in gone.iter().chain(new.keys()) {
            if let Some(task) = self.adopted.remove(name).and_then(|adopted| adopted.task) {
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
        for (name, Opened { source, keeper, .. }) in new {
            let held = keeper.as_ref().map(RootKeeper::held).unwrap_or_default();
            let task = keeper.map(|keeper| self.keep(keeper));
            self.adopted.insert(name, Adopted { source, held, task });
        }
        Ok(())
    }

    /// Waits until a root is another one than it was when somebody last waited or adopted.
    /// Cancel-safe.
    pub async fn changed(&mut self) {
        // Can't be closed: we hold the other end.
        let _ = self.seen.changed().await;
    }

    /// Waits until every root is there, `patience` at most.
    pub async fn settled(&self, patience: Duration) {
        let mut current = self.current.subscribe();
        let settled = current.wait_for(|roots| roots.values().all(|root| !root.is_pending()));
        let _ = tokio::time::timeout(patience, settled).await;
    }

    fn open(&self, name: &str, source: &RootSource, known: Option<&TrustRoot>) -> Result<Opened, BadRoot> {
        let held = self.adopted.get(name).map(|adopted| adopted.held.clone()).unwrap_or_default();
        let keeper = RootKeeper::succeed(&held, name, source, self.folder.as_deref(), self.metrics.clone())?;
        let Some(mut keeper) = keeper else {
            return Ok(Opened { source: source.clone(), root: source.initial(name)?, keeper: None });
        };
        // Policies that hold the same root are as fresh as this one will be.
        if let Some(known) = known.filter(|known| known.revision() == keeper.root().revision())
            && known.expires().is_some()
            && keeper.root().expires().is_some()
        {
            keeper.share(known.freshness());
        }
        Ok(Opened { source: source.clone(), root: keeper.root().clone(), keeper: Some(keeper) })
    }

    fn keep(&mut self, keeper: RootKeeper) -> Task {
        keeper.note_expiry();
        let (current, retired) = (self.current.clone(), Arc::new(AtomicBool::new(false)));
        let published = retired.clone();
        let handle = self.tasks.spawn(keeper.run(move |root| {
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
