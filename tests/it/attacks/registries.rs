//! A registry, or whoever can push to one, that wants the verifier to work for ever, to
//! speak to somebody else, or to take one thing for another.

use std::time::Duration;

use bundlegate::{
    oci::{Descriptor, Digest, PinnedReference, Reference, media_type},
    registry::{Class, Credentials, Options, Source, Timeouts},
    verify::{self, Reason},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::fixture::Fixture;
use crate::{
    faulty::{Fault, FaultyRegistry},
    forge::Legacy,
    gateway::PATIENCE,
};

/// Case 18.
#[tokio::test]
async fn ten_thousand_signatures_cost_as_much_as_a_few() {
    let fixture = Fixture::new().await;
    let key = fixture.trusts_key();
    let good = Legacy::sign(&fixture.key, &fixture.payload());
    // Junk in front, so that there is work for whoever has no bound.
    let mut layer = json!(fixture.registry.put_blob(b"{}"));
    layer["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json".into();
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": "AAAA"});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": vec![layer; 10_000],
    });
    let tag = format!("manifests/sha256-{}.sig", fixture.digest.hex());
    fixture
        .registry
        .put(&tag, media_type::OCI_MANIFEST, manifest.to_string());
    let judged = fixture.verify(&key).await;
    // They are one and the same signature.
    assert_eq!(judged.report.signatures.len(), 1);
    judged.refused(Reason::AnotherKey, "signature", "no authority");
    assert_eq!(fixture.registry.asked("blobs/").len(), 1);

    fixture.registry.put_legacy(&fixture.digest, &[good]);
    let entry =
        |number: usize| Descriptor::of(media_type::OCI_MANIFEST, number.to_string().as_bytes());
    let entries: Vec<_> = (0..10_000).map(entry).collect();
    fixture
        .registry
        .list_referrers(&fixture.digest, &json!(entries));
    let before = fixture.registry.asked("manifests/sha256:").len();
    fixture.verify(&key).await.accepted();
    let asked = fixture.registry.asked("manifests/sha256:").len() - before;
    assert!(asked <= 65, "{asked} manifests were asked for");
}

/// Case 18: a list of pages that leads back to itself, to another host, or never ends.
#[tokio::test]
async fn pages_of_referrers_come_to_an_end() {
    let fixture = Fixture::new().await;
    let elsewhere = FaultyRegistry::start().await;
    let bundle = fixture.bare(&fixture.statement()).to_string();
    let entry = fixture
        .registry
        .put_referrer(&fixture.digest, bundle.as_bytes(), |_| {});
    fixture
        .registry
        .list_referrers(&fixture.digest, &json!([entry]));
    for next in [
        format!(
            "</v2/acme/authz/referrers/{}>; rel=\"next\"",
            fixture.digest
        ),
        format!(
            "<http://{}/v2/acme/authz/referrers/{}>; rel=\"next\"",
            elsewhere.address, fixture.digest
        ),
    ] {
        fixture.registry.heal();
        fixture
            .registry
            .fail("referrers/", usize::MAX, Fault::With("link", next));
        let before = fixture.registry.asked("referrers/").len();
        fixture.verify(&fixture.trusts_key()).await.accepted();
        assert!(fixture.registry.asked("referrers/").len() - before <= 8);
    }
    assert!(
        elsewhere.asked("").is_empty(),
        "another host's list was asked for"
    );
}

/// Case 19.
#[tokio::test]
async fn what_is_said_to_be_huge_is_not_asked_for_and_what_turns_out_so_ends() {
    let fixture = Fixture::new().await;
    let key = fixture.trusts_key();
    let good = Legacy::sign(&fixture.key, &fixture.payload());
    fixture.registry.put_legacy(&fixture.digest, &[good]);
    let tag = format!("manifests/sha256-{}.sig", fixture.digest.hex());
    let (kind, bytes) = fixture.registry.held(&tag).unwrap();
    let mut manifest: Value = serde_json::from_slice(&bytes).unwrap();
    manifest["layers"][0]["size"] = 5_000_000_000_u64.into();
    fixture.registry.put(&tag, &kind, manifest.to_string());
    fixture
        .verify(&key)
        .await
        .refused_as_a_whole(Reason::Unsigned, "too many for a signature");
    assert!(fixture.registry.asked("blobs/").is_empty());
    fixture.registry.put(&tag, &kind, bytes);
    fixture.verify(&key).await.accepted();
    fixture.registry.fail("blobs/", usize::MAX, Fault::Endless);
    fixture
        .verify(&key)
        .await
        .refused_as_a_whole(Reason::Unsigned, "");
    fixture.registry.heal();
    fixture.registry.fail(".sig", usize::MAX, Fault::Endless);
    fixture
        .verify(&key)
        .await
        .refused_as_a_whole(Reason::Unsigned, "limits.manifest");
}

/// Case 19: one byte now and then.
#[tokio::test]
async fn a_trickling_response_is_given_up_after_the_total_timeout() {
    let fixture = Fixture::new().await;
    let bundle = fixture.bare(&fixture.statement()).to_string();
    let entry = fixture
        .registry
        .put_referrer(&fixture.digest, bundle.as_bytes(), |_| {});
    fixture
        .registry
        .list_referrers(&fixture.digest, &json!([entry]));
    let timeouts = Timeouts {
        connect: Duration::from_secs(5),
        read: Duration::from_secs(5),
        total: Duration::from_millis(700),
    };
    let hasty = fixture.registry.source_with(Options {
        timeouts,
        ..fixture.registry.options()
    });
    let pinned = pin(&fixture.registry, &fixture.digest);
    for part in ["referrers/", "manifests/sha256:", "blobs/", ".sig"] {
        fixture.registry.heal();
        fixture.registry.fail(part, usize::MAX, Fault::Trickle);
        let collecting = timeout(PATIENCE, verify::collect(&hasty, &pinned, 1 << 20));
        let collected = collecting
            .await
            .unwrap_or_else(|_| panic!("{part}: it waits for ever"));
        // The signature in the list of referrers may still be the one that counts.
        let class = match &collected {
            Ok(evidence) if part == ".sig" => evidence.unavailable().unwrap().class(),
            Ok(_) => panic!("{part}: nothing is missing"),
            Err(error) => error.class(),
        };
        assert_eq!(class, Class::Transient, "{part}: {collected:?}");
    }
}

/// Case 26.
#[tokio::test]
async fn a_header_names_no_digest_that_the_bytes_do_not_have() {
    let fixture = Fixture::new().await;
    fixture.registry.put_legacy(
        &fixture.digest,
        &[Legacy::sign(&fixture.key, &fixture.payload())],
    );
    let (evil, _) = fixture.registry.put_artifact("evil", b"evil");
    let source = fixture.registry.source();
    let live = fixture.registry.reference("live");
    // HEAD says one digest, and what lies under it is another.
    let (kind, good) = fixture
        .registry
        .held(&format!("manifests/{}", fixture.digest))
        .unwrap();
    let (_, bad) = fixture.registry.held(&format!("manifests/{evil}")).unwrap();
    fixture
        .registry
        .put(&format!("manifests/{}", fixture.digest), &kind, bad.clone());
    let pinned = source.resolve(&live).await.unwrap();
    assert_eq!(pinned.digest(), &fixture.digest);
    let error = source.manifest(&pinned).await.unwrap_err();
    assert_eq!(
        (error.class(), error.label()),
        (Class::Transient, "corrupt"),
        "{error}"
    );
    fixture
        .registry
        .put(&format!("manifests/{}", fixture.digest), &kind, good);
    // It says the evil one's: then it is the evil one that needs a signature.
    fixture.registry.fail(
        "HEAD",
        1,
        Fault::With("docker-content-digest", evil.to_string()),
    );
    fixture
        .verify(&fixture.trusts_key())
        .await
        .refused_as_a_whole(Reason::Unsigned, evil.as_str());
    // Headers of a GET are not even read.
    fixture.registry.fail(
        "GET",
        usize::MAX,
        Fault::With("docker-content-digest", evil.to_string()),
    );
    assert_eq!(
        fixture
            .verify(&fixture.trusts_key())
            .await
            .accepted()
            .pinned()
            .digest(),
        &fixture.digest
    );
    fixture.registry.heal();
    // A digest of another algorithm is a name for bytes like any other, and they are recomputed.
    let sha512 = format!("sha512:{}", "ab".repeat(64));
    fixture.registry.fail(
        "HEAD",
        1,
        Fault::With("docker-content-digest", sha512.clone()),
    );
    fixture
        .registry
        .put(&format!("manifests/{sha512}"), &kind, bad);
    let pinned = source.resolve(&live).await.unwrap();
    assert_eq!(
        source.manifest(&pinned).await.unwrap_err().label(),
        "corrupt"
    );
    for nonsense in ["", "sha256:12", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
        fixture.registry.fail(
            "HEAD",
            1,
            Fault::With("docker-content-digest", nonsense.to_owned()),
        );
        assert_eq!(
            source.resolve(&live).await.unwrap().digest(),
            &fixture.digest,
            "{nonsense:?}"
        );
    }
}

/// Case 27 (CVE-2021-41190); what the documents themselves may be is tested in `oci/manifest.rs`.
#[tokio::test]
async fn a_manifest_of_two_kinds_is_of_none() {
    let registry = FaultyRegistry::start().await;
    let (digest, layer) = registry.put_artifact("live", b"bundle");
    let source = registry.source();
    let pinned = source.resolve(&registry.reference("live")).await.unwrap();
    source.manifest(&pinned).await.unwrap();
    let (_, good) = registry.held(&format!("manifests/{digest}")).unwrap();
    registry.put(&format!("manifests/{digest}"), media_type::OCI_INDEX, good);
    let error = source.manifest(&pinned).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
    let both = json!({
        "schemaVersion": 2, "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [layer],
        "manifests": [Descriptor::new(media_type::OCI_MANIFEST, digest, 1)],
    });
    let schema_1 = json!({"schemaVersion": 1, "name": "acme/authz", "tag": "live", "fsLayers": [], "history": []});
    for (bad, kinds) in [
        (both, &[media_type::OCI_MANIFEST, media_type::OCI_INDEX][..]),
        (
            schema_1,
            &["application/vnd.docker.distribution.manifest.v1+prettyjws"],
        ),
    ] {
        let text = bad.to_string();
        let digest = Digest::sha256(text.as_bytes());
        for kind in kinds {
            registry.put(&format!("manifests/{digest}"), kind, text.clone());
            let error = source.manifest(&pin(&registry, &digest)).await.unwrap_err();
            assert_eq!(error.class(), Class::Defect, "{kind}: {error}");
        }
    }
}

fn with_password(registry: &FaultyRegistry) -> (Source, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let credentials = Credentials::PasswordFile {
        username: "robot".into(),
        password_file: file.path().to_owned(),
    };
    (
        registry.source_with(Options {
            credentials: Some(credentials),
            ..registry.options()
        }),
        file,
    )
}

/// Case 37: the host that a registry sends us to may ask for a password, and gets none.
#[tokio::test]
async fn the_target_of_a_redirect_can_not_ask_for_the_password() {
    let (registry, elsewhere) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let (_, layer) = registry.put_artifact("live", b"bundle");
    let to = format!(
        "http://{}/v2/acme/authz/blobs/{}",
        elsewhere.address, layer.digest
    );
    let (source, _file) = with_password(&registry);
    for challenge in [
        "Basic realm=x".to_owned(),
        format!(
            "Bearer realm=\"http://{}/token\",service=\"x\"",
            elsewhere.address
        ),
        format!(
            "Bearer realm=\"http://{}/token\",service=\"x\"",
            registry.address
        ),
    ] {
        registry.fail(
            "blobs/",
            1,
            Fault::Status(307, vec![("location", to.clone())]),
        );
        elsewhere.fail(
            "blobs/",
            1,
            Fault::Status(401, vec![("www-authenticate", challenge)]),
        );
        let error = source.blob(&layer).await.unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{error}");
        assert!(error.to_string().contains("it redirects to"), "{error}");
    }
    let asked = elsewhere.asked("");
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(
        asked
            .iter()
            .all(|one| !one.headers.contains_key("authorization")),
        "{asked:?}"
    );
    assert!(registry.asked("token").is_empty());
}

/// Case 37: what lies inside is nobody's to point at. Clouds keep their credentials there.
#[tokio::test]
async fn no_answer_leads_to_a_link_local_address() {
    let registry = FaultyRegistry::start().await;
    let (_, layer) = registry.put_artifact("live", b"bundle");
    let (source, _file) = with_password(&registry);
    for inside in [
        "169.254.169.254",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "2852039166",
    ] {
        let url = format!("http://{inside}/latest/meta-data/");
        let challenge = format!("Bearer realm=\"{url}\",service=\"x\"");
        for fault in [
            Fault::Status(307, vec![("location", url)]),
            Fault::Status(401, vec![("www-authenticate", challenge)]),
        ] {
            registry.heal();
            registry.fail("blobs/", usize::MAX, fault);
            let error = source.blob(&layer).await.unwrap_err();
            assert!(
                error.to_string().contains("link-local"),
                "{inside}: {error}"
            );
        }
    }
    registry.heal();
    // Nor is a descriptor's own URL followed.
    let mut foreign = json!(layer);
    foreign["urls"] = json!(["http://169.254.169.254/x"]);
    let foreign: Descriptor = serde_json::from_value(foreign).unwrap();
    assert_eq!(
        source
            .blob(&foreign)
            .await
            .unwrap()
            .collect()
            .await
            .unwrap()
            .in_memory()
            .unwrap(),
        "bundle"
    );
}

/// Case 38.
#[test]
fn a_repository_has_a_name_and_no_way_out_of_it() {
    for name in [
        "r.example/acme/../evil",
        "r.example/../evil",
        "r.example/acme/./authz",
        "r.example/acme//authz",
        "r.example/acme%2f..%2fevil",
        "r.example/acme/%2e%2e/evil",
        "r.example/acme\\evil",
        "r.example/acme?x=y",
        "r.example/acme#x",
        "r.example/acme authz",
        "r.example/acme\nauthz",
        "robot:s3cret@r.example/acme",
        "r.example@evil.example/acme",
        "r.example:port/acme",
        "r.example/acme/_catalog/..",
        "r.example/-acme",
    ] {
        assert!(
            format!("{name}:v1").parse::<Reference>().is_err(),
            "{name:?}"
        );
        assert!(
            format!("{name}@{}", Digest::sha256(b"x"))
                .parse::<Reference>()
                .is_err(),
            "{name:?}"
        );
    }
    for tag in ["..", "v1/../../x", "v1%2f", "v1?x", "", ".v1", "sha256-x\n"] {
        assert!(
            format!("r.example/acme:{tag}")
                .parse::<Reference>()
                .is_err(),
            "{tag:?}"
        );
    }
    "r.example/acme/authz:v1".parse::<Reference>().unwrap();
}

fn pin(registry: &FaultyRegistry, digest: &Digest) -> PinnedReference {
    format!("{}/acme/authz@{digest}", registry.address)
        .parse::<Reference>()
        .unwrap()
        .pinned()
        .unwrap()
}
