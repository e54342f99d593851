//! One repository of a registry server (OCI distribution-spec 1.1).

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, header};
use serde::Deserialize;

use super::{
    access::Access,
    blob_stream::BlobStream,
    error::RegistryError,
    http::{Call, ReadFailure, Target, Wire},
    options::ReadLimits,
};
use crate::oci::{Descriptor, Digest, Manifest, ManifestError};

/// Pages of the referrers API that are followed.
const MAX_PAGES: usize = 8;
pub(super) const DIGEST_HEADER: &str = "docker-content-digest";

#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) wire: Arc<Wire>,
    pub(super) path: String,
    limits: ReadLimits,
    intent: Intent,
}

/// What its requests' tokens must allow.
#[derive(Debug, Clone, Copy)]
enum Intent {
    Read,
    /// Reading on the way to writing: one token does for both.
    Write,
}

/// One page of `GET /v2/<name>/referrers/<digest>`: an image index.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl Remote {
    pub(super) fn reading(wire: Arc<Wire>, path: String, limits: ReadLimits) -> Self {
        Self { wire, path, limits, intent: Intent::Read }
    }

    pub(super) fn writing(wire: Arc<Wire>, path: String, limits: ReadLimits) -> Self {
        Self { wire, path, limits, intent: Intent::Write }
    }

    /// Asks which digest `tag` names now; `None` when the registry has no such tag.
    pub(super) async fn resolve(&self, tag: &str) -> Result<Option<Digest>, RegistryError> {
        let deadline = self.wire.deadline();
        self.wire.within("resolve", deadline, self.head_or_get(tag)).await
    }

    async fn head_or_get(&self, tag: &str) -> Result<Option<Digest>, RegistryError> {
        let path = format!("manifests/{tag}");
        let response = self.send("resolve", Method::HEAD, &path).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let named = response.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok());
        if let Some(digest) = named.and_then(|text| text.parse::<Digest>().ok()) {
            return Ok(Some(digest));
        }
        // The header is optional (distribution-spec, "Checking if content exists in the registry").
        let response = self.send("resolve", Method::GET, &path).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let raw = self.manifest_bytes(response).await?;
        // Under a digest the same bytes would be a defect of the artifact; here they are a
        // login page or a maintenance notice, and no reason to contradict a client.
        let manifest = Manifest::parse(raw, None, self.limits.manifest)
            .map_err(|error| self.wire.protocol("resolve", format!("not the answer of a registry: {error}")))?;
        Ok(Some(manifest.digest().clone()))
    }

    /// The manifest under `digest`; `None` when the repository has none.
    pub(super) async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, RegistryError> {
        let deadline = self.wire.deadline();
        self.wire.within("manifest", deadline, self.get_manifest(digest.as_str(), Some(digest))).await
    }

    /// The manifest that `tag` names now; `None` when the repository has no such tag.
    pub(super) async fn tagged_manifest(&self, tag: &str) -> Result<Option<Manifest>, RegistryError> {
        let deadline = self.wire.deadline();
        self.wire.within("manifest", deadline, self.get_manifest(tag, None)).await
    }

    async fn get_manifest(&self, name: &str, expected: Option<&Digest>) -> Result<Option<Manifest>, RegistryError> {
        let response = self.send("manifest", Method::GET, &format!("manifests/{name}")).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.map(str::to_owned);
        let raw = self.manifest_bytes(response).await?;
        if let Some(expected) = expected {
            let actual = expected.recompute(&raw);
            if actual != *expected {
                let (expected, actual) = (expected.to_string(), actual.to_string());
                return Err(RegistryError::Mismatch { what: "manifest", expected, actual });
            }
        }
        match Manifest::parse(raw, content_type.as_deref(), self.limits.manifest) {
            // The header is not part of what the digest covers, so another try may differ.
            Err(error @ ManifestError::MediaType { .. }) => Err(self.wire.protocol("manifest", error.to_string())),
            parsed => Ok(Some(parsed?)),
        }
    }

    async fn manifest_bytes(&self, response: Response) -> Result<Bytes, RegistryError> {
        let limit = self.limits.manifest;
        self.wire.read_limited(response, limit).await.map_err(|failure| match failure {
            ReadFailure::TooLarge => {
                RegistryError::TooLarge { what: "manifest".to_owned(), limit, key: "limits.manifest" }
            }
            ReadFailure::Broken(reason) => self.wire.unreachable("manifest", reason),
        })
    }

    /// Starts a blob's transfer; `None` when the repository has none. Only this registry
    /// is asked, whatever the descriptor's `urls` say.
    pub(super) async fn blob(&self, descriptor: &Descriptor) -> Result<Option<BlobStream>, RegistryError> {
        let deadline = self.wire.deadline();
        let path = format!("blobs/{}", descriptor.digest);
        let response = self.wire.within("blob", deadline, self.send("blob", Method::GET, &path)).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(BlobStream::http(descriptor.clone(), self.wire.host().to_owned(), deadline, response)))
    }

    /// What the referrers API lists for `subject`, at most `limit` entries; `None` where
    /// the registry does not have that API.
    ///
    /// The list is not filtered: registries report `artifactType` unreliably.
    pub(super) async fn referrers(
        &self,
        subject: &Digest,
        limit: usize,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let deadline = self.wire.deadline();
        self.wire.within("referrers", deadline, self.all_pages(subject, limit)).await
    }

    async fn all_pages(&self, subject: &Digest, limit: usize) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let path = format!("{}/referrers/{subject}", self.path);
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let mut target = Target::Below(&path);
        for page in 0..MAX_PAGES {
            let call = self.call("referrers", Method::GET, target);
            let response = match self.wire.send(&call).await {
                Ok(response) if response.status() != StatusCode::NOT_FOUND => response,
                Ok(_) => return Ok((page > 0).then_some(found)),
                // What registries without the API answer besides 404.
                Err(RegistryError::Status { status: 400 | 405 | 501, .. }) if page == 0 => return Ok(None),
                Err(error) => return Err(error),
            };
            let next = self.wire.next_page(&response);
            let body = self.manifest_bytes(response).await?;
            let Some(list) = referrers_in(&body) else {
                // Some front ends answer every unknown path with 200 and a web page.
                return if page == 0 {
                    Ok(None)
                } else {
                    Err(self.wire.protocol("referrers", "a page is not an image index".to_owned()))
                };
            };
            found.extend(list);
            match next {
                Some(url) if found.len() < limit && seen.insert(url.clone()) => target = Target::At(url),
                _ => break,
            }
        }
        found.truncate(limit);
        Ok(Some(found))
    }

    pub(super) async fn send(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
    ) -> Result<Response, RegistryError> {
        let path = format!("{}/{path}", self.path);
        self.wire.send(&self.call(operation, method, Target::Below(&path))).await
    }

    pub(super) fn call<'a>(&'a self, operation: &'static str, method: Method, target: Target<'a>) -> Call<'a> {
        let access = match self.intent {
            Intent::Read => Access::Pull(&self.path),
            Intent::Write => Access::Push(&self.path),
        };
        Call { operation, method, access, target, payload: None }
    }
}

/// The entries of a page; `None` where it is no image index.
pub(super) fn referrers_in(body: &[u8]) -> Option<Vec<Descriptor>> {
    serde_json::from_slice(body).ok().map(|page: Page| page.manifests.unwrap_or_default())
}
