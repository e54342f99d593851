//! A repository to read from: resolves tags to digests, and fetches manifests, referrers and blobs.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    blob_stream::BlobStream,
    error::{Class, RegistryError},
    hosts::Hosts,
    layout::{LayoutReader, SourceWatch, WatchedFolders},
    listing::{Listing, Member},
    referrers::{Referrers, referrers_tag},
    tag_list::{FailedTagList, SharedTagList, TagList},
};
use crate::oci::{Descriptor, Digest, Manifest, PinnedReference, Reference, Repository, Selector};

/// A repository of a registry, or an OCI layout folder, to read from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Source {
    repository: Repository,
    identity: String,
    backend: Backend,
    tags: Arc<SharedTagList>,
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
    Remote(Hosts),
    Layout(LayoutReader),
}

impl Source {
    /// `tags` is the same for all sources of this repository.
    pub(super) fn remote(
        repository: Repository,
        identity: String,
        hosts: Hosts,
        tags: Arc<SharedTagList>,
    ) -> Self {
        Self {
            repository,
            identity,
            backend: Backend::Remote(hosts),
            tags,
            watch: None,
        }
    }

    /// `tags` is the same for all sources of this folder.
    pub(super) fn layout(
        repository: Repository,
        layout: LayoutReader,
        tags: Arc<SharedTagList>,
        watch: Option<(Arc<WatchedFolders>, IntGauge)>,
    ) -> Self {
        Self {
            identity: repository.to_string(),
            repository,
            backend: Backend::Layout(layout),
            tags,
            watch,
        }
    }

    /// Whether both read the same repository by the same clients, within the same limits.
    pub(super) fn is_interchangeable(&self, other: &Self) -> bool {
        let is_same_backend = match (&self.backend, &other.backend) {
            (Backend::Remote(hosts), Backend::Remote(other)) => hosts.is_interchangeable(other),
            (Backend::Layout(layout), Backend::Layout(other)) => layout.limits() == other.limits(),
            (Backend::Remote(_), Backend::Layout(_)) | (Backend::Layout(_), Backend::Remote(_)) => {
                false
            }
        };
        is_same_backend && self.identity == other.identity
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

    /// Whether the registry has mirrors, whose lists of signatures may lack some.
    pub fn has_mirrors(&self) -> bool {
        matches!(&self.backend, Backend::Remote(hosts) if hosts.has_mirrors())
    }

    /// The same repository, read from the registry itself and not from its mirrors: for reads in
    /// the course of a write, which must not act on outdated content.
    #[must_use]
    pub fn at_origin(self) -> Self {
        self.map_hosts(Hosts::at_origin)
    }

    /// The same repository, with the lists of signatures of all its hosts. By default those of the
    /// first mirror that lists something are read, which may lack a signature: they suffice to
    /// accept an artifact, but not to refuse it.
    #[must_use]
    pub fn at_every_host(self) -> Self {
        self.map_hosts(Hosts::with_all_lists)
    }

    fn map_hosts(self, change: impl FnOnce(Hosts) -> Hosts) -> Self {
        match self.backend {
            Backend::Remote(hosts) => Self {
                backend: Backend::Remote(change(hosts)),
                ..self
            },
            Backend::Layout(_) => self,
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

    /// Repository and user, as text. Mirrors do not count: they have the same content. A cached blob
    /// is handed out only under the identity that it was fetched with.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits for a permit to fetch an artifact, from its manifest to its bundle. The permits bound
    /// the concurrent transfers from one host or folder, whatever the number of bundles: each
    /// takes memory and connections.
    pub async fn transfer_permit(&self) -> TransferPermit {
        let transfers = match &self.backend {
            Backend::Remote(hosts) => hosts.transfers(),
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
            (Backend::Remote(hosts), Selector::Tag(tag)) => hosts.look_up(tag, lookup).await?,
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

    /// The tags of the repository, from a list that was requested at `not_before` or later. The
    /// sources of one repository share their lists. A registry that offers validators for a list
    /// sends only what has changed.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, has no such repository, or sends a list that is
    /// incomplete or too long. The error is shared by the callers that waited for the list.
    pub async fn tags(&self, not_before: Instant) -> Result<TagList, FailedTagList> {
        match &self.backend {
            // A mirror may list only what it has fetched, and a lower version would be chosen.
            Backend::Remote(hosts) => self.tags.remote(hosts.origin(), not_before).await,
            Backend::Layout(layout) => self.tags.layout(layout, not_before).await,
        }
    }

    /// The manifest with a pinned digest; its bytes are verified against the digest.
    ///
    /// # Errors
    /// `Missing` when the repository does not have it.
    pub async fn manifest(&self, pinned: &PinnedReference) -> Result<Manifest, RegistryError> {
        let digest = pinned.digest();
        let found = match &self.backend {
            Backend::Remote(hosts) => hosts.manifest(digest).await?,
            Backend::Layout(layout) => layout.manifest(digest.clone()).await?,
        };
        found.ok_or_else(|| self.missing("manifest", digest))
    }

    /// The manifest that a tag names now; `None` without such a tag, which for signatures is no
    /// error. A mirror is asked only if the registry itself fails.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or sends an invalid manifest.
    pub async fn tagged_manifest(&self, tag: &str) -> Result<Option<Manifest>, RegistryError> {
        match &self.backend {
            Backend::Remote(hosts) => hosts.tagged_manifest(tag).await,
            Backend::Layout(layout) => match layout.resolve(Selector::Tag(tag.to_owned())).await? {
                Some(digest) => layout.manifest(digest).await,
                None => Ok(None),
            },
        }
    }

    /// As [`Self::tagged_manifest`], for a tag that belongs to an artifact which has been read: a
    /// tag that is refused counts as missing.
    ///
    /// # Errors
    /// When the registry does not answer, or sends an invalid manifest.
    pub async fn attached_manifest(&self, tag: &str) -> Result<Option<Manifest>, RegistryError> {
        unless_denied(self.tagged_manifest(tag).await)
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
            Backend::Remote(hosts) => hosts.described_manifest(descriptor).await?,
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
            Backend::Remote(hosts) => hosts.tagged_listing(tag, member).await,
            Backend::Layout(_) => self
                .tagged_manifest(tag)
                .await
                .map(|found| found.map(|found| Listing::of_tag(tag, found.raw(), member, None))),
        };
        match read {
            Ok(found) => Ok(found.unwrap_or_default()),
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
            Backend::Remote(hosts) => hosts.blob(descriptor).await?,
            Backend::Layout(layout) => layout.blob(descriptor).await?,
        };
        found.ok_or_else(|| self.missing("blob", &descriptor.digest))
    }

    /// The referrers of `subject`, from the referrers API and from the referrers tag: a registry
    /// that gained the API later keeps older entries under the tag only. The lists of mirrors are
    /// read only where the registry itself does not deliver its own. At most
    /// `limit` descriptors, unfiltered; being listed proves nothing about them. A list that can't be
    /// used (too long, malformed) is reported in `skipped` and does not affect the other one: any
    /// client that may push can write such a list. `subject` has been read: a list that is refused
    /// counts as missing.
    ///
    /// # Errors
    /// When the registry does not answer; a registry without the API is no error. Where it has
    /// mirrors and does not answer, the list is theirs, with the failure in `failure`.
    pub async fn referrers(
        &self,
        subject: &PinnedReference,
        limit: usize,
    ) -> Result<Referrers, RegistryError> {
        let mut found = self.available_referrers(subject, limit).await;
        match found.failure.take() {
            Some(failure) if !self.is_out_of_service(&failure) => Err(failure),
            failure => Ok(Referrers { failure, ..found }),
        }
    }

    /// As [`Self::referrers`], without the list that the registry does not deliver: its failure is
    /// in `failure`.
    pub async fn available_referrers(&self, subject: &PinnedReference, limit: usize) -> Referrers {
        let of_origin = self.clone().map_hosts(Hosts::with_lists_of_origin);
        let listed = of_origin.listed_referrers(subject, limit).await;
        let mut found = available(listed.map(Option::unwrap_or_default));
        found.merge(available(of_origin.tagged_referrers(subject).await));
        found.entries.truncate(limit);
        found
    }

    /// Whether an error means that the registry is out of service, while its mirrors may have what
    /// was asked for.
    pub fn is_out_of_service(&self, failure: &RegistryError) -> bool {
        self.has_mirrors()
            && matches!(
                failure.class(),
                Class::Transient | Class::RateLimited { .. }
            )
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
        let Backend::Remote(hosts) = &self.backend else {
            return Ok(None);
        };
        let found = hosts.referrers(subject.digest(), limit).await?;
        Ok(found.map(Referrers::from))
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
            Backend::Remote(hosts) => hosts.lacks_referrers_api(),
            Backend::Layout(_) => false,
        }
    }

    /// Records for [`Self::lacks_referrers_api`] that this repository, of which a manifest has
    /// been read, has no referrers API.
    pub fn record_no_referrers_api(&self) {
        if let Backend::Remote(hosts) = &self.backend {
            hosts.record_no_referrers_api();
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

/// What was listed, or the failure.
fn available(listed: Result<Referrers, RegistryError>) -> Referrers {
    let mut found = listed.unwrap_or_else(|failure| Referrers {
        failure: Some(failure),
        ..Referrers::default()
    });
    // Beside the list of a mirror as well.
    found.failure.take_if(|failure| is_denied(failure));
    found
}

fn unless_denied<T: Default>(found: Result<T, RegistryError>) -> Result<T, RegistryError> {
    match found {
        Err(error) if is_denied(&error) => Ok(T::default()),
        found => found,
    }
}

/// Some registries answer 401 or 403 for something that is missing (Artifactory, ECR).
fn is_denied(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Denied { .. })
}
