//! OPA bundles as bytes: opening them within limits, and writing them reproducibly.
//!
//! Pure: nothing here talks to a network, and only [`Folder`] reads a disk. The format is
//! that of OPA's bundle reader (`v1/bundle/bundle.go`, `v1/bundle/file.go`).

mod artifact;
mod layer;
mod manifest;
mod open;
mod pack;
mod policy;
mod rego;

pub use artifact::Artifact;
pub use layer::layer;
pub use manifest::{BundleManifest, Revision};
pub use open::{Bundle, Limits, NotABundle};
pub use pack::{Folder, PackError, Packed, pack};
pub use policy::{Policy, PolicyError};
