//! The registry dies, the gateway dies, the key changes, the disk lies.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    Artifact, Cosign, Format, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, TestGateway,
    http, poll_until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_registry_stops_neither_old_opas_nor_new_ones() {
    let mut fixture = Fixture::start().await;
    fixture.registry.kill();
    fixture
        .gate
        .status_when("authz", "a failed check", |status| {
            status["last_failure"]["class"] == "transient"
        })
        .await;
    let not_modified = fixture.answers(304).await;
    let newcomer = Opa::polling(OpaVersion::V0_70, &fixture.gate.url, "authz").await;
    newcomer.answers("first").await;
    let waited = async || (fixture.answers(304).await > not_modified).then_some(());
    poll_until("another 304", waited).await;
    assert_eq!(
        fixture.gate.bundle_status("authz").await["state"],
        "serving"
    );
    println!(
        "outages | registry dead | a new OPA got 200, the old one {} × 304",
        fixture.answers(304).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_and_restarted_without_a_registry_serves_the_verified_bundle_from_disk() {
    let mut fixture = Fixture::start().await;
    let before = fixture.gate.bundle_status("authz").await;
    fixture.registry.kill();
    fixture.gate.restart().await;
    let status = fixture
        .gate
        .status_when("authz", "serving", |status| status["state"] == "serving")
        .await;
    for key in ["manifest", "etag", "revision", "signers"] {
        assert_eq!(status[key], before[key], "{key}");
    }
    let accepted =
        r#"bundlegate_verifications_total{bundle="authz",outcome="accepted",reason="none"}"#;
    assert!(
        fixture.gate.metric(accepted).await >= 1.0,
        "served without a new verdict"
    );
    let newcomer = Opa::polling(OpaVersion::Newest, &fixture.gate.url, "authz").await;
    newcomer.answers("first").await;
    println!(
        "outages | gateway restarted, registry dead | judged again and served, a new OPA decides by it"
    );
    // And goes on as if nothing had been when the registry is back.
    fixture.registry.restart().await;
    fixture.publish("second").await;
    fixture.opa.answers("second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_trusted_no_more_takes_the_bundle_on_disk_with_it() {
    let mut fixture = Fixture::start().await;
    fixture.registry.kill();
    let trusting = fixture.gate.config();
    let another = KeyPair::generate().await;
    let replaced = trusting.clone().with(
        "/trust/authorities/release-key/keys",
        json!([another.public()]),
    );
    fixture.gate.restart_with(replaced).await;
    let refused = fixture
        .gate
        .status_when("authz", "withdrawn", |status| {
            status["state"] == "withdrawn"
        })
        .await;
    assert_eq!(refused["manifest"], Value::Null, "{refused}");
    let (status, reason, message) = fixture.error().await;
    assert_eq!((status, reason.as_str()), (404, "withdrawn"));
    // An anonymous client gets the kind of the reason.
    assert!(message.contains("the version is not trusted"), "{message}");
    let message = refused["last_failure"]["message"].as_str().unwrap();
    assert!(message.contains("signature by another key"), "{message}");
    assert_eq!(
        fixture.opa.decision("authz/answer").await,
        Some(json!("first")),
        "OPA keeps what it has"
    );
    println!("outages | key replaced, registry dead | {message}");
    // The key of before, from a backup of the configuration: judged again, and accepted.
    fixture.gate.restart_with(trusting).await;
    fixture
        .gate
        .status_when("authz", "serving", |status| status["state"] == "serving")
        .await;
}

/// The bundle on disk waits for the first check, which says that nothing is to be served.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_went_while_the_gateway_was_down_is_not_served_for_an_instant() {
    let mut fixture = Fixture::start().await;
    let withdrawing = fixture
        .gate
        .config()
        .with("/bundles/authz/on_missing", json!("withdraw"));
    fixture.gate.runner.process.kill();
    let url = format!(
        "http://{}/v2/acme/authz/manifests/live",
        fixture.registry.host
    );
    assert_eq!(http().delete(url).send().await.unwrap().status(), 202);
    fixture.gate.restart_with(withdrawing).await;
    fixture
        .gate
        .status_when("authz", "withdrawn", |status| {
            status["state"] == "withdrawn"
        })
        .await;
    let log = fixture.gate.log();
    assert!(
        log.iter().all(|line| {
            let message = line["message"].as_str().unwrap_or_default();
            !message.starts_with("serving")
        }),
        "{log:#?}"
    );
    let accepted =
        r#"bundlegate_verifications_total{bundle="authz",outcome="accepted",reason="none"}"#;
    assert!(
        fixture.gate.metric(accepted).await >= 1.0,
        "there was nothing on disk"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_flipped_on_disk_is_not_served_and_fetched_again() {
    let mut fixture = Fixture::start().await;
    let bundle = http()
        .get(fixture.url())
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    fixture.registry.kill();
    fixture.gate.runner.process.kill();
    let blobs = fs::read_dir(fixture.gate.folder().join("cache/blobs/sha256")).unwrap();
    let mut files = blobs.map(|entry| entry.unwrap().path());
    let file = files
        .find(|file| fs::read(file).unwrap() == bundle)
        .expect("the bundle is on disk");
    let mut altered = bundle.to_vec();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    fs::write(&file, altered).unwrap();
    fixture.gate.restart().await;
    fixture
        .gate
        .status_when("authz", "a failed check", |status| {
            status["last_failure"]["class"] == "transient"
        })
        .await;
    let (status, reason, message) = fixture.error().await;
    assert_eq!((status, reason.as_str()), (404, "pending"), "{message}");
    let log = fixture.gate.log();
    let said = log.iter().any(|line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("blob is damaged"))
    });
    assert!(said, "{log:#?}");
    fixture.registry.restart().await;
    fixture
        .gate
        .status_when("authz", "serving", |status| status["state"] == "serving")
        .await;
    assert_eq!(
        http()
            .get(fixture.url())
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap(),
        bundle
    );
    println!("outages | flipped byte | {message}");
}

/// A bundle that is signed, served from a gateway with a cache folder, and decided by.
struct Fixture {
    registry: Registry,
    key: KeyPair,
    gate: TestGateway,
    opa: Opa,
}

impl Fixture {
    async fn start() -> Self {
        let registry = Registry::start(Kind::Distribution).await;
        let key = KeyPair::generate().await;
        let config = GatewayConfig::trusting(&key)
            .bundle("authz", &registry, "acme/authz:live")
            .cached();
        let gate = TestGateway::start(config.with(
            "/long_poll",
            json!({ "max_wait": "4s", "first_wait": "1s" }),
        ))
        .await;
        let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
        let fixture = Self {
            registry,
            key,
            gate,
            opa,
        };
        fixture.publish("first").await;
        fixture.opa.answers("first").await;
        fixture
    }

    /// Pushes, signs in both formats, and moves the tag.
    async fn publish(&self, answer: &str) {
        let artifact = Artifact::answering(answer).await;
        let digest = self
            .registry
            .push(&format!("acme/authz:{answer}"), &artifact.file())
            .await;
        let pinned = format!("acme/authz@{digest}");
        self.key
            .sign_with(Cosign::V3, Format::Bundle, &self.registry, &pinned)
            .await;
        self.key
            .sign_with(Cosign::V2, Format::Legacy, &self.registry, &pinned)
            .await;
        self.registry.tag(&pinned, "live").await;
    }

    fn url(&self) -> String {
        format!("{}/bundles/authz", self.gate.url)
    }

    async fn answers(&self, code: u16) -> f64 {
        self.gate
            .metric(&format!(
                r#"bundlegate_http_requests_total{{bundle="authz",code="{code}"}}"#
            ))
            .await
    }

    /// The error for a client without a version: status, reason and message.
    async fn error(&self) -> (u16, String, String) {
        let reply = http().get(self.url()).send().await.unwrap();
        let status = reply.status().as_u16();
        let body: Value = serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap();
        let text = |key: &str| body["error"][key].as_str().unwrap().to_owned();
        (status, text("reason"), text("message"))
    }
}
