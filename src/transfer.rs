//! Copying an artifact from one place to another, with what vouches for it: the path of
//! `push`, `pull` and `copy`, and of whoever carries policy across an air gap.
//!
//! Everything is copied byte for byte, so every digest, and every signature over one, stays
//! good. A name moves last: a reader sees the old artifact or the new one with all its parts
//! and signatures.

use std::collections::HashSet;

use crate::{
    oci::{Blob, BlobWriter, Descriptor, Digest, Document, Manifest, PinnedReference, Repository, WriteError},
    registry::{BlobStream, Destination, Passage, Progress, RegistryError, Source},
};

/// Indexes within indexes, and signatures of signatures, are followed so far.
const MAX_DEPTH: usize = 4;
/// Manifests of one artifact, referrers included.
const MAX_MANIFESTS: usize = 1000;
/// Referrers of one manifest.
const MAX_REFERRERS: usize = 500;
/// Blobs up to this size wait in memory, others in a file without a name.
const IN_MEMORY: u64 = 1 << 20;
/// What cosign puts beside an artifact in its older format.
const LEGACY: [&str; 3] = ["sig", "att", "sbom"];

/// A way from one repository to another.
#[derive(Clone, Copy)]
pub struct Transfer<'a> {
    /// Where the artifact is.
    pub from: &'a Source,
    /// Where it shall be.
    pub to: &'a Destination,
    /// Whether what refers to it comes along.
    pub signatures: Signatures,
    /// Repositories beside the destination that may have the same blobs.
    pub neighbours: &'a [Repository],
    /// A blob larger than this is not copied.
    pub max_size: u64,
    /// Hears how far it is.
    pub progress: &'a dyn Progress,
}

/// Whether signatures and other referrers come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signatures {
    /// They do.
    Along,
    /// The artifact alone.
    Left,
}

/// Why an artifact did not arrive. What did arrive stays, without a name, and need not be
/// sent again.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// One of the two places, which the message names.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A blob over the limit.
    #[error("blob {digest} has {size} bytes, over the limit of {limit}; allow more with --max-size")]
    TooLarge {
        /// Which.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// More than anybody means by an artifact.
    #[error("{0}: its indexes and signatures go too deep or are too many to be copied")]
    Endless(PinnedReference),
    /// The disk, for blobs on their way.
    #[error("a temporary file: {0}; make room, or set TMPDIR to a folder that has some")]
    Spool(#[source] std::io::Error),
}

/// What to know of a copy beside that it worked.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Signatures and other referrers that came along.
    pub referrers: usize,
    /// Those that are listed and can't be had, in words.
    pub skipped: Vec<String>,
}

/// How a manifest is put where it shall be.
#[derive(Clone, Copy)]
enum Put<'a> {
    ByDigest,
    UnderTag(&'a str),
    /// As a referrer of this.
    Attached(&'a Digest),
}

/// The manifests that have been dealt with.
#[derive(Default)]
struct Journey {
    seen: HashSet<Digest>,
    copied: Copied,
}

impl Transfer<'_> {
    /// Copies `what`, then lets `tags` name it; without tags it is found by its digest.
    ///
    /// # Errors
    /// See [`TransferError`]. No tag has moved then.
    pub async fn run(&self, what: &PinnedReference, tags: &[String]) -> Result<Copied, TransferError> {
        let (manifest, copied) = self.bring(what).await?;
        for tag in tags {
            self.to.put_manifest(manifest.raw(), manifest.media_type(), Some(tag)).await?;
        }
        if tags.is_empty() {
            self.to.list(&manifest.descriptor()).await?;
        }
        Ok(copied)
    }

    /// Copies `what` and leaves its name to the caller.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn bring(&self, what: &PinnedReference) -> Result<(Manifest, Copied), TransferError> {
        let manifest = self.from.manifest(what).await?;
        let mut journey = Journey::default();
        self.tree(&manifest, Put::ByDigest, &mut journey, 0).await?;
        Ok((manifest, journey.copied))
    }

    /// A manifest with everything below it and everything that refers to it.
    async fn tree(
        &self,
        manifest: &Manifest,
        put: Put<'_>,
        journey: &mut Journey,
        depth: usize,
    ) -> Result<(), TransferError> {
        if !journey.seen.insert(manifest.digest().clone()) {
            return Ok(());
        }
        if depth > MAX_DEPTH || journey.seen.len() > MAX_MANIFESTS {
            return Err(TransferError::Endless(self.from.repository().pin(manifest.digest().clone())));
        }
        match manifest.document() {
            Document::Image { config, layers, .. } => {
                for blob in layers.iter().chain([&**config]) {
                    self.blob(blob).await?;
                }
            }
            Document::Index { manifests } => {
                for child in manifests {
                    let child = self.from.manifest(&self.from.repository().pin(child.digest.clone())).await?;
                    Box::pin(self.tree(&child, Put::ByDigest, journey, depth + 1)).await?;
                }
            }
        }
        match put {
            Put::ByDigest => self.to.put_manifest(manifest.raw(), manifest.media_type(), None).await?,
            Put::UnderTag(tag) => self.to.put_manifest(manifest.raw(), manifest.media_type(), Some(tag)).await?,
            Put::Attached(to) => self.to.attach(manifest.raw(), &self.to.repository().pin(to.clone())).await?,
        }
        match self.signatures {
            Signatures::Along => self.referrers(manifest.digest(), journey, depth).await,
            Signatures::Left => Ok(()),
        }
    }

    async fn referrers(&self, subject: &Digest, journey: &mut Journey, depth: usize) -> Result<(), TransferError> {
        let pinned = self.from.repository().pin(subject.clone());
        let listed = self.from.referrers(&pinned, MAX_REFERRERS).await?;
        journey.copied.skipped.extend(listed.skipped);
        for entry in listed.entries {
            let referrer = match self.from.manifest(&self.from.repository().pin(entry.digest.clone())).await {
                // Whoever can push can list what is not there.
                Err(error @ (RegistryError::Missing { .. } | RegistryError::Manifest(_))) => {
                    journey.copied.skipped.push(error.to_string());
                    continue;
                }
                found => found?,
            };
            Box::pin(self.tree(&referrer, Put::Attached(subject), journey, depth + 1)).await?;
            journey.copied.referrers += 1;
        }
        for kind in LEGACY {
            let tag = format!("{}-{}.{kind}", subject.algorithm(), subject.hex());
            let Some(manifest) = self.from.tagged_manifest(&tag).await? else { continue };
            Box::pin(self.tree(&manifest, Put::UnderTag(&tag), journey, depth + 1)).await?;
            journey.copied.referrers += 1;
        }
        Ok(())
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<(), TransferError> {
        if descriptor.size > self.max_size {
            let (digest, size, limit) = (descriptor.digest.clone(), descriptor.size, self.max_size);
            return Err(TransferError::TooLarge { digest, size, limit });
        }
        if self.to.has_blob(descriptor).await? {
            self.progress.finished(descriptor, Passage::Present);
            return Ok(());
        }
        for neighbour in [self.from.repository()].into_iter().chain(self.neighbours) {
            if neighbour != self.to.repository() && self.to.mount(descriptor, neighbour).await? {
                self.progress.finished(descriptor, Passage::Mounted);
                return Ok(());
            }
        }
        let stream = self.from.blob(descriptor).await?;
        let Some(stream) = self.to.take(stream, self.progress).await? else { return Ok(()) };
        let blob = self.spool(stream).await?;
        Ok(self.to.send_blob(descriptor, &blob, self.progress).await?)
    }

    /// Fetches a blob whole and checks it before the first byte of it goes on.
    async fn spool(&self, mut stream: BlobStream) -> Result<Blob, TransferError> {
        let descriptor = stream.descriptor().clone();
        let writer = match descriptor.size {
            0..=IN_MEMORY => BlobWriter::in_memory(descriptor),
            _ => BlobWriter::in_file(descriptor, tempfile::tempfile().map_err(TransferError::Spool)?),
        };
        let writer = stream.pour(writer, BlobWriter::write, self.progress).await?;
        let writer = writer.map_err(|error| match error {
            WriteError::Io(error) => TransferError::Spool(error),
            WriteError::Mismatch(mismatch) => stream.mismatch(&mismatch).into(),
        })?;
        writer.finish(Into::into).map_err(|mismatch| stream.mismatch(&mismatch).into())
    }
}

impl std::fmt::Debug for Transfer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer").field("from", self.from).field("to", self.to).finish_non_exhaustive()
    }
}
