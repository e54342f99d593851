//! Whether the cache folder is in use, for operators.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::sync::watch;

/// The last problem of the cache folder, and its metric. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Health {
    problem: watch::Sender<Option<Arc<str>>>,
    unavailable: IntGauge,
}

impl Health {
    pub(super) fn new(unavailable: IntGauge) -> Self {
        Self {
            problem: watch::Sender::new(None),
            unavailable,
        }
    }

    /// Records a problem, or with `None` that the folder is in use.
    pub(super) fn set(&self, problem: Option<String>) {
        self.unavailable.set(problem.is_some().into());
        self.problem.send_replace(problem.map(Into::into));
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.problem.subscribe()
    }
}
