//! cosign's first format: a "simple signing" payload in an image at the tag `sha256-<hex>.sig`
//! (cosign, `specs/SIGNATURE_SPEC.md`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use sigstore_verify::types::{
    CanonicalizedBody, InclusionPromise, KindVersion, LogId, LogIndex, LogKeyId, Rfc3161Timestamp,
    SignedTimestamp, TimestampToken, TransparencyLogEntry,
};

use super::{
    candidate::{Candidate, Content, Material, decode, malformed},
    certificate::{certificates, intermediates, one_certificate},
    evidence::LegacySignature,
    reason::CandidateError,
};
use crate::oci::{Descriptor, Digest, cosign, strict_json};

/// The content of a simple signing payload.
#[derive(Debug)]
pub(super) struct SimpleSigning {
    digest: String,
    /// The repository that the signer named.
    pub(super) repository: String,
    /// The signed annotations.
    pub(super) annotations: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
    optional: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(default)]
    identity: Named,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct Named {
    #[serde(rename = "docker-reference", default)]
    repository: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Rekor's response to the upload of the signature.
#[derive(Deserialize)]
struct RekorBundle {
    #[serde(rename = "SignedEntryTimestamp")]
    promise: String,
    #[serde(rename = "Payload")]
    entry: RekorPayload,
}

#[derive(Deserialize)]
struct RekorPayload {
    body: String,
    #[serde(rename = "integratedTime")]
    integrated_time: i64,
    #[serde(rename = "logIndex")]
    log_index: u64,
    #[serde(rename = "logID")]
    log_id: String,
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
    #[serde(rename = "apiVersion")]
    version: String,
}

#[derive(Deserialize)]
struct TimestampBundle {
    #[serde(rename = "SignedRFC3161Timestamp")]
    token: String,
}

/// The signature in a layer, without its payload; `None` if the layer is of another type.
pub(super) fn signature_of(layer: &Descriptor) -> Option<LegacySignature> {
    let signature = (layer.media_type == cosign::SIMPLE_SIGNING)
        .then(|| layer.annotation(cosign::SIGNATURE))
        .flatten()?;
    // cosign also writes empty annotations.
    let annotation = |name| {
        layer
            .annotation(name)
            .filter(|text| !text.trim().is_empty())
            .map(str::to_owned)
    };
    Some(LegacySignature {
        signature: signature.to_owned(),
        payload: bytes::Bytes::new(),
        certificate: annotation(cosign::CERTIFICATE),
        chain: annotation(cosign::CHAIN),
        log_entry: annotation(cosign::REKOR_BUNDLE),
        timestamp: annotation(cosign::TIMESTAMP),
    })
}

/// Parses a signature.
pub(super) fn read(candidate: &LegacySignature) -> Result<Candidate, CandidateError> {
    // Some signers wrap the base64 text.
    let signature = decode("signature", &candidate.signature.replace('\n', ""))?;
    let material = match (&candidate.certificate, &candidate.chain) {
        (None, _) => Material::Key,
        (Some(leaf), chain) => {
            let chain = chain
                .as_deref()
                .map(certificates)
                .transpose()?
                .unwrap_or_default();
            Material::Certificate {
                leaf: one_certificate(leaf)?,
                chain: intermediates(chain.into_iter()),
            }
        }
    };
    Candidate {
        message: candidate.payload.to_vec(),
        signature,
        material,
        log_entries: candidate
            .log_entry
            .as_deref()
            .map(log_entry)
            .transpose()
            .map(|entry| entry.into_iter().collect()),
        timestamps: candidate
            .timestamp
            .as_deref()
            .map(timestamp)
            .transpose()?
            .into_iter()
            .collect(),
        content: Content::Payload,
    }
    .within_bounds()
}

/// Converts Rekor's response to the form that bundles have.
fn log_entry(text: &str) -> Result<TransparencyLogEntry, CandidateError> {
    strict_json(text.as_bytes()).map_err(malformed)?;
    let answer: RekorBundle = serde_json::from_str(text).map_err(malformed)?;
    let body = decode("log entry", &answer.entry.body)?;
    strict_json(&body).map_err(malformed)?;
    let Kind { kind, version } = serde_json::from_slice(&body).map_err(malformed)?;
    let kind = match (kind.as_str(), version.as_str()) {
        ("hashedrekord", "0.0.1") => KindVersion::HashedRekordV001,
        _ => {
            return Err(CandidateError::Malformed(format!(
                "log entry of kind {kind} {version}"
            )));
        }
    };
    let id = LogKeyId::new(unhex(&answer.entry.log_id)?);
    let index = LogIndex::new(answer.entry.log_index).map_err(malformed)?;
    let time = jiff::Timestamp::from_second(answer.entry.integrated_time).map_err(malformed)?;
    let promise = SignedTimestamp::new(decode("signed entry timestamp", &answer.promise)?);
    Ok(
        TransparencyLogEntry::new(index, LogId::new(id), kind, CanonicalizedBody::new(body))
            .with_integrated_time(time)
            .with_inclusion_promise(InclusionPromise::new(promise)),
    )
}

fn timestamp(text: &str) -> Result<Rfc3161Timestamp, CandidateError> {
    strict_json(text.as_bytes()).map_err(malformed)?;
    let answer: TimestampBundle = serde_json::from_str(text).map_err(malformed)?;
    Ok(Rfc3161Timestamp::new(TimestampToken::new(decode(
        "timestamp",
        &answer.token,
    )?)))
}

fn unhex(text: &str) -> Result<Vec<u8>, CandidateError> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    };
    let bytes = text
        .as_bytes()
        .chunks(2)
        .map(pair)
        .collect::<Option<Vec<_>>>();
    bytes.ok_or_else(|| CandidateError::Malformed("the log's id is not hexadecimal".into()))
}

/// Parses a payload. Only useful once the signature is verified.
pub(super) fn parse_payload(payload: &[u8]) -> Result<SimpleSigning, CandidateError> {
    strict_json(payload).map_err(malformed)?;
    let payload: Payload = serde_json::from_slice(payload).map_err(malformed)?;
    if payload.critical.kind != cosign::SIMPLE_SIGNING_TYPE {
        return Err(CandidateError::NotASignature(payload.critical.kind));
    }
    Ok(SimpleSigning {
        digest: payload.critical.image.digest,
        repository: payload.critical.identity.repository,
        annotations: payload.optional.unwrap_or_default(),
    })
}

impl SimpleSigning {
    /// Checks that the payload is about `digest`.
    pub(super) fn names(&self, digest: &Digest) -> Result<(), CandidateError> {
        if self.digest == digest.as_str() {
            Ok(())
        } else {
            Err(CandidateError::OtherDigest(self.digest.clone()))
        }
    }
}
