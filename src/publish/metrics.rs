//! The metrics of publishers.

use std::sync::Arc;

use prometheus::IntCounterVec;

use crate::metrics::{BundleScope, BundleSeries, Metrics};

/// The metrics of all publishers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PublishMetrics {
    refreshes: IntCounterVec,
}

/// The metrics of one bundle's publisher.
#[derive(Debug)]
pub(crate) struct PublisherMetrics {
    refreshes: BundleSeries<IntCounterVec>,
}

impl PublishMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        Ok(Self {
            refreshes: metrics.counters(
                "bundlegate_refreshes_total",
                "Completed refreshes.",
                &["bundle", "outcome"],
            )?,
        })
    }

    /// The metrics of one bundle's publisher.
    pub(crate) fn bundle(&self, scope: &Arc<BundleScope>) -> PublisherMetrics {
        PublisherMetrics {
            refreshes: BundleSeries::new(scope, &self.refreshes),
        }
    }
}

impl PublisherMetrics {
    /// Counts a refresh.
    pub(super) fn count_refresh(&self, outcome: &'static str) {
        if let Some(refreshes) = self.refreshes.with(&[outcome]) {
            refreshes.inc();
        }
    }
}
