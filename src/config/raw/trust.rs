//! `trust` as written.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData, path::PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;

use crate::{
    config::{
        schema,
        trust::{
            authority::{TIMES, TLOG},
            policy::{FORMATS, IGNORE, MATCH, MIN_SIGNATURE_AGE},
            roots::{MIN_REFRESH, SIGSTORE},
        },
        values::{Period, PointInTime},
    },
    oci::cosign::SIGN_PREDICATE,
    verify::{Format, FulcioExtension, RootSource, Scheme},
};

/// Whose signatures are trusted, and what they have to say.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Trust {
    /// Trusted certificate authorities, logs and timestamp authorities, by name. `sigstore`, the
    /// public-good instance, exists by default.
    #[serde(default)]
    #[schemars(transform = schema::names(schema::NAME))]
    pub(in crate::config) roots: BTreeMap<String, Root>,
    /// Signers by name. Each is one vote.
    #[serde(default)]
    #[schemars(transform = schema::names(schema::NAME))]
    pub(in crate::config) authorities: BTreeMap<String, Authority>,
    /// Requirements for artifacts by name: `unsigned`, or rules.
    #[serde(default)]
    #[schemars(transform = schema::names(schema::NAME))]
    pub(in crate::config) policies: BTreeMap<String, Policy>,
}

/// The source of a root: the copy in bundlegate, a file, or a TUF repository.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = schema::source_of_root()))]
pub(in crate::config) struct Root {
    /// The copy of a root in this version of bundlegate.
    #[schemars(extend("enum" = [SIGSTORE]))]
    pub(in crate::config) builtin: Option<String>,
    /// A `trusted_root.json`, as from `cosign trusted-root create`.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) trusted_root: Option<PathBuf>,
    /// The TUF repository from which the root is refreshed; `none` (with `builtin`) if it never is.
    pub(in crate::config) tuf: Option<Tuf>,
}

/// `none`, or the source and the refresh interval.
pub(in crate::config) type Tuf = KeywordOr<TufKeys>;

/// A TUF repository.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TufKeys {
    /// The URL of the repository; not with `builtin`.
    #[schemars(regex(pattern = schema::URI))]
    pub(in crate::config) url: Option<String>,
    /// The initial trusted `root.json`; not with `builtin`.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) root: Option<PathBuf>,
    /// The time between two refreshes.
    #[schemars(
        transform = schema::between(MIN_REFRESH, None),
        extend("default" = RootSource::sigstore().tuf().map(|tuf| schema::period(tuf.refresh()))),
    )]
    pub(in crate::config) refresh: Option<Period>,
}

/// A signer: one of `keys`, `keyless` and `x509`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = schema::exactly_one(&["keys", "keyless", "x509"]),
    "allOf" = schema::log_of_x509(),
))]
pub(in crate::config) struct Authority {
    /// Public keys, any of them, each in a PEM file of its own.
    #[schemars(length(min = 1))]
    pub(in crate::config) keys: Option<Vec<KeyFile>>,
    /// An identity in a certificate of Fulcio.
    pub(in crate::config) keyless: Option<Keyless>,
    /// A name in a certificate of a private authority.
    pub(in crate::config) x509: Option<X509>,
    /// The transparency log: `none`, `if_present` (an entry is verified if there is one) or `require`.
    #[schemars(extend("enum" = schema::words(&TLOG), "default" = schema::words(&TLOG)[2]))]
    pub(in crate::config) tlog: Option<String>,
    /// With `keys`: the root of logs and timestamps. Absent: `sigstore`, or none with `tlog: none`.
    #[schemars(regex(pattern = schema::NAME))]
    pub(in crate::config) root: Option<String>,
}

/// `release.pub`, or `{ file: release.pub, … }`.
pub(in crate::config) type KeyFile = KeywordOr<Key>;

/// A public key with conditions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Key {
    /// The PEM file of the public key.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) file: PathBuf,
    /// Signature schemes. Absent: the usual ones for the type of the key.
    #[schemars(
        length(min = 1),
        transform = schema::each(schema::one_of(Scheme::names().collect())),
    )]
    pub(in crate::config) schemes: Option<Vec<String>>,
    /// Signatures are valid from this time, by log or timestamp, or else by the clock.
    pub(in crate::config) not_before: Option<PointInTime>,
    /// Signatures are valid until this time, by log or timestamp, or else by the clock.
    pub(in crate::config) not_after: Option<PointInTime>,
    /// Whether all signatures by this key are rejected, in every authority.
    #[serde(default)]
    pub(in crate::config) revoked: bool,
}

/// An identity in a certificate of Fulcio. `*` matches within one path segment; a regular expression
/// must match the whole text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = [
    { "oneOf": schema::exactly_one(&["issuer", "issuer_regex"]) },
    { "oneOf": schema::exactly_one(&["subject", "subject_regex"]) },
]))]
pub(in crate::config) struct Keyless {
    /// The root of the certificates, logs and timestamps.
    #[schemars(regex(pattern = schema::NAME), extend("default" = SIGSTORE))]
    pub(in crate::config) root: Option<String>,
    /// The URL of the OIDC issuer.
    #[schemars(regex(pattern = "://"))]
    pub(in crate::config) issuer: Option<String>,
    /// A regular expression for the URL of the OIDC issuer.
    #[schemars(length(min = 1))]
    pub(in crate::config) issuer_regex: Option<String>,
    /// The e-mail address, or the URI of the workflow.
    #[schemars(regex(pattern = "[@:]"))]
    pub(in crate::config) subject: Option<String>,
    /// A regular expression for the e-mail address or the URI of the workflow.
    #[schemars(length(min = 1))]
    pub(in crate::config) subject_regex: Option<String>,
    /// Other extensions of the certificate, by the names in Fulcio's oid-info.md.
    #[serde(default)]
    #[schemars(extend("propertyNames" = { "enum": FulcioExtension::names().collect::<Vec<_>>() }))]
    pub(in crate::config) claims: BTreeMap<String, String>,
}

/// A name in a certificate of a private authority.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = schema::exactly_one(&["san_uri", "san_uri_regex", "san_email", "san_email_regex"]),
))]
pub(in crate::config) struct X509 {
    /// PEM certificates of the authority; may include intermediates.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) roots: PathBuf,
    /// A URI of the certificate, such as `spiffe://corp/ci/*`.
    #[schemars(regex(pattern = ":"))]
    pub(in crate::config) san_uri: Option<String>,
    /// A regular expression for a URI of the certificate.
    #[schemars(length(min = 1))]
    pub(in crate::config) san_uri_regex: Option<String>,
    /// An e-mail address of the certificate.
    #[schemars(regex(pattern = "@"))]
    pub(in crate::config) san_email: Option<String>,
    /// A regular expression for an e-mail address of the certificate.
    #[schemars(length(min = 1))]
    pub(in crate::config) san_email_regex: Option<String>,
    /// The proof of the signing time: `tsa` (a timestamp), `rekor` (a log), or `now` (the certificate
    /// must be valid while the bundle is served).
    #[schemars(required, extend("enum" = schema::words(&TIMES)))]
    pub(in crate::config) time: Option<String>,
    /// The root of logs and timestamps. Absent: `sigstore` where one is needed.
    #[schemars(regex(pattern = schema::NAME))]
    pub(in crate::config) root: Option<String>,
}

/// `unsigned`, or the rules.
pub(in crate::config) type Policy = KeywordOr<PolicyRules>;

/// What an artifact has to satisfy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct PolicyRules {
    /// Globs over HOST/REPOSITORY for bundles without `trust`; the longest match wins.
    #[serde(rename = "match")]
    pub(in crate::config) matches: Option<Globs>,
    /// The authorities that must have signed, each with a signature of its own.
    pub(in crate::config) require: Require,
    /// The predicate types of statements that count as a signature.
    #[schemars(
        length(min = 1),
        inner(regex(pattern = schema::URI)),
        extend("default" = [SIGN_PREDICATE]),
    )]
    pub(in crate::config) predicate_types: Option<Vec<String>>,
    /// Attestations that are required in addition, by any of the authorities.
    #[serde(default)]
    pub(in crate::config) attestations: Vec<Attestation>,
    /// The formats of signatures: `bundle` (referrers), `legacy` (the .sig tag).
    #[schemars(
        length(min = 1),
        transform = schema::each(schema::one_of(FORMATS.map(Format::label).to_vec())),
        extend("default" = FORMATS.map(Format::label)),
    )]
    pub(in crate::config) formats: Option<Vec<String>>,
    /// Annotations that must be signed with the digest; their types matter.
    #[serde(default)]
    #[schemars(transform = schema::any_names)]
    pub(in crate::config) annotations: BTreeMap<String, Scalar>,
    /// The repository that a .sig signature must name: `ignore` (any, as cosign), `match` (the
    /// artifact's), or HOST/REPOSITORY.
    #[schemars(extend(
        "anyOf" = [{ "enum": [IGNORE, MATCH] }, { "pattern": schema::REPOSITORY }],
        "default" = IGNORE,
    ))]
    pub(in crate::config) claimed_repository: Option<String>,
    /// Where the signatures are. Absent: the artifact's own repository.
    pub(in crate::config) signatures: Option<Signatures>,
    /// The longest age of a signature. Absent: unlimited.
    #[schemars(transform = schema::between(MIN_SIGNATURE_AGE, None))]
    pub(in crate::config) max_signature_age: Option<Period>,
    /// Digests that are never served, regardless of signatures.
    #[serde(default)]
    #[schemars(inner(regex(pattern = schema::DIGEST)))]
    pub(in crate::config) revoked_digests: Vec<String>,
}

/// The authorities that must have signed: `any_of`, `all_of`, or `at_least` with `of`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = schema::votes(),
    "dependencies" = { "at_least": ["of"], "of": ["at_least"] },
))]
pub(in crate::config) struct Require {
    /// One of these authorities.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(in crate::config) any_of: Option<Vec<String>>,
    /// Each of these authorities.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(in crate::config) all_of: Option<Vec<String>>,
    /// The number of authorities in `of` that must have signed.
    #[schemars(range(min = 1))]
    pub(in crate::config) at_least: Option<usize>,
    /// The authorities of which `at_least` must have signed.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(in crate::config) of: Option<Vec<String>>,
}

/// An attestation that is required.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Attestation {
    /// The predicate type of the statement, a URI.
    #[schemars(regex(pattern = schema::URI))]
    pub(in crate::config) predicate_type: String,
    /// A file with `package signature`, whose `allow` must be true for the statement. Absent: any
    /// statement.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) rego: Option<PathBuf>,
}

/// Where the signatures are.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Signatures {
    /// HOST/REPOSITORY.
    #[schemars(regex(pattern = schema::REPOSITORY))]
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

/// What a [`KeywordOr`] of the type may be, besides a mapping of its keys.
pub(in crate::config) trait Expected {
    /// The text for "expected …" in errors.
    const EXPECTED: &'static str;

    /// The schema of the keyword.
    fn keyword() -> Schema;
}

/// The keyword that disables something.
pub(in crate::config) const NONE: &str = "none";
/// The policy that accepts everything.
pub(in crate::config) const UNSIGNED: &str = "unsigned";

impl Expected for TufKeys {
    const EXPECTED: &'static str = "`none` or a mapping of keys such as `{ refresh: 24h }`";

    fn keyword() -> Schema {
        json_schema!({ "const": NONE })
    }
}

impl Expected for Key {
    const EXPECTED: &'static str = "the path of a PEM public key";

    fn keyword() -> Schema {
        json_schema!({ "type": "string", "pattern": schema::PATH })
    }
}

impl Expected for PolicyRules {
    const EXPECTED: &'static str = "`unsigned` or `{ require: { any_of: [AUTHORITY] } }`";

    fn keyword() -> Schema {
        json_schema!({ "const": UNSIGNED })
    }
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

impl<T: Expected + JsonSchema> JsonSchema for KeywordOr<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("KeywordOr{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [T::keyword(), generator.subschema_for::<T>()] })
    }
}

impl JsonSchema for Globs {
    fn schema_name() -> Cow<'static, str> {
        "Globs".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A host alone matches no repository.
        let mut glob = json_schema!({ "type": "string", "pattern": r"^(\*\*|.*/[^/:@]*)$" });
        schema::glob(&mut glob);
        json_schema!({ "anyOf": [glob, { "type": "array", "items": glob }] })
    }
}

impl JsonSchema for Scalar {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}
