//! Policy that crosses an air gap in a folder: what vouched for it comes along, and the
//! registry that it came from is needed no more.

use serde_json::{Value, json};

use crate::support::{
    Author, Cosign, Format, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, TestGateway,
};

#[tokio::test(flavor = "multi_thread")]
async fn from_debians_registry_to_one_that_lists_referrers() {
    crossed(Kind::Debian, Kind::Referrers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_one_that_lists_referrers_to_distribution_3() {
    crossed(Kind::Referrers, Kind::Distribution).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_distribution_3_to_debians_registry() {
    crossed(Kind::Distribution, Kind::Debian).await;
}

/// Each way of signing alone, and both together.
const WAYS: [(&str, &[(Cosign, Format)]); 3] = [
    ("bundled", &[(Cosign::V3, Format::Bundle)]),
    ("legacy", &[(Cosign::V2, Format::Legacy)]),
    (
        "both",
        &[(Cosign::V3, Format::Bundle), (Cosign::V3, Format::Legacy)],
    ),
];

async fn crossed(from: Kind, to: Kind) {
    let (author, key, stranger) = (
        Author::new(),
        KeyPair::generate().await,
        KeyPair::generate().await,
    );
    let (public, other) = (key.public(), stranger.public());
    let (public, other) = (public.display().to_string(), other.display().to_string());
    let first = Registry::start(from).await;
    for (way, formats) in WAYS {
        let digest = publish(&author, &first, way).await;
        for (cosign, format) in formats {
            key.sign_with(*cosign, *format, &first, &format!("acme/{way}@{digest}"))
                .await;
        }
        let name = first.reference(&format!("acme/{way}:v1"));
        let copied = author
            .json(&format!(
                "bundlegate copy {name} oci-layout:{way} --plain-http"
            ))
            .await;
        assert_eq!(copied["digest"], digest.as_str(), "{way}");
    }
    drop(first);

    for (way, _) in WAYS {
        author
            .line(&format!(
                "bundlegate verify oci-layout:{way}:v1 --key {public}"
            ))
            .await;
        let by_another = author
            .shell(&format!(
                "bundlegate verify oci-layout:{way}:v1 --key {other}"
            ))
            .await;
        by_another.refused("signature by another key");
    }
    let folders =
        WAYS.map(|(way, _)| (way, format!("oci-layout:{}:v1", author.path(way).display())));
    served(
        &key,
        &folders,
        json!({}),
        &format!("the folder from {from:?}"),
    )
    .await;

    let second = Registry::start(to).await;
    for (way, formats) in WAYS {
        let there = second.reference(&format!("mirror/{way}:v2"));
        let copied = author
            .line(&format!(
                "bundlegate copy oci-layout:{way}:v1 {there} --plain-http"
            ))
            .await;
        // Nothing of it is needed from here on.
        author.line(&format!("rm -r {way}")).await;
        let digest = verified(&author, &there, formats, (&public, &other)).await;
        assert!(copied.ends_with(&digest), "{way}: {copied}");
    }
    let mirrored = WAYS.map(|(way, _)| (way, second.reference(&format!("mirror/{way}:v2"))));
    let settings = json!({ &second.host: second.settings() });
    served(
        &key,
        &mirrored,
        settings,
        &format!("{to:?}, copied from {from:?}"),
    )
    .await;
}

/// Verifies a copy by its signer's key and not by another, with bundlegate and with cosign, and
/// gives its digest.
async fn verified(
    author: &Author,
    there: &str,
    formats: &[(Cosign, Format)],
    (public, other): (&str, &str),
) -> String {
    let judged = author
        .json(&format!(
            "bundlegate verify {there} --key {public} --plain-http"
        ))
        .await;
    assert_eq!(judged["verified"], true);
    let found: Vec<_> = judged["signatures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["format"].clone())
        .collect();
    assert_eq!(
        found,
        formats
            .iter()
            .map(|(_, format)| json!(format.label()))
            .collect::<Vec<Value>>(),
        "{there}"
    );
    for (_, format) in formats {
        let new_format = format!("--new-bundle-format={}", *format == Format::Bundle);
        let verify =
            format!("cosign verify --insecure-ignore-tlog --allow-http-registry {new_format}");
        author
            .line(&format!("{verify} --key {public} {there}"))
            .await;
        author
            .line(&format!("! {verify} --key {other} {there}"))
            .await;
    }
    judged["digest"].as_str().unwrap().to_owned()
}

/// Builds and pushes a bundle in which `data.<way>.answer` is `way`, and gives its digest.
async fn publish(author: &Author, registry: &Registry, way: &str) -> String {
    author.write(
        &format!("{way}-policy/.manifest"),
        &json!({ "roots": [way] }).to_string(),
    );
    author.write(
        &format!("{way}-policy/policy.rego"),
        &format!("package {way}\n\nanswer := \"{way}\"\n"),
    );
    let name = registry.reference(&format!("acme/{way}:v1"));
    let built = author
        .json(&format!("bundlegate build {way}-policy -t {name}"))
        .await;
    author
        .line(&format!("bundlegate push {name} --plain-http"))
        .await;
    built["digest"].as_str().unwrap().to_owned()
}

/// A gate serves the references, each verified, and OPA decides by all of them.
async fn served(key: &KeyPair, references: &[(&str, String)], registries: Value, whence: &str) {
    let mut config = GatewayConfig::trusting(key).with("/registries", registries);
    for (way, reference) in references {
        let bundle = json!({ "reference": reference, "trust": "release", "poll": "500ms" });
        config = config.with(&format!("/bundles/{way}"), bundle);
    }
    let gate = TestGateway::start(config).await;
    let mut opas = json!({ "services": { "gate": { "url": gate.url } }, "bundles": {} });
    for (way, _) in references {
        opas["bundles"][way] = json!({ "service": "gate", "resource": format!("/bundles/{way}") });
    }
    let opa = Opa::start(OpaVersion::Newest, &opas).await;
    for (way, _) in references {
        opa.decides(&format!("{way}/answer"), &json!(way)).await;
        let status = gate.bundle_status(way).await;
        assert_eq!(status["signers"][0]["authority"], "release-key", "{status}");
        println!("airgap | {whence} | {way:7} | served, and OPA decides by it");
    }
}
