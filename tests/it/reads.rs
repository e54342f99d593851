//! Reading from a registry that misbehaves.

use std::time::Duration;

use bundlegate::{
    oci::{Digest, Reference},
    registry::{Class, Credentials, Options, RegistryError},
};
use bytes::Bytes;
use serde_json::json;

use crate::faulty::{Fault, FaultyRegistry};

#[tokio::test]
async fn a_tag_resolves_by_one_head_and_the_manifest_comes_by_digest() {
    let registry = FaultyRegistry::start().await;
    let (digest, layer) = registry.put_artifact("live", b"bundle");
    let source = registry.source();
    let pinned = source.resolve(&registry.reference("live")).await.unwrap();
    assert_eq!(pinned.digest(), &digest);
    let methods: Vec<_> = registry
        .asked("live")
        .into_iter()
        .map(|asked| asked.method)
        .collect();
    assert_eq!(methods, ["HEAD"]);
    assert_eq!(
        source.manifest(&pinned).await.unwrap().layers(),
        std::slice::from_ref(&layer)
    );
    let blob = source.blob(&layer).await.unwrap().collect().await.unwrap();
    assert_eq!(blob.in_memory().unwrap(), "bundle");
}

#[tokio::test]
async fn without_a_digest_header_the_manifest_itself_is_hashed() {
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", b"bundle");
    registry.fail("manifests/live", 1, Fault::Without("docker-content-digest"));
    let pinned = registry
        .source()
        .resolve(&registry.reference("live"))
        .await
        .unwrap();
    assert_eq!(pinned.digest(), &digest);
}

#[tokio::test]
async fn a_web_page_in_place_of_a_manifest_is_trouble_and_not_a_new_version() {
    let registry = FaultyRegistry::start().await;
    registry.put(
        "manifests/live",
        "text/html",
        "<html>We'll be back soon</html>",
    );
    registry.fail("manifests/live", 2, Fault::Without("docker-content-digest"));
    let error = registry
        .source()
        .resolve(&registry.reference("live"))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
}

#[tokio::test]
async fn passing_trouble_is_retried_and_lasting_trouble_is_transient() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    let source = registry.source();
    for fault in [
        Fault::Status(503, vec![]),
        Fault::Status(429, vec![("retry-after", "0".into())]),
        Fault::Stall,
    ] {
        registry.fail("manifests/live", 2, fault);
        source.resolve(&registry.reference("live")).await.unwrap();
    }
    registry.fail("manifests/live", 9, Fault::Status(502, vec![]));
    let error = source
        .resolve(&registry.reference("live"))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Transient);
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let registry = FaultyRegistry::start().await;
    registry.fail(
        "manifests/live",
        1,
        Fault::Status(429, vec![("retry-after", "600".into())]),
    );
    let error = registry
        .source()
        .resolve(&registry.reference("live"))
        .await
        .unwrap_err();
    assert_eq!(
        error.class(),
        Class::RateLimited {
            retry_after: Some(Duration::from_secs(600))
        }
    );
    assert_eq!(registry.asked("live").len(), 1);
}

/// A failure that names a delay, which may be longer than an operation.
#[tokio::test]
async fn retry_after_of_503_is_honoured() {
    for (seconds, requests) in [("0", 4), ("600", 1)] {
        let registry = FaultyRegistry::start().await;
        let fault = Fault::Status(503, vec![("retry-after", seconds.into())]);
        registry.fail("manifests/live", usize::MAX, fault);
        let source = registry.source();
        let error = source
            .resolve(&registry.reference("live"))
            .await
            .unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{error}");
        assert_eq!(registry.asked("live").len(), requests, "{seconds}");
    }
}

#[tokio::test]
async fn no_tag_is_not_the_same_as_no_registry() {
    let registry = FaultyRegistry::start().await;
    let source = registry.source();
    let error = source
        .resolve(&registry.reference("none"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::NoSuchReference { .. }),
        "{error}"
    );
    registry.fail("manifests/none", 1, Fault::Status(403, vec![]));
    assert_eq!(
        source
            .resolve(&registry.reference("none"))
            .await
            .unwrap_err()
            .class(),
        Class::Denied
    );
}

#[tokio::test]
async fn other_bytes_under_a_digest_are_transient_and_never_returned() {
    let registry = FaultyRegistry::start().await;
    let (_, layer) = registry.put_artifact("live", &[b'x'; 900_000]);
    let source = registry.source();
    let pinned = source.resolve(&registry.reference("live")).await.unwrap();
    registry.fail(
        "manifests/sha256",
        1,
        Fault::Replace(Bytes::from_static(b"{}")),
    );
    assert!(matches!(
        source.manifest(&pinned).await.unwrap_err(),
        RegistryError::Mismatch { .. }
    ));
    for fault in [
        Fault::Replace(Bytes::from_static(&[b'y'; 900_000])),
        Fault::Replace(Bytes::from_static(b"bund")),
        Fault::Truncate(800_000),
        Fault::Endless,
    ] {
        registry.fail("blobs/", usize::MAX, fault.clone());
        let error = source
            .blob(&layer)
            .await
            .unwrap()
            .collect()
            .await
            .unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{fault:?}: {error}");
        registry.heal();
    }
    assert!(source.blob(&layer).await.unwrap().collect().await.is_ok());
}

#[tokio::test]
async fn a_blob_that_ends_early_is_told_from_one_with_other_bytes() {
    let registry = FaultyRegistry::start().await;
    let (_, layer) = registry.put_artifact("live", b"bundle");
    let source = registry.source();
    let mut labels = Vec::new();
    for bytes in [&b"bund"[..], b"bungle"] {
        registry.fail("blobs/", 1, Fault::Replace(Bytes::from_static(bytes)));
        labels.push(
            source
                .blob(&layer)
                .await
                .unwrap()
                .collect()
                .await
                .unwrap_err()
                .label(),
        );
    }
    assert_eq!(labels, ["truncated", "corrupt"]);
}

#[tokio::test]
async fn an_endless_manifest_ends_at_the_limit() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    let source = registry.source();
    let pinned = source.resolve(&registry.reference("live")).await.unwrap();
    registry.fail("manifests/sha256", 1, Fault::Endless);
    let error = source.manifest(&pinned).await.unwrap_err();
    assert!(error.to_string().contains("limits.manifest"), "{error}");
}

/// Only what the digest proves is a fact about the artifact.
#[tokio::test]
async fn an_answer_over_the_limit_is_final_only_if_its_digest_is_right() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    let source = registry.source();
    let pinned = source.resolve(&registry.reference("live")).await.unwrap();
    let page = Bytes::from(vec![b' '; 5 << 20]);
    for fault in [
        Fault::Replace(page.clone()),
        Fault::Endless,
        Fault::Replace(Bytes::from(vec![b' '; 40 << 20])),
    ] {
        registry.fail("manifests/sha256", usize::MAX, fault);
        let error = source.manifest(&pinned).await.unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{error}");
        registry.heal();
    }
    // Under a tag no digest says what it should be.
    let (kind, manifest) = registry.held("manifests/live").unwrap();
    registry.put("manifests/live", &kind, page.clone());
    registry.fail("manifests/live", 2, Fault::Without("docker-content-digest"));
    let error = registry
        .source()
        .resolve(&registry.reference("live"))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
    registry.heal();
    registry.put("manifests/live", &kind, manifest);
    source.manifest(&pinned).await.unwrap();
    // This one is really so large.
    let digest = Digest::sha256(&page);
    registry.put(
        &format!("manifests/{digest}"),
        "application/vnd.oci.image.manifest.v1+json",
        page,
    );
    let large = format!("{}/acme/authz@{digest}", registry.address)
        .parse::<Reference>()
        .unwrap()
        .pinned()
        .unwrap();
    let error = source.manifest(&large).await.unwrap_err();
    assert_eq!(
        (error.class(), error.label()),
        (Class::Defect, "too_large"),
        "{error}"
    );
}

/// The caller decides how long to wait, because it may have something to lose meanwhile.
#[tokio::test]
async fn a_registry_that_asks_for_some_seconds_is_given_them_only_by_who_does_not_ask_again() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    let limited = || {
        registry.fail(
            "manifests/live",
            1,
            Fault::Status(429, vec![("retry-after", "2".into())]),
        )
    };
    limited();
    let error = registry
        .source()
        .resolve(&registry.reference("live"))
        .await
        .unwrap_err();
    assert_eq!(
        error.class(),
        Class::RateLimited {
            retry_after: Some(Duration::from_secs(2))
        }
    );
    let one_shot = registry.registries(registry.options()).one_shot();
    limited();
    one_shot
        .source(registry.reference("x").repository())
        .unwrap()
        .resolve(&registry.reference("live"))
        .await
        .unwrap();
}

fn with_password(registry: &FaultyRegistry) -> (Options, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let credentials = Credentials::PasswordFile {
        username: "robot".into(),
        password_file: file.path().to_owned(),
    };
    (
        Options {
            credentials: Some(credentials),
            ..registry.options()
        },
        file,
    )
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_again() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    let realm = format!("http://{}/v2/acme/authz/token", registry.address);
    let challenge =
        format!(r#"Bearer realm="{realm}",service="reg",scope="repository:acme/authz:pull""#);
    registry.fail(
        "manifests/",
        1,
        Fault::Status(401, vec![("www-authenticate", challenge)]),
    );
    let token = json!({"token": "t0ken", "expires_in": 300}).to_string();
    let query = "token?service=reg&scope=repository%3Aacme%2Fauthz%3Apull";
    registry.put(query, "application/json", token);
    let (options, _file) = with_password(&registry);
    let source = registry.source_with(options);
    for _ in 0..3 {
        source.resolve(&registry.reference("live")).await.unwrap();
    }
    let asked = registry.asked("token?");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].headers["authorization"], "Basic cm9ib3Q6czNjcmV0");
    assert_eq!(
        registry.asked("manifests/").last().unwrap().headers["authorization"],
        "Bearer t0ken"
    );
}

#[tokio::test]
async fn a_dead_token_server_never_means_anonymous() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    let challenge = format!(r#"Bearer realm="http://{}/token""#, registry.address);
    registry.fail(
        "manifests/",
        1,
        Fault::Status(401, vec![("www-authenticate", challenge)]),
    );
    registry.fail("/token", 9, Fault::Status(503, vec![]));
    let error = registry.source().resolve(&registry.reference("live")).await;
    // The first answer was a challenge, so the retried request goes through: what matters
    // is that it was a retry after an error, not a silent fallback.
    assert!(error.is_ok());
    assert_eq!(registry.asked("/token").len(), 1);
    registry.fail(
        "manifests/",
        9,
        Fault::Status(
            401,
            vec![(
                "www-authenticate",
                format!(r#"Bearer realm="http://{}/token""#, registry.address),
            )],
        ),
    );
    let error = registry
        .source()
        .resolve(&registry.reference("live"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::Token { .. }) && error.class() == Class::Transient,
        "{error}"
    );
}

#[tokio::test]
async fn a_redirect_to_another_host_gets_no_credentials() {
    let (registry, elsewhere) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let (_, layer) = registry.put_artifact("live", b"bundle");
    elsewhere.put_blob(b"bundle");
    registry.fail(
        "blobs/",
        1,
        Fault::Status(401, vec![("www-authenticate", "Basic realm=x".into())]),
    );
    let to = format!(
        "http://{}/v2/acme/authz/blobs/{}",
        elsewhere.address, layer.digest
    );
    registry.fail("blobs/", 1, Fault::Status(307, vec![("location", to)]));
    let (options, _file) = with_password(&registry);
    let source = registry.source_with(options);
    assert!(source.blob(&layer).await.unwrap().collect().await.is_ok());
    assert!(
        registry.asked("blobs/")[1]
            .headers
            .contains_key("authorization")
    );
    assert!(
        !elsewhere.asked("blobs/")[0]
            .headers
            .contains_key("authorization")
    );
}

#[tokio::test]
async fn secrets_are_in_no_error() {
    let registry = FaultyRegistry::start().await;
    registry.fail(
        "",
        99,
        Fault::Status(401, vec![("www-authenticate", "Basic realm=x".into())]),
    );
    let (options, _file) = with_password(&registry);
    let error = registry
        .source_with(options.clone())
        .resolve(&registry.reference("live"))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Denied);
    assert!(!format!("{error} {error:?} {options:?}").contains("s3cret"));
}

#[tokio::test]
async fn referrers_come_from_the_api_and_the_fallback_tag_and_pages_end() {
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", b"bundle");
    let entry = |name: &str| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::sha256(name.as_bytes()), "size": 2});
    let index = |names: &[&str]| {
        let manifests: Vec<_> = names.iter().map(|name| entry(name)).collect();
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests})
            .to_string()
    };
    let source = registry.source();
    let pinned = source.resolve(&registry.reference("live")).await.unwrap();
    assert!(
        source
            .referrers(&pinned, 64)
            .await
            .unwrap()
            .entries
            .is_empty()
    );
    let kind = "application/vnd.oci.image.index.v1+json";
    registry.put(
        &format!("manifests/sha256-{}", digest.hex()),
        kind,
        index(&["a", "b"]),
    );
    assert_eq!(
        source.referrers(&pinned, 64).await.unwrap().entries.len(),
        2
    );
    registry.put(&format!("referrers/{digest}"), kind, index(&["b", "c"]));
    assert_eq!(
        source.referrers(&pinned, 64).await.unwrap().entries.len(),
        3
    );
    assert_eq!(source.referrers(&pinned, 2).await.unwrap().entries.len(), 2);
    // Either list may be nonsense, by whoever may push; the other one still counts.
    for (path, left) in [("manifests/sha256-", 2), ("referrers/", 2)] {
        registry.fail(path, 1, Fault::Endless);
        let referrers = source.referrers(&pinned, 64).await.unwrap();
        assert_eq!(
            (referrers.entries.len(), referrers.skipped.len()),
            (left, 1),
            "{path}"
        );
    }
    // A page that names itself as the next one.
    let link = format!("</v2/acme/authz/referrers/{digest}>; rel=\"next\"");
    registry.fail("referrers/", 99, Fault::With("link", link));
    let before = registry.asked("referrers/").len();
    source.referrers(&pinned, 64).await.unwrap();
    assert!(registry.asked("referrers/").len() - before <= 8);
    registry.fail("manifests/sha256-", 9, Fault::Status(500, vec![]));
    assert_eq!(
        source.referrers(&pinned, 64).await.unwrap_err().class(),
        Class::Transient
    );
}
