//! Responses: status, headers and error bodies.

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, RETRY_AFTER,
        VARY, WWW_AUTHENTICATE,
    },
};
use serde_json::json;

use super::{
    connection::CONNECTION_CLOSE,
    refusal::{AcceptedKinds, Reason},
    request_body::BodyError,
    response_body::ResponseBody,
};
use crate::publish::{Delta, Snapshot};

/// The header of a delta: the entity tag of the version that it changes.
const DELTA_BASE: HeaderName = HeaderName::from_static("bundlegate-delta-base");

/// 200 with the bundle, or with a delta that leads to it.
pub(super) fn bundle(
    snapshot: &Snapshot,
    delta: Option<&Delta>,
    content_type: Option<HeaderValue>,
) -> Response<ResponseBody> {
    let bytes = delta.map_or_else(|| snapshot.content().bytes(), Delta::bytes);
    let mut response = Response::new(ResponseBody::of(bytes));
    insert(&mut response, snapshot.headers().bundle());
    let base = delta.and_then(|delta| HeaderValue::from_str(delta.base()).ok());
    if let Some(base) = base {
        let headers = response.headers_mut();
        headers.insert(DELTA_BASE, base);
        // A cache must not give it to other clients. It has the entity tag of the whole bundle.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(VARY, HeaderValue::from_static("Prefer, If-None-Match"));
    }
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    response
}

/// 304 with the entity tag that was compared.
pub(super) fn not_modified(snapshot: &Snapshot) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    insert(&mut response, snapshot.headers().not_modified());
    response
}

/// 304 for a client that runs a version with this tag, which is the same for OPA.
pub(super) fn same_version(snapshot: &Snapshot, tag: Option<&str>) -> Response<ResponseBody> {
    let mut response = not_modified(snapshot);
    if let Some(etag) = tag.and_then(quoted) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}

/// 304 for a client that keeps the version with this tag, which need not be known here.
pub(super) fn not_modified_tag(tag: Option<&str>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    if let Some(etag) = tag.and_then(quoted) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}

/// An entity tag in a header.
fn quoted(tag: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("\"{tag}\"")).ok()
}

/// 404 for a bundle that does not exist, and with the same body for one that the client may not
/// read.
pub(super) fn not_found() -> Response<ResponseBody> {
    error(
        StatusCode::NOT_FOUND,
        "not_found",
        "bundle not found or not permitted",
        None,
    )
}

/// 404 for a bundle that is configured and has nothing to serve. `reason`: `pending` or
/// `withdrawn`.
pub(super) fn absent(reason: &str, message: &str, bundle: &str) -> Response<ResponseBody> {
    error(StatusCode::NOT_FOUND, reason, message, Some(bundle))
}

/// 401 for a request whose credential is missing or that of no client. It says what is accepted.
pub(super) fn unauthorized(reason: Reason, accepted: AcceptedKinds) -> Response<ResponseBody> {
    let message = format!("{}; send {}", reason.sentence(), accepted.words());
    let mut response = error(StatusCode::UNAUTHORIZED, "unauthorized", &message, None);
    for challenge in accepted.challenges() {
        let challenge = HeaderValue::from_static(challenge);
        response.headers_mut().append(WWW_AUTHENTICATE, challenge);
    }
    if reason == Reason::ExpiredCertificate {
        // The client has renewed its certificate, perhaps, and shows it on another connection only.
        response.headers_mut().insert(CONNECTION, CONNECTION_CLOSE);
    }
    response
}

/// 429 for a request whose password is not checked, because too many others are.
pub(super) fn too_many_attempts() -> Response<ResponseBody> {
    let message = "too many passwords are being checked; try again later";
    let mut response = error(
        StatusCode::TOO_MANY_REQUESTS,
        "too_many_attempts",
        message,
        None,
    );
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// 405 for every method but GET and HEAD.
pub(super) fn method_not_allowed() -> Response<ResponseBody> {
    let message = "method not allowed; use GET or HEAD";
    let mut response = error(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
        None,
    );
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// 503 when the replica holds too many requests. It closes the connection, because another one may
/// lead to another replica.
pub(super) fn unavailable(bundle: Option<&str>) -> Response<ResponseBody> {
    let message = "this replica holds the maximum number of requests; try again later";
    let mut response = error(
        StatusCode::SERVICE_UNAVAILABLE,
        "unavailable",
        message,
        bundle,
    );
    response.headers_mut().insert(CONNECTION, CONNECTION_CLOSE);
    response
}

/// The response to a request whose body can't be read.
pub(super) fn unreadable_body(error: BodyError, limit: usize) -> Response<ResponseBody> {
    let (status, reason, message) = match error {
        BodyError::TooLarge => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body exceeds the limit of {limit} bytes"),
        ),
        BodyError::TimedOut => (
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            "the body did not arrive in time".to_owned(),
        ),
        BodyError::Broken => (
            StatusCode::BAD_REQUEST,
            "bad_request",
            "the body is incomplete".to_owned(),
        ),
    };
    self::error(status, reason, &message, None)
}

/// An error body: `reason` for programs, `message` for people.
pub(super) fn error(
    status: StatusCode,
    reason: &str,
    message: &str,
    bundle: Option<&str>,
) -> Response<ResponseBody> {
    json(
        status,
        &json!({ "error": { "reason": reason, "message": message, "bundle": bundle } }),
    )
}

/// A JSON document.
pub(super) fn json(status: StatusCode, document: &serde_json::Value) -> Response<ResponseBody> {
    text(
        status,
        HeaderValue::from_static("application/json"),
        document.to_string().into(),
    )
}

/// A document of any content type.
pub(super) fn text(
    status: StatusCode,
    content_type: HeaderValue,
    text: Bytes,
) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Memory(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn insert(response: &mut Response<ResponseBody>, headers: &[(HeaderName, HeaderValue)]) {
    for (name, value) in headers {
        response.headers_mut().insert(name, value.clone());
    }
}
