//! One immutable, verified version of a bundle.

use std::{io, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use etag::EntityTag;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{
    delta::Differences,
    headers::{HeaderTexts, Headers},
    status::VerdictStatus,
    tag_hash::TagHash,
};
use crate::{
    bundle::{Bundle, Provenance},
    oci::{Blob, Digest, Manifest, ManifestPath},
    verify::{Evidence, PolicyRevision, Signer, Verified},
};

/// A bundle that may be served: verified, complete, immutable.
#[derive(Debug)]
pub struct Snapshot {
    manifest: Verified<Manifest>,
    record: VerificationRecord,
    content: Content,
    headers: Headers,
    tag_hash: TagHash,
}

/// What a snapshot serves: a bundle, its entity tag, and the inputs that it was made from.
///
/// Every constructor takes a [`Verified`] manifest and checks the bundle against it, so that only
/// verified inputs lead to content.
///
/// - The bundle is a layer of the manifest, byte for byte. Its tag is the SHA-256 of the bytes, so
///   that re-tagging or re-signing the same bytes wakes no client.
/// - The bundle was made from layers of the manifest by a named, versioned transform, which its
///   [`Provenance`](crate::bundle::Provenance) proves. Its tag is derived from the inputs:
///
/// ```text
/// sha256(digests of the layers ‖ name, version and parameters of the transform)
/// ```
///
/// with the length before each part, and encoded as the tag of a layer is. The bytes would not do,
/// because compressors make other bytes of the same inputs on other replicas, and a client that
/// moves between replicas would download the same bundle each time. A bundle that is signed again has
/// the transform before it, the algorithm, the name, the scope and the public part of the key among
/// its parameters; the signature is none, since it differs each time.
#[derive(Debug, Clone)]
pub struct Content {
    bundle: Bundle,
    etag: String,
    inputs: Inputs,
    /// How it differs from earlier versions.
    differences: Arc<Differences>,
}

/// The verified inputs that content was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    manifest: Digest,
    layers: Vec<Digest>,
}

/// How a snapshot was verified.
#[derive(Debug, Clone)]
pub struct VerificationRecord {
    /// The manifests from the one that the reference names to the verified one.
    pub path: Arc<ManifestPath>,
    /// The signature material of the first manifests of the path, in their order, from which the
    /// snapshot can be verified again without the network.
    pub evidence: Vec<Arc<Evidence>>,
    /// The revision of the policy that accepted it.
    pub policy_revision: PolicyRevision,
    /// The revisions of the trust roots that the policy relies on, in order.
    pub root_revisions: Vec<String>,
    /// The verdict for operators, if there is one to show.
    pub verdict: Option<VerdictStatus>,
}

/// A bundle that is neither a layer of the manifest nor made from its layers, which would be a bug,
/// or a header that can't be written.
#[derive(Debug, thiserror::Error)]
#[error("bundle {bundle} can't be published for manifest {manifest}: {reason}")]
pub struct Unpublishable {
    bundle: Digest,
    manifest: Digest,
    reason: &'static str,
}

impl Snapshot {
    /// Joins a verified manifest, the record of its verification, and the bundle that is one of its
    /// layers or was made from them. Hashes a bundle that is a layer, so it blocks for about a
    /// millisecond per MiB.
    ///
    /// # Errors
    /// When the bundle is neither.
    pub fn new(
        manifest: Verified<Manifest>,
        record: VerificationRecord,
        bundle: Bundle,
    ) -> Result<Self, Unpublishable> {
        let content = match bundle.provenance().cloned() {
            Some(provenance) => Content::made(&manifest, bundle, &provenance)?,
            None => Content::of_layer(&manifest, bundle)?,
        };
        Self::with_content(manifest, record, content)
    }

    /// The same bytes with a later verification. Hashes nothing.
    ///
    /// # Errors
    /// When the verification is of another manifest.
    pub fn reverified(
        &self,
        manifest: Verified<Manifest>,
        record: VerificationRecord,
    ) -> Result<Self, Unpublishable> {
        if *manifest.pinned().digest() != self.content.inputs.manifest {
            let reason = "it was made from another manifest";
            return Err(Unpublishable::new(&manifest, self.bundle(), reason));
        }
        Self::with_content(manifest, record, self.content.clone())
    }

    fn with_content(
        manifest: Verified<Manifest>,
        record: VerificationRecord,
        content: Content,
    ) -> Result<Self, Unpublishable> {
        let failed = |reason| Unpublishable::new(&manifest, &content.bundle, reason);
        if record.path.last().digest() != manifest.value().digest() {
            return Err(failed("its index leads to another manifest"));
        }
        let signers: Vec<_> = manifest
            .signers()
            .iter()
            .map(|signer| signer.authority.as_str())
            .collect();
        let headers = Headers::new(&HeaderTexts {
            etag: &content.etag,
            manifest: record.path.digest().as_str(),
            revision: content.bundle.revision().as_str(),
            signers: &signers.join(","),
            size: content.bytes().size(),
        });
        let headers = headers.map_err(|_| failed("a header can't be written"))?;
        Ok(Self {
            manifest,
            record,
            tag_hash: TagHash::of(&content.etag),
            content,
            headers,
        })
    }

    /// The hash of the entity tag.
    pub fn tag_hash(&self) -> TagHash {
        self.tag_hash
    }

    /// The entity tag as it is sent, quotes included.
    pub fn etag(&self) -> &str {
        &self.content.etag
    }

    /// Prepared header values.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// What it serves.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The bundle that it serves.
    pub fn bundle(&self) -> &Bundle {
        &self.content.bundle
    }

    pub(super) fn differences(&self) -> &Differences {
        &self.content.differences
    }

    /// The digest that the reference named: of the image's manifest, or of the index that leads to
    /// it.
    pub fn manifest_digest(&self) -> &Digest {
        self.record.path.digest()
    }

    /// The digest of the image's manifest, if the reference named an index.
    pub fn image_digest(&self) -> Option<&Digest> {
        self.record.path.image_digest()
    }

    /// The verified manifest, of the image.
    pub fn manifest(&self) -> &Verified<Manifest> {
        &self.manifest
    }

    /// The record of its verification.
    pub fn record(&self) -> &VerificationRecord {
        &self.record
    }

    /// Whether its verification holds at this time.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        !is_expired(self.manifest.valid_until(), now)
    }

    /// Whether its verification holds for ever or at the time that `now` reads.
    pub(super) fn is_valid(&self, now: impl FnOnce() -> Timestamp) -> bool {
        self.manifest.valid_until().is_none() || self.is_valid_at(now())
    }

    /// The signers that the policy counted.
    pub fn signers(&self) -> &[Signer] {
        self.manifest.signers()
    }
}

impl Content {
    /// A bundle that is one of the layers of a verified manifest, byte for byte. Hashes the bundle,
    /// so it blocks.
    ///
    /// # Errors
    /// When the bundle is not a layer of the manifest, or can't be read.
    fn of_layer(manifest: &Verified<Manifest>, bundle: Bundle) -> Result<Self, Unpublishable> {
        let failed = |reason| Unpublishable::new(manifest, &bundle, reason);
        let layer = bundle.blob().digest().clone();
        let mut layers = manifest.value().layers().iter();
        if !layers.any(|of_manifest| of_manifest.digest == layer) {
            return Err(failed("it is not one of its layers"));
        }
        let etag = entity_tag(&bundle).ok_or_else(|| failed("it can't be read"))?;
        let inputs = Inputs {
            manifest: manifest.pinned().digest().clone(),
            layers: vec![layer],
        };
        Ok(Self {
            bundle,
            etag,
            inputs,
            differences: Arc::default(),
        })
    }

    /// A bundle that was made from layers of a verified manifest.
    ///
    /// # Errors
    /// When it was made from anything else.
    fn made(
        manifest: &Verified<Manifest>,
        bundle: Bundle,
        provenance: &Provenance,
    ) -> Result<Self, Unpublishable> {
        let failed = |reason| Unpublishable::new(manifest, &bundle, reason);
        let of_manifest = manifest.value().layers();
        let is_layer = |made_of: &Digest| of_manifest.iter().any(|one| one.digest == *made_of);
        if provenance.manifest() != manifest.value().digest()
            || !provenance.layers().iter().all(is_layer)
        {
            return Err(failed("it was made from another manifest"));
        }
        let etag = tag_of(&provenance.digest()).ok_or_else(|| failed("it has no tag"))?;
        let inputs = Inputs {
            manifest: manifest.pinned().digest().clone(),
            layers: provenance.layers().to_vec(),
        };
        Ok(Self {
            bundle,
            etag,
            inputs,
            differences: Arc::default(),
        })
    }

    /// The bytes that are served.
    pub fn bytes(&self) -> &Blob {
        self.bundle.blob()
    }

    /// Whether the bytes are those of a layer.
    pub fn bundle_is_layer(&self) -> bool {
        self.bundle.provenance().is_none()
    }

    /// The entity tag as it is sent, quotes included.
    pub fn etag(&self) -> &str {
        &self.etag
    }

    /// What it was made from.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }
}

impl Inputs {
    /// The digest of the manifest that was verified.
    pub fn manifest(&self) -> &Digest {
        &self.manifest
    }

    /// The digests of the manifest's layers that the content was made from, in its order.
    pub fn layers(&self) -> &[Digest] {
        &self.layers
    }
}

impl Unpublishable {
    fn new(manifest: &Verified<Manifest>, bundle: &Bundle, reason: &'static str) -> Self {
        Self {
            bundle: bundle.blob().digest().clone(),
            manifest: manifest.pinned().digest().clone(),
            reason,
        }
    }
}

/// Whether a verification with this end has expired.
pub(crate) fn is_expired(valid_until: Option<Timestamp>, now: Timestamp) -> bool {
    valid_until.is_some_and(|until| now > until)
}

/// The entity tag of a bundle, from its digest alone; `None` unless that is SHA-256.
pub(crate) fn tag_of(layer: &Digest) -> Option<String> {
    let digits = layer
        .hex()
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
    let hash = digits
        .collect::<Option<Vec<u8>>>()
        .filter(|_| layer.algorithm() == "sha256")?;
    Some(tag(&hash))
}

fn entity_tag(bundle: &Bundle) -> Option<String> {
    let mut hasher = Sha256::new();
    each_piece(bundle.blob(), |piece| hasher.update(piece)).ok()?;
    Some(tag(&hasher.finalize()))
}

/// Whether the bytes of a blob can still be read and still match its digest. The file of a blob may
/// have been lost with the disk; a reader then finds a defect that is not a property of the blob.
/// Blocks, and hashes the whole blob.
pub(crate) fn is_intact(blob: &Blob) -> bool {
    let mut hasher = blob.digest().hasher();
    each_piece(blob, |piece| hasher.update(piece)).is_ok() && hasher.finish() == *blob.digest()
}

fn each_piece(blob: &Blob, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut reader = blob.reader();
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok(());
        }
        take(piece);
        let length = piece.len();
        reader.consume(length);
    }
}

/// `"` base64url(sha256 of the served bytes) `"`: 43 characters, because the `etag` crate
/// cuts tags off beyond 62 bytes, which hexadecimal would exceed.
fn tag(hash: &[u8]) -> String {
    EntityTag::strong(&URL_SAFE_NO_PAD.encode(hash)).to_string()
}

#[cfg(test)]
mod tests {
    use super::{super::snapshot, *};
    use crate::{
        bundle::{LayerPlan, Limits, Signer, SigningAlgorithm},
        oci::{BlobWriter, Descriptor, NewBlob},
    };

    #[test]
    fn the_entity_tag_from_the_digest_is_that_of_the_bytes() {
        let snapshot = snapshot(1);
        assert_eq!(
            tag_of(snapshot.bundle().blob().digest()).as_deref(),
            Some(snapshot.etag())
        );
        let longer = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert_eq!(tag_of(&longer), None);
    }

    #[test]
    fn content_names_the_manifest_and_the_layer_that_it_was_made_from() {
        let snapshot = snapshot(1);
        let (content, manifest) = (snapshot.content(), snapshot.manifest().value());
        assert_eq!(content.inputs().manifest(), manifest.digest());
        assert_eq!(
            content.inputs().layers(),
            [manifest.layers()[0].digest.clone()]
        );
        assert_eq!(content.bytes().digest(), &content.inputs().layers()[0]);
        assert_eq!(content.etag(), snapshot.etag());
    }

    #[test]
    fn content_needs_a_verified_manifest_with_its_layer_and_keeps_to_that_manifest() {
        let [one, other] = [1, 2].map(snapshot);
        let (manifest, record) = (other.manifest().clone(), other.record().clone());
        let error = Snapshot::new(manifest.clone(), record.clone(), one.bundle().clone());
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("it is not one of its layers"), "{error}");
        let error = one.reverified(manifest, record).unwrap_err().to_string();
        assert!(
            error.ends_with("it was made from another manifest"),
            "{error}"
        );
        let again = one.reverified(one.manifest().clone(), one.record().clone());
        assert_eq!(again.unwrap().content().inputs(), one.content().inputs());
    }

    #[test]
    fn a_bundle_that_was_signed_again_needs_the_manifest_of_its_layer() {
        let [one, other] = [1, 2].map(snapshot);
        let signed = |kid: &str| {
            let secret = b"0123456789abcdef0123456789abcdef";
            let signer = Signer::new(secret, SigningAlgorithm::Hs256, kid, "").unwrap();
            let plan = LayerPlan::of(one.manifest().value(), None).unwrap();
            let plan = plan.signed_by(Some(Arc::new(signer)));
            let limits = Limits {
                bundle: 1 << 20,
                unpacked: 1 << 20,
                files: 10,
                bundle_manifest: 1 << 20,
            };
            let layers = [one.content().bytes().clone()];
            let assembled = plan.assemble(&layers, &limits, NewBlob::system_space());
            (
                plan.expected_digest(),
                assembled.unwrap().open(&limits).unwrap(),
            )
        };
        let publish = |of: &Snapshot, bundle: Bundle| {
            Snapshot::new(of.manifest().clone(), of.record().clone(), bundle)
        };
        let (expected, bundle) = signed("gateway");
        let snapshot = publish(&one, bundle.clone()).unwrap();
        assert!(!snapshot.content().bundle_is_layer());
        assert_eq!(
            snapshot.content().inputs().layers(),
            [one.content().bytes().digest().clone()]
        );
        // The tag does not depend on the bytes, and is known before they are fetched.
        let tag = snapshot.etag().to_owned();
        assert_eq!(
            expected.and_then(|digest| tag_of(&digest)),
            Some(tag.clone())
        );
        assert_eq!(publish(&one, signed("gateway").1).unwrap().etag(), tag);
        assert_ne!(publish(&one, signed("other").1).unwrap().etag(), tag);
        assert_ne!(one.etag(), tag);
        let error = publish(&other, bundle).unwrap_err().to_string();
        assert!(
            error.ends_with("it was made from another manifest"),
            "{error}"
        );
    }

    #[test]
    fn a_blob_whose_file_has_lost_bytes_is_not_intact() {
        let file = tempfile::tempfile().unwrap();
        let disk = file.try_clone().unwrap();
        let descriptor = Descriptor::of("a/b", b"hello world");
        let mut writer = BlobWriter::in_file(descriptor, file);
        writer.write(b"hello world").unwrap();
        let blob = writer.finish(bytes::Bytes::from).unwrap();
        assert!(is_intact(&blob));
        disk.set_len(5).unwrap();
        assert!(!is_intact(&blob));
    }
}
