//! cosign's first format: "simple signing" payloads in an image at the tag `sha256-<hex>.sig`
//! (cosign, `specs/SIGNATURE_SPEC.md`). Each layer is one signature.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use super::{KeyPair, SignError, SigningRequest};
use crate::oci::{Descriptor, Digest, Document, Manifest, NewManifest, cosign, media_type};

/// Go's zero time, which cosign writes.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// A payload and the layer that carries its signature.
#[derive(Debug, Clone)]
pub struct LegacySignature {
    /// The signed bytes: the layer's blob.
    pub payload: Bytes,
    layer: Descriptor,
}

/// The image at the `.sig` tag, with all signatures of one artifact.
#[derive(Debug, Clone)]
pub struct LegacyImage {
    /// Its config, a blob.
    pub config: Bytes,
    /// Its manifest.
    pub manifest: Bytes,
}

impl LegacySignature {
    /// Signs the manifest of an artifact in `repository`, such as `ghcr.io/acme/authz`.
    ///
    /// # Errors
    /// When the key can't sign.
    pub fn sign(
        key: &KeyPair,
        request: &SigningRequest,
        repository: &str,
    ) -> Result<Self, SignError> {
        let payload = Bytes::from(serde_json::to_vec(&Payload::new(request, repository))?);
        let mut layer = Descriptor::of(cosign::SIMPLE_SIGNING, &payload);
        let signature = STANDARD.encode(key.sign(&payload)?);
        layer.annotations = Some([(cosign::SIGNATURE.to_owned(), signature)].into());
        Ok(Self { payload, layer })
    }

    /// The layer of the signature.
    pub(super) fn layer(&self) -> &Descriptor {
        &self.layer
    }
}

impl LegacyImage {
    /// The image at the tag, if there is one, with one more signature.
    ///
    /// # Errors
    /// When an index is at the tag.
    pub fn with(
        present: Option<&Manifest>,
        signature: &LegacySignature,
    ) -> Result<Self, SignError> {
        let (mut layers, annotations) = match present {
            Some(manifest) if matches!(manifest.document(), Document::Index { .. }) => {
                return Err(SignError::NotSignatures(manifest.digest().to_string()));
            }
            Some(manifest) => (manifest.layers().to_vec(), manifest.annotations().clone()),
            None => (Vec::new(), BTreeMap::new()),
        };
        // Some kinds of keys make the same signature twice.
        if !layers.contains(&signature.layer) {
            layers.push(signature.layer.clone());
        }
        let config = Bytes::from(serde_json::to_vec(&config(&layers))?);
        let manifest = NewManifest::new(media_type::IMAGE_CONFIG, layers)
            .configured(&config)
            .annotated(annotations)
            .to_bytes()?;
        Ok(Self { config, manifest })
    }
}

#[derive(Serialize)]
struct Payload<'a> {
    critical: Critical<'a>,
    optional: Option<&'a BTreeMap<String, String>>,
}

#[derive(Serialize)]
struct Critical<'a> {
    identity: Identity<'a>,
    image: Image<'a>,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct Identity<'a> {
    #[serde(rename = "docker-reference")]
    reference: &'a str,
}

#[derive(Serialize)]
struct Image<'a> {
    #[serde(rename = "docker-manifest-digest")]
    digest: &'a Digest,
}

impl<'a> Payload<'a> {
    fn new(request: &'a SigningRequest, repository: &'a str) -> Self {
        Self {
            critical: Critical {
                identity: Identity {
                    reference: repository,
                },
                image: Image {
                    digest: &request.subject.digest,
                },
                kind: cosign::SIMPLE_SIGNING_TYPE,
            },
            optional: (!request.annotations.is_empty()).then_some(&request.annotations),
        }
    }
}

/// The config that image tools expect; layers of signatures are not compressed.
fn config(layers: &[Descriptor]) -> serde_json::Value {
    json!({
        "architecture": "",
        "created": NO_TIME,
        "history": layers.iter().map(|_| json!({ "created": NO_TIME })).collect::<Vec<_>>(),
        "os": "",
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>() },
        "config": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> SigningRequest {
        SigningRequest::of(Descriptor::of(media_type::OCI_MANIFEST, b"manifest"))
    }

    fn parse(image: &LegacyImage) -> Manifest {
        Manifest::parse(image.manifest.clone(), None, 1 << 20).unwrap()
    }

    #[test]
    fn a_payload_has_the_members_of_cosigns() {
        let key = KeyPair::generate().unwrap();
        let mut request = request();
        let plain = LegacySignature::sign(&key, &request, "r.example/a").unwrap();
        let digest = &request.subject.digest;
        let expected = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"r.example/a"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        assert_eq!(plain.payload, expected);
        request
            .annotations
            .insert("env".to_owned(), "prod".to_owned());
        let annotated = LegacySignature::sign(&key, &request, "r.example/a").unwrap();
        assert!(
            annotated
                .payload
                .ends_with(br#""optional":{"env":"prod"}}"#)
        );
    }

    #[test]
    fn a_signature_is_appended_to_the_existing_ones() {
        let sign = || {
            LegacySignature::sign(&KeyPair::generate().unwrap(), &request(), "r.example/a").unwrap()
        };
        let (first, second) = (sign(), sign());
        let one = parse(&LegacyImage::with(None, &first).unwrap());
        let image = LegacyImage::with(Some(&one), &second).unwrap();
        let two = parse(&image);
        assert_eq!(two.layers(), [first.layer, second.layer.clone()]);
        assert_eq!(
            parse(&LegacyImage::with(Some(&two), &second).unwrap()).digest(),
            two.digest()
        );
        let config: serde_json::Value = serde_json::from_slice(&image.config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
        let index = Manifest::parse(
            Bytes::from_static(br#"{"schemaVersion":2,"manifests":[]}"#),
            None,
            99,
        )
        .unwrap();
        assert!(matches!(
            LegacyImage::with(Some(&index), &second),
            Err(SignError::NotSignatures(_))
        ));
    }
}
