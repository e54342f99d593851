//! Artifacts of other shapes than one layer with a bundle, and image indexes: what is served, by
//! which tag, and what a restart makes of it.

use std::{path::Path, process::Command, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bundlegate::{
    bundle::{Bundle, Limits},
    oci::{Blob, Descriptor, Digest, media_type},
    verify::TrustPolicy,
    watch::{ArtifactOptions, Expect, OnOlder},
};
use flate2::{Compression, write::GzEncoder};
use reqwest::StatusCode;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use crate::{
    attacks::{keyed, policy},
    cache::on_disk,
    faulty::{Fault, FaultyRegistry},
    forge::{By, Envelope, Key, Legacy, payload, statement},
    gateway::{InProcess, Setup, TestGateway, bundle, eventually, header, tag},
};

const REGO: &str = "application/vnd.cncf.openpolicyagent.policy.layer.v1+rego";
const DATA: &str = "application/vnd.cncf.openpolicyagent.data.layer.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LIMITS: Limits = Limits {
    bundle: 1 << 20,
    unpacked: 1 << 20,
    files: 100,
    bundle_manifest: 1 << 20,
};

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

impl FaultyRegistry {
    /// A layer with its type and title, as a manifest names it.
    fn layer(&self, kind: &str, title: &str, bytes: &[u8]) -> Value {
        let mut layer = json!(self.put_blob(bytes));
        layer["mediaType"] = kind.into();
        layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        layer
    }

    /// Puts a manifest or an index under a tag and its digest.
    pub(crate) fn put_document(&self, tag: &str, kind: &str, document: &Value) -> Digest {
        let text = document.to_string();
        let digest = Digest::sha256(text.as_bytes());
        for name in [tag, digest.as_str()] {
            self.put(&format!("manifests/{name}"), kind, text.clone());
        }
        digest
    }

    /// An image of docker's with these layers.
    fn put_image(&self, tag: &str, layers: &[Vec<u8>]) -> Digest {
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| self.layer(DOCKER_LAYER, "", layer))
            .collect();
        let config = self.put_blob(br#"{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#);
        let mut config = json!(config);
        config["mediaType"] = DOCKER_CONFIG.into();
        let kind = media_type::DOCKER_MANIFEST;
        let document =
            json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
        self.put_document(tag, kind, &document)
    }

    /// conftest's files, in the order in which they are given.
    fn put_files(&self, tag: &str, files: &[(&str, &str, &str)]) -> Digest {
        let layers: Vec<_> = files
            .iter()
            .map(|(kind, title, content)| self.layer(kind, title, content.as_bytes()))
            .collect();
        let config = Descriptor::of("application/vnd.unknown.config.v1+json", b"{}");
        let document = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.put_document(tag, media_type::OCI_MANIFEST, &document)
    }

    /// An index of these manifests, each with its platform.
    pub(crate) fn put_index(&self, tag: &str, entries: &[(&Digest, Value)]) -> Digest {
        let entries: Vec<_> = entries
            .iter()
            .map(|(digest, extra)| {
                let (kind, raw) = self.held(&format!("manifests/{digest}")).unwrap();
                let mut entry = json!({ "mediaType": kind, "digest": digest, "size": raw.len() });
                entry
                    .as_object_mut()
                    .unwrap()
                    .extend(extra.as_object().unwrap().clone());
                entry
            })
            .collect();
        let kind = media_type::OCI_INDEX;
        let document = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries });
        self.put_document(tag, kind, &document)
    }

    fn sign(&self, key: &Key, digest: &Digest) {
        let signature = Legacy::sign(key, &payload(digest, "r.example/authz"));
        self.put_legacy(digest, &[signature]);
    }

    /// Signs in the other format.
    fn sign_bundle(&self, key: &Key, digest: &Digest) {
        let envelope = Envelope::sign(key, &statement(digest));
        self.put_bundles(digest, &[envelope.bundle(By::Key(key), &[], &[])]);
    }
}

fn on(platform: &str) -> Value {
    let (os, architecture) = platform.split_once('/').unwrap();
    json!({ "platform": { "os": os, "architecture": architecture } })
}

/// An entry as buildkit adds it for the provenance of another.
fn attestation() -> Value {
    let mut entry = on("unknown/unknown");
    entry["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    entry
}

/// The files of the bundle that is served.
async fn served(gate: &TestGateway<InProcess>) -> (String, Vec<String>) {
    let response = gate.get("", 5).await;
    assert_eq!(response.status(), StatusCode::OK);
    let tag = tag(&response);
    let bytes = response.bytes().await.unwrap();
    let blob = Blob::check(&Descriptor::of("", &bytes), bytes.clone()).unwrap();
    Bundle::open(blob, &LIMITS).unwrap();
    let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(&*bytes));
    let names = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string());
    (tag, names.collect())
}

async fn is_served(gate: &TestGateway<InProcess>, digest: &Digest) {
    let is_it = || gate.status().manifest.as_ref() == Some(digest);
    eventually(&format!("{digest} is served"), is_it).await;
}

async fn failure(gate: &TestGateway<InProcess>, words: &str) -> &'static str {
    let says = || {
        gate.last_failure()
            .is_some_and(|failure| failure.message.contains(words))
    };
    eventually(&format!("a failure that says {words:?}"), says).await;
    gate.last_failure().unwrap().class
}

/// The layers of an image, of which the second removes a file of the first.
fn layers() -> [Vec<u8>; 2] {
    [
        gzip(&tar(&[
            ("policy/a.rego", "package a\n"),
            ("policy/b.rego", "package b\n"),
        ])),
        zstd(&tar(&[
            ("policy/.wh.b.rego", ""),
            ("policy/c.rego", "package c\n"),
        ])),
    ]
}

#[tokio::test]
async fn an_image_of_several_layers_is_one_bundle_with_one_tag_on_every_replica() {
    let registry = FaultyRegistry::start().await;
    let digest = registry.put_image("live", &layers());
    let gates = [
        TestGateway::with(&registry, Setup::default()).await,
        TestGateway::with(&registry, Setup::default()).await,
    ];
    let mut tags = Vec::new();
    for gate in &gates {
        is_served(gate, &digest).await;
        let (tag, names) = served(gate).await;
        assert_eq!(names, ["policy/a.rego", "policy/c.rego"]);
        tags.push(tag);
    }
    assert_eq!(tags[0], tags[1]);
    // A new manifest of the same layers, such as one that was built again, wakes nobody.
    let again = registry.put_image("other", &layers());
    assert_eq!(again, digest);
    let (kind, raw) = registry.held("manifests/live").unwrap();
    let mut document: Value = serde_json::from_slice(&raw).unwrap();
    document["annotations"] = json!({ "built": "again" });
    let again = registry.put_document("live", &kind, &document);
    is_served(&gates[0], &again).await;
    assert_eq!(served(&gates[0]).await.0, tags[0]);
    // Other layers do.
    let changed = [
        layers()[0].clone(),
        gzip(&tar(&[("p.rego", "package p\n")])),
    ];
    let changed = registry.put_image("live", &changed);
    is_served(&gates[0], &changed).await;
    assert_ne!(served(&gates[0]).await.0, tags[0]);
}

/// A second implementation of the tag. The layers are not compressed, so nothing here depends on
/// the compressor of this build; the digest of the bytes, which does, is printed.
#[tokio::test]
async fn the_tag_of_an_image_depends_on_its_layers_and_not_on_the_compressor() {
    let registry = FaultyRegistry::start().await;
    let layers = [
        tar(&[("p.rego", "package p\n")]),
        tar(&[("a/data.json", "{}")]),
    ];
    let digest = registry.put_image("live", &layers);
    let gate = TestGateway::with(&registry, Setup::default()).await;
    is_served(&gate, &digest).await;
    let [one, two] = layers.map(|layer| Digest::sha256(&layer).to_string());
    let mut hashed = Vec::new();
    for part in ["2", &one, &two, "layers", "1", "0"] {
        hashed.extend((part.len() as u64).to_be_bytes());
        hashed.extend(part.as_bytes());
    }
    let hash = Digest::sha256(&hashed);
    let hash: Vec<u8> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(&hash.hex()[at..at + 2], 16).unwrap())
        .collect();
    let response = gate.get("", 0).await;
    assert_eq!(
        tag(&response),
        format!("\"{}\"", URL_SAFE_NO_PAD.encode(hash))
    );
    let (tag, bytes) = (tag(&response), response.bytes().await.unwrap());
    println!("artifacts | tag {tag} | bytes {}", Digest::sha256(&bytes));
}

#[tokio::test]
async fn a_restart_without_a_registry_makes_the_same_bundle_of_the_stored_layers() {
    let registry = FaultyRegistry::start().await;
    let digest = registry.put_image("live", &layers());
    let cache = tempfile::tempdir().unwrap();
    let setup = || Setup {
        cache: on_disk(&cache),
        ..Setup::default()
    };
    let first = TestGateway::with(&registry, setup()).await;
    is_served(&first, &digest).await;
    let before = served(&first).await;
    first.end(cache.path()).await;
    // Nothing but digests in the verified manifest decides what is served: the bundle itself is
    // not on disk.
    let stored = |bytes: &[u8]| crate::cache::blob_path(&cache, bytes).exists();
    assert!(layers().iter().all(|layer| stored(layer)));
    registry.fail("", usize::MAX, Fault::Status(500, vec![]));
    let second = TestGateway::with(&registry, setup()).await;
    is_served(&second, &digest).await;
    assert_eq!(served(&second).await, before);
    second.end(cache.path()).await;
    // A layer that is damaged is a layer that is not there.
    std::fs::write(crate::cache::blob_path(&cache, &layers()[1]), "x").unwrap();
    let third = TestGateway::with(&registry, setup()).await;
    failure(&third, "500").await;
    assert_eq!(third.state(), "pending");
}

#[tokio::test]
async fn what_is_made_counts_against_the_memory_and_goes_to_files_beyond_it() {
    let registry = FaultyRegistry::start().await;
    let random: String = (0..50_000).map(|_| fastrand::alphanumeric()).collect();
    let layers = [
        gzip(&tar(&[("p.rego", "package p\n")])),
        gzip(&tar(&[("data.json", &json!({ "a": random }).to_string())])),
    ];
    let digest = registry.put_image("live", &layers);
    let folder = tempfile::tempdir().unwrap();
    let mut tags = Vec::new();
    for memory in [1 << 20, 1000] {
        let mut setup = Setup::default();
        setup.cache.memory = memory;
        setup.cache.directory = Some(folder.path().join(memory.to_string()));
        let gate = TestGateway::with(&registry, setup).await;
        is_served(&gate, &digest).await;
        let used = gate.count(r#"bundlegate_cache_bytes{tier="memory"}"#);
        assert!(used <= memory, "{used} of {memory}");
        assert_eq!(used > 50_000, memory > 50_000, "{used} of {memory}");
        let size = gate.status().size.unwrap();
        assert!(size > 30_000, "{size}");
        tags.push(served(&gate).await);
    }
    assert_eq!(tags[0], tags[1]);
}

#[tokio::test]
async fn the_files_of_conftest_are_served_with_data_where_the_configuration_says() {
    let registry = FaultyRegistry::start().await;
    let digest = registry.put_files(
        "live",
        &[
            (REGO, "policy/deny.rego", "package main\n"),
            (DATA, "config/services/s.yaml", "ports: [80]\n"),
        ],
    );
    for (data_root, expected) in [
        (None, "config/services/data.yaml"),
        (Some("config"), "services/data.yaml"),
        (Some("config/services"), "data.yaml"),
    ] {
        let setup = Setup {
            artifact: ArtifactOptions {
                data_root: data_root.map(str::to_owned),
                ..ArtifactOptions::default()
            },
            ..Setup::default()
        };
        let gate = TestGateway::with(&registry, setup).await;
        is_served(&gate, &digest).await;
        let (_, names) = served(&gate).await;
        assert!(names.iter().any(|name| name == expected), "{names:?}");
        assert_eq!(gate.status().revision.as_deref(), Some(digest.as_str()));
    }
}

/// `urls` would make the gateway fetch from any host that the author of a manifest chooses.
#[tokio::test]
async fn a_layer_comes_from_its_repository_although_the_manifest_names_other_places() {
    let (registry, elsewhere) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    registry.put_image("live", &layers());
    let (kind, raw) = registry.held("manifests/live").unwrap();
    let mut document: Value = serde_json::from_slice(&raw).unwrap();
    for layer in document["layers"].as_array_mut().unwrap() {
        let url = format!(
            "http://{}/v2/acme/authz/blobs/{}",
            elsewhere.address, layer["digest"]
        );
        layer["urls"] = json!([url]);
        layer["data"] = json!("aGVsbG8=");
    }
    let digest = registry.put_document("live", &kind, &document);
    let gate = TestGateway::with(&registry, Setup::default()).await;
    is_served(&gate, &digest).await;
    assert_eq!(elsewhere.asked("").len(), 0);
}

#[tokio::test]
async fn an_artifact_that_makes_no_bundle_leaves_the_served_one_in_place() {
    let registry = FaultyRegistry::start().await;
    let (good, _) = registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::before(&registry, Duration::from_millis(100)).await;
    is_served(&gate, &good).await;
    let large = gzip(&tar(&[("data.json", &" ".repeat(600 << 10))]));
    let random: Vec<u8> = (0..600 << 10).map(|_| fastrand::u8(..)).collect();
    let link = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder
            .append_link(&mut header, "data.json", "/etc/passwd")
            .unwrap();
        gzip(&builder.into_inner().unwrap())
    };
    let rego = gzip(&tar(&[("p.rego", "package p\n")]));
    for (layers, words) in [
        ([large.clone(), large], "limits.unpacked"),
        ([random.clone(), random], "limits.bundle"),
        ([rego.clone(), link], "data.json: it is a symbolic link"),
        ([rego, gzip(&tar(&[("patch.json", "{}")]))], "delta bundle"),
    ] {
        registry.put_image("live", &layers);
        assert_eq!(failure(&gate, words).await, "defect");
        assert_eq!(gate.status().manifest, Some(good.clone()));
    }
    let helm = json!({
        "schemaVersion": 2,
        "config": Descriptor::of("application/vnd.cncf.helm.config.v1+json", b"{}"),
        "layers": [registry.layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "", &bundle("two"))],
    });
    registry.put_document("live", media_type::OCI_MANIFEST, &helm);
    assert_eq!(failure(&gate, "a Helm chart").await, "defect");
}

#[tokio::test]
async fn an_index_with_one_image_is_that_image() {
    let registry = FaultyRegistry::start().await;
    let (image, layer) = registry.put_artifact("image", &bundle("one"));
    let provenance = registry.put_image("provenance", &[b"in-toto".to_vec()]);
    let index = registry.put_index(
        "live",
        &[(&provenance, attestation()), (&image, on("linux/amd64"))],
    );
    let gate = TestGateway::with(&registry, Setup::default()).await;
    is_served(&gate, &index).await;
    let response = gate.get("", 0).await;
    assert_eq!(header(&response, "bundlegate-manifest"), index.as_str());
    assert_eq!(tag(&response), gate.status().etag.unwrap());
    assert_eq!(
        Digest::sha256(&response.bytes().await.unwrap()),
        layer.digest
    );
    let shown = gate.shown().await;
    assert_eq!(
        (&shown["manifest"], &shown["image"]),
        (&json!(index), &json!(image))
    );
    // The same index again costs one HEAD.
    let manifests = registry.asked("/manifests/").len();
    let checks = gate.refreshes("unchanged");
    eventually("two more checks", || {
        gate.refreshes("unchanged") > checks + 2
    })
    .await;
    let asked = registry.asked("/manifests/");
    assert!(asked[manifests..].iter().all(|one| one.method == "HEAD"));
}

#[tokio::test]
async fn of_several_images_the_one_for_the_platform_is_served_or_none() {
    let registry = FaultyRegistry::start().await;
    let (amd, _) = registry.put_artifact("amd", &bundle("amd"));
    let (arm, _) = registry.put_artifact("arm", &bundle("arm"));
    let (plain, _) = registry.put_artifact("plain", &bundle("plain"));
    let two = [(&amd, on("linux/amd64")), (&arm, on("linux/arm64"))];
    let three = [two[0].clone(), two[1].clone(), (&plain, json!({}))];
    let image = async |entries: &[(&Digest, Value)], platform: Option<&str>| {
        registry.put_index("live", entries);
        let setup = Setup {
            artifact: ArtifactOptions {
                platform: platform.map(|platform| platform.parse().unwrap()),
                ..ArtifactOptions::default()
            },
            ..Setup::default()
        };
        let gate = TestGateway::with(&registry, setup).await;
        eventually("a verdict", || {
            gate.state() == "serving" || gate.last_failure().is_some()
        })
        .await;
        match gate.last_failure() {
            Some(failure) => Err(format!("{} {}", failure.class, failure.message)),
            None => Ok(gate.status().image.unwrap()),
        }
    };
    assert_eq!(image(&two, Some("linux/arm64")).await, Ok(arm.clone()));
    assert_eq!(image(&three, None).await, Ok(plain.clone()));
    assert_eq!(image(&three, Some("linux/arm64")).await, Ok(arm.clone()));
    let error = image(&two, None).await.unwrap_err();
    assert!(
        error.starts_with("defect ") && error.contains("linux/amd64, linux/arm64"),
        "{error}"
    );
    let error = image(&two, Some("linux/s390x")).await.unwrap_err();
    assert!(error.contains("set `platform`"), "{error}");
}

/// The index stays, so no check of the registry finds another digest.
#[tokio::test]
async fn another_platform_counts_for_what_lies_on_disk() {
    let registry = FaultyRegistry::start().await;
    let cache = tempfile::tempdir().unwrap();
    let (amd, _) = registry.put_artifact("amd", &bundle("amd"));
    let (arm, _) = registry.put_artifact("arm", &bundle("arm"));
    registry.put_index(
        "live",
        &[(&amd, on("linux/amd64")), (&arm, on("linux/arm64"))],
    );
    let gate = async |platform: &str| {
        let setup = Setup {
            artifact: ArtifactOptions {
                platform: Some(platform.parse().unwrap()),
                ..ArtifactOptions::default()
            },
            cache: on_disk(&cache),
            ..Setup::default()
        };
        TestGateway::with(&registry, setup).await
    };
    let is_image = async |gate: &TestGateway<InProcess>, image: &Digest| {
        let is_it = || gate.status().image.as_ref() == Some(image);
        eventually(&format!("{image} is served"), is_it).await;
    };
    let first = gate("linux/amd64").await;
    is_image(&first, &amd).await;
    first.end(cache.path()).await;
    let second = gate("linux/arm64").await;
    is_image(&second, &arm).await;
    second.end(cache.path()).await;
    registry.fail("", usize::MAX, Fault::Status(500, vec![]));
    let third = gate("linux/arm64").await;
    is_image(&third, &arm).await;
    third.end(cache.path()).await;
    let fourth = gate("linux/amd64").await;
    failure(&fourth, "500").await;
    assert_eq!(fourth.status().image, None, "nothing of another platform");
}

/// Whoever can move the tag can write an index, whose digest is new.
#[tokio::test]
async fn a_new_index_in_front_of_an_old_image_is_an_old_version() {
    for on_older in [OnOlder::Refuse, OnOlder::Alarm] {
        let registry = FaultyRegistry::start().await;
        let setup = Setup {
            expect: Expect {
                on_older,
                ..Expect::default()
            },
            ..Setup::default()
        };
        let (old, _) = registry.put_artifact("live", &bundle("one"));
        let gate = TestGateway::with(&registry, setup).await;
        is_served(&gate, &old).await;
        let (new, _) = registry.put_artifact("live", &bundle("two"));
        is_served(&gate, &new).await;
        let index = registry.put_index("live", &[(&old, json!({}))]);
        if on_older == OnOlder::Refuse {
            assert_eq!(failure(&gate, "was served earlier").await, "defect");
            assert_eq!(gate.status().manifest, Some(new.clone()));
        } else {
            is_served(&gate, &index).await;
            eventually("the alarm", || gate.status().older.is_some()).await;
        }
        // In front of the newest image, one is no news.
        let index = registry.put_index("live", &[(&new, json!({}))]);
        is_served(&gate, &index).await;
        eventually("no alarm", || gate.status().older.is_none()).await;
    }
}

fn signed(key: &Key) -> Setup {
    Setup {
        policy: policy([keyed(key)]),
        ..Setup::default()
    }
}

#[tokio::test]
async fn a_signature_of_the_index_is_enough_and_that_of_the_image_is_not_asked_for() {
    let registry = FaultyRegistry::start().await;
    let key = Key::p256();
    let (image, _) = registry.put_artifact("image", &bundle("one"));
    let index = registry.put_index("live", &[(&image, on("linux/amd64"))]);
    registry.sign_bundle(&key, &index);
    let gate = TestGateway::with(&registry, signed(&key)).await;
    is_served(&gate, &index).await;
    assert_eq!(gate.status().verdict.unwrap().digest, index);
    let of_image = |asked: &str| {
        asked.contains(&format!("sha256-{}", image.hex()))
            || asked.contains(&format!("referrers/{image}"))
    };
    assert!(!registry.asked("").iter().any(|one| of_image(&one.path)));
    let response = gate.get("", 0).await;
    assert_eq!(header(&response, "bundlegate-signer"), "key");
}

#[tokio::test]
async fn a_signature_of_the_image_is_enough_and_one_of_another_is_not() {
    let registry = FaultyRegistry::start().await;
    let (key, foreign) = (Key::p256(), Key::p256());
    let (image, _) = registry.put_artifact("image", &bundle("one"));
    let (other, _) = registry.put_artifact("other", &bundle("two"));
    registry.sign(&key, &other);
    let index = registry.put_index(
        "live",
        &[(&image, on("linux/amd64")), (&other, attestation())],
    );
    registry.sign(&foreign, &index);
    let gate = TestGateway::with(&registry, signed(&key)).await;
    assert_eq!(failure(&gate, image.as_str()).await, "evidence");
    let refused = gate.last_failure().unwrap();
    assert_eq!(refused.digest.as_deref(), Some(index.as_str()));
    let below = gate.status().last_failure.unwrap().below;
    assert!(below.iter().eq([&image]));
    assert!(
        refused.message.contains(index.as_str()),
        "{}",
        refused.message
    );
    assert_eq!(gate.state(), "withdrawn");
    // A rejected artifact costs its manifests, not its layers.
    let layer = Digest::sha256(&bundle("one"));
    assert_eq!(registry.asked(layer.as_str()).len(), 0);
    registry.sign(&key, &image);
    is_served(&gate, &index).await;
    assert_eq!(gate.status().verdict.unwrap().digest, image);
}

/// Nothing about the way from the index to the image is stored as a verdict.
#[tokio::test]
async fn a_restart_verifies_the_way_from_the_index_to_the_image_again() {
    let registry = FaultyRegistry::start().await;
    let (key, next) = (Key::p256(), Key::p256());
    let cache = tempfile::tempdir().unwrap();
    let with = |policy: TrustPolicy| Setup {
        policy,
        cache: on_disk(&cache),
        ..Setup::default()
    };
    let (image, _) = registry.put_artifact("image", &bundle("one"));
    let inner = registry.put_index("inner", &[(&image, on("linux/amd64"))]);
    let index = registry.put_index("live", &[(&inner, json!({}))]);
    registry.sign(&key, &image);
    let trusted = || policy([keyed(&key)]);
    let first = TestGateway::with(&registry, with(trusted())).await;
    is_served(&first, &index).await;
    let before = served(&first).await;
    first.end(cache.path()).await;
    let entry = crate::cache::index(&cache)["manifests"][0].clone();
    assert_eq!(entry["mediaType"], media_type::OCI_INDEX);
    let annotations = &entry["annotations"];
    assert_eq!(
        annotations["dev.bundlegate.manifests"],
        format!("{inner} {image}")
    );
    registry.fail("", usize::MAX, Fault::Status(500, vec![]));
    let second = TestGateway::with(&registry, with(trusted())).await;
    is_served(&second, &index).await;
    assert_eq!(served(&second).await, before);
    assert_eq!(second.status().image, Some(image.clone()));
    // A change of the policy counts at once, from the stored evidence.
    second.trust(policy([keyed(&next)]));
    eventually("it is withdrawn", || second.state() == "withdrawn").await;
    second.trust(trusted());
    eventually("it is served again", || second.state() == "serving").await;
    second.end(cache.path()).await;
    let swapped = tempfile::tempdir().unwrap();
    copy_folder(cache.path(), swapped.path());
    let third = TestGateway::with(&registry, with(policy([keyed(&next)]))).await;
    assert_eq!(failure(&third, image.as_str()).await, "distrusted");
    // An image that the stored index does not list.
    swap_manifests(swapped.path(), &image, &registry);
    let setup = Setup {
        cache: on_disk(&swapped),
        ..signed(&key)
    };
    let fourth = TestGateway::with(&registry, setup).await;
    failure(&fourth, "500").await;
    assert_eq!(fourth.state(), "pending");
}

fn copy_folder(from: &Path, to: &Path) {
    let (from, to) = (from.join("."), to.as_os_str());
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// Makes the cache's index name another image below the stored index.
fn swap_manifests(cache: &Path, image: &Digest, registry: &FaultyRegistry) {
    let (other, _) = registry.put_artifact("swapped", &bundle("two"));
    let (_, raw) = registry.held("manifests/swapped").unwrap();
    std::fs::write(cache.join("blobs/sha256").join(other.hex()), raw).unwrap();
    let file = cache.join("index.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let swapped = text.replace(&format!("{image}\""), &format!("{other}\""));
    assert_ne!(swapped, text);
    std::fs::write(file, swapped).unwrap();
}

#[tokio::test]
async fn an_index_that_leads_nowhere_is_refused_or_asked_for_again() {
    let registry = FaultyRegistry::start().await;
    let (good, _) = registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::with(&registry, Setup::default()).await;
    is_served(&gate, &good).await;
    let (image, _) = registry.put_artifact("image", &bundle("two"));
    // Four levels are OPA's limit.
    let mut nested = image.clone();
    for level in 1..=4 {
        nested = registry.put_index(&format!("level-{level}"), &[(&nested, json!({}))]);
    }
    registry.put_index("live", &[(&nested, json!({}))]);
    assert_eq!(failure(&gate, "more than 4 levels").await, "defect");
    registry.put_index("live", &[]);
    assert_eq!(failure(&gate, "no manifest of an image").await, "defect");
    registry.put_index("live", &[(&image, json!({ "size": 100_000 }))]);
    assert_eq!(failure(&gate, "does not list").await, "defect");
    // A manifest that is not there yet, or comes with other bytes, may come later.
    let (missing, _) = registry.put_artifact("missing", &bundle("three"));
    let index = registry.put_index("live", &[(&missing, json!({}))]);
    let path = format!("manifests/{missing}");
    let (kind, raw) = registry.held(&path).unwrap();
    registry.remove(&path);
    assert_eq!(failure(&gate, missing.as_str()).await, "transient");
    let mut damaged = raw.to_vec();
    *damaged.last_mut().unwrap() = b' ';
    registry.put(&path, &kind, damaged);
    assert_eq!(failure(&gate, "arrived as").await, "transient");
    assert_eq!(gate.status().manifest, Some(good));
    registry.put(&path, &kind, raw);
    is_served(&gate, &index).await;
    // The fourth level is served.
    let (kind, raw) = registry.held(&format!("manifests/{nested}")).unwrap();
    registry.put("manifests/live", &kind, raw);
    is_served(&gate, &nested).await;
}
