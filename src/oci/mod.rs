//! The nouns of the OCI specifications: digests, references, descriptors,
//! manifests, and the image layout on disk. Nothing here talks to a network.

mod blob;
mod digest;
mod layout;
mod manifest;
mod reference;
mod regular_file;
mod strict_json;

pub use blob::{Blob, BlobMismatch, BlobWriter, NewBlob, WriteError};
pub use digest::{Digest, DigestError, Hasher};
pub use layout::{Incoming, IncomingError, Layout, LayoutError, LayoutIndex};
pub use manifest::{Descriptor, Document, Manifest, ManifestError, NewManifest, media_type};
pub use reference::{PinnedReference, Reference, ReferenceError, Repository, Selector};
pub use regular_file::{open_lock_file, open_regular};
pub use strict_json::{StrictJsonError, strict_json};
