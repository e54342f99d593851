//! The metrics of watchers.

use std::sync::Arc;

use prometheus::IntCounterVec;

use crate::{
    metrics::{BundleScope, BundleSeries, Metrics},
    publish::{PublishMetrics, PublisherMetrics},
};

/// The metrics of all watchers and of their publishers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WatchMetrics {
    verifications: IntCounterVec,
    publish: PublishMetrics,
}

/// The metrics of one bundle's watchers.
#[derive(Debug)]
pub struct WatcherMetrics {
    verifications: BundleSeries<IntCounterVec>,
    /// What the publishers of these watchers count.
    pub(super) publisher: Arc<PublisherMetrics>,
}

impl WatchMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        Ok(Self {
            verifications: metrics.counters(
                "bundlegate_verifications_total",
                "Signature verifications.",
                &["bundle", "outcome", "reason"],
            )?,
            publish: PublishMetrics::new(metrics)?,
        })
    }

    /// The metrics of one bundle's watchers. Watchers that replace each other share them.
    pub fn bundle(&self, scope: &Arc<BundleScope>) -> WatcherMetrics {
        WatcherMetrics {
            verifications: BundleSeries::new(scope, &self.verifications),
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
}
