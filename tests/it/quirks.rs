//! Registries that do not follow the specification to the letter: what the gateway asks for, and
//! what it serves.

use bundlegate::{
    oci::{Digest, Reference},
    verify::{Collection, ReferrersApi},
};
use serde_json::json;

use crate::{
    attacks::{Fixture, keyed, policy},
    faulty::FaultyRegistry,
    forge::{By, Envelope, Key, Legacy, payload, statement},
    gate::{Gate, Setup, bundle, eventually},
};

/// A registry may hold thousands of bundles in as many repositories.
#[tokio::test]
async fn a_host_without_the_referrers_api_is_asked_for_it_in_three_repositories() {
    let registry = FaultyRegistry::start().await;
    let registries = registry.registries(registry.options());
    for number in 0..50 {
        let repository = format!("{}/acme/bundle-{number}", registry.address);
        let digest = Digest::sha256(repository.as_bytes());
        let reference: Reference = format!("{repository}@{digest}").parse().unwrap();
        let source = registries.source(reference.repository()).unwrap();
        let subject = reference.pinned().unwrap();
        let collection = Collection {
            source: &source,
            subject: &subject,
            limit: 1 << 20,
            api: ReferrersApi::AskUnlessMissing,
        };
        let evidence = collection.collect().await.unwrap();
        assert_eq!(evidence.api_assumed_missing(), number >= 3, "{number}");
    }
    assert_eq!(registry.asked("/referrers/").len(), 3);
    // The tags are looked up for each.
    assert_eq!(registry.asked("/manifests/sha256-").len(), 2 * 50);
}

#[tokio::test]
async fn a_repository_without_the_referrers_api_is_asked_for_it_once() {
    let registry = FaultyRegistry::start().await;
    let key = Key::p256();
    let sign = |text: &str| {
        let (digest, _) = registry.put_artifact(text, &bundle(text));
        let signature = Legacy::sign(&key, &payload(&digest, "r.example/authz"));
        registry.put_legacy(&digest, &[signature]);
        digest
    };
    sign("live");
    let setup = Setup {
        policy: policy([keyed(&key)]),
        ..Setup::default()
    };
    let gate = Gate::with(&registry, setup).await;
    eventually("it is served", || gate.state() == "serving").await;
    for text in ["two", "three"] {
        let digest = sign(text);
        let (kind, bytes) = registry.held(&format!("manifests/{digest}")).unwrap();
        registry.put("manifests/live", &kind, bytes);
        let shown = || gate.status().manifest == Some(digest.clone());
        eventually("the next version is served", shown).await;
    }
    assert_eq!(registry.asked("/referrers/").len(), 1);
}

/// The memory saves requests and decides nothing: the API is asked before a refusal.
#[tokio::test]
async fn a_signature_in_the_referrers_api_counts_although_the_api_was_missing_before() {
    let fixture = Fixture::new().await;
    let setup = Setup {
        policy: fixture.trusts_key(),
        ..Setup::default()
    };
    let gate = Gate::with(&fixture.registry, setup).await;
    eventually("a failed check", || gate.last_failure().is_some()).await;
    assert_eq!(gate.last_failure().unwrap().class, "evidence");
    // Beside a foreign one at the `.sig` tag, so that there is something to refuse.
    let (digest, _) = fixture.registry.put_artifact("live", &bundle("two"));
    let foreign = Legacy::sign(&Key::p256(), &payload(&digest, "r.example/authz"));
    fixture.registry.put_legacy(&digest, &[foreign]);
    let envelope = Envelope::sign(&fixture.key, &statement(&digest));
    let good = envelope.bundle(By::Key(&fixture.key), &[], &[]).to_string();
    let entry = fixture
        .registry
        .put_referrer(&digest, good.as_bytes(), |_| {});
    fixture.registry.list_referrers(&digest, &json!([entry]));
    eventually("it is served", || gate.state() == "serving").await;
}
