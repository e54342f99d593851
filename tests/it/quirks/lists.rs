//! Signatures among many, in every kind of list.

use std::collections::BTreeSet;

use bundlegate::{
    oci::{Descriptor, Digest, Reference, media_type},
    registry::Class,
    verify::{self, Collection, Format, ReferrersApi},
};
use serde_json::{Value, json};

use crate::{
    attacks::{Fixture, keyed, policy, policy_with},
    faulty::{Fault, FaultyRegistry},
    forge::{By, Envelope, Key, Legacy, payload, statement},
    gateway::{Setup, TestGateway, bundle, eventually},
};

fn junk(fixture: &Fixture, number: usize) -> Value {
    fixture
        .registry
        .put_referrer(&fixture.digest, b"{}", |manifest| {
            manifest["annotations"]["number"] = number.to_string().into();
        })
}

fn good(fixture: &Fixture) -> Value {
    let good = fixture.bare(&fixture.statement()).to_string();
    fixture
        .registry
        .put_referrer(&fixture.digest, good.as_bytes(), |_| {})
}

fn index(entries: &[Value]) -> String {
    let kind = media_type::OCI_INDEX;
    json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string()
}

fn referrers_tag(digest: &Digest) -> String {
    format!("manifests/{}-{}", digest.algorithm(), &digest.hex()[..64])
}

#[tokio::test]
async fn a_signature_behind_four_thousand_referrers_in_pages_of_ten_counts() {
    let fixture = Fixture::new().await;
    let mut entries: Vec<_> = (0..4000).map(|number| junk(&fixture, number)).collect();
    entries.push(good(&fixture));
    let path = |page: usize| match page {
        0 => format!("referrers/{}", fixture.digest),
        _ => format!("referrers/{}?page={page}", fixture.digest),
    };
    let pages: Vec<_> = entries.chunks(10).collect();
    for (number, page) in pages.iter().enumerate() {
        fixture
            .registry
            .put(&path(number), media_type::OCI_INDEX, index(page));
        if number + 1 < pages.len() {
            fixture.registry.link(&path(number), &path(number + 1));
        }
    }
    fixture.verify(&fixture.trusts_key()).await.accepted();
    assert_eq!(fixture.registry.asked("/referrers/").len(), 401);
}

#[tokio::test]
async fn a_signature_behind_four_thousand_entries_of_the_referrers_tag_counts() {
    let fixture = Fixture::new().await;
    let mut entries: Vec<_> = (0..4000).map(|number| junk(&fixture, number)).collect();
    entries.push(good(&fixture));
    let tag = referrers_tag(&fixture.digest);
    fixture
        .registry
        .put(&tag, media_type::OCI_INDEX, index(&entries));
    fixture.verify(&fixture.trusts_key()).await.accepted();
}

/// The tag has at most 64 digits (distribution-spec, "Referrers Tag Schema").
#[tokio::test]
async fn the_referrers_tag_of_a_sha512_digest_is_cut_when_it_is_read() {
    let fixture = Fixture::new().await;
    let (_, manifest) = fixture.registry.held("manifests/live").unwrap();
    let digest: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
    let digest = digest.recompute(&manifest);
    let entry = good(&fixture);
    fixture.registry.put(
        &referrers_tag(&digest),
        media_type::OCI_INDEX,
        index(std::slice::from_ref(&entry)),
    );
    let reference = format!("{}/acme/authz@{digest}", fixture.registry.address);
    let pinned = reference.parse::<Reference>().unwrap().pinned().unwrap();
    let found = fixture
        .registry
        .source()
        .referrers(&pinned, 9)
        .await
        .unwrap();
    let expected: Descriptor = serde_json::from_value(entry).unwrap();
    assert_eq!(found.entries, [expected]);
}

#[tokio::test]
async fn formats_decides_which_lists_are_asked_for() {
    let fixture = Fixture::new().await;
    let pinned = fixture.gather_pin().await;
    for (format, referrers, sig) in [(Format::Legacy, 0, 1), (Format::Bundle, 2, 0)] {
        let source = fixture.registry.source();
        let formats = BTreeSet::from([format]);
        let collection = Collection {
            source: &source,
            subject: &pinned,
            limit: 1 << 20,
            api: ReferrersApi::Ask,
            formats: Some(&formats),
            useless: None,
        };
        let count = |part: &str| fixture.registry.asked(part).len();
        let all = || {
            (
                count("/referrers/") + count("/manifests/sha256-"),
                count(".sig"),
            )
        };
        let before = all();
        collection.collect().await.unwrap();
        let after = all();
        assert_eq!(
            (
                after.0 - before.0 - (after.1 - before.1),
                after.1 - before.1
            ),
            (referrers, sig)
        );
    }
    // As the gateway does it.
    let key = Key::p256();
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    registry.put_legacy(
        &digest,
        &[Legacy::sign(&key, &payload(&digest, "r.example/authz"))],
    );
    let setup = Setup {
        policy: policy_with([keyed(&key)], |requirements| {
            requirements.formats = [Format::Legacy].into();
        }),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup).await;
    eventually("it is served", || gate.state() == "serving").await;
    assert!(registry.asked("/referrers/").is_empty());
    let tag = format!("manifests/sha256-{}", digest.hex());
    assert!(
        registry
            .asked("")
            .iter()
            .all(|asked| !asked.path.ends_with(&tag))
    );
}

/// `limits.evidence` of the gate is 1 MiB: no signature is found within it.
#[tokio::test]
async fn beyond_limits_evidence_the_alarm_says_how_many_were_checked_and_what_to_do() {
    let (registry, key) = (FaultyRegistry::start().await, Key::p256());
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let note = "x".repeat(10_000);
    let attach = |number: usize| {
        registry.put_referrer(&digest, b"{}", |manifest| {
            manifest["annotations"]["note"] = format!("{number} {note}").into();
        })
    };
    let mut entries: Vec<_> = (0..300).map(attach).collect();
    let envelope = Envelope::sign(&key, &statement(&digest));
    let signed = envelope.bundle(By::Key(&key), &[], &[]).to_string();
    let large = registry.put_referrer(&digest, signed.as_bytes(), |manifest| {
        manifest["annotations"]["note"] = "x".repeat(20_000).into();
    });
    entries.push(large);
    registry.list_referrers(&digest, &json!(entries));
    let setup = Setup {
        policy: policy([keyed(&key)]),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup).await;
    eventually("a failed check", || gate.last_failure().is_some()).await;
    let failure = gate.last_failure().unwrap();
    assert_eq!(failure.class, "evidence", "{failure:?}");
    for words in [
        "of 301 attached candidates were checked within 1048576 bytes",
        "limits.evidence",
        "trust.policies.NAME.signatures.repository",
    ] {
        assert!(failure.message.contains(words), "{words:?}: {failure:?}");
    }
    // The others are found again once there are fewer.
    registry.list_referrers(&digest, &json!([entries.pop().unwrap()]));
    eventually("it is served", || gate.state() == "serving").await;
}

/// A registry may call a digest or tag invalid, and refuse what others may read.
#[tokio::test]
async fn a_referrer_that_the_registry_calls_invalid_is_skipped() {
    let fixture = Fixture::new().await;
    let bad = junk(&fixture, 1);
    for status in [400, 405, 414, 416, 422] {
        let part = bad["digest"].as_str().unwrap();
        fixture.registry.heal();
        fixture
            .registry
            .fail(part, usize::MAX, Fault::Status(status, vec![]));
        fixture
            .registry
            .list_referrers(&fixture.digest, &json!([bad]));
        let pinned = fixture.gather_pin().await;
        let source = fixture.registry.source();
        let evidence = verify::collect(&source, &pinned, 1 << 20).await.unwrap();
        assert!(
            evidence.is_empty() && evidence.unavailable().is_none(),
            "{status}"
        );
    }
}

/// Bills of materials and the like.
#[tokio::test]
async fn referrers_without_a_signature_are_fetched_once_however_often_a_version_is_refused() {
    let (registry, key) = (FaultyRegistry::start().await, Key::p256());
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let attach = |number: usize| {
        registry.put_referrer(&digest, b"{}", |manifest| {
            manifest["layers"][0]["mediaType"] = "application/spdx+json".into();
            manifest["annotations"]["number"] = number.to_string().into();
        })
    };
    let mut entries: Vec<_> = (0..100).map(attach).collect();
    registry.list_referrers(&digest, &json!(entries));
    let setup = Setup {
        policy: policy([keyed(&key)]),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup).await;
    let checks = || registry.asked("/referrers/").len();
    eventually("three checks", || checks() >= 3).await;
    let fetched = || registry.asked("GET /v2/acme/authz/manifests/sha256:").len();
    assert_eq!(fetched(), 100);
    // A signature among them is found.
    let envelope = Envelope::sign(&key, &statement(&digest));
    let signed = envelope.bundle(By::Key(&key), &[], &[]).to_string();
    entries.push(registry.put_referrer(&digest, signed.as_bytes(), |_| {}));
    registry.list_referrers(&digest, &json!(entries));
    eventually("it is served", || gate.state() == "serving").await;
    assert_eq!(fetched(), 101);
}

/// A registry refuses a tag of more than 128 characters, and cosign does not read SHA-512.
#[tokio::test]
async fn a_sha512_digest_has_no_sig_tag_that_is_asked_for() {
    let fixture = Fixture::new().await;
    let (_, manifest) = fixture.registry.held("manifests/live").unwrap();
    let digest: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
    let digest = digest.recompute(&manifest);
    let reference = format!("{}/acme/authz@{digest}", fixture.registry.address);
    let pinned = reference.parse::<Reference>().unwrap().pinned().unwrap();
    for part in [".sig", ".att", ".sbom"] {
        fixture
            .registry
            .fail(part, usize::MAX, Fault::Status(500, vec![]));
    }
    let evidence = verify::collect(&fixture.registry.source(), &pinned, 8 << 20).await;
    evidence.unwrap();
    assert!(fixture.registry.asked(".sig").is_empty());
}

/// What a server elsewhere answers says nothing about the registry's tags.
#[tokio::test]
async fn a_sig_tag_that_is_redirected_to_a_refusal_is_not_a_missing_one() {
    let (fixture, elsewhere) = (Fixture::new().await, FaultyRegistry::start().await);
    let pinned = fixture.gather_pin().await;
    let to = format!("http://{}/signatures", elsewhere.address);
    for status in [401, 403] {
        elsewhere.fail("", usize::MAX, Fault::Status(status, vec![]));
        let fault = Fault::Status(307, vec![("location", to.clone())]);
        fixture.registry.fail(".sig", usize::MAX, fault);
        let source = fixture.registry.source();
        let error = verify::collect(&source, &pinned, 8 << 20).await;
        let error = error.unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{error}");
        assert!(error.to_string().contains("it redirects to"), "{error}");
        elsewhere.heal();
        fixture.registry.heal();
    }
}
