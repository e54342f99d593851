//! The configuration as it is typed: names and shapes, no meaning yet. The only way from
//! here to something usable is [`super::Config`].

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::values::{Address, Size, Time};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    /// Checked before the rest: another version has other keys.
    #[serde(rename = "version")]
    pub(super) _version: u64,
    #[serde(default)]
    pub(super) server: Server,
    pub(super) clients: Option<Vec<Client>>,
    #[serde(default)]
    pub(super) long_poll: LongPoll,
    #[serde(default)]
    pub(super) cache: Cache,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) registries: BTreeMap<String, Registry>,
    #[serde(default)]
    pub(super) trust: Trust,
    #[serde(default)]
    pub(super) bundles: BTreeMap<String, Bundle>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    pub(super) listen: Option<Address>,
    pub(super) admin: Option<Address>,
    pub(super) tls: Option<Tls>,
    pub(super) max_connections: Option<usize>,
    pub(super) ready_after: Option<Time>,
    #[serde(default)]
    pub(super) drain: Drain,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    pub(super) notice: Option<Time>,
    pub(super) over: Option<Time>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Client {
    pub(super) name: String,
    pub(super) anonymous: Option<bool>,
    pub(super) bearer_token_file: Option<PathBuf>,
    pub(super) bundles: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LongPoll {
    pub(super) max_wait: Option<Time>,
    pub(super) first_wait: Option<Time>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cache {
    pub(super) directory: Option<PathBuf>,
    pub(super) disk: Option<Size>,
    pub(super) memory: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) bundle: Option<Size>,
    pub(super) unpacked: Option<Size>,
    pub(super) files: Option<u64>,
    pub(super) manifest: Option<Size>,
    pub(super) evidence: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    pub(super) scheme: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) credentials: Option<Credentials>,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credentials {
    pub(super) username: String,
    pub(super) password_file: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub(super) connect: Option<Time>,
    pub(super) read: Option<Time>,
    pub(super) total: Option<Time>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trust {
    #[serde(default)]
    pub(super) authorities: BTreeMap<String, Authority>,
    #[serde(default)]
    pub(super) policies: BTreeMap<String, Policy>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Authority {
    pub(super) keys: Vec<KeyFile>,
    pub(super) tlog: Option<String>,
}

/// `release.pub` or `{ file: release.pub }`.
#[derive(Debug)]
pub(super) struct KeyFile(pub(super) PathBuf);

/// `unsigned`, or what it takes.
#[derive(Debug)]
pub(super) enum Policy {
    Word(String),
    Rules(PolicyRules),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyRules {
    #[serde(rename = "match")]
    pub(super) matches: Option<Globs>,
    pub(super) require: Require,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Require {
    pub(super) any_of: Vec<String>,
}

/// One text or a list of them.
#[derive(Debug)]
pub(super) struct Globs(pub(super) Vec<String>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bundle {
    pub(super) reference: String,
    pub(super) trust: Option<String>,
    pub(super) poll: Option<Time>,
    pub(super) confirm_within: Option<Time>,
    pub(super) on_missing: Option<String>,
    pub(super) max_stale: Option<Time>,
}

impl<'de> Deserialize<'de> for KeyFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Long {
            file: PathBuf,
        }
        struct KeyFileVisitor;
        impl<'de> Visitor<'de> for KeyFileVisitor {
            type Value = KeyFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the path of a PEM public key")
            }

            fn visit_str<E>(self, path: &str) -> Result<KeyFile, E> {
                Ok(KeyFile(path.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<KeyFile, A::Error> {
                Long::deserialize(MapAccessDeserializer::new(access)).map(|long| KeyFile(long.file))
            }
        }
        deserializer.deserialize_any(KeyFileVisitor)
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PolicyVisitor;
        impl<'de> Visitor<'de> for PolicyVisitor {
            type Value = Policy;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`unsigned` or `{ require: { any_of: [AUTHORITY] } }`")
            }

            fn visit_str<E>(self, word: &str) -> Result<Policy, E> {
                Ok(Policy::Word(word.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Policy, A::Error> {
                PolicyRules::deserialize(MapAccessDeserializer::new(access)).map(Policy::Rules)
            }
        }
        deserializer.deserialize_any(PolicyVisitor)
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
