//! The bundle API: routing, authorization and responses. When a request is answered is decided in
//! [`super::long_poll`].

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, HeaderValue, USER_AGENT},
};
use percent_encoding::percent_decode_str;
use tokio::time::{Instant, timeout_at};

use super::{
    Catalog, Entry, LongPoll,
    clients::{AccessDecision, Credential, LiveClients},
    connection::Peer,
    drain::DrainSignal,
    holdout_tracker::{ClientId, HoldoutTracker},
    if_none_match::IfNoneMatch,
    long_poll::{BundleReply, BundleRequest},
    metrics::ServerMetrics,
    pacer::Pacer,
    prefer,
    request_body::RequestBody,
    response,
    response_body::ResponseBody,
    trusted_proxies::TrustedProxies,
    webhook_api::WebhookApi,
};
use crate::{
    catalog::{self, Demanded, Refusal},
    webhooks::Listener,
};

/// How often a bundle is added for one request: it may be removed again before the request holds
/// it.
const MAX_ADDED: usize = 2;

/// The handler of the bundle API.
#[derive(Debug)]
pub(super) struct BundleApi {
    pub(super) catalog: Catalog,
    pub(super) clients: LiveClients,
    pub(super) trusted_proxies: TrustedProxies,
    pub(super) metrics: ServerMetrics,
    pub(super) long_poll: LongPoll,
    pub(super) pacer: Pacer,
    pub(super) drain: DrainSignal,
    pub(super) holdouts: HoldoutTracker,
    pub(super) webhooks: WebhookApi,
}

/// The target of a request.
enum Route {
    /// The response is complete without looking at a bundle.
    Done(Response<ResponseBody>),
    Bundle(Arc<Entry>, BundleRequest),
    /// A bundle that is added on demand. The client may read it.
    Demand(String, BundleRequest),
}

impl BundleApi {
    /// Answers a request, and counts the response.
    pub(super) async fn handle(
        &self,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> Response<ResponseBody> {
        if request.method() == Method::POST
            && !peer.is_over_limit
            && let Some(hook) = self.webhooks.find(Listener::Data, request.uri().path())
        {
            return self.webhooks.handle(&hook, request).await;
        }
        // The body is dropped, so that it is not kept while the request is held.
        let request = request.map(drop);
        let (response, entry) = match self.route(request, peer) {
            Route::Done(response) => (response, None),
            Route::Bundle(entry, request) => self.serve_or_demand(entry, &request).await,
            Route::Demand(name, request) => self.serve_on_demand(&name, &request).await,
        };
        // A client without a token must not learn which bundles exist, not even from the metrics.
        let is_hidden = response.status() == StatusCode::UNAUTHORIZED;
        match entry.filter(|_| !is_hidden) {
            Some(entry) => entry.metrics().count(response.status()),
            None => self.metrics.count_other(response.status()),
        }
        response
    }

    /// Consumes the request, so that its headers are not kept while it is held.
    fn route(&self, request: Request<()>, peer: Peer) -> Route {
        if peer.is_over_limit {
            return Route::Done(response::unavailable(None));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Route::Done(response::method_not_allowed());
        }
        let Some(resource) = resource(request.uri().path()) else {
            let message = "the path is not percent-encoded UTF-8";
            return Route::Done(response::error(
                StatusCode::BAD_REQUEST,
                "bad_request",
                message,
                None,
            ));
        };
        let found = self.catalog.find(&resource);
        let name = found
            .as_ref()
            .map_or_else(|| catalog::bundle_name(&resource), |entry| entry.name());
        let headers = request.headers();
        let credential = Credential::of(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes));
        if let Some(denial) = self.denial(credential, name) {
            return Route::Done(denial);
        }
        // Only after the denial: a client learns nothing of patterns that it may not read, and
        // causes no request to a registry.
        if found.is_none() && !self.catalog.has_pattern_of(name) {
            return Route::Done(response::not_found());
        }
        let bundle_request = BundleRequest {
            began: Instant::now(),
            if_none_match: IfNoneMatch::parse(headers),
            wait: prefer::wait(headers),
            client: ClientId {
                address: self.trusted_proxies.client_address(peer.address, headers),
                credential,
                user_agent: user_agent_hash(headers),
            },
            predates_long_polling: predates_long_polling(headers),
            is_head: request.method() == Method::HEAD,
            slot: peer.slot,
        };
        match found {
            Some(entry) => Route::Bundle(entry, bundle_request),
            None => Route::Demand(name.to_owned(), bundle_request),
        }
    }

    /// Serves a bundle. If it is removed meanwhile and a pattern has its name, it is added again: a
    /// bundle that was added on demand may expire between the lookup and the first use.
    async fn serve_or_demand(
        &self,
        mut entry: Arc<Entry>,
        request: &BundleRequest,
    ) -> (Response<ResponseBody>, Option<Arc<Entry>>) {
        match self.serve(&mut entry, request).await {
            Some(response) => (response, Some(entry)),
            None => self.serve_on_demand(entry.name(), request).await,
        }
    }

    /// Serves a bundle that is added on demand. It is called for clients that may read it.
    async fn serve_on_demand(
        &self,
        name: &str,
        request: &BundleRequest,
    ) -> (Response<ResponseBody>, Option<Arc<Entry>>) {
        let hold = self.hold_of(request);
        let deadline = request.began + hold.unwrap_or(self.long_poll.first_wait);
        for _ in 0..MAX_ADDED {
            // A request that waits counts against the limit of held requests.
            let Some(hold) = request.slot.begin_hold() else {
                return (response::unavailable(Some(name)), None);
            };
            let demanded = timeout_at(deadline, self.catalog.demand(name)).await;
            drop(hold);
            let refusal = match demanded {
                Ok(Demanded::Added(mut entry)) => match self.serve(&mut entry, request).await {
                    Some(response) => return (response, Some(entry)),
                    // Removed again, to make room or by another configuration.
                    None => continue,
                },
                Ok(Demanded::Unknown) => break,
                Ok(Demanded::Refused(refusal)) => refusal,
                Err(_) => Refusal {
                    is_withdrawn: false,
                    message: "a new configuration is being applied; try again".to_owned(),
                },
            };
            let reason = if refusal.is_withdrawn {
                "withdrawn"
            } else {
                "pending"
            };
            return (response::absent(reason, &refusal.message, name), None);
        }
        (response::not_found(), None)
    }

    /// The response to a client that may not read the bundle `name`; `None` if it may.
    fn denial(&self, credential: Credential, name: &str) -> Option<Response<ResponseBody>> {
        match self.clients.current().authorize(credential, name) {
            AccessDecision::Granted => None,
            AccessDecision::Hidden => Some(response::not_found()),
            AccessDecision::Unauthorized => Some(response::unauthorized()),
        }
    }

    /// `None` if the bundle was removed while the request was held; `entry` is then the last one.
    async fn serve(
        &self,
        entry: &mut Arc<Entry>,
        request: &BundleRequest,
    ) -> Option<Response<ResponseBody>> {
        let reply = self.respond(entry, request).await;
        // The client's token may have been removed while its request was held.
        if let Some(denial) = self.denial(request.client.credential, entry.name()) {
            return Some(denial);
        }
        Some(match reply {
            BundleReply::NotModified(snapshot) => response::not_modified(&snapshot),
            BundleReply::Absent { reason, message } => {
                response::absent(reason, &message, entry.name())
            }
            BundleReply::Unavailable => response::unavailable(Some(entry.name())),
            BundleReply::Removed => return None,
            BundleReply::Bundle(snapshot) => {
                let plain = request.wait.is_none() && request.predates_long_polling;
                let content_type = plain.then(|| HeaderValue::from_static("application/gzip"));
                let response = response::bundle(&snapshot, content_type);
                // HEAD gets the same response at the same time, without the body.
                if !request.is_head {
                    entry
                        .metrics()
                        .count_sent(snapshot.content().bytes().size());
                }
                response
            }
        })
    }
}

/// The path without its first slash, percent-decoded once; `None` when it can't be decoded.
pub(super) fn resource(path: &str) -> Option<Cow<'_, str>> {
    let hex = |escape: &str| {
        escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())
    };
    // The decoder would leave a malformed escape as it is.
    if !path.split('%').skip(1).all(hex) {
        return None;
    }
    percent_decode_str(path.strip_prefix('/').unwrap_or(path))
        .decode_utf8()
        .ok()
}

/// A hash of `User-Agent`. It needs no secret key: a collision only makes two clients count as one.
fn user_agent_hash(headers: &HeaderMap) -> u64 {
    let mut hasher = DefaultHasher::new();
    headers.get(USER_AGENT).hash(&mut hasher);
    hasher.finish()
}

/// OPA before 0.39 takes the bundle content type as support for long polling and, when it did not
/// ask for that, polls without pause.
fn predates_long_polling(headers: &HeaderMap) -> bool {
    let agent = headers
        .get(USER_AGENT)
        .and_then(|agent| agent.to_str().ok());
    let minor = agent
        .and_then(|agent| agent.strip_prefix("Open Policy Agent/0."))
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor < 39)
}
