//! GitHub Packages (ghcr.io): the events `package` and `registry_package`.

use hyper::HeaderMap;
use serde_json::Value;

use super::{
    json,
    push::{Malformed, Notification, Push, Pushed},
};

const HOST: &str = "ghcr.io";

/// Reads an event of GitHub, of which only published container packages count.
pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Notification, Malformed> {
    let event = headers.get("x-github-event");
    let event = event.and_then(|event| event.to_str().ok());
    let body = json::parse(body)?;
    let package = match event {
        Some(name @ ("package" | "registry_package")) => body.get(name),
        Some(_) => return Ok(Notification::ignored()),
        None => return Err(Malformed::Missing("the header X-GitHub-Event")),
    };
    let package = package.ok_or(Malformed::Missing("/package"))?;
    let is_published = matches!(json::text(&body, "/action"), Some("published" | "updated"));
    let kind = json::required(package, "/package_type")?;
    if !is_published || !kind.eq_ignore_ascii_case("container") {
        return Ok(Notification::ignored());
    }
    let name = json::required(package, "/name")?;
    let owner = owner(&body, package).ok_or(Malformed::Missing("/package/namespace"))?;
    let tag = json::text(package, "/package_version/container_metadata/tag/name");
    // References have no upper case.
    let repository = format!("{owner}/{name}").to_lowercase();
    Ok(Notification::of(Push::new(
        Some(HOST),
        &repository,
        Pushed::tagged(tag),
    )))
}

/// The first part of the repository. `namespace` of some deliveries includes the repository.
fn owner<'a>(body: &'a Value, package: &'a Value) -> Option<&'a str> {
    json::text(package, "/owner/login")
        .or_else(|| json::text(package, "/namespace"))
        .or_else(|| json::text(body, "/organization/login"))
        .or_else(|| json::text(body, "/repository/owner/login"))
}
