//! The hash of one file of a bundle, as OPA computes it (`VerifyBundleFile` in
//! `v1/bundle/verify.go`): of the values of a document where OPA reads one, and of the bytes of
//! every other file.

use std::io::{self, Write};

use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512, Sha512_224, Sha512_256};

use super::OpaSignatureError;
use crate::bundle::{
    document::Document,
    json_string::write_string,
    paths::{base, is_data},
};

/// A hash algorithm of a file, by OPA's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HashAlgorithm {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Sha512_224,
    Sha512_256,
}

impl HashAlgorithm {
    /// The name of the algorithm that is written here and by OPA.
    pub(super) const WRITTEN: &str = "SHA-256";

    /// The algorithm of this name in the list of a signature.
    ///
    /// # Errors
    /// When collisions of it are known, or OPA has none of this name.
    pub(super) fn named(name: &str, file: &str) -> Result<Self, OpaSignatureError> {
        let refused = |reason| {
            Err(OpaSignatureError::HashAlgorithm {
                name: file.to_owned(),
                algorithm: name.to_owned(),
                reason,
            })
        };
        match name {
            "SHA-224" => Ok(Self::Sha224),
            "SHA-256" => Ok(Self::Sha256),
            "SHA-384" => Ok(Self::Sha384),
            "SHA-512" => Ok(Self::Sha512),
            "SHA-512-224" => Ok(Self::Sha512_224),
            "SHA-512-256" => Ok(Self::Sha512_256),
            "MD5" | "SHA-1" => {
                refused("two files can have one such hash, so it proves nothing; sign with SHA-256")
            }
            _ => refused("OPA has no such algorithm; sign with SHA-256"),
        }
    }

    pub(super) fn hasher(self) -> FileHasher {
        match self {
            Self::Sha224 => FileHasher::Sha224(Sha224::new()),
            Self::Sha256 => FileHasher::Sha256(Sha256::new()),
            Self::Sha384 => FileHasher::Sha384(Sha384::new()),
            Self::Sha512 => FileHasher::Sha512(Sha512::new()),
            Self::Sha512_224 => FileHasher::Sha512_224(Sha512_224::new()),
            Self::Sha512_256 => FileHasher::Sha512_256(Sha512_256::new()),
        }
    }
}

/// Hashes what is written to it.
#[derive(Debug)]
pub(super) enum FileHasher {
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
    Sha512_224(Sha512_224),
    Sha512_256(Sha512_256),
}

impl FileHasher {
    /// The hash of everything that was written, in lower-case hexadecimal.
    pub(super) fn hex(self) -> String {
        match self {
            Self::Sha224(hasher) => hex(&hasher.finalize()),
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Sha384(hasher) => hex(&hasher.finalize()),
            Self::Sha512(hasher) => hex(&hasher.finalize()),
            Self::Sha512_224(hasher) => hex(&hasher.finalize()),
            Self::Sha512_256(hasher) => hex(&hasher.finalize()),
        }
    }
}

impl Write for FileHasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Sha224(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha384(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
            Self::Sha512_224(hasher) => hasher.update(bytes),
            Self::Sha512_256(hasher) => hasher.update(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The name of a file in a signature: that in the tarball, without one leading slash.
pub(super) fn signed_name(name: &str) -> &str {
    name.strip_prefix('/').unwrap_or(name)
}

/// Whether OPA hashes the values in a file instead of its bytes (`IsStructuredDoc`). OPA 0.70
/// hashes the bytes of `data.yml`.
pub(super) fn is_structured(name: &str) -> bool {
    is_data(name) || base(name) == ".manifest"
}

/// The hash of the values of a document, in hexadecimal.
pub(super) fn of_document(document: &Document, algorithm: HashAlgorithm) -> String {
    // The writer passes many small pieces.
    let mut hasher = io::BufWriter::with_capacity(1 << 13, algorithm.hasher());
    // Can't fail: writing to a hasher succeeds.
    let _ = document.write_with(&mut hasher, write_string);
    hasher
        .into_inner()
        .map_or_else(|_| String::new(), FileHasher::hex)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
