//! Both OPAs, the three registries, both cosigns, both signature formats, with and without
//! TLS: what is signed reaches OPA, and so does every move of the tag, in either direction.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    Artifact, Ca, Cosign, Format, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry,
    TestGateway, long_polling,
};

#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_over_http() {
    let registry = Registry::start(Kind::Debian).await;
    every_signature_reaches_every_opa(registry, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn distribution_3_over_tls_with_a_password_and_tls_to_opa() {
    let ca = Ca::new();
    let registry = Registry::protected(Kind::Distribution, &ca).await;
    every_signature_reaches_every_opa(registry, Some(&ca)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_the_referrers_api_over_tls() {
    let ca = Ca::new();
    let registry = Registry::secured(Kind::Referrers, &ca).await;
    every_signature_reaches_every_opa(registry, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discovered_configuration_names_the_bundles() {
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    let gate = TestGateway::start(
        GatewayConfig::trusting(&key)
            .bundle("discovery", &registry, "acme/discovery:live")
            .bundle("authz", &registry, "acme/authz:live"),
    )
    .await;
    let bundles = long_polling(&gate.url, "authz")["bundles"].take();
    let discovered = json!({ "bundles": bundles, "labels": { "by": "discovery" } }).to_string();
    let artifacts = [
        (
            "acme/discovery",
            Artifact::built("1", &[("data.json", &discovered)]).await,
        ),
        ("acme/authz", Artifact::answering("first").await),
    ];
    for (repository, artifact) in &artifacts {
        let digest = registry
            .push(&format!("{repository}:live"), &artifact.file())
            .await;
        key.sign(&registry, &format!("{repository}@{digest}")).await;
    }
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        let boot = json!({
            "services": { "gate": { "url": gate.url } },
            "discovery": {
                "service": "gate",
                "resource": "/bundles/discovery",
                "polling": { "min_delay_seconds": 1, "max_delay_seconds": 2, "long_polling_timeout_seconds": 30 },
            },
        });
        let began = Instant::now();
        let opa = Opa::start(version, &boot).await;
        opa.answers("first").await;
        println!(
            "discovery | OPA {version:?} | decides {:.1} s after its start",
            began.elapsed().as_secs_f64()
        );
    }
}

/// One repository per way of signing, each a bundle of its own below its own root.
struct Cell {
    name: &'static str,
    cosign: Cosign,
    format: Format,
    old: String,
    new: String,
}

const WAYS: [(&str, Cosign, Format); 4] = [
    ("cosign3_bundle", Cosign::V3, Format::Bundle),
    ("cosign3_legacy", Cosign::V3, Format::Legacy),
    ("cosign2_bundle", Cosign::V2, Format::Bundle),
    ("cosign2_legacy", Cosign::V2, Format::Legacy),
];

async fn every_signature_reaches_every_opa(registry: Registry, tls_to_opa: Option<&Ca>) {
    let key = KeyPair::generate().await;
    let mut cells = Vec::new();
    let mut config = GatewayConfig::trusting(&key);
    for (name, cosign, format) in WAYS {
        let [old, new] = [
            signed(&registry, &key, name, "old").await,
            signed(&registry, &key, name, "new").await,
        ];
        registry.tag(&old, "live").await;
        config = config.bundle(name, &registry, &format!("acme/{name}:live"));
        cells.push(Cell {
            name,
            cosign,
            format,
            old,
            new,
        });
    }
    if let Some(ca) = tls_to_opa {
        config = config.secured(&ca.issue("gate"));
    }
    let gate = TestGateway::start(config).await;
    let opas = opas(&gate, tls_to_opa).await;
    for cell in &cells {
        reached(&opas, cell, "old").await;
        all_wait(&gate, cell, opas.len()).await;
        registry.tag(&cell.new, "live").await;
        let moved = reached(&opas, cell, "new").await;
        all_wait(&gate, cell, opas.len()).await;
        registry.tag(&cell.old, "live").await;
        let back = reached(&opas, cell, "old").await;
        let format = cell.format.label();
        let signer = &gate.bundle_status(cell.name).await["signers"][0];
        assert_eq!(
            (&signer["authority"], &signer["format"]),
            (&json!("release-key"), &json!(format)),
            "{}",
            cell.name
        );
        for (index, (name, _)) in opas.iter().enumerate() {
            println!(
                "matrix | {:?} | cosign {:?} | {format:6} | {name:22} | moved {:.2} s | back {:.2} s |",
                registry.kind,
                cell.cosign,
                moved[index].as_secs_f64(),
                back[index].as_secs_f64(),
            );
        }
    }
}

/// Pushes and signs a bundle in which `data.<name>.answer` is `answer`; gives what to tag.
async fn signed(registry: &Registry, key: &KeyPair, way: &str, answer: &str) -> String {
    let manifest = json!({ "roots": [way] }).to_string();
    let policy = format!("package {way}\n\nanswer := \"{answer}\"\n");
    let artifact = Artifact::built(
        answer,
        &[(".manifest", &manifest), ("policy.rego", &policy)],
    )
    .await;
    let digest = registry
        .push(&format!("acme/{way}:{answer}"), &artifact.file())
        .await;
    let pinned = format!("acme/{way}@{digest}");
    let (_, cosign, format) = WAYS.into_iter().find(|(name, ..)| *name == way).unwrap();
    key.sign_with(cosign, format, registry, &pinned).await;
    let tag = digest.replace(':', "-");
    let tags = registry
        .oras(&["repo", "tags", &registry.reference(&format!("acme/{way}"))])
        .await;
    let found: Vec<_> = tags
        .lines()
        .filter_map(|line| line.strip_prefix(&tag))
        .collect();
    assert_eq!(
        found,
        place(registry.kind, format),
        "{way} in {:?}: {tags}",
        registry.kind
    );
    pinned
}

/// What follows the digest in the tag that a signature is found by: nothing for the referrers
/// fallback, and no tag at all where there is the referrers API.
fn place(kind: Kind, format: Format) -> &'static [&'static str] {
    match (kind, format) {
        (_, Format::Legacy) => &[".sig"],
        (Kind::Referrers, Format::Bundle) => &[],
        (Kind::Debian | Kind::Distribution, Format::Bundle) => &[""],
    }
}

/// One of each, all with all bundles: OPA of today, with superseded tags as well, and 0.70.
async fn opas(gate: &TestGateway, ca: Option<&Ca>) -> Vec<(&'static str, Opa)> {
    let mut config = json!({ "services": {}, "bundles": {} });
    for (name, ..) in WAYS {
        let one = long_polling(&gate.url, name);
        config["services"] = one["services"].clone();
        config["bundles"][name] = one["bundles"][name].clone();
    }
    if let Some(ca) = ca {
        config["services"]["gate"]["tls"] = json!({ "ca_cert": ca.file() });
    }
    let mut superseding: Value = config.clone();
    for (name, ..) in WAYS {
        superseding["bundles"][name]["polling"]["superseded_etag_ttl_seconds"] = json!(600);
    }
    vec![
        ("OPA newest", Opa::start(OpaVersion::Newest, &config).await),
        (
            "OPA newest, superseded",
            Opa::start(OpaVersion::Newest, &superseding).await,
        ),
        ("OPA 0.70", Opa::start(OpaVersion::V0_70, &config).await),
    ]
}

/// Until every OPA is held by the gate: whatever it learns from now on, it learns by long poll.
async fn all_wait(gate: &TestGateway, cell: &Cell, opas: usize) {
    gate.status_when(cell.name, "all OPAs wait", |status| {
        status["waiters"] == opas
    })
    .await;
}

/// How long each OPA takes from now on to decide by a version of a bundle.
async fn reached(opas: &[(&'static str, Opa)], cell: &Cell, answer: &str) -> Vec<Duration> {
    let (path, wanted) = (format!("{}/answer", cell.name), json!(answer));
    futures_util::future::join_all(opas.iter().map(|(_, opa)| opa.decides(&path, &wanted))).await
}
