//! The metrics of trust roots.

use prometheus::{IntCounterVec, IntGaugeVec};

use crate::metrics::Metrics;

/// The metrics of trust roots. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TrustRootMetrics {
    refreshes: IntCounterVec,
    expires: IntGaugeVec,
}

impl TrustRootMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        Ok(Self {
            refreshes: metrics.counters(
                "bundlegate_trust_root_refreshes_total",
                "Attempts to refresh a trust root.",
                &["root", "outcome"],
            )?,
            expires: metrics.gauges(
                "bundlegate_trust_root_expires_timestamp_seconds",
                "When the metadata of a trust root expires; without a refresh no new signature is accepted after that.",
                &["root"],
            )?,
        })
    }

    /// Counts an attempt to refresh a root.
    pub(super) fn count_refresh(&self, root: &str, outcome: &str) {
        self.refreshes.with_label_values(&[root, outcome]).inc();
    }

    /// Sets when a root expires, in seconds since 1970.
    pub(super) fn set_expiry(&self, root: &str, seconds: i64) {
        self.expires.with_label_values(&[root]).set(seconds);
    }

    /// Removes the expiry of a root that is no longer configured.
    pub(super) fn remove_expiry(&self, root: &str) {
        // A root that never expires has none.
        let _ = self.expires.remove_label_values(&[root]);
    }
}
