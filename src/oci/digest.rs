//! Content digests (OCI image-spec, `descriptor.md` "Digests").

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256, Sha512};

/// A digest in its canonical text, `sha256:<64 lower-case hex>` or `sha512:<128 lower-case hex>`.
///
/// It is parsed, or computed from bytes in memory. A digest from a registry's header is never
/// trusted for the bytes beside it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    text: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::canonical(Algorithm::Sha256, &Sha256::digest(bytes))
    }

    /// The digest of `bytes` with the algorithm of `self`, for a comparison with `self`.
    #[must_use]
    pub fn recompute(&self, bytes: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// A hasher with the algorithm of `self`.
    pub fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        self.algorithm.name()
    }

    /// The lower-case hexadecimal part.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// The canonical text, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn canonical(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut text = String::with_capacity(8 + bytes.len() * 2);
        text.push_str(algorithm.name());
        text.push(':');
        for byte in bytes {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        Self {
            algorithm,
            text: text.into(),
        }
    }
}

/// A hash in progress; see [`Digest::hasher`].
#[derive(Debug, Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// A new SHA-256.
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// Hashes `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all hashed bytes.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::canonical(Algorithm::Sha256, &hash.finalize()),
            Self::Sha512(hash) => Digest::canonical(Algorithm::Sha512, &hash.finalize()),
        }
    }
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// An error in parsing a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The text begins with neither `sha256:` nor `sha512:`.
    #[error("digest {0:?} starts with neither sha256: nor sha512:")]
    UnknownAlgorithm(String),
    /// The rest has the wrong length, or characters other than `0-9a-f`.
    #[error("digest {0:?} is not followed by the right number of lower-case hex digits")]
    NotHex(String),
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let shown = || text.chars().take(160).collect::<String>();
        let (algorithm, hex) = if let Some(hex) = text.strip_prefix("sha256:") {
            (Algorithm::Sha256, hex)
        } else if let Some(hex) = text.strip_prefix("sha512:") {
            (Algorithm::Sha512, hex)
        } else {
            return Err(DigestError::UnknownAlgorithm(shown()));
        };
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(lower_hex) {
            return Err(DigestError::NotHex(shown()));
        }
        Ok(Self {
            algorithm,
            text: text.into(),
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashing_and_parsing_give_the_same_canonical_text() {
        let parsed: Digest = EMPTY.parse().unwrap();
        assert_eq!(parsed, Digest::sha256(b""));
        assert_eq!(parsed.hex(), &EMPTY[7..]);
        assert_eq!(parsed.recompute(b""), parsed);
        assert_ne!(parsed.recompute(b"x"), parsed);
    }

    #[test]
    fn sha512_is_recomputed_with_its_own_algorithm() {
        let text = format!("sha512:{}", "0".repeat(128));
        let digest: Digest = text.parse().unwrap();
        assert_eq!(digest.recompute(b"").algorithm(), "sha512");
        assert_eq!(digest.recompute(b"").hex().len(), 128);
    }

    #[test]
    fn upper_case_wrong_length_and_foreign_algorithms_are_refused() {
        for text in [
            "",
            "sha256:",
            "md5:00",
            &EMPTY.to_uppercase(),
            &EMPTY[..70],
            &format!("{EMPTY}0"),
            "sha256:../../etc/passwd",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
