//! Fetches evidence from a registry. A client that may push can attach thousands of referrers, so
//! the limit is on bytes (`limits.evidence`) and not on the number of candidates: likely
//! signatures come first, then small ones, and the position in a list decides nothing. An
//! unusable piece does not affect the others.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::time::{Duration, Instant};

use super::{
    budget::{Budget, MAX_PIECE_BYTES, MIN_MANIFEST_BYTES, Notes},
    bundle_v03,
    collection::{Collection, ReferrersApi},
    evidence::{BeyondLimit, Evidence, LegacySignature, SignatureBundle},
    legacy,
    policy::Format,
};
use crate::{
    oci::{Blob, Descriptor, Digest, Manifest, cosign, media_type},
    registry::{Class, Member, Referrers, RegistryError, Source},
};

/// The number of concurrent requests.
const CONCURRENT_REQUESTS: usize = 8;
/// The number of failed requests after which the registry counts as failing.
const MAX_FAILURES: usize = 8;
/// No request begins once this time has passed since the first failed one. It is counted from its
/// end: one request to a registry that does not answer takes as long, with its retries.
const MAX_TIME_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// The share of the budget that manifests leave to the pieces that they name: an eighth.
const RESERVED_SHARE: u64 = 8;

/// The state of a collection.
pub(super) struct Collector<'a> {
    collection: Collection<'a>,
    source: &'a Source,
    budget: Budget,
    /// When the first request failed.
    failed_at: Option<Instant>,
    /// The listed manifests, likely signatures first.
    referrers: VecDeque<Descriptor>,
    /// The signature material that they name.
    pieces: VecDeque<Piece>,
    known: HashSet<(LegacySignature, Digest, u64)>,
    evidence: Evidence,
    notes: Notes,
    /// The number of entries in the lists, and of those that `limits.evidence` left unread.
    listed: usize,
    unchecked: usize,
    failures: usize,
    unavailable: Option<RegistryError>,
}

/// A blob to fetch, and the candidate that it belongs to.
struct Piece {
    blob: Descriptor,
    of: Candidate,
}

enum Candidate {
    /// A Sigstore bundle with the manifest that names it.
    Bundle { referrer: Bytes },
    /// The payload of a legacy signature.
    Legacy(LegacySignature),
}

impl<'a> Collector<'a> {
    pub(super) fn new(collection: Collection<'a>) -> Self {
        Self {
            collection,
            source: collection.source,
            budget: Budget::new(collection.limit),
            failed_at: None,
            referrers: VecDeque::new(),
            pieces: VecDeque::new(),
            known: HashSet::new(),
            evidence: Evidence::default(),
            notes: Notes::default(),
            listed: 0,
            unchecked: 0,
            failures: 0,
            unavailable: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<Evidence, RegistryError> {
        let collection = self.collection;
        if collection.looks_for(Format::Bundle) {
            self.list_referrers().await;
        }
        if collection.looks_for(Format::Legacy) && !self.is_registry_failing() {
            self.list_legacy().await;
        }
        // The second round spends what the pieces of the first one did not need.
        for reserve in [collection.limit / RESERVED_SHARE, 0] {
            self.fetch_referrers(reserve).await;
            self.fetch_pieces().await;
        }
        self.finish()
    }

    async fn list_referrers(&mut self) {
        let Collection { subject, api, .. } = self.collection;
        let mut listed = Referrers::default();
        if api == ReferrersApi::AskUnlessMissing && self.source.lacks_referrers_api() {
            self.evidence.api_assumed_missing = true;
        } else {
            let found = self.collection.ask_referrers_api().await;
            listed = self
                .delivered("referrers", found)
                .flatten()
                .unwrap_or_default();
        }
        if let Some(failure) = listed.failure.take() {
            self.record_failure(failure);
        }
        if !self.is_registry_failing() {
            let tagged = self.source.tagged_referrers(subject).await;
            let mut tagged = self.tagged(tagged).unwrap_or_default();
            if let Some(failure) = tagged.failure.take() {
                self.tagged::<()>(Err(failure));
            }
            listed.merge(tagged);
        }
        listed
            .skipped
            .into_iter()
            .for_each(|sentence| self.notes.add(sentence));
        self.listed += listed.entries.len();
        let (usable, odd): (Vec<_>, Vec<_>) = listed
            .entries
            .into_iter()
            .partition(|entry| (MIN_MANIFEST_BYTES..=MAX_PIECE_BYTES).contains(&entry.size));
        for entry in odd {
            self.notes.add(format!(
                "{}: no manifest of a signature has {} bytes",
                entry.digest, entry.size
            ));
        }
        let mut usable = usable;
        if let Some(useless) = self.collection.useless {
            usable.retain(|entry| !useless.contains(&entry.digest));
        }
        usable.sort_by_key(|entry| (rank(entry), entry.size));
        self.referrers = usable.into();
    }

    async fn list_legacy(&mut self) {
        let Some(tag) = cosign::signature_tag(self.collection.subject.digest()) else {
            return;
        };
        let listed = self.source.tagged_listing(&tag, Member::Layers).await;
        let Some(mut listed) = self.tagged(listed) else {
            return;
        };
        if let Some(failure) = listed.failure.take() {
            self.tagged::<()>(Err(failure));
        }
        self.listed += listed.entries.len();
        listed
            .skipped
            .into_iter()
            .for_each(|sentence| self.notes.add(sentence));
        if listed.size > 0 && !self.budget.spend(listed.size, 0) {
            self.notes.add(format!("{tag}: beyond limits.evidence"));
            self.unchecked += listed.entries.len();
            return;
        }
        self.add_legacy(&listed.entries);
    }

    /// What a tag names. Some registries answer 401 or 403 for a missing tag (Artifactory, ECR):
    /// where the artifact itself could be read, so could the tag.
    fn tagged<T>(&mut self, found: Result<T, RegistryError>) -> Option<T> {
        match found {
            Err(error @ RegistryError::Denied { .. }) if self.collection.is_own_repository() => {
                self.notes.add(format!("counted as a missing tag: {error}"));
                self.evidence.denied_beside = Some(self.collection.subject.clone());
                None
            }
            found => self.delivered("tag", found),
        }
    }

    /// Notes a list that the registry did not deliver: the signature that counts may be in it.
    fn delivered<T>(&mut self, list: &str, found: Result<T, RegistryError>) -> Option<T> {
        match found {
            Ok(found) => Some(found),
            Err(error) => {
                self.notes.add(format!("{list}: {error}"));
                self.record_failure(error);
                None
            }
        }
    }

    fn record_failure(&mut self, error: RegistryError) {
        self.failures += 1;
        self.failed_at.get_or_insert_with(Instant::now);
        self.unavailable.get_or_insert(error);
    }

    async fn fetch_referrers(&mut self, reserve: u64) {
        let chosen = self
            .budget
            .choose(&mut self.referrers, reserve, |entry| entry);
        let source = self.source.clone();
        let mut fetched = stream::iter(chosen)
            .map(move |entry| {
                let source = source.clone();
                async move { (source.described_manifest(&entry).await, entry) }
            })
            .buffered(CONCURRENT_REQUESTS);
        while let Some((manifest, entry)) = fetched.next().await {
            // The bytes have the digest.
            if let Err(RegistryError::Manifest(_)) = &manifest {
                self.remember_useless(&entry);
            }
            if let Some(manifest) = self.usable(manifest, &entry.digest) {
                self.add_referrer(&manifest, &entry);
            }
            if self.is_registry_failing() {
                return;
            }
        }
    }

    fn add_referrer(&mut self, manifest: &Manifest, entry: &Descriptor) {
        // The sizes in the list are as unreliable as the types.
        if manifest.raw().len() as u64 != entry.size {
            self.notes.add(format!(
                "{}: its length is not the one in the list of referrers",
                entry.digest
            ));
            return;
        }
        // The types in the list are unreliable; the manifest itself decides.
        match manifest.layers() {
            [layer] if bundle_v03::is_bundle(&layer.media_type) => {
                self.add(Piece {
                    blob: layer.clone(),
                    of: Candidate::Bundle {
                        referrer: manifest.raw().clone(),
                    },
                });
            }
            // cosign 2 with `--registry-referrers-mode=oci-1-1`: its `.sig` image as a referrer.
            layers
                if layers
                    .iter()
                    .any(|layer| legacy::signature_of(layer).is_some()) =>
            {
                self.add_legacy(layers);
            }
            _ => self.remember_useless(entry),
        }
    }

    fn remember_useless(&self, entry: &Descriptor) {
        if let Some(useless) = self.collection.useless {
            useless.insert(entry.digest.clone());
        }
    }

    fn add_legacy(&mut self, layers: &[Descriptor]) {
        for layer in layers {
            let Some(signature) = legacy::signature_of(layer) else {
                continue;
            };
            let identity = (signature.clone(), layer.digest.clone(), layer.size);
            if self.known.insert(identity) {
                self.add(Piece {
                    blob: layer.clone(),
                    of: Candidate::Legacy(signature),
                });
            }
        }
    }

    fn add(&mut self, piece: Piece) {
        let Descriptor { digest, size, .. } = &piece.blob;
        if *size > MAX_PIECE_BYTES {
            self.notes.add(format!(
                "{digest}: {size} bytes are too many for a signature"
            ));
        } else {
            self.pieces.push_back(piece);
        }
    }

    async fn fetch_pieces(&mut self) {
        if self.is_registry_failing() {
            return;
        }
        self.pieces
            .make_contiguous()
            .sort_by_key(|piece| piece.blob.size);
        // Signatures of one artifact by several keys share their payload.
        let mut by_blob: HashMap<(Digest, u64), Vec<Candidate>> = HashMap::new();
        let mut blobs = VecDeque::new();
        for Piece { blob, of } in std::mem::take(&mut self.pieces) {
            let candidates = by_blob.entry((blob.digest.clone(), blob.size)).or_default();
            if candidates.is_empty() {
                blobs.push_back(blob);
            }
            candidates.push(of);
        }
        let chosen = self.budget.choose(&mut blobs, 0, |blob| blob);
        let source = self.source.clone();
        let mut fetched = stream::iter(chosen)
            .map(move |blob| {
                let source = source.clone();
                async move { (fetch(&source, &blob).await, blob) }
            })
            .buffered(CONCURRENT_REQUESTS);
        while let Some((bytes, blob)) = fetched.next().await {
            let candidates = by_blob
                .remove(&(blob.digest.clone(), blob.size))
                .unwrap_or_default();
            if let Some(blob) = self.usable(bytes, &blob.digest) {
                let bytes = blob.in_memory().cloned().unwrap_or_default();
                candidates
                    .into_iter()
                    .for_each(|candidate| self.complete(candidate, bytes.clone()));
            }
            if self.is_registry_failing() {
                return;
            }
        }
        // The rest is for the next round, if there is one.
        for blob in blobs {
            let candidates = by_blob
                .remove(&(blob.digest.clone(), blob.size))
                .unwrap_or_default();
            self.pieces.extend(candidates.into_iter().map(|of| Piece {
                blob: blob.clone(),
                of,
            }));
        }
    }

    fn complete(&mut self, candidate: Candidate, bytes: Bytes) {
        match candidate {
            Candidate::Bundle { referrer } => {
                self.evidence.bundles.push(SignatureBundle {
                    referrer,
                    bundle: bytes,
                });
            }
            Candidate::Legacy(signature) => {
                self.evidence.legacy.push(LegacySignature {
                    payload: bytes,
                    ..signature
                });
            }
        }
    }

    /// Adds a note about a piece that can't be used. A piece that the registry failed to deliver
    /// gets one too, as it may have been the signature that counts.
    fn usable<T>(&mut self, fetched: Result<T, RegistryError>, digest: &Digest) -> Option<T> {
        let error = match fetched {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        self.notes.add(match &error {
            RegistryError::Missing { .. } | RegistryError::Mismatch { .. } => error.to_string(),
            _ => format!("{digest}: {error}"),
        });
        if !error.is_unusable_content() {
            self.record_failure(error);
        }
        None
    }

    fn is_registry_failing(&self) -> bool {
        // Other hosts may be asked, and this one is not for a while.
        let limited = |error: &RegistryError| {
            matches!(error.class(), Class::RateLimited { .. }) && !self.source.has_mirrors()
        };
        self.failures >= MAX_FAILURES
            || self.unavailable.as_ref().is_some_and(limited)
            || self
                .failed_at
                .is_some_and(|at| at.elapsed() > MAX_TIME_AFTER_FAILURE)
    }

    fn finish(mut self) -> Result<Evidence, RegistryError> {
        let left = self
            .referrers
            .iter()
            .chain(self.pieces.iter().map(|piece| &piece.blob));
        for digest in left.map(|left| left.digest.clone()).collect::<Vec<_>>() {
            self.unchecked += 1;
            self.notes.add(format!("{digest}: beyond limits.evidence"));
        }
        if self.unchecked > 0 && !self.is_registry_failing() {
            self.evidence.beyond_limit = Some(BeyondLimit {
                checked: self.listed.saturating_sub(self.unchecked),
                listed: self.listed,
                limit: self.collection.limit,
            });
        }
        match self.unavailable {
            Some(error) if self.evidence.is_empty() => Err(error),
            unavailable => {
                let (skipped, unavailable) =
                    (self.notes.into_sentences(), unavailable.map(Arc::new));
                Ok(Evidence {
                    skipped,
                    unavailable,
                    ..self.evidence
                })
            }
        }
    }
}

async fn fetch(source: &Source, blob: &Descriptor) -> Result<Blob, RegistryError> {
    source.blob(blob).await?.collect().await
}

/// Ranks a referrer by how likely it is a signature, likeliest first. The list is unreliable
/// (go-containerregistry before 0.22.1 wrote the config's type or none, and dropped annotations),
/// so the rank rules nothing out.
fn rank(entry: &Descriptor) -> u8 {
    let Some(kind) = entry.artifact_type.as_deref() else {
        return 2;
    };
    if bundle_v03::is_bundle(kind) {
        let says_otherwise = entry
            .annotation(cosign::BUNDLE_PREDICATE_TYPE)
            .is_some_and(|kind| kind != cosign::SIGN_PREDICATE);
        return u8::from(says_otherwise);
    }
    if [
        media_type::EMPTY,
        media_type::IMAGE_CONFIG,
        cosign::SIGNATURE_ARTIFACT,
    ]
    .contains(&kind)
    {
        2
    } else {
        3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_signatures_rank_first_and_no_referrer_is_excluded() {
        let entry = |kind: Option<&str>, predicate: Option<&str>| Descriptor {
            artifact_type: kind.map(str::to_owned),
            annotations: predicate
                .map(|kind| [(cosign::BUNDLE_PREDICATE_TYPE.to_owned(), kind.to_owned())].into()),
            ..Descriptor::of(media_type::OCI_MANIFEST, b"x")
        };
        for (kind, predicate, expected) in [
            (Some(cosign::BUNDLE), Some(cosign::SIGN_PREDICATE), 0),
            (Some(cosign::BUNDLE), None, 0),
            (
                Some(cosign::BUNDLE),
                Some("https://slsa.dev/provenance/v1"),
                1,
            ),
            (None, None, 2),
            (Some(media_type::EMPTY), None, 2),
            (Some(cosign::SIGNATURE_ARTIFACT), None, 2),
            (
                Some("application/spdx+json"),
                Some(cosign::SIGN_PREDICATE),
                3,
            ),
        ] {
            assert_eq!(
                rank(&entry(kind, predicate)),
                expected,
                "{kind:?} {predicate:?}"
            );
        }
    }
}
