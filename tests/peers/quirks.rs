//! Registries that deviate from the specification, as crane, oras and cosign see them: what they
//! resolve and verify, the gateway serves.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    Artifact, Author, Cosign, Format, Front, GatewayConfig, KeyPair, Kind, LinkForm, PASSWORD,
    Quirk, Registry, TestGateway, USER, run,
};

/// What the peer does.
#[derive(Debug, Clone, Copy)]
enum Peer {
    /// `crane digest`
    Crane,
    /// `oras manifest fetch`
    Oras,
    /// `cosign verify`
    Cosign,
}

const HEAD: &str = "HEAD /v2/acme/authz/manifests/live";
const TAG: &str = "/v2/acme/authz/manifests/live";
const REFERRERS: &str = "/referrers/";
const SIG: &str = ".sig";
const MANIFESTS: &str = "/v2/acme/authz/manifests/";
const BLOBS: &str = "GET /v2/acme/authz/blobs/";
const TAGS: &str = "/v2/acme/authz/tags/list";
/// In the media types of all manifests.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry without the referrers API, an artifact in it, and its signature.
struct Signed {
    registry: Registry,
    key: KeyPair,
    digest: String,
    format: Format,
}

impl Signed {
    async fn start(kind: Kind, cosign: Cosign, format: Format) -> Self {
        let (registry, key) = (Registry::start(kind).await, KeyPair::generate().await);
        let artifact = Artifact::answering("first").await;
        let digest = registry.push("acme/authz:live", &artifact.file()).await;
        let pinned = format!("acme/authz@{digest}");
        key.sign_with(cosign, format, &registry, &pinned).await;
        Self {
            registry,
            key,
            digest,
            format,
        }
    }

    /// A peer and the gateway both cope with the quirk.
    async fn copes(&self, peer: Peer, part: &'static str, quirk: Quirk) {
        let front = Front::before(&self.registry.host, part, quirk).await;
        let name = format!("{}/acme/authz:live", front.host);
        let folder = Path::new("/");
        match peer {
            Peer::Crane => {
                let digest = run("crane", folder, &["digest", "--insecure", &name]).await;
                assert_eq!(digest, self.digest, "{part} {quirk:?}");
            }
            Peer::Oras => {
                let arguments = ["manifest", "fetch", "--plain-http", "--descriptor", &name];
                let found = run("oras", folder, &arguments).await;
                assert!(found.contains(&self.digest), "{part} {quirk:?}: {found}");
            }
            Peer::Cosign => {
                let key = self.key.public();
                let format = format!("--new-bundle-format={}", self.format == Format::Bundle);
                let arguments = [
                    "verify",
                    "--key",
                    key.to_str().unwrap(),
                    "--insecure-ignore-tlog",
                    "--allow-http-registry",
                    &format,
                    &name,
                ];
                run("cosign", folder, &arguments).await;
            }
        }
        let config = GatewayConfig::trusting(&self.key)
            .bundle("authz", &self.registry, "acme/authz:live")
            .by_way_of(&front.host, &self.registry);
        let gate = TestGateway::start(config).await;
        let what = format!("{part} {quirk:?}");
        gate.status_when("authz", &what, |status| {
            status["manifest"] == self.digest.as_str()
        })
        .await;
        let author = Author::new();
        author
            .line(&format!("bundlegate pull --plain-http {name}"))
            .await;
        println!("{peer:?} copes with {quirk:?} for {part}, and so does the gateway");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_whose_head_is_refused_is_resolved_as_by_crane() {
    let signed = Signed::start(Kind::Debian, Cosign::V2, Format::Legacy).await;
    for quirk in [
        Quirk::Status(400),
        Quirk::Status(403),
        Quirk::Status(404),
        Quirk::Status(405),
        Quirk::Status(501),
        Quirk::NoDigest,
    ] {
        signed.copes(Peer::Crane, HEAD, quirk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_type_in_another_spelling_is_read_as_by_oras() {
    let signed = Signed::start(Kind::Debian, Cosign::V2, Format::Legacy).await;
    for kind in [
        "Application/VND.OCI.Image.Manifest.V1+JSON",
        "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
        "application/json",
        "application/octet-stream",
    ] {
        signed
            .copes(Peer::Oras, TAG, Quirk::ContentType(kind))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_referrers_api_that_fails_hides_no_signature_at_the_sig_tag_as_with_cosign() {
    let signed = Signed::start(Kind::Debian, Cosign::V2, Format::Legacy).await;
    for quirk in [
        Quirk::Status(400),
        Quirk::Status(401),
        Quirk::Status(403),
        Quirk::Status(405),
        Quirk::Status(406),
        Quirk::Status(422),
        Quirk::Status(500),
        Quirk::Status(501),
        Quirk::Page,
    ] {
        signed.copes(Peer::Cosign, REFERRERS, quirk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_sig_tag_that_is_denied_hides_no_bundle_as_with_cosign() {
    let signed = Signed::start(Kind::Referrers, Cosign::V3, Format::Bundle).await;
    for status in [401, 403] {
        signed.copes(Peer::Cosign, SIG, Quirk::Status(status)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_indexes_a_tag_on_get_only_is_read_as_by_crane() {
    let signed = Signed::start(Kind::Debian, Cosign::V2, Format::Legacy).await;
    signed.copes(Peer::Crane, TAG, Quirk::IndexedByGet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_a_content_type_is_read_as_by_crane() {
    let signed = Signed::start(Kind::Debian, Cosign::V2, Format::Legacy).await;
    signed
        .copes(Peer::Crane, MANIFESTS, Quirk::NoContentType)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_asked_again_after_the_time_that_it_names_as_by_oras() {
    let signed = Signed::start(Kind::Debian, Cosign::V2, Format::Legacy).await;
    for status in [429, 503] {
        signed
            .copes(Peer::Oras, "/v2/acme/authz/", Quirk::Busy(status, 2))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_referrers_in_the_fallback_tag_is_found_as_by_cosign() {
    let signed = Signed::start(Kind::Debian, Cosign::V3, Format::Bundle).await;
    for quirk in [Quirk::Status(400), Quirk::Status(404), Quirk::Status(406)] {
        signed.copes(Peer::Cosign, REFERRERS, quirk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accept_of_blobs_and_tags_names_no_manifest_as_with_oras() {
    let signed = Signed::start(Kind::Debian, Cosign::V2, Format::Legacy).await;
    for part in [BLOBS, TAGS] {
        let quirk = Quirk::NotAcceptable(OCI_MANIFEST);
        let front = Front::before(&signed.registry.host, part, quirk).await;
        let author = Author::new();
        author
            .line(&format!(
                "oras pull --plain-http {host}/acme/authz:live
                 oras repo tags --plain-http {host}/acme/authz
                 bundlegate pull --plain-http {host}/acme/authz:live
                 bundlegate tags --plain-http {host}/acme/authz",
                host = front.host
            ))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_tags_are_followed_as_by_oras_and_never_to_another_origin() {
    let (registry, author) = (Registry::start(Kind::Distribution).await, Author::new());
    let artifact = Artifact::answering("first").await;
    registry.push("acme/authz:a", &artifact.file()).await;
    for tag in ["b", "c", "d", "e"] {
        registry.tag("acme/authz:a", tag).await;
    }
    let all = "a\nb\nc\nd\ne";
    for (form, peer_copes) in [
        (LinkForm::Relative, true),
        (LinkForm::Absolute, true),
        (LinkForm::Bare, false),
        (LinkForm::Foreign, false),
    ] {
        let front = Front::before(&registry.host, TAGS, Quirk::Pages(form)).await;
        let name = format!("{}/acme/authz", front.host);
        let line = format!("oras repo tags --plain-http {name}");
        let theirs = author.shell(&line).await;
        println!("tags | {form:?} | oras: {theirs:?}");
        let same = theirs.code == Some(0) && theirs.stdout.trim() == all;
        assert_eq!(same, peer_copes, "{form:?}: {theirs:?}");
        let ours = author
            .shell(&format!("bundlegate tags --plain-http --json {name}"))
            .await;
        if form == LinkForm::Foreign {
            ours.refused("which is not this registry");
            continue;
        }
        let ours = ours.json().to_string();
        for tag in ["a", "b", "c", "d", "e"] {
            assert!(ours.contains(&format!("\"{tag}\"")), "{form:?}: {ours}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_whose_connection_breaks_is_continued() {
    let (registry, key) = (
        Registry::start(Kind::Debian).await,
        KeyPair::generate().await,
    );
    let mut noise = vec![0; 3 << 20];
    fastrand::fill(&mut noise);
    let noise: String = noise.iter().map(|byte| format!("{byte:02x}")).collect();
    let data = json!({ "noise": noise }).to_string();
    let artifact = Artifact::built("first", &[("authz/data.json", &data)]).await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    key.sign(&registry, &format!("acme/authz@{digest}")).await;
    let manifest = registry
        .oras(&["manifest", "fetch", &registry.reference("acme/authz:live")])
        .await;
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let part = format!("GET /v2/acme/authz/blobs/{layer}").leak();
    for times in [1, 4] {
        let front = Front::before(&registry.host, part, Quirk::Broken(times)).await;
        let config = GatewayConfig::trusting(&key)
            .bundle("authz", &registry, "acme/authz:live")
            .by_way_of(&front.host, &registry);
        let gate = TestGateway::start(config).await;
        let serving = |status: &Value| status["manifest"] == digest.as_str();
        gate.status_when("authz", "served", serving).await;
        let failed =
            gate.metric("bundlegate_refreshes_total{bundle=\"authz\",outcome=\"transient\"}");
        assert!(failed.await < 0.5, "{times}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_refuses_authorization_is_read_without_it_as_by_crane() {
    let registry = Registry::with_password(Kind::Debian).await;
    let key = KeyPair::generate().await;
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    key.sign(&registry, &format!("acme/authz@{digest}")).await;
    for (part, status) in [
        (BLOBS, 307),
        (BLOBS, 302),
        (MANIFESTS, 307),
        ("/v2/acme/authz/", 307),
        ("/v2/acme/authz/", 303),
    ] {
        let quirk = Quirk::Storage(status);
        let front = Front::before(&registry.host, part, quirk).await;
        let (author, name) = (Author::new(), format!("{}/acme/authz:live", front.host));
        author
            .line(&format!(
                "crane auth login {} -u {USER} -p '{PASSWORD}'
                 crane digest --insecure {name} | grep {digest}
                 crane export --insecure {name} - > /dev/null",
                front.host
            ))
            .await;
        let config = GatewayConfig::trusting(&key)
            .bundle("authz", &registry, "acme/authz:live")
            .by_way_of(&front.host, &registry);
        let gate = TestGateway::start(config).await;
        gate.status_when("authz", &format!("{part} {status}"), |status| {
            status["manifest"] == digest.as_str()
        })
        .await;
    }
}

/// The policy decides which of the two places of signatures is asked for at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_one_format_asks_for_nothing_else_as_cosign() {
    for (format, own, other) in [
        (Format::Legacy, SIG, REFERRERS),
        (Format::Bundle, REFERRERS, SIG),
    ] {
        let signed = Signed::start(Kind::Referrers, Cosign::V3, format).await;
        let asked = |part: &str| {
            let asked = signed.registry.asked("GET");
            let matching = asked.iter().filter(|(path, _)| path.contains(part));
            matching.map(|(_, times)| times).sum::<usize>()
        };
        let before = (asked(own), asked(other));
        signed
            .copes(Peer::Cosign, "no such path", Quirk::Page)
            .await;
        let with_cosign = (asked(own), asked(other));
        assert!(with_cosign.0 > before.0, "{format:?}: {with_cosign:?}");
        let config = GatewayConfig::trusting(&signed.key)
            .bundle("authz", &signed.registry, "acme/authz:live")
            .with("/trust/policies/release/formats", json!([format.label()]));
        let gate = TestGateway::start(config).await;
        gate.status_when("authz", "served", |status| {
            status["manifest"] == signed.digest.as_str()
        })
        .await;
        assert_eq!(asked(other), with_cosign.1, "{format:?}");
        assert!(asked(own) > with_cosign.0, "{format:?}");
    }
}

/// Signatures of others, SBOMs and what only looks like a signature, before ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_behind_those_of_others_counts_as_with_cosign() {
    for kind in [Kind::Debian, Kind::Referrers] {
        for format in [Format::Legacy, Format::Bundle] {
            let (registry, author) = (Registry::start(kind).await, Author::new());
            let artifact = Artifact::answering("first").await;
            let digest = registry.push("acme/authz:live", &artifact.file()).await;
            let pinned = format!("acme/authz@{digest}");
            author.write("garbage.json", "{");
            let name = registry.reference(&pinned);
            for number in 0..4 {
                let other = KeyPair::generate().await;
                other
                    .sign_with(Cosign::V3, format, &registry, &pinned)
                    .await;
                author
                    .line(&format!(
                        "oras attach --plain-http --artifact-type application/spdx+json \
                         --annotation number={number} {name} garbage.json:application/spdx+json"
                    ))
                    .await;
            }
            let key = KeyPair::generate().await;
            key.sign_with(Cosign::V3, format, &registry, &pinned).await;
            let signed = Signed {
                registry,
                key,
                digest,
                format,
            };
            signed
                .copes(Peer::Cosign, "no such path", Quirk::Page)
                .await;
        }
    }
}
