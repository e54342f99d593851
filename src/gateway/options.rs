//! The options of the server, from the configuration.

use std::sync::Arc;

use super::open_files;
use crate::{
    config::{ClientConfig, Config, Credential, Secret},
    server,
};

/// The server's options, from the configuration.
///
/// # Errors
/// When a client's glob is malformed.
pub fn server_options(config: &Config) -> anyhow::Result<server::Options> {
    Ok(server::Options {
        listen: config.server.listen,
        admin: config.server.admin,
        ready_after: config.server.ready_after,
        clients: clients(&config.clients)?.into(),
        webhooks: config.webhooks.clone().into(),
        deadlines: server::Deadlines::default(),
        settings: settings(config).into(),
    })
}

/// The settings that apply while the server runs, from the configuration.
pub(super) fn settings(config: &Config) -> server::Settings {
    let (server, drain, long_poll) = (&config.server, config.server.drain, config.long_poll);
    server::Settings {
        tls: server.tls.as_ref().map(|tls| Arc::clone(tls.config())),
        max_connections: server.max_connections,
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
        trusted_proxies: server.trusted_proxies.clone(),
    }
}

/// Puts settings in force, with as many connections as the process may have open files.
pub(super) fn apply_settings(live: &server::LiveSettings, settings: server::Settings) {
    live.replace(server::Settings {
        max_connections: open_files::room_for(settings.max_connections),
        ..settings
    });
}

/// The clients that may read bundles, from the configuration.
pub(super) fn clients(config: &[ClientConfig]) -> anyhow::Result<server::Clients> {
    let mut clients = server::Clients::default();
    for client in config {
        match &client.credential {
            Credential::Anonymous => clients.allow(&client.bundles, None)?,
            Credential::Tokens { tokens, .. } => {
                let tokens: Vec<_> = tokens.iter().map(Secret::expose).collect();
                clients.allow(&client.bundles, Some(&tokens))?;
            }
        }
    }
    Ok(clients)
}
