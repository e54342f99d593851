//! Blobs by digest: memory over disk over the registry, each fetched once however many ask.
//!
//! A blob that one repository delivered is handed out for that repository and credential
//! only: otherwise one tenant's manifest could name another's private layer.

mod attempts;
mod blob_store;
mod check_results;
mod commit;
mod disk;
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
mod index;
mod memory;
mod record;
mod spool;

pub use attempts::{Attempt, SetAside};
pub use blob_store::{Acceptance, Change, Options, Recalled, Served, Store, StoreError};
pub use check_results::CheckResults;

#[cfg(test)]
mod tests;
