//! `clients`: credentials, and the bundles that each client may read.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, io,
    path::{Path, PathBuf},
};

use super::{
    files::{self, Base},
    problem::Problem,
    raw,
    values::{glob, name},
};
use crate::oci::read_regular;

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

/// The credential of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// No credential.
    Anonymous,
    /// Any bearer token in a file.
    Tokens {
        /// The token file.
        file: PathBuf,
        /// The tokens; empty only if all were revoked.
        tokens: Vec<Secret>,
    },
}

/// A text that `Debug` does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// The bytes, for a constant-time comparison.
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl ClientConfig {
    /// Removes the tokens that are no longer in the token file, and returns whether there were any.
    /// It ignores errors elsewhere in the configuration: they must not keep a leaked token valid. A
    /// deleted file has no tokens; a file that can't be read for another reason changes nothing.
    /// Blocks.
    pub fn revoke(&mut self) -> bool {
        match &mut self.credential {
            Credential::Tokens { file, tokens } => retain_listed(file, tokens),
            Credential::Anonymous => false,
        }
    }
}

/// Removes the tokens that are no longer in their file; see [`ClientConfig::revoke`].
pub(super) fn retain_listed(file: &Path, tokens: &mut Vec<Secret>) -> bool {
    let left = match read_regular(file, files::MAX_FILE_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(_) => return false,
    };
    let before = tokens.len();
    let is_left = |token: &Secret| {
        left.split(|byte| *byte == b'\n')
            .any(|line| line.trim_ascii() == token.expose())
    };
    tokens.retain(is_left);
    tokens.len() < before
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Reads all of `clients`.
pub(super) fn read(
    raw: Option<Vec<raw::Client>>,
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
        let client =
            client(raw, base).and_then(|client| match !names.insert(client.name.clone()) {
                true => Err(Problem::new(format!(
                    "{} is the name of two clients; rename one",
                    client.name
                ))
                .at("name")),
                false => Ok(client),
            });
        clients.push(client.map_err(|problem| problem.at_index(index))?);
    }
    distinct_tokens(&clients)?;
    Ok(clients)
}

fn client(raw: raw::Client, base: Base<'_>) -> Result<ClientConfig, Problem> {
    name(&raw.name).map_err(|problem| problem.at("name"))?;
    let credential = match (raw.anonymous, &raw.bearer_token_file) {
        (Some(true), None) => Credential::Anonymous,
        (None, Some(file)) => {
            let of_file = |path: &Path| -> Result<Credential, Problem> {
                let tokens = tokens(&base.text(path)?)
                    .map_err(|reason| Problem::new(format!("{}: {reason}", path.display())))?;
                Ok(Credential::Tokens {
                    file: base.path(path)?,
                    tokens,
                })
            };
            of_file(file).map_err(|problem| problem.at("bearer_token_file"))?
        }
        (Some(_), Some(_)) => {
            return Err(Problem::new(
                "a client has one credential; keep `anonymous` or `bearer_token_file`",
            ));
        }
        (Some(false) | None, None) => {
            let message = "the client has no credential; write `bearer_token_file: FILE` or `anonymous: true`";
            return Err(Problem::new(message));
        }
    };
    if raw.bundles.is_empty() {
        return Err(
            Problem::new("the list is empty; write globs such as [\"authz/**\"]").at("bundles"),
        );
    }
    for (index, text) in raw.bundles.iter().enumerate() {
        glob(text).map_err(|problem| problem.at_index(index).at("bundles"))?;
    }
    Ok(ClientConfig {
        name: raw.name,
        credential,
        bundles: raw.bundles,
    })
}

/// Reads one token per line. Errors name the line and do not quote it.
pub(super) fn tokens(text: &str) -> Result<Vec<Secret>, String> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let token = line.trim();
        if token.is_empty() {
            continue;
        }
        // The characters that an Authorization header can carry.
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let line = index + 1;
            return Err(format!(
                "line {line} has a token with white space or non-ASCII characters; write one token per line"
            ));
        }
        tokens.push(Secret(token.into()));
    }
    if tokens.is_empty() {
        return Err("the file has no token; write one token per line".to_owned());
    }
    Ok(tokens)
}

/// Checks that no two clients share a token: the result would depend on their order.
fn distinct_tokens(clients: &[ClientConfig]) -> Result<(), Problem> {
    let mut owners: BTreeMap<&[u8], &str> = BTreeMap::new();
    for (index, client) in clients.iter().enumerate() {
        let Credential::Tokens { tokens, .. } = &client.credential else {
            continue;
        };
        for token in tokens {
            match owners.insert(token.expose(), &client.name) {
                Some(other) if other != client.name => {
                    let message = format!(
                        "the file shares a token with client {other}; use different tokens"
                    );
                    return Err(Problem::new(message)
                        .at("bearer_token_file")
                        .at_index(index));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
