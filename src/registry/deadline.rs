//! The deadline of one operation, which stands still while a request waits for its turn.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::Notify,
    time::{Duration, Instant, sleep_until},
};

tokio::task_local! {
    /// The deadlines of the operations that the current request is part of.
    static RUNNING: Vec<Deadline>;
}

/// The end of an operation. It moves by the time for which requests of the operation wait for the
/// limits of their host ([`Pause`]): a long queue makes operations slow, and none of them fail.
/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Deadline {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    resumed: Notify,
}

#[derive(Debug)]
struct State {
    end: Instant,
    /// The requests of this operation that wait now.
    waiting: usize,
    /// The beginning of the first of these waits.
    since: Instant,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        let now = Instant::now();
        let state = State {
            end: now + limit,
            waiting: 0,
            since: now,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                resumed: Notify::new(),
            }),
        }
    }

    /// Runs a part of the operation; `None` when the deadline passes first.
    pub(super) async fn limit<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut running = RUNNING.try_with(Clone::clone).unwrap_or_default();
        running.push(self.clone());
        // On the heap: each layer of an operation adds to the size of the futures around it.
        let mut work = Box::pin(RUNNING.scope(running, work));
        tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = self.passed() => None,
        }
    }

    async fn passed(&self) {
        loop {
            let mut resumed = pin!(self.shared.resumed.notified());
            resumed.as_mut().enable();
            match self.shared.end() {
                None => resumed.await,
                Some(end) if end <= Instant::now() => return,
                Some(end) => sleep_until(end).await,
            }
        }
    }
}

impl Shared {
    /// `None` while a request waits.
    fn end(&self) -> Option<Instant> {
        let state = self.lock();
        (state.waiting == 0).then_some(state.end)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the deadlines of the operations that the current task runs, until it is dropped.
#[derive(Debug)]
pub(super) struct Pause {
    deadlines: Vec<Deadline>,
}

impl Pause {
    pub(super) fn start() -> Self {
        let deadlines = RUNNING.try_with(Clone::clone).unwrap_or_default();
        for deadline in &deadlines {
            let mut state = deadline.shared.lock();
            if state.waiting == 0 {
                state.since = Instant::now();
            }
            state.waiting += 1;
        }
        Self { deadlines }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        for deadline in &self.deadlines {
            let mut state = deadline.shared.lock();
            state.waiting -= 1;
            if state.waiting == 0 {
                let waited = state.since.elapsed();
                state.end += waited;
                drop(state);
                deadline.shared.resumed.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_turn_does_not_count() {
        let deadline = Deadline::after(10 * SECOND);
        let began = Instant::now();
        let work = async {
            sleep(4 * SECOND).await;
            let pause = Pause::start();
            sleep(3600 * SECOND).await;
            drop(pause);
            sleep(5 * SECOND).await;
        };
        assert!(deadline.limit(work).await.is_some());
        // One of the ten seconds is left.
        assert!(deadline.limit(sleep(2 * SECOND)).await.is_none());
        assert_eq!(began.elapsed(), 3610 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn parts_that_wait_at_a_time_count_once_and_stop_every_operation_around_them() {
        let (outer, inner) = (Deadline::after(10 * SECOND), Deadline::after(20 * SECOND));
        let began = Instant::now();
        let wait = |seconds| async move {
            let _pause = Pause::start();
            sleep(seconds * SECOND).await;
        };
        let work = inner.limit(async {
            tokio::join!(wait(100), wait(150));
        });
        assert!(outer.limit(work).await.flatten().is_some());
        assert!(outer.limit(sleep(60 * SECOND)).await.is_none());
        assert_eq!(began.elapsed(), 160 * SECOND);
        assert!(inner.limit(sleep(60 * SECOND)).await.is_none());
        assert_eq!(began.elapsed(), 170 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_is_over() {
        let deadline = Deadline::after(10 * SECOND);
        let began = Instant::now();
        let given_up = async {
            let _pause = Pause::start();
            sleep(3600 * SECOND).await;
        };
        let work = async {
            let _ = tokio::time::timeout(5 * SECOND, given_up).await;
            std::future::pending::<()>().await;
        };
        assert!(deadline.limit(work).await.is_none());
        assert_eq!(began.elapsed(), 15 * SECOND);
    }
}
