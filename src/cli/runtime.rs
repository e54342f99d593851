//! The async runtimes of a subcommand, and its interruption.

use std::{io, num::NonZero, thread};

use anyhow::bail;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    },
};

use super::priority::BackgroundPriority;
use crate::opa_check;

/// Threads for file access and computation, in addition to two per core that verify and open
/// bundles. Each user of these threads has a limit of its own; this limit bounds their sum and
/// leaves threads to the others when a few disks hang.
const BLOCKING_THREADS: usize = 96;
/// Threads that read bodies from files and parse notifications for clients, each within
/// milliseconds.
const SERVING_BLOCKING_THREADS: usize = 64;

/// Runs the subcommand on a runtime of its own. Ends `opa` processes that are still running.
pub(super) fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = work_runtime().build()?;
    let done = runtime.block_on(work);
    shut_down(runtime);
    done
}

/// Runs a subcommand that serves clients on two runtimes, and passes it the one for connections.
/// Everything else runs on the other one, whose threads have a lower priority: a response does not
/// wait until a poll, a verification or the opening of a bundle leaves a core free.
pub(super) fn block_on_with_server<F>(work: impl FnOnce(Handle) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let (serving, background) = server_runtimes()?;
    let done = background.block_on(work(serving.handle().clone()));
    serving.shutdown_background();
    shut_down(background);
    done
}

/// The runtimes for connections and for everything else. Lowers the priority of the calling thread,
/// which blocks on the latter.
fn server_runtimes() -> io::Result<(Runtime, Runtime)> {
    let serving = Builder::new_multi_thread()
        .thread_name("serving")
        .max_blocking_threads(SERVING_BLOCKING_THREADS)
        .enable_all()
        .build()?;
    let priority = BackgroundPriority::new();
    // The threads of the server exist already, and keep their priority.
    priority.apply();
    let background = work_runtime()
        .thread_name("background")
        // A thread inherits the priority of the one that starts it, which may belong to the server.
        .on_thread_start(move || priority.apply())
        .build()?;
    Ok((serving, background))
}

fn work_runtime() -> Builder {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let mut builder = Builder::new_multi_thread();
    builder
        .max_blocking_threads(BLOCKING_THREADS + 2 * cores)
        .enable_all();
    builder
}

fn shut_down(runtime: Runtime) {
    // Dropping the runtime would wait for a hanging disk, or for a bundle being decompressed.
    runtime.shutdown_background();
    opa_check::kill_all();
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::getpriority_process;
    use tokio::task::spawn_blocking;

    use super::*;

    fn nice() -> Option<i32> {
        getpriority_process(None).ok()
    }

    #[test]
    fn everything_but_the_server_runs_at_a_lower_priority() {
        // The priority of the thread that runs the test must not change.
        let run = thread::spawn(|| {
            let own = nice();
            let (serving, background) = server_runtimes().unwrap();
            let lower = nice();
            assert!(lower > own || own == Some(19), "{lower:?}");
            let of_background = background.block_on(async {
                let worker = tokio::spawn(async { nice() }).await.unwrap();
                [worker, spawn_blocking(nice).await.unwrap()]
            });
            assert_eq!(of_background, [lower; 2]);
            let background = background.handle().clone();
            let of_server = serving.spawn(async move {
                // As `/metrics` is rendered.
                assert_eq!(background.spawn_blocking(nice).await.unwrap(), lower);
                [nice(), spawn_blocking(nice).await.unwrap()]
            });
            assert_eq!(serving.block_on(of_server).unwrap(), [own; 2]);
        });
        run.join().unwrap();
    }
}
