//! The fleet view of a replica.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{ClientTable, Millis, Options};

/// The fleet view of a replica: its options and its clients. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Its options.
    pub options: Arc<Options>,
    /// The clients.
    pub table: ClientTable,
    is_complete: Arc<AtomicBool>,
}

impl Fleet {
    /// An empty view; `None` if the options turn it off. `is_shared`: whether other replicas see its
    /// clients as well.
    pub fn new(options: Options, is_shared: bool) -> Option<Self> {
        let retention = Millis::try_from(options.retention.as_millis()).unwrap_or(Millis::MAX);
        options.is_enabled.then(|| Self {
            table: ClientTable::new(options.max_entries, retention, is_shared),
            options: Arc::new(options),
            is_complete: Arc::default(),
        })
    }

    /// Whether it has the clients of all replicas.
    pub fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Relaxed)
    }

    /// Sets whether it has the clients of all replicas.
    pub fn set_complete(&self, is_complete: bool) {
        self.is_complete.store(is_complete, Ordering::Relaxed);
    }
}
