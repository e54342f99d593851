//! The metrics of staged roll-outs.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use prometheus::{Gauge, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::{Phase, Plan, Tally, Transition};
use crate::metrics::{BundleScope, BundleSeries, Metrics};

/// The label value of a version that there is not.
const NONE: &str = "(none)";

/// The metrics of all roll-outs of a replica. Cheap to clone.
///
/// A bundle has series from its first [`Self::set`] or count until a [`Self::set`] without it.
#[derive(Debug, Clone)]
pub struct RolloutMetrics {
    families: Families,
    bundles: Arc<RwLock<HashMap<String, Arc<BundleMetrics>>>>,
    leader: IntGauge,
    plan_age: Gauge,
}

/// What the gauges of a bundle are set to.
#[derive(Debug, Clone, Copy)]
pub struct RolloutSample<'a> {
    /// The bundle's name.
    pub bundle: &'a str,
    /// Its plan; `None` until one is known.
    pub plan: Option<&'a Plan>,
    /// Its clients.
    pub tally: &'a Tally,
}

/// Why a client is not moved to the version that the plan has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The plan could not be confirmed, because the engine does not answer.
    Engine,
    /// The client was moved or was offered the candidate too often.
    BackOff,
    /// This replica does not have the version yet.
    Digest,
}

#[derive(Debug, Clone)]
struct Families {
    phase: IntGaugeVec,
    step: IntGaugeVec,
    percent: GaugeVec,
    clients: IntGaugeVec,
    info: IntGaugeVec,
    transitions: IntCounterVec,
    checks: IntCounterVec,
    held: IntCounterVec,
}

/// The series of one bundle.
#[derive(Debug)]
struct BundleMetrics {
    scope: Arc<BundleScope>,
    phase: BundleSeries<IntGaugeVec>,
    step: BundleSeries<IntGaugeVec>,
    percent: BundleSeries<GaugeVec>,
    clients: BundleSeries<IntGaugeVec>,
    transitions: BundleSeries<IntCounterVec>,
    checks: BundleSeries<IntCounterVec>,
    held: BundleSeries<IntCounterVec>,
    /// The stable version and the candidate, as the labels of its only series of `info`.
    versions: Mutex<Option<[String; 2]>>,
}

impl RolloutMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        Ok(Self {
            families: Families::new(metrics)?,
            bundles: Arc::default(),
            leader: metrics.gauge(
                "bundlegate_rollout_leader",
                "1 while this replica leads the roll-outs: its observations decide about the next step.",
            )?,
            plan_age: metrics.register(Gauge::new(
                "bundlegate_shared_plan_age_seconds",
                "Time since the plans of the roll-outs were last read; infinite if they never were.",
            )?)?,
        })
    }

    /// Sets the gauges, and removes the series of bundles without a roll-out. One caller at a time.
    pub fn set<'a>(&self, samples: impl IntoIterator<Item = RolloutSample<'a>>) {
        let mut present = HashSet::new();
        for sample in samples {
            self.bundle(sample.bundle).set(&self.families.info, &sample);
            present.insert(sample.bundle);
        }
        let mut bundles = self.bundles.write().unwrap_or_else(PoisonError::into_inner);
        bundles.retain(|name, bundle| {
            let is_present = present.contains(name.as_str());
            if !is_present {
                bundle.remove(&self.families.info);
            }
            is_present
        });
    }

    /// Counts a transition that this replica has written.
    pub fn count_transition(&self, bundle: &str, transition: &Transition) {
        let bundle = self.bundle(bundle);
        let labels = [transition.to.label(), transition.cause.label()];
        if let Some(series) = bundle.transitions.with(&labels) {
            series.inc();
        }
    }

    /// Counts an evaluation of a check with this outcome.
    pub fn count_check(&self, bundle: &str, check: &str, outcome: &'static str) {
        if let Some(series) = self.bundle(bundle).checks.with(&[check, outcome]) {
            series.inc();
        }
    }

    /// Counts a request of a client that is not moved.
    pub fn count_held(&self, bundle: &str, why: Held) {
        if let Some(series) = self.bundle(bundle).held.with(&[why.label()]) {
            series.inc();
        }
    }

    /// Sets whether this replica leads.
    pub fn set_leader(&self, is_leader: bool) {
        self.leader.set(is_leader.into());
    }

    /// Sets the time since the plans were last read; `None` if they never were.
    pub fn set_plan_age(&self, age: Option<Duration>) {
        self.plan_age
            .set(age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
    }

    fn bundle(&self, name: &str) -> Arc<BundleMetrics> {
        let bundles = self.bundles.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(bundle) = bundles.get(name) {
            return Arc::clone(bundle);
        }
        drop(bundles);
        let mut bundles = self.bundles.write().unwrap_or_else(PoisonError::into_inner);
        let bundle = bundles.entry(name.to_owned());
        Arc::clone(bundle.or_insert_with(|| Arc::new(BundleMetrics::new(name, &self.families))))
    }
}

impl Families {
    fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let percent = Opts::new(
            "bundlegate_rollout_percent",
            "The part of all clients that the current step has; 0 for a step of named clients and while no client gets a candidate.",
        );
        Ok(Self {
            phase: metrics.gauges(
                "bundlegate_rollout_phase",
                "1 for the phase of the roll-out, 0 for the others: idle, progressing, paused or rolled_back.",
                &["bundle", "phase"],
            )?,
            step: metrics.gauges(
                "bundlegate_rollout_step",
                "The current step, from 1; 0 while nothing is rolled out.",
                &["bundle"],
            )?,
            percent: metrics.register(GaugeVec::new(percent, &["bundle"])?)?,
            clients: metrics.gauges(
                "bundlegate_rollout_clients",
                "Clients that were offered the candidate, and of these: acknowledged (run it), failed (can't activate it), outside (run it without being in the step).",
                &["bundle", "kind"],
            )?,
            info: metrics.gauges(
                "bundlegate_rollout_info",
                "The manifests of the stable version and the candidate, of which `(none)` is no candidate; always 1.",
                &["bundle", "stable", "candidate"],
            )?,
            transitions: metrics.counters(
                "bundlegate_rollout_transitions_total",
                "Changes of the roll-out that this replica has written, by the phase that they led to and their cause.",
                &["bundle", "to", "cause"],
            )?,
            checks: metrics.counters(
                "bundlegate_rollout_checks_total",
                "Evaluations of the checks of the roll-out by this replica: passed, failed or inconclusive.",
                &["bundle", "check", "outcome"],
            )?,
            held: metrics.counters(
                "bundlegate_rollout_held_total",
                "Requests of clients that keep another version than the plan has for them: the engine does not answer, they were moved too often (back_off), or this replica lacks the version (digest).",
                &["bundle", "why"],
            )?,
        })
    }
}

impl BundleMetrics {
    fn new(name: &str, families: &Families) -> Self {
        let scope = BundleScope::new(name.into());
        Self {
            phase: BundleSeries::new(&scope, &families.phase),
            step: BundleSeries::new(&scope, &families.step),
            percent: BundleSeries::new(&scope, &families.percent),
            clients: BundleSeries::new(&scope, &families.clients),
            transitions: BundleSeries::new(&scope, &families.transitions),
            checks: BundleSeries::new(&scope, &families.checks),
            held: BundleSeries::new(&scope, &families.held),
            versions: Mutex::default(),
            scope,
        }
    }

    fn set(&self, info: &IntGaugeVec, sample: &RolloutSample<'_>) {
        let Some(plan) = sample.plan else {
            return;
        };
        for phase in Phase::ALL {
            if let Some(series) = self.phase.with(&[phase.label()]) {
                series.set((phase == plan.phase).into());
            }
        }
        let step = match plan.phase {
            Phase::Idle => 0,
            _ => i64::try_from(plan.step + 1).unwrap_or(i64::MAX),
        };
        if let Some(series) = self.step.with(&[]) {
            series.set(step);
        }
        if let Some(series) = self.percent.with(&[]) {
            series.set(plan.percent());
        }
        let Tally {
            offered,
            acknowledged,
            failed,
            outside,
        } = *sample.tally;
        for (kind, count) in [
            ("offered", offered),
            ("acknowledged", acknowledged),
            ("failed", failed),
            ("outside", outside),
        ] {
            if let Some(series) = self.clients.with(&[kind]) {
                series.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        self.set_versions(info, sample.bundle, plan);
    }

    /// Replaces the series of `info` if the versions are others.
    fn set_versions(&self, info: &IntGaugeVec, bundle: &str, plan: &Plan) {
        let candidate = plan.candidate.as_ref();
        let candidate = candidate.map_or(NONE, |version| version.manifest.as_str());
        let versions = [plan.stable.manifest.as_str(), candidate].map(str::to_owned);
        let mut known = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() == Some(&versions) {
            return;
        }
        info.with_label_values(&[bundle, &versions[0], &versions[1]])
            .set(1);
        if let Some([stable, candidate]) = known.replace(versions) {
            remove_info(info, &[bundle, &stable, &candidate]);
        }
    }

    fn remove(&self, info: &IntGaugeVec) {
        self.scope.remove();
        let mut known = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some([stable, candidate]) = known.take() {
            remove_info(info, &[self.scope.bundle(), &stable, &candidate]);
        }
    }
}

fn remove_info(info: &IntGaugeVec, labels: &[&str; 3]) {
    // It fails only if the series is gone already.
    let _ = info.remove_label_values(labels);
}

impl Held {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::BackOff => "back_off",
            Self::Digest => "digest",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{
        Cause,
        fixture::{idle, version_named as version},
    };

    #[test]
    fn the_gauges_follow_the_plan_and_a_bundle_that_is_gone_leaves_no_series() {
        let registry = Metrics::new();
        let metrics = RolloutMetrics::new(&registry).unwrap();
        let (idle, tally) = (idle(), Tally::default());
        let set = |plan: &Plan, tally: &Tally| {
            metrics.set([RolloutSample {
                bundle: "a",
                plan: Some(plan),
                tally,
            }]);
        };
        set(&idle, &tally);
        let sample = |series: &str| registry.sample(&format!("bundlegate_rollout_{series}"));
        let info = |candidate: &str| {
            let stable = &idle.stable.manifest;
            sample(&format!(
                r#"info{{bundle="a",candidate="{candidate}",stable="{stable}"}}"#
            ))
        };
        assert_eq!(sample(r#"phase{bundle="a",phase="idle"}"#), Some(1.0));
        assert_eq!(sample(r#"step{bundle="a"}"#), Some(0.0));
        assert_eq!(info(NONE), Some(1.0));
        let candidate = version("r2");
        let plan = Plan {
            phase: Phase::Paused,
            threshold: u64::MAX / 40,
            candidate: Some(candidate.clone()),
            ..idle.clone()
        };
        let tally = Tally {
            offered: 5,
            acknowledged: 3,
            failed: 2,
            outside: 1,
        };
        set(&plan, &tally);
        for (series, value) in [
            (r#"phase{bundle="a",phase="idle"}"#, 0.0),
            (r#"phase{bundle="a",phase="paused"}"#, 1.0),
            (r#"step{bundle="a"}"#, 1.0),
            (r#"percent{bundle="a"}"#, 2.5),
            (r#"clients{bundle="a",kind="offered"}"#, 5.0),
            (r#"clients{bundle="a",kind="acknowledged"}"#, 3.0),
            (r#"clients{bundle="a",kind="failed"}"#, 2.0),
            (r#"clients{bundle="a",kind="outside"}"#, 1.0),
        ] {
            assert_eq!(sample(series), Some(value), "{series}");
        }
        assert_eq!(
            (info(NONE), info(candidate.manifest.as_str())),
            (None, Some(1.0))
        );
        metrics.set([]);
        assert!(!registry.render().unwrap().contains("bundle=\"a\""));
    }

    #[test]
    fn what_happens_is_counted_by_its_labels() {
        let registry = Metrics::new();
        let metrics = RolloutMetrics::new(&registry).unwrap();
        let transition = Transition {
            at: 0,
            to: Phase::RolledBack,
            step: 0,
            candidate: None,
            cause: Cause::Failures,
            reason: String::new(),
            by: None,
        };
        metrics.count_transition("a", &transition);
        metrics.count_check("a", "denials", "passed");
        for why in [Held::Engine, Held::BackOff, Held::Digest] {
            metrics.count_held("a", why);
        }
        metrics.set_leader(true);
        metrics.set_plan_age(None);
        for (series, value) in [
            (
                r#"rollout_transitions_total{bundle="a",cause="failures",to="rolled_back"}"#,
                1.0,
            ),
            (
                r#"rollout_checks_total{bundle="a",check="denials",outcome="passed"}"#,
                1.0,
            ),
            (r#"rollout_held_total{bundle="a",why="back_off"}"#, 1.0),
            ("rollout_leader", 1.0),
            ("shared_plan_age_seconds", f64::INFINITY),
        ] {
            let series = format!("bundlegate_{series}");
            assert_eq!(registry.sample(&series), Some(value), "{series}");
        }
        metrics.set_plan_age(Some(Duration::from_millis(1500)));
        assert_eq!(
            registry.sample("bundlegate_shared_plan_age_seconds"),
            Some(1.5)
        );
        metrics.set([]);
        assert!(!registry.render().unwrap().contains("bundle=\"a\""));
    }
}
