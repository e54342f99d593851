//! The metrics of the gateway itself, and those of all modules in one registry.

use std::sync::Arc;

use prometheus::{IntCounterVec, IntGauge};

use crate::{
    metrics::{BundleScope, LogLines, Metrics, Process},
    registry::RegistryMetrics,
    server::{RequestMetrics, ServerMetrics},
    store::StoreMetrics,
    traces::Traces,
    verify::TrustRootMetrics,
    watch::{WatchMetrics, WatcherMetrics},
};

/// The metrics of every module, registered in one registry.
#[derive(Debug)]
pub(super) struct GatewayMetrics {
    pub(super) registry: Metrics,
    pub(super) registries: RegistryMetrics,
    pub(super) store: StoreMetrics,
    pub(super) roots: TrustRootMetrics,
    pub(super) bundles: BundleFamilies,
    pub(super) server: ServerMetrics,
    pub(super) reload: ReloadMetrics,
    pub(super) traces: Traces,
}

/// The metrics in which each bundle has series. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct BundleFamilies {
    watch: WatchMetrics,
    server: ServerMetrics,
}

/// The metrics of one bundle, from its addition to its removal. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct BundleMetrics {
    pub(super) scope: Arc<BundleScope>,
    pub(super) watcher: Arc<WatcherMetrics>,
    pub(super) requests: Arc<RequestMetrics>,
}

/// The metrics of configuration reloads. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ReloadMetrics {
    reloads: IntCounterVec,
    last_successful: IntGauge,
}

impl GatewayMetrics {
    /// Registers all metrics in a registry of their own.
    ///
    /// # Errors
    /// When a name is invalid or registered twice, which the tests rule out.
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let registry = Metrics::new();
        let build = registry.gauges(
            "bundlegate_build_info",
            "The running version; always 1.",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Process::new()?)?;
        registry.register(LogLines::new()?)?;
        let server = ServerMetrics::new(&registry)?;
        Ok(Self {
            registries: RegistryMetrics::new(&registry)?,
            store: StoreMetrics::new(&registry)?,
            roots: TrustRootMetrics::new(&registry)?,
            bundles: BundleFamilies {
                watch: WatchMetrics::new(&registry)?,
                server: server.clone(),
            },
            server,
            reload: ReloadMetrics::new(&registry)?,
            traces: Traces::new(&registry)?,
            registry,
        })
    }
}

impl BundleFamilies {
    /// The metrics of a bundle that is being added.
    pub(super) fn bundle(&self, name: &str) -> BundleMetrics {
        let scope = BundleScope::new(name.into());
        BundleMetrics {
            watcher: Arc::new(self.watch.bundle(&scope)),
            requests: Arc::new(self.server.bundle(&scope)),
            scope,
        }
    }
}

impl BundleMetrics {
    /// Removes the bundle's series. What still counts for it has no effect from now on.
    pub(super) fn remove(&self) {
        self.scope.remove();
    }
}

impl ReloadMetrics {
    fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        Ok(Self {
            reloads: metrics.counters(
                "bundlegate_config_reloads_total",
                "Configuration reloads since the start: applied, unchanged or refused.",
                &["outcome"],
            )?,
            last_successful: metrics.gauge(
                "bundlegate_config_last_reload_successful",
                "0 while the configuration on disk is invalid and the previous one stays in force.",
            )?,
        })
    }

    /// Counts a reload.
    pub(super) fn count(&self, outcome: &'static str) {
        self.reloads.with_label_values(&[outcome]).inc();
    }

    /// Sets whether the last configuration that was read is valid.
    pub(super) fn set_last_successful(&self, is_successful: bool) {
        self.last_successful.set(is_successful.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_once_and_those_without_labels_start_at_zero() {
        let metrics = GatewayMetrics::new().unwrap().registry;
        let text = metrics.render().unwrap();
        assert!(text.contains("bundlegate_build_info{version="), "{text}");
        for series in [
            "bundlegate_connections",
            "bundlegate_config_last_reload_successful",
            r#"bundlegate_cache_hits_total{tier="memory"}"#,
            r#"bundlegate_cache_hits_total{tier="disk"}"#,
            "bundlegate_cache_misses_total",
        ] {
            assert_eq!(metrics.sample(series), Some(0.0), "{series}: {text}");
        }
    }
}
