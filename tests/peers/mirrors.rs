//! Distribution's pull-through proxy as a mirror, in both versions: the registry dies, and the
//! mirror dies, with OPA served throughout.

use serde_json::{Value, json};

use crate::support::{
    Artifact, Author, Cosign, Format, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry,
    TestGateway,
};

/// A registry, its mirror, and a gateway that knows of both.
struct Fixture {
    registry: Registry,
    mirror: Registry,
    key: KeyPair,
    gate: TestGateway,
    opa: Opa,
}

impl Fixture {
    async fn start(kind: Kind) -> Self {
        let registry = Registry::start(Kind::Distribution).await;
        let mirror = Registry::mirroring(kind, &registry).await;
        let key = KeyPair::generate().await;
        publish(&registry, &key, "first").await;
        let config = GatewayConfig::trusting(&key).bundle("authz", &registry, "acme/authz:live");
        let mut config = config.with(
            "/long_poll",
            json!({ "max_wait": "4s", "first_wait": "1s" }),
        );
        config.0["registries"][&registry.host]["mirrors"] = json!([mirror.host]);
        config.0["registries"][&mirror.host] = mirror.settings();
        let gate = TestGateway::start(config).await;
        let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
        opa.answers("first").await;
        Self {
            registry,
            mirror,
            key,
            gate,
            opa,
        }
    }

    /// How many requests to a host had this outcome.
    async fn requests(&self, host: &Registry, operation: &str, outcome: &str) -> f64 {
        let host = &host.host;
        let series = format!(
            r#"bundlegate_registry_requests_total{{operation="{operation}",outcome="{outcome}",registry="{host}"}}"#
        );
        self.gate.metric(&series).await
    }
}

/// Pushes, signs in both formats, and moves the tag.
async fn publish(registry: &Registry, key: &KeyPair, answer: &str) {
    let artifact = Artifact::answering(answer).await;
    let name = format!("acme/authz:{answer}");
    let digest = registry.push(&name, &artifact.file()).await;
    let pinned = format!("acme/authz@{digest}");
    for (cosign, format) in [(Cosign::V3, Format::Bundle), (Cosign::V2, Format::Legacy)] {
        key.sign_with(cosign, format, registry, &pinned).await;
    }
    registry.tag(&pinned, "live").await;
}

async fn hosts_die_in_turn(kind: Kind) {
    let mut fixture = Fixture::start(kind).await;
    // All from the mirror, which has fetched it on demand; it lacks the referrers API.
    assert_eq!(
        fixture.requests(&fixture.registry, "resolve", "ok").await,
        0.0
    );
    assert_eq!(fixture.requests(&fixture.registry, "blob", "ok").await, 0.0);
    assert!(fixture.requests(&fixture.mirror, "blob", "ok").await > 0.0);

    // The registry is dead, and the gateway starts anew without a cache.
    fixture.registry.kill();
    fixture.gate.restart().await;
    let status = fixture
        .gate
        .status_when("authz", "serving", |status| status["state"] == "serving")
        .await;
    assert_eq!(status["last_failure"], Value::Null, "{status}");
    let newcomer = Opa::polling(OpaVersion::V0_70, &fixture.gate.url, "authz").await;
    newcomer.answers("first").await;

    // The registry lives again, and the mirror is dead.
    fixture.registry.restart().await;
    fixture.mirror.kill();
    publish(&fixture.registry, &fixture.key, "second").await;
    fixture.opa.answers("second").await;
    newcomer.answers("second").await;

    // Both live.
    fixture.mirror.restart().await;
    publish(&fixture.registry, &fixture.key, "third").await;
    fixture.opa.answers("third").await;
    newcomer.answers("third").await;
    println!(
        "mirrors | {kind:?} | registry dead, mirror dead, both alive: OPA decides by each version"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn opa_is_served_while_the_registry_or_its_debian_mirror_is_dead() {
    hosts_die_in_turn(Kind::Debian).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opa_is_served_while_the_registry_or_its_distribution_3_mirror_is_dead() {
    hosts_die_in_turn(Kind::Distribution).await;
}

/// `--config` has the mirrors. What was pulled through the mirror works without the registry.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_reads_from_a_mirror_while_the_registry_is_dead() {
    let mut fixture = Fixture::start(Kind::Distribution).await;
    let file = fixture.gate.folder().join("bundlegate.yaml");
    let reference = fixture.registry.reference("acme/authz:live");
    let author = Author::new();
    let config = file.to_str().unwrap();
    let run = async |words: &[&str]| {
        let ran = author.run(&[words, &["--config", config]].concat()).await;
        assert_eq!(ran.code, Some(0), "{words:?}: {}", ran.stderr);
        ran
    };
    let repository = fixture.registry.reference("acme/authz");
    let before = run(&["tags", &repository]).await.stdout;
    // The gateway does not need the config blob, and the mirror has what was pulled through it.
    let earlier = Author::new();
    let pulled = earlier.run(&["pull", &reference, "--config", config]).await;
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    fixture.registry.kill();
    for words in [
        ["verify", &reference],
        ["inspect", &reference],
        ["pull", &reference],
    ] {
        run(&words).await;
    }
    // The mirror lists the tags that it has.
    let tags = run(&["tags", &repository]).await.stdout;
    assert!(
        before.contains("live") && tags.contains("live"),
        "{before}\n{tags}"
    );
    // What was pulled has the signature that the mirror has.
    let verified = author
        .run(&["verify", "--local", &reference, "--config", config])
        .await;
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    // A push goes to the registry alone, which is dead.
    let pushed = author.run(&["push", &reference, "--config", config]).await;
    assert_eq!(pushed.code, Some(1), "{}", pushed.stdout);
    assert!(
        pushed.stderr.contains(&fixture.registry.host),
        "{}",
        pushed.stderr
    );
    assert!(
        !pushed.stderr.contains(&fixture.mirror.host),
        "{}",
        pushed.stderr
    );
}
