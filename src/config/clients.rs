//! `clients`: credentials, and the bundles that each client may read.

use std::collections::{BTreeMap, HashSet};

use super::{
    client_credential::{Credential, Secret, credential},
    files::Base,
    problem::Problem,
    raw,
    values::{glob, name},
};

/// One entry of `clients`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// The name in logs; unique.
    pub name: String,
    /// The credential of the client.
    pub credential: Credential,
    /// Valid globs over bundle names: `*` within a segment, `**` across segments.
    pub bundles: Vec<String>,
}

impl ClientConfig {
    /// Removes the credentials that are no longer in their file
    /// ([`Credential::revoke`]). Blocks.
    pub fn revoke(&mut self) -> bool {
        self.credential.revoke()
    }
}

/// Reads all of `clients`. `has_client_ca`: clients can show certificates.
pub(super) fn read(
    raw: Option<Vec<raw::Client>>,
    has_client_ca: bool,
    base: Base<'_>,
) -> Result<Vec<ClientConfig>, Problem> {
    let raw = raw.unwrap_or_default();
    if raw.is_empty() {
        let example = "clients: [{ name: anyone, anonymous: true, bundles: [\"**\"] }]";
        return Err(Problem::new(format!(
            "no client is configured; write one, such as {example}"
        )));
    }
    let mut clients: Vec<ClientConfig> = Vec::new();
    let mut names = HashSet::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let client = client(raw, has_client_ca, base).and_then(|client| {
            match !names.insert(client.name.clone()) {
                true => Err(Problem::new(format!(
                    "{} is the name of two clients; rename one",
                    client.name
                ))
                .at("name")),
                false => Ok(client),
            }
        });
        clients.push(client.map_err(|problem| problem.at_index(index))?);
    }
    distinct_credentials(&clients)?;
    Ok(clients)
}

fn client(raw: raw::Client, has_client_ca: bool, base: Base<'_>) -> Result<ClientConfig, Problem> {
    name(&raw.name).map_err(|problem| problem.at("name"))?;
    if raw.bundles.is_empty() {
        return Err(
            Problem::new("the list is empty; write globs such as [\"authz/**\"]").at("bundles"),
        );
    }
    for (index, text) in raw.bundles.iter().enumerate() {
        glob(text).map_err(|problem| problem.at_index(index).at("bundles"))?;
    }
    let credential = credential(&raw, has_client_ca, base)?;
    Ok(ClientConfig {
        name: raw.name,
        credential,
        bundles: raw.bundles,
    })
}

/// Checks that no two clients share a token or a user: the result would depend on their order.
fn distinct_credentials(clients: &[ClientConfig]) -> Result<(), Problem> {
    let mut owners: BTreeMap<(&str, &[u8]), &str> = BTreeMap::new();
    for (index, client) in clients.iter().enumerate() {
        let key = client.credential.key();
        let (noun, credentials): (_, Vec<&[u8]>) = match &client.credential {
            Credential::Anonymous | Credential::Certificate(_) | Credential::Jwt { .. } => continue,
            Credential::Tokens { tokens, .. } => {
                ("token", tokens.iter().map(Secret::expose).collect())
            }
            Credential::Passwords { users, .. } => {
                let names = users.users().map(|user| user.name().as_bytes());
                ("user", names.collect())
            }
        };
        for credential in credentials {
            match owners.insert((key, credential), &client.name) {
                Some(other) if other != client.name => {
                    let message = format!(
                        "the file shares a {noun} with client {other}; use different {noun}s"
                    );
                    return Err(Problem::new(message).at(key).at_index(index));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
