//! The registry of Prometheus metrics and its text format. The registry is injected, never the
//! process-global one.
//!
//! Each module declares what it counts, in a `metrics` file of its own, and registers it here.
//! What is counted by bundle is bound once per bundle ([`BundleSeries`]) and removed with it
//! ([`BundleScope`]). Label values are configured names or words of a fixed set, so cardinality is
//! bounded; none is empty, because Prometheus takes that for an absent label.
//!
//! Durations are histograms in seconds. They have no exemplars: the text format of the `prometheus`
//! crate can't express them.

mod bundle_series;
mod in_flight;
mod log_lines;
mod process;

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, core::Collector,
};

pub use bundle_series::{BundleScope, BundleSeries, MetricFamily, Series};
pub use in_flight::InFlight;
pub use log_lines::LogLines;
pub use process::Process;

/// A registry of metrics. Cheap to clone; the clones are one registry.
///
/// A name can be registered once, so each module's metrics are made once per registry and then
/// cloned.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Registry);

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a counter without labels.
    ///
    /// # Errors
    /// When the name is invalid or registered already.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register(IntCounter::new(name, help)?)
    }

    /// Registers a gauge without labels.
    ///
    /// # Errors
    /// When the name is invalid or registered already.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register(IntGauge::new(name, help)?)
    }

    /// Registers a counter with these labels.
    ///
    /// # Errors
    /// When the name or a label is invalid, or the name is registered already.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    /// Registers a gauge with these labels.
    ///
    /// # Errors
    /// When the name or a label is invalid, or the name is registered already.
    pub fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// Registers a histogram with these labels. `buckets` are the upper bounds.
    ///
    /// # Errors
    /// When the name, a label or a bound is invalid, or the name is registered already.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(HistogramVec::new(options, labels)?)
    }

    /// Registers any collector.
    ///
    /// # Errors
    /// When its name is registered already.
    pub fn register<C: Collector + Clone + 'static>(
        &self,
        collector: C,
    ) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    /// The registered metrics in the text format that Prometheus scrapes
    /// ([`prometheus::TEXT_FORMAT`]).
    ///
    /// # Errors
    /// When a metric can't be encoded, which the tests rule out.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }

    /// The value of one series, by its name and labels as the text format has them; `None` if there
    /// is no such series.
    #[cfg(test)]
    pub(crate) fn sample(&self, series: &str) -> Option<f64> {
        let text = self.render().unwrap();
        let series = format!("{series} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&series));
        value.map(|value| value.parse().unwrap())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_metrics_are_rendered_and_a_name_registers_once() {
        let metrics = Metrics::new();
        let requests = metrics
            .counters("requests_total", "Requests.", &["code"])
            .unwrap();
        requests.with_label_values(&["200"]).inc();
        metrics.gauge("connections", "Connections.").unwrap();
        let text = metrics.render().unwrap();
        assert!(text.contains("# TYPE requests_total counter\n"), "{text}");
        assert_eq!(metrics.sample(r#"requests_total{code="200"}"#), Some(1.0));
        assert_eq!(metrics.sample("connections"), Some(0.0));
        assert!(metrics.counter("requests_total", "Requests.").is_err());
    }
}
