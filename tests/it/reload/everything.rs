//! A change of everything that is live, while requests run and long polls hang.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use reqwest::Client;
use tokio::{
    spawn,
    task::{JoinHandle, JoinSet},
    time::{Duration, sleep},
};

use super::{
    authentication::{Authority, HOUR},
    certificates::{Pair, client},
    *,
};
use crate::{
    access::{Access, Scheme},
    shared::{
        issuer::{AUDIENCE, Issuer},
        raise_open_files,
    },
};

const LONG_POLLS: usize = 1000;
const CLIENTS: usize = 4;
/// After so many requests a client connects again.
const REQUESTS_PER_CONNECTION: usize = 20;

/// Clients that ask without a pause, each with the token `kept`.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Load {
    fn on(gateway: &TestGateway) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..CLIENTS {
            let url = format!("{}/bundles/other", gateway.url);
            let (stop, answered) = (Arc::clone(&load.stop), Arc::clone(&load.answered));
            load.tasks.spawn(async move {
                let mut http = client();
                while !stop.load(Ordering::Relaxed) {
                    let count = answered.fetch_add(1, Ordering::Relaxed);
                    if count.is_multiple_of(REQUESTS_PER_CONNECTION) {
                        http = client();
                    }
                    let request = http.get(&url).bearer_auth("kept");
                    let response = request.send().await.unwrap();
                    assert_eq!(response.status(), StatusCode::OK);
                    response.bytes().await.unwrap();
                    sleep(Duration::from_millis(5)).await;
                }
            });
        }
        load
    }

    /// Waits until further requests were answered.
    async fn goes_on(&self, gateway: &TestGateway) {
        let before = self.answered.load(Ordering::Relaxed);
        gateway
            .until("further requests are answered", async || {
                let now = self.answered.load(Ordering::Relaxed);
                (now > before + 5 * CLIENTS).then_some(())
            })
            .await;
    }

    /// Ends the clients. Panics if a request has failed.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
    }
}

/// A gateway with the bundles `authz`, whose registry has a password, and `other`; both are served.
struct Scene {
    registry: FaultyRegistry,
    _other: FaultyRegistry,
    gateway: TestGateway,
    config: Value,
    http: Client,
}

impl Scene {
    async fn new(certificate: &Pair, authority: &Authority, issuer: &Issuer) -> Self {
        let signer = Signer::new();
        let (registry, other) = (registry(&signer).await, registry(&signer).await);
        registry.protect(Access::new(Scheme::Basic, "robot:one"));
        let mut config = config(&registry);
        config["server"]["tls"] =
            json!({ "certificate": "tls.crt", "key": "tls.key", "client_ca": "clients-ca.pem" });
        let jwt = json!({ "jwks_file": "jwks.json", "issuer": issuer.url, "audience": AUDIENCE });
        config["clients"] = json!([
            { "name": "edge", "bearer_token_file": "edge.tokens", "bundles": ["**"] },
            { "name": "mesh", "mtls": { "san_uri": "spiffe://corp/opa/*" }, "bundles": ["**"] },
            { "name": "cluster", "jwt": jwt, "bundles": ["**"] },
        ]);
        config["registries"][registry.address.to_string()]["credentials"] =
            json!({ "username": "robot", "password_file": "password" });
        config["registries"][other.address.to_string()] = json!({ "scheme": "http" });
        config["bundles"]["other"] = json!({
            "reference": other.reference("live").to_string(), "trust": "release", "poll": "1h",
        });
        let files = |folder: &TempDir| {
            let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
            write("key.pub", &signer.public_pem());
            write("edge.tokens", "kept\nremoved\n");
            write("password", "one");
            write("clients-ca.pem", &authority.1);
            write("jwks.json", &issuer.jwks().to_string());
            certificate.write(folder.path());
        };
        let scene = Self {
            gateway: TestGateway::start(files, &config).await,
            registry,
            _other: other,
            config,
            http: client(),
        };
        scene.is_served("authz", "removed").await;
        scene.is_served("other", "kept").await;
        scene
    }

    async fn ask(&self, http: &Client, name: &str, token: &str) -> Response {
        let url = format!("{}/bundles/{name}", self.gateway.url);
        http.get(url).bearer_auth(token).send().await.unwrap()
    }

    async fn status(&self, name: &str, token: &str) -> StatusCode {
        self.ask(&self.http, name, token).await.status()
    }

    async fn is_served(&self, name: &str, token: &str) {
        self.gateway
            .until("the bundle is served", async || {
                (self.status(name, token).await == StatusCode::OK).then_some(())
            })
            .await;
    }

    /// Polls of `other` by clients of their own, which run its present version.
    async fn hang(&self) -> Vec<JoinHandle<Response>> {
        let etag = tag(&self.ask(&self.http, "other", "kept").await);
        let hang = |_| {
            let url = format!("{}/bundles/other", self.gateway.url);
            let request = wishing(client().get(url).bearer_auth("kept"), &etag, 300);
            spawn(async move { request.send().await.unwrap() })
        };
        let waiters = r#"bundlegate_waiters{bundle="other"}"#;
        let mut polls = Vec::new();
        // Not all at once, because a handshake that takes long is given up.
        while polls.len() < LONG_POLLS {
            polls.extend((0..100).map(hang));
            self.gateway
                .until("the long polls hang", async || {
                    let count = self.gateway.metric(waiters).await;
                    (count == polls.len() as f64).then_some(())
                })
                .await;
        }
        polls
    }

    fn change_everything(&self, certificate: &Pair, authority: &Authority, issuer: &Issuer) {
        issuer.rotate();
        self.gateway.write("jwks.json", issuer.jwks().to_string());
        self.gateway.write("clients-ca.pem", &authority.1);
        self.registry.access(|access| access.rotate("robot:two"));
        certificate.write(self.gateway.runner.folder.path());
        self.gateway.write("edge.tokens", "kept\nadded\n");
        self.gateway.write("password", "two");
        let mut config = self.config.clone();
        config["bundles"]["third"] = config["bundles"]["authz"].clone();
        config["limits"] = json!({ "bundle": "1MiB" });
        config["long_poll"] = json!({ "max_wait": "2m", "bandwidth": "100MiB" });
        config["server"]["max_connections"] = json!(5000);
        config["cache"] = json!({ "memory": "16MiB" });
        self.gateway.write("bundlegate.yaml", config.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_changes_at_once_and_no_request_fails_and_no_long_poll_ends() {
    raise_open_files();
    let (old, new) = (Pair::new(), Pair::new());
    let [old_authority, authority] = [Authority::new(), Authority::new()];
    let issuer = Issuer::start(None).await;
    let scene = Scene::new(&old, &old_authority, &issuer).await;
    let old_token = issuer.token("opa", 300);
    assert_eq!(scene.status("other", &old_token).await, StatusCode::OK);
    let gateway = &scene.gateway;
    let polls = scene.hang().await;
    let load = Load::on(gateway);

    scene.change_everything(&new, &authority, &issuer);
    scene.is_served("third", "added").await;
    gateway
        .until("new connections have the new certificate", async || {
            let response = scene.ask(&client(), "other", "kept").await;
            new.is_presented_by(&response).then_some(())
        })
        .await;
    let opa = authority.client("spiffe://corp/opa/edge", HOUR);
    gateway
        .until("the new authority and the new key count", async || {
            let url = format!("{}/bundles/other", gateway.url);
            let by_certificate = opa.get(url).send().await.ok()?.status();
            let by_token = scene.status("other", &issuer.token("opa", 300)).await;
            let ok = StatusCode::OK;
            (by_certificate == ok && by_token == ok).then_some(())
        })
        .await;
    let unauthorized = StatusCode::UNAUTHORIZED;
    assert_eq!(scene.status("other", &old_token).await, unauthorized);
    let removed = scene.status("authz", "removed").await;
    assert_eq!(removed, StatusCode::UNAUTHORIZED);
    load.goes_on(gateway).await;

    // A broken file changes nothing, though another change would be valid alone.
    gateway.write("edge.tokens", "kept\nadded\nlater\n");
    gateway.write("tls.key", "no key");
    gateway
        .said("configuration refused: the one in force stays", |line| {
            line["error"].to_string().contains("server.tls.key")
        })
        .await;
    assert_eq!(
        scene.status("other", "later").await,
        StatusCode::UNAUTHORIZED
    );
    let successful = gateway.metric("bundlegate_config_last_reload_successful");
    assert_eq!(successful.await, 0.0);
    load.goes_on(gateway).await;
    load.end().await;
    for poll in polls {
        assert!(!poll.is_finished(), "a long poll has ended");
        poll.abort();
    }
}
