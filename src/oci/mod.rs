//! The types of the OCI specifications: digests, references, descriptors, manifests, and the image
//! layout on disk. Also reads files whose paths come from users. Nothing here accesses the network.

mod blob;
pub mod cosign;
mod digest;
mod file;
mod layout;
mod layout_index;
mod manifest;
mod manifest_path;
mod platform;
mod reference;
mod strict_json;
mod tag_rule;
mod version;
mod version_range;

pub use blob::{Blob, BlobMismatch, BlobSpace, BlobWriter, NewBlob, WriteError};
pub use digest::{Digest, DigestError, Hasher};
pub use file::{
    LockMode, MAX_PASSWORD_BYTES, Tilde, check_tilde, lock_with_timeout, open_lock, open_regular,
    open_regular_within, read_password, read_regular, read_regular_or_pipe,
};
pub use layout::{Incoming, IncomingError, Layout, LayoutError};
pub use layout_index::LayoutIndex;
pub(crate) use manifest::media_types_agree;
pub use manifest::{Descriptor, Document, Manifest, ManifestError, NewManifest, media_type};
pub use manifest_path::{ManifestPath, NotListed};
pub use platform::{IndexError, NotAPlatform, Platform, choose_manifest};
pub(crate) use reference::is_tag;
pub use reference::{PinnedReference, Reference, ReferenceError, Repository, Selector};
pub use strict_json::{StrictJsonError, strict_json};
pub use tag_rule::{BadFilter, Pick, TagChoice, TagFilter, TagOrder, TagRule, is_signature_tag};
pub(crate) use version::TagVersion;
pub use version::{NotAVersion, Version};
pub use version_range::{NotARange, VersionRange};
