//! Amazon ECR: `ECR Image Action` of EventBridge, as it is or as a CloudEvent.

use hyper::HeaderMap;
use serde_json::Value;

use super::{
    cloud_event::CloudEvent,
    json,
    push::{Malformed, Notification, Push, Pushed},
};

/// The type of CloudEvents of ECR.
const CLOUD_EVENT: &str = "com.amazon.ecr.";

/// Reads an event. Only a push that has succeeded counts.
pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Notification, Malformed> {
    let event = CloudEvent::parse(headers, body)?;
    if event.kind.starts_with(CLOUD_EVENT) {
        return cloud_event(&event);
    }
    let body = event.data;
    if json::required(&body, "/source")? != "aws.ecr"
        || json::text(&body, "/detail-type") != Some("ECR Image Action")
        || json::text(&body, "/detail/action-type") != Some("PUSH")
        || json::text(&body, "/detail/result") != Some("SUCCESS")
    {
        return Ok(Notification::ignored());
    }
    let account = json::required(&body, "/account")?;
    let region = json::required(&body, "/region")?;
    Ok(Notification::of(Push::new(
        Some(&host(account, region)),
        json::required(&body, "/detail/repository-name")?,
        Pushed::tagged(json::text(&body, "/detail/image-tag")),
    )))
}

/// `source` is `urn:aws:ecr:REGION:ACCOUNT:repository/NAME`.
fn cloud_event(event: &CloudEvent) -> Result<Notification, Malformed> {
    if !event.kind.ends_with(".push") && !event.kind.ends_with(".pushed") {
        return Ok(Notification::ignored());
    }
    let mut parts = event.source.splitn(6, ':').skip(3);
    let (Some(region), Some(account)) = (parts.next(), parts.next()) else {
        return Err(Malformed::Missing("/source"));
    };
    Ok(Notification::of(Push::new(
        Some(&host(account, region)),
        repository(&event.data)?,
        Pushed::tagged(json::text(&event.data, "/imageTag")),
    )))
}

fn repository(data: &Value) -> Result<&str, Malformed> {
    json::required(data, "/repositoryName")
}

/// The host of a registry in references.
fn host(account: &str, region: &str) -> String {
    let domain = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    format!("{account}.dkr.ecr.{region}.{domain}")
}
