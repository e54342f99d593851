//! Docker Hub.

use super::{
    json,
    push::{Malformed, Notification, Push, Pushed},
};

/// The names of Docker Hub in references.
const HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Reads a push. The body's `callback_url` is not used.
pub(super) fn parse(body: &[u8]) -> Result<Notification, Malformed> {
    let body = json::parse(body)?;
    let name = json::required(&body, "/repository/repo_name")?;
    let repository = if name.contains('/') {
        name.to_owned()
    } else {
        format!("library/{name}")
    };
    let tag = json::required(&body, "/push_data/tag")?;
    Ok(Notification::of(Push {
        hosts: HOSTS.map(str::to_owned).into(),
        ..Push::new(None, &repository, Pushed::tagged(Some(tag)))
    }))
}
