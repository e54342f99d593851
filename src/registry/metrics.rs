//! The metrics of the registry client.

use prometheus::{HistogramVec, IntCounterVec, IntGauge};
use tokio::time::Duration;

use crate::metrics::{Metrics, Series};

/// The bounds of request durations: from a mirror nearby to the timeouts.
const REQUEST_BUCKETS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];

/// The metrics of the registry client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RegistryMetrics {
    requests: IntCounterVec,
    durations: HistogramVec,
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
            durations: metrics.histograms(
                "bundlegate_registry_request_duration_seconds",
                "Time from sending a request to a registry to the head of its answer, redirects included.",
                &["registry", "operation"],
                &REQUEST_BUCKETS,
            )?,
            unwatched_layouts: metrics.gauge(
                "bundlegate_unwatched_layouts",
                "OCI layout folders that can't be watched, so that changes are found at the next poll.",
            )?,
        })
    }

    /// The metrics of one host.
    pub(super) fn host(&self, host: &str) -> HostMetrics {
        HostMetrics {
            host: host.into(),
            requests: Series::new(self.requests.clone()),
            durations: Series::new(self.durations.clone()),
        }
    }
}

/// The metrics of the requests to one host. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct HostMetrics {
    host: Box<str>,
    requests: Series<IntCounterVec>,
    durations: Series<HistogramVec>,
}

impl HostMetrics {
    /// Counts a request.
    pub(super) fn count_request(&self, operation: &str, outcome: &str) {
        if let Some(requests) = self.requests.with(&[&self.host, operation, outcome]) {
            requests.inc();
        }
    }

    /// Records how long an answer took.
    pub(super) fn observe_request(&self, operation: &str, duration: Duration) {
        if let Some(durations) = self.durations.with(&[&self.host, operation]) {
            durations.observe(duration.as_secs_f64());
        }
    }
}
