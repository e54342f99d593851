//! The errors of opening a key and of signing.

/// An error in opening a key or signing with it.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The key can't be created or used.
    #[error("key: {0}")]
    Key(String),
    /// The text is not a private key file of cosign.
    #[error("{0}")]
    NotAKeyFile(String),
    /// The key file is valid, but the password is wrong.
    #[error("wrong password; set COSIGN_PASSWORD or type the right one at the prompt")]
    WrongPassword,
    /// A document can't be serialized.
    #[error("signature document: {0}")]
    Document(#[from] serde_json::Error),
    /// The `.sig` tag of a digest would be longer than tags may be.
    #[error(
        "the .sig tag of a {0} digest is longer than the 128 characters of a tag; sign without --legacy"
    )]
    TagTooLong(String),
    /// The `.sig` tag holds an index, to which no signature can be appended.
    #[error("{0} is an index and not an image of signatures; remove it")]
    NotSignatures(String),
}
