//! The signals that end the process.

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// SIGTERM and SIGINT. Installed before the listeners bind, so that no early signal is lost.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// When the system refuses them.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Two futures: the first completes at the first signal, when the gateway drains, the second
    /// at the second signal, when it exits at once. The second has to be polled for either.
    pub fn drain_and_exit(mut self) -> (impl Future<Output = ()>, impl Future<Output = ()>) {
        let (begin, begun) = oneshot::channel::<()>();
        let drain = async move {
            // Only dropping the other future closes the channel, and that ends the process anyway.
            let _ = begun.await;
        };
        let exit = async move {
            self.next().await;
            tracing::info!("draining; a second signal exits at once");
            let _ = begin.send(());
            self.next().await;
            tracing::warn!("exiting without draining");
        };
        (drain, exit)
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
    }
}
