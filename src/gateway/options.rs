//! The options of the server, from the configuration.

use std::sync::Arc;

use crate::{
    access::{KeySource, RemoteKeySets},
    config::{self, ClientConfig, Config, Credential, Jwks, Secret, TokenFile},
    server::{self, Requirement, Tokens},
};

/// The server's options, from the configuration.
///
/// # Errors
/// When a client's glob is malformed.
pub fn server_options(config: &Config) -> anyhow::Result<server::Options> {
    let (drain, long_poll) = (config.server.drain, config.long_poll);
    Ok(server::Options {
        listen: config.server.listen,
        admin: admin_options(&config.server),
        tls: config.server.tls.clone(),
        max_connections: config.server.max_connections,
        ready_after: config.server.ready_after,
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
        clients: live_clients(&config.clients)?,
        webhooks: config.webhooks.clone().into(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        deadlines: server::Deadlines::default(),
    })
}

fn live_clients(config: &[ClientConfig]) -> anyhow::Result<server::LiveClients> {
    let key_sets = RemoteKeySets::default();
    let clients = clients(config, &key_sets)?;
    Ok(server::LiveClients::new(clients, key_sets))
}

/// The clients that may read bundles, from the configuration. Keys that are fetched already are
/// taken from `key_sets`.
pub(super) fn clients(
    config: &[ClientConfig],
    key_sets: &RemoteKeySets,
) -> anyhow::Result<server::Clients> {
    let mut clients = server::Clients::default();
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

fn admin_options(config: &config::Server) -> server::AdminOptions {
    let tokens = server::AdminTokens::default();
    set_admin_tokens(&tokens, config.admin_tokens.as_ref());
    server::AdminOptions {
        tls: config.admin_tls.clone(),
        tokens,
        hosts: config.admin_hosts.clone(),
        ..config.admin.clone().into()
    }
}

/// Replaces the tokens of the admin listener.
pub(super) fn set_admin_tokens(tokens: &server::AdminTokens, file: Option<&TokenFile>) {
    tokens.replace(file.map(|file| Tokens::new(file.tokens().iter().map(Secret::expose))));
}
