//! Compressed time: a runtime whose clock stands still while anything runs, and jumps to the next
//! timer when nothing does.

use std::{
    panic,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{runtime::Builder, task::JoinSet, time::sleep};

/// The longest jump of the clock. Tokio's paused clock also jumps when a socket becomes ready, so
/// this is what a step over the network costs: a tenth of a second for a small request.
const TICK: Duration = Duration::from_millis(10);

static PANICS: AtomicUsize = AtomicUsize::new(0);
/// Part of the names of the threads of these tests.
const THREAD: &str = "soak";

/// Runs `test` on a clock of its own. All timeouts and intervals of the product have the values
/// that they have in production: what is compressed is the time in which nothing happens. The
/// clock does not advance while blocking tasks (disk, verification) run, nor while `before_idle`
/// does, which is called whenever the runtime has nothing to do.
pub(super) fn compressed<T>(
    before_idle: impl Fn() + Send + Sync + 'static,
    test: impl Future<Output = T>,
) -> T {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .thread_name(THREAD)
        .on_thread_park(before_idle)
        .build()
        .unwrap();
    let result = runtime.block_on(async {
        let mut ticking = JoinSet::new();
        ticking.spawn(async {
            loop {
                sleep(TICK).await;
            }
        });
        test.await
    });
    runtime.shutdown_background();
    result
}

/// The number of panics so far on the threads of these tests, caught or not.
pub(super) fn panics() -> usize {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current()
                .name()
                .is_some_and(|name| name.contains(THREAD))
            {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(info);
        }));
    });
    PANICS.load(Ordering::Relaxed)
}
