//! Whether the server runs, rather than merely exists.

use std::future::pending;

use tokio::sync::{mpsc, oneshot};

/// Asks the task of the server, which accepts the connections of both listeners. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Liveness(mpsc::Sender<oneshot::Sender<()>>);

/// The side of the server's task.
#[derive(Debug)]
pub(super) struct LivenessChecks(mpsc::Receiver<oneshot::Sender<()>>);

impl Liveness {
    pub(super) fn new() -> (Self, LivenessChecks) {
        let (checks, receiver) = mpsc::channel(1);
        (Self(checks), LivenessChecks(receiver))
    }

    /// Waits until the server's task has run on its runtime. Doesn't complete while all threads of
    /// that runtime are blocked, while the task is, or after it has ended. Cancel-safe.
    pub async fn check(&self) {
        let (ran, has_run) = oneshot::channel();
        let is_asked = self.0.send(ran).await.is_ok();
        if !is_asked || has_run.await.is_err() {
            pending().await
        }
    }
}

impl LivenessChecks {
    /// Answers checks until the future is dropped.
    pub(super) async fn answer(mut self) {
        while let Some(ran) = self.0.recv().await {
            // Who no longer waits needs no answer.
            let _ = ran.send(());
        }
        pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{join, select, time::timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_check_completes_only_while_the_task_runs() {
        let (liveness, checks) = Liveness::new();
        let late = Duration::from_secs(3600);
        assert!(timeout(late, liveness.check()).await.is_err());
        select! {
            () = checks.answer() => {}
            _ = async { join!(liveness.check(), liveness.check()) } => {}
        }
        assert!(timeout(late, liveness.check()).await.is_err());
    }
}
