//! What a token grants, and what a token server says about it.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{ISSUER, SERVICE, TokenKey};

/// Registries accept a token for so long after its end (distribution,
/// `registry/auth/token/token.go`).
const LEEWAY_SECS: i64 = 60;

/// How a server answers from now on.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    /// The seconds for which registries accept a token.
    pub(crate) valid_for: i64,
    /// What the answer says about that; without `Value::Null`.
    pub(crate) expires_in: Value,
    /// The names under which the token is in the answer.
    pub(crate) fields: &'static [&'static str],
    /// The answer to a POST instead of a token.
    pub(crate) post: Option<u16>,
    /// The answer to every request instead of a token.
    pub(crate) failure: Option<u16>,
    pub(crate) password: String,
    /// The refresh tokens that count.
    pub(crate) refresh_tokens: Vec<String>,
}

/// A request and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    pub(crate) method: String,
    /// Of the credentials in it, whether they are right or not.
    pub(crate) account: Option<String>,
    /// The scopes that were asked for, in order.
    pub(crate) scopes: Vec<String>,
    pub(crate) status: u16,
}

impl TokenKey {
    /// A token for `account` with these grants (`type:name:action,action`).
    pub(super) fn token(&self, account: &str, granted: &[String], valid_for: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = i64::try_from(now.as_secs()).unwrap();
        let access: Vec<_> = granted
            .iter()
            .map(|scope| {
                let (resource, actions) = scope.rsplit_once(':').unwrap();
                let (kind, name) = resource.split_once(':').unwrap();
                let actions: Vec<_> = actions.split(',').collect();
                json!({ "type": kind, "name": name, "actions": actions })
            })
            .collect();
        let claims = json!({
            "iss": ISSUER, "sub": account, "aud": SERVICE, "jti": format!("{:x}", fastrand::u128(..)),
            "iat": now - LEEWAY_SECS, "nbf": now - LEEWAY_SECS,
            "exp": now + valid_for - LEEWAY_SECS,
            "access": access,
        });
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": self.chain() });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let pair = self.pair.serialize_der();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair).unwrap();
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Tokens {
    pub(super) fn answer(&self, token: &str) -> Value {
        let mut answer: Value = self
            .fields
            .iter()
            .map(|field| ((*field).to_owned(), json!(token)))
            .collect();
        if !self.expires_in.is_null() {
            answer["expires_in"] = self.expires_in.clone();
        }
        answer
    }
}
