//! The resolution of tags by HEAD and GET.

use reqwest::{Method, Response, StatusCode};

use super::{
    capabilities::HeadSupport,
    error::RegistryError,
    remote::{Bounds, DIGEST_HEADER, Remote, content_type},
    source::Lookup,
};
use crate::oci::{Digest, Manifest};

/// A longer manifest is not kept after the resolution of its tag, while thousands of bundles wait
/// for their turn to be fetched ([`super::Source::transfer_permit`]).
pub(super) const MAX_HELD_BYTES: u64 = 16 << 10;

impl Remote {
    /// The digest that `tag` names now, and the manifest if one request gave both; `None` when the
    /// registry has no such tag.
    pub(super) async fn look_up(
        &self,
        tag: &str,
        lookup: Lookup,
    ) -> Result<Option<(Digest, Option<Manifest>)>, RegistryError> {
        let look_up = async {
            match lookup {
                Lookup::Digest => self.head_or_get(tag).await,
                Lookup::Manifest => self.get_tag(tag).await,
            }
        };
        let deadline = self.client.transport.deadline();
        self.client
            .transport
            .within("resolve", deadline, look_up)
            .await
    }

    /// Resolves a tag by HEAD, which Docker Hub does not count, and by GET where HEAD is refused,
    /// finds nothing or names no digest. GET is asked once an hour after a HEAD that it confirms,
    /// so that a missing tag does not cost two requests each time; and alone for an hour where it
    /// knows more.
    async fn head_or_get(
        &self,
        tag: &str,
    ) -> Result<Option<(Digest, Option<Manifest>)>, RegistryError> {
        let (capabilities, key) = (&self.client.capabilities, self.key());
        let known = capabilities.head(&key, tag);
        if known == Some(HeadSupport::Missing) {
            return self.get_tag(tag).await;
        }
        let path = format!("manifests/{tag}");
        let head = match self.send("resolve", Method::HEAD, &path).await {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => Ok(None),
            // The header is optional (distribution-spec, "Checking if content exists in the
            // registry").
            Ok(response) => match digest_header(&response) {
                Some(digest) => {
                    capabilities.record_head(&key, tag, None);
                    return Ok(Some((digest, None)));
                }
                None => return self.get_instead_of_head(tag).await,
            },
            Err(error) if is_method_refused(&error) => Err(error),
            Err(error) => return Err(error),
        };
        if known == Some(HeadSupport::Confirmed) {
            return head;
        }
        match (self.get_instead_of_head(tag).await, head) {
            (Ok(None), Ok(None)) => {
                capabilities.record_head(&key, tag, Some(HeadSupport::Confirmed));
                Ok(None)
            }
            // A GET that is refused in another way confirms nothing: the credentials may be
            // refused for a moment only.
            (Err(get), Err(head)) if status(&get).is_some() && status(&get) == status(&head) => {
                capabilities.record_head(&key, tag, Some(HeadSupport::Confirmed));
                Err(head)
            }
            (found, _) => found,
        }
    }

    /// Resolves a tag by GET after a HEAD that did not, and by GET alone for the next hour if it
    /// is answered.
    async fn get_instead_of_head(
        &self,
        tag: &str,
    ) -> Result<Option<(Digest, Option<Manifest>)>, RegistryError> {
        let found = self.get_tag(tag).await?;
        let capabilities = &self.client.capabilities;
        capabilities.record_head(&self.key(), tag, Some(HeadSupport::Missing));
        Ok(found)
    }

    async fn get_tag(
        &self,
        tag: &str,
    ) -> Result<Option<(Digest, Option<Manifest>)>, RegistryError> {
        let path = format!("manifests/{tag}");
        let response = self.send("resolve", Method::GET, &path).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let content_type = content_type(&response);
        if let Some(digest) = digest_header(&response) {
            // The header names the digest, as that of a HEAD does; the bytes count if they have
            // it. Only a request by digest can say what is wrong with others.
            let bounds = Bounds {
                limit: MAX_HELD_BYTES,
                max_read: MAX_HELD_BYTES,
            };
            let raw = self.checked_bytes(response, &digest, bounds).await.ok();
            let manifest = raw.and_then(|raw| self.parse(raw, content_type.as_deref()).ok());
            return Ok(Some((digest, manifest)));
        }
        let raw = self.manifest_bytes(response).await?;
        let length = raw.len() as u64;
        // Under a digest these bytes would be a defect of the artifact. Here they are a login page
        // or a maintenance notice, so the failure is transient.
        let manifest = Manifest::parse(raw, content_type.as_deref(), self.limits.manifest)
            .map_err(|error| {
                self.client
                    .transport
                    .protocol("resolve", format!("the answer is not a manifest: {error}"))
            })?;
        let digest = manifest.digest().clone();
        let held = Some(manifest).filter(|_| length <= MAX_HELD_BYTES);
        Ok(Some((digest, held)))
    }
}

/// Whether a registry refuses a HEAD for what it is, so that a GET may be answered.
fn is_method_refused(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status, .. } => matches!(status, 400 | 405 | 501),
        RegistryError::Denied { status, .. } => *status == 403,
        // A storage whose URLs are signed for GET only.
        RegistryError::Redirected { .. } => true,
        _ => false,
    }
}

fn status(error: &RegistryError) -> Option<u16> {
    match error {
        RegistryError::Status { status, .. } | RegistryError::Denied { status, .. } => {
            Some(*status)
        }
        _ => None,
    }
}

fn digest_header(response: &Response) -> Option<Digest> {
    let header = response.headers().get(DIGEST_HEADER)?;
    header.to_str().ok()?.parse().ok()
}
