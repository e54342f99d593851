//! `clients`: who may read what.

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
    /// For people and logs; unique.
    pub name: String,
    /// How it is recognised.
    pub credential: Credential,
    /// Globs over bundle names, each checked: `*` within a segment, `**` across.
    pub bundles: Vec<String>,
}

/// How a client is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// By showing nothing at all.
    Anonymous,
    /// By any bearer token in a file.
    Tokens {
        /// Where they are.
        file: PathBuf,
        /// Empty only if all were taken away.
        tokens: Vec<Secret>,
    },
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// The bytes, for a comparison in constant time.
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl ClientConfig {
    /// Takes away the tokens that are not in their file any more, whatever else is wrong with it,
    /// and tells whether there were any: a token that was taken out because it leaked must not
    /// live on because of a mistake elsewhere. A file that is gone holds none; one that can't be
    /// read for another reason tells nothing. Blocks.
    pub fn revoke(&mut self) -> bool {
        let Credential::Tokens { file, tokens } = &mut self.credential else { return false };
        let left = match read_regular(file, files::LARGEST) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(_) => return false,
        };
        let before = tokens.len();
        let is_left =
            |token: &Secret| left.split(|byte| *byte == b'\n').any(|line| line.trim_ascii() == token.expose());
        tokens.retain(is_left);
        tokens.len() < before
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Reads all of `clients`.
pub(super) fn read(raw: Option<Vec<raw::Client>>, base: Base<'_>) -> Result<Vec<ClientConfig>, Problem> {
    let raw = raw.unwrap_or_default();
    if raw.is_empty() {
        let example = "clients: [{ name: anyone, anonymous: true, bundles: [\"**\"] }]";
        return Err(Problem::new(format!("nobody may read anything; say who may, such as {example}")));
    }
    let mut clients: Vec<ClientConfig> = Vec::new();
    let mut names = HashSet::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let client = client(raw, base).and_then(|client| match !names.insert(client.name.clone()) {
            true => Err(Problem::new(format!("{} is the name of two clients; rename one", client.name)).at("name")),
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
                Ok(Credential::Tokens { file: base.path(path)?, tokens })
            };
            of_file(file).map_err(|problem| problem.at("bearer_token_file"))?
        }
        (Some(_), Some(_)) => {
            return Err(Problem::new("a client has one credential; keep `anonymous` or `bearer_token_file`"));
        }
        (Some(false) | None, None) => {
            let sentence = "nothing tells who this client is; write `bearer_token_file: FILE` or `anonymous: true`";
            return Err(Problem::new(sentence));
        }
    };
    if raw.bundles.is_empty() {
        return Err(Problem::new("the client may read nothing; write globs such as [\"authz/**\"]").at("bundles"));
    }
    for (index, text) in raw.bundles.iter().enumerate() {
        glob(text).map_err(|problem| problem.at_index(index).at("bundles"))?;
    }
    Ok(ClientConfig { name: raw.name, credential, bundles: raw.bundles })
}

/// One token a line. The errors count lines instead of quoting them.
fn tokens(text: &str) -> Result<Vec<Secret>, String> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let token = line.trim();
        if token.is_empty() {
            continue;
        }
        // Nothing else passes through an Authorization header.
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let line = index + 1;
            return Err(format!(
                "line {line} has white space or other than ASCII in its token; write one token a line"
            ));
        }
        tokens.push(Secret(token.into()));
    }
    if tokens.is_empty() {
        return Err("there is no token in it; write one token a line".to_owned());
    }
    Ok(tokens)
}

/// One token must not mean two clients: the answer would depend on their order.
fn distinct_tokens(clients: &[ClientConfig]) -> Result<(), Problem> {
    let mut owners: BTreeMap<&[u8], &str> = BTreeMap::new();
    for (index, client) in clients.iter().enumerate() {
        let Credential::Tokens { tokens, .. } = &client.credential else { continue };
        for token in tokens {
            match owners.insert(token.expose(), &client.name) {
                Some(other) if other != client.name => {
                    let sentence = format!("it shares a token with client {other}; give each its own");
                    return Err(Problem::new(sentence).at("bearer_token_file").at_index(index));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
