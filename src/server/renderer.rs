//! Documents that are costly to make.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::{sync::Mutex, task::spawn_blocking};

/// A document that is made anew for whoever asks, but off the threads that serve bundles, by one
/// thread at a time, and once for all who asked before that began. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Report(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    begun: AtomicU64,
    last: Arc<Mutex<Made>>,
}

#[derive(Debug, Default)]
struct Made {
    number: u64,
    document: Option<Bytes>,
}

impl Report {
    /// The document as it is after this call. `None` when making it failed. Cancel-safe: what was
    /// begun is finished, and counts as the one at a time.
    pub(super) async fn get(&self, make: impl FnOnce() -> Option<Bytes> + Send + 'static) -> Option<Bytes> {
        let before = self.0.begun.load(Ordering::SeqCst);
        let mut last = Arc::clone(&self.0.last).lock_owned().await;
        if last.number > before {
            return last.document.clone();
        }
        let inner = Arc::clone(&self.0);
        let making = spawn_blocking(move || {
            last.number = inner.begun.fetch_add(1, Ordering::SeqCst) + 1;
            last.document = catch_unwind(AssertUnwindSafe(make)).ok().flatten();
            last.document.clone()
        });
        making.await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use futures_util::{FutureExt as _, future::join_all};

    use super::*;

    fn blocked(until: Receiver<()>, text: &'static str) -> impl FnOnce() -> Option<Bytes> + Send + 'static {
        move || {
            let _ = until.recv();
            Some(Bytes::from_static(text.as_bytes()))
        }
    }

    #[tokio::test]
    async fn however_many_ask_while_it_is_made_it_is_made_once_more() {
        let report = Report::default();
        let (go, until) = channel();
        let mut first = Box::pin(report.get(blocked(until, "one")));
        // Until it has begun.
        while report.0.begun.load(Ordering::SeqCst) == 0 {
            assert!(first.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        let late: Vec<_> = (0..100).map(|_| Box::pin(report.get(|| Some(Bytes::from_static(b"two"))))).collect();
        let mut late = Box::pin(join_all(late));
        assert!(late.as_mut().now_or_never().is_none());
        // Whoever goes away leaves it to be made, so that two are not made at one time.
        drop(first);
        assert!(late.as_mut().now_or_never().is_none());
        go.send(()).unwrap();
        assert!(late.await.iter().all(|document| document.as_deref() == Some(b"two")));
        assert_eq!(report.0.begun.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_document_that_can_t_be_made_is_none_and_made_the_next_time() {
        let report = Report::default();
        assert_eq!(report.get(|| None).await, None);
        assert_eq!(report.get(|| Some(Bytes::from_static(b"x"))).await.as_deref(), Some(&b"x"[..]));
    }
}
