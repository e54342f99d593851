//! cosign's current format: a Sigstore bundle v0.3 with a DSSE envelope, attached as an OCI
//! referrer (cosign, `specs/BUNDLE_SPEC.md`).

use serde::Deserialize;
use serde_json::value::RawValue;
use sigstore_verify::types::{
    CertificateContent, DsseEnvelope, TimestampVerificationData, TransparencyLogEntry,
    X509Certificate,
};

use super::{
    candidate::{Candidate, Content, Material, malformed},
    certificate::intermediates,
    evidence::SignatureBundle,
    reason::CandidateError,
};
use crate::oci::{Digest, Manifest, cosign, strict_json};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle<'a> {
    media_type: String,
    #[serde(borrow)]
    dsse_envelope: Option<&'a RawValue>,
    #[serde(borrow)]
    message_signature: Option<&'a RawValue>,
    verification_material: VerificationMaterial,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VerificationMaterial {
    public_key: Option<serde::de::IgnoredAny>,
    certificate: Option<CertificateContent>,
    x509_certificate_chain: Option<Chain>,
    #[serde(default)]
    tlog_entries: Vec<TransparencyLogEntry>,
    timestamp_verification_data: Option<TimestampVerificationData>,
}

#[derive(Deserialize)]
struct Chain {
    certificates: Vec<X509Certificate>,
}

/// Whether a layer is a bundle of the only accepted version. Older versions allowed weaker proofs
/// of time.
pub(super) fn is_bundle(media_type: &str) -> bool {
    [cosign::BUNDLE, cosign::BUNDLE_VERSION_PARAMETER].contains(&media_type)
}

/// Parses a bundle.
pub(super) fn read(bytes: &[u8]) -> Result<Candidate, CandidateError> {
    strict_json(bytes).map_err(malformed)?;
    let bundle: Bundle<'_> = serde_json::from_slice(bytes).map_err(malformed)?;
    if !is_bundle(&bundle.media_type) {
        return Err(CandidateError::Malformed(format!(
            "bundle of type {}",
            bundle.media_type
        )));
    }
    let (Some(envelope), None) = (bundle.dsse_envelope, bundle.message_signature) else {
        return Err(CandidateError::Malformed(
            "an image signature must be one DSSE envelope and nothing else".into(),
        ));
    };
    let envelope: DsseEnvelope = serde_json::from_str(envelope.get()).map_err(malformed)?;
    let proofs = bundle.verification_material;
    let material = material(
        proofs.public_key.is_some(),
        proofs.certificate,
        proofs.x509_certificate_chain,
    )?;
    let strict = |entry: &TransparencyLogEntry| {
        strict_json(entry.canonicalized_body.as_bytes()).map_err(malformed)
    };
    let log_entries = proofs
        .tlog_entries
        .iter()
        .try_for_each(strict)
        .map(|()| proofs.tlog_entries);
    Candidate {
        message: envelope.pae(),
        signature: envelope.signature.sig.as_bytes().to_vec(),
        material,
        log_entries,
        timestamps: proofs
            .timestamp_verification_data
            .unwrap_or_default()
            .rfc3161_timestamps,
        content: Content::Envelope(envelope),
    }
    .within_bounds()
}

fn material(
    key: bool,
    certificate: Option<CertificateContent>,
    chain: Option<Chain>,
) -> Result<Material, CandidateError> {
    match (key, certificate, chain) {
        (true, None, None) => Ok(Material::Key),
        (false, Some(certificate), None) => Ok(Material::Certificate {
            leaf: certificate.raw_bytes,
            chain: Vec::new(),
        }),
        (false, None, Some(chain)) => {
            let mut certificates = chain.certificates.into_iter().map(|one| one.raw_bytes);
            let leaf = certificates.next().ok_or_else(|| {
                CandidateError::Malformed("the certificate chain is empty".into())
            })?;
            Ok(Material::Certificate {
                leaf,
                chain: intermediates(certificates),
            })
        }
        (false, None, None) => Err(CandidateError::Malformed(
            "neither a key nor a certificate".into(),
        )),
        _ => Err(CandidateError::Malformed(
            "a key and a certificate, or two kinds of certificates".into(),
        )),
    }
}

/// Checks the referrer's own `subject`: the registry's list of referrers proves nothing.
pub(super) fn check_referrer(
    candidate: &SignatureBundle,
    digest: &Digest,
) -> Result<(), CandidateError> {
    let referrer = Manifest::parse(
        candidate.referrer.clone(),
        None,
        candidate.referrer.len() as u64,
    )
    .map_err(malformed)?;
    let [layer] = referrer.layers() else {
        return Err(CandidateError::Malformed(
            "the referrer does not have exactly one layer".into(),
        ));
    };
    if layer.digest != layer.digest.recompute(&candidate.bundle) {
        return Err(CandidateError::Malformed(
            "the bundle is not the referrer's layer".into(),
        ));
    }
    match referrer.subject() {
        Some(subject) if subject.digest == *digest => Ok(()),
        Some(subject) => Err(CandidateError::OtherDigest(subject.digest.to_string())),
        None => Err(CandidateError::Malformed(
            "a referrer without a subject".into(),
        )),
    }
}
