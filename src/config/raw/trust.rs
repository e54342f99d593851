//! `trust` as it is typed.

use std::{collections::BTreeMap, fmt, marker::PhantomData, path::PathBuf};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;

use crate::config::values::{Moment, Time};

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

/// `none`, or where from and how often.
pub(in crate::config) type Tuf = Word<TufKeys>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TufKeys {
    pub(in crate::config) url: Option<String>,
    pub(in crate::config) root: Option<PathBuf>,
    pub(in crate::config) refresh: Option<Time>,
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
pub(in crate::config) type KeyFile = Word<Key>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Key {
    pub(in crate::config) file: PathBuf,
    pub(in crate::config) schemes: Option<Vec<String>>,
    pub(in crate::config) not_before: Option<Moment>,
    pub(in crate::config) not_after: Option<Moment>,
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

/// `unsigned`, or what it takes.
pub(in crate::config) type Policy = Word<PolicyRules>;

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
    pub(in crate::config) max_signature_age: Option<Time>,
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

/// One text or a list of them.
#[derive(Debug)]
pub(in crate::config) struct Globs(pub(in crate::config) Vec<String>);

/// A text, a number, or true or false; which of them, matters.
#[derive(Debug)]
pub(in crate::config) struct Scalar(pub(in crate::config) Value);

/// One word, or a mapping of keys.
#[derive(Debug)]
pub(in crate::config) enum Word<T> {
    Word(String),
    Keys(T),
}

/// What may stand in the place of a [`Word`] of it.
pub(in crate::config) trait Worded {
    const EXPECTED: &'static str;
}

impl Worded for TufKeys {
    const EXPECTED: &'static str = "`none` or a mapping of keys such as `{ refresh: 24h }`";
}

impl Worded for Key {
    const EXPECTED: &'static str = "the path of a PEM public key";
}

impl Worded for PolicyRules {
    const EXPECTED: &'static str = "`unsigned` or `{ require: { any_of: [AUTHORITY] } }`";
}

impl<'de, T: Worded + Deserialize<'de>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordVisitor<T>(PhantomData<T>);
        impl<'de, T: Worded + Deserialize<'de>> Visitor<'de> for WordVisitor<T> {
            type Value = Word<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E>(self, word: &str) -> Result<Word<T>, E> {
                Ok(Word::Word(word.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Word<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(access)).map(Word::Keys)
            }
        }
        deserializer.deserialize_any(WordVisitor(PhantomData))
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
                // JSON has neither infinity nor "not a number", so nobody can have signed them.
                let number = serde_json::Number::from_f64(number)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Float(number), &self))?;
                Ok(Scalar(number.into()))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}
