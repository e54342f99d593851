//! JFrog Artifactory.

use super::{
    json,
    push::{Malformed, Notification, Push, Pushed},
};

/// Reads an event, of which only pushes in the domain `docker` (or `oci`) count.
pub(super) fn parse(body: &[u8]) -> Result<Notification, Malformed> {
    let body = json::parse(body)?;
    let domain = json::required(&body, "/domain")?;
    let is_push = json::required(&body, "/event_type")? == "pushed";
    if !is_push || !matches!(domain, "docker" | "oci") {
        return Ok(Notification::ignored());
    }
    let image = json::required(&body, "/data/image_name")?;
    // References have the name of the Artifactory repository in the path, or in the host.
    let in_path = json::text(&body, "/data/repo_key").map(|key| format!("{key}/{image}"));
    // The tag of an artifact without one is its digest.
    let tag = json::text(&body, "/data/tag").filter(|tag| !tag.contains(':'));
    let mut push = Push::new(None, image, Pushed::tagged(tag));
    push.repositories.extend(in_path);
    Ok(Notification::of(push))
}
