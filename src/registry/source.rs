//! A repository to read from: resolves tags to digests, and fetches manifests, referrers and blobs.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    blob_stream::BlobStream,
    error::RegistryError,
    layout::{LayoutReader, SourceWatch, WatchedFolders},
    listing::{Listing, Member},
    referrers::{Referrers, referrers_tag},
    remote::Remote,
};
use crate::oci::{Descriptor, Digest, Manifest, PinnedReference, Reference, Repository, Selector};

/// A repository of a registry, or an OCI layout folder, to read from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Source {
    repository: Repository,
    identity: String,
    backend: Backend,
    /// What watches layout folders, and the metric of folders that can't be watched.
    watch: Option<(Arc<WatchedFolders>, IntGauge)>,
}

/// A resolved reference.
#[derive(Debug)]
pub struct Resolved {
    /// The reference with its digest.
    pub pinned: PinnedReference,
    /// Its manifest, where the request that resolved the tag has brought it.
    pub manifest: Option<Manifest>,
}

/// What a caller needs of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The digest: one HEAD. Docker Hub counts a GET as a pull, and a HEAD not.
    Digest,
    /// The manifest as well: one GET.
    Manifest,
}

/// Held while an artifact is fetched ([`Source::transfer_permit`]).
#[derive(Debug)]
pub struct TransferPermit {
    /// `None` if the semaphore is closed, which does not happen.
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug, Clone)]
enum Backend {
    Remote(Remote),
    Layout(LayoutReader),
}

impl Source {
    pub(super) fn remote(repository: Repository, identity: String, remote: Remote) -> Self {
        Self {
            repository,
            identity,
            backend: Backend::Remote(remote),
            watch: None,
        }
    }

    pub(super) fn layout(
        repository: Repository,
        layout: LayoutReader,
        watch: Option<(Arc<WatchedFolders>, IntGauge)>,
    ) -> Self {
        Self {
            identity: repository.to_string(),
            repository,
            backend: Backend::Layout(layout),
            watch,
        }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// In a layout, reads tags as full references `repository:tag`; the counterpart of
    /// [`super::Destination::with_tag_prefix`].
    #[must_use]
    pub fn with_tag_prefix(self, repository: &Repository) -> Self {
        match self.backend {
            Backend::Layout(layout) => Self {
                backend: Backend::Layout(layout.with_tag_prefix(repository)),
                ..self
            },
            Backend::Remote(_) => self,
        }
    }

    /// Reports changes of what `reference` names. `None` for a registry, for a digest, and unless
    /// the registries are made for [`super::Registries::watching`].
    pub fn watch(&self, reference: &Reference) -> Option<SourceWatch> {
        let (folders, unwatched) = self.watch.clone()?;
        match &self.backend {
            Backend::Layout(layout) => layout.watch(reference.selector(), folders, unwatched),
            Backend::Remote(_) => None,
        }
    }

    /// Repository and user, as text. A cached blob is handed out only under the identity that it
    /// was fetched with.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits for a permit to fetch an artifact, from its manifest to its bundle. The permits bound
    /// the concurrent transfers from one host or folder, whatever the number of bundles: each
    /// takes memory and connections.
    pub async fn transfer_permit(&self) -> TransferPermit {
        let transfers = match &self.backend {
            Backend::Remote(remote) => remote.client.transfers(),
            Backend::Layout(layout) => layout.transfers(),
        };
        TransferPermit {
            _permit: Arc::clone(transfers).acquire_owned().await.ok(),
        }
    }

    /// Resolves a reference to a digest: one HEAD for a tag, no request for a digest.
    ///
    /// # Errors
    /// `NoSuchReference` when the registry has no such tag.
    pub async fn resolve(&self, reference: &Reference) -> Result<PinnedReference, RegistryError> {
        let resolved = self.look_up(reference, Lookup::Digest).await?;
        Ok(resolved.pinned)
    }

    /// Resolves a reference to a digest, with the manifest where the same request can bring it: a
    /// tag that is resolved twice may have moved meanwhile. A manifest is returned only if its
    /// bytes have the digest, and it is short; otherwise [`Self::manifest`] fetches it. No request
    /// for a digest.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn look_up(
        &self,
        reference: &Reference,
        lookup: Lookup,
    ) -> Result<Resolved, RegistryError> {
        if let Some(pinned) = reference.pinned() {
            let manifest = None;
            return Ok(Resolved { pinned, manifest });
        }
        let found = match (&self.backend, reference.selector()) {
            (Backend::Remote(remote), Selector::Tag(tag)) => remote.look_up(tag, lookup).await?,
            (Backend::Remote(_), _) => None,
            (Backend::Layout(layout), selector) => {
                let digest = layout.resolve(selector.clone()).await?;
                digest.map(|digest| (digest, None))
            }
        };
        match found {
            Some((digest, manifest)) => Ok(Resolved {
                pinned: self.repository.pin(digest),
                manifest,
            }),
            None => Err(RegistryError::NoSuchReference {
                reference: reference.clone(),
            }),
        }
    }

    /// The manifest with a pinned digest; its bytes are verified against the digest.
    ///
    /// # Errors
    /// `Missing` when the repository does not have it.
    pub async fn manifest(&self, pinned: &PinnedReference) -> Result<Manifest, RegistryError> {
        let digest = pinned.digest();
        let found = match &self.backend {
            Backend::Remote(remote) => remote.manifest(digest).await?,
            Backend::Layout(layout) => layout.manifest(digest.clone()).await?,
        };
        found.ok_or_else(|| self.missing("manifest", digest))
    }

    /// The manifest that a tag names now; `None` without such a tag, which for signatures is no
    /// error.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or sends an invalid manifest.
    pub async fn tagged_manifest(&self, tag: &str) -> Result<Option<Manifest>, RegistryError> {
        match &self.backend {
            Backend::Remote(remote) => remote.tagged_manifest(tag).await,
            Backend::Layout(layout) => match layout.resolve(Selector::Tag(tag.to_owned())).await? {
                Some(digest) => layout.manifest(digest).await,
                None => Ok(None),
            },
        }
    }

    /// The manifest that a descriptor from an untrusted list names. Reads at most as many bytes as
    /// the descriptor says.
    ///
    /// # Errors
    /// As [`Self::manifest`]; `TooLarge` when it is longer than the descriptor says.
    pub async fn described_manifest(
        &self,
        descriptor: &Descriptor,
    ) -> Result<Manifest, RegistryError> {
        let found = match &self.backend {
            Backend::Remote(remote) => remote.described_manifest(descriptor).await?,
            Backend::Layout(layout) => layout.manifest(descriptor.digest.clone()).await?,
        };
        found.ok_or_else(|| self.missing("manifest", &descriptor.digest))
    }

    /// The descriptors in the document that a tag names now, empty without such a tag. A document
    /// or entry that can't be used is reported in `skipped`: any client that may push can write
    /// one.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn tagged_listing(
        &self,
        tag: &str,
        member: Member,
    ) -> Result<Listing, RegistryError> {
        let read = match &self.backend {
            Backend::Remote(remote) => remote.tagged(tag).await,
            Backend::Layout(_) => self
                .tagged_manifest(tag)
                .await
                .map(|found| found.map(|found| (found.raw().clone(), None))),
        };
        match read {
            Ok(None) => Ok(Listing::default()),
            Ok(Some((raw, content_type))) => {
                Ok(match Listing::read(&raw, member, content_type.as_deref()) {
                    Ok(listing) => listing.with_name(tag),
                    Err(reason) => Listing {
                        size: raw.len() as u64,
                        ..Listing::unusable(tag, reason)
                    },
                })
            }
            Err(error) if error.is_unusable_list() => Ok(Listing::unusable(tag, error)),
            Err(error) => Err(error),
        }
    }

    /// Starts the transfer of a blob.
    ///
    /// # Errors
    /// `Missing` when the repository does not have it.
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<BlobStream, RegistryError> {
        let found = match &self.backend {
            Backend::Remote(remote) => remote.blob(descriptor).await?,
            Backend::Layout(layout) => layout.blob(descriptor).await?,
        };
        found.ok_or_else(|| self.missing("blob", &descriptor.digest))
    }

    /// The referrers of `subject`, from the referrers API and from the referrers tag: a registry
    /// that gained the API later keeps older entries under the tag only. At most `limit`
    /// descriptors, unfiltered; being listed proves nothing about them. A list that can't be used
    /// (too long, malformed) is reported in `skipped` and does not affect the other one: any
    /// client that may push can write such a list.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses; a registry without the API is no error.
    pub async fn referrers(
        &self,
        subject: &PinnedReference,
        limit: usize,
    ) -> Result<Referrers, RegistryError> {
        let listed = self.listed_referrers(subject, limit).await?;
        let mut found = listed.unwrap_or_default();
        found.merge(self.tagged_referrers(subject).await?);
        if let Some(failure) = found.failure.take() {
            return Err(failure);
        }
        found.entries.truncate(limit);
        Ok(found)
    }

    /// The referrers of `subject` from the referrers API, as [`Self::referrers`]; `None` where the
    /// registry has no such API, or the source is a layout.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn listed_referrers(
        &self,
        subject: &PinnedReference,
        limit: usize,
    ) -> Result<Option<Referrers>, RegistryError> {
        let Backend::Remote(remote) = &self.backend else {
            return Ok(None);
        };
        let listing = match remote.referrers(subject.digest(), limit).await {
            Ok(None) => return Ok(None),
            Ok(Some(listing)) => listing.with_name("referrers"),
            Err(error) if error.is_unusable_list() => Listing::unusable("referrers", error),
            Err(error) => return Err(error),
        };
        Ok(Some(listing.into()))
    }

    /// The referrers of `subject` from the referrers tag, as [`Self::referrers`].
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn tagged_referrers(
        &self,
        subject: &PinnedReference,
    ) -> Result<Referrers, RegistryError> {
        let tag = referrers_tag(subject.digest());
        let listing = self.tagged_listing(&tag, Member::Manifests).await?;
        Ok(listing.into())
    }

    /// Whether earlier answers say that [`Self::listed_referrers`] will find no API. They are
    /// remembered for an hour.
    pub fn lacks_referrers_api(&self) -> bool {
        match &self.backend {
            Backend::Remote(remote) => remote.client.capabilities.lacks_referrers_api(&remote.path),
            Backend::Layout(_) => false,
        }
    }

    /// Records for [`Self::lacks_referrers_api`] that this repository, of which a manifest has
    /// been read, has no referrers API.
    pub fn record_no_referrers_api(&self) {
        if let Backend::Remote(remote) = &self.backend {
            let capabilities = &remote.client.capabilities;
            capabilities.record_no_referrers_api(&remote.path);
        }
    }

    fn missing(&self, what: &'static str, digest: &Digest) -> RegistryError {
        RegistryError::Missing {
            what,
            digest: digest.clone(),
            repository: self.repository.to_string(),
        }
    }
}
