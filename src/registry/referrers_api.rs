//! The referrers API (distribution-spec, "Listing Referrers").

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use url::Url;

use super::{
    client::{Call, Target},
    error::RegistryError,
    listing::{Listing, Member},
    remote::Remote,
};
use crate::oci::{Digest, media_type};

/// The most pages of the referrers API that are followed; `limits.evidence` bounds their bytes.
const MAX_PAGES: usize = 1000;

impl Remote {
    /// As [`Self::referrers`], with a list that can't be used reported in `skipped`.
    pub(super) async fn listed_referrers(
        &self,
        subject: &Digest,
        limit: usize,
    ) -> Result<Option<Listing>, RegistryError> {
        match self.referrers(subject, limit).await {
            Ok(found) => Ok(found.map(|listing| listing.with_name("referrers"))),
            Err(error) if error.is_unusable_list() => {
                Ok(Some(Listing::unusable("referrers", error)))
            }
            Err(error) => Err(error),
        }
    }

    /// The list of the referrers API for `subject`. Pages are followed until they have `limit`
    /// entries, or more than `limits.evidence` bytes. `None` where the registry has no such API.
    /// Where a later page fails, the entries before it are listed, with the failure.
    ///
    /// The list is not filtered, because registries report `artifactType` unreliably.
    async fn referrers(
        &self,
        subject: &Digest,
        limit: usize,
    ) -> Result<Option<Listing>, RegistryError> {
        let (transport, deadline) = (&self.client.transport, self.client.transport.deadline());
        let path = format!("{}/referrers/{subject}", self.path);
        let first = self.referrers_page(Target::Path(&path));
        let first = match transport.within("referrers", deadline.clone(), first).await {
            Err(RegistryError::Status { status, .. }) if is_api_missing(status) => None,
            first => first?,
        };
        // Some front ends answer every unknown path with 200 and a web page.
        let Some((listed, mut next)) = first else {
            return Ok(None);
        };
        self.client.capabilities.record_referrers_api();
        let (mut found, mut seen) = (listed, BTreeSet::new());
        for page in 1.. {
            let url = match next {
                Ok(Some(url)) if seen.insert(url.clone()) => url,
                Ok(_) => break,
                Err(error) => {
                    found.failure = Some(error);
                    break;
                }
            };
            if found.entries.len() >= limit {
                break;
            }
            if found.size > self.limits.evidence || page == MAX_PAGES {
                let reason = format!("there are more than {page} pages, beyond limits.evidence");
                found.skipped.push(reason);
                break;
            }
            let listed = self.referrers_page(Target::Url(url));
            next = match transport
                .within("referrers", deadline.clone(), listed)
                .await
            {
                Ok(Some((listed, next))) => {
                    found.extend(listed);
                    next
                }
                Ok(None) => Err(transport.protocol("referrers", format!("page {page} is missing"))),
                Err(error) if error.is_unusable_list() => {
                    found.skipped.push(format!("page {page}: {error}"));
                    break;
                }
                Err(error) => Err(error),
            };
        }
        found.entries.truncate(limit);
        Ok(Some(found))
    }

    /// One page of the referrers API, and the next one's URL; `None` for an answer that is no
    /// image index.
    async fn referrers_page(
        &self,
        target: Target<'_>,
    ) -> Result<Option<ReferrersPage>, RegistryError> {
        let call = Call {
            accept: media_type::OCI_INDEX,
            ..self.call("referrers", Method::GET, target)
        };
        let response = self.client.send(&call).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let next = self.client.transport.next_page("referrers", &response);
        let body = self.manifest_bytes(response).await?;
        Ok(referrers_in(&body).map(|listed| (listed, next)))
    }
}

/// The entries of a page of referrers, and the URL of the next one.
type ReferrersPage = (Listing, Result<Option<Url>, RegistryError>);

/// Whether a status means that the registry has no referrers API: 404 (distribution-spec,
/// "Unavailable Referrers API"), and what registries and their front ends answer to an unknown path
/// or media type. A refusal or failure is none of them.
fn is_api_missing(status: u16) -> bool {
    matches!(status, 400 | 405 | 406 | 422 | 501)
}

/// One page of `GET /v2/<name>/referrers/<digest>`; `None` where it is not an image index.
pub(super) fn referrers_in(body: &[u8]) -> Option<Listing> {
    Listing::read(body, Member::Manifests, None).ok()
}
