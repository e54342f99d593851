//! Writing to a repository of a registry server (distribution-spec, "Push").

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, header};
use tokio::time::sleep;
use url::Url;

use super::{
    client::{Sending, Target, may_pass},
    destination::{Progress, with_referrer},
    error::{Class, RegistryError},
    layout::{fallback_tag, not_an_index},
    payload::{Load, OCTETS, Payload},
    remote::{DIGEST_HEADER, Remote},
    retry,
    scope::Access,
};
use crate::{
    oci::{Descriptor, Digest, Manifest, media_type},
    telemetry::{SENTENCE_BYTES, cut},
};

/// A blob larger than this goes in chunks.
const IN_CHUNKS: u64 = 16 << 20;
/// What a broken connection costs where the registry keeps only whole chunks. Each one is a
/// request more, and in some registries a copy of all that came before.
const CHUNK: u64 = 32 << 20;
/// Broken transfers in a row, without a byte gained in between.
const SETBACKS: u32 = 6;
/// Two writers of one index of referrers take turns; more than this many is not bad luck.
const TURNS: u32 = 8;

/// An upload that the registry has opened.
#[derive(Debug, Clone)]
struct Session {
    url: Url,
    chunk: u64,
}

/// What a registry makes of the wish to upload.
enum Opened {
    /// The blob is there now.
    Done,
    Session(Session),
}

/// Where an upload in chunks stands.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// The registry has this many bytes.
    At(u64),
    /// Something broke; only the registry knows.
    Unknown,
    /// The registry has the blob.
    Done,
}

/// Why a blob could not be sent in chunks.
enum Chunking {
    /// The registry does not do that.
    Refused,
    Failed(RegistryError),
}

impl Remote {
    pub(super) async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, RegistryError> {
        let path = format!("blobs/{}", descriptor.digest);
        let asked = self.send("blob", Method::HEAD, &path);
        Ok(self.wire.within("blob", self.wire.deadline(), asked).await?.status() != StatusCode::NOT_FOUND)
    }

    /// A registry that can't, or won't tell us about the other repository, is no failure:
    /// it opens an upload instead, and we take that back.
    pub(super) async fn mount(&self, descriptor: &Descriptor, from: &str) -> Result<bool, RegistryError> {
        let path = format!("{}/blobs/uploads/?mount={}&from={from}", self.path, descriptor.digest);
        let mut call = self.call("mount", Method::POST, Target::Below(&path));
        call.access = Access::Mount { into: &self.path, from };
        let asked = self.wire.within("mount", self.wire.deadline(), self.wire.send(&call)).await;
        match asked {
            Ok(response) if response.status() == StatusCode::CREATED => Ok(true),
            Ok(response) => {
                if let Ok(session) = self.session(&response) {
                    self.cancel(&session).await;
                }
                Ok(false)
            }
            // Whether we may write at all is for the upload to find out.
            Err(error) if !may_pass(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a blob that the registry does not have.
    pub(super) async fn upload(
        &self,
        descriptor: &Descriptor,
        load: &Load,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        if load.size() > IN_CHUNKS {
            match self.in_chunks(descriptor, load, progress).await {
                Err(Chunking::Refused) => tracing::debug!(host = self.wire.host(), "no chunks here: sending the whole"),
                Err(Chunking::Failed(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
        let mut setbacks = 0;
        loop {
            let Err(error) = self.whole(descriptor, load, progress).await else { return Ok(()) };
            setback(&mut setbacks, error).await?;
            progress.at(descriptor, 0);
            // All of it may have arrived, and only the answer was lost.
            if self.has_blob(descriptor).await? {
                return Ok(());
            }
        }
    }

    async fn whole(&self, descriptor: &Descriptor, load: &Load, progress: &dyn Progress) -> Result<(), RegistryError> {
        let session = match self.open().await? {
            Opened::Done => return Ok(()),
            Opened::Session(session) => session,
        };
        let payload = Payload::whole(load, OCTETS);
        let report = |sent| progress.at(descriptor, sent);
        self.commit(&session, descriptor, Some(Sending { payload: &payload, progress: &report })).await
    }

    async fn in_chunks(&self, descriptor: &Descriptor, load: &Load, progress: &dyn Progress) -> Result<(), Chunking> {
        let mut session = match self.open().await? {
            Opened::Done => return Ok(()),
            Opened::Session(session) => session,
        };
        let (mut standing, mut furthest, mut setbacks) = (Standing::At(0), 0, 0);
        loop {
            let step = match standing {
                Standing::Done => return Ok(()),
                Standing::At(at) if at == load.size() => {
                    self.commit(&session, descriptor, None).await.map(|()| Standing::Done)
                }
                Standing::At(at) => self.patch(&mut session, descriptor, load, at, progress).await,
                Standing::Unknown => self.find_out(&mut session, descriptor, load.size()).await,
            };
            match step {
                Ok(step) => {
                    standing = step;
                    if let Standing::At(at) = step {
                        progress.at(descriptor, at);
                        if at > furthest {
                            (furthest, setbacks) = (at, 0);
                        }
                    }
                }
                Err(error) if furthest == 0 && is_refusal(&error) => {
                    self.cancel(&session).await;
                    return Err(Chunking::Refused);
                }
                Err(error) => {
                    setback(&mut setbacks, error).await?;
                    standing = Standing::Unknown;
                }
            }
        }
    }

    /// Sends the chunk that starts at `at`.
    async fn patch(
        &self,
        session: &mut Session,
        descriptor: &Descriptor,
        load: &Load,
        at: u64,
        progress: &dyn Progress,
    ) -> Result<Standing, RegistryError> {
        let payload = Payload::chunk(load, at, session.chunk.min(load.size() - at));
        let report = |sent| progress.at(descriptor, at + sent);
        let mut call = self.call("upload", Method::PATCH, Target::At(session.url.clone()));
        call.payload = Some(Sending { payload: &payload, progress: &report });
        let response = self.wire.attempt(&call).await?;
        session.url = self.session(found("upload", &response, self.wire.host())?)?.url;
        let next = ends_at(&response).map_or_else(|| at + payload.length(), |end| end + 1);
        if next <= at || next > at + payload.length() {
            return Err(self.wire.protocol("upload", format!("it has {next} bytes after those from {at} were sent")));
        }
        Ok(Standing::At(next))
    }

    /// After something broke: how much of the blob the registry has.
    async fn find_out(
        &self,
        session: &mut Session,
        descriptor: &Descriptor,
        size: u64,
    ) -> Result<Standing, RegistryError> {
        // All of it may have arrived, and only the answer was lost.
        if self.has_blob(descriptor).await? {
            return Ok(Standing::Done);
        }
        let call = self.call("upload", Method::GET, Target::At(session.url.clone()));
        let response = self.wire.attempt(&call).await?;
        // `0-0` is the first byte, or none at all (docker-registry).
        match ends_at(&response).filter(|end| (1..size).contains(end)) {
            Some(end) if response.status().is_success() => {
                if let Ok(told) = self.session(&response) {
                    session.url = told.url;
                }
                Ok(Standing::At(end + 1))
            }
            _ => match self.open().await? {
                Opened::Done => Ok(Standing::Done),
                Opened::Session(opened) => {
                    *session = opened;
                    Ok(Standing::At(0))
                }
            },
        }
    }

    async fn open(&self) -> Result<Opened, RegistryError> {
        let asked = self.send("upload", Method::POST, "blobs/uploads/");
        let response = self.wire.within("upload", self.wire.deadline(), asked).await?;
        match response.status() {
            StatusCode::NOT_FOUND => {
                Err(RegistryError::NoSuchRepository { repository: format!("{}/{}", self.wire.host(), self.path) })
            }
            StatusCode::CREATED => Ok(Opened::Done),
            _ => self.session(&response).map(Opened::Session),
        }
    }

    /// Closes an upload; `rest` is what has not been sent yet.
    async fn commit(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        rest: Option<Sending<'_>>,
    ) -> Result<(), RegistryError> {
        let mut url = session.url.clone();
        // Whatever the registry keeps in the query is the session's.
        url.query_pairs_mut().append_pair("digest", descriptor.digest.as_str());
        let mut call = self.call("upload", Method::PUT, Target::At(url));
        call.payload = rest;
        let sent = match rest {
            Some(_) => self.wire.attempt(&call).await?,
            // Storing may take a while: patience as after a body.
            None => self.commit_nothing(call).await?,
        };
        check_digest("blob", found("upload", &sent, self.wire.host())?, &descriptor.digest)
    }

    async fn commit_nothing(&self, mut call: super::client::Call<'_>) -> Result<Response, RegistryError> {
        let payload = Payload::whole(&Load::Memory(Bytes::new()), OCTETS);
        call.payload = Some(Sending { payload: &payload, progress: &|_| {} });
        self.wire.attempt(&call).await
    }

    /// Best effort: registries sweep what is left lying.
    async fn cancel(&self, session: &Session) {
        let call = self.call("upload", Method::DELETE, Target::At(session.url.clone()));
        let _ = self.wire.attempt(&call).await;
    }

    fn session(&self, response: &Response) -> Result<Session, RegistryError> {
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let url = text("location")
            .and_then(|location| response.url().join(location).ok())
            .ok_or_else(|| self.wire.protocol("upload", "an upload without a usable Location".to_owned()))?;
        self.wire.check_hop("upload", &url)?;
        let least = text("oci-chunk-min-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Session { url, chunk: CHUNK.max(least) })
    }

    /// Puts a manifest, and says whether the registry has taken it into its index of
    /// referrers.
    pub(super) async fn put_manifest(
        &self,
        raw: &Bytes,
        media_type: &str,
        tag: Option<&str>,
    ) -> Result<bool, RegistryError> {
        let digest = Digest::sha256(raw);
        let payload = Payload::whole(&Load::Memory(raw.clone()), media_type);
        let path = format!("{}/manifests/{}", self.path, tag.unwrap_or(digest.as_str()));
        let mut call = self.call("push", Method::PUT, Target::Below(&path));
        call.payload = Some(Sending { payload: &payload, progress: &|_| {} });
        let response = self.wire.send(&call).await?;
        if response.status() == StatusCode::NOT_FOUND {
            let repository = format!("{}/{}", self.wire.host(), self.path);
            return Err(RegistryError::NoSuchRepository { repository });
        }
        // Whatever else answers 200 to everything has stored nothing.
        if response.status() != StatusCode::CREATED && !response.headers().contains_key(DIGEST_HEADER) {
            let reason = format!("HTTP {} without a digest to a manifest, instead of 201", response.status().as_u16());
            return Err(self.wire.protocol("push", reason));
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
        if self.put_manifest(referrer.raw(), referrer.media_type(), None).await? {
            return Ok(());
        }
        let tag = fallback_tag(subject);
        // The specification has no way to replace only what was read, so whoever writes
        // looks afterwards whether somebody else wrote in between.
        for turn in 0..TURNS {
            let old = self.tagged_manifest(&tag).await?;
            let changed =
                with_referrer(old.as_ref(), entry).map_err(|error| not_an_index(&tag, self.wire.host(), &error))?;
            let Some(changed) = changed else { return Ok(()) };
            if turn > 0 {
                sleep(retry::delay(turn + 1, None)).await;
            }
            self.put_manifest(&changed, media_type::OCI_INDEX, Some(&tag)).await?;
        }
        Err(self.wire.protocol("attach", format!("{tag} does not keep what is written to it; others write to it, too")))
    }
}

impl From<RegistryError> for Chunking {
    fn from(error: RegistryError) -> Self {
        Self::Failed(error)
    }
}

/// Waits before another try, or gives the error back when there shall be none.
async fn setback(setbacks: &mut u32, error: RegistryError) -> Result<(), RegistryError> {
    *setbacks += 1;
    let wait = match error.class() {
        Class::RateLimited { retry_after } => retry_after,
        _ => None,
    };
    // 404 and 416: the registry has lost the session, or its place in it.
    let passes = may_pass(&error) || matches!(error, RegistryError::Status { status: 404 | 416, .. });
    if !passes || *setbacks >= SETBACKS || wait.is_some_and(|wait| wait > super::client::MAX_WAIT) {
        return Err(error);
    }
    let delay = retry::delay(*setbacks + 1, wait);
    let error = error.to_string();
    tracing::debug!(setbacks, ?delay, error = &*cut(&error, SENTENCE_BYTES), "an upload broke");
    sleep(delay).await;
    Ok(())
}

/// What registries answer that take no chunks: an error of the request, or nothing that an
/// upload could go on with.
fn is_refusal(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Status { status: 400 | 404 | 405 | 411 | 415 | 416 | 501, .. })
        || matches!(error, RegistryError::Protocol { operation: "upload", .. })
}

/// The last byte in `Range: 0-<end>`, with or without a unit.
fn ends_at(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::RANGE)?.to_str().ok()?;
    range.rsplit_once('-')?.1.trim().parse().ok()
}

/// To a read 404 is an answer; to an upload it is an error as any other.
fn found<'a>(operation: &'static str, response: &'a Response, host: &str) -> Result<&'a Response, RegistryError> {
    if response.status() != StatusCode::NOT_FOUND {
        return Ok(response);
    }
    let (host, detail) = (host.to_owned(), " (it has lost the upload)".to_owned());
    Err(RegistryError::Status { operation, host, status: 404, retry_after: None, detail })
}

/// The header is optional; one that contradicts is not.
fn check_digest(what: &'static str, response: &Response, expected: &Digest) -> Result<(), RegistryError> {
    let told = response.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok());
    let told = told.and_then(|text| text.parse::<Digest>().ok());
    match told.filter(|told| told.algorithm() == expected.algorithm() && told != expected) {
        Some(told) => Err(RegistryError::Mismatch { what, expected: expected.to_string(), actual: told.to_string() }),
        None => Ok(()),
    }
}
