//! The async runtime of a subcommand, and its interruption.

use anyhow::bail;
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};

use crate::opa_check;

/// Threads for file access and computation, in addition to two per core that verify and open
/// bundles. Each user of these threads has a limit of its own; this limit bounds their sum and
/// leaves threads to the others when a few disks hang.
const BLOCKING_THREADS: usize = 96;

/// Runs the subcommand on a runtime of its own. Ends `opa` processes that are still running.
pub(super) fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS + 2 * cores)
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    // Dropping the runtime would wait for a hanging disk, or for a bundle being decompressed.
    runtime.shutdown_background();
    opa_check::kill_all();
    done
}

/// Lets Ctrl-C and SIGTERM cancel `work`, which must leave nothing behind when it is cancelled.
/// Code after it is not interrupted.
pub(super) async fn interruptible<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => Ok(done),
        _ = ctrl_c() => bail!("interrupted; nothing was changed"),
        _ = terminate.recv() => bail!("interrupted; nothing was changed"),
    }
}
