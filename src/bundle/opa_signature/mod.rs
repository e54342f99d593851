//! OPA's own bundle signatures: `.signatures.json`, one JSON Web Signature over the hashes of all
//! other files (`v1/bundle/{sign,verify,hash}.go` of OPA 1.22).
//!
//! A [`Signer`] writes them, and a [`Verifier`] checks them before a bundle is published. Both work
//! with the keys of the configuration only: neither trusts a header or a claim to choose an
//! algorithm.

mod algorithm;
mod error;
mod folder;
mod hash;
mod key;
mod pem;
mod private_key;
mod rewrite;
mod signer;
#[cfg(test)]
mod tests;
mod token;
mod verifier;

pub use algorithm::SigningAlgorithm;
pub use error::{KeyError, OpaSignatureError, UnsignableError};
pub use folder::sign_folder;
pub use key::PublicKey;
pub use signer::Signer;
pub use verifier::{VerificationKey, Verifier};

/// The name of the file that has the signature.
pub const SIGNATURE_FILE: &str = ".signatures.json";
/// The end of the names that OPA before 1.22 takes for signature files.
pub(super) const SIGNATURE_FILE_END: &str = "signatures.json";
/// The maximum memory of the documents of one bundle that are compared or hashed as values at the
/// same time. A document takes about ten times as much memory as its text.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 1 << 30;
