//! The admin API: liveness and readiness probes, metrics, the status as JSON and as a page, and checks
//! on request.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use hyper::{Method, Request, Response, StatusCode, header::HeaderValue};
use jiff::Timestamp;
use prometheus::IntGauge;
use serde_json::json;
use tokio::{runtime, time::Instant};

use super::{
    AdminOptions, Catalog, Entry, LiveSettings,
    admin_access::AdminAccess,
    bundle_api::BundleApi,
    connection::Peer,
    drain::DrainSignal,
    holdout_tracker::HoldoutTracker,
    metrics::ServerMetrics,
    overview::{BundleOverview, LostVersion, Overview, Readiness},
    page, refresh_api, reload_api,
    renderer::Renderer,
    request_body::RequestBody,
    response,
    response_body::ResponseBody,
    service::{Answer, Service},
    status,
    webhook_api::{self, WebhookApi},
    webhooks::WebhookStatus,
};
use crate::{publish::Handle, telemetry, webhooks::Listener};

/// The handler of the admin API.
#[derive(Debug)]
pub(super) struct AdminApi {
    access: AdminAccess,
    state: Arc<AdminState>,
    webhooks: WebhookApi,
    // Rendering thousands of bundles takes long, and must not delay bundle requests.
    page: Renderer,
    status: Renderer,
    metrics: Renderer,
}

/// What the admin API shows.
#[derive(Debug)]
pub(super) struct AdminContext {
    pub(super) catalog: Catalog,
    pub(super) metrics: ServerMetrics,
    pub(super) holdouts: HoldoutTracker,
    /// When the replica is ready at the latest.
    pub(super) ready_at: Instant,
    pub(super) drain: DrainSignal,
}

#[derive(Debug)]
struct AdminState {
    context: AdminContext,
    options: AdminOptions,
    /// The names of the bundles whose first version the replica waits for: those of the configuration
    /// at the start. One that a reload adds does not take the replica out of rotation, whether it
    /// has been ready before or not. Nor does one that is added on demand: it was asked for at a
    /// replica that was ready.
    awaited: Vec<String>,
    /// Once ready, the replica stays ready until the drain, whatever happens to bundles.
    was_ready: AtomicBool,
    since: Timestamp,
}

impl AdminApi {
    pub(super) fn new(
        context: AdminContext,
        options: AdminOptions,
        settings: LiveSettings,
        webhooks: WebhookApi,
        background: &runtime::Handle,
    ) -> Self {
        let access = AdminAccess {
            tokens: options.tokens.clone(),
            settings,
        };
        let state = AdminState::new(context, options);
        Self {
            access,
            state: Arc::new(state),
            webhooks,
            page: Renderer::new(background.clone()),
            status: Renderer::new(background.clone()),
            metrics: Renderer::new(background.clone()),
        }
    }

    async fn handle(&self, request: Request<RequestBody>, peer: Peer) -> Response<ResponseBody> {
        if peer.is_over_limit {
            return response::unavailable(None);
        }
        let path = request.uri().path();
        let is_post = request.method() == Method::POST;
        if let Some(hook) = self.webhooks.find(Listener::Admin, path) {
            return match is_post {
                true => self.webhooks.handle(&hook, request).await,
                false => webhook_api::method_not_allowed(),
            };
        }
        if let Some(operation) = Operation::at(path) {
            return match is_post {
                true => self.operate(operation, request, &peer).await,
                false => webhook_api::method_not_allowed(),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return response::method_not_allowed();
        }
        if let Some(refused) = self.access.refuse_read(&request) {
            return refused;
        }
        match request.uri().path() {
            "/livez" => response::json(StatusCode::OK, &json!({ "live": true })),
            "/readyz" => self.state.readyz(),
            "/metrics" => self.metrics().await,
            "/status" => self.status().await,
            "/" => self.page().await,
            _ => {
                let message = "no such endpoint; use /, /livez, /readyz, /metrics, /status, /refresh/NAME or /reload";
                response::error(StatusCode::NOT_FOUND, "not_found", message, None)
            }
        }
    }

    async fn metrics(&self) -> Response<ResponseBody> {
        let state = Arc::clone(&self.state);
        self.webhooks.retain_series();
        let document = self.metrics.render(move || state.render_metrics());
        document_response(document.await, METRICS_CONTENT_TYPE)
    }

    async fn status(&self) -> Response<ResponseBody> {
        let (state, webhooks) = (Arc::clone(&self.state), self.webhooks.clone());
        let document = self.status.render(move || {
            let overview = state.overview(webhooks.statuses());
            Some(status::gateway(&overview).to_string().into())
        });
        document_response(document.await, HeaderValue::from_static("application/json"))
    }

    async fn page(&self) -> Response<ResponseBody> {
        let (state, webhooks) = (Arc::clone(&self.state), self.webhooks.clone());
        let document = self
            .page
            .render(move || Some(page::render(&state.overview(webhooks.statuses()))));
        let mut response = document_response(document.await, HTML_CONTENT_TYPE);
        page::secure(&mut response);
        response
    }
}

/// A request that may change something.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Refresh,
    Reload,
}

impl Operation {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/reload" => Some(Self::Reload),
            path if path.starts_with(refresh_api::PREFIX) => Some(Self::Refresh),
            _ => None,
        }
    }
}

impl AdminApi {
    async fn operate(
        &self,
        operation: Operation,
        request: Request<RequestBody>,
        peer: &Peer,
    ) -> Response<ResponseBody> {
        let head = match self.access.admit(request, peer).await {
            Ok(head) => head,
            Err(refused) => return refused,
        };
        match operation {
            Operation::Refresh => refresh_api::handle(&self.state.context.catalog, &head).await,
            Operation::Reload => reload_api::handle(&self.state.options.reloads, &head).await,
        }
    }
}

impl Service for AdminApi {
    fn answer(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        peer: &Peer,
    ) -> Answer<Response<ResponseBody>> {
        let (api, peer) = (Arc::clone(self), peer.clone());
        Answer::later(async move { api.handle(request, peer).await })
    }

    fn bundle_api(self: &Arc<Self>) -> Option<&Arc<BundleApi>> {
        None
    }
}

impl AdminState {
    fn new(context: AdminContext, options: AdminOptions) -> Self {
        let configured = context.catalog.entries().into_iter();
        let configured = configured.filter(|entry| entry.pattern().is_none());
        Self {
            awaited: configured.map(|entry| entry.name().to_owned()).collect(),
            context,
            options,
            was_ready: AtomicBool::new(false),
            since: telemetry::now(),
        }
    }

    fn readyz(&self) -> Response<ResponseBody> {
        let ready = self.is_ready();
        let status = if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let draining = self.context.drain.is_draining();
        let waiting_for = if ready {
            Vec::new()
        } else {
            self.waiting_for()
        };
        response::json(
            status,
            &json!({ "ready": ready, "draining": draining, "waiting_for": waiting_for }),
        )
    }

    fn is_ready(&self) -> bool {
        if self.context.drain.is_draining() {
            return false;
        }
        if self.was_ready.load(Ordering::Relaxed)
            || Instant::now() >= self.context.ready_at
            || self.waiting_for().is_empty()
        {
            self.was_ready.store(true, Ordering::Relaxed);
            return true;
        }
        false
    }

    /// The bundles that are neither served nor refused for good.
    fn waiting_for(&self) -> Vec<&str> {
        let is_awaited = |name: &&String| {
            let entry = self.context.catalog.get(name);
            entry.is_some_and(|entry| entry.pattern().is_none() && !entry.is_settled())
        };
        let awaited = self.awaited.iter().filter(is_awaited);
        awaited.map(String::as_str).collect()
    }

    /// All bundles. Drops the clients of bundles that are no longer configured.
    fn entries(&self) -> Vec<Arc<Entry>> {
        let AdminContext {
            catalog, holdouts, ..
        } = &self.context;
        holdouts.retain(|bundle| catalog.get(bundle).is_some());
        catalog.entries()
    }

    fn overview(&self, webhooks: BTreeMap<String, WebhookStatus>) -> Overview {
        let AdminOptions {
            reloads,
            cache_problem,
            certificates,
            trust_roots,
            ..
        } = &self.options;
        let entries = self.entries();
        Overview {
            at: telemetry::now(),
            since: self.since,
            readiness: match self.context.drain.is_draining() {
                true => Readiness::Draining,
                false if self.is_ready() => Readiness::Ready,
                false => Readiness::Waiting(self.waiting_for().len()),
            },
            cache_problem: cache_problem.borrow().clone(),
            reload: reloads.last(),
            certificates: certificates.current(),
            trust_roots: trust_roots.borrow().clone(),
            bundles: entries.iter().map(|entry| self.bundle(entry)).collect(),
            webhooks,
        }
    }

    fn bundle(&self, entry: &Entry) -> BundleOverview {
        let handle = entry.handle();
        BundleOverview {
            name: handle.name().to_owned(),
            status: entry.status(),
            waiters: waiters(entry),
            pattern: entry.pattern().map(Into::into),
            withdrawn: handle.withdrawal().map(|withdrawal| withdrawal.reason),
            lost: self.withdrawn_version(handle),
            fallback: handle.fallback_status(),
        }
    }

    /// The version that a bundle has withdrawn, and the number of clients that still run it.
    fn withdrawn_version(&self, handle: &Handle) -> Option<LostVersion> {
        let Some(lost) = handle
            .withdrawal()
            .and_then(|withdrawal| withdrawal.version)
        else {
            self.context.holdouts.clear(handle.name());
            return None;
        };
        let clients = self.context.holdouts.count(handle.name(), &lost);
        Some(LostVersion {
            version: lost,
            clients,
        })
    }

    /// Sets the gauges that are derived from the published state. One caller at a time.
    fn update_gauges(&self) {
        let gauges = &self.context.metrics.status;
        gauges.reset();
        for certificate in self.options.certificates.current().iter() {
            gauges.add_certificate(certificate);
        }
        for entry in &self.entries() {
            let handle = entry.handle();
            gauges.add(entry.label(), entry.pattern().is_some(), &entry.status());
            let clients = self
                .withdrawn_version(handle)
                .and_then(|lost| lost.clients)
                .unwrap_or_default();
            let clients = i64::try_from(clients).unwrap_or(i64::MAX);
            let is_fallback_served = handle
                .fallback_status()
                .is_some_and(|fallback| fallback.since.is_some());
            gauges.add_withdrawal(entry.label(), clients, is_fallback_served);
        }
    }

    fn render_metrics(&self) -> Option<Bytes> {
        self.update_gauges();
        match self.context.metrics.registry.render() {
            Ok(text) => Some(text.into()),
            Err(error) => {
                tracing::error!(%error, "encoding the metrics failed; please report this");
                None
            }
        }
    }
}

/// The requests that are held for a bundle. The bundles of a pattern share their series.
fn waiters(entry: &Entry) -> i64 {
    match entry.requests() {
        Some(requests) => i64::try_from(requests).unwrap_or(i64::MAX),
        None => entry.metrics().waiters().map_or(0, IntGauge::get),
    }
}

fn document_response(document: Option<Bytes>, content_type: HeaderValue) -> Response<ResponseBody> {
    let Some(document) = document else {
        let message = "rendering the document failed; the log has the reason; please report this";
        return response::error(StatusCode::INTERNAL_SERVER_ERROR, "internal", message, None);
    };
    response::text(StatusCode::OK, content_type, document)
}

const METRICS_CONTENT_TYPE: HeaderValue = HeaderValue::from_static(prometheus::TEXT_FORMAT);
const HTML_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::watch, time::advance};

    use super::*;
    use crate::{
        metrics::{BundleScope, Metrics},
        publish::{
            CheckEnd, Event, Failure, FailureClass, Outcome, Publisher, Step, pending, serving,
        },
        server::{AdminAddress, drain::Phase},
    };

    const READY_AFTER: Duration = Duration::from_secs(30);

    /// A replica with the bundles `a` and `b`, of which `b` is served.
    struct Replica {
        admin: AdminState,
        a: Publisher,
        _b: Publisher,
        phase: watch::Sender<Phase>,
    }

    impl Replica {
        fn start() -> Self {
            let (a, handle) = pending("a");
            let (b, served) = serving("b", 1);
            let catalog = Catalog::default();
            let (phase, receiver) = watch::channel(Phase::Open);
            let address = AdminAddress::Unix("unused".into());
            let context = AdminContext {
                catalog,
                metrics: ServerMetrics::new(&Metrics::new()).unwrap(),
                holdouts: HoldoutTracker::default(),
                ready_at: Instant::now() + READY_AFTER,
                drain: DrainSignal::new(receiver),
            };
            for handle in [handle, served] {
                insert(&context, handle);
            }
            Self {
                admin: AdminState::new(context, address.into()),
                a,
                _b: b,
                phase,
            }
        }

        /// A check of `a` ends with a failure of this class.
        fn fails(&mut self, class: FailureClass) {
            let failure = Failure {
                class,
                step: Step::Resolve,
                digest: None,
                below: Arc::default(),
                etag: None,
                reason: "test",
                message: "a failure".to_owned(),
            };
            let outcome = Outcome::Failed(failure);
            let at = telemetry::now();
            self.a.apply(&Event::Checked { outcome, at }, None).unwrap();
            self.a.record_check(Instant::now(), false, CheckEnd::Failed);
        }
    }

    fn insert(context: &AdminContext, handle: Handle) {
        let requests = context
            .metrics
            .bundle(&BundleScope::new(handle.name().into()));
        let reference = "r.example/a:live".parse().unwrap();
        let entry = Entry::new(handle, reference, None, Arc::new(requests));
        context.catalog.insert(Arc::new(entry));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_may_pass_is_waited_for_until_ready_after_and_no_other() {
        for (class, is_awaited) in [
            (FailureClass::Transient, true),
            (FailureClass::RateLimited(None), true),
            (FailureClass::NotFound, false),
            (FailureClass::Denied, false),
            (FailureClass::Evidence, false),
            (FailureClass::Revoked, false),
            (FailureClass::Defect, false),
        ] {
            let mut replica = Replica::start();
            assert_eq!(replica.admin.waiting_for(), ["a"]);
            assert!(!replica.admin.is_ready());
            replica.fails(class);
            assert_eq!(replica.admin.is_ready(), !is_awaited, "{class:?}");
            advance(READY_AFTER - Duration::from_millis(1)).await;
            assert_eq!(replica.admin.is_ready(), !is_awaited, "{class:?}");
            advance(Duration::from_millis(1)).await;
            assert!(replica.admin.is_ready(), "{class:?}");
            // Nothing but the drain ends it.
            replica.fails(FailureClass::Transient);
            assert!(replica.admin.is_ready(), "{class:?}");
            replica.phase.send_replace(Phase::Notice);
            assert!(!replica.admin.is_ready(), "{class:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn neither_a_bundle_that_a_reload_adds_nor_one_that_it_removes_is_waited_for() {
        let mut replica = Replica::start();
        let (_publisher, added) = pending("c");
        insert(&replica.admin.context, added);
        assert_eq!(replica.admin.waiting_for(), ["a"]);
        replica.fails(FailureClass::Transient);
        assert!(!replica.admin.is_ready());
        replica.admin.context.catalog.remove("a");
        assert!(replica.admin.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_bundle_is_not_waited_for() {
        let replica = Replica::start();
        let entry = replica.admin.context.catalog.get("a").unwrap();
        entry.handle().set_suspended(true);
        // It may be on the disk.
        assert!(!replica.admin.is_ready());
        replica.a.record_suspension();
        assert!(replica.admin.is_ready());
    }
}
