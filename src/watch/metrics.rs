//! The metrics of watchers.

use std::sync::Arc;

use prometheus::{HistogramVec, IntCounterVec};
use tokio::time::Duration;

use super::trigger::Trigger;
use crate::{
    metrics::{BundleScope, BundleSeries, Metrics, Series},
    publish::{PublishMetrics, PublisherMetrics},
};

/// The bounds of verifications: from the reuse of a verdict to a policy with many signatures on a
/// busy machine.
const VERIFICATION_BUCKETS: [f64; 11] = [
    1e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0,
];
/// The bounds of publications: from a small artifact in a near registry to one that is retried.
const PUBLICATION_BUCKETS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0,
];

/// The metrics of all watchers and of their publishers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WatchMetrics {
    verifications: IntCounterVec,
    deltas: IntCounterVec,
    verification_durations: Series<HistogramVec>,
    publication_durations: Series<HistogramVec>,
    publish: PublishMetrics,
}

/// The metrics of one bundle's watchers.
#[derive(Debug)]
pub struct WatcherMetrics {
    verifications: BundleSeries<IntCounterVec>,
    deltas: BundleSeries<IntCounterVec>,
    /// Those of all bundles together, by whether the artifact was accepted.
    pub(super) verification_durations: Series<HistogramVec>,
    publication_durations: Series<HistogramVec>,
    /// What the publishers of these watchers count.
    pub(super) publisher: Arc<PublisherMetrics>,
}

impl WatchMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let verification_durations = Series::new(metrics.histograms(
            "bundlegate_verification_duration_seconds",
            "Time that signature verifications took, once they had a thread.",
            &["outcome"],
            &VERIFICATION_BUCKETS,
        )?);
        let publication_durations = Series::new(metrics.histograms(
            "bundlegate_publication_duration_seconds",
            "Time from when the gateway learned of a new version to its publication, by how it learned of it.",
            &["trigger"],
            &PUBLICATION_BUCKETS,
        )?);
        // A rate needs a series that begins at zero.
        for outcome in ["accepted", "rejected"] {
            verification_durations.with(&[outcome]);
        }
        for trigger in Trigger::ALL {
            publication_durations.with(&[trigger.label()]);
        }
        Ok(Self {
            verifications: metrics.counters(
                "bundlegate_verifications_total",
                "Signature verifications.",
                &["bundle", "outcome", "reason"],
            )?,
            deltas: metrics.counters(
                "bundlegate_deltas_total",
                "Comparisons of a version with an earlier one, by whether there is a delta, or why not.",
                &["bundle", "outcome"],
            )?,
            verification_durations,
            publication_durations,
            publish: PublishMetrics::new(metrics)?,
        })
    }

    /// The metrics of one bundle's watchers. Watchers that replace each other share them.
    pub fn bundle(&self, scope: &Arc<BundleScope>) -> WatcherMetrics {
        WatcherMetrics {
            verifications: BundleSeries::new(scope, &self.verifications),
            deltas: BundleSeries::new(scope, &self.deltas),
            verification_durations: self.verification_durations.clone(),
            publication_durations: self.publication_durations.clone(),
            publisher: Arc::new(self.publish.bundle(scope)),
        }
    }
}

impl WatcherMetrics {
    /// Counts a verification.
    pub(super) fn count_verification(&self, outcome: &'static str, reason: &'static str) {
        if let Some(verifications) = self.verifications.with(&[outcome, reason]) {
            verifications.inc();
        }
    }

    /// Counts a comparison of two versions.
    pub(super) fn count_delta(&self, outcome: &'static str) {
        if let Some(deltas) = self.deltas.with(&[outcome]) {
            deltas.inc();
        }
    }

    /// Records how long a publication took.
    pub(super) fn observe_publication(&self, trigger: Trigger, duration: Duration) {
        if let Some(durations) = self.publication_durations.with(&[trigger.label()]) {
            durations.observe(duration.as_secs_f64());
        }
    }
}
