//! The options of the server, from the configuration.

use crate::{
    config::{self, ClientConfig, Config, Credential, Secret, TokenFile},
    server,
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
        clients: clients(&config.clients)?.into(),
        webhooks: config.webhooks.clone().into(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        deadlines: server::Deadlines::default(),
    })
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
    let secrets: Option<Vec<_>> =
        file.map(|file| file.tokens().iter().map(Secret::expose).collect());
    tokens.replace(secrets.as_deref());
}
