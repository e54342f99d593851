//! Harbor, in its default format and as CloudEvents.

use hyper::HeaderMap;
use serde_json::Value;

use super::{
    cloud_event::CloudEvent,
    image_name::host_and_path,
    json,
    push::{Malformed, Notification, Push, Pushed},
};

/// The types of a push: the default format before and since Harbor 2, and CloudEvents.
const PUSHES: [&str; 3] = ["pushImage", "PUSH_ARTIFACT", "harbor.artifact.pushed"];

/// Reads an event, which may have several resources.
pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Notification, Malformed> {
    let CloudEvent { kind, data, .. } = CloudEvent::parse(headers, body)?;
    let (kind, content) = match data.get("event_data") {
        Some(content) => (json::required(&data, "/type")?, content),
        None => (kind.as_str(), &data),
    };
    if kind.is_empty() {
        return Err(Malformed::Missing("/type"));
    }
    if !PUSHES.contains(&kind) {
        return Ok(Notification::ignored());
    }
    let repository = json::required(content, "/repository/repo_full_name")?;
    Notification::all(json::list(content, "/resources")?, |resource| {
        Ok(Notification::of(push(repository, resource)))
    })
}

fn push(repository: &str, resource: &Value) -> Push {
    let url = json::text(resource, "/resource_url").and_then(host_and_path);
    let host = url.map(|(host, _)| host);
    // The tag of an artifact without one is its digest.
    let tag = json::text(resource, "/tag").filter(|tag| !tag.contains(':'));
    Push::new(host, repository, Pushed::tagged(tag))
}
