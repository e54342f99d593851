//! How current this replica's plans are.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    sync::{Notify, watch},
    time::{Duration, Instant},
};

use super::{ActivePlan, EngineState, RolloutMetrics, Strategy};
use crate::publish::Handle;

/// The readings of the plans. Requests ask for one and wait for it; one task reads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PlanWatch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reads: watch::Sender<Reads>,
    wanted: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Reads {
    /// When the last reading began whose result is in force.
    began: Option<Instant>,
    engine: EngineState,
}

/// What the catalog has of a bundle that is rolled out in steps. Its entry's handle is that of the stable
/// version. Each plan makes another entry, so a request never sees a plan beside the versions of another one.
#[derive(Debug, Clone)]
pub struct Staged {
    /// The plan; `None` until one is known.
    pub plan: Option<Arc<ActivePlan>>,
    /// The candidate's watcher, while the plan has a candidate.
    pub candidate: Option<Handle>,
    /// How current the plan is.
    pub watch: PlanWatch,
    /// Whether this replica has halted the roll-out by itself.
    pub halt: LocalHalt,
    /// How the next version is rolled out; `None` if the configuration no longer says.
    pub strategy: Option<Arc<Strategy>>,
    /// Counts clients that are not moved; `None` while no task reads plans.
    pub metrics: Option<RolloutMetrics>,
}

/// Whether this replica has halted a roll-out by itself. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct LocalHalt(Arc<AtomicU64>);

impl Default for PlanWatch {
    /// Nothing was read yet.
    fn default() -> Self {
        let reads = Reads {
            began: None,
            engine: EngineState::Down,
        };
        Self(Arc::new(Inner {
            reads: watch::Sender::new(reads),
            wanted: Notify::new(),
        }))
    }
}

impl PlanWatch {
    /// Whether a reading is in force that began after this time.
    pub fn is_fresh(&self, since: Instant) -> bool {
        self.0
            .reads
            .borrow()
            .began
            .is_some_and(|began| began >= since)
    }

    /// The time since the last reading whose result is in force began; `None` if there was none.
    pub fn age(&self) -> Option<Duration> {
        self.0.reads.borrow().began.map(|began| began.elapsed())
    }

    /// Whether the plans can be read.
    pub fn engine(&self) -> EngineState {
        self.0.reads.borrow().engine
    }

    /// Asks for a reading and waits until one is in force that began after this call. Waits for as long as the
    /// engine fails, so the caller sets a deadline. Any number of callers share one reading. Cancel-safe.
    pub async fn confirm(&self) {
        let asked = Instant::now();
        let mut reads = self.0.reads.subscribe();
        self.0.wanted.notify_one();
        // It can't fail, because `self` has the sender.
        let _ = reads
            .wait_for(|reads| reads.began.is_some_and(|began| began >= asked))
            .await;
    }

    /// Waits until a reading is asked for. Cancel-safe; for one task.
    pub async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Records a reading whose results are in force.
    pub fn record_read(&self, began: Instant) {
        self.0.reads.send_modify(|reads| {
            *reads = Reads {
                began: Some(began),
                engine: EngineState::Up,
            }
        });
    }

    /// Records that a reading has failed.
    pub fn record_failure(&self, is_long: bool) {
        let engine = match is_long {
            true => EngineState::DownForLong,
            false => EngineState::Down,
        };
        self.0
            .reads
            .send_if_modified(|reads| std::mem::replace(&mut reads.engine, engine) != engine);
    }
}

impl Staged {
    /// Whether some clients get the candidate.
    pub fn is_live(&self) -> bool {
        self.plan
            .as_ref()
            .is_some_and(|plan| plan.candidate.is_some())
    }
}

impl LocalHalt {
    /// Halts the roll-out of this generation. Returns whether it was not halted before.
    pub fn set(&self, generation: u64) -> bool {
        self.0.swap(generation, Ordering::Relaxed) != generation
    }

    /// Whether the roll-out of this generation is halted.
    pub fn is_set(&self, generation: u64) -> bool {
        self.0.load(Ordering::Relaxed) == generation
    }
}
