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
use crate::{access::PasswordFile, oci::read_regular};

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
    /// The name and password of any user in a file.
    Passwords {
        /// The password file.
        file: PathBuf,
        /// The users; none only if all were removed.
        users: PasswordFile,
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
    /// Removes the tokens and users that are no longer in their file, and returns whether there were
    /// any. It ignores errors elsewhere in the configuration: they must not keep a leaked credential
    /// valid. A deleted file has none; a file that can't be read for another reason changes nothing.
    /// Blocks.
    pub fn revoke(&mut self) -> bool {
        let Some(file) = self.credential.file() else {
            return false;
        };
        let left = match read_regular(file, files::MAX_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(_) => return false,
        };
        match &mut self.credential {
            Credential::Anonymous => false,
            Credential::Tokens { tokens, .. } => retain_tokens_of(&left, tokens),
            Credential::Passwords { users, .. } => users.retain_lines_of(&left),
        }
    }
}

impl Credential {
    /// The file of secrets, if there is one.
    fn file(&self) -> Option<&Path> {
        match self {
            Self::Anonymous => None,
            Self::Tokens { file, .. } | Self::Passwords { file, .. } => Some(file),
        }
    }

    /// The key of this kind of credential.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Tokens { .. } => "bearer_token_file",
            Self::Passwords { .. } => "basic_file",
        }
    }
}

/// Keeps the tokens that are a line of `text`, and returns whether others were removed.
fn retain_tokens_of(text: &[u8], tokens: &mut Vec<Secret>) -> bool {
    let before = tokens.len();
    tokens.retain(|token| {
        text.split(|byte| *byte == b'\n')
            .any(|line| line.trim_ascii() == token.expose())
    });
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
    distinct_credentials(&clients)?;
    Ok(clients)
}

fn client(raw: raw::Client, base: Base<'_>) -> Result<ClientConfig, Problem> {
    name(&raw.name).map_err(|problem| problem.at("name"))?;
    let credential = credential(&raw, base)?;
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

/// Reads the one credential of a client.
fn credential(raw: &raw::Client, base: Base<'_>) -> Result<Credential, Problem> {
    let keys = [
        ("anonymous", raw.anonymous == Some(true)),
        ("bearer_token_file", raw.bearer_token_file.is_some()),
        ("basic_file", raw.basic_file.is_some()),
    ];
    let written: Vec<_> = keys
        .iter()
        .filter_map(|(key, is_written)| is_written.then_some(*key))
        .collect();
    match written.as_slice() {
        [] => {
            let message = "the client has no credential; write `bearer_token_file: FILE`, \
                `basic_file: FILE` or `anonymous: true`";
            return Err(Problem::new(message));
        }
        [_] => {}
        [one, other, ..] => {
            let message = format!("a client has one credential; keep `{one}` or `{other}`");
            return Err(Problem::new(message));
        }
    }
    if let Some(file) = &raw.bearer_token_file {
        return token_file(file, base).map_err(|problem| problem.at("bearer_token_file"));
    }
    if let Some(file) = &raw.basic_file {
        return password_file(file, base).map_err(|problem| problem.at("basic_file"));
    }
    Ok(Credential::Anonymous)
}

fn token_file(file: &Path, base: Base<'_>) -> Result<Credential, Problem> {
    let tokens = tokens(&base.text(file)?).map_err(|reason| in_file(file, &reason))?;
    let file = base.path(file)?;
    Ok(Credential::Tokens { file, tokens })
}

fn password_file(file: &Path, base: Base<'_>) -> Result<Credential, Problem> {
    let users = PasswordFile::parse(&base.text(file)?).map_err(|reason| in_file(file, &reason))?;
    let file = base.path(file)?;
    Ok(Credential::Passwords { file, users })
}

fn in_file(file: &Path, reason: &dyn fmt::Display) -> Problem {
    Problem::new(format!("{}: {reason}", file.display()))
}

/// Reads one token per line. Errors name the line and do not quote it.
fn tokens(text: &str) -> Result<Vec<Secret>, String> {
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

/// Checks that no two clients share a token or a user: the result would depend on their order.
fn distinct_credentials(clients: &[ClientConfig]) -> Result<(), Problem> {
    let mut owners: BTreeMap<(&str, &[u8]), &str> = BTreeMap::new();
    for (index, client) in clients.iter().enumerate() {
        let key = client.credential.key();
        let (noun, credentials): (_, Vec<&[u8]>) = match &client.credential {
            Credential::Anonymous => continue,
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
