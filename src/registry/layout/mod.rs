//! An OCI image layout folder in the role of a registry.

mod index;
mod read;
mod write;

pub(super) use index::SharedLayout;
pub(super) use read::LayoutReader;
pub(super) use write::{LayoutWriter, fallback_tag, not_an_index};
