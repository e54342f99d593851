//! The media types, annotations and tags that cosign defines for signatures (cosign,
//! `specs/BUNDLE_SPEC.md`, `specs/SIGNATURE_SPEC.md`), and the in-toto types that it signs.

use super::Digest;

/// The longest tag (distribution-spec, "Pulling manifests").
const MAX_TAG_BYTES: usize = 128;

/// A Sigstore bundle v0.3: media type of the layer and artifact type of the referrer.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The same version in the older spelling.
pub const BUNDLE_VERSION_PARAMETER: &str = "application/vnd.dev.sigstore.bundle+json;version=0.3";
/// A simple signing payload: media type of a layer in the image at the `.sig` tag.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The artifact type that cosign 2 gives its image of signatures when it is a referrer.
pub const SIGNATURE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// The annotation of a referrer with the kind of content in its bundle, such as `dsse-envelope`.
pub const BUNDLE_CONTENT: &str = "dev.sigstore.bundle.content";
/// The annotation of a referrer with the predicate type of its bundle, which can be read without
/// fetching the bundle.
pub const BUNDLE_PREDICATE_TYPE: &str = "dev.sigstore.bundle.predicateType";

// The annotations of a simple signing layer (cosign, `pkg/oci/internal/signature/layer.go`);
// the prefixes do differ.

/// The signature, base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The signer's certificate, PEM.
pub const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
/// The other certificates of its chain, PEM.
pub const CHAIN: &str = "dev.sigstore.cosign/chain";
/// Rekor's response, JSON.
pub const REKOR_BUNDLE: &str = "dev.sigstore.cosign/bundle";
/// The timestamp authority's response, JSON.
pub const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

/// The `type` of a simple signing payload.
pub const SIMPLE_SIGNING_TYPE: &str = "cosign container image signature";

/// The payload type of a DSSE envelope with an in-toto statement.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";
/// The type of an in-toto statement.
pub const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The first type of an in-toto statement, with the same members; `cosign attest` still writes it.
pub const STATEMENT_V0_1: &str = "https://in-toto.io/Statement/v0.1";
/// The predicate type of a cosign signature. Every other predicate is an attestation: a "scan
/// failed" report by the same key is no approval.
pub const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// The tag of the image with the simple signing signatures of `digest`, as [`attached_tag`].
pub fn signature_tag(digest: &Digest) -> Option<String> {
    attached_tag(digest, "sig")
}

/// The tag under which cosign attaches something of a kind (`sig`, `att`, `sbom`) to `digest`;
/// `None` for a digest whose tag would be longer than tags may be, such as one of SHA-512, which
/// cosign does not read.
pub fn attached_tag(digest: &Digest, kind: &str) -> Option<String> {
    let tag = format!("{}-{}.{kind}", digest.algorithm(), digest.hex());
    (tag.len() <= MAX_TAG_BYTES).then_some(tag)
}
