//! Google Artifact Registry: messages of the Pub/Sub topic `gcr`, which a subscription pushes.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    image_name::ImageName,
    json,
    push::{Malformed, Notification, Push, Pushed},
};

/// Reads a message. Only insertions count.
pub(super) fn parse(body: &[u8]) -> Result<Notification, Malformed> {
    let body = json::parse(body)?;
    let data = STANDARD
        .decode(json::required(&body, "/message/data")?)
        .map_err(|_| Malformed::Base64("/message/data"))?;
    let message = json::parse(&data)?;
    if json::required(&message, "/action")? != "INSERT" {
        return Ok(Notification::ignored());
    }
    // Both are whole names of images. A manifest without a tag has a digest only.
    let name = json::text(&message, "/tag").or_else(|| json::text(&message, "/digest"));
    let name = name
        .and_then(ImageName::split)
        .ok_or(Malformed::Missing("/digest in /message/data"))?;
    Ok(Notification::of(Push::new(
        name.host,
        name.repository,
        Pushed::tagged(name.tag),
    )))
}
