//! Signing in both of cosign's formats. Makes no trust decision: `verify` decides which signatures
//! count.

mod attach;
mod bundle_v03;
#[cfg(fuzzing)]
pub mod fuzzing;
mod key_file;
mod key_pair;
mod legacy;
mod request;

pub use attach::AttachError;
pub use bundle_v03::Attachment;
pub use key_pair::{KeyPair, SignError};
pub use legacy::{LegacyImage, LegacySignature};
pub use request::SigningRequest;
