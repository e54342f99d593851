//! The nouns of the OCI specifications: digests, references, descriptors,
//! manifests, and the image layout on disk. Nothing here talks to a network. Beside them, how files
//! are read that somebody names.

mod blob;
pub mod cosign;
mod digest;
mod file;
mod layout;
mod manifest;
mod reference;
mod strict_json;

pub use blob::{Blob, BlobMismatch, BlobWriter, NewBlob, WriteError};
pub use digest::{Digest, DigestError, Hasher};
pub use file::{Sharing, lock_soon, open_lock, open_regular, read_regular, read_regular_or_pipe};
pub use layout::{Incoming, IncomingError, Layout, LayoutError, LayoutIndex};
pub use manifest::{Descriptor, Document, Manifest, ManifestError, NewManifest, media_type};
pub use reference::{PinnedReference, Reference, ReferenceError, Repository, Selector};
pub use strict_json::{StrictJsonError, strict_json};
