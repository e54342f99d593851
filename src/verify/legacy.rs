//! cosign's first format: a "simple signing" payload in an image under the tag
//! `sha256-<hex>.sig` (cosign, `specs/SIGNATURE_SPEC.md`).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    evidence::LegacySignature,
    keys::Answer,
    policy::TrustPolicy,
    report::Finding,
    verdict::{Fault, Signer},
};
use crate::oci::{Descriptor, Digest, strict_json};

const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CLAIM_TYPE: &str = "cosign container image signature";

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// The tag under which signatures of `digest` lie.
pub(super) fn tag(digest: &Digest) -> String {
    format!("{}-{}.sig", digest.algorithm(), digest.hex())
}

/// The signature that a layer carries, if it is one of this format.
pub(super) fn signature_of(layer: &Descriptor) -> Option<&str> {
    (layer.media_type == MEDIA_TYPE).then(|| layer.annotation(SIGNATURE)).flatten()
}

/// Whose valid signature of `digest` this is; `finding` is told every step.
pub(super) fn judge(
    candidate: &LegacySignature,
    digest: &Digest,
    policy: &TrustPolicy,
    finding: &mut Finding,
) -> Result<Signer, Fault> {
    // Some signers wrap the base64 text.
    let signature = STANDARD
        .decode(candidate.signature.replace('\n', ""))
        .map_err(|_| Fault::Malformed("the signature is not base64".into()));
    let signature = finding.check("format", signature, |_| "simple signing payload".to_owned())?;
    let signer =
        finding.signature(policy, |key| matches!(key.answer(&candidate.payload, &signature), Answer::Mine(_)))?;
    // Only now is the payload worth reading.
    let claimed = finding.check("statement", read(&candidate.payload), |_| CLAIM_TYPE.to_owned())?;
    let named = if claimed == digest.as_str() { Ok(()) } else { Err(Fault::OtherDigest(claimed)) };
    finding.check("digest", named, |()| format!("it names {digest}"))?;
    Ok(signer)
}

/// The digest that a payload approves.
fn read(payload: &[u8]) -> Result<String, Fault> {
    strict_json(payload).map_err(|error| Fault::Malformed(error.to_string()))?;
    let payload: Payload = serde_json::from_slice(payload).map_err(|error| Fault::Malformed(error.to_string()))?;
    if payload.critical.kind != CLAIM_TYPE {
        return Err(Fault::NotASignature(payload.critical.kind));
    }
    Ok(payload.critical.image.digest)
}
