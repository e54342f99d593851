//! OPA bundles as bytes: opens them within limits, and writes them reproducibly.
//!
//! Nothing here accesses the network, and only [`Folder`] reads files from disk. The format is that
//! of OPA's bundle reader (`v1/bundle/bundle.go`, `v1/bundle/file.go`).
//!
//! A folder is packed in one pass: while the tar stream is written, some threads compress it, and
//! others read it as that of any bundle.

mod archive;
mod artifact;
mod assembled;
mod block_stream;
mod check;
mod conftest;
mod contents;
mod delta;
mod diagnostic;
mod document;
mod error;
mod flatten;
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
mod json;
mod json_string;
mod layer;
mod layer_plan;
mod limits;
mod load;
mod manifest;
mod opa_signature;
mod open;
mod pack;
mod package;
mod parallel_gzip;
mod paths;
mod policy;
mod rego;
mod statements;
mod tar_stream;
mod tarball;
mod test_runner;
mod value;
mod yaml;
mod zstd;

pub use artifact::{Annotations, Artifact};
pub use assembled::{Assembled, Provenance, Transform};
pub use check::Parse;
pub use contents::Contents;
pub use delta::{DeltaLimits, Difference, NoDelta};
pub use diagnostic::Diagnostic;
pub use error::{BundleError, LayerError, PackError};
pub use folder::{Folder, Ignore};
pub use layer_plan::LayerPlan;
pub use limits::Limits;
pub use manifest::{BundleManifest, Revision, WasmEntrypoint};
pub use opa_signature::{
    KeyError, OpaSignatureError, PublicKey, SIGNATURE_FILE, Signer, SigningAlgorithm,
    UnsignableError, VerificationKey, Verifier, sign_folder,
};
pub use open::Bundle;
pub use pack::{PackOptions, Packed, pack};
pub use policy::{Policy, PolicyError};
pub use rego::{Module, RegoVersion, nests_too_deep};
pub use test_runner::TestSummary;
pub use value::{Answers, Exact};
