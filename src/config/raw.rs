//! The configuration as written: keys and types, with no further checks. [`super::Config`] is the
//! checked form.

mod trust;

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::values::{Address, AdminListen, Period, Size, Spread};

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
    pub(super) log: Log,
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
    #[serde(default)]
    pub(super) patterns: Vec<Pattern>,
    #[serde(default)]
    pub(super) webhooks: Vec<Webhook>,
    /// Traces of requests and checks over OTLP. Absent: none. Live, with its files.
    pub(super) tracing: Option<Tracing>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    pub(super) listen: Option<Address>,
    pub(super) admin: Option<AdminListen>,
    pub(super) admin_tls: Option<AdminTls>,
    pub(super) admin_token_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) admin_hosts: Vec<String>,
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
    pub(super) client_ca: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdminTls {
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
    pub(super) basic_file: Option<PathBuf>,
    pub(super) mtls: Option<Mtls>,
    pub(super) jwt: Option<ClientJwt>,
    pub(super) bundles: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClientJwt {
    pub(super) jwks_file: Option<PathBuf>,
    pub(super) jwks_url: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) issuer: String,
    pub(super) audience: String,
    #[serde(default)]
    pub(super) claims: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mtls {
    pub(super) common_name: Option<String>,
    pub(super) common_name_regex: Option<String>,
    pub(super) san_dns: Option<String>,
    pub(super) san_dns_regex: Option<String>,
    pub(super) san_uri: Option<String>,
    pub(super) san_uri_regex: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LongPoll {
    pub(super) max_wait: Option<Period>,
    pub(super) first_wait: Option<Period>,
    pub(super) spread: Option<Spread>,
    pub(super) bandwidth: Option<Size>,
    pub(super) repeat_delay: Option<Period>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub(super) format: Option<String>,
    pub(super) access: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cache {
    pub(super) directory: Option<PathBuf>,
    pub(super) required: Option<bool>,
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
    pub(super) client_certificate: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
    pub(super) proxy: Option<Proxy>,
    pub(super) max_requests_per_second: Option<f64>,
    pub(super) max_concurrent: Option<usize>,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) mirrors: Vec<String>,
}

/// `none`, the URL of a proxy, or its URL with a user.
pub(super) type Proxy = KeywordOr<ProxyKeys>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxyKeys {
    pub(super) url: String,
    pub(super) username: Option<String>,
    pub(super) password_file: Option<PathBuf>,
}

impl Expected for ProxyKeys {
    const EXPECTED: &'static str = "`none`, a URL such as \"http://proxy.lan:3128\", or a mapping \
                                    with `url`, `username` and `password_file`";
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
    pub(super) semver: Option<String>,
    pub(super) filter_tags: Option<FilterTags>,
    pub(super) suspend: Option<bool>,
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pattern {
    pub(super) resource: String,
    pub(super) reference: String,
    pub(super) trust: String,
    pub(super) poll: Option<Period>,
    pub(super) confirm_within: Option<Period>,
    pub(super) on_missing: Option<String>,
    pub(super) max_stale: Option<Period>,
    pub(super) opa_check: Option<OpaCheck>,
    pub(super) platform: Option<String>,
    pub(super) data_root: Option<String>,
    pub(super) idle: Option<Period>,
    pub(super) max: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Webhook {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) listener: Option<String>,
    pub(super) path: Option<String>,
    pub(super) host: Option<String>,
    pub(super) pointer: Option<String>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) bearer_token_file: Option<PathBuf>,
    pub(super) basic_file: Option<PathBuf>,
    pub(super) oidc: Option<WebhookOidc>,
    pub(super) unauthenticated: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tracing {
    /// The URL of an OTLP collector that takes protobuf over HTTP; without a path, `/v1/traces`.
    pub(super) endpoint: String,
    /// The share of requests and checks that begin a trace, 0 to 1. Default 1. A client that sends a
    /// `traceparent` has decided already.
    pub(super) sample: Option<f64>,
    /// The value of `service.name`. Default `bundlegate`.
    pub(super) service_name: Option<String>,
    /// A file of headers that are sent with each export, one `NAME: VALUE` per line.
    pub(super) headers_file: Option<PathBuf>,
    /// PEM certificates, in addition to the system's roots.
    pub(super) ca_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilterTags {
    pub(super) pattern: String,
    pub(super) extract: Option<String>,
    pub(super) order: Option<String>,
    pub(super) pick: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookOidc {
    pub(super) audience: String,
    pub(super) email: String,
    pub(super) issuer: Option<String>,
    pub(super) jwks_file: PathBuf,
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
