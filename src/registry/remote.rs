//! One repository of a registry server (OCI distribution-spec 1.1).

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use reqwest::{Method, Response, StatusCode, header};

use super::{
    client::{ACCEPT_MANIFESTS, Call, RegistryClient, Target},
    error::RegistryError,
    limiter,
    listing::{Listing, Member},
    options::ReadLimits,
    scope::TokenScope,
    transport::{ReadFailure, innermost},
};
use crate::oci::{Descriptor, Digest, Manifest, ManifestError};

/// A manifest over `limits.manifest` is read and hashed up to this many times the limit, and not
/// kept: only if its digest matches is its size a fact about the artifact.
const PROVEN_SIZE_FACTOR: u64 = 8;
pub(super) const DIGEST_HEADER: &str = "docker-content-digest";

/// One repository of a registry server. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) client: Arc<RegistryClient>,
    pub(super) path: String,
    pub(super) limits: ReadLimits,
    intent: Intent,
    mirror_of: Option<Arc<str>>,
    /// The operations that this mirror has refused since it last delivered something by them.
    refused: Arc<Mutex<BTreeSet<&'static str>>>,
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
            mirror_of: None,
            refused: Arc::default(),
        }
    }

    /// This repository of `registry` at a host that mirrors it.
    pub(super) fn mirroring(self, registry: &str) -> Self {
        Self {
            mirror_of: Some(registry.into()),
            ..self
        }
    }

    pub(super) fn writing(client: Arc<RegistryClient>, path: String, limits: ReadLimits) -> Self {
        Self {
            client,
            path,
            limits,
            intent: Intent::Write,
            mirror_of: None,
            refused: Arc::default(),
        }
    }

    /// Whether the same client asks for the same content within the same limits.
    pub(super) fn is_interchangeable(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.client, &other.client)
            && self.key() == other.key()
            && self.limits == other.limits
    }

    /// The registry that this host mirrors.
    pub(super) fn mirror_of(&self) -> Option<&str> {
        self.mirror_of.as_deref()
    }

    pub(super) fn is_mirror(&self) -> bool {
        self.mirror_of.is_some()
    }

    /// Records that the host refused an operation; whether it did not do so before.
    pub(super) fn record_refusal(&self, operation: &'static str) -> bool {
        self.lock_refused().insert(operation)
    }

    /// Records that the host delivered something; whether it refused the operation before.
    pub(super) fn record_delivery(&self, operation: &'static str) -> bool {
        self.lock_refused().remove(operation)
    }

    fn lock_refused(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the repository among all at this host, which may mirror several registries.
    pub(super) fn key(&self) -> Cow<'_, str> {
        match self.mirror_of() {
            Some(registry) => format!("{}?ns={registry}", self.path).into(),
            None => self.path.as_str().into(),
        }
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

    pub(super) fn parse(
        &self,
        raw: Bytes,
        content_type: Option<&str>,
    ) -> Result<Manifest, RegistryError> {
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
    pub(super) async fn checked_bytes(
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
            limiter::record_answer(&response);
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

    pub(super) async fn manifest_bytes(&self, response: Response) -> Result<Bytes, RegistryError> {
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

    /// The descriptors in the document that `tag` names now; `None` without such a tag. A document
    /// or entry that can't be used is reported in `skipped`.
    pub(super) async fn tagged_listing(
        &self,
        tag: &str,
        member: Member,
    ) -> Result<Option<Listing>, RegistryError> {
        match self.tagged(tag).await {
            Ok(None) => Ok(None),
            Ok(Some((raw, content_type))) => Ok(Some(Listing::of_tag(
                tag,
                &raw,
                member,
                content_type.as_deref(),
            ))),
            Err(error) if error.is_unusable_list() => Ok(Some(Listing::unusable(tag, error))),
            Err(error) => Err(error),
        }
    }

    /// Requests a blob, or the rest of it from the byte `from`. The request goes to this registry
    /// only, whatever the descriptor's `urls` say.
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
            mirror_of: self.mirror_of(),
            accept: ACCEPT_MANIFESTS,
            from: None,
            validators: None,
            body: None,
        }
    }
}

/// The most bytes of a manifest that are kept, and that are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) limit: u64,
    pub(super) max_read: u64,
}

pub(super) fn content_type(response: &Response) -> Option<String> {
    let header = response.headers().get(header::CONTENT_TYPE)?;
    header.to_str().ok().map(str::to_owned)
}
