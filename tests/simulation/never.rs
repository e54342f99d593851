//! What must never happen, whatever fails: the list "Never" of the design, checked at each step.

use std::collections::{BTreeMap, HashMap};

use bundlegate::rollout::{Availability, Event, OnStableLost, Phase, Plan, Variant};

use crate::{
    engine::Mode,
    replica::{Request, VersionId},
    requests::{Cause, REVOKED_WITHIN},
    time::{MILLI, MINUTE, Micros, SECOND, seconds},
    world::{Client, World},
};

/// Moves of one client within a minute by one replica.
const MAX_MOVES: usize = 4;
/// Moves of one client to the same version within a minute by one replica.
const MAX_RETURNS: usize = 2;
/// A minute, by a clock of milliseconds.
const WINDOW: Micros = MINUTE - MILLI;
/// Offers of one candidate by one replica before they become rare.
const QUICK_OFFERS: u32 = 2;
/// The leader counts at most this time for an outage.
const MAX_GAP: Micros = 10 * SECOND;

/// What was done, as far as the rules depend on it.
#[derive(Debug)]
pub(crate) struct Never {
    /// What has happened that must not.
    pub(crate) violations: Vec<String>,
    /// By replica and identity, since the replica has started.
    sent: Vec<HashMap<u32, History>>,
    /// By replica: versions that a plan refuses, and the epoch of the plan.
    refused: Vec<BTreeMap<VersionId, u64>>,
    /// When the refusal of a version ended by an operator: the epochs.
    retried: BTreeMap<VersionId, u64>,
    observed: Observed,
}

/// For how long the current step could be observed.
#[derive(Debug, Default)]
struct Observed {
    /// The generation and the step.
    step: (u64, usize),
    time: Micros,
    since: Micros,
    is_away: bool,
    is_progressing: bool,
    /// Outages of the engine since the step began.
    outages: u64,
}

#[derive(Debug, Default)]
struct History {
    moves: Vec<(Micros, VersionId)>,
    candidate: Option<VersionId>,
    offers: u32,
    last_offer: Micros,
}

/// A version that is sent.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) replica: usize,
    pub(crate) request: Request,
    pub(crate) version: VersionId,
    pub(crate) cause: Cause,
    pub(crate) is_offer: bool,
}

impl Never {
    pub(crate) fn new(replicas: usize) -> Self {
        Self {
            violations: Vec::new(),
            sent: (0..replicas).map(|_| HashMap::new()).collect(),
            refused: vec![BTreeMap::new(); replicas],
            retried: BTreeMap::new(),
            observed: Observed::default(),
        }
    }

    /// What a replica remembers is lost.
    pub(crate) fn restarted(&mut self, replica: usize, loses_disk: bool) {
        self.sent[replica].clear();
        if loses_disk {
            self.refused[replica].clear();
        }
    }

    fn violate(&mut self, now: Micros, text: impl FnOnce() -> String) {
        if self.violations.len() < 20 {
            self.violations
                .push(format!("{:.3} {}", seconds(now), text()));
        }
    }
}

impl Observed {
    /// Something begins or ends at this time.
    fn settle(&mut self, now: Micros) {
        let counts = !self.is_away && self.is_progressing;
        self.time += if counts { now - self.since } else { 0 };
        self.since = now;
    }
}

impl World {
    pub(crate) fn engine_changed(&mut self) {
        let is_away = matches!(self.engine.mode, Mode::Killed | Mode::Stopped);
        let observed = &mut self.never.observed;
        observed.settle(self.now);
        observed.outages += u64::from(is_away && !observed.is_away);
        observed.is_away = is_away;
    }

    pub(crate) fn check_sent(&mut self, sent: &Sent) {
        let one = &self.replicas[sent.replica];
        if one.is_unaware {
            return;
        }
        let (now, request, version) = (self.now, sent.request, sent.version);
        if one.revoked.contains_key(&version) {
            self.never
                .violate(now, || format!("a revoked version is sent: {sent:?}"));
        }
        self.check_fresh(sent);
        if sent.is_offer {
            self.check_refused(sent);
        }
        if !matches!(sent.cause, Cause::Plan(_)) {
            return;
        }
        let history = self.never.sent[sent.replica]
            .entry(request.identity)
            .or_default();
        if request.runs.is_some() {
            history.moves.retain(|(at, _)| at + WINDOW > now);
            history.moves.push((now, version));
        }
        let mut broken =
            (history.moves.len() > MAX_MOVES).then_some("more than four moves a minute");
        let returns = history.moves.iter().filter(|(_, to)| *to == version);
        if returns.count() > MAX_RETURNS {
            broken = Some("more than two moves to the same version a minute");
        }
        if sent.is_offer {
            if history.candidate.replace(version) != Some(version) {
                (history.offers, history.last_offer) = (0, 0);
            }
            let is_rare = history.offers < QUICK_OFFERS || history.last_offer + WINDOW <= now;
            if !is_rare {
                broken = Some("more than two quick offers");
            }
            history.offers += 1;
            history.last_offer = now;
        }
        if let Some(broken) = broken {
            self.never.violate(now, || format!("{broken}: {sent:?}"));
        }
    }

    /// No move forward without a plan that was read after the request.
    fn check_fresh(&mut self, sent: &Sent) {
        let one = &self.replicas[sent.replica];
        if one.plan.is_none() || sent.request.runs.is_none() {
            return;
        }
        let is_fresh = one.read.is_some_and(|began| began >= sent.request.at);
        if sent.cause != Cause::Plan(Variant::Candidate) || is_fresh {
            return;
        }
        self.never.violate(self.now, || {
            format!("moved forward by a stale plan: {sent:?}")
        });
    }

    /// No refused version is offered again unless an operator says so.
    fn check_refused(&mut self, sent: &Sent) {
        let refused = self.never.refused[sent.replica].get(&sent.version).copied();
        let retried = self.never.retried.get(&sent.version).copied();
        if refused.is_some() && retried <= refused {
            let text = || format!("refused in epoch {refused:?}, offered again: {sent:?}");
            self.never.violate(self.now, text);
        }
    }

    /// No revocation waits: a request that runs a revoked version gets another one, if there is one.
    pub(crate) fn check_unchanged(&mut self, replica: usize, request: &Request) {
        let one = &self.replicas[replica];
        let Some(since) = request.runs.and_then(|runs| one.revoked.get(&runs)) else {
            return;
        };
        if since + REVOKED_WITHIN <= self.now && self.has_replacement(replica, request) {
            let text = || format!("replica {replica} leaves a revoked version: {request:?}");
            self.never.violate(self.now, text);
        }
    }

    pub(crate) fn check_revoked(&mut self, replica: usize, version: VersionId) {
        let held = self.replicas[replica].held.values();
        let late = held.map(|held| held.request).find(|request| {
            request.runs == Some(version)
                && request.at + SECOND <= self.now
                && self.has_replacement(replica, request)
        });
        if let Some(request) = late {
            let text = || format!("replica {replica} holds a revoked version: {request:?}");
            self.never.violate(self.now, text);
        }
    }

    fn has_replacement(&self, replica: usize, request: &Request) -> bool {
        let one = &self.replicas[replica];
        let Some(active) = one.plan.as_ref().filter(|_| !one.is_unaware) else {
            return false;
        };
        let runs = request.runs.map(|version| self.tag(version));
        let of = |tag: Option<_>| {
            one.availability(tag.and_then(|tag| self.version_of(tag))) == Availability::Served
        };
        let promotes = active.plan.strategy.on_stable_lost == OnStableLost::Promote;
        match runs {
            Some(tag) if active.stable == tag => {
                promotes && !one.is_halted() && of(active.candidate)
            }
            Some(tag) if active.named_candidate == Some(tag) => of(Some(active.stable)),
            _ => false,
        }
    }

    /// No epoch goes back in a replica.
    pub(crate) fn check_adopted(&mut self, replica: usize, plan: &Plan) {
        let known = self.replicas[replica]
            .plan
            .as_ref()
            .map(|active| active.plan.epoch);
        if known > Some(plan.epoch) {
            let text = || {
                format!(
                    "replica {replica} goes from epoch {known:?} to {}",
                    plan.epoch
                )
            };
            self.never.violate(self.now, text);
        }
        for (index, version) in self.versions.iter().enumerate() {
            if plan.is_refused(&version.manifest) {
                self.never.refused[replica].insert(index, plan.epoch);
            }
        }
    }

    pub(crate) fn check_written(&mut self, plan: &Plan) {
        let observed = &mut self.never.observed;
        observed.settle(self.now);
        if observed.step != (plan.generation, plan.step) {
            observed.step = (plan.generation, plan.step);
            (observed.time, observed.outages) = (0, u64::from(observed.is_away));
        }
        observed.is_progressing = plan.phase == Phase::Progressing;
        let Some(candidate) = plan.candidate.as_ref() else {
            return;
        };
        let is_retry = plan
            .history
            .last()
            .is_some_and(|last| last.reason == "retry");
        if is_retry {
            let index = self.index_of(candidate);
            self.never.retried.insert(index, plan.epoch);
        }
        if plan.phase.is_live() && plan.is_refused(&candidate.manifest) {
            let text = || format!("the refused {} is a candidate", candidate.etag);
            self.never.violate(self.now, text);
        }
    }

    /// No promotion on missing data.
    pub(crate) fn check_verdict(&mut self, plan: &Plan, event: &Event) {
        if *event != Event::StepComplete {
            return;
        }
        self.never.observed.settle(self.now);
        let observed = &self.never.observed;
        // The leader counts a part of each outage.
        let allowed = SECOND + observed.outages * MAX_GAP;
        let time = observed.time;
        let soak = plan.strategy.steps[plan.step].soak.as_micros() as Micros;
        let runs = plan
            .candidate
            .as_ref()
            .map(|candidate| self.index_of(candidate));
        let ever = self.figures.ever.get(&runs).copied().unwrap_or_default();
        // The result of the last evaluation counts until the next one.
        let is_blind = self
            .monitoring_down
            .is_some_and(|since| since + MINUTE + SECOND <= self.now);
        if time + allowed < soak || ever == 0 || is_blind {
            let text = || {
                let (step, seconds) = (plan.step + 1, seconds(time));
                format!(
                    "step {step} is complete after {seconds:.1} s; {ever} have run it, blind: {is_blind}"
                )
            };
            self.never.violate(self.now, text);
        }
    }

    /// Whether all replicas have one plan, and all clients run what it demands.
    pub(crate) fn check_converged(&mut self) {
        let Some(plan) = self.engine.plan().cloned() else {
            self.never
                .violate(self.now, || "no plan at the end".to_owned());
            return;
        };
        for replica in 0..self.replicas.len() {
            let known = self.replicas[replica]
                .plan
                .as_ref()
                .map(|active| active.plan.clone());
            if known.as_ref() != Some(&*plan) {
                let text = || format!("replica {replica} has another plan at the end: {known:?}");
                self.never.violate(self.now, text);
            }
        }
        let stable = self.index_of(&plan.stable);
        let candidate = plan.live_candidate().map(|version| self.index_of(version));
        let is_stable_revoked = self
            .replicas
            .iter()
            .any(|it| it.revoked.contains_key(&stable));
        if plan.phase == Phase::Idle && is_stable_revoked {
            return;
        }
        let wanted = [Some(stable), candidate];
        let is_outdated = |client: &&Client| {
            let mut wanted = wanted.into_iter().flatten();
            let is_able = wanted.clone().all(|it| self.can_activate(client, it));
            is_able && client.runs.is_some_and(|runs| wanted.all(|it| it != runs))
        };
        let others = self.clients.iter().filter(is_outdated).count();
        if others > 0 {
            let running = self.running();
            let text =
                || format!("{others} clients run an outdated version at the end: {running:?}");
            self.never.violate(self.now, text);
        }
    }
}
