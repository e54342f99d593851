//! Values that are replaced while the server runs.

use std::{fmt, sync::Arc};

use tokio::sync::watch;

/// A value that the owner of the configuration replaces while the server reads it. Clones share the
/// value.
pub struct Live<T>(Arc<watch::Sender<Arc<T>>>);

impl<T> Live<T> {
    /// Replaces the value. What was read before keeps the earlier one.
    pub fn replace(&self, value: T) {
        self.0.send_replace(Arc::new(value));
    }

    /// The current value. Waits only for a replacement under way, which is the store of a pointer.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }

    /// Reports replacements from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.0.subscribe()
    }
}

impl<T> From<T> for Live<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(value))))
    }
}

// Written by hand: a derived one would require `T: Clone`.
impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: fmt::Debug> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Live").field(&self.current()).finish()
    }
}
