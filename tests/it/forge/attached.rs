//! Signatures in a registry.

use bundlegate::oci::{Descriptor, Digest, media_type};
use serde_json::{Value, json};

use super::signatures::{BUNDLE, LEGACY, Legacy, SIGN};
use crate::faulty::FaultyRegistry;

/// Puts signatures into a registry as cosign does.
impl FaultyRegistry {
    /// Puts these signatures, and no others, under the `.sig` tag.
    pub(crate) fn put_legacy(&self, digest: &Digest, signatures: &[Legacy]) {
        let layers: Vec<_> = signatures
            .iter()
            .map(|signature| self.put_signature(signature))
            .collect();
        self.put_signature_image(digest, &layers);
    }

    /// The layer of a signature, in no image yet.
    pub(crate) fn put_signature(&self, signature: &Legacy) -> Value {
        let mut layer = json!(self.put_blob(&signature.payload));
        layer["mediaType"] = LEGACY.into();
        layer["annotations"] = json!(signature.annotations);
        layer
    }

    /// Puts an image with these layers under the `.sig` tag.
    pub(crate) fn put_signature_image(&self, digest: &Digest, layers: &[Value]) {
        let manifest = manifest(json!({"layers": layers}));
        self.put(
            &format!("manifests/sha256-{}.sig", digest.hex()),
            media_type::OCI_MANIFEST,
            manifest.to_string(),
        );
    }

    /// Attaches these bundles, and no others.
    pub(crate) fn put_bundles(&self, digest: &Digest, bundles: &[Value]) {
        let texts: Vec<_> = bundles.iter().map(Value::to_string).collect();
        let referrers: Vec<_> = texts
            .iter()
            .map(|text| self.put_referrer(digest, text.as_bytes(), |_| {}))
            .collect();
        self.list_referrers(digest, &json!(referrers));
    }

    /// A manifest, changed by `bend`, that attaches these bytes; listed nowhere.
    pub(crate) fn put_referrer(
        &self,
        digest: &Digest,
        bundle: &[u8],
        bend: impl FnOnce(&mut Value),
    ) -> Value {
        let mut layer = json!(self.put_blob(bundle));
        layer["mediaType"] = BUNDLE.into();
        let annotations = json!({
            "dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": SIGN,
        });
        let mut referrer = manifest(json!({
            "layers": [layer], "artifactType": BUNDLE, "annotations": annotations,
            "subject": {"mediaType": media_type::OCI_MANIFEST, "size": 2, "digest": digest},
        }));
        bend(&mut referrer);
        let referrer = referrer.to_string();
        let mut entry = json!(Descriptor::of(
            media_type::OCI_MANIFEST,
            referrer.as_bytes()
        ));
        entry["artifactType"] = BUNDLE.into();
        entry["annotations"] = annotations;
        let name = entry["digest"].as_str().unwrap();
        self.put(
            &format!("manifests/{name}"),
            media_type::OCI_MANIFEST,
            referrer,
        );
        entry
    }

    /// The answer of the referrers API.
    pub(crate) fn list_referrers(&self, digest: &Digest, entries: &Value) {
        let index =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
        self.put(
            &format!("referrers/{digest}"),
            media_type::OCI_INDEX,
            index.to_string(),
        );
    }
}

fn manifest(extra: Value) -> Value {
    let mut whole = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"),
    });
    let Value::Object(extra) = extra else {
        panic!("not an object: {extra}")
    };
    whole.as_object_mut().unwrap().extend(extra);
    whole
}
