//! The admin API: liveness and readiness probes, metrics, the status as JSON and as a page, and checks
//! on request.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use hyper::{Method, Request, Response, StatusCode, header::HeaderValue};
use jiff::Timestamp;
use prometheus::IntGauge;
use serde_json::json;
use tokio::runtime;

use super::{
    AdminOptions, Catalog, Entry, LiveSettings,
    admin_access::AdminAccess,
    bundle_api::BundleApi,
    connection::Peer,
    fleet_api::{self, FleetApi},
    holdout_tracker::HoldoutTracker,
    metrics::ServerMetrics,
    overview::{BundleOverview, LostVersion, Overview, ReadinessState},
    page::{self, FleetOverview, Listing},
    readiness::Readiness,
    refresh_api,
    refusal::RefusalLog,
    reload_api,
    renderer::Renderer,
    request_body::RequestBody,
    response,
    response_body::ResponseBody,
    rollout_api,
    service::{Answer, Service},
    status,
    webhook_api::{self, WebhookApi},
    webhooks::WebhookStatus,
};
use crate::{fleet::Fleet, publish::Handle, telemetry, traces::Traces, webhooks::Listener};

/// The handler of the admin API.
#[derive(Debug)]
pub(super) struct AdminApi {
    access: AdminAccess,
    state: Arc<AdminState>,
    webhooks: WebhookApi,
    // Rendering thousands of bundles takes long, and must not delay bundle requests.
    page: Renderer,
    fleet: FleetApi,
    status: Renderer,
    rollouts: Renderer,
    metrics: Renderer,
}

/// What the admin API shows.
#[derive(Debug)]
pub(super) struct AdminContext {
    pub(super) catalog: Catalog,
    pub(super) metrics: ServerMetrics,
    pub(super) holdouts: HoldoutTracker,
    pub(super) readiness: Readiness,
    pub(super) traces: Traces,
    pub(super) fleet: Option<Fleet>,
}

#[derive(Debug)]
struct AdminState {
    context: AdminContext,
    options: AdminOptions,
    settings: LiveSettings,
    since: Timestamp,
}

impl AdminApi {
    pub(super) fn new(
        context: AdminContext,
        options: AdminOptions,
        settings: &LiveSettings,
        webhooks: &WebhookApi,
        background: &runtime::Handle,
    ) -> Self {
        let access = AdminAccess {
            tokens: options.tokens.clone(),
            settings: settings.clone(),
            refusals: RefusalLog::default(),
        };
        let fleet = FleetApi::new(
            context.fleet.clone(),
            context.catalog.clone(),
            background.clone(),
        );
        let state = AdminState::new(context, settings.clone(), options);
        Self {
            access,
            state: Arc::new(state),
            webhooks: webhooks.clone(),
            fleet,
            page: Renderer::new(background.clone()),
            status: Renderer::new(background.clone()),
            rollouts: Renderer::new(background.clone()),
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
        if is_post && path.starts_with(rollout_api::PREFIX) {
            return self.operate(Operation::Rollout, request, &peer).await;
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
            fleet_api::PATH => self.fleet.get(request.uri().query()).await,
            "/rollouts" => self.rollouts().await,
            path if path.starts_with(rollout_api::PREFIX) => {
                rollout_api::get(&self.state.options.rollouts, path)
            }
            "/" => self.page(request.uri().query().unwrap_or_default()).await,
            _ => {
                let message = "no such endpoint; use /, /livez, /readyz, /metrics, /status, /fleet, /rollouts, /refresh/NAME or /reload";
                response::error(StatusCode::NOT_FOUND, "not_found", message, None)
            }
        }
    }

    /// Removes clients that were not seen for long, until the future is dropped.
    pub(super) async fn sweep_clients(&self) {
        self.fleet.sweep().await;
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
        document_response(document.await, JSON_CONTENT_TYPE)
    }

    async fn rollouts(&self) -> Response<ResponseBody> {
        let state = Arc::clone(&self.state);
        let document = self.rollouts.render(move || {
            let document = rollout_api::list(&state.options.rollouts);
            Some(document.to_string().into())
        });
        document_response(document.await, JSON_CONTENT_TYPE)
    }

    /// The page. One with a query is a document of its own, which is not shared.
    async fn page(&self, query: &str) -> Response<ResponseBody> {
        let (state, webhooks) = (Arc::clone(&self.state), self.webhooks.clone());
        let listing = Listing::parse(query);
        let is_invalid = matches!(listing, Listing::Invalid(_));
        let is_shared = matches!(listing, Listing::Attention);
        let render = move || Some(state.render_page(webhooks.statuses(), listing));
        let document = match is_shared {
            true => self.page.render(render).await,
            false => self.fleet.read(render).await.flatten(),
        };
        let mut response = document_response(document, HTML_CONTENT_TYPE);
        if is_invalid && response.status() == StatusCode::OK {
            *response.status_mut() = StatusCode::BAD_REQUEST;
        }
        page::secure(&mut response);
        response
    }
}

/// A request that may change something.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Refresh,
    Reload,
    Rollout,
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
        let (head, body) = match self.access.admit(request, peer).await {
            Ok(admitted) => admitted,
            Err(refused) => return refused,
        };
        let context = &self.state.context;
        match operation {
            Operation::Refresh => {
                let span = context.traces.request("POST /refresh/{name}", None);
                span.run(refresh_api::handle(&context.catalog, &head)).await
            }
            Operation::Reload => reload_api::handle(&self.state.options.reloads, &head).await,
            Operation::Rollout => {
                rollout_api::operate(&self.state.options.rollouts, &head, &body).await
            }
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
    fn new(context: AdminContext, settings: LiveSettings, options: AdminOptions) -> Self {
        Self {
            context,
            options,
            settings,
            since: telemetry::now(),
        }
    }

    fn readyz(&self) -> Response<ResponseBody> {
        let readiness = &self.context.readiness;
        let ready = readiness.is_ready();
        let status = if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let (draining, waiting_for) = (readiness.is_draining(), readiness.waiting_for());
        response::json(
            status,
            &json!({ "ready": ready, "draining": draining, "waiting_for": waiting_for }),
        )
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
        let readiness = &self.context.readiness;
        Overview {
            at: telemetry::now(),
            since: self.since,
            readiness: match readiness.is_draining() {
                true => ReadinessState::Draining,
                false if readiness.is_ready() => ReadinessState::Ready,
                false => ReadinessState::Waiting(readiness.waiting_for().len()),
            },
            cache_problem: cache_problem.borrow().clone(),
            reload: reloads.last(),
            certificates: certificates.current(),
            trust_roots: trust_roots.borrow().clone(),
            bundles: entries.iter().map(|entry| self.bundle(entry)).collect(),
            webhooks,
        }
    }

    fn render_page(&self, webhooks: BTreeMap<String, WebhookStatus>, listing: Listing) -> Bytes {
        let overview = self.overview(webhooks);
        let expected = fleet_api::expected(&self.context.catalog);
        let fleet = self.context.fleet.as_ref();
        page::render(&overview, &FleetOverview::read(fleet, &expected, listing))
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
            rollout: self.options.rollouts.get(handle.name()),
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
        gauges.ready.set(self.context.readiness.is_ready().into());
        let max_connections = self.settings.current().max_connections;
        gauges
            .max_connections
            .set(i64::try_from(max_connections).unwrap_or(i64::MAX));
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
        if let Some(fleet) = &self.context.fleet {
            let catalog = &self.context.catalog;
            let counts = fleet
                .table
                .counts(&fleet_api::expected(catalog), telemetry::now_millis());
            for (name, counts) in &counts {
                if let Some(entry) = catalog.get(name) {
                    gauges.add_clients(entry.label(), counts);
                }
            }
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
const JSON_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/json");
const HTML_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::watch, time::advance};

    use super::*;
    use crate::{
        metrics::{BundleScope, Metrics},
        publish::pending,
        server::{
            AdminAddress,
            drain::{DrainSignal, Phase},
            options::Settings,
        },
    };

    #[tokio::test(start_paused = true)]
    async fn the_metrics_have_readiness_the_limit_of_connections_and_the_poll_intervals() {
        const READY_AFTER: Duration = Duration::from_secs(30);
        let metrics = ServerMetrics::new(&Metrics::new()).unwrap();
        let (catalog, (_publisher, handle)) = (Catalog::default(), pending("a"));
        let requests = metrics.bundle(&BundleScope::new("a".into()));
        let reference = "r.example/a:live".parse().unwrap();
        let entry = Entry::new(handle, reference, None, Arc::new(requests));
        catalog.insert(Arc::new(entry));
        let (phase, receiver) = watch::channel(Phase::Open);
        let readiness = Readiness::new(catalog.clone(), READY_AFTER, DrainSignal::new(receiver));
        let context = AdminContext {
            catalog,
            metrics,
            holdouts: HoldoutTracker::default(),
            readiness,
            traces: Traces::off(),
            fleet: None,
        };
        let address = AdminAddress::Unix("unused".into());
        let admin = AdminState::new(context, Settings::fixture().into(), address.into());
        let sample = |series| {
            admin.update_gauges();
            admin.context.metrics.registry.sample(series)
        };
        assert_eq!(sample("bundlegate_ready"), Some(0.0));
        advance(READY_AFTER).await;
        assert_eq!(sample("bundlegate_ready"), Some(1.0));
        phase.send_replace(Phase::Notice);
        assert_eq!(sample("bundlegate_ready"), Some(0.0));

        assert_eq!(sample("bundlegate_max_connections"), Some(10.0));
        admin.settings.replace(Settings {
            max_connections: 20,
            ..Settings::fixture()
        });
        assert_eq!(sample("bundlegate_max_connections"), Some(20.0));

        let interval = r#"bundlegate_bundle_poll_interval_seconds{bundle="a"}"#;
        assert_eq!(sample(interval), Some(30.0));
        let entry = admin.context.catalog.get("a").unwrap();
        entry.handle().set_suspended(true);
        assert_eq!(sample(interval), None);
        entry.handle().set_suspended(false);
        assert_eq!(sample(interval), Some(30.0));
    }
}
