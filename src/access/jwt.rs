//! JSON Web Tokens (RFC 7519) of an issuer whose keys are known. jsonwebtoken verifies the
//! signature; the claims are checked here, because they are checked again whenever a request is
//! answered.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, crypto};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::key_set::{KeySet, Thumbprint};
use crate::verify::Pattern;

/// Longer tokens are refused, in bytes. A header of 16 KiB is more than most servers accept.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// How far the clocks of the issuer and this machine may differ, in seconds.
const LEEWAY_SECONDS: i64 = 30;

/// What a token must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRule {
    /// The value of `iss`.
    pub issuer: String,
    /// One of the values of `aud`.
    pub audience: String,
    /// Further claims by name, or by JSON pointer if the name begins with a slash. Of a list, any
    /// element may match.
    pub claims: BTreeMap<String, Pattern>,
}

/// A token that was decoded and not verified.
#[derive(Debug)]
pub struct Jwt<'a> {
    text: &'a str,
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Map<String, Value>,
}

/// A token with a valid signature. Whether its claims hold depends on the time and the rule.
#[derive(Debug)]
pub struct VerifiedToken {
    /// SHA-256 of the token.
    id: [u8; 32],
    claims: Value,
    /// The key that has signed it.
    key: Thumbprint,
    /// The size of the token in bytes.
    size: usize,
}

/// Why a token is refused, in the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenError {
    /// The text is no token, or too long.
    Malformed,
    /// The algorithm is `none`, symmetric or unknown.
    Algorithm,
    /// No rule has this issuer.
    Issuer,
    /// The keys of the issuer are not known, or too old.
    NoKeys,
    /// The issuer has no such key.
    UnknownKey,
    /// The signature is wrong.
    Signature,
    /// The token has expired.
    Expired,
    /// The token is not valid yet.
    NotYetValid,
    /// The token is for another audience.
    Audience,
    /// A claim is missing, or does not match its pattern.
    Claim,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

impl<'a> Jwt<'a> {
    /// Whether a bearer token has the form of a JWT.
    pub fn is_like(token: &[u8]) -> bool {
        token.iter().filter(|byte| **byte == b'.').count() == 2
    }

    /// Decodes a token.
    ///
    /// # Errors
    /// [`TokenError::Malformed`] or [`TokenError::Algorithm`].
    pub fn parse(token: &'a [u8]) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let text = std::str::from_utf8(token).map_err(|_| TokenError::Malformed)?;
        let mut parts = text.split('.');
        let (Some(header), Some(claims), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let header: Header = decode(header)?;
        // Extensions that must be understood, of which there are none here (RFC 7515 §4.1.11).
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let algorithm = header.alg.parse().map_err(|_| TokenError::Algorithm)?;
        if is_symmetric(algorithm) {
            return Err(TokenError::Algorithm);
        }
        Ok(Self {
            text,
            algorithm,
            key_id: header.kid,
            claims: decode(claims)?,
        })
    }

    /// The issuer that the token names; empty if it names none.
    pub fn issuer(&self) -> &str {
        let issuer = self.claims.get("iss").and_then(Value::as_str);
        issuer.unwrap_or_default()
    }

    /// Verifies the signature.
    ///
    /// # Errors
    /// [`TokenError::UnknownKey`] if the set has no such key, else [`TokenError::Signature`].
    pub fn verify(&self, keys: &KeySet) -> Result<VerifiedToken, TokenError> {
        let (message, signature) = self.text.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let mut error = TokenError::UnknownKey;
        for key in keys.candidates(self.key_id.as_deref(), self.algorithm) {
            let message = message.as_bytes();
            // An error is a malformed signature, or a key that is unusable after all.
            let is_valid =
                crypto::verify(signature, message, &key.decoding, self.algorithm).unwrap_or(false);
            if is_valid {
                return Ok(VerifiedToken {
                    id: Sha256::digest(self.text).into(),
                    claims: Value::Object(self.claims.clone()),
                    key: key.thumbprint,
                    size: self.text.len(),
                });
            }
            error = TokenError::Signature;
        }
        Err(error)
    }
}

impl VerifiedToken {
    /// The size of the token in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether one of these keys has signed the token.
    pub fn is_signed_by(&self, keys: &KeySet) -> bool {
        keys.contains(&self.key)
    }

    fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.get(name)
    }

    /// A time claim, in seconds since 1970. Fractions are allowed.
    fn seconds(&self, claim: &str) -> Option<i64> {
        // The cast saturates.
        self.claim(claim)?.as_f64().map(|time| time as i64)
    }
}

impl PartialEq for VerifiedToken {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for VerifiedToken {}

impl Hash for VerifiedToken {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl TokenRule {
    /// Checks the claims of a token.
    ///
    /// # Errors
    /// The first claim that does not hold.
    pub fn check(&self, token: &VerifiedToken, now: Timestamp) -> Result<(), TokenError> {
        if token.claim("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err(TokenError::Issuer);
        }
        let now = now.as_second();
        // A token that never expires could not be taken back.
        let expires = token.seconds("exp").ok_or(TokenError::Expired)?;
        if expires.saturating_add(LEEWAY_SECONDS) <= now {
            return Err(TokenError::Expired);
        }
        let is_too_early = |time: i64| time.saturating_sub(LEEWAY_SECONDS) > now;
        if token.claim("nbf").is_some() && token.seconds("nbf").is_none_or(is_too_early) {
            return Err(TokenError::NotYetValid);
        }
        if !token
            .claim("aud")
            .is_some_and(|audience| any(audience, &|text| text == self.audience))
        {
            return Err(TokenError::Audience);
        }
        let holds = |(name, pattern): (&String, &Pattern)| {
            let value = if name.starts_with('/') {
                token.claims.pointer(name)
            } else {
                token.claim(name)
            };
            value.is_some_and(|value| any(value, &|text| pattern.is_match(text)))
        };
        if !self.claims.iter().all(holds) {
            return Err(TokenError::Claim);
        }
        Ok(())
    }
}

/// Whether a claim, or any element of a list, is a matching text, number or boolean.
fn any(value: &Value, matches: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => matches(text),
        Value::Number(number) => matches(&number.to_string()),
        Value::Bool(value) => matches(if *value { "true" } else { "false" }),
        Value::Array(values) => values
            .iter()
            .any(|value| !value.is_array() && any(value, matches)),
        Value::Null | Value::Object(_) => false,
    }
}

fn is_symmetric(algorithm: Algorithm) -> bool {
    matches!(
        algorithm,
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
    )
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, TokenError> {
    let json = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        rand::SystemRandom,
        rsa::KeySize,
        signature::{
            ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
            RSA_PKCS1_SHA256, RSA_PSS_SHA512, RsaKeyPair,
        },
    };
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    enum Signer {
        Rsa(RsaKeyPair),
        P256(EcdsaKeyPair),
        Ed25519(Ed25519KeyPair),
    }

    fn encode(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    impl Signer {
        fn rsa() -> Self {
            Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
        }

        fn jwk(&self, id: &str) -> Value {
            match self {
                Self::Rsa(key) => {
                    let public = key.public_key();
                    json!({
                        "kty": "RSA", "kid": id,
                        "n": encode(public.modulus().big_endian_without_leading_zero()),
                        "e": encode(public.exponent().big_endian_without_leading_zero()),
                    })
                }
                Self::P256(key) => {
                    let point = key.public_key().as_ref();
                    json!({
                        "kty": "EC", "crv": "P-256", "kid": id,
                        "x": encode(&point[1..33]), "y": encode(&point[33..]),
                    })
                }
                Self::Ed25519(key) => json!({
                    "kty": "OKP", "crv": "Ed25519", "kid": id,
                    "x": encode(key.public_key()),
                }),
            }
        }

        fn sign(&self, header: &Value, claims: &Value) -> String {
            let message = format!(
                "{}.{}",
                encode(header.to_string()),
                encode(claims.to_string())
            );
            let random = SystemRandom::new();
            let signature = match self {
                Self::Rsa(key) => {
                    let padding: &dyn aws_lc_rs::signature::RsaEncoding =
                        match header["alg"].as_str() {
                            Some("PS512") => &RSA_PSS_SHA512,
                            _ => &RSA_PKCS1_SHA256,
                        };
                    let mut signature = vec![0; key.public_modulus_len()];
                    key.sign(padding, &random, message.as_bytes(), &mut signature)
                        .unwrap();
                    signature
                }
                Self::P256(key) => key
                    .sign(&random, message.as_bytes())
                    .unwrap()
                    .as_ref()
                    .to_vec(),
                Self::Ed25519(key) => key.sign(message.as_bytes()).as_ref().to_vec(),
            };
            format!("{message}.{}", encode(signature))
        }
    }

    fn set(keys: &[Value]) -> KeySet {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    }

    fn claims() -> Value {
        json!({
            "iss": "https://issuer.example", "aud": "bundlegate", "exp": NOW + 60,
            "sub": "system:serviceaccount:opa:edge", "groups": ["readers", "writers"], "level": 3,
            "kubernetes.io": { "namespace": "opa" },
        })
    }

    fn rule(claims: &[(&str, &str)]) -> TokenRule {
        let claims = claims
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Pattern::glob(text).unwrap()));
        TokenRule {
            issuer: "https://issuer.example".to_owned(),
            audience: "bundlegate".to_owned(),
            claims: claims.collect(),
        }
    }

    fn verify(token: &str, keys: &KeySet) -> Result<VerifiedToken, TokenError> {
        Jwt::parse(token.as_bytes())?.verify(keys)
    }

    #[test]
    fn every_asymmetric_algorithm_is_verified() {
        let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let signers = [
            ("RS256", Signer::rsa()),
            ("PS512", Signer::rsa()),
            ("ES256", Signer::P256(p256)),
            (
                "EdDSA",
                Signer::Ed25519(Ed25519KeyPair::generate().unwrap()),
            ),
        ];
        let keys: Vec<_> = signers.iter().map(|(id, signer)| signer.jwk(id)).collect();
        let keys = set(&keys);
        for (algorithm, signer) in &signers {
            let header = json!({ "alg": algorithm, "kid": algorithm, "typ": "JWT" });
            let token = signer.sign(&header, &claims());
            let verified = verify(&token, &keys).unwrap();
            assert!(verified.is_signed_by(&keys), "{algorithm}");
            assert!(!verified.is_signed_by(&set(&[Signer::rsa().jwk("a")])));
            let without_id = signer.sign(&json!({ "alg": algorithm }), &claims());
            assert!(verify(&without_id, &keys).is_ok(), "{algorithm}");
        }
    }

    #[test]
    fn another_key_or_algorithm_is_refused() {
        let (signer, other) = (Signer::rsa(), Signer::rsa());
        let keys = set(&[signer.jwk("one")]);
        for (by, header, error) in [
            (
                &signer,
                json!({ "alg": "none", "kid": "one" }),
                TokenError::Algorithm,
            ),
            (
                &signer,
                json!({ "alg": "HS256", "kid": "one" }),
                TokenError::Algorithm,
            ),
            (
                &signer,
                json!({ "alg": "ES256", "kid": "one" }),
                TokenError::UnknownKey,
            ),
            (
                &signer,
                json!({ "alg": "RS384", "kid": "one" }),
                TokenError::Signature,
            ),
            (
                &signer,
                json!({ "alg": "RS256", "kid": "two" }),
                TokenError::UnknownKey,
            ),
            (
                &other,
                json!({ "alg": "RS256", "kid": "one" }),
                TokenError::Signature,
            ),
            (
                &signer,
                json!({ "alg": "RS256", "crit": ["x"], "x": 1 }),
                TokenError::Malformed,
            ),
        ] {
            let token = by.sign(&header, &claims());
            assert_eq!(verify(&token, &keys).unwrap_err(), error, "{header}");
        }
        let token = signer.sign(&json!({ "alg": "RS256" }), &claims());
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = message.split_once('.').unwrap();
        let mut forged = claims();
        forged["sub"] = json!("system:serviceaccount:opa:admin");
        let forged = format!("{header}.{}.{signature}", encode(forged.to_string()));
        assert_eq!(verify(&forged, &keys).unwrap_err(), TokenError::Signature);
        let unsigned = format!("{message}.");
        assert_eq!(verify(&unsigned, &keys).unwrap_err(), TokenError::Signature);
        let long = format!("{token}{}", "A".repeat(MAX_TOKEN_BYTES));
        for text in ["", "..", "a.b.c", message, &format!("{token}.x"), &long] {
            assert_eq!(verify(text, &keys).unwrap_err(), TokenError::Malformed);
        }
        assert!(Jwt::is_like(token.as_bytes()) && !Jwt::is_like(b"s3cret"));
    }

    #[test]
    fn every_claim_counts_at_its_time() {
        let signer = Signer::rsa();
        let keys = set(&[signer.jwk("one")]);
        let rule = rule(&[
            ("sub", "system:serviceaccount:opa:*"),
            ("groups", "readers"),
            ("level", "3"),
            ("/kubernetes.io/namespace", "opa"),
        ]);
        let check = |claims: &Value, now: i64| {
            let token = signer.sign(&json!({ "alg": "RS256" }), claims);
            let token = verify(&token, &keys).unwrap();
            rule.check(&token, Timestamp::from_second(now).unwrap())
        };
        assert_eq!(check(&claims(), NOW), Ok(()));
        assert_eq!(check(&claims(), NOW + 60 + LEEWAY_SECONDS - 1), Ok(()));
        let late = check(&claims(), NOW + 60 + LEEWAY_SECONDS);
        assert_eq!(late, Err(TokenError::Expired));
        for (claim, value, expected) in [
            (
                "iss",
                json!("https://other.example"),
                Err(TokenError::Issuer),
            ),
            ("aud", json!("other"), Err(TokenError::Audience)),
            ("aud", Value::Null, Err(TokenError::Audience)),
            ("aud", json!(["other", "bundlegate"]), Ok(())),
            ("exp", Value::Null, Err(TokenError::Expired)),
            ("exp", json!("2100-01-01"), Err(TokenError::Expired)),
            ("exp", json!(1e300), Ok(())),
            ("exp", json!(NOW as f64 + 0.5), Ok(())),
            ("nbf", json!(NOW + LEEWAY_SECONDS), Ok(())),
            (
                "nbf",
                json!(NOW + LEEWAY_SECONDS + 1),
                Err(TokenError::NotYetValid),
            ),
            ("nbf", json!("soon"), Err(TokenError::NotYetValid)),
            (
                "sub",
                json!("system:serviceaccount:other:edge"),
                Err(TokenError::Claim),
            ),
            ("sub", json!(["x", "system:serviceaccount:opa:a"]), Ok(())),
            ("groups", json!([]), Err(TokenError::Claim)),
            ("groups", json!([["readers"]]), Err(TokenError::Claim)),
            ("groups", json!({ "readers": true }), Err(TokenError::Claim)),
            ("level", json!("3"), Ok(())),
            ("level", json!(30), Err(TokenError::Claim)),
            ("kubernetes.io", json!({}), Err(TokenError::Claim)),
        ] {
            let mut claims = claims();
            claims[claim] = value.clone();
            assert_eq!(check(&claims, NOW), expected, "{claim}: {value}");
        }
    }
}
