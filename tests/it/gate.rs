//! The gateway as `serve` composes it, in front of a registry, in the process of the test.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bundlegate::{
    bundle,
    config::{BundleConfig, Cache, Config, Limits},
    gateway::Gateway,
    metrics::Metrics,
    opa_check,
    publish::{Handle, OnMissing, OnWithdraw, State, Status},
    registry::{Options as RegistryOptions, Timeouts},
    server::{Clients, Deadlines, Drain, LiveClients, LongPoll, Options, TrustedProxies},
    store,
    verify::TrustPolicy,
    watch::{Expect, WatchOptions},
};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::faulty::FaultyRegistry;

/// For what must happen, on however busy a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// The name of the bundle that stands in for the other.
pub(crate) const FALLBACK: &str = "deny";

/// What a test wants to be different.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    pub(crate) tag: &'static str,
    pub(crate) policy: TrustPolicy,
    pub(crate) expect: Expect,
    pub(crate) rules: WatchOptions,
    /// Everybody may read everything unless this says otherwise.
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
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            name: "authz/main",
            tag: "live",
            policy: TrustPolicy::unsigned("test".into()),
            expect: Expect::default(),
            rules: WatchOptions {
                poll: Duration::from_millis(100),
                confirm_within: Duration::ZERO,
                on_missing: OnMissing::Keep,
                max_stale: None,
                first_wait: Duration::from_secs(2),
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
        }
    }
}

impl Setup {
    /// The configuration that says the same.
    fn config(&self, registry: &FaultyRegistry) -> Config {
        let empty = json!({
            "version": 1,
            "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
            "trust": { "policies": { "dev": "unsigned" } },
            "bundles": {},
        });
        let mut config = Config::parse(&empty.to_string(), Path::new("/")).unwrap();
        // Long enough for a busy machine.
        let options = RegistryOptions {
            timeouts: Timeouts::default(),
            ..registry.options()
        };
        config
            .registries
            .insert(registry.address.to_string(), options);
        config.limits = Limits {
            bundle: 1 << 20,
            unpacked: 1 << 20,
            files: 100,
            bundle_manifest: 1 << 20,
            manifest: 4 << 20,
            evidence: 1 << 20,
        };
        let store::Options {
            directory,
            disk,
            memory,
        } = self.cache.clone();
        config.cache = Cache {
            directory,
            disk,
            memory,
        };
        config.long_poll.first_wait = self.rules.first_wait;
        let bundle = BundleConfig {
            name: self.name.to_owned(),
            reference: registry.reference(self.tag),
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
        };
        if let Some(tag) = self.fallback {
            config.bundles.push(BundleConfig {
                name: FALLBACK.to_owned(),
                reference: registry.reference(tag),
                trust: TrustPolicy::unsigned("any".into()),
                expect: Expect::default(),
                on_withdraw: None,
                ..bundle.clone()
            });
        }
        config.bundles.push(bundle);
        config
    }
}

/// Serves until it is dropped.
pub(crate) struct Gate {
    pub(crate) name: &'static str,
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) http: reqwest::Client,
    pub(crate) metrics: Metrics,
    /// Who may read what.
    pub(crate) clients: LiveClients,
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    gateway: JoinHandle<()>,
}

/// `last_failure` in the words of `/status`.
#[derive(Debug)]
pub(crate) struct LastFailure {
    pub(crate) class: &'static str,
    pub(crate) step: String,
    pub(crate) digest: Option<String>,
    pub(crate) message: String,
}

impl Gate {
    pub(crate) async fn before(registry: &FaultyRegistry, poll: Duration) -> Self {
        let mut setup = Setup::default();
        setup.rules.poll = poll;
        Self::with(registry, setup).await
    }

    pub(crate) async fn with(registry: &FaultyRegistry, setup: Setup) -> Self {
        let config = setup.config(registry);
        let clients = setup.clients.unwrap_or_else(|| {
            let mut clients = Clients::default();
            clients.allow(&["**".to_owned()], None).unwrap();
            clients
        });
        let clients = LiveClients::from(clients);
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            tls: setup.tls,
            max_connections: setup.max_connections,
            ready_after: HOUR,
            drain: setup.drain,
            long_poll: LongPoll {
                max_wait: Duration::from_secs(300),
                first_wait: setup.rules.first_wait,
            },
            clients: clients.clone(),
            trusted_proxies: setup.trusted_proxies,
            deadlines: setup.deadlines,
        };
        let gateway = Gateway::start(config, options, None).await.unwrap();
        let (data, admin) = (
            gateway.data_address().unwrap(),
            gateway.admin_address().unwrap(),
        );
        let (metrics, handle) = (
            gateway.metrics().clone(),
            gateway.catalog().get(setup.name).unwrap().handle().clone(),
        );
        let (stop, stopped) = oneshot::channel();
        let drain = async {
            let _ = stopped.await;
        };
        let gateway =
            tokio::spawn(async { gateway.run(drain, std::future::pending()).await.unwrap() });
        let (name, stop, http) = (setup.name, Some(stop), reqwest::Client::new());
        Self {
            name,
            data,
            admin,
            http,
            metrics,
            clients,
            handle,
            stop,
            gateway,
        }
    }

    pub(crate) async fn get(&self, tags: &str, wait: u32) -> Response {
        self.asking(tags, wait).send().await.unwrap()
    }

    /// A request for the bundle, not yet sent.
    pub(crate) fn asking(&self, tags: &str, wait: u32) -> RequestBuilder {
        wishing(
            self.request(Method::GET, &format!("/bundles/{}", self.name)),
            tags,
            wait,
        )
    }

    /// Any request to the data listener, not yet sent.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("http://{}{path}", self.data))
    }

    pub(crate) async fn operator(&self, path: &str) -> Response {
        self.http
            .get(format!("http://{}{path}", self.admin))
            .send()
            .await
            .unwrap()
    }

    /// The bundle's part of `/status`.
    pub(crate) async fn shown(&self) -> Value {
        let status = self.operator("/status").await.bytes().await.unwrap();
        serde_json::from_slice::<Value>(&status).unwrap()["bundles"][self.name].clone()
    }

    /// How many checks ended like this.
    pub(crate) fn refreshes(&self, outcome: &str) -> u64 {
        self.metrics
            .refreshes
            .with_label_values(&[self.name, outcome])
            .get()
    }

    /// The value of a metric that has only the bundle as a label, as Prometheus reads it.
    pub(crate) async fn gauge(&self, metric: &str) -> String {
        let text = self.operator("/metrics").await.text().await.unwrap();
        let start = format!("{metric}{{bundle=\"{}\"}} ", self.name);
        text.lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap_or_else(|| panic!("{metric}: {text}"))
            .to_owned()
    }

    pub(crate) fn state(&self) -> &'static str {
        self.handle.status().state.label()
    }

    pub(crate) fn status(&self) -> Status {
        self.handle.status()
    }

    /// As when the configuration says so from now on.
    pub(crate) fn trust(&self, policy: TrustPolicy) {
        assert!(
            self.handle.set_policy(Arc::new(policy)),
            "it is the same policy"
        );
    }

    /// What the server sees from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.handle.subscribe()
    }

    /// Whether what stands in for the bundle has something to serve.
    pub(crate) fn fallback_is_serving(&self) -> bool {
        self.handle
            .fallback_status()
            .is_some_and(|fallback| fallback.since.is_some())
    }

    pub(crate) fn last_failure(&self) -> Option<LastFailure> {
        self.handle
            .status()
            .last_failure
            .map(|failure| LastFailure {
                class: failure.class.label(),
                step: failure.step.to_string(),
                digest: failure.digest.map(|digest| digest.to_string()),
                message: failure.message,
            })
    }

    pub(crate) fn waiters(&self) -> i64 {
        self.metrics.waiters.with_label_values(&[self.name]).get()
    }

    pub(crate) fn sent_bytes(&self) -> u64 {
        self.metrics
            .sent_bytes
            .with_label_values(&[self.name])
            .get()
    }

    /// As SIGTERM does.
    pub(crate) fn begin_to_drain(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// As a crash does. What is being written to the cache comes to its end.
    pub(crate) async fn end(self, cache: &Path) {
        self.gateway.abort();
        let lock = fs::File::open(cache.join(".lock")).unwrap();
        eventually("the cache is let go", || lock.try_lock().is_ok()).await;
    }

    pub(crate) async fn until_drained(&mut self) {
        timeout(PATIENCE, &mut self.gateway)
            .await
            .expect("the drain has no end")
            .unwrap();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.gateway.abort();
    }
}

/// A request as OPA words it: no tags and no wait where there are none.
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
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("data.json"),
        format!("{{\"value\": \"{text}\"}}"),
    )
    .unwrap();
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

/// Waits for what must become true.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let looking = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, looking)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
