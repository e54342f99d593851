//! The metrics of the shared state.

use prometheus::{HistogramVec, IntCounterVec, IntGauge};
use tokio::time::Duration;

use crate::metrics::Metrics;

/// The bounds of durations: from an engine nearby to the longest timeout.
const DURATION_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0,
];

/// The metrics of the shared state. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SharedMetrics {
    pub(super) up: IntGauge,
    commands: IntCounterVec,
    durations: HistogramVec,
}

impl SharedMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        Ok(Self {
            up: metrics.gauge(
                "bundlegate_shared_up",
                "1 while the state that replicas share can be read and written.",
            )?,
            commands: metrics.counters(
                "bundlegate_shared_commands_total",
                "Reads and writes of the state that replicas share.",
                &["operation", "outcome"],
            )?,
            durations: metrics.histograms(
                "bundlegate_shared_command_duration_seconds",
                "Time of a read or write of the state that replicas share, with a new connection if there is none.",
                &["operation"],
                &DURATION_BUCKETS,
            )?,
        })
    }

    pub(super) fn record(&self, operation: &str, outcome: &str, duration: Duration) {
        self.commands.with_label_values(&[operation, outcome]).inc();
        self.durations
            .with_label_values(&[operation])
            .observe(duration.as_secs_f64());
    }

    /// Counts a call that failed at once, because the engine failed a moment ago.
    pub(super) fn record_skipped(&self, operation: &str) {
        self.commands
            .with_label_values(&[operation, "skipped"])
            .inc();
    }
}
