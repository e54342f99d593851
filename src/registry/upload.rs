//! Writes to a repository of a registry server (distribution-spec, "Push").

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, header};
use tokio::time::sleep;
use url::Url;

use super::{
    client::{Call, MAX_RETRY_WAIT, RequestBody, Target},
    error::{Class, RegistryError},
    payload::{OCTET_STREAM, Payload, UploadBody},
    progress::Progress,
    referrers::{not_an_index, referrers_tag, with_referrer},
    remote::{DIGEST_HEADER, Remote},
    retry::{self, is_retryable},
    scope::TokenScope,
};
use crate::{
    oci::{Descriptor, Digest, Manifest, media_type},
    telemetry::{SENTENCE_BYTES, cut},
};

/// A larger blob is sent in chunks.
const CHUNKED_UPLOAD_BYTES: u64 = 16 << 20;
/// The size of a chunk: the bytes that a broken connection costs where the registry keeps whole
/// chunks only. Each chunk is one more request, and in some registries a copy of all bytes before
/// it.
const CHUNK_BYTES: u64 = 32 << 20;
/// The most failures in a row without progress in between.
const MAX_CONSECUTIVE_FAILURES: u32 = 6;
/// The most rewrites of an index of referrers: concurrent writers overwrite each other a few times
/// at most.
const MAX_TAG_RETRIES: u32 = 8;

/// An upload session at the registry.
#[derive(Debug, Clone)]
struct UploadSession {
    url: Url,
    chunk: u64,
}

/// The answer to the start of an upload.
enum UploadStart {
    /// The registry has the blob.
    Complete,
    Session(UploadSession),
}

/// The state of an upload in chunks.
#[derive(Debug, Clone, Copy)]
enum UploadOffset {
    /// The registry has this many bytes.
    At(u64),
    /// After a failure: the registry has to be queried.
    Unknown,
    /// The registry has the blob.
    Done,
}

/// Why a blob could not be sent in chunks.
enum ChunkedUploadError {
    /// The registry does not support it.
    Unsupported,
    Failed(RegistryError),
}

impl Remote {
    pub(super) async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, RegistryError> {
        let path = format!("blobs/{}", descriptor.digest);
        let transport = &self.client.transport;
        let request = self.send("blob", Method::HEAD, &path);
        Ok(transport
            .within("blob", transport.deadline(), request)
            .await?
            .status()
            != StatusCode::NOT_FOUND)
    }

    /// Returns `false` where the registry can't mount, or hides the other repository: it starts an
    /// upload instead, which is cancelled.
    pub(super) async fn mount(
        &self,
        descriptor: &Descriptor,
        from: &str,
    ) -> Result<bool, RegistryError> {
        let path = format!(
            "{}/blobs/uploads/?mount={}&from={from}",
            self.path, descriptor.digest
        );
        let mut call = self.call("mount", Method::POST, Target::Path(&path));
        call.scope = TokenScope::Mount {
            into: &self.path,
            from,
        };
        let transport = &self.client.transport;
        let mounted = transport
            .within("mount", transport.deadline(), self.client.send(&call))
            .await;
        match mounted {
            Ok(response) if response.status() == StatusCode::CREATED => Ok(true),
            Ok(response) => {
                if let Ok(session) = self.session(&response) {
                    self.cancel(&session).await;
                }
                Ok(false)
            }
            // The upload that follows shows whether the write is denied.
            Err(error) if !is_retryable(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a blob that the registry does not have.
    pub(super) async fn upload(
        &self,
        descriptor: &Descriptor,
        body: &UploadBody,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        if body.size() > CHUNKED_UPLOAD_BYTES {
            match self.upload_in_chunks(descriptor, body, progress).await {
                Err(ChunkedUploadError::Unsupported) => {
                    tracing::debug!(
                        host = self.client.transport.host(),
                        "the registry takes no chunks; sending the blob whole"
                    )
                }
                Err(ChunkedUploadError::Failed(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
        let mut failures = 0;
        loop {
            let Err(error) = self.upload_whole(descriptor, body, progress).await else {
                return Ok(());
            };
            retry_or_fail(&mut failures, error).await?;
            progress.update(descriptor, 0);
            // The blob may have arrived, and only the answer was lost.
            if self.has_blob(descriptor).await? {
                return Ok(());
            }
        }
    }

    async fn upload_whole(
        &self,
        descriptor: &Descriptor,
        body: &UploadBody,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let session = match self.start_upload().await? {
            UploadStart::Complete => return Ok(()),
            UploadStart::Session(session) => session,
        };
        let payload = Payload::whole(body, OCTET_STREAM);
        let report = |sent| progress.update(descriptor, sent);
        self.commit(
            &session,
            descriptor,
            Some(RequestBody {
                payload: &payload,
                progress: &report,
            }),
        )
        .await
    }

    async fn upload_in_chunks(
        &self,
        descriptor: &Descriptor,
        body: &UploadBody,
        progress: &dyn Progress,
    ) -> Result<(), ChunkedUploadError> {
        let mut session = match self.start_upload().await? {
            UploadStart::Complete => return Ok(()),
            UploadStart::Session(session) => session,
        };
        let (mut offset, mut furthest, mut failures) = (UploadOffset::At(0), 0, 0);
        loop {
            let step = match offset {
                UploadOffset::Done => return Ok(()),
                UploadOffset::At(at) if at == body.size() => self
                    .commit(&session, descriptor, None)
                    .await
                    .map(|()| UploadOffset::Done),
                UploadOffset::At(at) => {
                    self.patch(&mut session, descriptor, body, at, progress)
                        .await
                }
                UploadOffset::Unknown => {
                    self.query_offset(&mut session, descriptor, body.size())
                        .await
                }
            };
            match step {
                Ok(step) => {
                    offset = step;
                    if let UploadOffset::At(at) = step {
                        progress.update(descriptor, at);
                        if at > furthest {
                            (furthest, failures) = (at, 0);
                        }
                    }
                }
                Err(error) if furthest == 0 && rejects_chunks(&error) => {
                    self.cancel(&session).await;
                    return Err(ChunkedUploadError::Unsupported);
                }
                Err(error) => {
                    retry_or_fail(&mut failures, error).await?;
                    offset = UploadOffset::Unknown;
                }
            }
        }
    }

    /// Sends the chunk that starts at `at`.
    async fn patch(
        &self,
        session: &mut UploadSession,
        descriptor: &Descriptor,
        body: &UploadBody,
        at: u64,
        progress: &dyn Progress,
    ) -> Result<UploadOffset, RegistryError> {
        let payload = Payload::chunk(body, at, session.chunk.min(body.size() - at));
        let report = |sent| progress.update(descriptor, at + sent);
        let mut call = self.call("upload", Method::PATCH, Target::Url(session.url.clone()));
        call.body = Some(RequestBody {
            payload: &payload,
            progress: &report,
        });
        let response = self.client.attempt(&call).await?;
        session.url = self
            .session(reject_not_found(
                "upload",
                &response,
                self.client.transport.host(),
            )?)?
            .url;
        let next = last_byte(&response).map_or_else(|| at + payload.length(), |end| end + 1);
        if next <= at || next > at + payload.length() {
            return Err(self.client.transport.protocol(
                "upload",
                format!("it reports {next} bytes after a chunk at {at} was sent"),
            ));
        }
        Ok(UploadOffset::At(next))
    }

    /// Queries how much of the blob the registry has, after a failure.
    async fn query_offset(
        &self,
        session: &mut UploadSession,
        descriptor: &Descriptor,
        size: u64,
    ) -> Result<UploadOffset, RegistryError> {
        // The blob may have arrived, and only the answer was lost.
        if self.has_blob(descriptor).await? {
            return Ok(UploadOffset::Done);
        }
        let call = self.call("upload", Method::GET, Target::Url(session.url.clone()));
        let response = self.client.attempt(&call).await?;
        // `0-0` is the first byte, or no byte at all (docker-registry).
        let is_success = response.status().is_success();
        let stored = last_byte(&response).filter(|end| is_success && (1..size).contains(end));
        let updated = self.session(&response);
        drop(response);
        match stored {
            Some(end) => {
                if let Ok(updated) = updated {
                    session.url = updated.url;
                }
                Ok(UploadOffset::At(end + 1))
            }
            None => match self.start_upload().await? {
                UploadStart::Complete => Ok(UploadOffset::Done),
                UploadStart::Session(opened) => {
                    *session = opened;
                    Ok(UploadOffset::At(0))
                }
            },
        }
    }

    async fn start_upload(&self) -> Result<UploadStart, RegistryError> {
        let request = self.send("upload", Method::POST, "blobs/uploads/");
        let response = self
            .client
            .transport
            .within("upload", self.client.transport.deadline(), request)
            .await?;
        match response.status() {
            StatusCode::NOT_FOUND => Err(RegistryError::NoSuchRepository {
                repository: format!("{}/{}", self.client.transport.host(), self.path),
            }),
            StatusCode::CREATED => Ok(UploadStart::Complete),
            _ => self.session(&response).map(UploadStart::Session),
        }
    }

    /// Completes an upload; `rest` are the bytes that are not sent yet.
    async fn commit(
        &self,
        session: &UploadSession,
        descriptor: &Descriptor,
        rest: Option<RequestBody<'_>>,
    ) -> Result<(), RegistryError> {
        let mut url = session.url.clone();
        // The query belongs to the session, so it is kept.
        url.query_pairs_mut()
            .append_pair("digest", descriptor.digest.as_str());
        let mut call = self.call("upload", Method::PUT, Target::Url(url));
        call.body = rest;
        let sent = match rest {
            Some(_) => self.client.attempt(&call).await?,
            // An empty body gets the longer deadline of uploads: storing may take a while.
            None => self.commit_empty(call).await?,
        };
        check_digest(
            "blob",
            reject_not_found("upload", &sent, self.client.transport.host())?,
            &descriptor.digest,
        )
    }

    async fn commit_empty(&self, mut call: Call<'_>) -> Result<Response, RegistryError> {
        let payload = Payload::whole(&UploadBody::Memory(Bytes::new()), OCTET_STREAM);
        call.body = Some(RequestBody {
            payload: &payload,
            progress: &|_| {},
        });
        self.client.attempt(&call).await
    }

    /// Best effort: registries remove abandoned uploads.
    async fn cancel(&self, session: &UploadSession) {
        let call = self.call("upload", Method::DELETE, Target::Url(session.url.clone()));
        let _ = self.client.attempt(&call).await;
    }

    fn session(&self, response: &Response) -> Result<UploadSession, RegistryError> {
        let text = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let url = text("location")
            .and_then(|location| response.url().join(location).ok())
            .ok_or_else(|| {
                self.client.transport.protocol(
                    "upload",
                    "the answer to the upload has no usable Location".to_owned(),
                )
            })?;
        self.client.transport.check_hop("upload", &url)?;
        let minimum = text("oci-chunk-min-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        Ok(UploadSession {
            url,
            chunk: CHUNK_BYTES.max(minimum),
        })
    }

    /// Puts a manifest, and returns whether the registry lists it in its referrers API
    /// (`OCI-Subject`).
    pub(super) async fn put_manifest(
        &self,
        raw: &Bytes,
        media_type: &str,
        tag: Option<&str>,
    ) -> Result<bool, RegistryError> {
        let digest = Digest::sha256(raw);
        let payload = Payload::whole(&UploadBody::Memory(raw.clone()), media_type);
        let path = format!("{}/manifests/{}", self.path, tag.unwrap_or(digest.as_str()));
        let mut call = self.call("push", Method::PUT, Target::Path(&path));
        call.body = Some(RequestBody {
            payload: &payload,
            progress: &|_| {},
        });
        let response = self.client.send(&call).await?;
        if response.status() == StatusCode::NOT_FOUND {
            let repository = format!("{}/{}", self.client.transport.host(), self.path);
            return Err(RegistryError::NoSuchRepository { repository });
        }
        // A server that answers 200 to every request has stored nothing.
        if response.status() != StatusCode::CREATED
            && !response.headers().contains_key(DIGEST_HEADER)
        {
            let reason = format!(
                "HTTP {} without a digest instead of 201",
                response.status().as_u16()
            );
            return Err(self.client.transport.protocol("push", reason));
        }
        check_digest("manifest", &response, &digest)?;
        Ok(response.headers().contains_key("oci-subject"))
    }

    pub(super) async fn attach(
        &self,
        referrer: &Manifest,
        entry: &Descriptor,
        subject: &Digest,
    ) -> Result<(), RegistryError> {
        if self
            .put_manifest(referrer.raw(), referrer.media_type(), None)
            .await?
        {
            return Ok(());
        }
        let tag = referrers_tag(subject);
        // The specification has no conditional PUT, so the tag is read again after each write, to
        // detect that another client overwrote it.
        for attempt in 0..MAX_TAG_RETRIES {
            let old = self.tagged_manifest(&tag).await?;
            let changed = with_referrer(old.as_ref(), entry)
                .map_err(|error| not_an_index(&tag, self.client.transport.host(), &error))?;
            let Some(changed) = changed else {
                return Ok(());
            };
            if attempt > 0 {
                sleep(retry::delay(attempt + 1, None)).await;
            }
            self.put_manifest(&changed, media_type::OCI_INDEX, Some(&tag))
                .await?;
        }
        Err(self.client.transport.protocol(
            "attach",
            format!(
                "{tag} does not keep the referrer: other clients write to it as well; try again"
            ),
        ))
    }
}

impl From<RegistryError> for ChunkedUploadError {
    fn from(error: RegistryError) -> Self {
        Self::Failed(error)
    }
}

/// Waits before the next attempt, or returns the error where there is none.
async fn retry_or_fail(failures: &mut u32, error: RegistryError) -> Result<(), RegistryError> {
    *failures += 1;
    let wait = match error.class() {
        Class::RateLimited { retry_after } => retry_after,
        _ => None,
    };
    // 404 and 416: the registry has lost the session or its offset.
    let retryable = is_retryable(&error)
        || matches!(
            error,
            RegistryError::Status {
                status: 404 | 416,
                ..
            }
        );
    if !retryable
        || *failures >= MAX_CONSECUTIVE_FAILURES
        || wait.is_some_and(|wait| wait > MAX_RETRY_WAIT)
    {
        return Err(error);
    }
    let delay = retry::delay(*failures + 1, wait);
    let error = error.to_string();
    tracing::debug!(
        setbacks = *failures,
        ?delay,
        error = &*cut(&error, SENTENCE_BYTES),
        "an upload failed; resuming"
    );
    sleep(delay).await;
    Ok(())
}

/// Whether a registry that takes no chunks answers so: an error of the request, or an answer
/// without the means to continue.
fn rejects_chunks(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::Status {
            status: 400 | 404 | 405 | 411 | 415 | 416 | 501,
            ..
        }
    ) || matches!(
        error,
        RegistryError::Protocol {
            operation: "upload",
            ..
        }
    )
}

/// The last byte in `Range: 0-<end>`, with or without a unit.
fn last_byte(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::RANGE)?.to_str().ok()?;
    range.rsplit_once('-')?.1.trim().parse().ok()
}

/// 404 is an answer to a read, but an error to an upload.
fn reject_not_found<'a>(
    operation: &'static str,
    response: &'a Response,
    host: &str,
) -> Result<&'a Response, RegistryError> {
    if response.status() != StatusCode::NOT_FOUND {
        return Ok(response);
    }
    let (host, detail) = (
        host.to_owned(),
        " (the registry has lost the upload)".to_owned(),
    );
    Err(RegistryError::Status {
        operation,
        host,
        status: 404,
        retry_after: None,
        detail,
    })
}

/// The header is optional; a contradicting one is an error.
fn check_digest(
    what: &'static str,
    response: &Response,
    expected: &Digest,
) -> Result<(), RegistryError> {
    let header = response
        .headers()
        .get(DIGEST_HEADER)
        .and_then(|value| value.to_str().ok());
    let actual = header.and_then(|text| text.parse::<Digest>().ok());
    match actual.filter(|actual| actual.algorithm() == expected.algorithm() && actual != expected) {
        Some(actual) => Err(RegistryError::Mismatch {
            what,
            expected: expected.to_string(),
            actual: actual.to_string(),
        }),
        None => Ok(()),
    }
}
