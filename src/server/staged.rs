//! Requests for a bundle whose versions are rolled out in steps: which of the two versions a client gets, by
//! [`rollout`](crate::rollout).

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Entry,
    if_none_match::{IfNoneMatch, MAX_TAG_BYTES},
    reply::Reply,
    response,
};
use crate::{
    fleet::{ClientBundle, Fleet, Sending, TagHash},
    publish::{FailureClass, Handle, Seen, Snapshot, State},
    rollout::{
        ActivePlan, Availability, Decision, EngineState, Held, Member, OnStableLost, Situation,
        Staged, Variant,
    },
    telemetry::{self, now_millis},
};

/// Delay before a client is moved because this replica has withdrawn the version that it runs. Where another
/// replica has decided otherwise, a client that reaches both must not alternate thousands of times a second.
const REPLACE_DELAY: Duration = Duration::from_millis(500);

/// The versions that are served now.
#[derive(Debug)]
pub(super) struct Versions {
    stable: Option<Arc<Snapshot>>,
    candidate: Option<Arc<Snapshot>>,
}

/// A request, as far as the choice of a version depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// When it arrived; `None` for one that is answered only if that needs no waiting.
    pub(super) began: Option<Instant>,
    pub(super) if_none_match: IfNoneMatch<'a>,
    /// The client in the fleet view, and whether it counts: a request that is not recorded, such as one with
    /// HEAD, has none.
    pub(super) client: Option<(&'a Fleet, &'a ClientBundle)>,
}

/// What a client gets.
#[derive(Debug)]
pub(super) enum Choice {
    /// This version: 304 if the client runs it, else 200.
    Version {
        snapshot: Arc<Snapshot>,
        variant: Variant,
        is_current: bool,
    },
    /// The plan has to be read first.
    Confirm,
    /// Its version is replaced at this time.
    Delay(Instant),
    /// It keeps what it runs, for this reason: 304 with its own tag.
    Keep(Held),
    /// There is nothing to serve; the state of the stable version says why.
    Absent,
}

impl Versions {
    /// Those that the watchers serve now.
    pub(super) fn of(entry: &Entry, staged: &Staged) -> Self {
        let served = |handle: &Handle| handle.served_at(telemetry::now);
        Self {
            stable: served(entry.handle()),
            candidate: staged.candidate.as_ref().and_then(served),
        }
    }

    /// Those of states that were seen.
    pub(super) fn seen(seen: &Seen, now: Timestamp) -> Self {
        let served = |state: &State| {
            let snapshot = state.snapshot()?;
            snapshot.is_valid_at(now).then(|| Arc::clone(snapshot))
        };
        Self {
            stable: served(seen.own()),
            candidate: seen.candidate().and_then(served),
        }
    }

    fn get(&self, variant: Variant) -> Option<&Arc<Snapshot>> {
        match variant {
            Variant::Stable => self.stable.as_ref(),
            Variant::Candidate => self.candidate.as_ref(),
        }
    }

    /// The one that a client runs.
    fn running(&self, if_none_match: IfNoneMatch<'_>) -> Option<(&Arc<Snapshot>, Variant)> {
        [Variant::Stable, Variant::Candidate]
            .into_iter()
            .filter_map(|variant| Some((self.get(variant)?, variant)))
            .find(|(snapshot, _)| if_none_match.is_current(snapshot.etag()))
    }

    /// The tag of what a client runs.
    fn runs(&self, if_none_match: IfNoneMatch<'_>) -> Option<TagHash> {
        match self.running(if_none_match) {
            Some((snapshot, _)) => Some(snapshot.tag_hash()),
            None => if_none_match.first().map(TagHash::of),
        }
    }

    /// What a client gets.
    pub(super) fn choose(&self, entry: &Entry, staged: &Staged, asked: &Asked<'_>) -> Choice {
        let runs = self.runs(asked.if_none_match);
        let decision = match &staged.plan {
            Some(plan) => plan.decide(&self.situation(entry, staged, plan, asked, runs)),
            None => self.decide_without_plan(entry, runs),
        };
        match decision {
            Decision::Serve(variant) => self.version(variant, runs, asked),
            Decision::Replace(variant) => {
                let at = asked.began.unwrap_or_else(Instant::now) + REPLACE_DELAY;
                match (Instant::now() < at, self.get(variant)) {
                    (true, _) => Choice::Delay(at),
                    // However often the client was moved: a revocation waits for no roll-out.
                    (false, Some(snapshot)) => Choice::Version {
                        snapshot: Arc::clone(snapshot),
                        variant,
                        is_current: false,
                    },
                    (false, None) => Choice::Absent,
                }
            }
            Decision::Confirm(_) => Choice::Confirm,
            Decision::Keep => Choice::Keep(match staged.watch.engine() {
                EngineState::Up => Held::Digest,
                EngineState::Down | EngineState::DownForLong => Held::Engine,
            }),
            Decision::Absent => Choice::Absent,
        }
    }

    /// Before a plan is known, a client that runs nothing gets what the reference names, and no other client
    /// is moved.
    fn decide_without_plan(&self, entry: &Entry, runs: Option<TagHash>) -> Decision {
        let served = self.stable.as_ref().map(|snapshot| snapshot.tag_hash());
        match (served, runs) {
            (None, Some(_)) if entry.handle().withdrawal().is_some() => Decision::Absent,
            (Some(_), None) => Decision::Serve(Variant::Stable),
            (Some(served), Some(runs)) if served == runs => Decision::Serve(Variant::Stable),
            (None, None) => Decision::Absent,
            (_, Some(_)) => Decision::Keep,
        }
    }

    fn situation(
        &self,
        entry: &Entry,
        staged: &Staged,
        plan: &ActivePlan,
        asked: &Asked<'_>,
        runs: Option<TagHash>,
    ) -> Situation {
        let candidate = match &staged.candidate {
            Some(handle) => availability(handle, self.candidate.is_some()),
            None => Availability::Pending,
        };
        // Without a handle of its own, the bundle is withdrawn as a whole.
        let is_withdrawn = entry.handle().is_of_same_watcher(entry.newest())
            && entry.handle().withdrawal().is_some();
        // Neither is asked unless the answer can matter.
        let is_live = plan.candidate.is_some();
        Situation {
            stable: match is_withdrawn {
                true => Availability::Withdrawn,
                false => availability(entry.handle(), self.stable.is_some()),
            },
            candidate,
            runs,
            is_in_step: is_live && is_in_step(plan, asked.client),
            is_halted: is_live && staged.halt.is_set(plan.plan.generation),
            is_fresh: asked
                .began
                .is_some_and(|began| staged.watch.is_fresh(began)),
            // Without it, a request that has to wait only begins to wait.
            engine: asked
                .began
                .map_or(EngineState::Up, |_| staged.watch.engine()),
        }
    }

    /// A version, unless the client was sent too many.
    fn version(&self, variant: Variant, runs: Option<TagHash>, asked: &Asked<'_>) -> Choice {
        let Some(snapshot) = self.get(variant) else {
            return Choice::Absent;
        };
        let is_current = runs == Some(snapshot.tag_hash());
        if !is_current && !is_allowed(snapshot, variant, runs, asked) {
            return match (runs, &self.stable) {
                // A client that can't activate the candidate needs a policy.
                (None, Some(stable)) if variant == Variant::Candidate => Choice::Version {
                    snapshot: Arc::clone(stable),
                    variant: Variant::Stable,
                    is_current: false,
                },
                (None, _) => Choice::Absent,
                (Some(_), _) => Choice::Keep(Held::BackOff),
            };
        }
        Choice::Version {
            snapshot: Arc::clone(snapshot),
            variant,
            is_current,
        }
    }

    /// 304 for a client that keeps what it runs.
    pub(super) fn keep(
        &self,
        entry: &Entry,
        staged: &Staged,
        if_none_match: IfNoneMatch<'_>,
        why: Held,
    ) -> Reply {
        if let Some(metrics) = &staged.metrics {
            metrics.count_held(entry.name(), why);
        }
        if let Some((snapshot, variant)) = self.running(if_none_match) {
            return Reply::not_modified(Arc::clone(snapshot)).with_variant(variant);
        }
        let tag = if_none_match
            .first()
            .filter(|tag| tag.len() <= MAX_TAG_BYTES);
        response::not_modified_tag(tag).into()
    }
}

/// What a client gets by the plan, if that version is served and the client runs it or none: then it makes no
/// difference how current the plan is, nor what this replica has of the other version.
pub(super) fn choose_served(entry: &Entry, staged: &Staged, asked: &Asked<'_>) -> Option<Choice> {
    let active = staged.plan.as_ref()?;
    let (plan, candidate) = (&active.plan, active.plan.live_candidate()?);
    let runs = match asked.if_none_match.first() {
        None => None,
        Some(tag) if tag == plan.stable.etag => Some(Variant::Stable),
        Some(tag) if tag == candidate.etag => Some(Variant::Candidate),
        Some(_) => return None,
    };
    let gets_candidate = !staged.halt.is_set(plan.generation)
        && (runs == Some(Variant::Candidate) || is_in_step(active, asked.client));
    let (variant, handle) = match gets_candidate {
        true => (Variant::Candidate, staged.candidate.as_ref()?),
        false => (Variant::Stable, entry.handle()),
    };
    let is_withdrawn_with_stable = plan.strategy.on_stable_lost == OnStableLost::Withdraw;
    if runs.is_some_and(|runs| runs != variant) || (gets_candidate && is_withdrawn_with_stable) {
        return None;
    }
    let snapshot = handle.served_at(telemetry::now)?;
    let is_current = runs.is_some();
    if !is_current && !is_allowed(&snapshot, variant, None, asked) {
        return None;
    }
    Some(Choice::Version {
        snapshot,
        variant,
        is_current,
    })
}

/// Whether a version may be sent to a client now.
fn is_allowed(
    snapshot: &Snapshot,
    variant: Variant,
    runs: Option<TagHash>,
    asked: &Asked<'_>,
) -> bool {
    let sending = Sending {
        version: snapshot.tag_hash(),
        is_candidate: variant == Variant::Candidate,
        is_move: runs.is_some(),
    };
    asked
        .client
        .is_none_or(|(_, client)| client.may_be_sent(sending, now_millis()))
}

/// Whether a client is in the current step.
fn is_in_step(plan: &ActivePlan, client: Option<(&Fleet, &ClientBundle)>) -> bool {
    if plan.cohort.has_all() {
        return true;
    }
    let Some((fleet, client)) = client else {
        return false;
    };
    client.is_member(plan.cohort.number(), now_millis, |is_shared| {
        let key = client.client();
        let details = fleet.table.get(key).map(|client| client.details());
        let details = details.as_ref();
        plan.cohort.contains(&Member {
            key,
            credential: details.and_then(|details| details.credential.as_deref()),
            name: details.and_then(|details| details.name.as_deref()),
            is_shared,
        })
    })
}

/// What this replica has of a version. One that the registry does not have, or that could not be fetched yet, is
/// not withdrawn: another replica may serve it.
fn availability(handle: &Handle, is_served: bool) -> Availability {
    if is_served {
        return Availability::Served;
    }
    let is_withdrawn = handle.withdrawal().is_some();
    let is_missing = || matches!(handle.failure_class(), Some(FailureClass::NotFound));
    match is_withdrawn && !is_missing() {
        true => Availability::Withdrawn,
        false => Availability::Pending,
    }
}

impl Choice {
    /// Why the client is not moved, if it is not.
    pub(super) fn held(&self) -> Option<Held> {
        match self {
            Self::Keep(why) => Some(*why),
            Self::Confirm => Some(Held::Engine),
            Self::Delay(_) | Self::Version { .. } | Self::Absent => None,
        }
    }
}
