//! Making signatures as cosign makes them. Decides nothing: whether a signature counts is
//! `verify`'s business.

mod attach;
mod bundle_v03;
#[cfg(fuzzing)]
pub mod fuzzing;
mod key_file;
mod key_pair;
mod legacy;

use std::collections::BTreeMap;

use crate::oci::Descriptor;

pub use attach::AttachError;
pub use bundle_v03::Attachment;
pub use key_pair::{KeyPair, SignError};
pub use legacy::{LegacyImage, LegacySignature};

/// What a signature is to say.
#[derive(Debug, Clone)]
pub struct SigningRequest {
    /// The artifact's manifest.
    pub subject: Descriptor,
    /// What else is claimed of it; free text, signed along.
    pub annotations: BTreeMap<String, String>,
}

impl SigningRequest {
    /// That the artifact is approved, and nothing more.
    pub fn of(subject: Descriptor) -> Self {
        Self { subject, annotations: BTreeMap::new() }
    }
}
