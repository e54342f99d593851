//! The options of the server, from the configuration.

use std::sync::Arc;

use super::open_files;
use crate::{
    access::{KeySource, RemoteKeySets},
    config::{
        self, ClientConfig, Config, ConfigWarning, Credential, Jwks, Secret, SharedConfig,
        TokenFile,
    },
    fleet::Fleet,
    server::{self, CertificateInUse, Requirement, Tokens},
    telemetry,
    traces::Traces,
};

/// The server's options, from the configuration.
///
/// # Errors
/// When a client's glob is malformed.
pub fn server_options(config: &Config) -> anyhow::Result<server::Options> {
    let engine = config.shared.as_ref().and_then(SharedConfig::engine);
    Ok(server::Options {
        listen: config.server.listen,
        admin: admin_options(config),
        ready_after: config.server.ready_after,
        clients: live_clients(config)?,
        webhooks: config.webhooks.clone().into(),
        deadlines: server::Deadlines::default(),
        settings: settings(config).into(),
        traces: Traces::off(),
        fleet: Fleet::new(config.fleet.clone(), engine.is_some()),
    })
}

/// The settings that apply while the server runs, from the configuration.
pub(super) fn settings(config: &Config) -> server::Settings {
    let (wanted, drain, long_poll) = (&config.server, config.server.drain, config.long_poll);
    server::Settings {
        tls: wanted.tls.as_ref().map(|tls| server::ServerTls {
            config: Arc::clone(tls.config()),
            authorities: tls.authorities(),
        }),
        max_connections: wanted.max_connections,
        drain: server::Drain {
            notice: drain.notice,
            over: drain.over,
        },
        long_poll: server::LongPoll {
            max_wait: long_poll.max_wait,
            first_wait: long_poll.first_wait,
            bandwidth: long_poll.bandwidth,
            // `auto` follows from the bandwidth.
            spread: long_poll.spread.unwrap_or_default(),
            repeat_delay: long_poll.repeat_delay,
        },
        access_log: config.log.access,
        trusted_proxies: wanted.trusted_proxies.clone(),
        admin_tls: wanted.admin_tls.clone(),
        admin_hosts: wanted.admin_hosts.clone(),
    }
}

/// Puts settings in force, with as many connections as the process may have open files.
pub(super) fn apply_settings(live: &server::LiveSettings, settings: server::Settings) {
    live.replace(server::Settings {
        max_connections: open_files::room_for(settings.max_connections),
        ..settings
    });
}

/// Logs the certificates that have expired. Their peers refuse them, and this program does not.
pub(super) fn warn_of_expired(certificates: &[CertificateInUse]) {
    let now = telemetry::now();
    for CertificateInUse { key, expiry } in certificates {
        if expiry.is_expired_at(now) {
            tracing::warn!(
                key,
                subject = expiry.subject,
                expired = %expiry.not_after,
                "a certificate has expired, and its peers refuse it: renew it"
            );
        }
    }
}

/// Logs what should be changed in a configuration, although it can be served.
pub(super) fn warn(config: &Config) {
    for ConfigWarning { key, message } in config.warnings() {
        tracing::warn!(key, "{message}");
    }
}

fn live_clients(config: &Config) -> anyhow::Result<server::LiveClients> {
    let key_sets = RemoteKeySets::default();
    let clients = clients(&config.clients, &config.server, &key_sets)?;
    Ok(server::LiveClients::new(clients, key_sets))
}

/// The clients that may read bundles, from the configuration. Keys that are fetched already are
/// taken from `key_sets`.
pub(super) fn clients(
    config: &[ClientConfig],
    server: &config::Server,
    key_sets: &RemoteKeySets,
) -> anyhow::Result<server::Clients> {
    let authorities = server.tls.as_ref().and_then(config::Tls::authorities);
    let mut clients = server::Clients::with_authorities(authorities);
    for client in config {
        let requirement = match &client.credential {
            Credential::Anonymous => Requirement::Anonymous,
            Credential::Tokens { tokens, .. } => {
                Requirement::Token(Tokens::new(tokens.iter().map(Secret::expose)))
            }
            Credential::Passwords { users, .. } => Requirement::Password(users.clone()),
            Credential::Certificate(name) => Requirement::Certificate(name.clone()),
            Credential::Jwt { rule, keys } => {
                let keys = match keys {
                    Jwks::File { keys, .. } => KeySource::File(Arc::new(keys.clone())),
                    Jwks::Url(url) => KeySource::Url(key_sets.get(url)),
                };
                Requirement::Jwt(rule.clone(), keys)
            }
        };
        clients.allow(&client.name, &client.bundles, requirement)?;
    }
    Ok(clients)
}

fn admin_options(config: &Config) -> server::AdminOptions {
    let tokens = server::AdminTokens::default();
    set_admin_tokens(&tokens, config.server.admin_tokens.as_ref());
    server::AdminOptions {
        tokens,
        certificates: config.certificates.clone().into(),
        ..config.server.admin.clone().into()
    }
}

/// Replaces the tokens of the admin listener.
pub(super) fn set_admin_tokens(tokens: &server::AdminTokens, file: Option<&TokenFile>) {
    tokens.replace(file.map(|file| Tokens::new(file.tokens().iter().map(Secret::expose))));
}
