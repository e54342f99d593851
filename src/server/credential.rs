//! The `Authorization` header of a request, and what is kept of it: never a secret.

use std::sync::Arc;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::refusal::Reason;
use crate::access::{User, VerifiedToken};

/// The base64 of basic credentials, whose padding some programs leave out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Longer basic credentials are refused before they are decoded, in bytes.
const MAX_BASIC_BYTES: usize = 4 << 10;

/// The first 128 bits of SHA-256. A token with the same ones is as hard to find as a random token
/// of that length, and each held request keeps them.
pub(super) type TokenHash = [u8; 16];

/// What a request says about its client. No secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Credential {
    /// There is no `Authorization` header.
    None,
    /// The hash of a bearer token.
    Token(TokenHash),
    /// A user whose password was right for this hash.
    User(Arc<User>),
    /// A token with a valid signature, whose claims may hold or not.
    Jwt(Arc<VerifiedToken>),
    /// The credential is no client's, whatever the configuration says later.
    Rejected(Reason),
}

/// An `Authorization` header by its scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Authorization<'a> {
    None,
    Bearer(&'a [u8]),
    /// USER:PASSWORD in base64.
    Basic(&'a [u8]),
    /// The signature of AWS, which OPA sends with `s3_signing`.
    Aws,
    Other,
}

/// A user name and a password.
pub(super) struct UserPassword {
    text: Zeroizing<String>,
    colon: usize,
}

impl<'a> Authorization<'a> {
    /// Parses the header, if there is one. The case of a scheme does not matter.
    pub(super) fn of(header: Option<&'a [u8]>) -> Self {
        let Some(header) = header else {
            return Self::None;
        };
        let end = header.iter().position(|byte| *byte == b' ');
        let Some((scheme, rest)) = end.and_then(|end| header.split_at_checked(end)) else {
            return Self::Other;
        };
        let rest = rest.trim_ascii();
        if scheme.eq_ignore_ascii_case(b"bearer") {
            Self::Bearer(rest)
        } else if scheme.eq_ignore_ascii_case(b"basic") {
            Self::Basic(rest)
        } else if scheme.starts_with(b"AWS4-") {
            Self::Aws
        } else {
            Self::Other
        }
    }
}

impl UserPassword {
    /// Decodes basic credentials. `None` for what RFC 7617 does not allow.
    pub(super) fn decode(encoded: &[u8]) -> Option<Self> {
        if encoded.len() > MAX_BASIC_BYTES {
            return None;
        }
        let decoded = Zeroizing::new(BASE64.decode(encoded).ok()?);
        let text = std::str::from_utf8(&decoded).ok()?;
        let colon = text.find(':')?;
        let is_allowed = colon > 0 && !text.chars().any(char::is_control);
        is_allowed.then(|| Self {
            text: Zeroizing::new(text.to_owned()),
            colon,
        })
    }

    pub(super) fn user(&self) -> &str {
        &self.text[..self.colon]
    }

    pub(super) fn password(&self) -> &[u8] {
        &self.text.as_bytes()[self.colon + 1..]
    }
}

impl Credential {
    pub(super) fn token(token: &[u8]) -> Self {
        Self::Token(token_hash(token))
    }
}

/// The hash by which bearer tokens are compared.
pub(super) fn token_hash(token: &[u8]) -> TokenHash {
    let mut hash = TokenHash::default();
    let (digest, length) = (Sha256::digest(token), hash.len());
    hash.copy_from_slice(&digest[..length]);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_decides_how_a_header_is_read() {
        for (header, expected) in [
            ("Bearer one", Authorization::Bearer(b"one")),
            ("bearer  two ", Authorization::Bearer(b"two")),
            ("BASIC dTpw", Authorization::Basic(b"dTpw")),
            (
                "AWS4-HMAC-SHA256 Credential=AKID/x, SignedHeaders=host, Signature=y",
                Authorization::Aws,
            ),
            (
                "AWS4-ECDSA-P256-SHA256 Credential=AKID/x",
                Authorization::Aws,
            ),
            ("Negotiate YII=", Authorization::Other),
            ("one", Authorization::Other),
            ("", Authorization::Other),
        ] {
            let parsed = Authorization::of(Some(header.as_bytes()));
            assert_eq!(parsed, expected, "{header}");
        }
        assert_eq!(Authorization::of(None), Authorization::None);
    }

    #[test]
    fn basic_credentials_are_a_user_and_a_password_without_control_characters() {
        let decode = |text: &str| {
            let pair = UserPassword::decode(BASE64.encode(text).as_bytes())?;
            Some((pair.user().to_owned(), pair.password().to_vec()))
        };
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.into()));
        assert_eq!(decode("edge:s3cret"), pair("edge", "s3cret"));
        assert_eq!(decode("edge:a:b"), pair("edge", "a:b"));
        assert_eq!(decode("edge:"), pair("edge", ""));
        assert_eq!(decode("\u{e9}dge:\u{e9}"), pair("\u{e9}dge", "\u{e9}"));
        for bad in ["edge", ":s3cret", "edge:\0", "edge:a\nb", ""] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
        assert!(
            UserPassword::decode(b"ZWRnZTpzM2NyZXQ").is_some(),
            "unpadded"
        );
        assert!(UserPassword::decode(b"%%%").is_none());
        assert!(UserPassword::decode(&[b'A'; MAX_BASIC_BYTES + 4]).is_none());
    }
}
