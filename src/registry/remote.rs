//! One repository of a registry server (OCI distribution-spec 1.1).

use std::{collections::BTreeSet, sync::Arc};

use bytes::{Bytes, BytesMut};
use reqwest::{Method, Response, StatusCode, header};

use super::{
    blob_stream::BlobStream,
    client::{Call, ReadFailure, Target, Wire, innermost},
    error::RegistryError,
    listing::{Listing, Member},
    options::ReadLimits,
    scope::Access,
};
use crate::oci::{Descriptor, Digest, Manifest, ManifestError};

/// Pages of the referrers API that are followed; `limits.evidence` bounds their bytes.
const MAX_PAGES: usize = 128;
/// A manifest over `limits.manifest` is read and hashed to this many times the limit, without
/// being kept: only if its digest is right is its size a fact about the artifact.
const PROVEN_SIZE_FACTOR: u64 = 8;
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
        let limit = self.limits.manifest;
        let most = limit.saturating_mul(PROVEN_SIZE_FACTOR);
        self.wire.within("manifest", deadline, self.get_manifest(digest, Bounds { limit, most })).await
    }

    /// As [`Self::manifest`], of at most as many bytes as `descriptor` says.
    pub(super) async fn described_manifest(&self, descriptor: &Descriptor) -> Result<Option<Manifest>, RegistryError> {
        let deadline = self.wire.deadline();
        let limit = descriptor.size.min(self.limits.manifest);
        let get = self.get_manifest(&descriptor.digest, Bounds { limit, most: limit });
        self.wire.within("manifest", deadline, get).await
    }

    /// The manifest that `tag` names now; `None` when the repository has no such tag.
    pub(super) async fn tagged_manifest(&self, tag: &str) -> Result<Option<Manifest>, RegistryError> {
        let Some((raw, content_type)) = self.tagged(tag).await? else { return Ok(None) };
        self.parse(raw, content_type.as_deref()).map(Some)
    }

    /// The bytes that `tag` names now, and what the registry says they are; `None` when the
    /// repository has no such tag.
    pub(super) async fn tagged(&self, tag: &str) -> Result<Option<(Bytes, Option<String>)>, RegistryError> {
        let get = async {
            let response = self.send("manifest", Method::GET, &format!("manifests/{tag}")).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let content_type = content_type(&response);
            Ok(Some((self.manifest_bytes(response).await?, content_type)))
        };
        self.wire.within("manifest", self.wire.deadline(), get).await
    }

    async fn get_manifest(&self, digest: &Digest, bounds: Bounds) -> Result<Option<Manifest>, RegistryError> {
        let response = self.send("manifest", Method::GET, &format!("manifests/{digest}")).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let content_type = content_type(&response);
        let raw = self.checked_bytes(response, digest, bounds).await?;
        self.parse(raw, content_type.as_deref()).map(Some)
    }

    fn parse(&self, raw: Bytes, content_type: Option<&str>) -> Result<Manifest, RegistryError> {
        match Manifest::parse(raw, content_type, self.limits.manifest) {
            // The header is not part of what the digest covers, so another try may differ.
            Err(error @ ManifestError::MediaType { .. }) => Err(RegistryError::ContentType {
                operation: "manifest",
                host: self.wire.host().to_owned(),
                reason: error.to_string(),
            }),
            parsed => Ok(parsed?),
        }
    }

    /// The bytes of `digest`. Whatever is wrong with others is no fact about it.
    async fn checked_bytes(
        &self,
        mut response: Response,
        digest: &Digest,
        Bounds { limit, most }: Bounds,
    ) -> Result<Bytes, RegistryError> {
        let too_large = |proven| {
            let (what, key) = ("manifest".to_owned(), "limits.manifest");
            RegistryError::TooLarge { what, limit, key, proven }
        };
        if response.content_length().is_some_and(|length| length > most) {
            return Err(too_large(false));
        }
        let (mut hasher, mut body, mut length) = (digest.hasher(), BytesMut::new(), 0);
        let broken = |error: reqwest::Error| self.wire.unreachable("manifest", innermost(&error));
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            length += chunk.len() as u64;
            if length > most {
                return Err(too_large(false));
            }
            hasher.update(&chunk);
            if length <= limit {
                body.extend_from_slice(&chunk);
            }
        }
        let actual = hasher.finish();
        if actual != *digest {
            let (expected, actual) = (digest.to_string(), actual.to_string());
            return Err(RegistryError::Mismatch { what: "manifest", expected, actual });
        }
        if length > limit { Err(too_large(true)) } else { Ok(body.freeze()) }
    }

    async fn manifest_bytes(&self, response: Response) -> Result<Bytes, RegistryError> {
        let limit = self.limits.manifest;
        self.wire.read_limited(response, limit).await.map_err(|failure| match failure {
            ReadFailure::TooLarge => {
                let (what, key) = ("manifest".to_owned(), "limits.manifest");
                RegistryError::TooLarge { what, limit, key, proven: false }
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

    /// What the referrers API lists for `subject`: pages are followed until they have `limit`
    /// entries, or more than `limits.evidence` bytes. `None` where the registry does not have that
    /// API.
    ///
    /// The list is not filtered: registries report `artifactType` unreliably.
    pub(super) async fn referrers(&self, subject: &Digest, limit: usize) -> Result<Option<Listing>, RegistryError> {
        let deadline = self.wire.deadline();
        self.wire.within("referrers", deadline, self.all_pages(subject, limit)).await
    }

    async fn all_pages(&self, subject: &Digest, limit: usize) -> Result<Option<Listing>, RegistryError> {
        let path = format!("{}/referrers/{subject}", self.path);
        let mut found = Listing::default();
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
            let body = match self.manifest_bytes(response).await {
                // What earlier pages have listed stays.
                Err(error) if page > 0 && error.is_unusable_content() => {
                    found.skipped.push(format!("page {page}: {error}"));
                    break;
                }
                body => body?,
            };
            let Some(listed) = referrers_in(&body) else {
                // Some front ends answer every unknown path with 200 and a web page.
                return if page == 0 {
                    Ok(None)
                } else {
                    Err(self.wire.protocol("referrers", "a page is not an image index".to_owned()))
                };
            };
            found.size += listed.size;
            found.entries.extend(listed.entries);
            found.skipped.extend(listed.skipped);
            match next {
                Some(_) if found.entries.len() >= limit => break,
                Some(_) if found.size > self.limits.evidence => {
                    found.skipped.push("there are more pages, beyond limits.evidence".to_owned());
                    break;
                }
                Some(url) if seen.insert(url.clone()) => target = Target::At(url),
                _ => break,
            }
        }
        found.entries.truncate(limit);
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

/// How many bytes of a manifest are kept, and how many are read.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    limit: u64,
    most: u64,
}

fn content_type(response: &Response) -> Option<String> {
    let header = response.headers().get(header::CONTENT_TYPE)?;
    header.to_str().ok().map(str::to_owned)
}

/// One page of `GET /v2/<name>/referrers/<digest>`, an image index; `None` where it is none.
pub(super) fn referrers_in(body: &[u8]) -> Option<Listing> {
    Listing::read(body, Member::Manifests, None).ok()
}
