//! `POST /refresh/NAME`: has the registry checked for a bundle now, and answers with the result.

use std::sync::Arc;

use hyper::{Response, StatusCode, http::request::Parts};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{
    Catalog, Entry, admin_access, bundle_api::resource, response, response_body::ResponseBody,
    status,
};
use crate::{publish::Checked, telemetry};

/// The path of the requests, before the bundle's name.
pub(super) const PREFIX: &str = "/refresh/";

/// Answers a POST that may change something.
pub(super) async fn handle(catalog: &Catalog, head: &Parts) -> Response<ResponseBody> {
    let name = resource(head.uri.path());
    let name = name
        .as_deref()
        .and_then(|path| path.strip_prefix(&PREFIX[1..]));
    let Some(name) = name else {
        let message = "the path is not percent-encoded UTF-8";
        return response::error(StatusCode::BAD_REQUEST, "bad_request", message, None);
    };
    let Some(entry) = catalog.get(name) else {
        let message = "no bundle of this name is configured; see /status";
        return response::error(StatusCode::NOT_FOUND, "not_found", message, None);
    };
    match timeout(admin_access::wait_of(head), check_now(catalog, entry)).await {
        Ok(Some((entry, checked))) => checked_response(&entry, &checked),
        Ok(None) => {
            let message = "the bundle was removed from the configuration";
            response::error(StatusCode::NOT_FOUND, "not_found", message, None)
        }
        Err(_) => {
            let message = "the check has not ended yet; /status has its result";
            response::json(
                StatusCode::ACCEPTED,
                &json!({ "bundle": name, "outcome": "checking", "message": message }),
            )
        }
    }
}

/// Checks, also if the bundle is reconfigured meanwhile. `None` if it is removed.
async fn check_now(catalog: &Catalog, mut entry: Arc<Entry>) -> Option<(Arc<Entry>, Checked)> {
    loop {
        let checked = tokio::select! {
            checked = entry.check_now() => Some(checked),
            () = entry.outdated() => None,
        };
        match checked {
            Some(checked) => return Some((entry, checked)),
            None => entry = catalog.get(entry.name())?,
        }
    }
}

/// The result. The answer is 200 whatever the check has found: the request was carried out.
fn checked_response(entry: &Entry, checked: &Checked) -> Response<ResponseBody> {
    let status = entry.status();
    let (code, outcome) = match checked {
        Checked::Changed => (StatusCode::OK, "changed"),
        Checked::Unchanged => (StatusCode::OK, "unchanged"),
        Checked::Failed(_) => (StatusCode::OK, "failed"),
        Checked::Held(_) => (StatusCode::ACCEPTED, "held"),
        Checked::Suspended => (StatusCode::ACCEPTED, "suspended"),
    };
    let mut document = json!({
        "bundle": entry.name(),
        "outcome": outcome,
        "state": status.state.label(),
        "manifest": status.manifest,
        "etag": status.etag,
        "revision": status.revision,
    });
    match checked {
        Checked::Changed | Checked::Unchanged => {}
        Checked::Failed(failure) => document["failure"] = status::failure(failure),
        Checked::Held(until) => {
            document["message"] = "the registry has asked for a pause".into();
            document["next_check"] = time_of(*until);
        }
        Checked::Suspended => {
            let name = entry.name();
            let message = format!("the bundle is suspended; remove bundles.{name}.suspend");
            document["message"] = message.into();
        }
    }
    response::json(code, &document)
}

/// The time of the clock at an instant in the future.
fn time_of(instant: Instant) -> Value {
    let left = instant.saturating_duration_since(Instant::now());
    let time = telemetry::now().checked_add(left).ok();
    time.map_or(Value::Null, |time| status::milliseconds(time).into())
}
