//! The configuration as written: keys and types, with no further checks. [`super::Config`] is the
//! checked form.

mod trust;

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::values::{Address, Period, Size};

pub(super) use trust::{
    Attestation, Authority, Expected, Globs, KeyFile, Keyless, KeywordOr, Policy, PolicyRules,
    Require, Root as TrustRoot, Scalar, Trust, Tuf, X509,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    /// Checked before all other keys, which depend on it.
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
    pub(super) opa_check: Option<OpaCheck>,
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
    pub(super) trusted_proxies: Option<Vec<String>>,
    pub(super) max_connections: Option<usize>,
    pub(super) ready_after: Option<Period>,
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
    pub(super) notice: Option<Period>,
    pub(super) over: Option<Period>,
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
    pub(super) max_wait: Option<Period>,
    pub(super) first_wait: Option<Period>,
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
    pub(super) bundle_manifest: Option<Size>,
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
    pub(super) username: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) docker_config: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub(super) connect: Option<Period>,
    pub(super) read: Option<Period>,
    pub(super) total: Option<Period>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bundle {
    pub(super) reference: String,
    pub(super) platform: Option<String>,
    pub(super) data_root: Option<String>,
    pub(super) trust: Option<String>,
    pub(super) poll: Option<Period>,
    pub(super) confirm_within: Option<Period>,
    pub(super) on_missing: Option<String>,
    pub(super) max_stale: Option<Period>,
    #[serde(default)]
    pub(super) expect: Expect,
    pub(super) on_withdraw: Option<OnWithdraw>,
    pub(super) opa_check: Option<OpaCheck>,
}

/// `none`, or the options of the check.
pub(super) type OpaCheck = KeywordOr<OpaCheckKeys>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpaCheckKeys {
    pub(super) opa: Option<PathBuf>,
    pub(super) tests: Option<bool>,
    pub(super) timeout: Option<Period>,
}

impl Expected for OpaCheckKeys {
    const EXPECTED: &'static str = "`none` or a mapping of keys such as `{ opa: opa }`";
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) roots: Option<Vec<String>>,
    pub(super) order: Option<String>,
    pub(super) minimum: Option<String>,
    pub(super) on_older: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OnWithdraw {
    pub(super) fallback: String,
}
