//! Azure Container Registry: one event of distribution's format, without an envelope.

use super::{
    distribution, json,
    push::{Malformed, Notification},
};

/// Reads the event. The registry also sends `ping`, and pushes and deletions of Helm charts.
pub(super) fn parse(body: &[u8]) -> Result<Notification, Malformed> {
    distribution::event(&json::parse(body)?)
}
