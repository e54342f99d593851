//! Versions that must not be published: each is told apart in `/status`, in a metric and in
//! the log, and OPA keeps deciding by what it has.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    Artifact, Cosign, Format, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, TestGateway,
    http, poll_until,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_version_is_not_published() {
    let fixture = Fixture::start(|config| config).await;
    let digest = fixture.push("second").await;
    fixture.tag(&digest).await;
    let failure = Failure {
        class: "evidence",
        step: "verify",
        reason: "unsigned",
        says: "no signature",
    };
    refused(&fixture, &digest, &failure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_signed_by_another_key_is_not_published() {
    let fixture = Fixture::start(|config| config).await;
    let digest = fixture.push("second").await;
    KeyPair::generate()
        .await
        .sign(&fixture.registry, &format!("acme/authz@{digest}"))
        .await;
    fixture.tag(&digest).await;
    let failure = Failure {
        class: "evidence",
        step: "verify",
        reason: "another_key",
        says: "signature by another key",
    };
    refused(&fixture, &digest, &failure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_of_another_digest_proves_nothing() {
    let fixture = Fixture::start(|config| config).await;
    let digest = fixture.push("second").await;
    let signature = format!("acme/authz:{}.sig", fixture.first.replace(':', "-"));
    fixture
        .registry
        .tag(&signature, &format!("{}.sig", digest.replace(':', "-")))
        .await;
    fixture.tag(&digest).await;
    let says = format!("the signature is for {}", fixture.first);
    let failure = Failure {
        class: "evidence",
        step: "verify",
        reason: "other_digest",
        says: &says,
    };
    refused(&fixture, &digest, &failure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_altered_in_the_registrys_storage_is_not_published_until_it_is_repaired() {
    let fixture = Fixture::start(|config| config).await;
    let digest = fixture.push_signed("second").await;
    let file = fixture.registry.blob_file(&fixture.layer(&digest).await);
    let good = fs::read(&file).unwrap();
    let mut altered = good.clone();
    altered[good.len() / 2] ^= 1;
    fs::write(&file, altered).unwrap();
    fixture.tag(&digest).await;
    let failure = Failure {
        class: "transient",
        step: "fetch",
        reason: "corrupt",
        says: "storage is corrupt",
    };
    refused(&fixture, &digest, &failure).await;
    fs::write(&file, good).unwrap();
    println!(
        "refusals: {:?} from the repair of an altered blob to OPA's decision",
        fixture.opa.answers("second").await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_layer_is_not_published_until_it_is_repaired() {
    let fixture = Fixture::start(|config| config).await;
    let digest = fixture.push_signed("second").await;
    let file = fixture.registry.blob_file(&fixture.layer(&digest).await);
    let good = fs::read(&file).unwrap();
    fs::write(&file, &good[..good.len() / 2]).unwrap();
    fixture.tag(&digest).await;
    let failure = Failure {
        class: "transient",
        step: "fetch",
        reason: "truncated",
        says: "bytes",
    };
    refused(&fixture, &digest, &failure).await;
    fs::write(&file, good).unwrap();
    println!(
        "refusals: {:?} from the repair of a cut blob to OPA's decision",
        fixture.opa.answers("second").await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_larger_than_the_limit_is_not_published() {
    let fixture =
        Fixture::start(|config| config.with("/limits", json!({ "manifest": "8KiB" }))).await;
    let annotation = format!("padding={}", "x".repeat(16 << 10));
    let artifact = Artifact::answering("second").await;
    let digest = fixture
        .registry
        .push_with(
            "acme/authz:second",
            &artifact.file(),
            &["--annotation", &annotation],
        )
        .await;
    fixture
        .key
        .sign(&fixture.registry, &format!("acme/authz@{digest}"))
        .await;
    fixture.tag(&digest).await;
    let failure = Failure {
        class: "defect",
        step: "manifest",
        reason: "too_large",
        says: "limits.manifest",
    };
    refused(&fixture, &digest, &failure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_gzip_tarball_is_not_published() {
    let fixture = Fixture::start(|config| config).await;
    let digest = fixture
        .registry
        .push("acme/authz:second", &Artifact::raw(b"package authz").file())
        .await;
    fixture
        .key
        .sign(&fixture.registry, &format!("acme/authz@{digest}"))
        .await;
    fixture.tag(&digest).await;
    let failure = Failure {
        class: "defect",
        step: "open",
        reason: "not_a_bundle",
        says: "not a gzip tarball",
    };
    refused(&fixture, &digest, &failure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tag_is_an_alarm_and_the_bundle_stays() {
    let fixture = Fixture::start(|config| config).await;
    fixture.delete_tag().await;
    let failure = Failure {
        class: "not_found",
        step: "resolve",
        reason: "no_such_tag",
        says: "no such tag",
    };
    told(&fixture, &Value::Null, &failure).await;
    assert_eq!(
        fixture.gate.bundle_status("authz").await["state"],
        "serving"
    );
    let newcomer = Opa::polling(OpaVersion::V0_70, &fixture.gate.url, "authz").await;
    newcomer.answers("first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tag_withdraws_where_the_configuration_says_so() {
    let fixture =
        Fixture::start(|config| config.with("/bundles/authz/on_missing", json!("withdraw"))).await;
    fixture.delete_tag().await;
    fixture
        .gate
        .status_when("authz", "withdrawn", |status| {
            status["state"] == "withdrawn"
        })
        .await;
    let failure = Failure {
        class: "not_found",
        step: "resolve",
        reason: "no_such_tag",
        says: "no such tag",
    };
    told(&fixture, &Value::Null, &failure).await;
    let reply = http()
        .get(format!("{}/bundles/authz", fixture.gate.url))
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 404);
    let body: Value = serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap();
    assert_eq!(body["error"]["reason"], "withdrawn", "{body}");
    assert_eq!(
        fixture.opa.decision("authz/answer").await,
        Some(json!("first")),
        "OPA keeps what it has"
    );
}

/// The expected content of `/status`, the metrics and the log.
struct Failure<'a> {
    class: &'a str,
    step: &'a str,
    reason: &'a str,
    says: &'a str,
}

/// The failure stands in all three places, and nothing but the first version was published,
/// though the gate looked twice more.
async fn refused(fixture: &Fixture, digest: &str, failure: &Failure<'_>) {
    told(fixture, &json!(digest), failure).await;
    if failure.step == "verify" {
        let (name, reason) = ("bundlegate_verifications_total", failure.reason);
        let sample = format!(r#"{name}{{bundle="authz",outcome="rejected",reason="{reason}"}}"#);
        assert!(fixture.gate.metric(&sample).await >= 1.0, "{sample}");
    }
    let looked = fixture.refreshes(failure.reason).await;
    let more = async || (fixture.refreshes(failure.reason).await >= looked + 2.0).then_some(());
    poll_until("two more looks", more).await;
    let status = fixture.gate.bundle_status("authz").await;
    assert_eq!(
        (&status["state"], &status["manifest"]),
        (&json!("serving"), &json!(fixture.first))
    );
    let served = fixture
        .gate
        .log()
        .into_iter()
        .filter(|line| line["message"] == "serving");
    assert!(
        served
            .into_iter()
            .all(|line| line["manifest"] == fixture.first.as_str())
    );
    assert_eq!(
        fixture.opa.decision("authz/answer").await,
        Some(json!("first")),
        "OPA keeps what it has"
    );
}

async fn told(fixture: &Fixture, digest: &Value, failure: &Failure<'_>) {
    let is_it = |status: &Value| status["last_failure"]["class"] == failure.class;
    let status = fixture
        .gate
        .status_when("authz", failure.class, is_it)
        .await;
    let last = &status["last_failure"];
    assert_eq!(
        (&last["step"], &last["digest"]),
        (&json!(failure.step), digest),
        "{last}"
    );
    let message = last["message"].as_str().unwrap();
    assert!(message.contains(failure.says), "{message}");
    assert!(fixture.refreshes(failure.reason).await >= 1.0, "{last}");
    let log = fixture.gate.log();
    let line = log
        .iter()
        .find(|line| line["reason"] == failure.reason && line["level"] == "WARN");
    let line = line.unwrap_or_else(|| panic!("no line about {}", failure.reason));
    assert_eq!(
        (&line["bundle"], &line["class"], &line["step"]),
        (&json!("authz"), &last["class"], &last["step"])
    );
    assert_eq!(line["message"], message);
    println!(
        "refusals | {} | {} | {} | {message}",
        failure.reason, failure.class, failure.step
    );
}

/// The first version is signed, served, and what OPA decides by.
struct Fixture {
    registry: Registry,
    key: KeyPair,
    gate: TestGateway,
    opa: Opa,
    /// Its digest.
    first: String,
}

impl Fixture {
    async fn start(adjust: impl FnOnce(GatewayConfig) -> GatewayConfig) -> Self {
        let registry = Registry::start(Kind::Distribution).await;
        let key = KeyPair::generate().await;
        let first = registry
            .push(
                "acme/authz:live",
                &Artifact::answering("first").await.file(),
            )
            .await;
        key.sign_with(
            Cosign::V3,
            Format::Legacy,
            &registry,
            &format!("acme/authz@{first}"),
        )
        .await;
        let config = GatewayConfig::trusting(&key).bundle("authz", &registry, "acme/authz:live");
        let gate = TestGateway::start(adjust(config)).await;
        let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
        opa.answers("first").await;
        Self {
            registry,
            key,
            gate,
            opa,
            first,
        }
    }

    /// Pushes another version, which `live` does not name yet.
    async fn push(&self, answer: &str) -> String {
        self.registry
            .push(
                &format!("acme/authz:{answer}"),
                &Artifact::answering(answer).await.file(),
            )
            .await
    }

    async fn push_signed(&self, answer: &str) -> String {
        let digest = self.push(answer).await;
        self.key
            .sign(&self.registry, &format!("acme/authz@{digest}"))
            .await;
        digest
    }

    /// Lets `live` name a digest.
    async fn tag(&self, digest: &str) {
        self.registry
            .tag(&format!("acme/authz@{digest}"), "live")
            .await;
    }

    async fn delete_tag(&self) {
        let url = format!("http://{}/v2/acme/authz/manifests/live", self.registry.host);
        assert_eq!(http().delete(url).send().await.unwrap().status(), 202);
    }

    /// The digest of a manifest's only layer.
    async fn layer(&self, digest: &str) -> String {
        let reference = self.registry.reference(&format!("acme/authz@{digest}"));
        let manifest = self.registry.oras(&["manifest", "fetch", &reference]).await;
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
    }

    async fn refreshes(&self, outcome: &str) -> f64 {
        self.gate
            .metric(&format!(
                r#"bundlegate_refreshes_total{{bundle="authz",outcome="{outcome}"}}"#
            ))
            .await
    }
}
