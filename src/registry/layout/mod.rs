//! An OCI image layout folder as a registry: reading, writing, the cached index, and its changes.

mod folders;
mod index;
mod read;
mod watch;
mod write;

pub(super) use folders::WatchedFolders;
pub(super) use index::SharedLayout;
pub(super) use read::LayoutReader;
pub use watch::{SourceChange, SourceWatch};
pub(super) use write::LayoutWriter;
