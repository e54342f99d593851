//! GitLab. Its registry sends distribution's notifications where it is configured to. A project's
//! webhooks do not report pushes to its registry, so a pipeline or job that has succeeded counts
//! as a push to any repository of the project.

use serde_json::Value;

use super::{
    distribution,
    image_name::host_and_path,
    json,
    push::{Malformed, Notification, Push, Pushed},
};

/// Reads an event of a project, or an envelope of the registry.
pub(super) fn parse(body: &[u8]) -> Result<Notification, Malformed> {
    let body = json::parse(body)?;
    if let Some(events) = body.get("events").and_then(Value::as_array) {
        return Notification::all(events, distribution::event);
    }
    let status = match json::required(&body, "/object_kind")? {
        "pipeline" => json::text(&body, "/object_attributes/status"),
        "build" => json::text(&body, "/build_status"),
        _ => return Ok(Notification::ignored()),
    };
    if status != Some("success") {
        return Ok(Notification::ignored());
    }
    let project = json::required(&body, "/project/path_with_namespace")?.to_lowercase();
    let url = json::text(&body, "/project/web_url").and_then(host_and_path);
    // Another instance's registry may have any name.
    let host = url.and_then(|(host, _)| (host == "gitlab.com").then_some("registry.gitlab.com"));
    Ok(Notification::of(Push {
        is_prefix: true,
        ..Push::new(host, &project, Pushed::Unknown)
    }))
}
