//! cosign's present format: a Sigstore bundle v0.3 with a DSSE envelope, attached as an OCI
//! referrer (cosign, `specs/BUNDLE_SPEC.md`). Here: signed by a key, without a log.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use sigstore_verify::types::dsse::pae;

use super::{
    evidence::SignatureBundle,
    keys::Answer,
    policy::TrustPolicy,
    report::Finding,
    verdict::{Fault, Signer},
};
use crate::oci::{Digest, Manifest, strict_json};

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Other predicates are attestations: a "scan failed" report by the same key is no approval.
const PREDICATE_TYPE: &str = "https://sigstore.dev/cosign/sign/v1";
/// As sigstore-go caps them.
const MAX_SUBJECTS: usize = 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    dsse_envelope: Option<Envelope>,
    message_signature: Option<serde::de::IgnoredAny>,
    verification_material: Material,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: Option<serde::de::IgnoredAny>,
    certificate: Option<serde::de::IgnoredAny>,
    x509_certificate_chain: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: std::collections::BTreeMap<String, String>,
}

/// Whether a layer is a bundle of the one version that is accepted. Older ones allowed weaker
/// proofs of time.
pub(super) fn is_bundle(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.dev.sigstore.bundle.v0.3+json" | "application/vnd.dev.sigstore.bundle+json;version=0.3"
    )
}

/// Whose valid signature of `digest` this is; `finding` is told every step.
pub(super) fn judge(
    candidate: &SignatureBundle,
    digest: &Digest,
    policy: &TrustPolicy,
    finding: &mut Finding,
) -> Result<Signer, Fault> {
    let signed = finding.check("format", read(&candidate.bundle), |_| "Sigstore bundle v0.3".to_owned())?;
    let message = pae(&signed.payload_type, &signed.payload);
    // A certificate proves nothing to a policy of keys.
    let signer = finding.signature(policy, |key| {
        !signed.certified && matches!(key.answer(&message, &signed.signature), Answer::Mine(_))
    })?;
    // Only now are the contents worth reading.
    let statement = finding.check("statement", signed.statement(), |statement| statement.predicate_type.clone())?;
    finding.check("digest", statement.names(digest), |()| format!("it names {digest}"))?;
    finding.check("referrer", check_referrer(candidate, digest), |()| "attached to the same digest".to_owned())?;
    Ok(signer)
}

/// What an envelope holds, decoded.
struct Signed {
    payload_type: String,
    payload: Vec<u8>,
    signature: Vec<u8>,
    certified: bool,
}

fn read(bundle: &[u8]) -> Result<Signed, Fault> {
    let (envelope, certified) = open(bundle)?;
    let payload = decode("payload", &envelope.payload)?;
    let [signature] = envelope.signatures.as_slice() else {
        return Err(Fault::Malformed(format!(
            "{} signatures in the envelope instead of one",
            envelope.signatures.len()
        )));
    };
    let signature = decode("signature", &signature.sig)?;
    Ok(Signed { payload_type: envelope.payload_type, payload, signature, certified })
}

/// The envelope, and whether a certificate is to vouch for it.
fn open(bytes: &[u8]) -> Result<(Envelope, bool), Fault> {
    let malformed = |error: String| Fault::Malformed(error);
    strict_json(bytes).map_err(|error| malformed(error.to_string()))?;
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    if !is_bundle(&bundle.media_type) {
        return Err(malformed(format!("bundle of type {}", bundle.media_type)));
    }
    let material = &bundle.verification_material;
    let certified = material.certificate.is_some() || material.x509_certificate_chain.is_some();
    if material.public_key.is_none() && !certified {
        return Err(malformed("no public key in the verification material".into()));
    }
    match (bundle.dsse_envelope, bundle.message_signature) {
        (Some(envelope), None) => Ok((envelope, certified)),
        _ => Err(malformed("an image signature is one DSSE envelope and nothing else".into())),
    }
}

impl Signed {
    /// The statement inside, if it is one of approval.
    fn statement(&self) -> Result<Statement, Fault> {
        if self.payload_type != PAYLOAD_TYPE {
            return Err(Fault::NotASignature(self.payload_type.clone()));
        }
        strict_json(&self.payload).map_err(|error| Fault::Malformed(error.to_string()))?;
        let statement: Statement =
            serde_json::from_slice(&self.payload).map_err(|error| Fault::Malformed(error.to_string()))?;
        if statement.kind != STATEMENT_TYPE {
            return Err(Fault::Malformed(format!("statement of type {}", statement.kind)));
        }
        if statement.predicate_type != PREDICATE_TYPE {
            return Err(Fault::NotASignature(statement.predicate_type));
        }
        if statement.subject.len() > MAX_SUBJECTS {
            return Err(Fault::Malformed(format!("{} subjects", statement.subject.len())));
        }
        Ok(statement)
    }
}

impl Statement {
    fn names(&self, digest: &Digest) -> Result<(), Fault> {
        let named =
            |subject: &Subject| subject.digest.get(digest.algorithm()).map(String::as_str) == Some(digest.hex());
        if self.subject.iter().any(named) {
            return Ok(());
        }
        let other = self.subject.first().and_then(|subject| subject.digest.iter().next());
        Err(Fault::OtherDigest(other.map_or_else(|| "nothing".into(), |(algorithm, hex)| format!("{algorithm}:{hex}"))))
    }
}

/// That a registry lists a referrer proves nothing; its own `subject` must say so too.
fn check_referrer(candidate: &SignatureBundle, digest: &Digest) -> Result<(), Fault> {
    let referrer = Manifest::parse(candidate.referrer.clone(), None, candidate.referrer.len() as u64)
        .map_err(|error| Fault::Malformed(error.to_string()))?;
    let [layer] = referrer.layers() else { return Err(Fault::Malformed("a referrer with several layers".into())) };
    if layer.digest != layer.digest.recompute(&candidate.bundle) {
        return Err(Fault::Malformed("the bundle is not the referrer's layer".into()));
    }
    match referrer.subject() {
        Some(subject) if subject.digest == *digest => Ok(()),
        Some(subject) => Err(Fault::OtherDigest(subject.digest.to_string())),
        None => Err(Fault::Malformed("a referrer without a subject".into())),
    }
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, Fault> {
    STANDARD.decode(text).map_err(|_| Fault::Malformed(format!("the {what} is not base64")))
}
