//! The configuration as written: keys and types, with no further checks. [`super::Config`] is the
//! checked form.
//!
//! The JSON Schema ([`super::schema`]) is made from these types, so a doc comment here is what an
//! editor shows for the key. It says what the key means, its limits, and what its absence means if
//! there is no default; the default itself and whether a change needs a restart are added.

mod opa_signature_keys;
mod rollout;
mod trust;

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    admin, bundles, delta, expect, fleet, limits, log, opa_check, opa_signature, patterns,
    registries, schema, server, shared, tag_rule, tracing,
    values::{AUTO, Address, AdminListen, Period, Size, Spread},
    webhooks,
};
use crate::{fleet::Options as FleetOptions, registry};

pub(super) use opa_signature_keys::{OpaKey, Resign};
pub(super) use rollout::{Prometheus, Rollout, RolloutCheck, RolloutStep};
pub(super) use trust::{
    Attestation, Authority, Expected, Globs, KeyFile, Keyless, KeywordOr, NONE, Policy,
    PolicyRules, Require, Root as TrustRoot, Scalar, Trust, Tuf, UNSIGNED, X509,
};

/// Which bundles bundlegate serves, from where, whose signatures it trusts, and who may read them.
///
/// Durations and sizes need a unit (`250ms`, `30s`, `5m`, `24h`; `512KiB`, `64MiB`, `10GiB`).
/// Relative paths are relative to the folder of this file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    /// The version of this format.
    // Checked before all other keys, which depend on it.
    #[serde(rename = "version")]
    #[schemars(extend("const" = 1))]
    pub(super) _version: u64,
    /// The listeners.
    #[serde(default)]
    pub(super) server: Server,
    /// Clients and the bundles that they may read.
    #[schemars(required, length(min = 1))]
    pub(super) clients: Option<Vec<Client>>,
    /// Long polling. Changes apply to requests that arrive afterwards.
    #[serde(default)]
    pub(super) long_poll: LongPoll,
    /// The log on stderr.
    #[serde(default)]
    pub(super) log: Log,
    /// Blobs and bundles that are kept in memory and on disk.
    #[serde(default)]
    pub(super) cache: Cache,
    /// Artifacts above a limit are rejected.
    #[serde(default)]
    pub(super) limits: Limits,
    /// The check of every version by `opa` before it is published: `none`, or its options.
    #[schemars(extend("default" = NONE))]
    pub(super) opa_check: Option<OpaCheck>,
    /// Settings by HOST or HOST:PORT. A host without an entry is accessed over HTTPS, anonymously.
    #[serde(default)]
    #[schemars(transform = schema::hosts)]
    pub(super) registries: BTreeMap<String, Registry>,
    /// Roots, signers, and the policies that artifacts have to satisfy. Changes withdraw at once what
    /// is no longer accepted.
    #[serde(default)]
    pub(super) trust: Trust,
    /// The bundles by name, each at `/bundles/NAME`, `/bundle/NAME` and `/NAME`.
    #[serde(default)]
    #[schemars(transform = schema::bundle_names)]
    pub(super) bundles: BTreeMap<String, Bundle>,
    /// Bundles that are added when a client that may read them asks for one.
    #[serde(default)]
    #[schemars(length(max = patterns::MAX_PATTERNS))]
    pub(super) patterns: Vec<Pattern>,
    /// Notifications of registries, which cause a check before the next poll.
    #[serde(default)]
    pub(super) webhooks: Vec<Webhook>,
    /// The fleet view: which client runs which version.
    #[serde(default)]
    pub(super) fleet: Fleet,
    /// Traces of requests and checks over OTLP. Absent: none.
    pub(super) tracing: Option<Tracing>,
    /// The state that replicas share, in Valkey or Redis. Absent: each replica stands alone, and there are no
    /// roll-outs.
    pub(super) shared: Option<Shared>,
    /// Strategies by name: how a new version reaches first a few clients and then the others. Bundles follow
    /// one by `bundles.NAME.rollout`.
    #[serde(default)]
    #[schemars(transform = schema::strategy_names)]
    pub(super) rollouts: BTreeMap<String, Rollout>,
    /// The Prometheus that answers the queries of `rollouts.NAME.checks`. Absent: there are no checks.
    pub(super) prometheus: Option<Prometheus>,
}

/// The listeners.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = schema::admin_listener()))]
pub(super) struct Server {
    /// The address of the data listener, for OPA: `:PORT` for all addresses, or `ADDRESS:PORT`.
    #[schemars(extend("default" = schema::address(server::LISTEN)))]
    pub(super) listen: Option<Address>,
    /// The address of the admin listener, or `unix:PATH`, a socket in an existing folder. Everyone who
    /// reaches it may read; programs on this machine and those with a token may change something.
    #[schemars(extend("default" = schema::address(admin::ADDRESS)))]
    pub(super) admin: Option<AdminListen>,
    /// TLS of the admin listener; not for a Unix socket. Absent: plain HTTP.
    pub(super) admin_tls: Option<AdminTls>,
    /// A file of bearer tokens for the admin listener, one a line, any of them.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) admin_token_file: Option<PathBuf>,
    /// Host names that requests with a token may use, besides addresses and the names of `admin_tls`.
    #[serde(default)]
    #[schemars(inner(regex(pattern = r"^[A-Za-z0-9._-]+$")))]
    pub(super) admin_hosts: Vec<String>,
    /// TLS of the data listener, for HTTP/2 and HTTP/1.1. Absent: plain HTTP.
    pub(super) tls: Option<Tls>,
    /// Networks and addresses whose `X-Forwarded-For` is trusted. Absent: none.
    #[schemars(inner(regex(pattern = r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$")))]
    pub(super) trusted_proxies: Option<Vec<String>>,
    /// The most concurrent connections of the data listener. Requests are held on at most 90 % of them.
    #[schemars(range(min = 1), extend("default" = server::MAX_CONNECTIONS))]
    pub(super) max_connections: Option<usize>,
    /// The time after which the replica is ready though a registry is down.
    #[schemars(extend("default" = schema::period(server::READY_AFTER)))]
    pub(super) ready_after: Option<Period>,
    /// The end of the process on SIGTERM. Both phases end early once no client is connected.
    #[serde(default)]
    pub(super) drain: Drain,
}

/// TLS of the data listener. The files are read again when they change.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    /// PEM certificates: the server's first, then its chain.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) certificate: PathBuf,
    /// The PEM key of the certificate, not encrypted.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) key: PathBuf,
    /// PEM certificates of the authorities that issue client certificates, for `clients[].mtls`.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) client_ca: Option<PathBuf>,
}

/// TLS of the admin listener. The files are read again when they change.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AdminTls {
    /// PEM certificates: the server's first, then its chain.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) certificate: PathBuf,
    /// The PEM key of the certificate, not encrypted.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) key: PathBuf,
}

/// The end of the process on SIGTERM.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    /// The time in which the replica is not ready but accepts connections, until load balancers have
    /// noticed.
    #[schemars(extend("default" = schema::period(server::DRAIN_NOTICE)))]
    pub(super) notice: Option<Period>,
    /// The time over which waiting clients are released.
    #[schemars(extend("default" = schema::period(server::DRAIN_OVER)))]
    pub(super) over: Option<Period>,
}

/// A client: a name, one credential, and the bundles that it may read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = schema::exactly_one_with(
    &["bearer_token_file", "basic_file", "mtls", "jwt"],
    &["anonymous"],
)))]
pub(super) struct Client {
    /// The name in logs; unique.
    #[schemars(regex(pattern = schema::NAME))]
    pub(super) name: String,
    /// The client needs no credential.
    pub(super) anonymous: Option<bool>,
    /// A file of bearer tokens, one a line, any of them.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) bearer_token_file: Option<PathBuf>,
    /// A file of `USER:HASH` lines, as `htpasswd -B` writes them; bcrypt, cost 4 to 14.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) basic_file: Option<PathBuf>,
    /// The name in a client certificate of an authority in `server.tls.client_ca`.
    pub(super) mtls: Option<Mtls>,
    /// A JSON Web Token as bearer token.
    pub(super) jwt: Option<ClientJwt>,
    /// Globs over the names of bundles: `*` within a segment, `**` across segments.
    #[schemars(length(min = 1), transform = schema::each(schema::glob))]
    pub(super) bundles: Vec<String>,
}

/// The claims that a token must have, and the keys that verify it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = schema::exactly_one(&["jwks_file", "jwks_url"]),
    "dependencies" = { "ca_file": ["jwks_url"] },
))]
pub(super) struct ClientJwt {
    /// The issuer's JSON Web Key Set in a file.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) jwks_file: Option<PathBuf>,
    /// The https URL of the issuer's JSON Web Key Set; http only on this machine. It is fetched every
    /// five minutes, and for a token with an unknown key.
    #[schemars(regex(pattern = schema::KEYS_URL))]
    pub(super) jwks_url: Option<String>,
    /// PEM certificates for `jwks_url`, in addition to the system's roots.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) ca_file: Option<PathBuf>,
    /// The value of the claim `iss`.
    #[schemars(length(min = 1))]
    pub(super) issuer: String,
    /// A value of the claim `aud`.
    #[schemars(length(min = 1))]
    pub(super) audience: String,
    /// Further claims, by name or JSON pointer; `*` in the text matches anything but a slash.
    #[serde(default)]
    pub(super) claims: BTreeMap<String, String>,
}

/// The one name that the certificate must have. `*` matches anything but a slash; a regular
/// expression must match the whole name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = schema::exactly_one(&[
    "common_name",
    "common_name_regex",
    "san_dns",
    "san_dns_regex",
    "san_uri",
    "san_uri_regex",
])))]
pub(super) struct Mtls {
    /// The common name of the subject.
    #[schemars(length(min = 1))]
    pub(super) common_name: Option<String>,
    /// A regular expression for the common name of the subject.
    #[schemars(length(min = 1))]
    pub(super) common_name_regex: Option<String>,
    /// A DNS name of the certificate, in lower case.
    #[schemars(regex(pattern = r"^[^/:@A-Z]+$"))]
    pub(super) san_dns: Option<String>,
    /// A regular expression for a DNS name of the certificate.
    #[schemars(length(min = 1))]
    pub(super) san_dns_regex: Option<String>,
    /// A URI of the certificate, such as `spiffe://corp/opa/*`.
    #[schemars(regex(pattern = ":"))]
    pub(super) san_uri: Option<String>,
    /// A regular expression for a URI of the certificate.
    #[schemars(length(min = 1))]
    pub(super) san_uri_regex: Option<String>,
}

/// Long polling.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("not" = schema::spread_with_bandwidth()))]
pub(super) struct LongPoll {
    /// The longest hold; a longer requested wait is reduced to it.
    #[schemars(
        transform = schema::between(server::MIN_MAX_WAIT, None),
        extend("default" = schema::period(server::MAX_WAIT)),
    )]
    pub(super) max_wait: Option<Period>,
    /// The wait of a request that requests none, while nothing was published yet; at most 9s.
    #[schemars(
        transform = schema::between(Default::default(), Some(server::LONGEST_FIRST_WAIT)),
        extend("default" = schema::period(server::FIRST_WAIT)),
    )]
    pub(super) first_wait: Option<Period>,
    /// The time over which held requests are answered after a change: `auto`, which is as long as the
    /// bandwidth requires, or a duration of at most `max_wait`.
    #[schemars(extend("default" = AUTO))]
    pub(super) spread: Option<Spread>,
    /// Bytes of bundles that are sent per second, over all clients; at least 64KiB. Absent: unlimited.
    #[schemars(transform = schema::at_least(server::MIN_BANDWIDTH))]
    pub(super) bandwidth: Option<Size>,
    /// The longest delay of an OPA that downloads the same version again and again; at most 9s, 0s for
    /// none.
    #[schemars(
        transform = schema::between(Default::default(), Some(server::LONGEST_REPEAT_DELAY)),
        extend("default" = schema::period(server::REPEAT_DELAY)),
    )]
    pub(super) repeat_delay: Option<Period>,
}

/// The log on stderr.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    /// The format of log lines: `auto` is text on a terminal, and JSON otherwise.
    #[schemars(extend("enum" = schema::words(&log::FORMATS), "default" = "auto"))]
    pub(super) format: Option<String>,
    /// The requests to the data listener that have a line in the log: none, those that are answered
    /// with an error, or all.
    #[schemars(extend("enum" = schema::access_levels(), "default" = "off"))]
    pub(super) access: Option<Scalar>,
}

/// Blobs and bundles that are kept.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "if" = schema::is("required", &true.into()),
    "then" = { "required": ["directory"] },
))]
pub(super) struct Cache {
    /// The folder of the cache, an OCI image layout. Absent: memory only, so a restart needs the
    /// registries.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) directory: Option<PathBuf>,
    /// Whether a folder that is foreign, unwritable or not a cache stops the start; otherwise it means
    /// memory only, with an alarm.
    #[schemars(extend("default" = limits::REQUIRED))]
    pub(super) required: Option<bool>,
    /// The most bytes on disk.
    #[schemars(extend("default" = schema::size(limits::DISK)))]
    pub(super) disk: Option<Size>,
    /// The most bytes in memory.
    #[schemars(extend("default" = schema::size(limits::MEMORY)))]
    pub(super) memory: Option<Size>,
}

/// Limits of artifacts. After a change all bundles are fetched anew, and what is served stays.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// The tarball of a bundle.
    #[schemars(extend("default" = schema::size(limits::DEFAULT.bundle)))]
    pub(super) bundle: Option<Size>,
    /// The uncompressed tar stream of a bundle.
    #[schemars(extend("default" = schema::size(limits::DEFAULT.unpacked)))]
    pub(super) unpacked: Option<Size>,
    /// The files in a bundle.
    #[schemars(range(min = 1), extend("default" = limits::DEFAULT.files))]
    pub(super) files: Option<u64>,
    /// The `.manifest` in a bundle.
    #[schemars(extend("default" = schema::size(limits::DEFAULT.bundle_manifest)))]
    pub(super) bundle_manifest: Option<Size>,
    /// A manifest or index of a registry.
    #[schemars(extend("default" = schema::size(limits::DEFAULT.manifest)))]
    pub(super) manifest: Option<Size>,
    /// All signature material of one manifest or index.
    #[schemars(extend("default" = schema::size(limits::DEFAULT.evidence)))]
    pub(super) evidence: Option<Size>,
}

/// How a registry is accessed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "dependencies" = { "client_certificate": ["client_key"], "client_key": ["client_certificate"] },
    "allOf" = [schema::plain_http()],
))]
pub(super) struct Registry {
    /// The scheme; never inferred, not even for localhost.
    #[schemars(extend(
        "enum" = schema::words(&registries::SCHEMES),
        "default" = schema::words(&registries::SCHEMES)[0],
    ))]
    pub(super) scheme: Option<String>,
    /// PEM certificates, in addition to the system's roots.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) ca_file: Option<PathBuf>,
    /// A user with a password, or the configuration of docker. Absent: anonymous.
    pub(super) credentials: Option<Credentials>,
    /// The PEM certificate, with its chain, by which bundlegate identifies itself.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) client_certificate: Option<PathBuf>,
    /// The PEM key of `client_certificate`, not encrypted.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) client_key: Option<PathBuf>,
    /// How the registry, its token server and its storage are reached: `none` (directly), a URL (http,
    /// https, socks5, socks5h), or a URL with a user. Absent: as HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and
    /// NO_PROXY say.
    pub(super) proxy: Option<Proxy>,
    /// The most requests per second, at equal intervals. Absent: unlimited.
    #[schemars(range(min = registries::MIN_RATE, max = registries::MAX_RATE))]
    pub(super) max_requests_per_second: Option<f64>,
    /// The most requests at a time.
    #[schemars(
        range(min = 1, max = registries::MAX_CONCURRENT),
        extend("default" = registry::Options::default().max_concurrent),
    )]
    pub(super) max_concurrent: Option<usize>,
    /// Time limits.
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    /// Hosts to read from before this one, in this order, each with an entry of its own here.
    #[serde(default)]
    #[schemars(
        length(max = registries::MAX_MIRRORS),
        inner(regex(pattern = r"^(localhost|[^/@?#\\\s]*[.:][^/@?#\\\s]*)$")),
        extend("uniqueItems" = true),
    )]
    pub(super) mirrors: Vec<String>,
}

/// `none`, the URL of a proxy, or its URL with a user.
pub(super) type Proxy = KeywordOr<ProxyKeys>;

/// A proxy that asks for a user.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxyKeys {
    /// The URL of the proxy.
    #[schemars(regex(pattern = schema::PROXY))]
    pub(super) url: String,
    /// The name of the user.
    #[schemars(regex(pattern = "^[^:]+$"))]
    pub(super) username: Option<String>,
    /// A file with the password, read on every use as well.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) password_file: Option<PathBuf>,
}

impl Expected for ProxyKeys {
    const EXPECTED: &'static str = "`none`, a URL such as \"http://proxy.lan:3128\", or a mapping \
                                    with `url`, `username` and `password_file`";

    fn keyword() -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": schema::proxy_or(NONE) })
    }
}

/// A user with a password, or the configuration of docker.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = schema::exactly_one(&["docker_config", "username"]),
    "dependencies" = { "username": ["password_file"], "password_file": ["username"] },
))]
pub(super) struct Credentials {
    /// The name of the user.
    #[schemars(regex(pattern = "^[^:]+$"))]
    pub(super) username: Option<String>,
    /// A file with the password, read on every use as well, so that it can be rotated.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) password_file: Option<PathBuf>,
    /// Docker's `config.json`, podman's `auth.json` or a Kubernetes `.dockerconfigjson`, or `default` for
    /// the first place where these tools have credentials for the host.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) docker_config: Option<PathBuf>,
}

/// Time limits of requests to a registry.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    /// The time until a connection exists.
    #[schemars(
        transform = schema::between(registries::MIN_TIMEOUT, None),
        extend("default" = schema::period(registry::Timeouts::default().connect)),
    )]
    pub(super) connect: Option<Period>,
    /// The longest time without data.
    #[schemars(
        transform = schema::between(registries::MIN_TIMEOUT, None),
        extend("default" = schema::period(registry::Timeouts::default().read)),
    )]
    pub(super) read: Option<Period>,
    /// The time of one request with its retries, without its wait for the limits of requests.
    #[schemars(
        transform = schema::between(registries::MIN_TIMEOUT, None),
        extend("default" = schema::period(registry::Timeouts::default().total)),
    )]
    pub(super) total: Option<Period>,
}

/// A bundle that is served.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = [
    schema::reference_of_bundle(), schema::order_of_tags(), schema::opa_signature(),
]))]
pub(super) struct Bundle {
    /// `HOST/REPOSITORY:TAG`, `HOST/REPOSITORY@sha256:…`, or `oci-layout:PATH[:TAG]`; without tag and
    /// digest if `semver` or `filter_tags` chooses the tag.
    #[schemars(
        regex(pattern = schema::REFERENCE),
        extend("patternErrorMessage" = schema::REFERENCE_MESSAGE),
    )]
    pub(super) reference: String,
    /// Chooses the tag with the highest version in this range, as in Flux: `^1`, `~1.2`, `1.x`,
    /// `>=1.2 <2`, `^1 || ^3`.
    pub(super) semver: Option<String>,
    /// Chooses a tag among those that match.
    pub(super) filter_tags: Option<FilterTags>,
    /// Whether the registry is not checked: what is served stays.
    #[schemars(extend("default" = false))]
    pub(super) suspend: Option<bool>,
    /// Which manifest of an image index is served, such as `linux/amd64`.
    #[schemars(regex(pattern = schema::PLATFORM))]
    pub(super) platform: Option<String>,
    /// For artifacts of conftest: the folder below which data is mounted.
    pub(super) data_root: Option<String>,
    /// The name of a policy in `trust.policies`. Absent: the one with the longest `match`.
    pub(super) trust: Option<String>,
    /// The time between two checks of the registry.
    #[schemars(
        transform = schema::between(bundles::MIN_INTERVAL, None),
        extend("default" = schema::period(bundles::POLL)),
    )]
    pub(super) poll: Option<Period>,
    /// The longest age of the check behind an answer to a client with another version.
    #[schemars(
        transform = schema::between(bundles::MIN_INTERVAL, None),
        extend("default" = schema::period(bundles::CONFIRM_WITHIN)),
    )]
    pub(super) confirm_within: Option<Period>,
    /// What happens when the tag was deleted.
    #[schemars(extend(
        "enum" = schema::words(&bundles::ON_MISSING),
        "default" = schema::words(&bundles::ON_MISSING)[0],
    ))]
    pub(super) on_missing: Option<String>,
    /// Withdraws the bundle after this time without a successful check; at least two polls. Absent:
    /// never.
    #[schemars(transform = schema::between(2 * bundles::MIN_INTERVAL, None))]
    pub(super) max_stale: Option<Period>,
    /// Protection against rollback: what a new version must have in addition to its signatures.
    #[serde(default)]
    pub(super) expect: Expect,
    /// What is served while this bundle is withdrawn. Absent: nothing.
    pub(super) on_withdraw: Option<OnWithdraw>,
    /// The check of every version by `opa`: `none`, or options, of which absent ones are as in the
    /// top-level `opa_check`.
    pub(super) opa_check: Option<OpaCheck>,
    /// Signs every version for OPA with a key of the gateway, in place of the signature that it may
    /// have. Absent: it is served as it is.
    pub(super) resign: Option<Resign>,
    /// Whether OPA's own signature of a version is verified before it is served; `verify` needs
    /// `opa_keys`.
    #[schemars(extend(
        "enum" = schema::words(&opa_signature::OPA_SIGNATURE),
        "default" = schema::words(&opa_signature::OPA_SIGNATURE)[0],
    ))]
    pub(super) opa_signature: Option<String>,
    /// The keys by which OPA's own signature is verified.
    #[schemars(length(min = 1, max = opa_signature::MAX_KEYS))]
    pub(super) opa_keys: Option<Vec<OpaKey>>,
    /// How a new version reaches the clients: the name of a strategy in `rollouts`, or `none`. Absent: at once,
    /// but a version that was rolled back is served by `none` only.
    #[schemars(regex(pattern = schema::NAME))]
    pub(super) rollout: Option<String>,
    /// Delta bundles. Absent: every change is sent as a whole bundle.
    pub(super) delta: Option<Delta>,
}

/// Delta bundles, for OPAs that run one of the last versions, where only JSON data has changed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Delta {
    /// The number of earlier versions from which there are deltas; 0 = no deltas.
    #[schemars(required, range(min = *delta::HISTORIES.start(), max = *delta::HISTORIES.end()))]
    pub(super) history: Option<u64>,
    /// The largest size of a delta, as a part of that of the bundle.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0, "default" = delta::RATIO))]
    pub(super) ratio: Option<f64>,
    /// What the earlier versions of the bundle may take, and what computing one delta may take; from 1MiB to 64GiB.
    #[schemars(
        transform = schema::within(&delta::MEMORIES),
        extend("default" = schema::size(delta::MEMORY)),
    )]
    pub(super) memory: Option<Size>,
}

/// Bundles that are added when a client that may read them asks for one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = [schema::opa_signature()]))]
pub(super) struct Pattern {
    /// The names, with captures such as `{team}`, each of which is one whole segment.
    #[schemars(regex(pattern = r"\{[^{}]+\}"))]
    pub(super) resource: String,
    /// The reference of each, with captures in the repository or the tag, never in the host.
    #[schemars(regex(pattern = r"^(oci-layout:|[^{}/]+/)"))]
    pub(super) reference: String,
    /// The name of a policy in `trust.policies`.
    pub(super) trust: String,
    /// The time between two checks of the registry.
    #[schemars(
        transform = schema::between(bundles::MIN_INTERVAL, None),
        extend("default" = schema::period(bundles::POLL)),
    )]
    pub(super) poll: Option<Period>,
    /// The longest age of the check behind an answer to a client with another version.
    #[schemars(
        transform = schema::between(bundles::MIN_INTERVAL, None),
        extend("default" = schema::period(bundles::CONFIRM_WITHIN)),
    )]
    pub(super) confirm_within: Option<Period>,
    /// What happens when the tag was deleted.
    #[schemars(extend(
        "enum" = schema::words(&bundles::ON_MISSING),
        "default" = schema::words(&bundles::ON_MISSING)[0],
    ))]
    pub(super) on_missing: Option<String>,
    /// Withdraws a bundle after this time without a successful check; at least two polls. Absent:
    /// never.
    #[schemars(transform = schema::between(2 * bundles::MIN_INTERVAL, None))]
    pub(super) max_stale: Option<Period>,
    /// The check of every version by `opa`: `none`, or options, of which absent ones are as in the
    /// top-level `opa_check`.
    pub(super) opa_check: Option<OpaCheck>,
    /// Signs every version for OPA with a key of the gateway, in place of the signature that it may
    /// have. Absent: it is served as it is.
    pub(super) resign: Option<Resign>,
    /// Whether OPA's own signature of a version is verified before it is served; `verify` needs
    /// `opa_keys`.
    #[schemars(extend(
        "enum" = schema::words(&opa_signature::OPA_SIGNATURE),
        "default" = schema::words(&opa_signature::OPA_SIGNATURE)[0],
    ))]
    pub(super) opa_signature: Option<String>,
    /// The keys by which OPA's own signature is verified.
    #[schemars(length(min = 1, max = opa_signature::MAX_KEYS))]
    pub(super) opa_keys: Option<Vec<OpaKey>>,
    /// Which manifest of an image index is served, such as `linux/amd64`.
    #[schemars(regex(pattern = schema::PLATFORM))]
    pub(super) platform: Option<String>,
    /// For artifacts of conftest: the folder below which data is mounted.
    pub(super) data_root: Option<String>,
    /// Delta bundles. Absent: every change is sent as a whole bundle.
    pub(super) delta: Option<Delta>,
    /// The time after the last request when a bundle is removed.
    #[schemars(
        transform = schema::between(patterns::MIN_IDLE, None),
        extend("default" = schema::period(patterns::IDLE)),
    )]
    pub(super) idle: Option<Period>,
    /// The most bundles; at the maximum, those that serve nothing make room.
    #[schemars(
        range(min = 1, max = patterns::HIGHEST_MAX),
        extend("default" = patterns::DEFAULT_MAX),
    )]
    pub(super) max: Option<usize>,
}

/// The notifications of a registry, and how their sender is authenticated.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = schema::exactly_one_with(&webhooks::CREDENTIALS, &["unauthenticated"]),
    "allOf" = schema::kinds_of_webhooks(),
))]
pub(super) struct Webhook {
    /// The name; unique.
    #[schemars(regex(pattern = schema::NAME))]
    pub(super) name: String,
    /// The kind of the sender.
    #[schemars(extend("enum" = webhooks::KINDS))]
    pub(super) kind: String,
    /// The listener that receives the notifications.
    #[schemars(extend(
        "enum" = schema::words(&webhooks::LISTENERS),
        "default" = schema::words(&webhooks::LISTENERS)[0],
    ))]
    pub(super) listener: Option<String>,
    /// The path of the requests, which are POST. Absent: `/webhooks/NAME`.
    #[schemars(regex(pattern = schema::URL_PATH))]
    pub(super) path: Option<String>,
    /// The registry's host in references; required for senders that do not name it. Absent: as the
    /// sender calls it.
    #[schemars(length(min = 1))]
    pub(super) host: Option<String>,
    /// For `kind: generic`: the JSON pointer to `[HOST/]REPOSITORY[:TAG]`, or to a list of them.
    #[schemars(regex(pattern = "^($|/)"))]
    pub(super) pointer: Option<String>,
    /// A file of shared secrets, one a line, any of them, as the sender proves it.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) secret_file: Option<PathBuf>,
    /// A file of bearer tokens, one a line, any of them.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) bearer_token_file: Option<PathBuf>,
    /// A file of `USER:PASSWORD` lines, any of them.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) basic_file: Option<PathBuf>,
    /// A token of the sender's service account, for `kind: artifact_registry`.
    pub(super) oidc: Option<WebhookOidc>,
    /// Everyone may send notifications; only on the admin listener.
    pub(super) unauthenticated: Option<bool>,
}

/// The fleet view: which client runs which version.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Fleet {
    /// Whether clients are remembered.
    #[schemars(extend("default" = FleetOptions::default().is_enabled))]
    pub(super) enabled: Option<bool>,
    /// The request header that names a client, which OPA sends by `services.NAME.headers`. It has no
    /// secret, and no other meaning.
    #[schemars(transform = schema::identity, extend("default" = fleet::EXAMPLE))]
    pub(super) identity: Option<String>,
    /// The status reports of OPA.
    #[serde(default)]
    pub(super) status: FleetStatus,
    /// A client that was not seen for this time is removed; from 10m to 720h.
    #[schemars(
        transform = schema::between(fleet::MIN_RETENTION, Some(fleet::MAX_RETENTION)),
        extend("default" = schema::period(FleetOptions::default().retention)),
    )]
    pub(super) retention: Option<Period>,
    /// The most clients that are remembered, counted once for each of their bundles.
    #[schemars(
        range(min = *fleet::ENTRIES.start(), max = *fleet::ENTRIES.end()),
        extend("default" = FleetOptions::default().max_entries),
    )]
    pub(super) max_entries: Option<u64>,
}

/// The status reports of OPA: `POST /status` on the data listener.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FleetStatus {
    /// Whether reports are received; otherwise the answer is 404.
    #[schemars(extend("default" = FleetOptions::default().accept_status))]
    pub(super) accept: Option<bool>,
    /// The most bytes of a report; from 64KiB to 16MiB.
    #[schemars(
        transform = schema::within(&fleet::STATUS_LIMITS),
        extend("default" = schema::size(FleetOptions::default().status_limit)),
    )]
    pub(super) limit: Option<Size>,
    /// The most reports that are read in a second. Beyond it a report is answered unread.
    #[schemars(
        range(min = *fleet::RATES.start(), max = *fleet::RATES.end()),
        extend("default" = FleetOptions::default().status_rate),
    )]
    pub(super) rate: Option<u64>,
}

/// Where traces go, and which are recorded.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "if" = { "properties": { "endpoint": { "pattern": "^[Hh][Tt][Tt][Pp]:" } } },
    "then" = { "properties": { "ca_file": false } },
))]
pub(super) struct Tracing {
    /// The URL of an OTLP collector that takes protobuf over HTTP; without a path, `/v1/traces`.
    #[schemars(regex(pattern = schema::HTTP_URL))]
    pub(super) endpoint: String,
    /// The share of requests and checks that begin a trace. A client that sends a `traceparent` has
    /// decided already.
    #[schemars(range(min = 0, max = 1), extend("default" = tracing::SAMPLE))]
    pub(super) sample: Option<f64>,
    /// The value of `service.name`.
    #[schemars(length(min = 1), extend("default" = tracing::SERVICE_NAME))]
    pub(super) service_name: Option<String>,
    /// A file of headers that are sent with each export, one `NAME: VALUE` per line.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) headers_file: Option<PathBuf>,
    /// PEM certificates for an `endpoint` with https, in addition to the system's roots.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) ca_file: Option<PathBuf>,
}

/// The state that replicas share, in Valkey or Redis 6 or newer, not in a cluster of them; or the plans of
/// roll-outs of a single replica.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "dependencies" = { "username": ["password_file"] },
    "allOf" = schema::shared_url(),
))]
pub(super) struct Shared {
    /// `redis://HOST:PORT/DATABASE`, or `rediss://` for TLS; without a host if there are sentinels. The
    /// default port is 6379, the default database 0. For a single replica `local:`, which keeps the plans of
    /// roll-outs in `cache.directory`; then `grace` is the only other key.
    #[schemars(regex(pattern = schema::SHARED_URL))]
    pub(super) url: String,
    /// The sentinels that name the primary. TLS is used for them as for the primary, and the password if
    /// they require one.
    pub(super) sentinel: Option<SharedSentinel>,
    /// The user. Absent: the default user.
    #[schemars(regex(pattern = r"^[^\x00-\x20\x7f]+$"))]
    pub(super) username: Option<String>,
    /// A file with the password. It is read for each connection, without a restart.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) password_file: Option<PathBuf>,
    /// PEM certificates for a `url` with rediss, in addition to the system's roots.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) ca_file: Option<PathBuf>,
    /// The beginning of all keys, the same on all replicas; gateways with different prefixes share nothing.
    #[schemars(
        regex(pattern = "^[A-Za-z0-9._-]{1,64}$"),
        extend("default" = shared::PREFIX),
    )]
    pub(super) prefix: Option<String>,
    /// The longest time of a command, with a new connection if there is none.
    #[schemars(
        transform = schema::between(shared::MIN_TIMEOUT, Some(shared::MAX_TIMEOUT)),
        extend("default" = schema::period(shared::TIMEOUT)),
    )]
    pub(super) timeout: Option<Period>,
    /// How long the plans of roll-outs can't be read before clients whose version this replica does not know
    /// are given another one, too; from 1m to 24h.
    #[schemars(
        transform = schema::between(shared::MIN_GRACE, Some(shared::MAX_GRACE)),
        extend("default" = schema::period(shared::GRACE)),
    )]
    pub(super) grace: Option<Period>,
}

/// The sentinels that name the primary.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SharedSentinel {
    /// The name of the primary, as in `sentinel monitor`.
    #[schemars(length(min = 1))]
    pub(super) master: String,
    /// The sentinels, each `HOST` or `HOST:PORT`; the default port is 26379.
    #[schemars(length(min = 1, max = shared::MAX_SENTINELS))]
    pub(super) nodes: Vec<String>,
}

/// Chooses a tag among those that match, as the ImagePolicy of Flux does.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FilterTags {
    /// A regular expression; it need not match the whole tag.
    #[schemars(length(min = 1))]
    pub(super) pattern: String,
    /// What is compared: `$1`, `$name` or `${name}` of the pattern. Absent: the whole tag.
    pub(super) extract: Option<String>,
    /// The order of what is compared. `version` is the order of `semver`, and the default with it.
    #[schemars(extend("enum" = schema::words(&tag_rule::ORDERS)))]
    pub(super) order: Option<String>,
    /// The end of the order that is chosen; `highest` if it is absent. Not with `semver`.
    #[schemars(extend("enum" = schema::words(&tag_rule::PICKS)))]
    pub(super) pick: Option<String>,
}

/// The claims of a token of Google.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookOidc {
    /// The value of the claim `aud`.
    #[schemars(length(min = 1))]
    pub(super) audience: String,
    /// The service account of the subscription, in the claim `email`.
    #[schemars(length(min = 1))]
    pub(super) email: String,
    /// The value of the claim `iss`. Absent: Google's.
    pub(super) issuer: Option<String>,
    /// The keys of the issuer in a file, saved as often as they change.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) jwks_file: PathBuf,
}

/// `none`, or the options of the check.
pub(super) type OpaCheck = KeywordOr<OpaCheckKeys>;

/// The options of the check.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpaCheckKeys {
    /// The program, 1.0 or newer: a name in PATH, or a path with a slash in it. `opa` if it is absent.
    #[schemars(regex(pattern = schema::PATH))]
    pub(super) opa: Option<PathBuf>,
    /// Whether the tests in the bundle run as well; `false` if it is absent.
    pub(super) tests: Option<bool>,
    /// The time of one check, from 1s to 10m; 30s if it is absent.
    #[schemars(transform = schema::between(opa_check::MIN_TIMEOUT, Some(opa_check::MAX_TIMEOUT)))]
    pub(super) timeout: Option<Period>,
}

impl Expected for OpaCheckKeys {
    const EXPECTED: &'static str = "`none` or a mapping of keys such as `{ opa: opa }`";

    fn keyword() -> schemars::Schema {
        schemars::json_schema!({ "const": NONE })
    }
}

/// Protection against rollback: a user who can move tags can restore an old version, with its valid
/// signatures.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "dependencies" = { "minimum": ["order"] },
    "allOf" = schema::minimum_by_order(),
))]
pub(super) struct Expect {
    /// Annotations that the manifest must have.
    #[serde(default)]
    #[schemars(transform = schema::any_names)]
    pub(super) annotations: BTreeMap<String, String>,
    /// The roots of the bundle must be within these; `""` is anywhere. Absent: unchecked.
    #[schemars(length(min = 1))]
    pub(super) roots: Option<Vec<String>>,
    /// What makes a version older: `version` or `created` (annotations of the manifest), or
    /// `signed_time`. Absent: no order.
    #[schemars(extend("enum" = schema::words(&expect::ORDERS)))]
    pub(super) order: Option<String>,
    /// The lowest version of a gateway without a history; a time for the other orders.
    pub(super) minimum: Option<String>,
    /// The reaction to an older version. Without an order this is one that was served before.
    #[schemars(extend("enum" = schema::words(&expect::ON_OLDER), "default" = expect::ALARM))]
    pub(super) on_older: Option<String>,
}

/// What is served while a bundle is withdrawn.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OnWithdraw {
    /// The name of another bundle, which has no fallback itself.
    #[schemars(length(min = 1))]
    pub(super) fallback: String,
}
