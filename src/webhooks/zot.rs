//! zot: CloudEvents with the manifest itself, which may name the artifact that it refers to.

use hyper::HeaderMap;
use serde_json::Value;

use super::{
    cloud_event::CloudEvent,
    json,
    push::{Malformed, Notification, Push, Pushed},
};

const UPDATED: &str = "zotregistry.image.updated";

/// Reads an event. Of the events of zot only `image.updated` is a push.
pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Notification, Malformed> {
    let CloudEvent { kind, data, .. } = CloudEvent::parse(headers, body)?;
    if kind.is_empty() {
        return Err(Malformed::Missing("the header Ce-Type"));
    }
    if kind != UPDATED {
        return Ok(Notification::ignored());
    }
    let name = json::required(&data, "/name")?;
    // A digest, for a manifest without a tag.
    let tag = json::text(&data, "/reference").filter(|tag| !tag.contains(':'));
    let pushed = match (tag, subject(&data)) {
        (None, Some(subject)) => Pushed::Evidence(subject.parse().ok()),
        _ => Pushed::tagged(tag),
    };
    Ok(Notification::of(Push::new(None, name, pushed)))
}

/// The `subject` of the manifest, which is a document or its text.
fn subject(data: &Value) -> Option<String> {
    let pointer = "/subject/digest";
    match data.get("manifest")? {
        Value::String(text) => {
            json::text(&json::parse(text.as_bytes()).ok()?, pointer).map(str::to_owned)
        }
        manifest => json::text(manifest, pointer).map(str::to_owned),
    }
}
