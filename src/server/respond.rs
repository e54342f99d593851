//! Answers as HTTP.

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, ETAG, HeaderValue},
};
use serde_json::json;

use super::{connection::CLOSE, content::Content};
use crate::publish::Snapshot;

/// What OPA takes as a sign that it talks to a bundle service.
const BUNDLES: HeaderValue = HeaderValue::from_static("application/vnd.openpolicyagent.bundles");

/// 200 with the bundle.
pub(super) fn bundle(snapshot: &Snapshot, content_type: Option<HeaderValue>) -> Response<Content> {
    let mut response = Response::new(Content::of(snapshot.bundle().blob()));
    describe(&mut response, snapshot);
    let headers = response.headers_mut();
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
pub(super) fn not_modified(snapshot: &Snapshot) -> Response<Content> {
    let mut response = Response::new(Content::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    describe(&mut response, snapshot);
    response
}

/// An error for programs and people.
pub(super) fn error(status: StatusCode, reason: &str, message: &str, bundle: Option<&str>) -> Response<Content> {
    json(status, &json!({ "error": { "reason": reason, "message": message, "bundle": bundle } }))
}

/// Any JSON document.
pub(super) fn json(status: StatusCode, document: &serde_json::Value) -> Response<Content> {
    text(status, HeaderValue::from_static("application/json"), document.to_string().into())
}

/// Any text.
pub(super) fn text(status: StatusCode, content_type: HeaderValue, text: Bytes) -> Response<Content> {
    let mut response = Response::new(Content::Memory(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// This replica has no room for the request; another connection may lead to one that has.
pub(super) fn unavailable(bundle: Option<&str>) -> Response<Content> {
    let message = "this replica holds as many requests as it can; try again later";
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message, bundle);
    response.headers_mut().insert(CONNECTION, CLOSE);
    response
}

fn describe(response: &mut Response<Content>, snapshot: &Snapshot) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, BUNDLES);
    headers.insert(ETAG, snapshot.headers().etag.clone());
    headers.insert("bundlegate-manifest", snapshot.headers().manifest.clone());
}
