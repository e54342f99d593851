//! Validly signed, and still not what a bundle should be: what whoever can move tags in a real
//! registry may try, and what real OPAs decide by then. And what becomes of a fleet whose
//! policy is revoked.

use std::path::Path;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    Artifact, Cosign, Format, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, TestGateway,
    poll_until, run,
};

const VERSION: &str = "org.opencontainers.image.version";

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moved_back_to_an_old_validly_signed_digest_is_refused() {
    let fixture = Fixture::start().await;
    let old = fixture
        .push("live", "one", &[&format!("{VERSION}=1.0.0")])
        .await;
    let new = fixture
        .push("next", "two", &[&format!("{VERSION}=2.0.0")])
        .await;
    let expect = json!({ "order": "version", "on_older": "refuse" });
    let mut gate = fixture.gate("live", &expect).await;
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    opa.answers("one").await;
    fixture.tag(&new, "live").await;
    opa.answers("two").await;
    fixture.tag(&old, "live").await;
    refused(
        &gate,
        &old,
        "older",
        "version 1.0.0 is older than a version served before, version 2.0.0",
    )
    .await;
    assert_eq!(opa.decision("authz/answer").await, Some(json!("two")));

    gate.restart().await;
    let status = refused(&gate, &old, "older", "").await;
    assert_eq!(
        (&status["state"], &status["manifest"]),
        (&json!("serving"), &json!(new))
    );
    let newcomer = Opa::polling(OpaVersion::V0_70, &gate.url, "authz").await;
    newcomer.answers("two").await;

    // A machine that has never seen the new one can't know, unless it is told.
    let fresh = fixture.gate("live", &expect).await;
    fresh
        .status_when("authz", "serving", |status| {
            status["manifest"] == json!(old)
        })
        .await;
    let told = fixture
        .gate(
            "live",
            &json!({ "order": "version", "on_older": "refuse", "minimum": "2.0.0" }),
        )
        .await;
    let status = refused(
        &told,
        &old,
        "older",
        "older than the minimum, version 2.0.0",
    )
    .await;
    assert_eq!(status["state"], "withdrawn");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_tag_put_on_another_versions_digest_is_refused() {
    let fixture = Fixture::start().await;
    let good = fixture
        .push("v1.4.0", "right", &[&format!("{VERSION}=1.4.0")])
        .await;
    let bad = fixture
        .push("v1.3.9", "wrong", &[&format!("{VERSION}=1.3.9")])
        .await;
    let moved = async || fixture.tag(&bad, "v1.4.0").await;
    let expected = Expected {
        reason: "expect_version",
        says: "the tag v1.4.0 is on version 1.3.9",
    };
    fixture
        .holds_to(
            "v1.4.0",
            &json!({ "order": "version" }),
            [&good, &bad],
            moved,
            &expected,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_copied_with_its_signatures_from_another_repository_is_refused() {
    let fixture = Fixture::start().await;
    let source = "org.opencontainers.image.source";
    let good = fixture
        .push("live", "right", &[&format!("{source}=acme/authz")])
        .await;
    let theirs = Artifact::answering("wrong").await;
    let flags = ["--annotation", &format!("{source}=acme/billing")];
    let bad = fixture
        .registry
        .push_with("acme/billing:live", &theirs.file(), &flags)
        .await;
    fixture
        .key
        .sign(&fixture.registry, &format!("acme/billing@{bad}"))
        .await;
    let copied = async || {
        let [from, to] = ["billing", "authz"]
            .map(|name| fixture.registry.reference(&format!("acme/{name}:live")));
        let words = [
            "cp",
            "--recursive",
            "--from-plain-http",
            "--to-plain-http",
            &from,
            &to,
        ];
        run("oras", fixture.registry.folder(), &words).await;
    };
    let expected = Expected {
        reason: "expect_annotations",
        says: r#"annotation org.opencontainers.image.source is "acme/billing", not "acme/authz" as expected"#,
    };
    fixture
        .holds_to(
            "live",
            &json!({ "annotations": { source: "acme/authz" } }),
            [&good, &bad],
            copied,
            &expected,
        )
        .await;
    // It is the expectation that refuses it: its signatures are good here as well.
    let gate = fixture.gate("live", &json!({})).await;
    gate.status_when("authz", "serving", |status| {
        status["manifest"] == json!(bad)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_outside_what_is_expected_are_refused() {
    let fixture = Fixture::start().await;
    let built = async |answer: &str, roots: &str| {
        let policy = format!("package authz\n\nanswer := \"{answer}\"\n");
        let artifact = Artifact::built(
            answer,
            &[("authz/authz.rego", &policy), (".manifest", roots)],
        )
        .await;
        fixture.push_file(answer, &artifact.file(), &[]).await
    };
    let good = built("right", r#"{"roots": ["authz"]}"#).await;
    let bad = built("wrong", r#"{"roots": ["authz", "system/authz"]}"#).await;
    fixture.tag(&good, "live").await;
    let moved = async || fixture.tag(&bad, "live").await;
    let says = r#"root "system/authz" is outside expect.roots, authz"#;
    let expected = Expected {
        reason: "expect_roots",
        says,
    };
    fixture
        .holds_to(
            "live",
            &json!({ "roots": ["authz"] }),
            [&good, &bad],
            moved,
            &expected,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_enforces_the_fallback_of_a_revoked_bundle_and_the_bundle_again_afterwards() {
    let mut fixture = Fixture::start().await;
    let bundle = fixture.push("live", "allow", &[]).await;
    let other = KeyPair::generate().await;
    let denial = fixture
        .registry
        .push(
            "acme/denial:live",
            &Artifact::answering("deny").await.file(),
        )
        .await;
    other
        .sign(&fixture.registry, &format!("acme/denial@{denial}"))
        .await;
    let config = fixture
        .config("live", &json!({}))
        .bundle("denial", &fixture.registry, "acme/denial:live")
        .with(
            "/trust/authorities/other",
            json!({ "keys": [other.public()], "tlog": "none" }),
        )
        .with(
            "/trust/policies/others",
            json!({ "require": { "any_of": ["other"] } }),
        )
        .with("/bundles/denial/trust", json!("others"))
        .with(
            "/bundles/authz/on_withdraw",
            json!({ "fallback": "denial" }),
        );
    let mut gate = TestGateway::start(config.clone()).await;
    gate.status_when("denial", "serving", |status| status["state"] == "serving")
        .await;
    let fleet = fleet(&gate).await;
    for opa in &fleet {
        opa.answers("allow").await;
    }
    fixture.registry.kill();
    let trusting = gate.config();
    let revoke = trusting
        .clone()
        .with("/trust/policies/release/revoked_digests", json!([bundle]));
    let began = Instant::now();
    gate.reconfigure(&revoke);
    enforced(&fleet, "deny", began, "digest revoked, registry dead").await;
    let status = gate.bundle_status("authz").await;
    assert_eq!(
        (&status["state"], &status["fallback"]["manifest"]),
        (&json!("withdrawn"), &json!(denial)),
        "{status}"
    );
    assert_eq!(status["lost"]["manifest"], json!(bundle));
    let gone = |status: &Value| status["lost"]["clients"] == 0;
    gate.status_when("authz", "nobody runs it any more", gone)
        .await;

    // The same after a restart, and on a machine with an empty cache, for OPAs that run it.
    gate.restart().await;
    fleet[0].answers("deny").await;
    fixture.registry.restart().await;
    let mut fresh = TestGateway::start(config).await;
    let late = Opa::polling(OpaVersion::Newest, &fresh.url, "authz").await;
    late.answers("allow").await;
    fresh.runner.process.kill();
    std::fs::remove_dir_all(fresh.folder().join("cache")).unwrap();
    let revoked = fresh
        .config()
        .with("/trust/policies/release/revoked_digests", json!([bundle]));
    fresh.restart_with(revoked).await;
    late.answers("deny").await;

    gate.reconfigure(&trusting);
    let began = Instant::now();
    enforced(&fleet, "allow", began, "trusted again").await;
    assert_eq!(gate.bundle_status("authz").await["fallback"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_fallback_the_status_tells_how_many_opas_still_run_the_revoked_version() {
    let mut fixture = Fixture::start().await;
    let bundle = fixture.push("live", "allow", &[]).await;
    let gate = fixture.gate("live", &json!({})).await;
    let mut fleet = fleet(&gate).await;
    for opa in &fleet {
        opa.answers("allow").await;
    }
    let waiting = r#"bundlegate_waiters{bundle="authz"}"#;
    let all = fleet.len() as f64;
    poll_until("all to wait", async || {
        (gate.metric(waiting).await >= all).then_some(())
    })
    .await;
    fixture.registry.kill();
    let began = Instant::now();
    let revoked = gate
        .config()
        .with("/trust/policies/release/revoked_digests", json!([bundle]));
    gate.reconfigure(&revoked);
    let told = |count: usize| move |status: &Value| status["lost"]["clients"] == count;
    let status = gate
        .status_when("authz", "the whole fleet", told(fleet.len()))
        .await;
    println!(
        "expectations | revoked without a fallback | {} OPAs still run it, told after {:?}",
        fleet.len(),
        began.elapsed()
    );
    assert_eq!(
        (&status["state"], &status["lost"]["manifest"]),
        (&json!("withdrawn"), &json!(bundle))
    );
    for opa in &fleet {
        assert_eq!(
            opa.decision("authz/answer").await,
            Some(json!("allow")),
            "OPA keeps what it has"
        );
    }
    let log = gate.log();
    let told_so =
        |line: &&Value| line["message"] == "clients still run the version that was withdrawn";
    assert!(
        log.iter()
            .filter(told_so)
            .any(|line| line["manifest"] == bundle.as_str()),
        "{log:#?}"
    );
    // Restarting them is what is left; those that have nothing don't run it. Of those that have
    // gone away, the ones that looked like no other count as recent.
    drop(fleet.split_off(1));
    gate.status_when("authz", "one, and one until lately", told(2))
        .await;
    let newcomer = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    assert_eq!(newcomer.decision("authz/answer").await, None);
}

/// OPAs of both generations, side by side on one machine.
async fn fleet(gate: &TestGateway) -> Vec<Opa> {
    let mut fleet = Vec::new();
    for version in [
        OpaVersion::Newest,
        OpaVersion::V0_70,
        OpaVersion::Newest,
        OpaVersion::V0_70,
    ] {
        fleet.push(Opa::polling(version, &gate.url, "authz").await);
    }
    fleet
}

/// How long after `began` each of them decides by `answer`. They are looked at one after the
/// other, so the later ones look slower than they are.
async fn enforced(fleet: &[Opa], answer: &str, began: Instant, what: &str) {
    for (number, opa) in fleet.iter().enumerate() {
        opa.answers(answer).await;
        println!(
            "expectations | {what} | OPA {number} decides {answer} after {:?}",
            began.elapsed()
        );
    }
}

/// Waits until something was refused for this reason.
async fn refused(gate: &TestGateway, digest: &str, reason: &str, says: &str) -> Value {
    let is_it = |status: &Value| status["last_failure"]["digest"] == digest;
    let status = gate.status_when("authz", reason, is_it).await;
    let message = status["last_failure"]["message"].as_str().unwrap();
    assert!(message.contains(says), "{message}");
    let sample = format!(r#"bundlegate_refreshes_total{{bundle="authz",outcome="{reason}"}}"#);
    assert!(gate.metric(&sample).await >= 1.0, "{sample}");
    println!("expectations | {reason} | {message}");
    status
}

struct Expected<'a> {
    reason: &'a str,
    says: &'a str,
}

/// A registry, and a key that the gateways trust.
struct Fixture {
    registry: Registry,
    key: KeyPair,
}

impl Fixture {
    async fn start() -> Self {
        Self {
            registry: Registry::start(Kind::Distribution).await,
            key: KeyPair::generate().await,
        }
    }

    fn config(&self, tag: &str, expect: &Value) -> GatewayConfig {
        let config = GatewayConfig::trusting(&self.key).bundle(
            "authz",
            &self.registry,
            &format!("acme/authz:{tag}"),
        );
        config
            .cached()
            .with("/bundles/authz/expect", expect.clone())
    }

    /// A gateway with an empty cache of its own.
    async fn gate(&self, tag: &str, expect: &Value) -> TestGateway {
        TestGateway::start(self.config(tag, expect)).await
    }

    /// Pushes a bundle with these annotations, signed by both cosigns in their own formats.
    async fn push(&self, tag: &str, answer: &str, annotations: &[&str]) -> String {
        self.push_file(tag, &Artifact::answering(answer).await.file(), annotations)
            .await
    }

    async fn push_file(&self, tag: &str, file: &Path, annotations: &[&str]) -> String {
        let flags: Vec<_> = annotations
            .iter()
            .flat_map(|annotation| ["--annotation", *annotation])
            .collect();
        let digest = self
            .registry
            .push_with(&format!("acme/authz:{tag}"), file, &flags)
            .await;
        let name = format!("acme/authz@{digest}");
        self.key
            .sign_with(Cosign::V3, Format::Bundle, &self.registry, &name)
            .await;
        self.key
            .sign_with(Cosign::V2, Format::Legacy, &self.registry, &name)
            .await;
        digest
    }

    async fn tag(&self, digest: &str, tag: &str) {
        self.registry
            .tag(&format!("acme/authz@{digest}"), tag)
            .await;
    }

    /// Once `go_wrong` has put the bad one in the place of the good one, it is refused: while
    /// the good one is served, after a restart, and by a machine with an empty cache.
    async fn holds_to(
        &self,
        tag: &str,
        expect: &Value,
        [good, bad]: [&str; 2],
        go_wrong: impl AsyncFnOnce(),
        Expected { reason, says }: &Expected<'_>,
    ) {
        let mut gate = self.gate(tag, expect).await;
        let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
        opa.answers("right").await;
        go_wrong().await;
        let status = refused(&gate, bad, reason, says).await;
        assert_eq!(
            (&status["state"], &status["manifest"]),
            (&json!("serving"), &json!(good))
        );
        gate.restart().await;
        refused(&gate, bad, reason, says).await;
        // The version from the disk is published right after the refusal is recorded.
        gate.status_when("authz", "the good one is served", |status| {
            status["state"] == "serving" && status["manifest"] == good
        })
        .await;
        let newcomer = Opa::polling(OpaVersion::V0_70, &gate.url, "authz").await;
        newcomer.answers("right").await;
        assert_eq!(opa.decision("authz/answer").await, Some(json!("right")));
        let fresh = self.gate(tag, expect).await;
        let status = refused(&fresh, bad, reason, says).await;
        assert_eq!(status["state"], "withdrawn");
    }
}
