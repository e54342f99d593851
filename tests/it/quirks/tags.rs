//! Registries that refuse HEAD, or know a tag on GET only.

use bundlegate::registry::{Class, Source};

use super::methods;
use crate::faulty::{Fault, FaultyRegistry};

#[tokio::test]
async fn a_tag_whose_head_is_refused_is_resolved_by_get_from_then_on() {
    for fault in [
        Fault::Status(400, vec![]),
        Fault::Status(403, vec![]),
        Fault::Status(404, vec![]),
        Fault::Status(405, vec![]),
        Fault::Status(501, vec![]),
        Fault::Without("docker-content-digest"),
    ] {
        let registry = FaultyRegistry::start().await;
        let (digest, _) = registry.put_artifact("live", b"bundle");
        registry.fail("HEAD", usize::MAX, fault.clone());
        // Where the GET names no digest either, the bytes do.
        registry.fail("GET", 1, Fault::Without("docker-content-digest"));
        let source = registry.source();
        for _ in 0..3 {
            let pinned = source.resolve(&registry.reference("live")).await.unwrap();
            assert_eq!(pinned.digest(), &digest, "{fault:?}");
        }
        let asked: Vec<_> = methods(&registry, "")
            .into_iter()
            .map(|(method, _)| method)
            .collect();
        assert_eq!(asked, ["HEAD", "GET", "GET", "GET"], "{fault:?}");
    }
}

/// A storage refuses a HEAD of a URL that is signed for GET.
#[tokio::test]
async fn a_tag_whose_head_is_redirected_to_a_refusal_is_resolved_by_get() {
    let (registry, elsewhere) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let (digest, _) = registry.put_artifact("live", b"bundle");
    elsewhere.put_artifact("live", b"bundle");
    let to = format!("http://{}/v2/acme/authz/manifests/live", elsewhere.address);
    let fault = Fault::Status(307, vec![("location", to)]);
    registry.fail("manifests/live", usize::MAX, fault);
    elsewhere.fail("HEAD", usize::MAX, Fault::Status(403, vec![]));
    let source = registry.source();
    for _ in 0..2 {
        let pinned = source.resolve(&registry.reference("live")).await.unwrap();
        assert_eq!(pinned.digest(), &digest);
    }
    let asked: Vec<_> = methods(&elsewhere, "")
        .into_iter()
        .map(|(method, _)| method)
        .collect();
    assert_eq!(asked, ["HEAD", "GET", "GET"]);
}

/// A registry that copies an artifact from another one when it is first asked for.
#[tokio::test]
async fn a_tag_that_is_indexed_by_a_get_is_found() {
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", b"bundle");
    registry.fail("HEAD", 1, Fault::Status(404, vec![]));
    let pinned = registry
        .source()
        .resolve(&registry.reference("live"))
        .await
        .unwrap();
    assert_eq!(pinned.digest(), &digest);
}

/// Resolves the tag five times, which fails and costs one GET.
async fn fails_with_one_get(registry: &FaultyRegistry, source: &Source, class: Class) {
    let reference = registry.reference("live");
    for _ in 0..5 {
        let error = source.resolve(&reference).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
    }
    assert_eq!(
        (registry.asked("HEAD").len(), registry.asked("GET").len()),
        (5, 1)
    );
}

#[tokio::test]
async fn a_missing_tag_costs_one_get_an_hour_beside_its_heads() {
    let registry = FaultyRegistry::start().await;
    let source = registry.source();
    fails_with_one_get(&registry, &source, Class::NotFound).await;
    // It is there again at once, and a HEAD is enough.
    let (digest, _) = registry.put_artifact("live", b"bundle");
    for _ in 0..2 {
        let pinned = source.resolve(&registry.reference("live")).await.unwrap();
        assert_eq!(pinned.digest(), &digest);
    }
    assert_eq!(
        (registry.asked("HEAD").len(), registry.asked("GET").len()),
        (7, 1)
    );
}

#[tokio::test]
async fn a_tag_that_may_not_be_read_costs_one_get_an_hour_beside_its_heads() {
    let registry = FaultyRegistry::start().await;
    registry.fail("", usize::MAX, Fault::Status(403, vec![]));
    let source = registry.source();
    fails_with_one_get(&registry, &source, Class::Denied).await;
}

/// A failure of the GET says nothing about the tag.
#[tokio::test]
async fn a_get_that_fails_after_a_head_of_404_is_no_missing_tag() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    registry.fail("HEAD", 1, Fault::Status(404, vec![]));
    registry.fail("GET", usize::MAX, Fault::Status(500, vec![]));
    let error = registry
        .source()
        .resolve(&registry.reference("live"))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
}

/// Nor does a GET that is refused in another way, so that the next one is asked again.
#[tokio::test]
async fn a_get_that_is_refused_after_another_answer_to_head_confirms_nothing() {
    for head in [404, 405] {
        let registry = FaultyRegistry::start().await;
        let (digest, _) = registry.put_artifact("live", b"bundle");
        registry.fail("HEAD", usize::MAX, Fault::Status(head, vec![]));
        registry.fail("GET", 1, Fault::Status(403, vec![]));
        let (source, reference) = (registry.source(), registry.reference("live"));
        let error = source.resolve(&reference).await.unwrap_err();
        assert_eq!(error.class(), Class::Denied, "{head}: {error}");
        let pinned = source.resolve(&reference).await.unwrap();
        assert_eq!(pinned.digest(), &digest, "{head}");
    }
}

#[tokio::test]
async fn each_request_accepts_what_it_asks_for() {
    let registry = FaultyRegistry::start().await;
    let (digest, layer) = registry.put_artifact("live", b"bundle");
    let source = registry.source();
    let pinned = source.resolve(&registry.reference("live")).await.unwrap();
    source.manifest(&pinned).await.unwrap();
    source.referrers(&pinned, 9).await.unwrap();
    source.blob(&layer).await.unwrap().collect().await.unwrap();
    registry.put(
        "tags/list?n=1000",
        "application/json",
        r#"{"tags": ["live"]}"#,
    );
    let registries = registry.registries(registry.options());
    registries
        .tags(registry.reference("x").repository())
        .await
        .unwrap();
    let index = "application/vnd.oci.image.index.v1+json";
    let manifests = format!(
        "application/vnd.oci.image.manifest.v1+json, {index}, \
         application/vnd.docker.distribution.manifest.v2+json, \
         application/vnd.docker.distribution.manifest.list.v2+json"
    );
    for (part, accept) in [
        ("HEAD", manifests.as_str()),
        (&format!("/manifests/{digest}"), &manifests),
        (&format!("/manifests/sha256-{}", digest.hex()), &manifests),
        (&format!("/referrers/{digest}"), index),
        ("/blobs/", "*/*"),
        ("/tags/list", "application/json"),
    ] {
        let asked = registry.asked(part);
        assert_eq!(asked[0].headers["accept"], accept, "{part}");
    }
}
