//! The JSON Web Signature in `.signatures.json` (RFC 7515, compact; `DecodedSignature` in
//! `v1/bundle/bundle.go`).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::OpaSignatureError;

/// The claims that count.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    pub(super) files: Vec<FileClaim>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) scope: String,
    /// Deprecated in favour of `kid` in the header; read and not written.
    #[serde(default, rename = "keyid", skip_serializing)]
    pub(super) key_id: String,
}

/// One file of the bundle.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileClaim {
    #[serde(default)]
    pub(super) name: String,
    /// In hexadecimal.
    #[serde(default)]
    pub(super) hash: String,
    #[serde(default)]
    pub(super) algorithm: String,
}

/// The header of a signature that is written here.
#[derive(Debug, Serialize)]
pub(super) struct Header<'a> {
    pub(super) alg: &'static str,
    pub(super) kid: &'a str,
}

/// The only part of a header that is read: the algorithm is that of the key.
#[derive(Debug, Deserialize)]
struct ReadHeader {
    #[serde(default)]
    kid: String,
}

/// A signature that was read, and not verified yet.
pub(super) struct Token<'a> {
    /// What is signed: the header and the claims, encoded.
    pub(super) message: &'a [u8],
    pub(super) signature: Vec<u8>,
    pub(super) claims: Claims,
    /// The name of the key; empty if there is none.
    pub(super) kid: String,
}

/// What is signed of a signature that is written here.
pub(super) fn message(header: &Header<'_>, claims: &Claims) -> String {
    // Can't fail: both are structs of strings.
    let encode = |json: Vec<u8>| URL_SAFE_NO_PAD.encode(json);
    let header = encode(serde_json::to_vec(header).unwrap_or_default());
    let claims = encode(serde_json::to_vec(claims).unwrap_or_default());
    format!("{header}.{claims}")
}

/// Adds the signature to the message.
pub(super) fn compact(mut message: String, signature: &[u8]) -> String {
    message.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut message);
    message
}

impl<'a> Token<'a> {
    /// Reads a compact signature.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn read(text: &'a str) -> Result<Self, OpaSignatureError> {
        let malformed = |what: &str| OpaSignatureError::Malformed(what.to_owned());
        let (message, signature) = text
            .rsplit_once('.')
            .ok_or_else(|| malformed("it has no dot"))?;
        let (header, claims) = message
            .split_once('.')
            .filter(|(_, claims)| !claims.contains('.'))
            .ok_or_else(|| malformed("it has not three parts"))?;
        let decode = |part: &str, what: &str| {
            let decoded = URL_SAFE_NO_PAD.decode(part);
            decoded.map_err(|_| malformed(&format!("its {what} is not base64url")))
        };
        let header: ReadHeader = serde_json::from_slice(&decode(header, "header")?)
            .map_err(|error| malformed(&format!("its header: {error}")))?;
        let claims: Claims = serde_json::from_slice(&decode(claims, "payload")?)
            .map_err(|error| malformed(&format!("its payload: {error}")))?;
        Ok(Self {
            message: message.as_bytes(),
            signature: decode(signature, "signature")?,
            kid: match header.kid.is_empty() {
                true => claims.key_id.clone(),
                false => header.kid,
            },
            claims,
        })
    }
}
