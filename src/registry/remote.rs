//! One repository of a registry server (OCI distribution-spec 1.1).

use std::{collections::BTreeSet, sync::Arc};

use bytes::{Bytes, BytesMut};
use reqwest::{Method, Response, StatusCode, header};

use super::{
    blob_stream::BlobStream,
    client::{Call, RegistryClient, Target},
    error::RegistryError,
    listing::{Listing, Member},
    options::ReadLimits,
    scope::TokenScope,
    source::Lookup,
    transport::{ReadFailure, innermost},
};
use crate::oci::{Descriptor, Digest, Manifest, ManifestError};

/// The most pages of the referrers API that are followed; `limits.evidence` bounds their bytes.
const MAX_PAGES: usize = 128;
/// A manifest over `limits.manifest` is read and hashed up to this many times the limit, and not
/// kept: only if its digest matches is its size a fact about the artifact.
const PROVEN_SIZE_FACTOR: u64 = 8;
/// A longer manifest is not kept after the resolution of its tag, while thousands of bundles wait
/// for their turn to be fetched ([`super::Source::transfer_permit`]).
const MAX_HELD_BYTES: u64 = 16 << 10;
pub(super) const DIGEST_HEADER: &str = "docker-content-digest";

/// One repository of a registry server. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) client: Arc<RegistryClient>,
    pub(super) path: String,
    limits: ReadLimits,
    intent: Intent,
}

/// The access that the tokens of its requests grant.
#[derive(Debug, Clone, Copy)]
enum Intent {
    Read,
    /// Also for reading in the course of a write, so that one token is enough.
    Write,
}

impl Remote {
    pub(super) fn reading(client: Arc<RegistryClient>, path: String, limits: ReadLimits) -> Self {
        Self {
            client,
            path,
            limits,
            intent: Intent::Read,
        }
    }

    pub(super) fn writing(client: Arc<RegistryClient>, path: String, limits: ReadLimits) -> Self {
        Self {
            client,
            path,
            limits,
            intent: Intent::Write,
        }
    }

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

    async fn head_or_get(
        &self,
        tag: &str,
    ) -> Result<Option<(Digest, Option<Manifest>)>, RegistryError> {
        let path = format!("manifests/{tag}");
        let response = self.send("resolve", Method::HEAD, &path).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        match digest_header(&response) {
            Some(digest) => Ok(Some((digest, None))),
            // The header is optional (distribution-spec, "Checking if content exists in the
            // registry").
            None => self.get_tag(tag).await,
        }
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

    /// The manifest under `digest`; `None` when the repository has none.
    pub(super) async fn manifest(
        &self,
        digest: &Digest,
    ) -> Result<Option<Manifest>, RegistryError> {
        let deadline = self.client.transport.deadline();
        let limit = self.limits.manifest;
        let max_read = limit.saturating_mul(PROVEN_SIZE_FACTOR);
        self.client
            .transport
            .within(
                "manifest",
                deadline,
                self.get_manifest(digest, Bounds { limit, max_read }),
            )
            .await
    }

    /// As [`Self::manifest`], with at most as many bytes as `descriptor` says.
    pub(super) async fn described_manifest(
        &self,
        descriptor: &Descriptor,
    ) -> Result<Option<Manifest>, RegistryError> {
        let deadline = self.client.transport.deadline();
        let limit = descriptor.size.min(self.limits.manifest);
        let get = self.get_manifest(
            &descriptor.digest,
            Bounds {
                limit,
                max_read: limit,
            },
        );
        self.client
            .transport
            .within("manifest", deadline, get)
            .await
    }

    /// The manifest that `tag` names now; `None` when the repository has no such tag.
    pub(super) async fn tagged_manifest(
        &self,
        tag: &str,
    ) -> Result<Option<Manifest>, RegistryError> {
        let Some((raw, content_type)) = self.tagged(tag).await? else {
            return Ok(None);
        };
        self.parse(raw, content_type.as_deref()).map(Some)
    }

    /// The bytes that `tag` names now, and their `Content-Type`; `None` when the repository has no
    /// such tag.
    pub(super) async fn tagged(
        &self,
        tag: &str,
    ) -> Result<Option<(Bytes, Option<String>)>, RegistryError> {
        let get = async {
            let response = self
                .send("manifest", Method::GET, &format!("manifests/{tag}"))
                .await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let content_type = content_type(&response);
            Ok(Some((self.manifest_bytes(response).await?, content_type)))
        };
        self.client
            .transport
            .within("manifest", self.client.transport.deadline(), get)
            .await
    }

    async fn get_manifest(
        &self,
        digest: &Digest,
        bounds: Bounds,
    ) -> Result<Option<Manifest>, RegistryError> {
        let response = self
            .send("manifest", Method::GET, &format!("manifests/{digest}"))
            .await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let content_type = content_type(&response);
        let raw = self.checked_bytes(response, digest, bounds).await?;
        self.parse(raw, content_type.as_deref()).map(Some)
    }

    fn parse(&self, raw: Bytes, content_type: Option<&str>) -> Result<Manifest, RegistryError> {
        match Manifest::parse(raw, content_type, self.limits.manifest) {
            // The digest does not cover the header, so a retry may give another one.
            Err(error @ ManifestError::MediaType { .. }) => Err(RegistryError::ContentType {
                operation: "manifest",
                host: self.client.transport.host().to_owned(),
                reason: error.to_string(),
            }),
            parsed => Ok(parsed?),
        }
    }

    /// The bytes with `digest`. Only a defect of bytes whose digest matches is a fact about the
    /// artifact.
    async fn checked_bytes(
        &self,
        mut response: Response,
        digest: &Digest,
        Bounds { limit, max_read }: Bounds,
    ) -> Result<Bytes, RegistryError> {
        let too_large = |proven| {
            let (what, key) = ("manifest".to_owned(), "limits.manifest");
            RegistryError::TooLarge {
                what,
                limit,
                key,
                proven,
            }
        };
        if response
            .content_length()
            .is_some_and(|length| length > max_read)
        {
            return Err(too_large(false));
        }
        let (mut hasher, mut body, mut length) = (digest.hasher(), BytesMut::new(), 0);
        let broken = |error: reqwest::Error| {
            self.client
                .transport
                .unreachable("manifest", innermost(&error))
        };
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            length += chunk.len() as u64;
            if length > max_read {
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
            return Err(RegistryError::Mismatch {
                what: "manifest",
                expected,
                actual,
            });
        }
        if length > limit {
            Err(too_large(true))
        } else {
            Ok(body.freeze())
        }
    }

    async fn manifest_bytes(&self, response: Response) -> Result<Bytes, RegistryError> {
        let limit = self.limits.manifest;
        self.client
            .transport
            .read_limited(response, limit)
            .await
            .map_err(|failure| match failure {
                ReadFailure::TooLarge => {
                    let (what, key) = ("manifest".to_owned(), "limits.manifest");
                    RegistryError::TooLarge {
                        what,
                        limit,
                        key,
                        proven: false,
                    }
                }
                ReadFailure::Broken(reason) => {
                    self.client.transport.unreachable("manifest", reason)
                }
            })
    }

    /// Starts a blob's transfer; `None` when the repository has none. The request goes to this
    /// registry only, whatever the descriptor's `urls` say.
    pub(super) async fn blob(
        &self,
        descriptor: &Descriptor,
    ) -> Result<Option<BlobStream>, RegistryError> {
        let deadline = self.client.transport.deadline();
        let path = format!("blobs/{}", descriptor.digest);
        let response = self
            .client
            .transport
            .within("blob", deadline, self.send("blob", Method::GET, &path))
            .await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(BlobStream::http(
            descriptor.clone(),
            self.client.transport.host().to_owned(),
            deadline,
            response,
        )))
    }

    /// The list of the referrers API for `subject`. Pages are followed until they have `limit`
    /// entries, or more than `limits.evidence` bytes. `None` where the registry has no such API.
    ///
    /// The list is not filtered, because registries report `artifactType` unreliably.
    pub(super) async fn referrers(
        &self,
        subject: &Digest,
        limit: usize,
    ) -> Result<Option<Listing>, RegistryError> {
        let deadline = self.client.transport.deadline();
        self.client
            .transport
            .within("referrers", deadline, self.all_pages(subject, limit))
            .await
    }

    async fn all_pages(
        &self,
        subject: &Digest,
        limit: usize,
    ) -> Result<Option<Listing>, RegistryError> {
        let path = format!("{}/referrers/{subject}", self.path);
        let mut found = Listing::default();
        let mut seen = BTreeSet::new();
        let mut target = Target::Path(&path);
        for page in 0..MAX_PAGES {
            let call = self.call("referrers", Method::GET, target);
            let response = match self.client.send(&call).await {
                Ok(response) if response.status() != StatusCode::NOT_FOUND => response,
                Ok(_) => return Ok((page > 0).then_some(found)),
                // The statuses besides 404 of registries without the API.
                Err(RegistryError::Status {
                    status: 400 | 405 | 501,
                    ..
                }) if page == 0 => return Ok(None),
                Err(error) => return Err(error),
            };
            let next = self.client.transport.next_page(&response);
            let body = match self.manifest_bytes(response).await {
                // The entries of earlier pages stay.
                Err(error) if page > 0 && error.is_unusable_content() => {
                    found.skipped.push(format!("page {page}: {error}"));
                    break;
                }
                body => body?,
            };
            let listed = referrers_in(&body);
            if listed.is_some() {
                self.client.capabilities.record_referrers_api();
            }
            let Some(listed) = listed else {
                // Some front ends answer every unknown path with 200 and a web page.
                return if page == 0 {
                    Ok(None)
                } else {
                    Err(self
                        .client
                        .transport
                        .protocol("referrers", "a page is not an image index".to_owned()))
                };
            };
            found.size += listed.size;
            found.entries.extend(listed.entries);
            found.skipped.extend(listed.skipped);
            match next {
                Some(_) if found.entries.len() >= limit => break,
                Some(_) if found.size > self.limits.evidence => {
                    found
                        .skipped
                        .push("there are more pages, beyond limits.evidence".to_owned());
                    break;
                }
                Some(url) if seen.insert(url.clone()) => target = Target::Url(url),
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
        self.client
            .send(&self.call(operation, method, Target::Path(&path)))
            .await
    }

    pub(super) fn call<'a>(
        &'a self,
        operation: &'static str,
        method: Method,
        target: Target<'a>,
    ) -> Call<'a> {
        let scope = match self.intent {
            Intent::Read => TokenScope::Pull(&self.path),
            Intent::Write => TokenScope::Push(&self.path),
        };
        Call {
            operation,
            method,
            scope,
            target,
            body: None,
        }
    }
}

/// The most bytes of a manifest that are kept, and that are read.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    limit: u64,
    max_read: u64,
}

fn digest_header(response: &Response) -> Option<Digest> {
    let header = response.headers().get(DIGEST_HEADER)?;
    header.to_str().ok()?.parse().ok()
}

fn content_type(response: &Response) -> Option<String> {
    let header = response.headers().get(header::CONTENT_TYPE)?;
    header.to_str().ok().map(str::to_owned)
}

/// One page of `GET /v2/<name>/referrers/<digest>`; `None` where it is not an image index.
pub(super) fn referrers_in(body: &[u8]) -> Option<Listing> {
    Listing::read(body, Member::Manifests, None).ok()
}
