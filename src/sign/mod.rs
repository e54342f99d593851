//! Making signatures as cosign makes them. Decides nothing: whether a signature counts is
//! `verify`'s business.

mod bundle_v03;
mod key_pair;

pub use bundle_v03::Attachment;
pub use key_pair::{KeyPair, SignError};
