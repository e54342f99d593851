//! How a sender proves who it is. Secrets are compared in constant time.

use std::fmt;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderValue},
};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::oidc::Oidc;

/// What a request must have. Where several secrets are configured, any of them suffices, so that
/// they can be rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing.
    None,
    /// A bearer token in `Authorization`.
    Bearer(Vec<Secret>),
    /// `USER:PASSWORD` in `Authorization`.
    Basic(Vec<Secret>),
    /// A shared secret, in the manner of the sender.
    Shared(SecretPlace, Vec<Secret>),
    /// An OIDC token in `Authorization`.
    Oidc(Oidc),
}

/// Where a sender puts a shared secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretPlace {
    /// The HMAC-SHA-256 of the body, as `sha256=<hex>` in the first of these headers that is there.
    Hmac(&'static [&'static str]),
    /// The secret itself in a header.
    Header(&'static str),
    /// The secret itself in a header, or the HMAC-SHA-256 of the body in hexadecimal.
    HeaderOrHmac(&'static str),
    /// The secret itself in a parameter of the query string.
    Query(&'static str),
}

/// A secret, which `Debug` does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// The decision about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The request is authentic.
    Accepted,
    /// The request is not authentic.
    Refused,
    /// The body decides ([`Authentication::accepts_body`]).
    NeedsBody,
}

impl Secret {
    /// A secret, such as a line of a file.
    pub fn new(secret: &str) -> Self {
        Self(Zeroizing::new(secret.as_bytes().to_vec()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Authentication {
    /// Decides by the headers and the query string, before the body is read.
    pub fn decide(&self, headers: &HeaderMap, query: Option<&str>, now: Timestamp) -> Decision {
        let is_accepted = match self {
            Self::None => true,
            Self::Bearer(secrets) => {
                credentials(headers, "bearer").is_some_and(|token| is_any(secrets, token))
            }
            Self::Basic(secrets) => credentials(headers, "basic")
                .and_then(|encoded| STANDARD.decode(encoded).ok().map(Zeroizing::new))
                .is_some_and(|credentials| is_any(secrets, &credentials)),
            Self::Oidc(oidc) => {
                credentials(headers, "bearer").is_some_and(|token| oidc.accepts(token, now))
            }
            Self::Shared(SecretPlace::Header(name), secrets) => headers
                .get(*name)
                .is_some_and(|value| is_any(secrets, value.as_bytes().trim_ascii())),
            Self::Shared(SecretPlace::Query(name), secrets) => {
                parameter(query.unwrap_or_default(), name)
                    .is_some_and(|secret| is_any(secrets, &secret))
            }
            Self::Shared(SecretPlace::Hmac(names), _) => {
                // Without a signature the body need not be read.
                return match signature(headers, names) {
                    Some(_) => Decision::NeedsBody,
                    None => Decision::Refused,
                };
            }
            Self::Shared(SecretPlace::HeaderOrHmac(name), secrets) => {
                let Some(value) = headers.get(*name) else {
                    return Decision::Refused;
                };
                if !is_any(secrets, value.as_bytes()) {
                    return Decision::NeedsBody;
                }
                true
            }
        };
        if is_accepted {
            Decision::Accepted
        } else {
            Decision::Refused
        }
    }

    /// Decides by the body where [`Self::decide`] says that it is needed.
    pub fn accepts_body(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let Self::Shared(place, secrets) = self else {
            return false;
        };
        let signature = match place {
            SecretPlace::Hmac(names) => signature(headers, names),
            SecretPlace::HeaderOrHmac(name) => headers.get(*name).and_then(decode_hex),
            SecretPlace::Header(_) | SecretPlace::Query(_) => None,
        };
        let Some(signature) = signature else {
            return false;
        };
        let is_signer = |secret: &Secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret.0);
            // Compares in constant time.
            hmac::verify(&key, body, &signature).is_ok()
        };
        secrets.iter().any(is_signer)
    }

    /// The `WWW-Authenticate` header of a refusal.
    pub fn challenge(&self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Basic(_) => "Basic realm=\"webhooks\"",
            _ => "Bearer",
        })
    }

    /// The word for the status.
    pub fn label(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bearer(_) => "bearer",
            Self::Basic(_) => "basic",
            Self::Shared(..) => "secret",
            Self::Oidc(_) => "oidc",
        }
    }
}

/// Whether a text is one of the secrets. All of them are compared by their hashes, so that the time
/// reveals neither the length of one nor which one matches.
fn is_any(secrets: &[Secret], text: &[u8]) -> bool {
    let hash = Sha256::digest(text);
    let hits = secrets
        .iter()
        .map(|secret| Sha256::digest(&*secret.0).ct_eq(&hash).unwrap_u8());
    hits.fold(0, |all, hit| all | hit) == 1
}

/// The credentials of a scheme in `Authorization`.
fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a [u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (own, credentials) = value.split_at_checked(scheme.len() + 1)?;
    let (own, space) = own.split_at(scheme.len());
    (own.eq_ignore_ascii_case(scheme.as_bytes()) && space == b" ").then(|| credentials.trim_ascii())
}

/// The bytes of `sha256=<hex>`.
fn signature(headers: &HeaderMap, names: &[&str]) -> Option<Vec<u8>> {
    let value = names.iter().find_map(|name| headers.get(*name))?;
    let hex = value.as_bytes().strip_prefix(b"sha256=")?;
    decode_hex(&HeaderValue::from_bytes(hex).ok()?)
}

fn decode_hex(value: &HeaderValue) -> Option<Vec<u8>> {
    let text = value.to_str().ok()?;
    if text.len() % 2 != 0 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).ok();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// The value of a parameter in a query string, percent-decoded.
fn parameter(query: &str, name: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut parameters = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = parameters.find(|(key, _)| *key == name)?;
    Some(Zeroizing::new(percent_decode_str(value).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"{}";

    fn secrets() -> Vec<Secret> {
        ["one", "two"].map(Secret::new).into()
    }

    fn decide(authentication: &Authentication, header: Option<(&str, &str)>, query: &str) -> bool {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            let name: hyper::header::HeaderName = name.parse().unwrap();
            headers.insert(name, value.parse().unwrap());
        }
        match authentication.decide(&headers, Some(query), Timestamp::UNIX_EPOCH) {
            Decision::Accepted => true,
            Decision::Refused => false,
            Decision::NeedsBody => authentication.accepts_body(&headers, BODY),
        }
    }

    fn hmac(secret: &str, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let tag = hmac::sign(&key, body);
        tag.as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    #[test]
    fn credentials_in_authorization_are_one_of_those_configured() {
        let bearer = Authentication::Bearer(secrets());
        let basic = Authentication::Basic(vec![Secret::new("robot:open sesame")]);
        let encoded = STANDARD.encode("robot:open sesame");
        for (authentication, value, accepted) in [
            (&bearer, "Bearer one".to_owned(), true),
            (&bearer, "bearer  two".to_owned(), true),
            (&bearer, "Bearer three".to_owned(), false),
            (&bearer, "Bearer ".to_owned(), false),
            (&bearer, "Bearer".to_owned(), false),
            (&bearer, "Bearerxone".to_owned(), false),
            (&bearer, "Basic one".to_owned(), false),
            (&basic, format!("Basic {encoded}"), true),
            (&basic, format!("Bearer {encoded}"), false),
            (&basic, "Basic %%%".to_owned(), false),
            (
                &basic,
                format!("Basic {}", STANDARD.encode("robot:")),
                false,
            ),
        ] {
            let is_accepted = decide(authentication, Some(("authorization", &value)), "");
            assert_eq!(is_accepted, accepted, "{value}");
            assert!(!decide(authentication, None, "secret=one"));
        }
    }

    #[test]
    fn shared_secrets_are_where_the_sender_puts_them() {
        let shared = |place| Authentication::Shared(place, secrets());
        let hub = shared(SecretPlace::Hmac(&["x-hub-signature-256", "x-signature"]));
        let (good, other) = (hmac("two", BODY), hmac("two", b"{ }"));
        for (name, value, accepted) in [
            ("x-hub-signature-256", format!("sha256={good}"), true),
            ("x-signature", format!("sha256={good}"), true),
            (
                "x-signature",
                format!("sha256={}", good.to_uppercase()),
                true,
            ),
            ("x-hub-signature-256", good.clone(), false),
            ("x-hub-signature-256", format!("sha1={good}"), false),
            ("x-hub-signature-256", format!("sha256={other}"), false),
            (
                "x-hub-signature-256",
                format!("sha256={}", &good[2..]),
                false,
            ),
            ("x-hub-signature-256", "sha256=".to_owned(), false),
            (
                "x-hub-signature-256",
                format!("sha256={}", hmac("no", BODY)),
                false,
            ),
            ("authorization", "Bearer one".to_owned(), false),
        ] {
            assert_eq!(
                decide(&hub, Some((name, &value)), ""),
                accepted,
                "{name}: {value}"
            );
        }
        let gitlab = shared(SecretPlace::Header("x-gitlab-token"));
        assert!(decide(&gitlab, Some(("x-gitlab-token", "one")), ""));
        assert!(!decide(&gitlab, Some(("x-gitlab-token", "on")), ""));
        let jfrog = shared(SecretPlace::HeaderOrHmac("x-jfrog-event-auth"));
        for (value, accepted) in [
            ("one", true),
            (good.as_str(), true),
            ("three", false),
            (&other, false),
        ] {
            let header = Some(("x-jfrog-event-auth", value));
            assert_eq!(decide(&jfrog, header, ""), accepted, "{value}");
        }
        let quay = shared(SecretPlace::Query("secret"));
        for (query, accepted) in [
            ("secret=one", true),
            ("a=b&secret=tw%6F", true),
            ("secret=three&secret=one", false),
            ("Secret=one", false),
            ("secret", false),
            ("", false),
        ] {
            assert_eq!(decide(&quay, None, query), accepted, "{query}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let printed = format!("{:?}", Authentication::Bearer(secrets()));
        assert!(!printed.contains("one"), "{printed}");
    }
}
