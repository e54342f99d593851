//! Quay: one repository, and the tags that were pushed to it.

use serde_json::Value;

use super::{
    image_name::host_and_path,
    json,
    push::{Malformed, Notification, Push, Pushed},
};

/// Reads a push. Other events of Quay have no `updated_tags`.
pub(super) fn parse(body: &[u8]) -> Result<Notification, Malformed> {
    let body = json::parse(body)?;
    let repository = json::required(&body, "/repository")?;
    let url = json::text(&body, "/docker_url").and_then(host_and_path);
    let host = url.map(|(host, _)| host);
    // Earlier versions send a mapping from tags to image IDs.
    let tags: Vec<&str> = match body.get("updated_tags") {
        Some(Value::Array(tags)) => tags.iter().filter_map(Value::as_str).collect(),
        Some(Value::Object(tags)) => tags.keys().map(String::as_str).collect(),
        _ => return Ok(Notification::ignored()),
    };
    Notification::all(&tags, |tag| {
        let pushed = Pushed::tagged(Some(tag));
        Ok(Notification::of(Push::new(host, repository, pushed)))
    })
}
