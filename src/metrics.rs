//! Prometheus metrics. The registry is injected, never the process-global one. Label values are
//! configured names or variants of an enum, so cardinality is bounded.

use std::collections::HashMap;

use prometheus::{
    Encoder as _, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
    core::{Collector, MetricVec, MetricVecBuilder},
};

/// Every metric of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// `bundle`, `code`.
    pub http_requests: IntCounterVec,
    /// `bundle`.
    pub sent_bytes: IntCounterVec,
    /// `bundle`.
    pub waiters: IntGaugeVec,
    /// Open client connections.
    pub connections: IntGauge,
    /// `registry`, `operation`, `outcome`.
    pub registry_requests: IntCounterVec,
    /// `bundle`, `outcome`.
    pub refreshes: IntCounterVec,
    /// `bundle`, `outcome`, `reason`.
    pub verifications: IntCounterVec,
    /// `root`, `outcome`.
    pub trust_root_refreshes: IntCounterVec,
    /// `root`.
    pub trust_root_expires: IntGaugeVec,
    /// `bundle`, `state`.
    pub bundle_state: IntGaugeVec,
    /// `bundle`, `manifest`, `revision`.
    pub bundle_info: IntGaugeVec,
    /// `bundle`.
    pub bundle_older: IntGaugeVec,
    /// `bundle`.
    pub bundle_fallback: IntGaugeVec,
    /// `bundle`.
    pub lost_clients: IntGaugeVec,
    /// `bundle`.
    pub last_check: GaugeVec,
    /// `outcome`.
    pub config_reloads: IntCounterVec,
    /// 1 unless the last configuration that was read is invalid.
    pub config_last_reload_successful: IntGauge,
    /// `tier`.
    pub cache_hits: IntCounterVec,
    /// Blobs that were fetched from a registry.
    pub cache_misses: IntCounter,
    /// `tier`.
    pub cache_bytes: IntGaugeVec,
}

/// Increments a gauge until it is dropped, also when its future is cancelled.
#[derive(Debug)]
pub struct InFlight(IntGauge);

impl InFlight {
    /// Increments the gauge.
    pub fn enter(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// All metrics in a registry of their own.
    ///
    /// # Errors
    /// When a metric name is invalid or registered twice, which the tests rule out.
    #[expect(clippy::too_many_lines, reason = "a flat table of metrics")]
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            add(
                &registry,
                IntCounterVec::new(Opts::new(name, help), labels)?,
            )
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            add(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let build = gauges(
            "bundlegate_build_info",
            "The running version; always 1.",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let cache_hits = counters(
            "bundlegate_cache_hits_total",
            "Blobs that were found in the cache.",
            &["tier"],
        )?;
        for tier in ["memory", "disk"] {
            // A rate needs a series that starts at zero.
            let _ = cache_hits.with_label_values(&[tier]);
        }
        Ok(Self {
            http_requests: counters(
                "bundlegate_http_requests_total",
                "Responses to bundle requests, by status code.",
                &["bundle", "code"],
            )?,
            sent_bytes: counters(
                "bundlegate_sent_bytes_total",
                "Bytes of bundle bodies in responses with status 200.",
                &["bundle"],
            )?,
            waiters: gauges(
                "bundlegate_waiters",
                "Requests that are held until the bundle changes.",
                &["bundle"],
            )?,
            connections: add(
                &registry,
                IntGauge::new("bundlegate_connections", "Open client connections.")?,
            )?,
            registry_requests: counters(
                "bundlegate_registry_requests_total",
                "Requests to registries, including retries.",
                &["registry", "operation", "outcome"],
            )?,
            refreshes: counters(
                "bundlegate_refreshes_total",
                "Completed refreshes.",
                &["bundle", "outcome"],
            )?,
            verifications: counters(
                "bundlegate_verifications_total",
                "Signature verifications.",
                &["bundle", "outcome", "reason"],
            )?,
            trust_root_refreshes: counters(
                "bundlegate_trust_root_refreshes_total",
                "Attempts to refresh a trust root.",
                &["root", "outcome"],
            )?,
            trust_root_expires: gauges(
                "bundlegate_trust_root_expires_timestamp_seconds",
                "When the metadata of a trust root expires; without a refresh no new signature is accepted after that.",
                &["root"],
            )?,
            bundle_state: gauges(
                "bundlegate_bundle_state",
                "1 for the current state of a bundle, 0 for the others.",
                &["bundle", "state"],
            )?,
            bundle_info: gauges(
                "bundlegate_bundle_info",
                "The version that a bundle serves; always 1.",
                &["bundle", "manifest", "revision"],
            )?,
            bundle_older: gauges(
                "bundlegate_bundle_older",
                "1 while a bundle serves an older version than it has served before.",
                &["bundle"],
            )?,
            bundle_fallback: gauges(
                "bundlegate_bundle_fallback",
                "1 while a fallback bundle is served in place of a withdrawn one.",
                &["bundle"],
            )?,
            lost_clients: gauges(
                "bundlegate_lost_clients",
                "Clients that still run a withdrawn version of a bundle.",
                &["bundle"],
            )?,
            last_check: add(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "bundlegate_bundle_last_check_timestamp_seconds",
                        "Time of the last successful request to the registry.",
                    ),
                    &["bundle"],
                )?,
            )?,
            config_reloads: counters(
                "bundlegate_config_reloads_total",
                "Configuration reloads since the start: applied, unchanged or refused.",
                &["outcome"],
            )?,
            config_last_reload_successful: add(
                &registry,
                IntGauge::new(
                    "bundlegate_config_last_reload_successful",
                    "0 while the configuration on disk is invalid and the previous trust stays in force.",
                )?,
            )?,
            cache_hits,
            cache_misses: add(
                &registry,
                IntCounter::new(
                    "bundlegate_cache_misses_total",
                    "Blobs that were fetched from a registry.",
                )?,
            )?,
            cache_bytes: gauges("bundlegate_cache_bytes", "Bytes in the cache.", &["tier"])?,
            registry,
        })
    }

    /// Removes every series of the gauges that are derived from what is served, so that they can be
    /// set anew: those of bundles and versions that are gone don't remain.
    pub fn reset_bundle_gauges(&self) {
        for gauge in [
            &self.bundle_state,
            &self.bundle_info,
            &self.bundle_older,
            &self.bundle_fallback,
            &self.lost_clients,
        ] {
            gauge.reset();
        }
        self.last_check.reset();
    }

    /// Removes the series of the bundles that are no longer configured. Each call reads every
    /// series once, so that callers remove many bundles in one call.
    pub fn remove_bundles(&self, is_removed: impl Fn(&str) -> bool) {
        for counters in [
            &self.http_requests,
            &self.sent_bytes,
            &self.refreshes,
            &self.verifications,
        ] {
            remove_bundles(counters, &is_removed);
        }
        remove_bundles(&self.waiters, &is_removed);
    }

    /// The exposition format that Prometheus scrapes, and its content type.
    ///
    /// # Errors
    /// When a metric can't be encoded, which the tests rule out.
    pub fn render(&self) -> Result<(String, Vec<u8>), prometheus::Error> {
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        encoder.encode(&self.registry.gather(), &mut text)?;
        Ok((encoder.format_type().to_owned(), text))
    }
}

fn remove_bundles<T: MetricVecBuilder>(metrics: &MetricVec<T>, is_removed: &impl Fn(&str) -> bool)
where
    MetricVec<T>: Collector,
{
    for family in metrics.collect() {
        for metric in family.get_metric() {
            let labels: HashMap<_, _> = metric
                .get_label()
                .iter()
                .map(|label| (label.name(), label.value()))
                .collect();
            if labels
                .get("bundle")
                .is_some_and(|bundle| is_removed(bundle))
            {
                // It may be gone already.
                let _ = metrics.remove(&labels);
            }
        }
    }
}

fn add<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_and_renders() {
        let metrics = Metrics::new().unwrap();
        metrics
            .http_requests
            .with_label_values(&["authz", "200"])
            .inc();
        let (kind, text) = metrics.render().unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(kind.starts_with("text/plain"));
        assert!(
            text.contains(r#"bundlegate_http_requests_total{bundle="authz",code="200"} 1"#),
            "{text}"
        );
        assert!(text.contains("bundlegate_build_info{version="), "{text}");
        assert!(
            text.contains(r#"bundlegate_cache_hits_total{tier="disk"} 0"#),
            "{text}"
        );
    }

    #[test]
    fn a_removed_bundle_leaves_no_series_and_others_keep_theirs() {
        let metrics = Metrics::new().unwrap();
        for bundle in ["going", "staying"] {
            metrics
                .http_requests
                .with_label_values(&[bundle, "200"])
                .inc();
            metrics
                .http_requests
                .with_label_values(&[bundle, "304"])
                .inc();
            metrics.sent_bytes.with_label_values(&[bundle]).inc();
            metrics
                .refreshes
                .with_label_values(&[bundle, "accepted"])
                .inc();
            metrics
                .verifications
                .with_label_values(&[bundle, "verified", ""])
                .inc();
            metrics.waiters.with_label_values(&[bundle]).inc();
        }
        metrics.remove_bundles(|bundle| bundle == "going");
        let text = String::from_utf8(metrics.render().unwrap().1).unwrap();
        assert!(!text.contains("going"), "{text}");
        assert_eq!(text.matches("staying").count(), 6, "{text}");
    }

    #[tokio::test]
    async fn in_flight_decrements_when_its_future_is_cancelled() {
        let gauge = IntGauge::new("g", "g").unwrap();
        let inside = gauge.clone();
        let held = tokio::spawn(async move {
            let _guard = InFlight::enter(&inside);
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(gauge.get(), 1);
        held.abort();
        let _ = held.await;
        assert_eq!(gauge.get(), 0);
    }
}
