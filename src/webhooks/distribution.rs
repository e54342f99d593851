//! CNCF distribution 2 and 3: `events[]` in
//! `application/vnd.docker.distribution.events.v1+json` or `.v2+json`.
//!
//! Blobs are reported as well, and a HEAD as `pull`; neither is a push of a manifest.

use serde_json::Value;

use super::{
    json,
    push::{Malformed, Notification, Push, Pushed},
};

/// Reads an envelope of events.
pub(super) fn parse(body: &[u8]) -> Result<Notification, Malformed> {
    let body = json::parse(body)?;
    Notification::all(json::list(&body, "/events")?, event)
}

/// Reads one event.
pub(super) fn event(event: &Value) -> Result<Notification, Malformed> {
    let media_type = json::text(event, "/target/mediaType").unwrap_or_default();
    if json::required(event, "/action")? != "push" || is_blob(media_type) {
        return Ok(Notification::ignored());
    }
    let repository = json::required(event, "/target/repository")?;
    let tag = json::text(event, "/target/tag");
    Ok(Notification::of(Push::new(
        json::text(event, "/request/host"),
        repository,
        Pushed::tagged(tag),
    )))
}

/// A manifest of any format has a media type of these words; an unknown one may be one.
fn is_blob(media_type: &str) -> bool {
    let is_manifest = ["manifest", "index"]
        .iter()
        .any(|word| media_type.contains(word));
    !media_type.is_empty() && !is_manifest
}
