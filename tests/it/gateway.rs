//! The gateway as `serve` composes it, within the process of the test, in front of a registry that
//! fails on demand; and what its tests have in common.

use std::{fs, num::NonZeroU64, path::Path, sync::Arc, time::Duration};

use bundlegate::{
    bundle,
    config::{BundleConfig, Cache, Config, RolloutChoice},
    fleet::{self, Fleet},
    gateway::Gateway,
    metrics::Metrics,
    oci::TagRule,
    opa_check,
    publish::{Handle, OnMissing, OnWithdraw, State, Status},
    registry::{Credentials, Options as RegistryOptions, Timeouts},
    server::{
        AccessLevel, AdminAddress, Clients, Deadlines, Drain, LiveClients, LongPoll, Options,
        Requirement, Settings, Tokens, TrustedProxies,
    },
    store,
    traces::{self, Traces},
    verify::TrustPolicy,
    watch::{ArtifactOptions, Expect, WatchOptions},
    webhooks::Webhook,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

pub(crate) use crate::shared::{PATIENCE, TestGateway};
use crate::{faulty::FaultyRegistry, shared::poll_until};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// The name of the bundle that is served while the other is withdrawn.
pub(crate) const FALLBACK: &str = "deny";

/// A token of a client that may read all bundles. Who has it is told why there is no version.
pub(crate) const READER: &str = "reader";

/// The options of a gateway, with the values of most tests as defaults.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    pub(crate) tag: &'static str,
    /// The rule that chooses the tag, instead of `tag`.
    pub(crate) rule: Option<TagRule>,
    pub(crate) suspend: bool,
    pub(crate) artifact: ArtifactOptions,
    pub(crate) policy: TrustPolicy,
    pub(crate) expect: Expect,
    pub(crate) rules: WatchOptions,
    /// By default any client may read any bundle, with the token [`READER`] or without.
    pub(crate) clients: Option<Clients>,
    pub(crate) drain: Drain,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    pub(crate) max_connections: usize,
    pub(crate) deadlines: Deadlines,
    pub(crate) trusted_proxies: TrustedProxies,
    pub(crate) cache: store::Options,
    /// The tag of an unsigned artifact that is served while the bundle is withdrawn.
    pub(crate) fallback: Option<&'static str>,
    pub(crate) opa_check: Option<opa_check::Options>,
    pub(crate) credentials: Option<Credentials>,
    /// The names and tags of further bundles with the same options.
    pub(crate) others: &'static [(&'static str, &'static str)],
    /// The mirrors of the registry, each with its own options.
    pub(crate) mirrors: Vec<(String, RegistryOptions)>,
    /// The resource, `idle` and `max` of a pattern whose only capture, `{tag}`, is the tag.
    pub(crate) pattern: Option<(&'static str, &'static str, usize)>,
    pub(crate) webhooks: Vec<Webhook>,
    /// In bytes per second; 0 is unlimited.
    pub(crate) bandwidth: u64,
    pub(crate) spread: Duration,
    pub(crate) repeat_delay: Duration,
    pub(crate) tracing: Option<traces::Options>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            name: "authz/main",
            tag: "live",
            rule: None,
            suspend: false,
            artifact: ArtifactOptions::default(),
            policy: TrustPolicy::unsigned("test".into()),
            expect: Expect::default(),
            rules: WatchOptions {
                poll: Duration::from_millis(100),
                confirm_within: Duration::ZERO,
                on_missing: OnMissing::Keep,
                max_stale: None,
                first_wait: Duration::from_secs(2),
                is_staged: false,
            },
            clients: None,
            drain: Drain {
                notice: Duration::ZERO,
                over: Duration::ZERO,
            },
            tls: None,
            max_connections: 100,
            deadlines: Deadlines::default(),
            trusted_proxies: TrustedProxies::default(),
            cache: store::Options {
                directory: None,
                disk: 1 << 20,
                memory: 1 << 20,
            },
            fallback: None,
            opa_check: None,
            credentials: None,
            others: &[],
            mirrors: Vec::new(),
            pattern: None,
            webhooks: Vec::new(),
            bandwidth: 0,
            spread: Duration::ZERO,
            repeat_delay: Duration::from_secs(5),
            tracing: None,
        }
    }
}

/// Clients that may read the bundles of a glob, each with a token or with none.
pub(crate) fn clients(rows: &[(&str, Option<&str>)]) -> Clients {
    let mut clients = Clients::default();
    for (index, (bundles, token)) in rows.iter().enumerate() {
        let requirement = match token {
            None => Requirement::Anonymous,
            Some(token) => Requirement::Token(Tokens::new([token.as_bytes()])),
        };
        clients
            .allow(&index.to_string(), &[(*bundles).to_owned()], requirement)
            .unwrap();
    }
    clients
}

impl Setup {
    /// The configuration of the pattern and nothing else.
    fn without_bundles(&self, registry: &FaultyRegistry) -> Config {
        let poll = humantime::format_duration(self.rules.poll).to_string();
        let patterns = self.pattern.map(|(resource, idle, max)| {
            let reference = format!("{}/acme/authz:{{tag}}", registry.address);
            json!({
                "resource": resource, "reference": reference, "trust": "dev", "poll": poll,
                "idle": idle, "max": max,
            })
        });
        let without_bundles = json!({
            "version": 1,
            "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
            "trust": { "policies": { "dev": "unsigned" } },
            "limits": { "bundle": "1MiB", "unpacked": "1MiB", "files": 100, "evidence": "1MiB" },
            "bundles": {},
            "patterns": patterns.into_iter().collect::<Vec<_>>(),
        });
        Config::parse(&without_bundles.to_string(), Path::new("/")).unwrap()
    }

    /// The configuration with these options.
    fn config(&self, registry: &FaultyRegistry) -> Config {
        let mut config = self.without_bundles(registry);
        // The short timeouts of the tests' registry are for tests of the timeouts themselves.
        let options = RegistryOptions {
            timeouts: Timeouts::default(),
            credentials: self.credentials.clone(),
            mirrors: self.mirrors.iter().map(|(host, _)| host.clone()).collect(),
            ..registry.options()
        };
        config.registries.extend(self.mirrors.iter().cloned());
        config
            .registries
            .insert(registry.address.to_string(), options);
        let store::Options {
            directory,
            disk,
            memory,
        } = self.cache.clone();
        config.cache = Cache {
            directory,
            required: true,
            disk,
            memory,
        };
        config.tracing = self.tracing.clone();
        config.long_poll.first_wait = self.rules.first_wait;
        let bundle = BundleConfig {
            delta: None,
            name: self.name.to_owned(),
            reference: match self.rule.clone() {
                Some(rule) => registry.choosing(rule),
                None => registry.reference(self.tag),
            },
            suspend: self.suspend,
            artifact: self.artifact.clone(),
            trust: self.policy.clone(),
            poll: self.rules.poll,
            confirm_within: self.rules.confirm_within,
            on_missing: self.rules.on_missing,
            max_stale: self.rules.max_stale,
            expect: self.expect.clone(),
            on_withdraw: self.fallback.map(|_| OnWithdraw {
                fallback: FALLBACK.to_owned(),
            }),
            opa_check: self.opa_check.clone(),
            limits: config.limits,
            rollout: RolloutChoice::Absent,
        };
        if let Some(tag) = self.fallback {
            config.bundles.push(BundleConfig {
                name: FALLBACK.to_owned(),
                reference: registry.reference(tag),
                suspend: false,
                trust: TrustPolicy::unsigned("any".into()),
                expect: Expect::default(),
                on_withdraw: None,
                ..bundle.clone()
            });
        }
        let others = self.others.iter().map(|(name, tag)| BundleConfig {
            name: (*name).to_owned(),
            reference: registry.reference(tag),
            ..bundle.clone()
        });
        config.bundles.extend(others);
        config.bundles.push(bundle);
        config
    }
}

/// Runs a gateway as a task of the test, until this is dropped.
pub(crate) struct InProcess {
    name: &'static str,
    metrics: Metrics,
    clients: LiveClients,
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The value of a series, by its name and labels as the text format has them; `None` if there is no
/// such series.
pub(crate) fn sample(metrics: &Metrics, series: &str) -> Option<f64> {
    let (text, series) = (metrics.render().unwrap(), format!("{series} "));
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.map(|value| value.parse().unwrap())
}

/// `last_failure` in the words of `/status`.
#[derive(Debug)]
pub(crate) struct LastFailure {
    pub(crate) class: &'static str,
    pub(crate) step: String,
    pub(crate) digest: Option<String>,
    pub(crate) message: String,
}

impl TestGateway<InProcess> {
    pub(crate) async fn before(registry: &FaultyRegistry, poll: Duration) -> Self {
        let mut setup = Setup::default();
        setup.rules.poll = poll;
        Self::with(registry, setup).await
    }

    pub(crate) async fn with(registry: &FaultyRegistry, setup: Setup) -> Self {
        let config = setup.config(registry);
        let clients = setup
            .clients
            .unwrap_or_else(|| clients(&[("**", None), ("**", Some(READER))]));
        let clients = LiveClients::from(clients);
        let scheme = match setup.tls {
            Some(_) => "https",
            None => "http",
        };
        let settings = Settings {
            tls: setup.tls.map(Into::into),
            max_connections: setup.max_connections,
            drain: setup.drain,
            long_poll: LongPoll {
                max_wait: Duration::from_secs(300),
                first_wait: setup.rules.first_wait,
                bandwidth: NonZeroU64::new(setup.bandwidth),
                spread: setup.spread,
                repeat_delay: setup.repeat_delay,
            },
            access_log: AccessLevel::Off,
            trusted_proxies: setup.trusted_proxies,
            admin_tls: None,
            admin_hosts: Vec::new(),
        };
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            admin: AdminAddress::Tcp("127.0.0.1:0".parse().unwrap()).into(),
            ready_after: HOUR,
            clients: clients.clone(),
            webhooks: setup.webhooks.into(),
            deadlines: setup.deadlines,
            settings: settings.into(),
            traces: Traces::off(),
            fleet: Fleet::new(fleet::Options::default(), false),
        };
        let gateway = Gateway::start(config, options, None).await.unwrap();
        let data = gateway.data_address().unwrap();
        let AdminAddress::Tcp(admin) = gateway.admin_address().unwrap() else {
            panic!("no address")
        };
        let metrics = gateway.metrics().clone();
        let handle = gateway.catalog().get(setup.name).unwrap().handle().clone();
        let (stop, stopped) = oneshot::channel();
        let drain = async {
            let _ = stopped.await;
        };
        let task =
            tokio::spawn(async { gateway.run(drain, std::future::pending()).await.unwrap() });
        let runner = InProcess {
            name: setup.name,
            metrics,
            clients,
            handle,
            stop: Some(stop),
            task,
        };
        Self::new(scheme, data, admin, runner)
    }

    /// The name of the bundle.
    pub(crate) fn name(&self) -> &'static str {
        self.runner.name
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.runner.metrics
    }

    /// The clients and what they may read, which can be replaced.
    pub(crate) fn clients(&self) -> &LiveClients {
        &self.runner.clients
    }

    pub(crate) async fn get(&self, tags: &str, wait: u32) -> Response {
        self.asking(tags, wait).send().await.unwrap()
    }

    /// The error that a client with a token gets, which has the whole reason.
    pub(crate) async fn refusal(&self) -> Value {
        let response = self.asking("", 0).bearer_auth(READER).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        error(response).await
    }

    /// A request for the bundle, not yet sent.
    pub(crate) fn asking(&self, tags: &str, wait: u32) -> RequestBuilder {
        wishing(
            self.request(Method::GET, &format!("/bundles/{}", self.name())),
            tags,
            wait,
        )
    }

    /// A request to the data listener, not yet sent.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// The bundle's entry in `/status`.
    pub(crate) async fn shown(&self) -> Value {
        self.bundle_status(self.name()).await
    }

    /// How many checks have ended with this outcome.
    pub(crate) fn refreshes(&self, outcome: &str) -> u64 {
        let name = self.name();
        let series =
            format!(r#"bundlegate_refreshes_total{{bundle="{name}",outcome="{outcome}"}}"#);
        self.count(&series)
    }

    /// The value of a metric that has only the bundle as a label, as Prometheus reads it.
    pub(crate) async fn gauge(&self, metric: &str) -> String {
        let text = self.admin_text("/metrics").await;
        let start = format!("{metric}{{bundle=\"{}\"}} ", self.name());
        text.lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap_or_else(|| panic!("{metric}: {text}"))
            .to_owned()
    }

    pub(crate) fn state(&self) -> &'static str {
        self.status().state.label()
    }

    pub(crate) fn status(&self) -> Status {
        self.runner.handle.status()
    }

    /// Replaces the trust policy, as a change of the configuration does.
    pub(crate) fn trust(&self, policy: TrustPolicy) {
        assert!(
            self.runner.handle.set_policy(Arc::new(policy)),
            "it is the same policy"
        );
    }

    /// Suspends or resumes the bundle, as a change of the configuration does.
    pub(crate) fn suspend(&self, suspended: bool) {
        assert!(self.runner.handle.set_suspended(suspended), "no change");
    }

    /// The state that the server serves, and its changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.runner.handle.subscribe()
    }

    /// Whether the bundle has a fallback with a version to serve.
    pub(crate) fn fallback_is_serving(&self) -> bool {
        self.runner
            .handle
            .fallback_status()
            .is_some_and(|fallback| fallback.since.is_some())
    }

    pub(crate) fn last_failure(&self) -> Option<LastFailure> {
        self.status().last_failure.map(|failure| LastFailure {
            class: failure.class.label(),
            step: failure.step.to_string(),
            digest: failure.digest.map(|digest| digest.to_string()),
            message: failure.message,
        })
    }

    pub(crate) fn waiters(&self) -> i64 {
        let series = format!(r#"bundlegate_waiters{{bundle="{}"}}"#, self.name());
        self.count(&series) as i64
    }

    /// Waits until this many requests are held.
    pub(crate) async fn until_waiting(&self, count: i64) {
        let what = format!("{count} held requests");
        eventually(&what, || self.waiters() == count).await;
    }

    pub(crate) fn connections(&self) -> usize {
        self.count("bundlegate_connections") as usize
    }

    pub(crate) fn sent_bytes(&self) -> u64 {
        let name = self.name();
        self.count(&format!(
            r#"bundlegate_sent_bytes_total{{bundle="{name}"}}"#
        ))
    }

    /// The value of a counter or gauge, by its name and labels; 0 if there is no such series.
    pub(crate) fn count(&self, series: &str) -> u64 {
        sample(self.metrics(), series).unwrap_or_default() as u64
    }

    /// Begins to drain, as on SIGTERM.
    pub(crate) fn begin_to_drain(&mut self) {
        self.runner.stop.take().unwrap().send(()).unwrap();
    }

    /// Ends as in a crash, but writes to the cache that have begun are completed.
    pub(crate) async fn end(self, cache: &Path) {
        self.runner.task.abort();
        until_unlocked(cache).await;
    }

    pub(crate) async fn until_drained(&mut self) {
        timeout(PATIENCE, &mut self.runner.task)
            .await
            .expect("the drain has no end")
            .unwrap();
    }
}

/// Adds the headers that OPA sends: an empty `tags` and a `wait` of 0 are left out.
pub(crate) fn wishing(mut request: RequestBuilder, tags: &str, wait: u32) -> RequestBuilder {
    if !tags.is_empty() {
        request = request.header("if-none-match", tags);
    }
    if wait > 0 {
        request = request.header("prefer", format!("modes=snapshot,delta;wait={wait}"));
    }
    request
}

pub(crate) fn bundle(text: &str) -> Vec<u8> {
    packed(&[("data.json", &format!("{{\"value\": \"{text}\"}}"))])
}

/// The bundle that these files are packed to.
pub(crate) fn packed(files: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    let limits = bundle::Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 100,
        bundle_manifest: 1 << 20,
    };
    bundle::pack(folder.path(), &limits)
        .unwrap()
        .bundle
        .blob()
        .in_memory()
        .unwrap()
        .to_vec()
}

pub(crate) fn tag(response: &Response) -> String {
    header(response, "etag").to_owned()
}

pub(crate) fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

/// The `error` of an error body, which has exactly the promised keys.
pub(crate) async fn error(response: Response) -> Value {
    assert_eq!(header(&response, "content-type"), "application/json");
    let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let keys: Vec<_> = body["error"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        (body.as_object().unwrap().len(), keys),
        (1, vec!["bundle", "message", "reason"]),
        "{body}"
    );
    body["error"].clone()
}

/// Waits until a cache folder can be opened again. Its lock may be held a little longer than its
/// store exists: by a write in the background, or by a child that another test has just forked and
/// that has not called `exec` yet.
pub(crate) async fn until_unlocked(cache: &Path) {
    let lock = fs::File::open(cache.join(".lock")).unwrap();
    eventually("the cache is unlocked", || lock.try_lock().is_ok()).await;
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    poll_until(what, async || holds().then_some(())).await;
}
