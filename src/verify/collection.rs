//! What to collect of the signature material in a registry, and the entry points.

use std::collections::BTreeSet;

use super::{collect::Collector, evidence::Evidence, policy::Format, useless::UselessReferrers};
use crate::{
    oci::PinnedReference,
    registry::{Referrers, RegistryError, Source},
};

/// Collects the signature material for `subject` from `source`, at most `limit` bytes in all
/// (`limits.evidence`), as [`Collection::collect`] with [`ReferrersApi::Ask`].
///
/// # Errors
/// As [`Collection::collect`].
pub async fn collect(
    source: &Source,
    subject: &PinnedReference,
    limit: u64,
) -> Result<Evidence, RegistryError> {
    let collection = Collection {
        source,
        subject,
        limit,
        api: ReferrersApi::Ask,
        formats: None,
        useless: None,
    };
    collection.collect().await
}

/// The signature material to collect.
#[derive(Debug, Clone, Copy)]
pub struct Collection<'a> {
    /// The artifact's own repository, whose manifest has been read, or the one that the policy
    /// names for signatures: the digest alone identifies them.
    pub source: &'a Source,
    /// The artifact.
    pub subject: &'a PinnedReference,
    /// The limit in bytes (`limits.evidence`).
    pub limit: u64,
    /// Whether the referrers API is asked in any case.
    pub api: ReferrersApi,
    /// The formats that the policy accepts (`formats`); `None` for both. Bundles are looked for in
    /// the lists of referrers only, legacy signatures without bundles at the `.sig` tag only.
    pub formats: Option<&'a BTreeSet<Format>>,
    /// The referrers that need not be fetched again.
    pub useless: Option<&'a UselessReferrers>,
}

/// When the referrers API of a registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferrersApi {
    /// Always.
    Ask,
    /// Unless earlier answers say that the registry has none ([`Source::lacks_referrers_api`]).
    /// If the evidence does not suffice then, the API must be asked: a list of signatures must
    /// not stay unread because of what the registry once answered.
    AskUnlessMissing,
}

impl Collection<'_> {
    /// Collects the signature material. Material that is malformed, missing, too large or
    /// inconsistent is noted; it is neither an error nor a signature. A list that the registry
    /// does not deliver does not affect the others, unless the registry asks for fewer requests.
    ///
    /// # Errors
    /// When the registry does not answer or refuses, and no candidate was found: this is not the
    /// same as "unsigned". If one was found, [`Evidence::unavailable`] has the error.
    pub async fn collect(self) -> Result<Evidence, RegistryError> {
        Collector::new(self).run().await
    }

    /// The list of the referrers API; `None` where the registry has none, which is remembered if
    /// the artifact's manifest was read from this repository: 404 may mean that the repository is
    /// missing.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn ask_referrers_api(self) -> Result<Option<Referrers>, RegistryError> {
        let listed = self.source.listed_referrers(self.subject, usize::MAX);
        let listed = listed.await?;
        if listed.is_none() && self.is_own_repository() {
            self.source.record_no_referrers_api();
        }
        Ok(listed)
    }

    pub(super) fn looks_for(self, format: Format) -> bool {
        self.formats.is_none_or(|formats| formats.contains(&format))
    }

    /// Whether the artifact's own manifest was read from this repository, with this credential.
    pub(super) fn is_own_repository(self) -> bool {
        self.source.repository() == self.subject.repository()
    }
}
