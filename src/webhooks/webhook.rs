//! A configured webhook.

use super::{Authentication, Kind};

/// A webhook, as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The name in logs and metrics; unique.
    pub name: String,
    /// The sender.
    pub kind: Kind,
    /// The listener that receives it.
    pub listener: Listener,
    /// The path of its requests; unique on its listener.
    pub path: String,
    /// The registry's host in references, if the sender does not know it.
    pub host: Option<String>,
    /// How the sender proves who it is.
    pub authentication: Authentication,
}

/// A listener of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// The listener of the admin API.
    Admin,
    /// The listener of the bundle API.
    Data,
}

impl Listener {
    /// The word in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Data => "data",
        }
    }
}
