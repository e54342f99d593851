//! JSON Web Key Sets (RFC 7517): the public keys that verify the tokens of an issuer.

use std::fmt;

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The keys of a set. An issuer has a few.
const MAX_KEYS: usize = 64;

/// The keys of a set that can verify a signature. Symmetric keys are left out: a client that can
/// verify with one could sign as well.
#[derive(Clone, PartialEq, Eq)]
pub struct KeySet(Vec<Key>);

/// The hash of a public key.
pub(super) type Thumbprint = [u8; 32];

/// A public key.
#[derive(Clone)]
pub(super) struct Key {
    id: Option<String>,
    pub(super) thumbprint: Thumbprint,
    algorithms: Vec<Algorithm>,
    pub(super) decoding: DecodingKey,
}

/// A document that is no usable set of keys. The error quotes nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeySet {
    /// The document is not a JSON Web Key Set.
    #[error("it is not a JSON Web Key Set (a mapping with `keys`)")]
    Malformed,
    /// There are too many keys.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    /// It has a private key, which a server that only verifies should not have.
    #[error("it has a private key; publish the public keys only")]
    Private,
    /// It has no key that can be used.
    #[error(
        "it has no key for signatures with RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 \
         or EdDSA (Ed25519)"
    )]
    Empty,
}

#[derive(Deserialize)]
struct RawKeySet {
    keys: Vec<Value>,
}

impl KeySet {
    /// Parses a JSON Web Key Set. Keys of other kinds and for other uses are left out.
    ///
    /// # Errors
    /// See [`InvalidKeySet`].
    pub fn parse(document: &[u8]) -> Result<Self, InvalidKeySet> {
        let set: RawKeySet =
            serde_json::from_slice(document).map_err(|_| InvalidKeySet::Malformed)?;
        if set.keys.len() > MAX_KEYS {
            return Err(InvalidKeySet::TooMany);
        }
        let is_private = |key: &Value| key.get("d").is_some();
        if set.keys.iter().any(is_private) {
            return Err(InvalidKeySet::Private);
        }
        let keys: Vec<_> = set.keys.into_iter().filter_map(Key::of).collect();
        if keys.is_empty() {
            return Err(InvalidKeySet::Empty);
        }
        Ok(Self(keys))
    }

    /// Whether the set has a key.
    pub(super) fn contains(&self, thumbprint: &Thumbprint) -> bool {
        self.0.iter().any(|key| key.thumbprint == *thumbprint)
    }

    /// The keys that may have signed a token: those with its `kid`, if both have one.
    pub(super) fn candidates(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| {
            let is_named = match (id, &key.id) {
                (Some(id), Some(own)) => id == own,
                _ => true,
            };
            is_named && key.algorithms.contains(&algorithm)
        })
    }

    /// Removes the keys that are not in `other`. Returns whether there were any.
    pub fn retain_keys_of(&mut self, other: &Self) -> bool {
        let before = self.0.len();
        self.0.retain(|key| other.0.contains(key));
        self.0.len() < before
    }

    /// Removes all keys. Returns whether there were any.
    pub fn clear(&mut self) -> bool {
        let had_keys = !self.0.is_empty();
        self.0.clear();
        had_keys
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.0.iter().map(|key| key.id.as_deref());
        f.debug_list().entries(ids).finish()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        (&self.id, self.thumbprint, &self.algorithms)
            == (&other.id, other.thumbprint, &other.algorithms)
    }
}

impl Eq for Key {}

impl Key {
    fn of(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let is_for_signatures = match &jwk.common.public_key_use {
            Some(usage) => *usage == PublicKeyUse::Signature,
            None => true,
        };
        let may_verify = match &jwk.common.key_operations {
            Some(operations) => operations.contains(&KeyOperations::Verify),
            None => true,
        };
        let mut algorithms = algorithms(&jwk.algorithm).to_vec();
        if let Some(only) = jwk.common.key_algorithm {
            algorithms
                .retain(|algorithm| jsonwebtoken::jwk::KeyAlgorithm::from(*algorithm) == only);
        }
        if !is_for_signatures || !may_verify || algorithms.is_empty() {
            return None;
        }
        let parameters = serde_json::to_vec(&jwk.algorithm).ok()?;
        Some(Self {
            decoding: DecodingKey::from_jwk(&jwk).ok()?,
            id: jwk.common.key_id,
            thumbprint: Sha256::digest(parameters).into(),
            algorithms,
        })
    }
}

/// The algorithms that a key can be used with; none for a symmetric one.
fn algorithms(parameters: &AlgorithmParameters) -> &'static [Algorithm] {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    match parameters {
        AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[ES256],
            EllipticCurve::P384 => &[ES384],
            _ => &[],
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[EdDSA],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rsa(more: &Value) -> Value {
        let mut key = json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" });
        for (name, value) in more.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    }

    fn parse(keys: Value) -> Result<KeySet, InvalidKeySet> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn only_public_keys_for_signatures_count() {
        let point = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
        for (key, algorithms) in [
            (rsa(&json!({})), 6),
            (rsa(&json!({ "alg": "RS256", "use": "sig" })), 1),
            (rsa(&json!({ "key_ops": ["verify"] })), 6),
            (
                json!({ "kty": "EC", "crv": "P-256", "x": point, "y": point }),
                1,
            ),
            (json!({ "kty": "OKP", "crv": "Ed25519", "x": point }), 1),
            (rsa(&json!({ "use": "enc" })), 0),
            (rsa(&json!({ "alg": "RSA-OAEP" })), 0),
            (rsa(&json!({ "alg": "HS256" })), 0),
            (rsa(&json!({ "key_ops": ["encrypt"] })), 0),
            (json!({ "kty": "oct", "k": "c2VjcmV0" }), 0),
            (
                json!({ "kty": "EC", "crv": "secp256k1", "x": point, "y": point }),
                0,
            ),
            (json!({ "kty": "OKP", "crv": "Ed448", "x": point }), 0),
            (json!({ "kty": "new" }), 0),
            (json!("text"), 0),
        ] {
            match parse(json!([key])) {
                Ok(set) => assert_eq!(set.0[0].algorithms.len(), algorithms, "{key}"),
                Err(error) => assert_eq!((error, algorithms), (InvalidKeySet::Empty, 0), "{key}"),
            }
        }
        // A key of a new kind does not make the others useless.
        let set = parse(json!([{ "kty": "new" }, rsa(&json!({ "kid": "a" }))])).unwrap();
        assert_eq!(format!("{set:?}"), "[Some(\"a\")]");
    }

    #[test]
    fn a_document_that_is_no_key_set_is_refused() {
        for (document, error) in [
            ("", InvalidKeySet::Malformed),
            ("{}", InvalidKeySet::Malformed),
            ("{\"keys\":[]}", InvalidKeySet::Empty),
        ] {
            assert_eq!(KeySet::parse(document.as_bytes()), Err(error), "{document}");
        }
        let many: Vec<_> = (0..=MAX_KEYS).map(|_| rsa(&json!({}))).collect();
        assert_eq!(parse(json!(many)), Err(InvalidKeySet::TooMany));
        let private = rsa(&json!({ "d": "AQAB" }));
        assert_eq!(parse(json!([private])), Err(InvalidKeySet::Private));
    }

    #[test]
    fn a_key_is_found_by_its_id_and_algorithm() {
        let set = parse(json!([
            rsa(&json!({ "kid": "a" })),
            rsa(&json!({ "kid": "b", "alg": "PS256", "n": "AQAC" })),
            rsa(&json!({ "n": "AQAD" })),
        ]))
        .unwrap();
        let found = |id: Option<&str>, algorithm| {
            let found = set.candidates(id, algorithm);
            found.map(|key| key.id.as_deref()).collect::<Vec<_>>()
        };
        assert_eq!(found(Some("a"), Algorithm::RS256), [Some("a"), None]);
        assert_eq!(found(Some("b"), Algorithm::RS256), [None]);
        assert_eq!(found(Some("b"), Algorithm::PS256), [Some("b"), None]);
        assert_eq!(found(None, Algorithm::RS256), [Some("a"), None]);
        assert_eq!(found(None, Algorithm::ES256), [None::<&str>; 0]);
        let mut left = set.clone();
        assert!(!left.retain_keys_of(&set));
        assert!(left.retain_keys_of(&parse(json!([rsa(&json!({ "kid": "a" }))])).unwrap()));
        assert!(left.contains(&set.0[0].thumbprint) && !left.contains(&set.0[1].thumbprint));
    }
}
