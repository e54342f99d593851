//! Receives notifications of registries, and has the registry checked for the bundles that they
//! concern. A notification is a hint and nothing more: see [`crate::webhooks`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    header::{ALLOW, HeaderValue, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde_json::json;
use tokio::{task::spawn_blocking, time::timeout};

use super::{
    Catalog,
    metrics::ServerMetrics,
    request_body::{BodyError, RequestBody},
    response,
    response_body::ResponseBody,
    webhooks::{EventOutcome, Hook, LiveWebhooks, WebhookStatus},
};
use crate::{
    oci::Digest,
    publish::Hint,
    telemetry,
    traces::{Span, Traces},
    webhooks::{Authentication, Decision, Listener, Malformed, Notification, Push, Webhook},
};

/// The size of a body.
const MAX_BODY_BYTES: usize = 1 << 20;
/// For a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// As [`BODY_TIMEOUT`], where only the body authenticates the sender.
const UNAUTHENTICATED_BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// For a permit to read a body.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The handler of webhooks on both listeners. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct WebhookApi {
    webhooks: LiveWebhooks,
    catalog: Catalog,
    metrics: ServerMetrics,
    traces: Traces,
}

/// A notification that is refused.
struct Refusal {
    outcome: EventOutcome,
    message: String,
    response: Response<ResponseBody>,
}

/// What a notification has led to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Delivered {
    matched: usize,
    unmatched: usize,
    ignored: usize,
    bundles: usize,
}

impl WebhookApi {
    pub(super) fn new(
        webhooks: LiveWebhooks,
        catalog: Catalog,
        metrics: ServerMetrics,
        traces: Traces,
    ) -> Self {
        Self {
            webhooks,
            catalog,
            metrics,
            traces,
        }
    }

    /// The webhook at a path of a listener.
    pub(super) fn find(&self, listener: Listener, path: &str) -> Option<Arc<Hook>> {
        self.webhooks.find(listener, path)
    }

    /// What operators see of the webhooks, by name.
    pub(super) fn statuses(&self) -> BTreeMap<String, WebhookStatus> {
        self.webhooks.statuses()
    }

    /// The configured webhooks, whose series remain.
    pub(super) fn retain_series(&self) {
        self.metrics.retain_webhooks(&self.webhooks);
    }

    /// Answers a POST.
    pub(super) async fn handle(
        &self,
        hook: &Arc<Hook>,
        request: Request<RequestBody>,
    ) -> Response<ResponseBody> {
        let span = self.traces.request("POST /webhooks/{name}", None);
        match span.run(self.receive(hook, request)).await {
            Ok(delivered) => {
                self.count(hook, &delivered);
                let Delivered {
                    matched,
                    unmatched,
                    ignored,
                    bundles,
                } = delivered;
                let events = matched + unmatched + ignored;
                response::json(
                    StatusCode::OK,
                    &json!({ "events": events, "matched": matched, "ignored": ignored, "bundles": bundles }),
                )
            }
            Err(refusal) => self.refuse(hook, *refusal),
        }
    }

    async fn receive(
        &self,
        hook: &Arc<Hook>,
        request: Request<RequestBody>,
    ) -> Result<Delivered, Box<Refusal>> {
        let (head, body) = request.into_parts();
        let Webhook { authentication, .. } = &hook.webhook;
        let unauthorized = || Refusal::unauthorized(authentication);
        // Without a secret, a web page could send it.
        if *authentication == Authentication::None && head.headers.contains_key(ORIGIN) {
            return Err(unauthorized());
        }
        let decision = authentication.decide(&head.headers, head.uri.query(), telemetry::now());
        if decision == Decision::Refused {
            return Err(unauthorized());
        }
        let Ok(Some(permit)) = timeout(PERMIT_TIMEOUT, hook.body_permit()).await else {
            return Err(Refusal::limited());
        };
        let deadline = match decision {
            Decision::NeedsBody => UNAUTHENTICATED_BODY_TIMEOUT,
            _ => BODY_TIMEOUT,
        };
        let body = body.read(MAX_BODY_BYTES, deadline).await;
        let body = body.map_err(Refusal::unreadable)?;
        let (this, hook, headers) = (self.clone(), Arc::clone(hook), head.headers);
        let deliver = Span::carried(move || {
            let _permit = permit;
            this.deliver(&hook, decision, &headers, &body)
        });
        let delivering = spawn_blocking(deliver);
        delivering
            .await
            .unwrap_or_else(|_| Err(Refusal::internal()))
    }

    /// Blocks for as long as it takes to parse the body.
    fn deliver(
        &self,
        hook: &Hook,
        decision: Decision,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Delivered, Box<Refusal>> {
        let authentication = &hook.webhook.authentication;
        if decision == Decision::NeedsBody && !authentication.accepts_body(headers, body) {
            return Err(Refusal::unauthorized(authentication));
        }
        // Counted for authentic notifications only: others must not use up what is left.
        if !hook.admits() {
            return Err(Refusal::limited());
        }
        let notification = hook.webhook.kind.parse(headers, body);
        let notification = notification.map_err(|error| Refusal::malformed(&error))?;
        Ok(self.hint(&hook.webhook, &notification))
    }

    /// Asks for the checks. Each bundle is asked once, whatever the number of events.
    fn hint(&self, webhook: &Webhook, notification: &Notification) -> Delivered {
        let mut hints: HashMap<String, Hint> = HashMap::new();
        let mut delivered = Delivered {
            ignored: notification.ignored,
            ..Delivered::default()
        };
        for push in &notification.pushes {
            let mut count = 0;
            for (name, hint) in self.concerned(webhook, push) {
                count += 1;
                match hints.get(&name) {
                    // It covers evidence as well.
                    Some(Hint::Push) => {}
                    Some(Hint::Evidence) | None => _ = hints.insert(name, hint),
                }
            }
            match count {
                0 => delivered.unmatched += 1,
                _ => delivered.matched += 1,
            }
        }
        delivered.bundles = hints.len();
        for (name, hint) in hints {
            if let Some(entry) = self.catalog.get(&name) {
                entry.hint(hint);
            }
        }
        delivered
    }

    /// The bundles that a push concerns: those of its repository, and those that lack evidence for
    /// the artifact that it refers to, wherever that is.
    fn concerned(&self, webhook: &Webhook, push: &Push) -> Vec<(String, Hint)> {
        let host = webhook.host.as_deref();
        let hint = |entry: &super::Entry| {
            let reference = entry.reference();
            if push.is_to(reference, host) {
                if push.may_move(reference) {
                    return Some(Hint::Push);
                }
                if push.may_be_evidence() {
                    return Some(Hint::Evidence);
                }
            }
            let lacks = |subject: &Digest| entry.lacks_evidence(subject);
            push.subject().is_some_and(lacks).then_some(Hint::Evidence)
        };
        self.catalog
            .filter_map(|entry| hint(entry).map(|hint| (entry.name().to_owned(), hint)))
    }

    fn count(&self, hook: &Hook, delivered: &Delivered) {
        for (outcome, count) in [
            (EventOutcome::Matched, delivered.matched),
            (EventOutcome::Unmatched, delivered.unmatched),
            (EventOutcome::Ignored, delivered.ignored),
        ] {
            if count > 0 {
                hook.record(outcome, count as u64);
                self.metrics
                    .count_events(&hook.webhook.name, outcome, count as u64);
            }
        }
    }

    fn refuse(&self, hook: &Hook, refusal: Refusal) -> Response<ResponseBody> {
        let Refusal {
            outcome,
            message,
            response,
        } = refusal;
        let webhook = hook.webhook.name.as_str();
        self.metrics.count_events(webhook, outcome, 1);
        if hook.record_refusal(outcome, &message) {
            let outcome = outcome.label();
            tracing::warn!(webhook, outcome, "webhook: {message}");
        }
        response
    }
}

impl Refusal {
    fn unauthorized(authentication: &Authentication) -> Box<Self> {
        let message = "the notification is not authentic; compare the secrets of both sides";
        let mut response = response::error(StatusCode::UNAUTHORIZED, "unauthorized", message, None);
        let headers = response.headers_mut();
        headers.insert(WWW_AUTHENTICATE, authentication.challenge());
        Self::new(EventOutcome::Unauthorized, message, response)
    }

    fn limited() -> Box<Self> {
        let message = "too many notifications; polling finds what they tell";
        let mut response = response::error(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            message,
            None,
        );
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        Self::new(EventOutcome::Limited, message, response)
    }

    fn malformed(error: &Malformed) -> Box<Self> {
        let message = error.to_string();
        let response = response::error(StatusCode::BAD_REQUEST, "malformed", &message, None);
        Self::new(EventOutcome::Malformed, &message, response)
    }

    fn unreadable(error: BodyError) -> Box<Self> {
        let (outcome, message) = match error {
            BodyError::TooLarge => (EventOutcome::Malformed, "the body is too large"),
            BodyError::TimedOut => (EventOutcome::Incomplete, "the body did not arrive in time"),
            BodyError::Broken => (EventOutcome::Incomplete, "the connection broke"),
        };
        let response = response::unreadable_body(error, MAX_BODY_BYTES);
        Self::new(outcome, message, response)
    }

    fn internal() -> Box<Self> {
        let message = "reading the notification failed; please report this";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let response = response::error(status, "internal", message, None);
        Self::new(EventOutcome::Malformed, message, response)
    }

    fn new(outcome: EventOutcome, message: &str, response: Response<ResponseBody>) -> Box<Self> {
        Box::new(Self {
            outcome,
            message: message.to_owned(),
            response,
        })
    }
}

/// 405 for every method but POST.
pub(super) fn method_not_allowed() -> Response<ResponseBody> {
    let mut response = response::error(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "method not allowed; use POST",
        None,
    );
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static("POST"));
    response
}
