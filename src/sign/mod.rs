//! Signing in both of cosign's formats. Makes no trust decision: `verify` decides which signatures
//! count.

mod attach;
mod bundle_v03;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod key_file;
mod key_pair;
mod legacy;
mod request;

pub use attach::AttachError;
pub use bundle_v03::Attachment;
pub use error::SignError;
pub use key_pair::KeyPair;
pub use legacy::{LegacyImage, LegacySignature};
pub use request::SigningRequest;
