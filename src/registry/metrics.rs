//! The metrics of the registry client.

use prometheus::IntCounterVec;

use crate::metrics::Metrics;

/// The metrics of the registry client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RegistryMetrics {
    requests: IntCounterVec,
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
        })
    }

    /// Counts a request to a host.
    pub(super) fn count_request(&self, host: &str, operation: &str, outcome: &str) {
        self.requests
            .with_label_values(&[host, operation, outcome])
            .inc();
    }
}
