//! Rendering of expensive documents.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::{runtime::Handle, sync::Mutex};

/// Renders a document on another runtime, on one thread at a time, and once for all requests that
/// arrived before rendering began. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Renderer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: Handle,
    started: AtomicU64,
    last: Arc<Mutex<Rendered>>,
}

#[derive(Debug, Default)]
struct Rendered {
    number: u64,
    document: Option<Bytes>,
}

impl Renderer {
    /// A renderer on the blocking threads of `runtime`.
    pub(super) fn new(runtime: Handle) -> Self {
        Self(Arc::new(Inner {
            runtime,
            started: AtomicU64::new(0),
            last: Arc::default(),
        }))
    }

    /// The document in a state not older than this call; `None` when rendering failed. Cancel-safe:
    /// rendering that has begun is finished, and no other begins meanwhile.
    pub(super) async fn render(
        &self,
        render: impl FnOnce() -> Option<Bytes> + Send + 'static,
    ) -> Option<Bytes> {
        let before = self.0.started.load(Ordering::SeqCst);
        let mut last = Arc::clone(&self.0.last).lock_owned().await;
        if last.number > before {
            return last.document.clone();
        }
        let inner = Arc::clone(&self.0);
        let rendering = self.0.runtime.spawn_blocking(move || {
            last.number = inner.started.fetch_add(1, Ordering::SeqCst) + 1;
            last.document = catch_unwind(AssertUnwindSafe(render)).ok().flatten();
            last.document.clone()
        });
        rendering.await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use futures_util::{FutureExt as _, future::join_all};

    use super::*;

    fn blocked(
        until: Receiver<()>,
        text: &'static str,
    ) -> impl FnOnce() -> Option<Bytes> + Send + 'static {
        move || {
            let _ = until.recv();
            Some(Bytes::from_static(text.as_bytes()))
        }
    }

    #[tokio::test]
    async fn requests_during_a_rendering_share_the_next_one() {
        let report = Renderer::new(Handle::current());
        let (go, until) = channel();
        let mut first = Box::pin(report.render(blocked(until, "one")));
        // Until rendering has begun.
        while report.0.started.load(Ordering::SeqCst) == 0 {
            assert!(first.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        let late: Vec<_> = (0..100)
            .map(|_| Box::pin(report.render(|| Some(Bytes::from_static(b"two")))))
            .collect();
        let mut late = Box::pin(join_all(late));
        assert!(late.as_mut().now_or_never().is_none());
        // A request that is cancelled leaves its rendering running, so that no second one begins.
        drop(first);
        assert!(late.as_mut().now_or_never().is_none());
        go.send(()).unwrap();
        assert!(
            late.await
                .iter()
                .all(|document| document.as_deref() == Some(b"two"))
        );
        assert_eq!(report.0.started.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_failed_rendering_returns_none_and_the_next_request_renders_again() {
        let report = Renderer::new(Handle::current());
        assert_eq!(report.render(|| None).await, None);
        assert_eq!(
            report
                .render(|| Some(Bytes::from_static(b"x")))
                .await
                .as_deref(),
            Some(&b"x"[..])
        );
    }
}
