//! What is known of one bundle's roll-out.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::{Duration, Instant};

use crate::{
    fleet::Millis,
    oci::Digest,
    publish::{FailureClass, Handle, State},
    rollout::{
        ActivePlan, Event, LocalHalt, Newest, Phase, Plan, Progress, Staged, Tally, Version,
    },
    server::Entry,
    shared::PlanVersion,
    telemetry,
};

/// What is known of one bundle's roll-out.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The plan in force, or about to be.
    pub(super) plan: Option<Arc<ActivePlan>>,
    /// The plan in the store when it was last read.
    pub(super) version: Option<PlanVersion>,
    /// Why the plan in the store can't be read.
    pub(super) broken: Option<String>,
    pub(super) progress: Progress,
    pub(super) tally: Tally,
    /// The newest version of the plan that this replica has seen the reference name.
    seen: Option<Digest>,
    /// What the reference names, and since when under this plan.
    named: Option<(Digest, Timestamp)>,
    /// Why this replica has halted the roll-out of a generation by itself; the plan is changed by that as soon
    /// as the engine answers.
    pub(super) halt: Option<(u64, Event)>,
    /// The generation at which the reference was last checked because of the plan.
    pub(super) hinted: u64,
}

impl Known {
    pub(super) fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref().map(|active| &active.plan)
    }

    /// Records that the plan in the store can't be read; the one that is known stays.
    pub(super) fn set_broken(&mut self, bundle: &str, reason: &str) {
        if self.broken.as_deref() != Some(reason) {
            tracing::error!(bundle, "the plan of the roll-out is ignored: {reason}");
            self.broken = Some(reason.to_owned());
        }
    }

    /// Takes a plan.
    pub(super) fn set_plan(&mut self, plan: Arc<ActivePlan>) {
        let is_other = self
            .plan()
            .is_none_or(|known| known.newest().manifest != plan.plan.newest().manifest);
        if is_other {
            // Versions are named anew under this plan.
            self.named = None;
        }
        if self
            .plan()
            .is_none_or(|known| known.generation != plan.plan.generation)
        {
            self.tally = Tally::default();
        }
        self.plan = Some(plan);
        self.version = None;
    }

    /// What the reference names, for a proposal; `None` if nothing of it is verified.
    pub(super) fn newest(&mut self, entry: &Entry) -> Option<Newest> {
        let version = version_of(entry.newest())?;
        let now = telemetry::now();
        let newest_of_plan = self.plan().map(|plan| plan.newest().manifest.clone());
        if newest_of_plan.as_ref() == Some(&version.manifest) {
            self.seen = newest_of_plan.clone();
        }
        match &self.named {
            Some((named, _)) if *named == version.manifest => {}
            _ => self.named = Some((version.manifest.clone(), now)),
        }
        let since = self.named.as_ref().map_or(now, |(_, since)| *since);
        let is_newest = newest_of_plan.as_ref() == Some(&version.manifest);
        Some(Newest {
            version,
            has_seen_newest: self.seen.is_some() && self.seen == newest_of_plan,
            // It matters only for another version.
            steady: match is_newest {
                true => Duration::ZERO,
                false => confirmed_for(entry.newest(), since),
            },
        })
    }

    /// What follows from the trust in the versions, and from the bundle being withdrawn.
    pub(super) fn trust_event(&self, entry: &Entry, staged: &Staged) -> Option<Event> {
        let plan = self.plan().filter(|plan| plan.phase.is_live())?;
        if let Some(reason) = staged.candidate.as_ref().and_then(distrust) {
            return Some(Event::CandidateDistrusted(reason));
        }
        let newest = entry.newest();
        if entry.handle().is_of_same_watcher(newest) {
            let is_paused = plan.phase == Phase::Paused;
            let withdrawal = newest.withdrawal().filter(|_| !is_paused)?;
            return Some(Event::Withdrawn(withdrawal.reason.to_string()));
        }
        distrust(entry.handle()).map(Event::StableLost)
    }

    /// Halts the roll-out on this replica. Returns whether it was not halted before.
    pub(super) fn halt(&mut self, halt: &LocalHalt, event: Event) -> bool {
        let Some(generation) = self.plan().map(|plan| plan.generation) else {
            return false;
        };
        let is_new = halt.set(generation);
        if is_new {
            self.halt = Some((generation, event));
        }
        is_new
    }

    /// Why this replica has halted the roll-out, while the plan does not say so.
    pub(super) fn halt_event(&self) -> Option<Event> {
        let plan = self.plan().filter(|plan| plan.phase.is_live())?;
        let (generation, event) = self.halt.as_ref()?;
        (*generation == plan.generation).then(|| event.clone())
    }

    /// Continues a halt of the same candidate, after the plan was restored.
    pub(super) fn continue_halt(&mut self, before: &Plan, halt: &LocalHalt) {
        let Some((generation, candidate)) = self
            .plan()
            .map(|plan| (plan.generation, plan.candidate.clone()))
        else {
            return;
        };
        if generation != before.generation
            && candidate == before.candidate
            && before.phase.is_live()
            && halt.is_set(before.generation)
            && let Some((of, _)) = &mut self.halt
        {
            *of = generation;
            halt.set(generation);
        }
    }

    /// Whether this replica has halted the roll-out by itself.
    pub(super) fn is_halted(&self, halt: &LocalHalt) -> bool {
        self.plan()
            .is_some_and(|plan| plan.phase.is_live() && halt.is_set(plan.generation))
    }
}

/// The version that a watcher serves.
pub(super) fn version_of(handle: &Handle) -> Option<Version> {
    let state = handle.subscribe();
    let state = state.borrow();
    let snapshot = state.snapshot()?;
    let revision = snapshot.bundle().revision().as_str();
    Some(Version::new(
        snapshot.manifest_digest().clone(),
        snapshot.etag(),
        revision,
    ))
}

/// For how long the registry has named what it names now: from a time to its last answer.
fn confirmed_for(handle: &Handle, since: Timestamp) -> Duration {
    let status = handle.status();
    let last_check = status.last_check.filter(|_| status.last_failure.is_none());
    let confirmed = last_check.map(|last| last.duration_since(since));
    let confirmed = confirmed.and_then(|confirmed| Duration::try_from(confirmed).ok());
    confirmed.unwrap_or_default()
}

/// Why a version is no longer trusted. One that could not be fetched or verified yet is no such version.
fn distrust(handle: &Handle) -> Option<String> {
    let state = handle.subscribe();
    let State::Withdrawn(withdrawal) = &*state.borrow() else {
        return None;
    };
    let is_distrusted = matches!(
        handle.failure_class(),
        Some(FailureClass::Revoked | FailureClass::Distrusted)
    );
    is_distrusted.then(|| withdrawal.reason.to_string())
}

/// When something began, by the clock of this replica. `offset`: how far the clock of the engine is ahead, in
/// milliseconds.
pub(super) fn own_time(engine: Millis, offset: i64) -> Millis {
    engine.saturating_add_signed(offset.saturating_neg())
}

/// Whether all have failed for this long.
pub(super) fn is_longer(since: Option<Instant>, limit: Duration) -> bool {
    since.is_some_and(|since| since.elapsed() >= limit)
}
