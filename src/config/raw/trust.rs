//! `trust` as written.

use std::{collections::BTreeMap, fmt, marker::PhantomData, path::PathBuf};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;

use crate::config::values::{Period, PointInTime};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Trust {
    #[serde(default)]
    pub(in crate::config) roots: BTreeMap<String, Root>,
    #[serde(default)]
    pub(in crate::config) authorities: BTreeMap<String, Authority>,
    #[serde(default)]
    pub(in crate::config) policies: BTreeMap<String, Policy>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Root {
    pub(in crate::config) builtin: Option<String>,
    pub(in crate::config) trusted_root: Option<PathBuf>,
    pub(in crate::config) tuf: Option<Tuf>,
}

/// `none`, or the source and the refresh interval.
pub(in crate::config) type Tuf = KeywordOr<TufKeys>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TufKeys {
    pub(in crate::config) url: Option<String>,
    pub(in crate::config) root: Option<PathBuf>,
    pub(in crate::config) refresh: Option<Period>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Authority {
    pub(in crate::config) keys: Option<Vec<KeyFile>>,
    pub(in crate::config) keyless: Option<Keyless>,
    pub(in crate::config) x509: Option<X509>,
    pub(in crate::config) tlog: Option<String>,
    pub(in crate::config) root: Option<String>,
}

/// `release.pub`, or `{ file: release.pub, … }`.
pub(in crate::config) type KeyFile = KeywordOr<Key>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Key {
    pub(in crate::config) file: PathBuf,
    pub(in crate::config) schemes: Option<Vec<String>>,
    pub(in crate::config) not_before: Option<PointInTime>,
    pub(in crate::config) not_after: Option<PointInTime>,
    #[serde(default)]
    pub(in crate::config) revoked: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Keyless {
    pub(in crate::config) root: Option<String>,
    pub(in crate::config) issuer: Option<String>,
    pub(in crate::config) issuer_regex: Option<String>,
    pub(in crate::config) subject: Option<String>,
    pub(in crate::config) subject_regex: Option<String>,
    #[serde(default)]
    pub(in crate::config) claims: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct X509 {
    pub(in crate::config) roots: PathBuf,
    pub(in crate::config) san_uri: Option<String>,
    pub(in crate::config) san_uri_regex: Option<String>,
    pub(in crate::config) san_email: Option<String>,
    pub(in crate::config) san_email_regex: Option<String>,
    pub(in crate::config) time: Option<String>,
    pub(in crate::config) root: Option<String>,
}

/// `unsigned`, or the rules.
pub(in crate::config) type Policy = KeywordOr<PolicyRules>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct PolicyRules {
    #[serde(rename = "match")]
    pub(in crate::config) matches: Option<Globs>,
    pub(in crate::config) require: Require,
    pub(in crate::config) predicate_types: Option<Vec<String>>,
    #[serde(default)]
    pub(in crate::config) attestations: Vec<Attestation>,
    pub(in crate::config) formats: Option<Vec<String>>,
    #[serde(default)]
    pub(in crate::config) annotations: BTreeMap<String, Scalar>,
    pub(in crate::config) claimed_repository: Option<String>,
    pub(in crate::config) signatures: Option<Signatures>,
    pub(in crate::config) max_signature_age: Option<Period>,
    #[serde(default)]
    pub(in crate::config) revoked_digests: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Require {
    pub(in crate::config) any_of: Option<Vec<String>>,
    pub(in crate::config) all_of: Option<Vec<String>>,
    pub(in crate::config) at_least: Option<usize>,
    pub(in crate::config) of: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Attestation {
    pub(in crate::config) predicate_type: String,
    pub(in crate::config) rego: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Signatures {
    pub(in crate::config) repository: String,
}

/// One glob or a list of globs.
#[derive(Debug)]
pub(in crate::config) struct Globs(pub(in crate::config) Vec<String>);

/// A text, a number, or a boolean; the type is significant.
#[derive(Debug)]
pub(in crate::config) struct Scalar(pub(in crate::config) Value);

/// A keyword, or a mapping of keys.
#[derive(Debug)]
pub(in crate::config) enum KeywordOr<T> {
    Keyword(String),
    Keys(T),
}

/// The text for "expected …" in errors about a [`KeywordOr`] of the type.
pub(in crate::config) trait Expected {
    const EXPECTED: &'static str;
}

impl Expected for TufKeys {
    const EXPECTED: &'static str = "`none` or a mapping of keys such as `{ refresh: 24h }`";
}

impl Expected for Key {
    const EXPECTED: &'static str = "the path of a PEM public key";
}

impl Expected for PolicyRules {
    const EXPECTED: &'static str = "`unsigned` or `{ require: { any_of: [AUTHORITY] } }`";
}

impl<'de, T: Expected + Deserialize<'de>> Deserialize<'de> for KeywordOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeywordVisitor<T>(PhantomData<T>);
        impl<'de, T: Expected + Deserialize<'de>> Visitor<'de> for KeywordVisitor<T> {
            type Value = KeywordOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E>(self, word: &str) -> Result<KeywordOr<T>, E> {
                Ok(KeywordOr::Keyword(word.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<KeywordOr<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(access)).map(KeywordOr::Keys)
            }
        }
        deserializer.deserialize_any(KeywordVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Globs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GlobsVisitor;
        impl<'de> Visitor<'de> for GlobsVisitor {
            type Value = Globs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a glob such as \"ghcr.io/acme/**\", or a list of them")
            }

            fn visit_str<E>(self, glob: &str) -> Result<Globs, E> {
                Ok(Globs(vec![glob.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Globs, A::Error> {
                let mut globs = Vec::new();
                while let Some(glob) = access.next_element()? {
                    globs.push(glob);
                }
                Ok(Globs(globs))
            }
        }
        deserializer.deserialize_any(GlobsVisitor)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, true or false")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.into()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(number.into()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.into()))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Scalar, E> {
                // JSON has neither infinity nor NaN, so they can't be signed.
                let number = serde_json::Number::from_f64(number)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Float(number), &self))?;
                Ok(Scalar(number.into()))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}
