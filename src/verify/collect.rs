//! Gathering evidence from a registry, within bounds.

use super::{
    bundle_v03,
    evidence::{Evidence, LegacySignature, SignatureBundle},
    legacy,
};
use crate::{
    oci::{Blob, Descriptor, Manifest, PinnedReference},
    registry::{Class, RegistryError, Source},
};

/// Referrers that are looked at; whoever can push can attach more.
const MAX_REFERRERS: usize = 64;
/// Simple signatures that are looked at.
const MAX_LEGACY: usize = 32;
/// One piece of signature material: bundles have a few KiB.
const MAX_PIECE: u64 = 1 << 20;

/// Collects what `source` holds to vouch for `subject`, at most `limit` bytes in all
/// (`limits.evidence`). `source` is the artifact's own repository, or the one that the policy
/// names for signatures: they are found by the digest alone. What can't be used is skipped and noted; it is neither an error nor
/// a signature.
///
/// # Errors
/// When the registry does not answer or refuses: that is not the same as "unsigned".
pub async fn collect(source: &Source, subject: &PinnedReference, limit: u64) -> Result<Evidence, RegistryError> {
    let mut collector = Collector { source, left: limit, evidence: Evidence::default() };
    collector.referrers(subject).await?;
    collector.legacy_tag(subject).await?;
    Ok(collector.evidence)
}

struct Collector<'a> {
    source: &'a Source,
    left: u64,
    evidence: Evidence,
}

impl Collector<'_> {
    async fn referrers(&mut self, subject: &PinnedReference) -> Result<(), RegistryError> {
        let referrers = self.source.referrers(subject, MAX_REFERRERS).await?;
        self.evidence.skipped.extend(referrers.skipped);
        for entry in referrers.entries {
            let pinned = self.source.repository().pin(entry.digest.clone());
            if !self.afford(&entry) {
                continue;
            }
            let Some(manifest) = self.usable(self.source.manifest(&pinned).await, &entry)? else { continue };
            // What the list says about sizes is no better than what it says about types.
            if manifest.raw().len() as u64 != entry.size {
                self.evidence.skipped.push(format!("{}: not as long as the list of referrers says", entry.digest));
                continue;
            }
            // What the list says about types is unreliable; the manifest itself decides.
            match manifest.layers() {
                [layer] if bundle_v03::is_bundle(&layer.media_type) => {
                    if self.afford(layer)
                        && let Some(bundle) = self.piece(layer).await?
                    {
                        self.evidence.bundles.push(SignatureBundle { referrer: manifest.raw().clone(), bundle });
                    }
                }
                // cosign 2 with `--registry-referrers-mode=oci-1-1`: its `.sig` image as a referrer.
                _ => self.simple_signatures(&manifest).await?,
            }
        }
        Ok(())
    }

    async fn legacy_tag(&mut self, subject: &PinnedReference) -> Result<(), RegistryError> {
        let tag = legacy::tag(subject.digest());
        let manifest = match self.source.tagged_manifest(&tag).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Ok(()),
            Err(error) if error.class() == Class::Defect => {
                self.evidence.skipped.push(format!("{tag}: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if !self.pay(&manifest.descriptor()) {
            return Ok(());
        }
        self.simple_signatures(&manifest).await
    }

    async fn simple_signatures(&mut self, manifest: &Manifest) -> Result<(), RegistryError> {
        for layer in manifest.layers() {
            let Some(signature) = legacy::signature_of(layer) else { continue };
            if self.evidence.legacy.len() >= MAX_LEGACY {
                let sentence = format!("{}: more than {MAX_LEGACY} signatures", manifest.digest());
                self.evidence.skipped.push(sentence);
                return Ok(());
            }
            if self.afford(layer)
                && let Some(payload) = self.piece(layer).await?
            {
                self.evidence.legacy.push(LegacySignature { payload, ..signature });
            }
        }
        Ok(())
    }

    async fn piece(&mut self, descriptor: &Descriptor) -> Result<Option<bytes::Bytes>, RegistryError> {
        let fetched = match self.source.blob(descriptor).await {
            Ok(stream) => stream.collect().await,
            Err(error) => Err(error),
        };
        let blob = self.usable(fetched, descriptor)?;
        Ok(blob.as_ref().and_then(Blob::in_memory).cloned())
    }

    /// A piece that is missing, broken or nonsense is noted and skipped; a registry that
    /// does not answer is an error.
    fn usable<T>(
        &mut self,
        fetched: Result<T, RegistryError>,
        descriptor: &Descriptor,
    ) -> Result<Option<T>, RegistryError> {
        match fetched {
            Ok(value) => Ok(Some(value)),
            Err(error @ (RegistryError::Missing { .. } | RegistryError::Mismatch { .. })) => {
                self.evidence.skipped.push(error.to_string());
                Ok(None)
            }
            Err(error) if error.class() == Class::Defect => {
                self.evidence.skipped.push(format!("{}: {error}", descriptor.digest));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn afford(&mut self, descriptor: &Descriptor) -> bool {
        let size = descriptor.size;
        if size > MAX_PIECE {
            self.evidence.skipped.push(format!("{}: {size} bytes are too many for a signature", descriptor.digest));
            return false;
        }
        self.pay(descriptor)
    }

    fn pay(&mut self, descriptor: &Descriptor) -> bool {
        match self.left.checked_sub(descriptor.size) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.evidence.skipped.push(format!("{}: beyond limits.evidence", descriptor.digest));
                false
            }
        }
    }
}
