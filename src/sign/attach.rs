//! Attaches signatures to an artifact in a registry.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::{Attachment, LegacyImage, LegacySignature, SignError};
use crate::{
    oci::{Blob, BlobMismatch, Descriptor, NewManifest, PinnedReference, cosign, media_type},
    registry::{Destination, RegistryError, Source},
};

/// The maximum number of attempts to append while other signers write the same tag.
const MAX_APPEND_ATTEMPTS: usize = 8;
/// The pause before the check of a write: longer than a signer takes between reading and writing.
const SETTLE_DELAY: Duration = Duration::from_millis(250);

/// An error in attaching a signature.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The registry failed or refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The existing signatures can't be extended.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Other signers keep writing the same tag.
    #[error("tag {0}: other writers keep replacing it; try again")]
    Contended(String),
    /// Never in practice: the descriptor is computed from the bytes.
    #[error(transparent)]
    Blob(#[from] BlobMismatch),
}

impl Attachment {
    /// Attaches the bundle to `subject` as a referrer.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn attach(
        &self,
        subject: &PinnedReference,
        to: &Destination,
    ) -> Result<(), AttachError> {
        put(
            to,
            media_type::EMPTY,
            Bytes::from_static(NewManifest::CONFIG),
        )
        .await?;
        put(to, cosign::BUNDLE, self.bundle.clone()).await?;
        Ok(to.attach(&self.referrer, subject).await?)
    }
}

impl LegacySignature {
    /// Appends the signature to those at the `.sig` tag of `subject`. Registries have no
    /// conditional write, so this reads the tag just before it writes, and once more a moment
    /// later, when concurrent signers have written as well.
    ///
    /// # Errors
    /// When the registry does not answer or refuses, or the tag holds something else.
    pub async fn append(
        &self,
        subject: &PinnedReference,
        from: &Source,
        to: &Destination,
    ) -> Result<(), AttachError> {
        // A mirror may lack signatures, which would be lost.
        let from = from.clone().at_origin();
        let tag = cosign::signature_tag(subject.digest())
            .ok_or_else(|| SignError::TagTooLong(subject.digest().algorithm().to_owned()))?;
        put(to, &self.layer().media_type, self.payload.clone()).await?;
        for _ in 0..MAX_APPEND_ATTEMPTS {
            let present = from.tagged_manifest(&tag).await?;
            let image = LegacyImage::with(present.as_ref(), self)?;
            put(to, media_type::IMAGE_CONFIG, image.config.clone()).await?;
            let now = from.tagged_manifest(&tag).await?;
            if now.as_ref().map(|now| now.digest())
                != present.as_ref().map(|present| present.digest())
            {
                continue;
            }
            to.put_manifest(&image.manifest, media_type::OCI_MANIFEST, Some(&tag))
                .await?;
            sleep(SETTLE_DELAY).await;
            let kept = from.tagged_manifest(&tag).await?;
            if kept.is_some_and(|kept| kept.layers().contains(self.layer())) {
                return Ok(());
            }
        }
        Err(AttachError::Contended(tag))
    }
}

async fn put(to: &Destination, media_type: &str, bytes: Bytes) -> Result<(), AttachError> {
    let descriptor = Descriptor::of(media_type, &bytes);
    let blob = Blob::check(&descriptor, bytes)?;
    Ok(to.put_blob(&descriptor, &blob, &()).await?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::time::timeout;

    use super::*;
    use crate::{
        metrics::Metrics,
        oci::{Layout, Reference},
        registry::{ReadLimits, Registries, RegistryMetrics},
        sign::{KeyPair, SigningRequest},
    };

    const LIMITS: ReadLimits = ReadLimits {
        manifest: 1 << 20,
        evidence: 1 << 20,
        bundle: 1 << 20,
    };

    fn signature(subject: &Descriptor) -> LegacySignature {
        LegacySignature::sign(
            &KeyPair::generate().unwrap(),
            &SigningRequest::of(subject.clone()),
            "r.example/a",
        )
        .unwrap()
    }

    /// cosign overwrites the tag without reading it again: a cosign that read before this program
    /// and writes after it removes the signature.
    #[tokio::test(start_paused = true)]
    async fn a_signature_that_another_signer_overwrites_is_added_again() {
        let folder = tempfile::tempdir().unwrap();
        Layout::create(folder.path()).unwrap();
        let place: Reference = format!("oci-layout:{}:v1", folder.path().display())
            .parse()
            .unwrap();
        let registries = Registries::new(
            BTreeMap::new(),
            LIMITS,
            RegistryMetrics::new(&Metrics::new()).unwrap(),
        );
        let from = registries.source(place.repository()).unwrap();
        let to = registries.destination(place.repository()).unwrap();
        let subject = Descriptor::of(media_type::OCI_MANIFEST, b"manifest");
        let (ours, theirs) = (signature(&subject), signature(&subject));
        let tag = cosign::signature_tag(&subject.digest).unwrap();
        let other = async {
            let image = LegacyImage::with(None, &theirs).unwrap();
            let written = async {
                while from.tagged_manifest(&tag).await.unwrap().is_none() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(Duration::from_secs(60), written)
                .await
                .expect("our signature is written");
            to.put_manifest(&image.manifest, media_type::OCI_MANIFEST, Some(&tag))
                .await
                .unwrap();
        };
        let pinned = place.repository().pin(subject.digest.clone());
        let (added, ()) = tokio::join!(ours.append(&pinned, &from, &to), other);
        added.unwrap();
        let kept = from.tagged_manifest(&tag).await.unwrap().unwrap();
        assert_eq!(
            kept.layers(),
            [theirs.layer().clone(), ours.layer().clone()]
        );
    }
}
