//! The kinds of senders.

use hyper::HeaderMap;

use super::{
    acr, artifact_registry,
    authentication::SecretPlace,
    distribution, docker_hub, ecr,
    generic::{self, Pointer},
    github, gitlab, harbor, jfrog,
    push::{Malformed, Notification},
    quay, zot,
};

/// The kind of a sender, which decides how its notifications are read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Distribution,
    Zot,
    Harbor,
    Github,
    Gitlab,
    DockerHub,
    Quay,
    Jfrog,
    Ecr,
    Acr,
    ArtifactRegistry,
    Generic(Pointer),
}

impl Kind {
    /// The word in the configuration.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Distribution => "distribution",
            Self::Zot => "zot",
            Self::Harbor => "harbor",
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::DockerHub => "docker_hub",
            Self::Quay => "quay",
            Self::Jfrog => "jfrog",
            Self::Ecr => "ecr",
            Self::Acr => "acr",
            Self::ArtifactRegistry => "artifact_registry",
            Self::Generic(_) => "generic",
        }
    }

    /// Reads a notification.
    ///
    /// # Errors
    /// When the body is not what the sender documents.
    pub fn parse(&self, headers: &HeaderMap, body: &[u8]) -> Result<Notification, Malformed> {
        match self {
            Self::Distribution => distribution::parse(body),
            Self::Zot => zot::parse(headers, body),
            Self::Harbor => harbor::parse(headers, body),
            Self::Github => github::parse(headers, body),
            Self::Gitlab => gitlab::parse(body),
            Self::DockerHub => docker_hub::parse(body),
            Self::Quay => quay::parse(body),
            Self::Jfrog => jfrog::parse(body),
            Self::Ecr => ecr::parse(headers, body),
            Self::Acr => acr::parse(body),
            Self::ArtifactRegistry => artifact_registry::parse(body),
            Self::Generic(pointer) => generic::parse(pointer, body),
        }
    }

    /// Whether notifications name the registry as references do; otherwise the configuration has
    /// to.
    pub fn names_host(&self) -> bool {
        !matches!(self, Self::Zot | Self::Jfrog)
    }

    /// Where the sender puts a shared secret; `None` where it can send credentials only.
    pub fn secret_place(&self) -> Option<SecretPlace> {
        match self {
            Self::Github => Some(SecretPlace::Hmac(&["x-hub-signature-256"])),
            Self::Generic(_) => Some(SecretPlace::Hmac(&["x-hub-signature-256", "x-signature"])),
            Self::Gitlab => Some(SecretPlace::Header("x-gitlab-token")),
            Self::Harbor => Some(SecretPlace::Header("authorization")),
            Self::Jfrog => Some(SecretPlace::HeaderOrHmac("x-jfrog-event-auth")),
            Self::DockerHub | Self::Quay => Some(SecretPlace::Query("secret")),
            Self::Distribution | Self::Zot | Self::Ecr | Self::Acr | Self::ArtifactRegistry => None,
        }
    }

    /// Whether the sender can send an `Authorization` header of the user's choice.
    pub fn sends_authorization(&self) -> bool {
        !matches!(
            self,
            Self::Github | Self::Gitlab | Self::DockerHub | Self::Quay | Self::ArtifactRegistry
        )
    }
}

#[cfg(test)]
mod tests;
