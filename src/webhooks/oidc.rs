//! OIDC tokens, as Google's Pub/Sub sends them: a JWT signed with RS256.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jiff::Timestamp;
use serde::Deserialize;

/// The base64url of JOSE, whose padding some programs write.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// A longer token is refused.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// How far the clocks of both sides may differ, in seconds.
const MAX_SKEW: i64 = 60;

/// The requirements on a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oidc {
    /// The values of `iss`, any of which is accepted.
    pub issuers: Vec<String>,
    /// The value of `aud`.
    pub audience: String,
    /// The value of `email`, which must be verified.
    pub email: String,
    /// The issuer's keys.
    pub keys: KeySet,
}

/// The RSA keys of a JSON Web Key Set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet(Vec<Key>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

/// A document that is no set of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeySet {
    /// The document is not a JSON Web Key Set.
    #[error("it is not a JSON Web Key Set")]
    Malformed,
    /// It has no key of the kind that is used.
    #[error("it has no RSA key")]
    Empty,
}

#[derive(Deserialize)]
struct RawKeySet {
    keys: Vec<RawKey>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    email: String,
    email_verified: bool,
    exp: i64,
    nbf: Option<i64>,
    iat: Option<i64>,
}

impl KeySet {
    /// Parses a JSON Web Key Set. Keys of other kinds are left out.
    ///
    /// # Errors
    /// When the document is malformed, or has no RSA key.
    pub fn parse(document: &[u8]) -> Result<Self, InvalidKeySet> {
        let set: RawKeySet =
            serde_json::from_slice(document).map_err(|_| InvalidKeySet::Malformed)?;
        let keys: Vec<_> = set.keys.iter().filter_map(RawKey::rsa).collect();
        if keys.is_empty() {
            return Err(InvalidKeySet::Empty);
        }
        Ok(Self(keys))
    }
}

impl RawKey {
    fn rsa(&self) -> Option<Key> {
        let is_for_signatures = self.usage.as_deref().is_none_or(|usage| usage == "sig");
        if self.kty != "RSA" || !is_for_signatures {
            return None;
        }
        Some(Key {
            id: self.kid.clone(),
            modulus: BASE64URL.decode(self.n.as_ref()?).ok()?,
            exponent: BASE64URL.decode(self.e.as_ref()?).ok()?,
        })
    }
}

impl Key {
    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = RsaPublicKeyComponents {
            n: &self.modulus,
            e: &self.exponent,
        };
        key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            .is_ok()
    }
}

impl Oidc {
    /// Whether a token satisfies the requirements.
    pub(super) fn accepts(&self, token: &[u8], now: Timestamp) -> bool {
        self.claims(token)
            .is_some_and(|claims| self.satisfy(&claims, now.as_second()))
    }

    /// The claims, if one of the keys has signed them.
    fn claims(&self, token: &[u8]) -> Option<Claims> {
        let token = std::str::from_utf8(token).ok()?;
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header: Header = serde_json::from_slice(&BASE64URL.decode(header).ok()?).ok()?;
        // Only this algorithm: the token does not decide how it is verified.
        if header.alg != "RS256" {
            return None;
        }
        let signature = BASE64URL.decode(signature).ok()?;
        let may_be = |key: &&Key| header.kid.is_none() || key.id.is_none() || key.id == header.kid;
        self.keys
            .0
            .iter()
            .filter(may_be)
            .find(|key| key.has_signed(message.as_bytes(), &signature))?;
        serde_json::from_slice(&BASE64URL.decode(claims).ok()?).ok()
    }

    fn satisfy(&self, claims: &Claims, now: i64) -> bool {
        let began =
            |time: Option<i64>| time.is_none_or(|time| time <= now.saturating_add(MAX_SKEW));
        self.issuers.contains(&claims.iss)
            && claims.aud == self.audience
            && claims.email == self.email
            && claims.email_verified
            && claims.exp.saturating_add(MAX_SKEW) > now
            && began(claims.nbf)
            && began(claims.iat)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::AsDer as _,
        rand::SystemRandom,
        rsa::KeySize,
        signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair},
    };
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    struct Issuer(RsaKeyPair);

    impl Issuer {
        fn new() -> Self {
            Self(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
        }

        fn keys(&self, id: &str) -> Value {
            let public = self.0.public_key();
            // Only so that the key is known to be one.
            assert!(!public.as_der().unwrap().as_ref().is_empty());
            let encode = |bytes: &[u8]| BASE64URL.encode(bytes);
            json!({ "keys": [{
                "kty": "RSA", "kid": id, "use": "sig", "alg": "RS256",
                "n": encode(public.modulus().big_endian_without_leading_zero()),
                "e": encode(public.exponent().big_endian_without_leading_zero()),
            }] })
        }

        fn token(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| BASE64URL.encode(value.to_string());
            let message = format!("{}.{}", part(header), part(claims));
            let mut signature = vec![0; self.0.public_modulus_len()];
            self.0
                .sign(
                    &RSA_PKCS1_SHA256,
                    &SystemRandom::new(),
                    message.as_bytes(),
                    &mut signature,
                )
                .unwrap();
            format!("{message}.{}", BASE64URL.encode(signature))
        }
    }

    fn claims() -> Value {
        json!({
            "iss": "https://accounts.google.com", "aud": "https://gate/webhooks/gar",
            "email": "push@acme.iam.gserviceaccount.com", "email_verified": true,
            "sub": "1", "azp": "1", "iat": NOW - 10, "exp": NOW + 3600,
        })
    }

    fn oidc(keys: &Value) -> Oidc {
        Oidc {
            issuers: vec!["https://accounts.google.com".to_owned()],
            audience: "https://gate/webhooks/gar".to_owned(),
            email: "push@acme.iam.gserviceaccount.com".to_owned(),
            keys: KeySet::parse(keys.to_string().as_bytes()).unwrap(),
        }
    }

    #[test]
    fn every_claim_of_a_token_counts() {
        let (issuer, header) = (
            Issuer::new(),
            json!({ "alg": "RS256", "kid": "one", "typ": "JWT" }),
        );
        let oidc = oidc(&issuer.keys("one"));
        let now = Timestamp::from_second(NOW).unwrap();
        let accepts = |claims: &Value| oidc.accepts(issuer.token(&header, claims).as_bytes(), now);
        assert!(accepts(&claims()));
        for (claim, value) in [
            ("iss", json!("https://accounts.example.com")),
            ("aud", json!("https://other/webhooks/gar")),
            ("aud", json!(["https://gate/webhooks/gar"])),
            ("email", json!("other@acme.iam.gserviceaccount.com")),
            ("email_verified", json!(false)),
            ("email_verified", json!("true")),
            ("exp", json!(NOW - MAX_SKEW)),
            ("exp", Value::Null),
            ("iat", json!(NOW + MAX_SKEW + 1)),
            ("nbf", json!(NOW + MAX_SKEW + 1)),
        ] {
            let mut claims = claims();
            claims[claim] = value.clone();
            assert!(!accepts(&claims), "{claim}: {value}");
        }
    }

    #[test]
    fn only_the_issuers_key_and_algorithm_count() {
        let (issuer, other) = (Issuer::new(), Issuer::new());
        let oidc = oidc(&issuer.keys("one"));
        let now = Timestamp::from_second(NOW).unwrap();
        for (signer, header, accepted) in [
            (&issuer, json!({ "alg": "RS256", "kid": "one" }), true),
            (&issuer, json!({ "alg": "RS256" }), true),
            (&issuer, json!({ "alg": "RS256", "kid": "two" }), false),
            (&issuer, json!({ "alg": "none", "kid": "one" }), false),
            (&issuer, json!({ "alg": "HS256", "kid": "one" }), false),
            (&other, json!({ "alg": "RS256", "kid": "one" }), false),
        ] {
            let token = signer.token(&header, &claims());
            assert_eq!(oidc.accepts(token.as_bytes(), now), accepted, "{header}");
        }
        let token = issuer.token(&json!({ "alg": "RS256" }), &claims());
        let (message, _) = token.rsplit_once('.').unwrap();
        for text in [
            "",
            ".",
            "..",
            "a.b.c",
            message,
            &format!("{message}."),
            &format!("{token}x"),
        ] {
            assert!(!oidc.accepts(text.as_bytes(), now), "{text}");
        }
    }

    #[test]
    fn a_key_set_has_rsa_keys() {
        for (document, error) in [
            ("", InvalidKeySet::Malformed),
            ("{}", InvalidKeySet::Malformed),
            (r#"{"keys":[]}"#, InvalidKeySet::Empty),
            (r#"{"keys":[{"kty":"EC","kid":"a"}]}"#, InvalidKeySet::Empty),
            (
                r#"{"keys":[{"kty":"RSA","n":"%","e":"AQAB"}]}"#,
                InvalidKeySet::Empty,
            ),
        ] {
            assert_eq!(KeySet::parse(document.as_bytes()), Err(error), "{document}");
        }
    }
}
