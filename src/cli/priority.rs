//! The scheduling priority of background threads.

/// How much lower the priority of background threads is, in steps of nice(2). While clients keep
/// every core busy, background threads still get about a tenth of the time, so that no number of
/// requests prevents the withdrawal of a version.
#[cfg(target_os = "linux")]
const BACKGROUND_NICE: i32 = 10;

/// The priority of background threads, relative to that of the process at its start. On other
/// systems than Linux a priority belongs to the whole process, so it does nothing there.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackgroundPriority {
    #[cfg(target_os = "linux")]
    nice: i32,
}

#[cfg(target_os = "linux")]
impl BackgroundPriority {
    /// A priority below that of the calling thread.
    pub(super) fn new() -> Self {
        let own = rustix::process::getpriority_process(None).unwrap_or_default();
        Self {
            nice: own.saturating_add(BACKGROUND_NICE),
        }
    }

    /// Sets the priority of the calling thread. It takes no capability to lower it, and
    /// CAP_SYS_NICE to raise it again.
    pub(super) fn apply(self) {
        // The system limits the value to 19. A sandbox that forbids the call costs latency only.
        if let Err(error) = rustix::process::setpriority_process(None, self.nice) {
            tracing::debug!(%error, "setting the priority of a background thread");
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl BackgroundPriority {
    pub(super) fn new() -> Self {
        Self {}
    }

    pub(super) fn apply(self) {}
}
