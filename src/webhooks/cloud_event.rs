//! CloudEvents over HTTP, in binary mode (attributes in headers) and structured mode (all of it in
//! the body).

use hyper::HeaderMap;
use serde_json::Value;

use super::{json, push::Malformed};

/// An event; `kind` and `source` are empty if the body is no CloudEvent.
#[derive(Debug)]
pub(super) struct CloudEvent {
    pub(super) kind: String,
    pub(super) source: String,
    pub(super) data: Value,
}

impl CloudEvent {
    /// Reads an event. A body that is no CloudEvent is the data of an event without attributes.
    pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, Malformed> {
        let mut body = json::parse(body)?;
        let attribute = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let is_structured = attribute("content-type")
            .is_some_and(|value| value.starts_with("application/cloudevents+json"))
            || body.get("specversion").is_some();
        if !is_structured {
            return Ok(Self {
                kind: attribute("ce-type").unwrap_or_default().to_owned(),
                source: attribute("ce-source").unwrap_or_default().to_owned(),
                data: body,
            });
        }
        let text = |pointer| json::text(&body, pointer).unwrap_or_default().to_owned();
        Ok(Self {
            kind: text("/type"),
            source: text("/source"),
            data: body.get_mut("data").map(Value::take).unwrap_or_default(),
        })
    }
}
