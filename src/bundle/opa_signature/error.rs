//! The errors of keys, of signing and of verifying.

use super::{SIGNATURE_FILE, SigningAlgorithm, algorithm::MIN_RSA_BITS};

/// A key file that can't be used. No message has any part of the file's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The file has no PEM block.
    #[error("no PEM key; use one such as -----BEGIN {0}-----")]
    NotPem(&'static str),
    /// A PEM block whose content is not what its label says.
    #[error("a malformed PEM block ({0})")]
    Malformed(String),
    /// The private key is encrypted.
    #[error(
        "an encrypted private key, which can't be used here; write it without encryption (openssl pkey -in FILE -out OTHER)"
    )]
    Encrypted,
    /// A private key where a public one belongs, or the other way round.
    #[error("a PEM block {found:?} instead of {wanted}")]
    OtherBlock {
        /// Its label.
        found: String,
        /// The labels that can be used.
        wanted: &'static str,
    },
    /// The key is of another kind than the algorithm needs.
    #[error("{found}, but {algorithm} needs {}", .algorithm.needed_key())]
    OtherKind {
        /// The kind of the key.
        found: &'static str,
        /// The algorithm.
        algorithm: SigningAlgorithm,
    },
    /// An RSA key that is too small.
    #[error("an RSA key of {}; use one of at least {MIN_RSA_BITS}", size(*.bits))]
    TooSmall {
        /// The size of its modulus, if it is known.
        bits: Option<usize>,
    },
    /// The file with a secret is empty.
    #[error("an empty secret")]
    NoSecret,
    /// The secret for signing is shorter than the hash (RFC 7518 §3.2).
    #[error(
        "a secret of {bytes} bytes; {algorithm} needs at least {minimum} (RFC 7518 section 3.2)"
    )]
    ShortSecret {
        /// Its length.
        bytes: usize,
        /// The minimum length.
        minimum: usize,
        /// The algorithm.
        algorithm: SigningAlgorithm,
    },
}

/// A bundle that can't be signed in a way that every OPA accepts. It is a property of the bundle.
#[derive(Debug, thiserror::Error)]
pub enum UnsignableError {
    /// Two files with one name, which a signature can't tell apart.
    #[error("the file {0:?} is there twice, and OPA's signatures list each name once; remove one")]
    SameName(String),
    /// A name that JSON can't express.
    #[error("the name {0:?} is not UTF-8, and OPA's signatures are JSON; rename the file")]
    Name(String),
    /// The data files of one mount point can't be merged; opening the bundle has ruled that out.
    #[error("its files can't be merged: {0}")]
    Merge(String),
    /// The key can't sign.
    #[error("the key can't sign: {0}")]
    Key(&'static str),
}

/// A bundle whose signature is not one of the keys, or does not cover the bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpaSignatureError {
    /// There is no signature.
    #[error(
        "the bundle has no OPA signature ({SIGNATURE_FILE}); sign it, or write opa_signature: ignore"
    )]
    Unsigned,
    /// There is not exactly one signature.
    #[error("{SIGNATURE_FILE} has {0} signatures instead of one")]
    Count(usize),
    /// The file was signed by a plug-in of OPA.
    #[error("{SIGNATURE_FILE} names the plug-in {0:?}, which does not exist here")]
    Plugin(String),
    /// The signature is not a JSON Web Signature that OPA reads.
    #[error("{SIGNATURE_FILE} has a malformed signature: {0}")]
    Malformed(String),
    /// The signature does not name its key.
    #[error("the OPA signature names no key (kid); sign with a key id")]
    NoKeyId,
    /// No key has this name.
    #[error("the OPA signature names the key {kid:?}, which opa_keys does not have")]
    UnknownKey {
        /// The name.
        kid: String,
    },
    /// The signature was made by another key, or by another algorithm, or was changed.
    #[error("the OPA signature was not made by the key {kid:?} with {algorithm}")]
    Invalid {
        /// The name of the key.
        kid: String,
        /// The algorithm that belongs to the key.
        algorithm: SigningAlgorithm,
    },
    /// The scope differs from that of the key.
    #[error("the OPA signature has the scope {found:?} instead of {expected:?}")]
    Scope {
        /// The scope in the signature.
        found: String,
        /// The scope of the key.
        expected: String,
    },
    /// A file of the bundle is not in the signature.
    #[error("the file {0:?} is not covered by the OPA signature")]
    Unlisted(String),
    /// The signature covers a file that is not in the bundle.
    #[error("the file {first:?} is covered by the OPA signature but is not in the bundle{}", more(*.further))]
    Missing {
        /// The first name.
        first: String,
        /// The number of further names.
        further: usize,
    },
    /// The content of a file differs.
    #[error("the content of the file {0:?} is not that of the OPA signature")]
    OtherContent(String),
    /// The hash of a file can't be relied upon.
    #[error("the OPA signature has a hash of the file {name:?} by {algorithm:?}; {reason}")]
    HashAlgorithm {
        /// The file.
        name: String,
        /// The hash algorithm.
        algorithm: String,
        /// The reason for which it is refused.
        reason: &'static str,
    },
    /// The file can't be hashed as OPA hashes it.
    #[error("the file {name:?} can't be compared with the OPA signature: {reason}")]
    Unhashable {
        /// The file.
        name: String,
        /// The reason.
        reason: String,
    },
}

fn size(bits: Option<usize>) -> String {
    match bits {
        Some(bits) => format!("{bits} bits"),
        None => format!("less than {MIN_RSA_BITS} bits"),
    }
}

fn more(further: usize) -> String {
    match further {
        0 => String::new(),
        further => format!(" (and {further} more)"),
    }
}
