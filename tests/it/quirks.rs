//! Registries that do not follow the specification to the letter: what the gateway asks for, and
//! what it serves.

pub(crate) mod faults;
mod lists;
mod tags;
mod transfers;

use std::time::Duration;

use bundlegate::{
    oci::{Digest, Reference, media_type},
    registry::Lookup,
    verify::{Authority, AuthorityKey, AuthorityKind, Collection, ReferrersApi},
};
use serde_json::json;

use crate::{
    attacks::{Fixture, keyed, policy, public},
    faulty::{Fault, FaultyRegistry},
    forge::{By, Envelope, Key, Legacy, payload, statement},
    gateway::{Setup, TestGateway, bundle, eventually},
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
            formats: None,
            useless: None,
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
    let gate = TestGateway::with(&registry, setup).await;
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
    let gate = TestGateway::with(&fixture.registry, setup).await;
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

/// A signature by a revoked key refuses no artifact that has a good one as well: where a list was
/// not asked for, or not delivered, the verdict is open.
#[tokio::test]
async fn a_revoked_key_decides_nothing_while_a_list_is_unread() {
    let (good, revoked) = (Key::p256(), Key::p256());
    let keys = [
        public(&good).into(),
        AuthorityKey {
            revoked: true,
            ..public(&revoked).into()
        },
    ];
    let authority = || Authority {
        kind: AuthorityKind::Keys(keys.to_vec()),
        ..keyed(&good)
    };
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let signature = Legacy::sign(&revoked, &payload(&digest, "r.example/authz"));
    registry.put_legacy(&digest, &[signature]);
    registry.fail("/referrers/", usize::MAX, Fault::Status(500, vec![]));
    let setup = Setup {
        policy: policy([authority()]),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup).await;
    let class = || gate.last_failure().map(|failure| failure.class);
    eventually("a failed check", || class().is_some()).await;
    assert_eq!((class(), gate.state()), (Some("transient"), "pending"));
    // The registry has no referrers API now, and the verdict is final.
    registry.heal();
    eventually("the verdict", || class() == Some("distrusted")).await;
    // It has one again. That it had none is remembered for an hour.
    let envelope = Envelope::sign(&good, &statement(&digest));
    let bundle = envelope.bundle(By::Key(&good), &[], &[]).to_string();
    let entry = registry.put_referrer(&digest, bundle.as_bytes(), |_| {});
    registry.list_referrers(&digest, &json!([entry]));
    eventually("it is served", || gate.state() == "serving").await;
}

/// A refused signature tag counts as a missing one only while the artifact can be read.
#[tokio::test]
async fn a_refused_tag_is_no_missing_one_once_the_artifact_is_refused_as_well() {
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    registry.fail(".sig", usize::MAX, Fault::Status(403, vec![]));
    let by_digest = format!("GET /v2/acme/authz/manifests/{digest}");
    registry.fail(&by_digest, usize::MAX, Fault::Status(403, vec![]));
    let setup = Setup {
        policy: policy([keyed(&Key::p256())]),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup).await;
    let class = || gate.last_failure().map(|failure| failure.class);
    eventually("a failed check", || class().is_some()).await;
    assert_eq!((class(), gate.state()), (Some("denied"), "pending"));
    registry.heal();
    registry.fail(".sig", usize::MAX, Fault::Status(403, vec![]));
    eventually("the verdict", || class() == Some("evidence")).await;
}

fn methods(registry: &FaultyRegistry, part: &str) -> Vec<(String, String)> {
    let asked = registry.asked(part).into_iter();
    asked.map(|asked| (asked.method, asked.path)).collect()
}

#[tokio::test]
async fn a_new_bundles_manifest_costs_one_get_and_then_every_check_a_head() {
    let registry = FaultyRegistry::start().await;
    let (first, _) = registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::before(&registry, Duration::from_millis(50)).await;
    eventually("it is served", || gate.state() == "serving").await;
    eventually("three checks", || gate.refreshes("unchanged") >= 3).await;
    assert_eq!(gate.status().manifest.as_ref(), Some(&first));
    let asked = methods(&registry, "/manifests/");
    let tag = "/v2/acme/authz/manifests/live".to_owned();
    assert_eq!(asked[0], ("GET".to_owned(), tag.clone()));
    assert!(
        asked[1..]
            .iter()
            .all(|asked| *asked == ("HEAD".to_owned(), tag.clone())),
        "{asked:?}"
    );
    // The next version: a HEAD, and its manifest by digest.
    let (second, _) = registry.put_artifact("live", &bundle("two"));
    let shown = || gate.status().manifest.as_ref() == Some(&second);
    eventually("the next version is served", shown).await;
    assert_eq!(registry.asked("GET /v2/acme/authz/manifests/live").len(), 1);
    let by_digest = format!("GET /v2/acme/authz/manifests/{second}");
    assert_eq!(registry.asked(&by_digest).len(), 1);
}

/// The digest in the header of a GET is checked like that of a HEAD: the bytes count if they have
/// it, and what is wrong with others only a request by digest can say.
#[tokio::test]
async fn the_manifest_of_a_new_bundle_has_the_digest_that_the_registry_names() {
    for (what, fault, by_digest) in [
        ("no digest", Fault::Without("docker-content-digest"), 0),
        (
            "a digest that is none",
            Fault::With("docker-content-digest", "sha256:12".into()),
            0,
        ),
        ("cut short", Fault::Truncate(20), 0),
        (
            "another Content-Type",
            Fault::With("content-type", media_type::OCI_INDEX.into()),
            1,
        ),
    ] {
        let registry = FaultyRegistry::start().await;
        let (digest, _) = registry.put_artifact("live", &bundle("one"));
        registry.fail("GET /v2/acme/authz/manifests/live", 1, fault);
        let gate = TestGateway::before(&registry, Duration::from_millis(50)).await;
        eventually(what, || gate.state() == "serving").await;
        assert_eq!(gate.status().manifest.as_ref(), Some(&digest), "{what}");
        let asked = registry.asked(&format!("GET /v2/acme/authz/manifests/{digest}"));
        assert_eq!(asked.len(), by_digest, "{what}");
    }
    // A digest of other bytes: they are fetched under it, or nothing is.
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let (other, _) = registry.put_artifact("other", &bundle("two"));
    registry.fail(
        "GET /v2/acme/authz/manifests/live",
        usize::MAX,
        Fault::With("docker-content-digest", other.to_string()),
    );
    let source = registry.source();
    let found = source
        .look_up(&registry.reference("live"), Lookup::Manifest)
        .await
        .unwrap();
    assert_eq!(found.pinned.digest(), &other);
    assert!(found.manifest.is_none());
    let sha512 = registry.reference("live");
    let (_, bytes) = registry.held("manifests/live").unwrap();
    let named: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
    let named = named.recompute(&bytes);
    registry.heal();
    registry.fail(
        "GET /v2/acme/authz/manifests/live",
        1,
        Fault::With("docker-content-digest", named.to_string()),
    );
    let found = source.look_up(&sha512, Lookup::Manifest).await.unwrap();
    assert_eq!(found.pinned.digest(), &named);
    assert_eq!(found.manifest.unwrap().raw(), &bytes);
}

/// Thousands of bundles wait for their turn after the resolution of their tags.
#[tokio::test]
async fn a_long_manifest_is_not_kept_until_its_bundles_turn() {
    let registry = FaultyRegistry::start().await;
    let note = "x".repeat(20_000);
    let (digest, _) = registry.put_annotated("live", &bundle("one"), &[("note", &note)]);
    let found = registry
        .source()
        .look_up(&registry.reference("live"), Lookup::Manifest)
        .await
        .unwrap();
    assert_eq!(found.pinned.digest(), &digest);
    assert!(found.manifest.is_none());
    let gate = TestGateway::before(&registry, Duration::from_millis(50)).await;
    eventually("it is served", || gate.state() == "serving").await;
}
