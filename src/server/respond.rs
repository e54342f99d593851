//! Answers as HTTP.

use std::io;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    body::Frame,
    header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue},
};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::{oci::Blob, watch::Snapshot};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What OPA takes as a sign that it talks to a bundle service.
const BUNDLES: HeaderValue = HeaderValue::from_static("application/vnd.openpolicyagent.bundles");
/// What a body from a file is cut into.
const PIECE: usize = 256 * 1024;

/// 200 with the bundle.
pub(super) fn bundle(snapshot: &Snapshot, content_type: Option<HeaderValue>) -> Response<Body> {
    let blob = snapshot.bundle().blob();
    let mut response = Response::new(match blob.in_memory() {
        Some(bytes) => whole(bytes.clone()),
        None => from_file(blob.clone()),
    });
    describe(&mut response, snapshot);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, blob.size().into());
    if let Some(content_type) = content_type {
        headers.insert(CONTENT_TYPE, content_type);
    }
    if let Some(revision) = &snapshot.headers().revision {
        headers.insert("bundlegate-revision", revision.clone());
    }
    if let Some(signer) = &snapshot.headers().signer {
        headers.insert("bundlegate-signer", signer.clone());
    }
    response
}

/// 304, with the tag that was compared.
pub(super) fn not_modified(snapshot: &Snapshot) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    describe(&mut response, snapshot);
    response
}

/// An error for programs and people.
pub(super) fn error(status: StatusCode, reason: &str, message: &str, bundle: Option<&str>) -> Response<Body> {
    json(status, &json!({ "error": { "reason": reason, "message": message, "bundle": bundle } }))
}

/// Any JSON document.
pub(super) fn json(status: StatusCode, document: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(whole(document.to_string().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn describe(response: &mut Response<Body>, snapshot: &Snapshot) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, BUNDLES);
    headers.insert(ETAG, snapshot.headers().etag.clone());
    headers.insert("bundlegate-manifest", snapshot.headers().manifest.clone());
}

fn from_file(blob: Blob) -> Body {
    let pieces = stream::unfold((blob, 0), |(blob, offset)| async move {
        if offset >= blob.size() {
            return None;
        }
        let reader = blob.clone();
        let read = spawn_blocking(move || reader.read_at(offset, PIECE)).await;
        let piece = read.map_err(io::Error::other).and_then(|piece| piece);
        // After an error the connection breaks off, so the position does not matter.
        let next = piece.as_ref().map_or(u64::MAX, |piece| offset + piece.len() as u64);
        Some((piece.map(Frame::data), (blob, next)))
    });
    StreamBody::new(Box::pin(pieces)).boxed_unsync()
}
