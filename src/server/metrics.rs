//! The metrics of the server: connections, bundle requests, and the gauges that are derived from
//! the published status.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::StatusCode;
use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::{
    CertificateInUse,
    status_reports::ReportOutcome,
    webhooks::{EventOutcome, LiveWebhooks},
};
use crate::{
    fleet::{BundleCounts, ClientState},
    metrics::{BundleScope, BundleSeries, Metrics, Series},
    publish::Status,
};

/// The `bundle` label of responses to requests that lead to no bundle, or to none that the client
/// may know of.
const OTHER: &str = "other";

/// The `revision` label of a bundle without a revision. An empty label would look like an absent one.
const NO_REVISION: &str = "(none)";

/// The bounds of request durations. Most requests take some 20 µs; those whose credential is checked
/// take up to seconds.
const REQUEST_BUCKETS: [f64; 12] = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 5e-3, 0.025, 0.1, 0.5, 2.5, 10.0,
];

/// The bounds of holds. OPA asks for a wait of its own, often 60 s, and `long_poll.max_wait` is 300 s.
const HOLD_BUCKETS: [f64; 11] = [
    0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0, 300.0,
];

/// The metrics of the server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    /// All metrics of the process, for `/metrics`.
    pub(super) registry: Metrics,
    /// Open client connections.
    pub(super) connections: IntGauge,
    /// Requests that wait until their body may be sent.
    pub(super) paced_requests: IntGauge,
    pub(super) delayed_downloads: IntCounter,
    pub(super) status: StatusGauges,
    responses: IntCounterVec,
    durations: Series<HistogramVec>,
    holds: Series<HistogramVec>,
    unauthorized: IntCounterVec,
    sent_bytes: IntCounterVec,
    deltas: IntCounterVec,
    waiters: IntGaugeVec,
    webhook_events: IntCounterVec,
    reports: IntCounterVec,
    /// The webhooks that have series.
    webhooks: Arc<Mutex<Vec<String>>>,
}

/// The metrics of the requests for one bundle.
#[derive(Debug)]
pub struct RequestMetrics {
    responses: BundleSeries<IntCounterVec>,
    sent_bytes: BundleSeries<IntCounterVec>,
    deltas: BundleSeries<IntCounterVec>,
    waiters: BundleSeries<IntGaugeVec>,
}

/// What became of a request for which there was a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeltaOutcome {
    /// The delta was sent.
    Sent,
    /// The whole bundle was sent, because the client has refused a delta.
    Refused,
}

/// How a request ceased to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HoldOutcome {
    /// A version was sent.
    Changed,
    /// The client has the version already.
    Unchanged,
    /// An error was sent: there is no version, or the client may not read the bundle any more.
    Error,
    /// The client, or a proxy in between, has closed the connection or reset the request.
    Disconnected,
}

/// The gauges that are derived from the published status. They are set anew for every scrape, so
/// that the series of versions and bundles that are gone do not remain.
#[derive(Debug, Clone)]
pub(super) struct StatusGauges {
    /// Whether the replica is ready.
    pub(super) ready: IntGauge,
    /// The current limit of connections.
    pub(super) max_connections: IntGauge,
    state: IntGaugeVec,
    info: IntGaugeVec,
    older: IntGaugeVec,
    refused: IntGaugeVec,
    fallback: IntGaugeVec,
    lost_clients: IntGaugeVec,
    poll_interval: GaugeVec,
    last_check: GaugeVec,
    certificate_expires: IntGaugeVec,
    clients: IntGaugeVec,
}

impl ServerMetrics {
    /// Registers the metrics. `/metrics` shows all of `metrics`, also what others register there.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let (durations, holds) = (request_durations(metrics)?, hold_durations(metrics)?);
        Ok(Self {
            registry: metrics.clone(),
            connections: metrics.gauge("bundlegate_connections", "Open client connections.")?,
            paced_requests: metrics.gauge(
                "bundlegate_paced_requests",
                "Requests whose response waits for `long_poll.bandwidth` or `long_poll.spread`.",
            )?,
            delayed_downloads: metrics.counter(
                "bundlegate_delayed_downloads_total",
                "Downloads that were delayed by `long_poll.repeat_delay`, because the client repeated them.",
            )?,
            status: StatusGauges::new(metrics)?,
            responses: metrics.counters(
                "bundlegate_http_requests_total",
                "Responses to bundle requests, by status code.",
                &["bundle", "code"],
            )?,
            durations,
            holds,
            unauthorized: metrics.counters(
                "bundlegate_unauthorized_requests_total",
                "Bundle requests that are answered with 401, by reason.",
                &["reason"],
            )?,
            sent_bytes: metrics.counters(
                "bundlegate_sent_bytes_total",
                "Bytes of bundle bodies in responses with status 200.",
                &["bundle"],
            )?,
            deltas: metrics.counters(
                "bundlegate_delta_responses_total",
                "Requests for which there was a delta: those that got it, and those whose client has refused one before and \
                 got the whole bundle.",
                &["bundle", "outcome"],
            )?,
            waiters: metrics.gauges(
                "bundlegate_waiters",
                "Requests that are held until the bundle changes.",
                &["bundle"],
            )?,
            webhook_events: metrics.counters(
                "bundlegate_webhook_events_total",
                "Events that registries have sent, by what became of them.",
                &["webhook", "outcome"],
            )?,
            reports: report_counters(metrics)?,
            webhooks: Arc::default(),
        })
    }

    /// The metrics of the requests for one bundle.
    pub fn bundle(&self, scope: &Arc<BundleScope>) -> RequestMetrics {
        RequestMetrics {
            responses: BundleSeries::new(scope, &self.responses),
            sent_bytes: BundleSeries::new(scope, &self.sent_bytes),
            deltas: BundleSeries::new(scope, &self.deltas),
            waiters: BundleSeries::new(scope, &self.waiters),
        }
    }

    /// Counts events of a webhook.
    pub(super) fn count_events(&self, webhook: &str, outcome: EventOutcome, count: u64) {
        let mut known = self.webhooks.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.iter().any(|name| name == webhook) {
            known.push(webhook.to_owned());
        }
        self.webhook_events
            .with_label_values(&[webhook, outcome.label()])
            .inc_by(count);
    }

    /// Counts a status report.
    pub(super) fn count_report(&self, outcome: ReportOutcome) {
        self.reports.with_label_values(&[outcome.label()]).inc();
    }

    /// Removes the series of webhooks that are no longer configured.
    pub(super) fn retain_webhooks(&self, webhooks: &LiveWebhooks) {
        let mut known = self.webhooks.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name| {
            let is_configured = webhooks.contains(name);
            if !is_configured {
                for outcome in EventOutcome::ALL {
                    // It fails where nothing was counted.
                    let _ = self
                        .webhook_events
                        .remove_label_values(&[name, outcome.label()]);
                }
            }
            is_configured
        });
    }

    /// Records the duration of a request.
    pub(super) fn observe_request(&self, status: StatusCode, duration: Duration) {
        if let Some(durations) = self.durations.with(&[status.as_str()]) {
            durations.observe(duration.as_secs_f64());
        }
    }

    /// Records how long a request was held.
    pub(super) fn observe_hold(&self, outcome: HoldOutcome, duration: Duration) {
        if let Some(holds) = self.holds.with(&[outcome.label()]) {
            holds.observe(duration.as_secs_f64());
        }
    }

    /// Counts a request that is answered with 401. `reason` is one of a fixed set.
    pub(super) fn count_unauthorized(&self, reason: &str) {
        self.unauthorized.with_label_values(&[reason]).inc();
    }

    /// Counts a response to a request that leads to no bundle.
    pub(super) fn count_other(&self, status: StatusCode) {
        // It is looked up each time, because a bundle may have this name, and then its removal
        // removes the series.
        self.responses
            .with_label_values(&[OTHER, status.as_str()])
            .inc();
    }
}

/// The durations of requests. The common statuses exist from the start, because a rate needs a series
/// that begins at zero.
fn request_durations(metrics: &Metrics) -> Result<Series<HistogramVec>, prometheus::Error> {
    let durations = Series::new(metrics.histograms(
        "bundlegate_http_request_duration_seconds",
        "Time from the complete head of a bundle request to its response, without the time for which it was held.",
        &["code"],
        &REQUEST_BUCKETS,
    )?);
    // In the order in which they are searched.
    for status in [
        StatusCode::NOT_MODIFIED,
        StatusCode::OK,
        StatusCode::NOT_FOUND,
    ] {
        durations.with(&[status.as_str()]);
    }
    Ok(durations)
}

/// Status reports, for all outcomes from the start.
fn report_counters(metrics: &Metrics) -> Result<IntCounterVec, prometheus::Error> {
    let reports = metrics.counters(
        "bundlegate_fleet_reports_total",
        "Status reports of OPAs, by what became of them.",
        &["outcome"],
    )?;
    for outcome in ReportOutcome::ALL {
        reports.with_label_values(&[outcome.label()]);
    }
    Ok(reports)
}

/// The durations of holds, for all outcomes from the start.
fn hold_durations(metrics: &Metrics) -> Result<Series<HistogramVec>, prometheus::Error> {
    let holds = Series::new(metrics.histograms(
        "bundlegate_hold_duration_seconds",
        "Time for which bundle requests were held, by how that ended.",
        &["outcome"],
        &HOLD_BUCKETS,
    )?);
    for outcome in HoldOutcome::ALL {
        holds.with(&[outcome.label()]);
    }
    Ok(holds)
}

impl HoldOutcome {
    const ALL: [Self; 4] = [
        Self::Unchanged,
        Self::Changed,
        Self::Error,
        Self::Disconnected,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Error => "error",
            Self::Disconnected => "disconnected",
        }
    }
}

impl RequestMetrics {
    /// Counts a response.
    pub(super) fn count(&self, status: StatusCode) {
        if let Some(responses) = self.responses.with(&[status.as_str()]) {
            responses.inc();
        }
    }

    /// Counts the bytes of a body.
    pub(super) fn count_sent(&self, bytes: u64) {
        if let Some(sent) = self.sent_bytes.with(&[]) {
            sent.inc_by(bytes);
        }
    }

    /// Counts a request for which there was a delta.
    pub(super) fn count_delta(&self, outcome: DeltaOutcome) {
        let label = match outcome {
            DeltaOutcome::Sent => "sent",
            DeltaOutcome::Refused => "refused",
        };
        if let Some(deltas) = self.deltas.with(&[label]) {
            deltas.inc();
        }
    }

    /// The gauge of held requests; `None` if the bundle was removed before it was first used.
    pub(super) fn waiters(&self) -> Option<&IntGauge> {
        self.waiters.with(&[])
    }
}

impl StatusGauges {
    fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let last_check = Opts::new(
            "bundlegate_bundle_last_check_timestamp_seconds",
            "Time of the last successful request to the registry.",
        );
        let poll_interval = Opts::new(
            "bundlegate_bundle_poll_interval_seconds",
            "The poll interval of a bundle, by its configuration; a suspended bundle has none.",
        );
        Ok(Self {
            ready: metrics.gauge(
                "bundlegate_ready",
                "1 while the replica is ready, as /readyz says; 0 before that and during the drain.",
            )?,
            max_connections: metrics.gauge(
                "bundlegate_max_connections",
                "The limit of open client connections: server.max_connections, or less where the limit of open files requires it.",
            )?,
            state: metrics.gauges(
                "bundlegate_bundle_state",
                "1 for the current state of a bundle, 0 for the others.",
                &["bundle", "state"],
            )?,
            info: metrics.gauges(
                "bundlegate_bundle_info",
                "The version that a bundle serves, of which `(none)` is no revision; always 1.",
                &["bundle", "manifest", "revision"],
            )?,
            older: metrics.gauges(
                "bundlegate_bundle_older",
                "1 while a bundle serves an older version than it has served before.",
                &["bundle"],
            )?,
            refused: metrics.gauges(
                "bundlegate_bundle_refused",
                "1 while the version that the reference names is refused, and another one or none is served.",
                &["bundle"],
            )?,
            fallback: metrics.gauges(
                "bundlegate_bundle_fallback",
                "1 while a fallback bundle is served in place of a withdrawn one.",
                &["bundle"],
            )?,
            lost_clients: metrics.gauges(
                "bundlegate_lost_clients",
                "Clients that still run a withdrawn version of a bundle.",
                &["bundle"],
            )?,
            poll_interval: metrics.register(GaugeVec::new(poll_interval, &["bundle"])?)?,
            last_check: metrics.register(GaugeVec::new(last_check, &["bundle"])?)?,
            certificate_expires: metrics.gauges(
                "bundlegate_certificate_expires_timestamp_seconds",
                "When a certificate in use expires, by the key that names its file; of several in one file, the first one.",
                &["key"],
            )?,
            clients: metrics.gauges(
                "bundlegate_fleet_clients",
                "Clients of a bundle by what they run: `current` is the served version. All replicas that share their state show the same clients.",
                &["bundle", "state"],
            )?,
        })
    }

    /// Removes all series of bundles.
    pub(super) fn reset(&self) {
        for gauge in [
            &self.state,
            &self.info,
            &self.older,
            &self.refused,
            &self.fallback,
            &self.lost_clients,
            &self.certificate_expires,
            &self.clients,
        ] {
            gauge.reset();
        }
        self.poll_interval.reset();
        self.last_check.reset();
    }

    /// Adds a bundle to the gauges, which have been reset. The bundles of a pattern have one label:
    /// their gauges are sums, without versions, and with the oldest check.
    pub(super) fn add(&self, label: &str, is_on_demand: bool, status: &Status) {
        for state in ["pending", "serving", "withdrawn"] {
            self.state
                .with_label_values(&[label, state])
                .add((state == status.state.label()).into());
        }
        if let (Some(manifest), Some(revision), false) =
            (&status.manifest, &status.revision, is_on_demand)
        {
            let revision = match revision.as_str() {
                "" => NO_REVISION,
                revision => revision,
            };
            self.info
                .with_label_values(&[label, manifest.as_str(), revision])
                .set(1);
        }
        self.refused
            .with_label_values(&[label])
            .add(status.is_refusing().into());
        self.older
            .with_label_values(&[label])
            .add(status.older.is_some().into());
        if !status.suspended {
            self.poll_interval
                .with_label_values(&[label])
                .set(status.poll.as_secs_f64());
        }
        if let Some(time) = status.last_check {
            let time = time.as_millisecond() as f64 / 1000.0;
            let last_check = self.last_check.with_label_values(&[label]);
            let oldest = Some(last_check.get()).filter(|oldest| *oldest > 0.0);
            last_check.set(oldest.map_or(time, |oldest| oldest.min(time)));
        }
    }

    /// Adds the clients of a bundle to the gauges, which have been reset.
    pub(super) fn add_clients(&self, label: &str, counts: &BundleCounts) {
        for state in ClientState::ALL {
            let clients = i64::try_from(counts.of(state)).unwrap_or(i64::MAX);
            self.clients
                .with_label_values(&[label, state.label()])
                .add(clients);
        }
    }

    /// Adds a certificate to the gauges, which have been reset.
    pub(super) fn add_certificate(&self, certificate: &CertificateInUse) {
        self.certificate_expires
            .with_label_values(&[&certificate.key])
            .set(certificate.expiry.not_after.as_second());
    }

    /// Adds what is known of a bundle's withdrawal: the clients that still run the withdrawn
    /// version, and whether the fallback is served.
    pub(super) fn add_withdrawal(&self, label: &str, lost_clients: i64, is_fallback_served: bool) {
        self.lost_clients
            .with_label_values(&[label])
            .add(lost_clients);
        self.fallback
            .with_label_values(&[label])
            .add(is_fallback_served.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::InFlight;

    #[test]
    fn a_request_that_ends_after_its_bundle_was_removed_makes_no_series() {
        let metrics = Metrics::new();
        let server = ServerMetrics::new(&metrics).unwrap();
        let has = || metrics.render().unwrap().contains("authz");
        for has_counted_before in [true, false] {
            let scope = BundleScope::new("authz".into());
            let requests = server.bundle(&scope);
            let held = requests.waiters().map(InFlight::enter);
            if has_counted_before {
                requests.count(StatusCode::OK);
                requests.count_sent(1);
            }
            assert!(has());
            scope.remove();
            assert!(!has());
            requests.count(StatusCode::OK);
            requests.count(StatusCode::NOT_FOUND);
            requests.count_sent(1);
            drop(held);
            assert!(!has());
        }
    }

    #[test]
    fn a_bundle_that_is_named_as_requests_without_a_bundle_are_does_not_end_their_count() {
        let metrics = Metrics::new();
        let server = ServerMetrics::new(&metrics).unwrap();
        let scope = BundleScope::new(OTHER.into());
        server.bundle(&scope).count(StatusCode::NOT_FOUND);
        server.count_other(StatusCode::NOT_FOUND);
        scope.remove();
        server.count_other(StatusCode::NOT_FOUND);
        let series = r#"bundlegate_http_requests_total{bundle="other",code="404"}"#;
        assert_eq!(metrics.sample(series), Some(1.0));
    }
}
