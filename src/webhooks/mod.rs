//! Notifications of registries: the events of each sender, and its authentication.
//!
//! Everything in a notification is a claim. It says which bundles to check now, and nothing else:
//! no digest in it is trusted, and no URL in it is fetched. The parsers are pure; the server reads
//! the requests and asks for the checks.
//!
//! | file | sender |
//! |---|---|
//! | `distribution` | CNCF distribution 2 and 3, and registries that are built on it |
//! | `zot` | zot, as CloudEvents |
//! | `harbor` | Harbor, in its own format or as CloudEvents |
//! | `github` | GitHub Packages: `package` and `registry_package` |
//! | `gitlab` | GitLab: its registry's notifications, and pipelines and jobs that have succeeded |
//! | `docker_hub`, `quay`, `jfrog` | Docker Hub, Quay, JFrog Artifactory |
//! | `ecr` | Amazon ECR through EventBridge |
//! | `acr` | Azure Container Registry |
//! | `artifact_registry` | Google Artifact Registry through Pub/Sub |
//! | `generic` | any JSON that holds the name of an image |

mod acr;
mod artifact_registry;
mod authentication;
mod cloud_event;
mod distribution;
mod docker_hub;
mod ecr;
#[cfg(fuzzing)]
pub mod fuzzing;
mod generic;
mod github;
mod gitlab;
mod harbor;
mod image_name;
mod jfrog;
mod json;
mod kind;
mod oidc;
mod push;
mod quay;
mod webhook;
mod zot;

pub use authentication::{Authentication, Decision, Secret, SecretPlace};
pub use generic::Pointer;
pub use kind::Kind;
pub use oidc::{InvalidKeySet, KeySet, Oidc};
pub use push::{MAX_EVENTS, Malformed, Notification, Push, Pushed};
pub use webhook::{Listener, Webhook};
