//! The fleet view: who may report what, which requests count, and the limits of both.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    faulty::FaultyRegistry,
    gateway::{bundle, tag, wishing},
    shared::{TestGateway, poll_until},
};

const TOKENS: [(&str, &str); 2] = [("edge", "s3cret-edge"), ("canary", "s3cret-canary")];

/// A gateway with `authz` for the clients `edge` and `canary`, `canaries` for `canary` alone, and
/// `public/status` for anyone.
struct Fixture {
    registry: FaultyRegistry,
    gate: TestGateway,
}

impl Fixture {
    async fn start(fleet: Value) -> Self {
        Self::with(fleet, true).await
    }

    async fn with(fleet: Value, has_anyone: bool) -> Self {
        let registry = FaultyRegistry::start().await;
        registry.put_artifact("live", &bundle("one"));
        let reference = registry.reference("live").to_string();
        let bundle = json!({ "reference": reference, "trust": "dev", "poll": "200ms" });
        let mut clients = json!([
            { "name": "edge", "bearer_token_file": "edge.token", "bundles": ["authz"] },
            { "name": "canary", "bearer_token_file": "canary.token", "bundles": ["authz", "canaries"] },
        ]);
        if has_anyone {
            let anyone =
                json!({ "name": "anyone", "anonymous": true, "bundles": ["public/**", "status"] });
            clients.as_array_mut().unwrap().push(anyone);
        }
        let config = json!({
            "version": 1,
            "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "drain": { "notice": "0s", "over": "0s" } },
            "clients": clients,
            "registries": { registry.address.to_string(): { "scheme": "http" } },
            "trust": { "policies": { "dev": "unsigned" } },
            "bundles": { "authz": bundle, "canaries": bundle, "public/large": bundle, "status": bundle },
            "fleet": fleet,
        });
        let folder = TempDir::new().unwrap();
        for (name, token) in TOKENS {
            fs::write(folder.path().join(format!("{name}.token")), token).unwrap();
        }
        fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
        let gate = TestGateway::run(folder).await;
        for name in ["authz", "canaries", "public/large", "status"] {
            let is_served = |status: &Value| status["state"] == "serving";
            gate.status_when(name, "served", is_served).await;
        }
        Self { registry, gate }
    }

    /// A request for a bundle. `client`: the token's client and the identity header.
    async fn poll(
        &self,
        bundle: &str,
        client: (Option<&str>, Option<&str>),
        tags: &str,
    ) -> Response {
        self.request(Method::GET, &format!("/bundles/{bundle}"), client, tags)
            .await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        (credential, name): (Option<&str>, Option<&str>),
        tags: &str,
    ) -> Response {
        let url = format!("{}{path}", self.gate.url);
        let mut request = wishing(self.gate.http.request(method, url), tags, 0);
        if let Some(credential) = credential {
            let (_, token) = TOKENS.iter().find(|(name, _)| *name == credential).unwrap();
            request = request.bearer_auth(token);
        }
        if let Some(name) = name {
            request = request.header("Bundlegate-Client", name);
        }
        request.send().await.unwrap()
    }

    /// Sends a status report.
    async fn report(&self, client: (Option<&str>, Option<&str>), report: &Value) -> StatusCode {
        self.post("/status", client, report.to_string()).await
    }

    async fn post(
        &self,
        path: &str,
        (credential, name): (Option<&str>, Option<&str>),
        body: String,
    ) -> StatusCode {
        let url = format!("{}{path}", self.gate.url);
        let mut request = self.gate.http.post(url).body(body);
        if let Some(credential) = credential {
            let (_, token) = TOKENS.iter().find(|(name, _)| *name == credential).unwrap();
            request = request.bearer_auth(token);
        }
        if let Some(name) = name {
            request = request.header("Bundlegate-Client", name);
        }
        request.send().await.unwrap().status()
    }

    /// All clients, by their credential and name.
    async fn clients(&self) -> BTreeMap<(String, String), Value> {
        let text = self.gate.admin_text("/fleet?limit=1000").await;
        let mut fleet: Value = serde_json::from_str(&text).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let clients = fleet["clients"].as_array_mut().unwrap();
        let clients = clients.iter_mut();
        let by_name = clients.map(|client| {
            let key = (text(&client["client"]), text(&client["name"]));
            (key, client.take())
        });
        by_name.collect()
    }

    async fn client(&self, credential: &str, name: &str) -> Value {
        let key = (credential.to_owned(), name.to_owned());
        self.clients().await.remove(&key).unwrap_or_default()
    }

    async fn reports(&self, outcome: &str) -> f64 {
        let sample = format!("bundlegate_fleet_reports_total{{outcome=\"{outcome}\"}}");
        self.gate.metric(&sample).await
    }
}

/// A report of an OPA that could not activate a bundle, which it calls `name`.
fn failure(name: &str) -> Value {
    json!({
        "labels": { "id": "4f1", "version": "1.22.2", "region": "eu" },
        "bundles": { name: {
            "name": name, "active_revision": "", "code": "bundle_error", "message": "1 error occurred",
            "errors": [{ "code": "rego_parse_error", "message": "no", "location": { "file": "p.rego", "row": 3, "col": 1 } }],
        } },
        "metrics": { "prometheus": { "padding": "x".repeat(50_000) } },
    })
}

/// A bundle of this size, which does not fit the buffers of a socket.
fn uncompressed(size: usize) -> Vec<u8> {
    let file = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    let mut archive = tar::Builder::new(file);
    let content = format!("{{\"a\": \"{}\"}}", "x".repeat(size));
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, "data.json", content.as_bytes())
        .unwrap();
    archive.into_inner().unwrap().finish().unwrap()
}

const EDGE_1: (Option<&str>, Option<&str>) = (Some("edge"), Some("opa-1"));
const CANARY_1: (Option<&str>, Option<&str>) = (Some("canary"), Some("opa-1"));
const ANONYMOUS: (Option<&str>, Option<&str>) = (None, Some("opa-1"));

#[tokio::test]
async fn a_client_is_known_by_its_credential_and_its_name_or_address() {
    let fixture = Fixture::start(json!({})).await;
    let current = tag(&fixture.poll("authz", EDGE_1, "").await);
    for client in [
        EDGE_1,
        CANARY_1,
        (Some("edge"), None),
        (Some("edge"), Some("${HOSTNAME}")),
    ] {
        let response = fixture.poll("authz", client, &current).await;
        assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
    }
    fixture.poll("public/large", ANONYMOUS, &current).await;
    // What is refused is not recorded, nor what no OPA sends.
    fixture.poll("authz", ANONYMOUS, &current).await;
    fixture.poll("canaries", EDGE_1, &current).await;
    fixture
        .request(
            Method::HEAD,
            "/bundles/authz",
            (Some("edge"), Some("head")),
            "",
        )
        .await;
    let clients = fixture.clients().await;
    let keys: Vec<_> = clients
        .keys()
        .map(|(client, name)| (&**client, &**name))
        .collect();
    let expected = [
        ("-", "opa-1"),
        ("canary", "opa-1"),
        ("edge", "-"),
        ("edge", "opa-1"),
    ];
    assert_eq!(keys, expected);
    for client in clients.values() {
        let bundles = client["bundles"].as_object().unwrap();
        assert_eq!(bundles.len(), 1, "{client:#}");
        for bundle in bundles.values() {
            assert_eq!(bundle["state"], "current", "{client:#}");
        }
        assert_eq!(client["address"], "127.0.0.1");
    }
    assert_eq!(
        fixture.gate.admin_response("/fleet?state=x").await.status(),
        400
    );
}

#[tokio::test]
async fn a_report_is_taken_from_a_client_and_about_the_bundles_that_it_polls() {
    let fixture = Fixture::start(json!({})).await;
    // Before the client has asked for a bundle.
    assert_eq!(
        fixture.report(EDGE_1, &failure("authz")).await,
        StatusCode::NO_CONTENT
    );
    assert_eq!(fixture.reports("unmatched").await, 1.0);
    for client in [EDGE_1, CANARY_1] {
        fixture.poll("authz", client, "\"old\"").await;
    }
    fixture.poll("canaries", CANARY_1, "\"old\"").await;
    assert_eq!(
        fixture.report(EDGE_1, &failure("canaries")).await,
        StatusCode::NO_CONTENT
    );
    let edge = fixture.client("edge", "opa-1").await;
    // Its only bundle, whatever its name there.
    assert_eq!(edge["bundles"]["authz"]["state"], "failing", "{edge:#}");
    assert_eq!(edge["opa"]["version"], "1.22.2");
    assert_eq!(edge["opa"]["labels"], json!({ "region": "eu" }));
    let error = &edge["bundles"]["authz"]["error"];
    assert_eq!(
        (&error["source"], &error["code"]),
        (&json!("status"), &json!("bundle_error"))
    );
    assert!(
        error["message"].as_str().unwrap().contains("p.rego:3:1"),
        "{error}"
    );
    // The other client of this name has nothing to do with it.
    let canary = fixture.client("canary", "opa-1").await;
    assert_eq!(
        canary["bundles"]["canaries"]["state"], "changing",
        "{canary:#}"
    );
    for path in ["/status/", "/status/eu/shop"] {
        let body = failure("canaries").to_string();
        assert_eq!(
            fixture.post(path, CANARY_1, body).await,
            StatusCode::NO_CONTENT
        );
    }
    let canary = fixture.client("canary", "opa-1").await;
    assert_eq!(
        canary["bundles"]["canaries"]["state"], "failing",
        "{canary:#}"
    );
    assert_eq!(
        canary["bundles"]["authz"]["state"], "changing",
        "{canary:#}"
    );
    assert_eq!(fixture.reports("accepted").await, 3.0);
    // A bundle may have this name.
    let response = fixture
        .request(Method::GET, "/status", (None, None), "")
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    let unknown = fixture
        .gate
        .http
        .post(format!("{}/status", fixture.gate.url))
        .bearer_auth("wrong");
    let unknown = unknown
        .body(failure("authz").to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(unknown.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn without_anonymous_clients_a_report_needs_a_credential() {
    let fixture = Fixture::with(json!({}), false).await;
    assert_eq!(
        fixture.report(ANONYMOUS, &failure("authz")).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        fixture.report(EDGE_1, &failure("authz")).await,
        StatusCode::NO_CONTENT
    );
}

#[tokio::test]
async fn a_report_that_is_too_large_or_malformed_changes_nothing() {
    let fixture = Fixture::start(json!({ "status": { "limit": "64KiB" } })).await;
    fixture.poll("authz", EDGE_1, "\"old\"").await;
    for (body, status, outcome) in [
        ("not JSON".to_owned(), StatusCode::BAD_REQUEST, "malformed"),
        ("[]".to_owned(), StatusCode::BAD_REQUEST, "malformed"),
        (
            r#"{"bundles": {"authz": {"#.to_owned(),
            StatusCode::BAD_REQUEST,
            "malformed",
        ),
        (
            "x".repeat(65 << 10),
            StatusCode::PAYLOAD_TOO_LARGE,
            "oversized",
        ),
    ] {
        let before = fixture.reports(outcome).await;
        assert_eq!(fixture.post("/status", EDGE_1, body).await, status);
        assert_eq!(fixture.reports(outcome).await, before + 1.0);
    }
    let edge = fixture.client("edge", "opa-1").await;
    assert_eq!(edge["bundles"]["authz"]["state"], "changing");
    assert_eq!(edge["opa"], Value::Null);
}

#[tokio::test]
async fn a_download_counts_once_it_is_complete() {
    let fixture = Fixture::start(json!({})).await;
    let large = uncompressed(8 << 20);
    fixture.registry.put_artifact("live", &large);
    let is_large = |status: &Value| status["size"] == large.len();
    fixture
        .gate
        .status_when("public/large", "large", is_large)
        .await;
    let offered = async |name: String| {
        let client = fixture.client("-", &name).await;
        client["bundles"]["public/large"]["offered"]["times"].clone()
    };
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        // One that the client leaves early. HTTP/1.0 is not on the fast path.
        let name = format!("leaves-{version}");
        let head = format!(
            "GET /bundles/public/large {version}\r\nHost: x\r\nBundlegate-Client: {name}\r\nIf-None-Match: \"old\"\r\n\r\n"
        );
        let mut stream = TcpStream::connect(fixture.gate.data).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut part = [0; 100];
        stream.read_exact(&mut part).unwrap();
        assert!(part.starts_with(b"HTTP/1.1 200") || part.starts_with(b"HTTP/1.0 200"));
        rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
        drop(stream);
        for times in 1..=2 {
            let response = fixture
                .poll("public/large", (None, Some(&name)), "\"old\"")
                .await;
            assert_eq!(response.bytes().await.unwrap().len(), large.len());
            poll_until(&format!("{times} downloads"), async || {
                (offered(name.clone()).await == times).then_some(())
            })
            .await;
        }
        let client = fixture.client("-", &name).await;
        assert_eq!(
            client["bundles"]["public/large"]["state"], "failing",
            "{client:#}"
        );
    }
}

#[tokio::test]
async fn a_fleet_view_that_is_off_records_and_takes_nothing() {
    let fixture = Fixture::start(json!({ "enabled": false })).await;
    fixture.poll("authz", EDGE_1, "").await;
    assert_eq!(
        fixture.report(EDGE_1, &failure("authz")).await,
        StatusCode::NOT_FOUND
    );
    let response = fixture.gate.admin_response("/fleet").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(response.text().await.unwrap().contains("`fleet.enabled`"));
    let quiet = Fixture::start(json!({ "status": { "accept": false } })).await;
    quiet.poll("authz", EDGE_1, "").await;
    assert_eq!(
        quiet.report(EDGE_1, &failure("authz")).await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(quiet.clients().await.len(), 1);
}

#[tokio::test]
async fn the_clients_of_a_removed_bundle_are_gone() {
    let fixture = Fixture::start(json!({})).await;
    fixture.poll("public/large", ANONYMOUS, "").await;
    assert_eq!(fixture.clients().await.len(), 1);
    let file = fixture.gate.runner.folder.path().join("bundlegate.yaml");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["bundles"]
        .as_object_mut()
        .unwrap()
        .remove("public/large");
    fs::write(&file, config.to_string()).unwrap();
    poll_until("the client to be gone", async || {
        fixture.clients().await.is_empty().then_some(())
    })
    .await;
}
