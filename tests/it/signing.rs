//! Signatures as cosign lays them down, in both formats, by a key made for the test.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::{
    oci::{Descriptor, Digest, media_type},
    verify::{Authority, PublicKey, Requirements, TrustPolicy},
};
use serde_json::{Value, json};
use sigstore_verify::{crypto::KeyPair, types::dsse::pae};

use crate::faulty::FaultyRegistry;

const LEGACY: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const STATEMENT: &str = "application/vnd.in-toto+json";

pub(crate) struct Signer(KeyPair);

impl Signer {
    pub(crate) fn new() -> Self {
        Self(KeyPair::generate_ecdsa_p256().unwrap())
    }

    /// A policy that trusts this key and no other.
    pub(crate) fn policy(&self) -> TrustPolicy {
        any_of(&[self])
    }

    pub(crate) fn public_pem(&self) -> String {
        self.0.public_key_der().unwrap().to_pem()
    }

    pub(crate) fn key(&self) -> PublicKey {
        PublicKey::from_pem(&self.public_pem()).unwrap()
    }

    /// Signs as cosign 2 does: a payload under the `.sig` tag.
    pub(crate) fn sign_legacy(&self, registry: &FaultyRegistry, digest: &Digest) {
        let payload = json!({"critical": {"identity": {"docker-reference": "r.example/a"},
            "image": {"docker-manifest-digest": digest}, "type": "cosign container image signature"}, "optional": null});
        let payload = payload.to_string();
        let mut layer = json!(registry.put_blob(payload.as_bytes()));
        layer["mediaType"] = LEGACY.into();
        layer["annotations"] =
            json!({"dev.cosignproject.cosign/signature": self.sign(payload.as_bytes())});
        let manifest = manifest(&layer, json!({}));
        registry.put(
            &format!("manifests/sha256-{}.sig", digest.hex()),
            media_type::OCI_MANIFEST,
            manifest,
        );
    }

    /// Signs as cosign 3 does: a Sigstore bundle that refers to the artifact.
    pub(crate) fn sign_bundle(&self, registry: &FaultyRegistry, digest: &Digest) {
        let statement = json!({"_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": digest.hex()}}],
            "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {}});
        let statement = statement.to_string();
        let bundle = json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "x"}},
            "dsseEnvelope": {
                "payload": STANDARD.encode(&statement), "payloadType": STATEMENT,
                "signatures": [{"sig": self.sign(&pae(STATEMENT, statement.as_bytes()))}],
            },
        });
        let mut layer = json!(registry.put_blob(bundle.to_string().as_bytes()));
        layer["mediaType"] = BUNDLE.into();
        let subject = json!({"subject": {"mediaType": media_type::OCI_MANIFEST, "size": 2, "digest": digest}});
        let referrer = manifest(&layer, subject);
        let entry = Descriptor::of(media_type::OCI_MANIFEST, referrer.as_bytes());
        registry.put(
            &format!("manifests/{}", entry.digest),
            media_type::OCI_MANIFEST,
            referrer,
        );
        let index =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
        registry.put(
            &format!("referrers/{digest}"),
            media_type::OCI_INDEX,
            index.to_string(),
        );
    }

    fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.0.sign(bytes).unwrap().as_bytes())
    }
}

/// A policy that trusts these keys and no other.
pub(crate) fn any_of(signers: &[&Signer]) -> TrustPolicy {
    let keys = signers.iter().map(|signer| signer.key());
    let authority = Authority::with_keys("release".into(), keys);
    TrustPolicy::signed("p".into(), Requirements::any_of(vec![authority])).unwrap()
}

fn manifest(layer: &Value, extra: Value) -> String {
    let mut whole = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [layer],
    });
    let Value::Object(extra) = extra else {
        panic!("not an object: {extra}")
    };
    whole.as_object_mut().unwrap().extend(extra);
    whole.to_string()
}
