//! How far a transfer is.

use crate::oci::Descriptor;

/// Receives the progress of blobs. `()` ignores it.
pub trait Progress: Send + Sync {
    /// `done` bytes are transferred; fewer than before after a broken transfer.
    fn update(&self, blob: &Descriptor, done: u64);
    /// The blob is at its destination.
    fn finished(&self, blob: &Descriptor, how: BlobTransfer);
}

/// How a blob came to its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobTransfer {
    /// Its bytes were sent.
    Sent,
    /// The destination had it.
    Present,
    /// The registry mounted it from another repository.
    Mounted,
}

impl Progress for () {
    fn update(&self, _: &Descriptor, _: u64) {}
    fn finished(&self, _: &Descriptor, _: BlobTransfer) {}
}
