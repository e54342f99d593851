//! Registries that deviate from the specification, as crane, oras and cosign see them: what they
//! resolve and verify, the gateway serves.

use std::path::Path;

use crate::support::{
    Artifact, Cosign, Format, Front, GatewayConfig, KeyPair, Kind, Quirk, Registry, TestGateway,
    run,
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
