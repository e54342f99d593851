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
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{connection::Caller, content::Content, drain::Leaving, report::Report, respond, status, survey::Survey};
use crate::{
    catalog::Catalog,
    metrics::Metrics,
    publish::{Handle, WithdrawnVersion},
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

    fn lacking(&self) -> Vec<&str> {
        self.catalog.iter().filter(|handle| !handle.has_concluded()).map(|handle| handle.name()).collect()
    }

    fn status(&self) -> Value {
        let bundles = self.catalog.iter().map(|handle| {
            let waiters = self.metrics.waiters.with_label_values(&[handle.name()]).get();
            let lost = self.lost(handle).map(|(lost, clients)| lost_status(&lost, clients));
            let mut status = status::bundle(&handle.status());
            status.insert("waiters".to_owned(), waiters.into());
            status.insert("lost".to_owned(), lost.unwrap_or_default());
            let fallback = handle.fallback_status().map(|fallback| status::fallback(&fallback));
            status.insert("fallback".to_owned(), fallback.unwrap_or_default());
            (handle.name().to_owned(), Value::Object(status))
        });
        let bundles: Map<_, _> = bundles.collect();
        let version = env!("CARGO_PKG_VERSION");
        json!({ "version": version, "since": self.since, "ready": self.is_ready(), "bundles": bundles })
    }

    /// What a bundle does not serve any more, and how many still run it.
    fn lost(&self, handle: &Handle) -> Option<(Arc<WithdrawnVersion>, Option<usize>)> {
        let Some(lost) = handle.withdrawal().and_then(|withdrawal| withdrawal.version) else {
            self.survey.close(handle.name());
            return None;
        };
        let clients = self.survey.holdouts(handle.name(), &lost);
        Some((lost, clients))
    }

    /// Brings up to date what nobody keeps up to date.
    fn count(&self) {
        for handle in self.catalog.iter() {
            let clients = self.lost(handle).and_then(|(_, clients)| clients).unwrap_or_default();
            let clients = i64::try_from(clients).unwrap_or(i64::MAX);
            self.metrics.lost_clients.with_label_values(&[handle.name()]).set(clients);
            let stands_in = handle.fallback_status().is_some_and(|fallback| fallback.since.is_some());
            self.metrics.bundle_fallback.with_label_values(&[handle.name()]).set(stands_in.into());
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

fn lost_status(lost: &WithdrawnVersion, clients: Option<usize>) -> Value {
    json!({ "manifest": lost.manifest, "etag": lost.etag, "clients": clients })
}

const METRICS: HeaderValue = HeaderValue::from_static(prometheus::TEXT_FORMAT);
