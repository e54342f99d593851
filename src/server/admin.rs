//! For operators: probes, metrics, status.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use hyper::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, HeaderValue},
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{connection::Caller, content::Content, drain::Leaving, report::Report, respond, survey::Survey};
use crate::{
    catalog::{Catalog, Entry},
    metrics::Metrics,
    watch::{Handle, Lost, Status},
};

/// What the admin listener tells. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    facts: Arc<Facts>,
    status: Report,
    metrics: Report,
}

#[derive(Debug)]
struct Facts {
    catalog: Catalog,
    metrics: Metrics,
    survey: Survey,
    ready_at: Instant,
    /// Once ready, ready until the drain, whatever happens to bundles.
    was_ready: AtomicBool,
    leaving: Leaving,
    since: String,
}

impl Admin {
    pub(super) fn new(catalog: Catalog, metrics: Metrics, survey: Survey, ready_at: Instant, leaving: Leaving) -> Self {
        let since = format!("{:.3}", crate::telemetry::now());
        let facts = Facts { catalog, metrics, survey, ready_at, was_ready: AtomicBool::new(false), leaving, since };
        Self { facts: Arc::new(facts), status: Report::default(), metrics: Report::default() }
    }

    pub(super) async fn answer(&self, request: Request<()>, caller: Caller) -> Response<Content> {
        if caller.is_too_many {
            return respond::unavailable(None);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let message = "use GET";
            let mut response = respond::error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message, None);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" => respond::json(StatusCode::OK, &json!({ "live": true })),
            "/readyz" => self.facts.readyz(),
            // With thousands of bundles these take their time, which no bundle request waits for.
            "/metrics" => {
                let facts = Arc::clone(&self.facts);
                made(self.metrics.get(move || facts.render()).await, METRICS)
            }
            "/status" => {
                let facts = Arc::clone(&self.facts);
                let status = self.status.get(move || Some(facts.status().to_string().into()));
                made(status.await, HeaderValue::from_static("application/json"))
            }
            _ => {
                let message = "there are /livez, /readyz, /metrics and /status";
                respond::error(StatusCode::NOT_FOUND, "not_found", message, None)
            }
        }
    }
}

impl Facts {
    fn readyz(&self) -> Response<Content> {
        let ready = self.is_ready();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let draining = self.leaving.has_begun();
        let lacking = if ready { Vec::new() } else { self.lacking() };
        respond::json(status, &json!({ "ready": ready, "draining": draining, "waiting_for": lacking }))
    }

    fn is_ready(&self) -> bool {
        if self.leaving.has_begun() {
            return false;
        }
        if self.was_ready.load(Ordering::Relaxed) || Instant::now() >= self.ready_at || self.lacking().is_empty() {
            self.was_ready.store(true, Ordering::Relaxed);
            return true;
        }
        false
    }

    fn lacking(&self) -> Vec<String> {
        let entries = self.catalog.entries().into_iter();
        entries.filter(|entry| !entry.has_concluded()).map(|entry| entry.name().to_owned()).collect()
    }

    /// All bundles. What is known of clients of others is dropped.
    fn entries(&self) -> Vec<Arc<Entry>> {
        self.survey.retain(|bundle| self.catalog.get(bundle).is_some());
        self.catalog.entries()
    }

    fn status(&self) -> Value {
        let entries = self.entries();
        let bundles = entries.iter().map(|entry| {
            let handle = entry.handle();
            let mut status = serde_json::to_value(entry.status()).unwrap_or_default();
            let waiters = self.metrics.waiters.with_label_values(&[handle.name()]).get();
            if let Value::Object(status) = &mut status {
                status.insert("waiters".to_owned(), waiters.into());
                let lost = self.lost(handle);
                status
                    .insert("lost".to_owned(), lost.map_or(Value::Null, |(lost, clients)| lost_status(&lost, clients)));
                let fallback = serde_json::to_value(handle.fallback_status()).unwrap_or_default();
                status.insert("fallback".to_owned(), fallback);
            }
            (handle.name().to_owned(), status)
        });
        let bundles: Map<_, _> = bundles.collect();
        let version = env!("CARGO_PKG_VERSION");
        json!({ "version": version, "since": self.since, "ready": self.is_ready(), "bundles": bundles })
    }

    /// What a bundle does not serve any more, and how many still run it.
    fn lost(&self, handle: &Handle) -> Option<(Arc<Lost>, Option<usize>)> {
        let Some(lost) = handle.withdrawal().and_then(|withdrawal| withdrawal.lost) else {
            self.survey.close(handle.name());
            return None;
        };
        let clients = self.survey.holdouts(handle.name(), &lost);
        Some((lost, clients))
    }

    /// Sets the gauges that are derived from what is served. One caller at a time.
    fn count(&self) {
        self.metrics.reset_bundle_gauges();
        for entry in &self.entries() {
            let handle = entry.handle();
            self.count_status(handle.name(), &entry.status());
            let clients = self.lost(handle).and_then(|(_, clients)| clients).unwrap_or_default();
            let clients = i64::try_from(clients).unwrap_or(i64::MAX);
            self.metrics.lost_clients.with_label_values(&[handle.name()]).set(clients);
            let stands_in = handle.fallback_status().is_some_and(|fallback| fallback.since.is_some());
            self.metrics.bundle_fallback.with_label_values(&[handle.name()]).set(stands_in.into());
        }
    }

    fn count_status(&self, bundle: &str, status: &Status) {
        for state in ["pending", "serving", "withdrawn"] {
            self.metrics.bundle_state.with_label_values(&[bundle, state]).set((state == status.state).into());
        }
        if let (Some(manifest), Some(revision)) = (&status.manifest, &status.revision) {
            self.metrics.bundle_info.with_label_values(&[bundle, manifest, revision]).set(1);
        }
        self.metrics.bundle_older.with_label_values(&[bundle]).set(status.older.is_some().into());
        let last_check = status.last_check.as_ref().and_then(|time| time.parse::<Timestamp>().ok());
        if let Some(time) = last_check {
            self.metrics.last_check.with_label_values(&[bundle]).set(time.as_millisecond() as f64 / 1000.0);
        }
    }

    fn render(&self) -> Option<Bytes> {
        self.count();
        match self.metrics.render() {
            Ok((_, text)) => Some(text.into()),
            Err(error) => {
                tracing::error!(%error, "the metrics can't be written; please report this");
                None
            }
        }
    }
}

fn made(document: Option<Bytes>, content_type: HeaderValue) -> Response<Content> {
    let Some(document) = document else {
        let message = "making the document failed, the log says why; please report this";
        return respond::error(StatusCode::INTERNAL_SERVER_ERROR, "internal", message, None);
    };
    respond::text(StatusCode::OK, content_type, document)
}

fn lost_status(lost: &Lost, clients: Option<usize>) -> Value {
    json!({ "manifest": lost.manifest, "etag": lost.etag, "clients": clients })
}

const METRICS: HeaderValue = HeaderValue::from_static(prometheus::TEXT_FORMAT);
