//! cosign's current format: a Sigstore bundle v0.3 with a DSSE envelope, attached as an OCI
//! referrer (cosign, `specs/BUNDLE_SPEC.md`). Signed with a key, without a log.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use sigstore_verify::types::dsse::pae;

use super::{KeyPair, SignError, SigningRequest};
use crate::oci::{Descriptor, LayoutIndex, NewManifest, cosign, media_type};

/// A signature in the form in which a registry stores it.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The bundle: the only layer of `referrer`.
    pub bundle: Bytes,
    /// The manifest that links the bundle to its subject.
    pub referrer: Bytes,
    /// The index of referrers at the fallback tag of registries without the referrers API.
    pub index: Bytes,
    /// The fallback tag: `sha256-<hex>`.
    pub index_tag: String,
}

impl Attachment {
    /// Signs an artifact's manifest.
    ///
    /// # Errors
    /// When the key can't sign.
    pub fn sign(key: &KeyPair, request: &SigningRequest) -> Result<Self, SignError> {
        let subject = &request.subject;
        let bundle = bundle(key, request)?;
        let annotations = [
            (cosign::BUNDLE_CONTENT, "dsse-envelope"),
            (cosign::BUNDLE_PREDICATE_TYPE, cosign::SIGN_PREDICATE),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let referrer = NewManifest::new(
            media_type::EMPTY,
            vec![Descriptor::of(cosign::BUNDLE, &bundle)],
        )
        .referring(cosign::BUNDLE, subject.clone())
        .annotated(annotations.clone())
        .to_bytes()?;
        let mut entry = Descriptor::of(media_type::OCI_MANIFEST, &referrer);
        entry.artifact_type = Some(cosign::BUNDLE.to_owned());
        entry.annotations = Some(annotations.into());
        let mut index = LayoutIndex::default();
        index.manifests.push(entry);
        let index_tag = format!("{}-{}", subject.digest.algorithm(), subject.digest.hex());
        Ok(Self {
            bundle,
            referrer,
            index: index.to_bytes()?,
            index_tag,
        })
    }
}

#[derive(Serialize)]
struct Statement<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    subject: [Subject<'a>; 1],
    #[serde(rename = "predicateType")]
    predicate_type: &'static str,
    predicate: BTreeMap<(), ()>,
}

#[derive(Serialize)]
struct Subject<'a> {
    digest: BTreeMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

fn bundle(key: &KeyPair, request: &SigningRequest) -> Result<Bytes, SignError> {
    let digest = &request.subject.digest;
    let statement = Statement {
        kind: cosign::STATEMENT,
        subject: [Subject {
            digest: [(digest.algorithm(), digest.hex())].into(),
            annotations: &request.annotations,
        }],
        predicate_type: cosign::SIGN_PREDICATE,
        predicate: BTreeMap::new(),
    };
    let payload = serde_json::to_vec(&statement)?;
    let signature = key.sign(&pae(cosign::IN_TOTO, &payload))?;
    let bundle = json!({
        "mediaType": cosign::BUNDLE,
        "verificationMaterial": { "publicKey": { "hint": STANDARD.encode(key.hint()) } },
        "dsseEnvelope": {
            "payload": STANDARD.encode(payload),
            "payloadType": cosign::IN_TOTO,
            "signatures": [{ "sig": STANDARD.encode(signature) }],
        },
    });
    Ok(serde_json::to_vec(&bundle)?.into())
}
