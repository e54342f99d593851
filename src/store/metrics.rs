//! The metrics of the blob store.

use prometheus::{IntCounter, IntGauge, IntGaugeVec};

use crate::metrics::Metrics;

/// The metrics of the blob store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    pub(super) memory_hits: IntCounter,
    pub(super) disk_hits: IntCounter,
    pub(super) misses: IntCounter,
    pub(super) unavailable: IntGauge,
    bytes: IntGaugeVec,
}

impl StoreMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let hits = metrics.counters(
            "bundlegate_cache_hits_total",
            "Blobs that were found in the cache.",
            &["tier"],
        )?;
        // Bound now, because a rate needs a series that starts at zero.
        let [memory_hits, disk_hits] =
            ["memory", "disk"].map(|tier| hits.with_label_values(&[tier]));
        Ok(Self {
            memory_hits,
            disk_hits,
            misses: metrics.counter(
                "bundlegate_cache_misses_total",
                "Blobs that were fetched from a registry.",
            )?,
            unavailable: metrics.gauge(
                "bundlegate_cache_unavailable",
                "1 while cache.directory can't be used and blobs are held in memory only.",
            )?,
            bytes: metrics.gauges("bundlegate_cache_bytes", "Bytes in the cache.", &["tier"])?,
        })
    }

    /// The bytes in memory.
    pub(super) fn memory_bytes(&self) -> IntGauge {
        self.bytes.with_label_values(&["memory"])
    }

    /// The bytes on disk. A store without a disk has no such series.
    pub(super) fn disk_bytes(&self) -> IntGauge {
        self.bytes.with_label_values(&["disk"])
    }
}
