//! The bundle API: routing, authorization and responses. When a request is answered is decided in
//! [`super::long_poll`].

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::time::{Instant, timeout_at};

use super::{
    Catalog, Entry, LiveSettings, LongPoll, absence,
    access_log::{AccessLog, AccessRecord},
    clients::{AccessDecision, Caller, Clients, LiveClients},
    connection::Peer,
    credential_checks::{Check, CredentialChecks, Identification},
    delivery::Delivery,
    delta_guard::DeltaGuard,
    drain::DrainSignal,
    fleet_recorder::{FleetRecorder, Sighting},
    holdout_tracker::{ClientId, HoldoutTracker},
    if_none_match::IfNoneMatch,
    long_poll::{BundleRequest, Woken},
    metrics::ServerMetrics,
    pacer::Pacer,
    pending_request::{HoldStart, PendingRequest},
    prefer,
    refusal::RefusalLog,
    repeat_guard::{Download, RepeatGuard},
    reply::Reply,
    request_body::RequestBody,
    request_head::{IdentityHeader, ReadMethod, RequestHead},
    response,
    response_body::ResponseBody,
    service::{Answer, Service},
    staged::{self, Asked, Choice, Versions},
    status_reports::StatusReports,
    webhook_api::WebhookApi,
};
use crate::{
    catalog::{self, Demanded, Refusal},
    fleet::{ClientBundle, Fleet, Offer, Poll, TagHash, WaitingPoll},
    publish::{Handle, Snapshot},
    rollout::{Staged, Variant},
    telemetry::{NAME_BYTES, cut},
    traces::{Span, Traces},
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
    pub(super) checks: CredentialChecks,
    pub(super) refusals: RefusalLog,
    pub(super) access_log: AccessLog,
    pub(super) metrics: ServerMetrics,
    pub(super) settings: LiveSettings,
    /// Follows the settings, as `repeats` and `access_log` do.
    pub(super) pacer: Pacer,
    pub(super) repeats: RepeatGuard,
    pub(super) deltas: DeltaGuard,
    pub(super) drain: DrainSignal,
    pub(super) holdouts: HoldoutTracker,
    pub(super) webhooks: WebhookApi,
    pub(super) traces: Traces,
    /// `None` without a fleet view.
    pub(super) fleet: Option<FleetRecorder>,
    /// `None` if status reports are not accepted.
    pub(super) reports: Option<StatusReports>,
}

/// How a request is answered.
pub(super) struct Decision {
    pub(super) reply: Reply,
    /// What the access log has of the request, if it has something.
    pub(super) access: Option<Arc<AccessRecord>>,
    /// The version that the fleet view has of the reply, if it sends one.
    pub(super) offer: Option<Offer>,
}

/// The client of a request, and the bundle that it may read.
struct Identity<'a> {
    clients: &'a Clients,
    caller: &'a Caller,
    bundle: Option<&'a str>,
}

/// The bundle that a request is for.
enum Route {
    /// There is none, or the client may not read it.
    Done(Response<ResponseBody>),
    Bundle(Arc<Entry>),
    /// A bundle that is added on demand. The client may read it.
    Demand(String),
}

impl Service for BundleApi {
    fn answer(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        peer: &Peer,
    ) -> Answer<Response<ResponseBody>> {
        if request.method() == Method::POST
            && !peer.is_over_limit
            && let Some(hook) = self.webhooks.find(Listener::Data, request.uri().path())
        {
            let head = RequestHead::with_method(&request, ReadMethod::Get, None);
            let record = self.record(&head, Method::POST.as_str(), peer, None);
            let api = Arc::clone(self);
            return Answer::later(async move {
                let response = api.webhooks.handle(&hook, request).await;
                if let Some(record) = &record {
                    record.set_reply(response.status(), None);
                }
                with_delivery(response, Delivery::new(record, None))
            });
        }
        if request.method() == Method::POST
            && !peer.is_over_limit
            && StatusReports::is_at(request.uri().path())
        {
            let head = RequestHead::with_method(&request, ReadMethod::Get, None);
            let record = self.record(&head, Method::POST.as_str(), peer, None);
            let receiving = Arc::clone(self).receive_report(request, peer.clone());
            return Answer::later(async move {
                let response = receiving.await;
                if let Some(record) = &record {
                    record.set_reply(response.status(), None);
                }
                with_delivery(response, Delivery::new(record, None))
            });
        }
        let began = Instant::now();
        // The request is dropped here, so that it is not kept while it is held.
        let answer = match RequestHead::of(&request, self.identity_header()) {
            Some(head) => self.decide(&head, peer),
            None => {
                let response = match peer.is_over_limit {
                    true => response::unavailable(None),
                    false => response::method_not_allowed(),
                };
                let reply = self.count_other(response);
                let head = RequestHead::with_method(&request, ReadMethod::Get, None);
                let method = request.method().as_str();
                let access = self.record(&head, method, peer, Some(reply.status()));
                Answer::Now(Decision::unrecorded(reply, access))
            }
        };
        // A request that is answered later records its own duration.
        if let Answer::Now(decision) = &answer {
            self.metrics
                .observe_request(decision.reply.status(), began.elapsed());
        }
        answer.map(|decision| {
            let delivery = Delivery::new(decision.access, decision.offer);
            with_delivery(decision.reply.into_response(), delivery)
        })
    }

    fn bundle_api(self: &Arc<Self>) -> Option<&Arc<BundleApi>> {
        Some(self)
    }
}

impl BundleApi {
    /// Decides about a request that reads a bundle, and counts the reply. Every protocol asks here.
    pub(super) fn decide(
        self: &Arc<Self>,
        head: &RequestHead<'_>,
        peer: &Peer,
    ) -> Answer<Decision> {
        let span = self.span(head, peer);
        if !span.is_recorded() {
            return self.decide_within(head, peer);
        }
        match span.in_scope(|| self.decide_within(head, peer)) {
            Answer::Now(decision) => {
                record_status(&span, decision.reply.status());
                Answer::Now(decision)
            }
            Answer::Later(decision) => Answer::later(async move {
                let decision = span.run(decision).await;
                record_status(&span, decision.reply.status());
                decision
            }),
        }
    }

    /// The span of a request (OpenTelemetry, HTTP server spans). It ends with the decision.
    fn span(&self, head: &RequestHead<'_>, peer: &Peer) -> Span {
        if !self.traces.is_on() {
            return Span::default();
        }
        let traceparent = head
            .traceparent
            .and_then(|value| str::from_utf8(value).ok());
        let name = match head.method {
            ReadMethod::Get => "GET /bundles/{name}",
            ReadMethod::Head => "HEAD /bundles/{name}",
        };
        let span = self.traces.request(name, traceparent);
        if span.is_recorded() {
            span.set("http.request.method", head.method.as_str());
            span.set("http.route", "/bundles/{name}");
            span.set("url.path", cut(head.path, NAME_BYTES).into_owned());
            span.set(
                "client.address",
                self.client_address(head, peer).to_string(),
            );
        }
        span
    }

    fn decide_within(self: &Arc<Self>, head: &RequestHead<'_>, peer: &Peer) -> Answer<Decision> {
        if peer.is_over_limit {
            let reply = self.count_other(response::unavailable(None));
            let access = self.record(head, head.method.as_str(), peer, Some(reply.status()));
            return Answer::Now(Decision::unrecorded(reply, access));
        }
        let clients = self.clients.current();
        let credential = match self.checks.identify(&clients, head.authorization) {
            Identification::Known(credential) => credential,
            Identification::Pending(check) => return self.decide_after(check, head, peer),
        };
        let caller = Caller {
            credential,
            certificate: peer.certificate.clone(),
        };
        let address = || self.client_address(head, peer);
        let entry = match self.route(head.path, &clients, &caller, address) {
            Route::Done(response) => {
                let reply = self.count_other(response);
                let identity = Identity::new(&clients, &caller, None);
                return Answer::Now(self.decided(reply, head, peer, &identity));
            }
            Route::Bundle(entry) if entry.staged().is_some_and(Staged::is_live) => {
                let identity = Identity::new(&clients, &caller, Some(entry.name()));
                if let Some((reply, offer)) = self.staged_at_once(&entry, head, peer, &identity) {
                    let decision = self.decided(reply, head, peer, &identity);
                    return Answer::Now(Decision { offer, ..decision });
                }
                Ok(entry)
            }
            Route::Bundle(entry) => {
                if let Some(reply) = self.reply_at_once(&entry, head, peer) {
                    let identity = Identity::new(&clients, &caller, Some(entry.name()));
                    if let Some(fleet) = &self.fleet {
                        let sighting = self.sighting(head, peer, &identity, entry.name());
                        fleet.record_answered(&sighting, head.method, &reply);
                    }
                    return Answer::Now(self.decided(reply, head, peer, &identity));
                }
                Ok(entry)
            }
            Route::Demand(name) => Err(name),
        };
        let access = self.record(head, head.method.as_str(), peer, None);
        if let Some(record) = &access {
            let bundle = Some(name_of(&entry));
            Identity::new(&clients, &caller, bundle).record(record, head.path);
        }
        let waiting = self.fleet.as_ref().and_then(|fleet| {
            let identity = Identity::new(&clients, &caller, None);
            let sighting = self.sighting(head, peer, &identity, name_of(&entry));
            let if_none_match = IfNoneMatch::new(head.if_none_match);
            record_waiting(fleet, &sighting, head.method, if_none_match, &entry)
        });
        let mut request = self.bundle_request(head, caller, peer, access);
        request.waiting = waiting;
        serve_later(self.pending(request), entry)
    }

    /// A reply that is ready, with what the access log has of its request.
    fn decided(
        &self,
        reply: Reply,
        head: &RequestHead<'_>,
        peer: &Peer,
        identity: &Identity<'_>,
    ) -> Decision {
        let status = reply.status();
        let access = self.record(head, head.method.as_str(), peer, Some(status));
        if let Some(record) = &access {
            identity.record(record, head.path);
        }
        Decision::unrecorded(reply, access)
    }

    /// The header that names a client, if there is a fleet view.
    pub(super) fn identity_header(&self) -> Option<&IdentityHeader> {
        self.fleet.as_ref().map(FleetRecorder::identity_header)
    }

    /// What the fleet view needs of a request for a bundle.
    fn sighting<'a>(
        &self,
        head: &RequestHead<'a>,
        peer: &'a Peer,
        identity: &Identity<'a>,
        bundle: &'a str,
    ) -> Sighting<'a> {
        // Most requests have no such header, and then the settings need not be read.
        let is_forwarded = !head.x_forwarded_for.is_absent();
        Sighting {
            clients: identity.clients,
            caller: identity.caller,
            peer,
            name: head.identity,
            forwarded: is_forwarded.then(|| self.client_address(head, peer)),
            authorization: head.authorization,
            user_agent: head.user_agent,
            bundle,
        }
    }

    /// What the access log has of a request, if it has something. `status` is that of its reply, if
    /// there is one already.
    fn record(
        &self,
        head: &RequestHead<'_>,
        method: &str,
        peer: &Peer,
        status: Option<StatusCode>,
    ) -> Option<Arc<AccessRecord>> {
        if !self.access_log.records(status) {
            return None;
        }
        let address = self.client_address(head, peer);
        let began = peer.slot.arrived();
        let record = self.access_log.record(head, method, address, began);
        if let Some(status) = status {
            record.set_reply(status, None);
        }
        Some(record)
    }

    /// Decides about a request once its credential was checked.
    fn decide_after(
        self: &Arc<Self>,
        check: Check,
        head: &RequestHead<'_>,
        peer: &Peer,
    ) -> Answer<Decision> {
        let path = head.path.to_owned();
        let unknown = Caller {
            certificate: peer.certificate.clone(),
            ..Caller::anonymous()
        };
        let access = self.record(head, head.method.as_str(), peer, None);
        let mut pending = self.pending(self.bundle_request(head, unknown, peer, access));
        let owned = |value: Option<&[u8]>| value.map(Box::<[u8]>::from);
        let (name, user_agent) = (owned(head.identity), owned(head.user_agent));
        let peer = peer.clone();
        Answer::later(async move {
            let api = Arc::clone(&pending.api);
            let address = pending.request.client.address;
            // A request that waits counts against the limit of held requests.
            let Some(hold) = pending.request.slot.begin_hold() else {
                return pending.finish(api.count_other(response::unavailable(None)));
            };
            let checked = api.checks.run(check, &api.clients, address).await;
            drop(hold);
            let Ok(credential) = checked else {
                api.refusals.too_many_attempts(address);
                return pending.finish(api.count_other(response::too_many_attempts()));
            };
            pending.request.client.caller.credential = credential;
            let (clients, caller) = (api.clients.current(), &pending.request.client.caller);
            let routed = api.route(&path, &clients, caller, || address);
            let entry = match routed {
                Route::Done(response) => Err(response),
                Route::Bundle(entry) => Ok(Ok(entry)),
                Route::Demand(name) => Ok(Err(name)),
            };
            if let Some(record) = &pending.request.access {
                let bundle = entry.as_ref().ok().map(name_of);
                Identity::new(&clients, caller, bundle).record(record, &path);
            }
            let waiting = api.fleet.as_ref().zip(entry.as_ref().ok());
            let waiting = waiting.and_then(|(fleet, entry)| {
                let sighting = Sighting {
                    clients: &clients,
                    caller,
                    peer: &peer,
                    name: name.as_deref(),
                    forwarded: Some(address),
                    // Such a request does not share the hash of one that needed no check.
                    authorization: None,
                    user_agent: user_agent.as_deref(),
                    bundle: name_of(entry),
                };
                let request = &pending.request;
                let if_none_match = request.if_none_match.get();
                record_waiting(fleet, &sighting, request.method, if_none_match, entry)
            });
            drop(clients);
            pending.request.waiting = waiting;
            match entry {
                Ok(entry) => serve_later(pending, entry).get().await,
                Err(response) => pending.finish(api.count_other(response)),
            }
        })
    }

    fn pending(self: &Arc<Self>, request: BundleRequest) -> PendingRequest {
        PendingRequest {
            api: Arc::clone(self),
            request,
        }
    }

    /// Finds the bundle of a request. A client without a right to it learns nothing of it.
    fn route(
        &self,
        path: &str,
        clients: &Clients,
        caller: &Caller,
        address: impl FnOnce() -> IpAddr,
    ) -> Route {
        let Some(resource) = resource(path) else {
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
        if let Some(denial) = self.denial(clients, caller, name, address) {
            return Route::Done(denial);
        }
        // Only after the denial: a client learns nothing of patterns that it may not read, and
        // causes no request to a registry.
        match found {
            Some(entry) => Route::Bundle(entry),
            None if self.catalog.has_pattern_of(name) => Route::Demand(name.to_owned()),
            None => Route::Done(response::not_found()),
        }
    }

    /// The reply of a bundle that is served, if it needs no waiting.
    fn reply_at_once(
        &self,
        entry: &Arc<Entry>,
        head: &RequestHead<'_>,
        peer: &Peer,
    ) -> Option<Reply> {
        let snapshot = entry.handle().served_at(crate::telemetry::now)?;
        let wait = prefer::wait(head.prefer);
        let if_none_match = IfNoneMatch::new(head.if_none_match);
        let reply = if if_none_match.is_current(snapshot.etag()) {
            wait.is_none().then_some(Reply::not_modified(snapshot))?
        } else {
            let is_sent =
                if_none_match.is_empty() && self.may_send_now(entry, &snapshot, wait, peer);
            is_sent.then(|| {
                let predates_long_polling = predates_long_polling(head.user_agent);
                Reply::bundle(snapshot, wait, predates_long_polling)
            })?
        };
        let reply = match entry.staged() {
            // Not while some clients get a candidate.
            Some(_) => reply.with_variant(Variant::Stable),
            None => reply,
        };
        let _use = entry.begin_use();
        // A bundle that gets requests has this series, though none of them is held.
        entry.metrics().waiters();
        Some(self.count(reply, Some(entry), head.method))
    }

    /// The reply of a bundle whose versions are rolled out in steps, if it needs no waiting, and the version
    /// that the fleet view has of it.
    fn staged_at_once(
        &self,
        entry: &Arc<Entry>,
        head: &RequestHead<'_>,
        peer: &Peer,
        identity: &Identity<'_>,
    ) -> Option<(Reply, Option<Offer>)> {
        let recorder = self
            .fleet
            .as_ref()
            .filter(|_| head.method == ReadMethod::Get);
        let Some(recorder) = recorder else {
            let (_, reply) = self.choose_at_once(entry, head, peer, None);
            return Some((self.count(reply?, Some(entry), head.method), None));
        };
        let sighting = self.sighting(head, peer, identity, entry.name());
        let reply = recorder.record_staged(&sighting, |client| {
            let client = client.map(|client| (&recorder.fleet, client));
            self.choose_at_once(entry, head, peer, client)
        })?;
        let offer = recorder.offer_at_once(&sighting, &reply);
        let _use = entry.begin_use();
        entry.metrics().waiters();
        Some((self.count(reply, Some(entry), head.method), offer))
    }

    /// What a request says about its client, and the reply, if it needs no waiting.
    fn choose_at_once(
        &self,
        entry: &Arc<Entry>,
        head: &RequestHead<'_>,
        peer: &Peer,
        client: Option<(&Fleet, &ClientBundle)>,
    ) -> (Poll, Option<Reply>) {
        let none = Poll {
            tag: None,
            is_current: false,
        };
        let Some(staged) = entry.staged() else {
            return (none, None);
        };
        let if_none_match = IfNoneMatch::new(head.if_none_match);
        let asked = Asked {
            began: None,
            if_none_match,
            client,
        };
        let wait = prefer::wait(head.prefer);
        let choice = staged::choose_served(entry, staged, &asked)
            .unwrap_or_else(|| Versions::of(entry, staged).choose(entry, staged, &asked));
        match choice {
            Choice::Version {
                snapshot,
                variant,
                is_current: true,
            } if wait.is_none() => {
                let poll = Poll {
                    tag: Some(snapshot.tag_hash()),
                    is_current: true,
                };
                let reply = Reply::not_modified(snapshot).with_variant(variant);
                (poll, Some(reply))
            }
            Choice::Version {
                snapshot, variant, ..
            } if if_none_match.is_empty() && self.may_send_now(entry, &snapshot, wait, peer) => {
                let predates_long_polling = predates_long_polling(head.user_agent);
                let reply = Reply::bundle(snapshot, wait, predates_long_polling);
                (none, Some(reply.with_variant(variant)))
            }
            _ => (none, None),
        }
    }

    /// The tag of a bundle's candidate, while some clients get it.
    pub(super) fn live_candidate(&self, bundle: &str) -> Option<TagHash> {
        let entry = self.catalog.get(bundle)?;
        entry.staged()?.plan.as_ref()?.candidate
    }

    /// Whether a body may be sent without waiting to a client that names no version.
    fn may_send_now(
        &self,
        entry: &Entry,
        snapshot: &Snapshot,
        wait: Option<Duration>,
        peer: &Peer,
    ) -> bool {
        let download = Download {
            bundle: entry.name(),
            first_tag: "",
            etag: snapshot.etag(),
        };
        // Where bodies are paced, one that is not admitted yet has to wait. Where deltas are sent, it is recorded which
        // client has started anew.
        self.pacer.is_unlimited()
            && !self.deltas.is_used()
            && (wait.is_none() || self.repeats.is_free(download, &peer.slot))
    }

    /// Everything that is kept of a request that is not answered at once.
    fn bundle_request(
        &self,
        head: &RequestHead<'_>,
        caller: Caller,
        peer: &Peer,
        access: Option<Arc<AccessRecord>>,
    ) -> BundleRequest {
        BundleRequest {
            began: Instant::now(),
            if_none_match: IfNoneMatch::new(head.if_none_match).to_owned(),
            wait: prefer::wait(head.prefer),
            accepts_delta: head.method == ReadMethod::Get && prefer::accepts_delta(head.prefer),
            client: ClientId {
                address: self.client_address(head, peer),
                caller,
                user_agent: user_agent_hash(head.user_agent),
            },
            predates_long_polling: predates_long_polling(head.user_agent),
            method: head.method,
            slot: Arc::clone(&peer.slot),
            hold_start: HoldStart::default(),
            access,
            waiting: None,
        }
    }

    /// Counts a reply. `entry`: the bundle that it is about.
    fn count(&self, reply: Reply, entry: Option<&Entry>, method: ReadMethod) -> Reply {
        let status = reply.status();
        // A client without a token must not learn which bundles exist, not even from the metrics.
        let Some(entry) = entry.filter(|_| status != StatusCode::UNAUTHORIZED) else {
            self.metrics.count_other(status);
            return reply;
        };
        if self.traces.is_on() {
            Span::set_current("bundlegate.bundle", || entry.name().to_owned().into());
        }
        entry.metrics().count(status);
        if let (Some(bytes), ReadMethod::Get) = (reply.bytes(), method) {
            entry.metrics().count_sent(bytes.size());
        }
        reply
    }

    /// Counts a response that is about no bundle.
    fn count_other(&self, response: Response<ResponseBody>) -> Reply {
        self.metrics.count_other(response.status());
        Reply::Other(response)
    }

    /// Serves a bundle that is added on demand. It is called for clients that may read it.
    async fn serve_on_demand(
        &self,
        name: &str,
        request: &BundleRequest,
    ) -> (Woken, Option<Arc<Entry>>) {
        let hold = self.hold_of(request);
        let deadline = request.began + hold.unwrap_or_else(|| self.long_poll().first_wait);
        for _ in 0..MAX_ADDED {
            // A request that waits counts against the limit of held requests.
            let Some(hold) = request.slot.begin_hold() else {
                return (Reply::from(response::unavailable(Some(name))).into(), None);
            };
            request.begin_hold();
            let demanded = timeout_at(deadline, self.catalog.demand(name)).await;
            drop(hold);
            let refusal = match demanded {
                Ok(Demanded::Added(mut entry)) => match self.respond(&mut entry, request).await {
                    Some(woken) => return (woken, Some(entry)),
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
            let reply = absence::refused(&refusal, name, request.detail());
            return (reply.into(), None);
        }
        (Reply::from(response::not_found()).into(), None)
    }

    /// How long requests are held, for a request that arrives now.
    pub(super) fn long_poll(&self) -> LongPoll {
        self.settings.current().long_poll
    }

    /// The response to a client that may not read the bundle `name`; `None` if it may.
    pub(super) fn denial(
        &self,
        clients: &Clients,
        caller: &Caller,
        name: &str,
        address: impl FnOnce() -> IpAddr,
    ) -> Option<Response<ResponseBody>> {
        match clients.authorize(caller, name) {
            AccessDecision::Granted => None,
            AccessDecision::Hidden { client } => {
                if let Some(client) = client {
                    self.refusals.not_permitted(client, name, address());
                }
                Some(response::not_found())
            }
            AccessDecision::Unauthorized(reason) => {
                self.metrics.count_unauthorized(reason.label());
                self.refusals.unauthorized(reason, name, address());
                Some(response::unauthorized(reason, clients.kinds()))
            }
        }
    }

    pub(super) fn client_address(&self, head: &RequestHead<'_>, peer: &Peer) -> IpAddr {
        self.settings
            .current()
            .trusted_proxies
            .client_address(peer.address, head.x_forwarded_for)
    }
}

impl<'a> Identity<'a> {
    fn new(clients: &'a Clients, caller: &'a Caller, bundle: Option<&'a str>) -> Self {
        Self {
            clients,
            caller,
            bundle,
        }
    }

    fn record(&self, record: &AccessRecord, path: &str) {
        let resource = resource(path).unwrap_or_default();
        let name = catalog::bundle_name(&resource);
        let name = self.bundle.unwrap_or(name);
        if let Some(client) = self.clients.name_of(self.caller, name) {
            record.set_client(client);
        }
        if let Some(bundle) = self.bundle {
            record.set_bundle(bundle);
        }
    }
}

/// Serves a bundle, or a bundle on demand with this name, and counts the reply.
fn serve_later(pending: PendingRequest, entry: Result<Arc<Entry>, String>) -> Answer<Decision> {
    Answer::later(async move {
        let PendingRequest { api, request } = &pending;
        let name = match entry {
            Ok(mut entry) => {
                if let Some(Woken { reply, at }) = api.respond(&mut entry, request).await {
                    let reply = api.count(reply, Some(&entry), request.method);
                    return pending.finish(Woken { reply, at });
                }
                // It was removed meanwhile. A bundle that was added on demand may expire between
                // the lookup and the first use, and is then added again.
                entry.name().to_owned()
            }
            Err(name) => name,
        };
        // Boxed, because it is rare, and each held request keeps this.
        let (woken, entry) = Box::pin(api.serve_on_demand(&name, request)).await;
        let Woken { reply, at } = woken;
        let reply = api.count(reply, entry.as_deref(), request.method);
        pending.finish(Woken { reply, at })
    })
}

fn name_of(entry: &Result<Arc<Entry>, String>) -> &str {
    match entry {
        Ok(entry) => entry.name(),
        Err(name) => name,
    }
}

/// Records in the fleet view a request that is held. `entry`: its bundle, or the name of one that is
/// added on demand.
fn record_waiting(
    fleet: &FleetRecorder,
    sighting: &Sighting<'_>,
    method: ReadMethod,
    if_none_match: IfNoneMatch<'_>,
    entry: &Result<Arc<Entry>, String>,
) -> Option<WaitingPoll> {
    // HEAD downloads nothing, and no OPA sends it.
    if method == ReadMethod::Head {
        return None;
    }
    let entry = entry.as_ref().ok();
    let served = entry.and_then(|entry| served_to(entry, if_none_match));
    fleet.record_waiting(sighting, if_none_match.first(), served.as_deref())
}

/// The version that a client would get now, as far as that is certain: the candidate of a roll-out for one that
/// runs it.
fn served_to(entry: &Entry, if_none_match: IfNoneMatch<'_>) -> Option<Arc<Snapshot>> {
    let served = |handle: &Handle| handle.served_at(crate::telemetry::now);
    let candidate = entry.staged().and_then(|staged| staged.candidate.as_ref());
    let candidate = candidate.and_then(served);
    let runs_it = |candidate: &Arc<Snapshot>| if_none_match.is_current(candidate.etag());
    candidate.filter(runs_it).or_else(|| served(entry.handle()))
}

/// Attaches to a response what is recorded of it.
fn with_delivery(
    mut response: Response<ResponseBody>,
    delivery: Delivery,
) -> Response<ResponseBody> {
    delivery.attach(&mut response);
    response
}

impl Decision {
    /// A decision that the fleet view has nothing of.
    pub(super) fn unrecorded(reply: Reply, access: Option<Arc<AccessRecord>>) -> Self {
        Self {
            reply,
            access,
            offer: None,
        }
    }
}

#[cfg(any(test, fuzzing))]
impl BundleApi {
    /// An API without webhooks, trusted proxies and limits of bandwidth. It is called within a
    /// runtime.
    #[allow(clippy::unwrap_used, reason = "a failed setup must abort the test")]
    pub(super) fn fixture(
        catalog: Catalog,
        clients: LiveClients,
        metrics: ServerMetrics,
        phase: tokio::sync::watch::Receiver<super::drain::Phase>,
    ) -> Self {
        use std::time::Duration;

        let webhooks = super::LiveWebhooks::default();
        Self {
            webhooks: WebhookApi::new(webhooks, catalog.clone(), metrics.clone(), Traces::off()),
            pacer: Pacer::new(None, Duration::ZERO, metrics.paced_requests.clone()),
            repeats: RepeatGuard::new(Duration::ZERO, metrics.delayed_downloads.clone()),
            deltas: DeltaGuard::default(),
            catalog,
            clients,
            checks: CredentialChecks::new(tokio::runtime::Handle::current()).unwrap(),
            refusals: RefusalLog::default(),
            access_log: AccessLog::new(super::AccessLevel::Off),
            metrics,
            fleet: None,
            reports: None,
            settings: super::Settings::fixture().into(),
            drain: DrainSignal::new(phase),
            holdouts: HoldoutTracker::default(),
            traces: Traces::off(),
        }
    }
}

fn record_status(span: &Span, status: StatusCode) {
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(status.as_str());
    }
}

/// The path without its first slash, percent-decoded once; `None` when it can't be decoded.
pub(super) fn resource(path: &str) -> Option<Cow<'_, str>> {
    let resource = path.strip_prefix('/').unwrap_or(path);
    if !resource.contains('%') {
        return Some(Cow::Borrowed(resource));
    }
    let hex = |escape: &str| {
        escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())
    };
    // The decoder would leave a malformed escape as it is.
    if !resource.split('%').skip(1).all(hex) {
        return None;
    }
    percent_decode_str(resource).decode_utf8().ok()
}

/// A hash of `User-Agent`. It needs no secret key: a collision only makes two clients count as one.
fn user_agent_hash(user_agent: Option<&[u8]>) -> u32 {
    let mut hasher = DefaultHasher::new();
    user_agent.hash(&mut hasher);
    hasher.finish() as u32
}

/// OPA before 0.39 takes the bundle content type as support for long polling and, when it did not
/// ask for that, polls without pause.
fn predates_long_polling(user_agent: Option<&[u8]>) -> bool {
    let version = user_agent.and_then(|agent| agent.strip_prefix(b"Open Policy Agent/0."));
    let minor = version.and_then(|version| version.split(|byte| *byte == b'.').next());
    let minor = minor.and_then(|minor| str::from_utf8(minor).ok()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor < 39)
}
