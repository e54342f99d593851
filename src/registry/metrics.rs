//! The metrics of the registry client.

use prometheus::{IntCounterVec, IntGauge};

use crate::metrics::Metrics;

/// The metrics of the registry client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RegistryMetrics {
    requests: IntCounterVec,
    /// Layout folders that can't be watched.
    pub(super) unwatched_layouts: IntGauge,
}

impl RegistryMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        Ok(Self {
            requests: metrics.counters(
                "bundlegate_registry_requests_total",
                "Requests to registries, including retries.",
                &["registry", "operation", "outcome"],
            )?,
            unwatched_layouts: metrics.gauge(
                "bundlegate_unwatched_layouts",
                "OCI layout folders that can't be watched, so that changes are found at the next poll.",
            )?,
        })
    }

    /// Counts a request to a host.
    pub(super) fn count_request(&self, host: &str, operation: &str, outcome: &str) {
        self.requests
            .with_label_values(&[host, operation, outcome])
            .inc();
    }
}
