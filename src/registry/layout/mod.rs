//! An OCI image layout folder as a registry: reading, writing, and the cached index.

mod index;
mod read;
mod write;

pub(super) use index::SharedLayout;
pub(super) use read::LayoutReader;
pub(super) use write::LayoutWriter;
