//! One repository of a registry server (OCI distribution-spec 1.1).

use std::{collections::BTreeSet, sync::Arc};

use bytes::{Bytes, BytesMut};
use reqwest::{Method, Response, StatusCode, header};
use url::Url;

use super::{
    blob_stream::BlobStream,
    capabilities::HeadSupport,
    client::{ACCEPT_MANIFESTS, Call, RegistryClient, Target},
    error::RegistryError,
    listing::{Listing, Member},
    options::ReadLimits,
    scope::TokenScope,
    source::Lookup,
    transport::{ReadFailure, innermost},
};
use crate::oci::{Descriptor, Digest, Manifest, ManifestError, media_type};

/// The most pages of the referrers API that are followed; `limits.evidence` bounds their bytes.
const MAX_PAGES: usize = 1000;
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

    /// Resolves a tag by HEAD, which Docker Hub does not count, and by GET where HEAD is refused,
    /// finds nothing or names no digest. GET is asked once an hour after a HEAD that it confirms,
    /// so that a missing tag does not cost two requests each time; and alone for an hour where it
    /// knows more.
    async fn head_or_get(
        &self,
        tag: &str,
    ) -> Result<Option<(Digest, Option<Manifest>)>, RegistryError> {
        let capabilities = &self.client.capabilities;
        let known = capabilities.head(&self.path, tag);
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
                    capabilities.record_head(&self.path, tag, None);
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
                capabilities.record_head(&self.path, tag, Some(HeadSupport::Confirmed));
                Ok(None)
            }
            (Err(error), head) if is_method_refused(&error) => {
                capabilities.record_head(&self.path, tag, Some(HeadSupport::Confirmed));
                head
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
        capabilities.record_head(&self.path, tag, Some(HeadSupport::Missing));
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
        let request = self.send_blob(&descriptor.digest, None);
        let response = self
            .client
            .transport
            .within("blob", deadline, request)
            .await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let (descriptor, remote) = (descriptor.clone(), self.clone());
        Ok(Some(BlobStream::http(
            descriptor, remote, deadline, response,
        )))
    }

    /// Requests a blob, or the rest of it from the byte `from`.
    pub(super) async fn send_blob(
        &self,
        digest: &Digest,
        from: Option<u64>,
    ) -> Result<Response, RegistryError> {
        let path = format!("{}/blobs/{digest}", self.path);
        let call = self.call("blob", Method::GET, Target::Path(&path));
        let call = Call {
            accept: "*/*",
            from,
            ..call
        };
        self.client.send(&call).await
    }

    /// The list of the referrers API for `subject`. Pages are followed until they have `limit`
    /// entries, or more than `limits.evidence` bytes. `None` where the registry has no such API.
    /// Where a later page fails, the entries before it are listed, with the failure.
    ///
    /// The list is not filtered, because registries report `artifactType` unreliably.
    pub(super) async fn referrers(
        &self,
        subject: &Digest,
        limit: usize,
    ) -> Result<Option<Listing>, RegistryError> {
        let (transport, deadline) = (&self.client.transport, self.client.transport.deadline());
        let path = format!("{}/referrers/{subject}", self.path);
        let first = self.referrers_page(Target::Path(&path));
        let first = match transport.within("referrers", deadline, first).await {
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
            next = match transport.within("referrers", deadline, listed).await {
                Ok(Some((listed, next))) => {
                    found.extend(listed);
                    next
                }
                Ok(None) => Err(transport.protocol("referrers", format!("page {page} is missing"))),
                Err(error) if error.is_unusable_content() => {
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
            accept: ACCEPT_MANIFESTS,
            from: None,
            body: None,
        }
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

/// Whether a registry refuses a HEAD for what it is, so that a GET may be answered.
fn is_method_refused(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status, .. } => matches!(status, 400 | 405 | 501),
        RegistryError::Denied { status, .. } => *status == 403,
        _ => false,
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
