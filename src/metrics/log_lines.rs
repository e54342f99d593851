//! The log lines that were dropped.

use prometheus::{
    IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::telemetry;

/// Counts the log lines of the process that were dropped, because stderr was read too slowly. Cheap
/// to clone.
#[derive(Debug, Clone)]
pub struct LogLines(IntCounterVec);

impl LogLines {
    /// The metric, not yet registered.
    ///
    /// # Errors
    /// Never: its name is valid.
    pub fn new() -> Result<Self, prometheus::Error> {
        let dropped = Opts::new(
            "bundlegate_log_lines_dropped_total",
            "Log lines that were dropped, because stderr was read too slowly.",
        );
        Ok(Self(IntCounterVec::new(dropped, &["log"])?))
    }
}

impl Collector for LogLines {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let dropped = telemetry::dropped_lines();
        for (log, lines) in [("access", dropped.access), ("events", dropped.events)] {
            let counter = self.0.with_label_values(&[log]);
            counter.inc_by(lines.saturating_sub(counter.get()));
        }
        self.0.collect()
    }
}
