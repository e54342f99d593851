//! Writing to a registry that misbehaves.

use std::{sync::Mutex, time::Duration};

use bundlegate::{
    oci::{
        Blob, Descriptor, Digest, LayoutIndex, Manifest, NewManifest, PinnedReference, media_type,
    },
    registry::{
        BlobTransfer, Class, Credentials, Destination, DockerConfig, Options, Progress,
        RegistryError, Unlisted,
    },
};
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    faulty::{Fault, FaultyRegistry},
    uploads::Manners,
};

const MIB: usize = 1 << 20;

/// Bytes of which no two chunks are the same.
fn blob(size: usize) -> (Descriptor, Blob) {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    let bytes = Bytes::from(bytes);
    let descriptor = Descriptor::of(media_type::LAYER_TAR_GZIP, &bytes);
    (descriptor.clone(), Blob::check(&descriptor, bytes).unwrap())
}

/// The same in a file, from which it is streamed.
fn filed(size: usize) -> (Descriptor, Blob) {
    let (descriptor, blob) = blob(size);
    let mut writer =
        bundlegate::oci::BlobWriter::in_file(descriptor.clone(), tempfile::tempfile().unwrap());
    writer.write(blob.in_memory().unwrap()).unwrap();
    (descriptor, writer.finish(Bytes::from).unwrap())
}

fn holds(registry: &FaultyRegistry, descriptor: &Descriptor) -> bool {
    registry
        .held(&format!("blobs/{}", descriptor.digest))
        .is_some()
}

fn count(registry: &FaultyRegistry, line: &str) -> usize {
    registry.asked(line).len()
}

#[derive(Default)]
struct Heard {
    at: Mutex<Vec<u64>>,
    finished: Mutex<Vec<BlobTransfer>>,
}

impl Progress for Heard {
    fn update(&self, _: &Descriptor, done: u64) {
        self.at.lock().unwrap().push(done);
    }

    fn finished(&self, _: &Descriptor, how: BlobTransfer) {
        self.finished.lock().unwrap().push(how);
    }
}

#[tokio::test]
async fn a_small_blob_goes_in_one_piece_and_never_twice() {
    let registry = FaultyRegistry::start().await;
    let (to, (descriptor, blob), heard) =
        (registry.destination(), filed(100_000), Heard::default());
    to.put_blob(&descriptor, &blob, &heard).await.unwrap();
    to.put_blob(&descriptor, &blob, &heard).await.unwrap();
    assert!(holds(&registry, &descriptor));
    assert_eq!(
        (
            count(&registry, "POST "),
            count(&registry, "PUT "),
            count(&registry, "PATCH ")
        ),
        (1, 1, 0)
    );
    assert_eq!(
        *heard.finished.lock().unwrap(),
        [BlobTransfer::Sent, BlobTransfer::Present]
    );
    assert_eq!(
        registry.asked("PUT ")[0].headers["content-length"],
        "100000"
    );
}

#[tokio::test]
async fn a_large_blob_goes_in_chunks_to_relative_locations() {
    let registry = FaultyRegistry::start().await;
    registry.behave(Manners {
        relative: true,
        ..Manners::default()
    });
    let ((descriptor, blob), heard) = (filed(72 * MIB), Heard::default());
    registry
        .destination()
        .put_blob(&descriptor, &blob, &heard)
        .await
        .unwrap();
    assert!(holds(&registry, &descriptor));
    let ranges: Vec<_> = registry
        .asked("PATCH ")
        .iter()
        .map(|asked| asked.headers["content-range"].to_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        ranges,
        ["0-33554431", "33554432-67108863", "67108864-75497471"]
    );
    assert_eq!(heard.at.lock().unwrap().last(), Some(&(72 * MIB as u64)));
}

#[tokio::test]
async fn the_registry_says_how_small_a_chunk_may_be() {
    let registry = FaultyRegistry::start().await;
    registry.behave(Manners {
        least_chunk: Some(40 * MIB as u64),
        ..Manners::default()
    });
    let (descriptor, blob) = filed(40 * MIB);
    registry
        .destination()
        .put_blob(&descriptor, &blob, &())
        .await
        .unwrap();
    assert!(holds(&registry, &descriptor));
    assert_eq!(count(&registry, "PATCH "), 1);
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let registry = FaultyRegistry::start().await;
    let (descriptor, blob) = filed(40 * MIB);
    registry.fail("PATCH ", 2, Fault::Cut(5 * MIB));
    registry
        .destination()
        .put_blob(&descriptor, &blob, &())
        .await
        .unwrap();
    assert!(holds(&registry, &descriptor));
    let starts: Vec<_> = registry
        .asked("PATCH ")
        .iter()
        .map(|asked| {
            asked.headers["content-range"]
                .to_str()
                .unwrap()
                .split('-')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(starts, ["0", "5242880", "10485760"]);
    assert_eq!(
        count(&registry, "POST "),
        1,
        "one upload from beginning to end"
    );
}

#[tokio::test]
async fn an_upload_that_the_registry_forgot_begins_anew() {
    let registry = FaultyRegistry::start().await;
    let (descriptor, blob) = filed(40 * MIB);
    registry.fail("PATCH ", 1, Fault::Cut(MIB));
    registry.fail(
        "GET /v2/acme/authz/blobs/uploads/",
        1,
        Fault::Status(404, vec![]),
    );
    registry
        .destination()
        .put_blob(&descriptor, &blob, &())
        .await
        .unwrap();
    assert!(holds(&registry, &descriptor));
    assert_eq!(count(&registry, "POST "), 2);
}

#[tokio::test]
async fn passing_trouble_costs_no_upload() {
    let registry = FaultyRegistry::start().await;
    let trouble = [
        ("POST ", Fault::Status(503, vec![])),
        ("PATCH ", Fault::Status(500, vec![])),
        (
            "PATCH ",
            Fault::Status(429, vec![("retry-after", "0".into())]),
        ),
        ("PATCH ", Fault::Unanswered),
        ("PATCH ", Fault::Stall),
        ("PUT ", Fault::Status(502, vec![])),
        ("PUT ", Fault::Unanswered),
        ("HEAD ", Fault::Status(503, vec![])),
    ];
    for (size, seed) in [(20 * MIB, 1), (1000, 2)] {
        for (line, fault) in &trouble {
            let (descriptor, blob) = filed(size + seed);
            registry.remove(&format!("blobs/{}", descriptor.digest));
            registry.fail(line, 1, fault.clone());
            let done = registry
                .destination()
                .put_blob(&descriptor, &blob, &())
                .await;
            assert!(done.is_ok(), "{size} {line}{fault:?}: {done:?}");
            assert!(holds(&registry, &descriptor), "{size} {line}{fault:?}");
            registry.heal();
        }
    }
}

#[tokio::test]
async fn a_registry_that_refuses_chunks_gets_the_whole() {
    let (descriptor, blob) = filed(40 * MIB);
    for fault in [
        Fault::Status(405, vec![]),
        Fault::Status(501, vec![]),
        Fault::Without("location"),
    ] {
        let registry = FaultyRegistry::start().await;
        registry.fail("PATCH ", 9, fault.clone());
        registry
            .destination()
            .put_blob(&descriptor, &blob, &())
            .await
            .unwrap();
        assert!(holds(&registry, &descriptor), "{fault:?}");
        assert_eq!(
            (count(&registry, "PATCH "), count(&registry, "PUT ")),
            (1, 1),
            "{fault:?}"
        );
        let put = &registry.asked("PUT ")[0];
        assert_eq!(
            put.headers["content-length"],
            (40 * MIB).to_string().as_str()
        );
    }
}

#[tokio::test]
async fn lasting_trouble_ends_in_an_error_and_the_next_push_goes_on() {
    let registry = FaultyRegistry::start().await;
    let (to, (layer, bytes), (other, others)) =
        (registry.destination(), filed(2 * MIB), filed(3 * MIB));
    to.put_blob(&layer, &bytes, &()).await.unwrap();
    registry.fail("", 99, Fault::Status(503, vec![]));
    let error = to.put_blob(&other, &others, &()).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient);
    registry.heal();
    let before = count(&registry, "PUT ");
    to.put_blob(&layer, &bytes, &()).await.unwrap();
    to.put_blob(&other, &others, &()).await.unwrap();
    assert_eq!(
        count(&registry, "PUT ") - before,
        1,
        "what was there is not sent again"
    );
}

#[tokio::test]
async fn an_upload_lasts_as_long_as_bytes_move() {
    let registry = FaultyRegistry::start().await;
    let timeouts = bundlegate::registry::Timeouts {
        read: Duration::from_millis(500),
        total: Duration::from_secs(2),
        ..registry.options().timeouts
    };
    let to = registry
        .registries(Options {
            timeouts,
            ..registry.options()
        })
        .destination(registry.reference("x").repository())
        .unwrap();
    // The registry needs longer to store the blob than `timeouts.read`, and the upload
    // altogether longer than `timeouts.total`.
    let (descriptor, blob) = filed(40 * MIB);
    registry.fail("PATCH ", 9, Fault::Slow(Duration::from_millis(1100)));
    let began = Instant::now();
    to.put_blob(&descriptor, &blob, &()).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(2) && holds(&registry, &descriptor));
    assert_eq!(count(&registry, "PATCH "), 2, "slowness is no trouble");
}

#[tokio::test]
async fn what_the_registry_says_it_stored_is_compared() {
    let registry = FaultyRegistry::start().await;
    let wrong = Fault::With(
        "docker-content-digest",
        Digest::sha256(b"other").to_string(),
    );
    registry.fail("PUT ", 99, wrong);
    let manifest = Bytes::from_static(br#"{"schemaVersion":2,"manifests":[]}"#);
    let error = registry
        .destination()
        .put_manifest(&manifest, media_type::OCI_INDEX, Some("v1"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            RegistryError::Mismatch {
                what: "manifest",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_location_elsewhere_gets_the_bytes_but_no_credentials() {
    let (registry, elsewhere) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let options = with_token(&registry);
    let to = registry
        .registries(options)
        .destination(registry.reference("x").repository())
        .unwrap();
    let (descriptor, blob) = blob(1000);
    // The session is one of the other's.
    let opened = reqwest::Client::builder().no_proxy().build().unwrap();
    let session = opened
        .post(format!(
            "http://{}/v2/acme/authz/blobs/uploads/",
            elsewhere.address
        ))
        .send()
        .await;
    let session = session.unwrap().headers()["location"]
        .to_str()
        .unwrap()
        .to_owned();
    registry.fail("POST ", 9, Fault::With("location", session));
    to.put_blob(&descriptor, &blob, &()).await.unwrap();
    assert!(holds(&elsewhere, &descriptor));
    assert!(
        registry
            .asked("POST ")
            .iter()
            .any(|asked| asked.headers.contains_key("authorization"))
    );
    assert!(
        !elsewhere.asked("PUT ")[0]
            .headers
            .contains_key("authorization")
    );
}

/// A registry that wants a token, and gives one to whoever knows the password.
fn with_token(registry: &FaultyRegistry) -> Options {
    let realm = format!("http://{}/v2/acme/authz/token", registry.address);
    let challenge =
        format!(r#"Bearer realm="{realm}",service="reg",scope="repository:acme/authz:pull""#);
    registry.fail(
        "HEAD /v2/acme/authz/blobs",
        1,
        Fault::Status(401, vec![("www-authenticate", challenge)]),
    );
    let token = json!({"token": "t0ken", "expires_in": 300}).to_string();
    registry.put(
        "token?service=reg&scope=repository%3Aacme%2Fauthz%3Apull%2Cpush",
        "application/json",
        token,
    );
    let credentials = Credentials::Typed {
        username: "robot".into(),
        password: "s3cret".into(),
    };
    Options {
        credentials: Some(credentials),
        ..registry.options()
    }
}

#[tokio::test]
async fn writing_asks_for_a_token_that_may_write() {
    let registry = FaultyRegistry::start().await;
    let options = with_token(&registry);
    let to = registry
        .registries(options)
        .destination(registry.reference("x").repository())
        .unwrap();
    let (descriptor, blob) = blob(1000);
    to.put_blob(&descriptor, &blob, &()).await.unwrap();
    assert_eq!(count(&registry, "/token?"), 1);
    assert_eq!(
        registry.asked("PUT ")[0].headers["authorization"],
        "Bearer t0ken"
    );
}

#[tokio::test]
async fn a_token_grown_old_is_renewed_before_a_body_is_sent_in_vain() {
    let registry = FaultyRegistry::start().await;
    let options = with_token(&registry);
    // Less than the margin for clocks and ways: old at once.
    let token = json!({"token": "t0ken", "expires_in": 1}).to_string();
    registry.put(
        "token?service=reg&scope=repository%3Aacme%2Fauthz%3Apull%2Cpush",
        "application/json",
        token,
    );
    let to = registry
        .registries(options)
        .destination(registry.reference("x").repository())
        .unwrap();
    let (descriptor, blob) = filed(40 * MIB);
    to.put_blob(&descriptor, &blob, &()).await.unwrap();
    let patches = registry.asked("PATCH ");
    assert_eq!(patches.len(), 2);
    assert!(
        patches
            .iter()
            .all(|patch| patch.headers["authorization"] == "Bearer t0ken")
    );
}

#[tokio::test]
async fn a_blob_is_taken_over_from_where_the_registry_has_it() {
    let registry = FaultyRegistry::start().await;
    registry.behave(Manners {
        mounts: vec!["acme/base".into()],
        ..Manners::default()
    });
    let (to, (descriptor, _)) = (registry.destination(), blob(1000));
    let repository = |path: &str| {
        let reference = format!("{}/{path}:x", registry.address)
            .parse::<bundlegate::oci::Reference>()
            .unwrap();
        reference.repository().clone()
    };
    assert!(
        to.mount(&descriptor, &repository("acme/base"))
            .await
            .unwrap()
    );
    assert!(
        !to.mount(&descriptor, &repository("acme/other"))
            .await
            .unwrap()
    );
    assert_eq!(
        count(&registry, "DELETE "),
        1,
        "the upload that was opened instead is closed"
    );
    registry.fail("POST ", 1, Fault::Status(403, vec![]));
    assert!(
        !to.mount(&descriptor, &repository("acme/base"))
            .await
            .unwrap()
    );
    let elsewhere = "ghcr.io/acme/base:x"
        .parse::<bundlegate::oci::Reference>()
        .unwrap();
    assert!(!to.mount(&descriptor, elsewhere.repository()).await.unwrap());
}

fn referrer(subject: &Descriptor, name: &str) -> Bytes {
    let layer = Descriptor::of("text/plain", name.as_bytes());
    let manifest =
        NewManifest::new(media_type::EMPTY, vec![layer]).referring("text/plain", subject.clone());
    manifest
        .annotated([("name".to_owned(), name.to_owned())])
        .to_bytes()
        .unwrap()
}

async fn subject(registry: &FaultyRegistry) -> (Descriptor, PinnedReference) {
    registry.put_artifact("live", b"bundle");
    let source = registry.source();
    let pinned = source.resolve(&registry.reference("live")).await.unwrap();
    (source.manifest(&pinned).await.unwrap().descriptor(), pinned)
}

#[tokio::test]
async fn referrers_are_listed_under_the_fallback_tag_where_nothing_else_lists_them() {
    let registry = FaultyRegistry::start().await;
    let (descriptor, pinned) = subject(&registry).await;
    let to = registry.destination();
    for name in ["one", "two", "one"] {
        to.attach(&referrer(&descriptor, name), &pinned)
            .await
            .unwrap();
    }
    let found = registry.source().referrers(&pinned, 9).await.unwrap();
    assert_eq!(found.entries.len(), 2);
    assert_eq!(
        found.entries[0].artifact_type.as_deref(),
        Some("text/plain")
    );
    assert_eq!(found.entries[1].annotation("name"), Some("two"));
    let (kind, _) = registry
        .held(&format!("manifests/sha256-{}", pinned.digest().hex()))
        .unwrap();
    assert_eq!(kind, media_type::OCI_INDEX);
}

#[tokio::test]
async fn a_registry_that_indexes_referrers_gets_no_fallback_tag() {
    let registry = FaultyRegistry::start().await;
    registry.behave(Manners {
        indexes_subjects: true,
        ..Manners::default()
    });
    let (descriptor, pinned) = subject(&registry).await;
    registry
        .destination()
        .attach(&referrer(&descriptor, "one"), &pinned)
        .await
        .unwrap();
    assert!(
        registry
            .held(&format!("manifests/sha256-{}", pinned.digest().hex()))
            .is_none()
    );
}

#[tokio::test]
async fn what_another_writer_put_into_the_fallback_tag_stays() {
    let registry = FaultyRegistry::start().await;
    let (descriptor, pinned) = subject(&registry).await;
    let tag = format!("manifests/sha256-{}", pinned.digest().hex());
    let foreign = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","x-theirs":1,"manifests":[]}"#;
    registry.put(&tag, media_type::OCI_INDEX, foreign);
    registry
        .destination()
        .attach(&referrer(&descriptor, "one"), &pinned)
        .await
        .unwrap();
    let (_, bytes) = registry.held(&tag).unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("x-theirs"));
    let no_index = NewManifest::new(media_type::EMPTY, vec![])
        .to_bytes()
        .unwrap();
    registry.put(&tag, media_type::OCI_MANIFEST, no_index.clone());
    let error = registry
        .destination()
        .attach(&referrer(&descriptor, "two"), &pinned)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("is not an index of referrers"),
        "{error}"
    );
    assert_eq!(registry.held(&tag).unwrap().1, no_index);
}

#[tokio::test]
async fn a_folder_is_written_to_as_a_registry_is() {
    let registry = FaultyRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let reference = format!("oci-layout:{}", folder.path().join("new").display());
    let reference = reference.parse::<bundlegate::oci::Reference>().unwrap();
    let registries = registry.registries(registry.options());
    let to: Destination = registries.destination(reference.repository()).unwrap();
    let (layer, bytes) = filed(1000);
    assert!(!to.has_blob(&layer).await.unwrap());
    to.put_blob(&layer, &bytes, &()).await.unwrap();
    assert!(to.has_blob(&layer).await.unwrap());
    let manifest = NewManifest::new(media_type::IMAGE_CONFIG, vec![layer])
        .to_bytes()
        .unwrap();
    to.put_manifest(&manifest, media_type::OCI_MANIFEST, Some("v1"))
        .await
        .unwrap();
    let from = registries.source(reference.repository()).unwrap();
    let pinned = from.resolve(&reference).await.unwrap();
    let descriptor = from.manifest(&pinned).await.unwrap().descriptor();
    to.attach(&referrer(&descriptor, "one"), &pinned)
        .await
        .unwrap();
    to.attach(&referrer(&descriptor, "two"), &pinned)
        .await
        .unwrap();
    assert_eq!(from.referrers(&pinned, 9).await.unwrap().entries.len(), 2);
    // With its signatures beside it, it is still the only artifact there.
    assert_eq!(from.resolve(&reference).await.unwrap(), pinned);
    let tags = registries.tags(reference.repository()).await.unwrap();
    assert_eq!(
        tags,
        [format!("sha256-{}", pinned.digest().hex()), "v1".to_owned()]
    );
}

#[tokio::test]
async fn tags_come_from_all_pages_in_order() {
    let registry = FaultyRegistry::start().await;
    let registries = registry.registries(registry.options());
    let reference = registry.reference("x");
    let error = registries.tags(reference.repository()).await.unwrap_err();
    assert_eq!(error.class(), Class::NotFound, "{error}");
    registry.put(
        "tags/list?n=1000",
        "application/json",
        r#"{"tags":["v2","v10"]}"#,
    );
    registry.put(
        "tags/list?n=1000&last=v10",
        "application/json",
        r#"{"tags":["v1"]}"#,
    );
    let link = "</v2/acme/authz/tags/list?n=1000&last=v10>; rel=\"next\"".to_owned();
    registry.fail("tags/list?n=1000", 1, Fault::With("link", link));
    assert_eq!(
        registries.tags(reference.repository()).await.unwrap(),
        ["v1", "v10", "v2"]
    );
    registry.put("tags/list?n=1000", "application/json", r#"{"tags":null}"#);
    assert!(
        registries
            .tags(reference.repository())
            .await
            .unwrap()
            .is_empty()
    );
    // No registry has to have a catalog.
    assert_eq!(
        registries
            .repositories(&registry.address.to_string())
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn a_refusal_is_told_in_the_registrys_words_without_control_characters() {
    let registry = FaultyRegistry::start().await;
    let told = r#"{"errors":[{"code":"MANIFEST_INVALID","message":"no \u001b[31mconfig"}]}"#;
    registry.refuse("PUT ", 400, told);
    let manifest = LayoutIndex::default().to_bytes().unwrap();
    Manifest::parse(manifest.clone(), None, 4096).unwrap();
    let error = registry
        .destination()
        .put_manifest(&manifest, media_type::OCI_INDEX, Some("v1"))
        .await
        .unwrap_err();
    let host = registry.address;
    assert_eq!(
        error.to_string(),
        format!("push at {host}: HTTP 400 (MANIFEST_INVALID, no [31mconfig)")
    );
}

#[tokio::test]
async fn a_registry_without_tls_is_not_spoken_to_in_the_clear_and_the_error_says_how_to() {
    let registry = FaultyRegistry::start().await;
    let options = Options {
        scheme: bundlegate::registry::Scheme::Https,
        ..registry.options()
    };
    let to = registry
        .registries(options)
        .destination(registry.reference("x").repository())
        .unwrap();
    let (descriptor, blob) = blob(1000);
    let error = to.put_blob(&descriptor, &blob, &()).await.unwrap_err();
    assert!(error.to_string().contains("--plain-http"), "{error}");
    assert!(registry.asked("").is_empty());
}

fn docker_config(entry: &serde_json::Value, host: &str) -> (Credentials, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, json!({ "auths": { host: entry } }).to_string()).unwrap();
    let config = DockerConfig::new(file);
    let unlisted = Unlisted::Anonymous;
    (Credentials::DockerConfig { config, unlisted }, folder)
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_a_form_and_shown_to_no_other_host() {
    let registry = FaultyRegistry::start().await;
    let host = registry.address.to_string();
    let realm = format!("http://{host}/v2/acme/authz/oauth2/token");
    let challenge =
        format!(r#"Bearer realm="{realm}",service="reg",scope="repository:acme/authz:pull""#);
    registry.fail(
        "HEAD ",
        1,
        Fault::Status(401, vec![("www-authenticate", challenge)]),
    );
    registry.fail(
        "POST /v2/acme/authz/oauth2/token",
        1,
        Fault::Refuse(200, r#"{"access_token":"acc3ss"}"#),
    );
    let (credentials, _folder) = docker_config(&json!({ "identitytoken": "1dentity" }), &host);
    let options = Options {
        credentials: Some(credentials),
        ..registry.options()
    };
    let to = registry
        .registries(options)
        .destination(registry.reference("x").repository())
        .unwrap();
    let (descriptor, blob) = blob(1000);
    to.put_blob(&descriptor, &blob, &()).await.unwrap();
    let asked = registry.asked("POST /v2/acme/authz/oauth2/token");
    assert_eq!(
        asked[0].headers["content-type"],
        "application/x-www-form-urlencoded"
    );
    assert!(!asked[0].headers.contains_key("authorization") && !asked[0].path.contains("1dentity"));
    assert_eq!(
        registry.asked("PUT ")[0].headers["authorization"],
        "Bearer acc3ss"
    );
    assert!(
        registry
            .asked("")
            .iter()
            .all(|asked| !format!("{:?}", asked.headers).contains("1dentity"))
    );
}

#[tokio::test]
async fn credentials_that_cannot_be_read_are_an_error_and_no_anonymous_request() {
    let registry = FaultyRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, "{").unwrap();
    registry.fail(
        "",
        9,
        Fault::Status(401, vec![("www-authenticate", "Basic realm=x".into())]),
    );
    let options = Options {
        credentials: Some(Credentials::DockerConfig {
            config: DockerConfig::new(file),
            unlisted: Unlisted::Anonymous,
        }),
        ..registry.options()
    };
    let to = registry
        .registries(options)
        .destination(registry.reference("x").repository())
        .unwrap();
    let error = to.has_blob(&blob(1000).0).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::CredentialsUnavailable { .. }),
        "{error}"
    );
    assert_eq!(error.class(), Class::Denied);
}

#[tokio::test]
async fn an_answer_that_is_no_registrys_is_no_push() {
    let registry = FaultyRegistry::start().await;
    // A portal, or a proxy, that is glad about everything.
    registry.fail("PUT ", 1, Fault::Status(200, vec![]));
    let raw = NewManifest::new(media_type::IMAGE_CONFIG, Vec::new())
        .to_bytes()
        .unwrap();
    let to = registry.destination();
    let error = to
        .put_manifest(&raw, media_type::OCI_MANIFEST, Some("v1"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RegistryError::Protocol { .. }) && error.to_string().contains("201"),
        "{error}"
    );
    to.put_manifest(&raw, media_type::OCI_MANIFEST, Some("v1"))
        .await
        .unwrap();
}
