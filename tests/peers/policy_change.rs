//! Trust policies that change while real OPAs run.

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    Artifact, Cosign, Format, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, TestGateway,
    poll_until,
};

const KEYS: &str = "/trust/authorities/release-key/keys";

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_withdraws_with_the_registry_dead_and_opa_keeps_its_last_decision() {
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        let mut fixture = Fixture::start(version).await;
        fixture.registry.kill();
        let new = KeyPair::generate().await;
        let began = Instant::now();
        fixture.trust(&new);
        let status = fixture
            .gate
            .status_when("authz", "withdrawn", |status| {
                status["state"] == "withdrawn"
            })
            .await;
        println!(
            "live | {version:?} | key revoked, registry dead | withdrawn after {:?}",
            began.elapsed()
        );
        assert_eq!(status["last_failure"]["class"], "distrusted", "{status}");
        let reason = status["last_failure"]["message"].as_str().unwrap();
        assert!(reason.contains("signature by another key"), "{reason}");
        let withdrawn = |line: &Value| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.starts_with("withdrawn"))
                && line["reason"] == reason
        };
        assert!(
            fixture.gate.log().iter().any(withdrawn),
            "{:#?}",
            fixture.gate.log()
        );
        // OPA comes back for it, is told that there is none, and goes on deciding.
        let absent = async || fixture.requests(404).await;
        let before = absent().await;
        poll_until("404s", async || (absent().await > before).then_some(())).await;
        assert_eq!(
            fixture.opa.decision("authz/answer").await,
            Some(json!("first"))
        );

        // The registry comes back; the same digest gets a signature by the new key.
        fixture.registry.restart().await;
        new.sign(&fixture.registry, &fixture.pinned).await;
        let status = fixture
            .gate
            .status_when("authz", "serving", |status| status["state"] == "serving")
            .await;
        assert_eq!(
            (&status["manifest"], &status["last_failure"]),
            (&json!(fixture.digest()), &Value::Null)
        );
        fixture.publish("second", &new).await;
        fixture.opa.answers("second").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_is_served_again_at_once_and_opa_does_not_notice() {
    let mut fixture = Fixture::start(OpaVersion::Newest).await;
    let before = fixture.gate.bundle_status("authz").await;
    let bundles = fixture.requests(200).await;
    let new = KeyPair::generate().await;
    for (cosign, format) in [(Cosign::V3, Format::Bundle), (Cosign::V2, Format::Legacy)] {
        new.sign_with(cosign, format, &fixture.registry, &fixture.pinned)
            .await;
    }
    let began = Instant::now();
    fixture.trust(&new);
    let signer = before["signers"][0]["identity"].clone();
    let by_the_new =
        |status: &Value| status["state"] == "serving" && status["signers"][0]["identity"] != signer;
    let after = fixture
        .gate
        .status_when("authz", "serving by the new key", by_the_new)
        .await;
    println!(
        "live | key rotated on the same digest | served by the new one after {:?}",
        began.elapsed()
    );
    for key in ["manifest", "etag", "revision"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(
        (&after["last_failure"], fixture.requests(200).await),
        (&Value::Null, bundles)
    );
    fixture.publish("second", &new).await;
    fixture.opa.answers("second").await;
}

/// A bundle that is signed, served, and decided by. The registry is looked at twice a second.
struct Fixture {
    registry: Registry,
    gate: TestGateway,
    opa: Opa,
    /// The served version, as `REPOSITORY@DIGEST`.
    pinned: String,
}

impl Fixture {
    async fn start(version: OpaVersion) -> Self {
        let registry = Registry::start(Kind::Distribution).await;
        let key = KeyPair::generate().await;
        let config = GatewayConfig::trusting(&key).bundle("authz", &registry, "acme/authz:live");
        let gate = TestGateway::start(config.with(
            "/long_poll",
            json!({ "max_wait": "3s", "first_wait": "1s" }),
        ))
        .await;
        let opa = Opa::polling(version, &gate.url, "authz").await;
        let mut fixture = Self {
            registry,
            gate,
            opa,
            pinned: String::new(),
        };
        fixture.publish("first", &key).await;
        fixture.opa.answers("first").await;
        fixture
    }

    /// Pushes, signs, and moves the tag.
    async fn publish(&mut self, answer: &str, key: &KeyPair) {
        let artifact = Artifact::answering(answer).await;
        let digest = self
            .registry
            .push(&format!("acme/authz:{answer}"), &artifact.file())
            .await;
        self.pinned = format!("acme/authz@{digest}");
        key.sign(&self.registry, &self.pinned).await;
        self.registry.tag(&self.pinned, "live").await;
    }

    /// Trusts this key and no other from now on.
    fn trust(&mut self, key: &KeyPair) {
        let config = self.gate.config().with(KEYS, json!([key.public()]));
        self.gate.reconfigure(&config);
    }

    fn digest(&self) -> &str {
        self.pinned.split_once('@').unwrap().1
    }

    async fn requests(&self, code: u16) -> f64 {
        self.gate
            .metric(&format!(
                r#"bundlegate_http_requests_total{{bundle="authz",code="{code}"}}"#
            ))
            .await
    }
}
