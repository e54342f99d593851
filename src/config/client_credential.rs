//! The credentials of `clients`: their files and rules.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::{
    files::{self, Base},
    name_matcher::NameMatcher,
    problem::Problem,
    raw,
};
use crate::{
    access::{CertificateName, PasswordFile},
    oci::read_regular,
};

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
    /// A client certificate with this name, issued by an authority of `server.tls.client_ca`.
    Certificate(CertificateName),
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

impl Credential {
    /// Removes the tokens and users that are no longer in their file, and returns whether there
    /// were any. It ignores errors elsewhere in the configuration: they must not keep a leaked
    /// credential valid. A deleted file has none; a file that can't be read for another reason
    /// changes nothing. Blocks.
    pub fn revoke(&mut self) -> bool {
        let Some(file) = self.file() else {
            return false;
        };
        let left = match read_regular(file, files::MAX_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(_) => return false,
        };
        match self {
            Self::Anonymous | Self::Certificate(_) => false,
            Self::Tokens { tokens, .. } => retain_tokens_of(&left, tokens),
            Self::Passwords { users, .. } => users.retain_lines_of(&left),
        }
    }

    /// The file from which credentials can be removed, if there is one.
    fn file(&self) -> Option<&Path> {
        match self {
            Self::Anonymous | Self::Certificate(_) => None,
            Self::Tokens { file, .. } | Self::Passwords { file, .. } => Some(file),
        }
    }

    /// The key of this kind of credential.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Tokens { .. } => "bearer_token_file",
            Self::Passwords { .. } => "basic_file",
            Self::Certificate(_) => "mtls",
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

/// Reads the one credential of a client.
pub(super) fn credential(
    raw: &raw::Client,
    has_client_ca: bool,
    base: Base<'_>,
) -> Result<Credential, Problem> {
    match the_kind(raw)? {
        Kind::Anonymous => Ok(Credential::Anonymous),
        Kind::Tokens(file) => {
            token_file(file, base).map_err(|problem| problem.at("bearer_token_file"))
        }
        Kind::Passwords(file) => {
            password_file(file, base).map_err(|problem| problem.at("basic_file"))
        }
        Kind::Certificate(raw) => {
            certificate(raw, has_client_ca).map_err(|problem| problem.at("mtls"))
        }
    }
}

/// The key that a client has.
enum Kind<'a> {
    Anonymous,
    Tokens(&'a Path),
    Passwords(&'a Path),
    Certificate(&'a raw::Mtls),
}

/// The only kind of credential of a client.
fn the_kind(raw: &raw::Client) -> Result<Kind<'_>, Problem> {
    let kinds = [
        (
            "anonymous",
            (raw.anonymous == Some(true)).then_some(Kind::Anonymous),
        ),
        (
            "bearer_token_file",
            raw.bearer_token_file.as_deref().map(Kind::Tokens),
        ),
        ("basic_file", raw.basic_file.as_deref().map(Kind::Passwords)),
        ("mtls", raw.mtls.as_ref().map(Kind::Certificate)),
    ];
    let mut written = kinds
        .into_iter()
        .filter_map(|(key, kind)| Some((key, kind?)));
    match (written.next(), written.next()) {
        (Some((_, kind)), None) => Ok(kind),
        (None, _) => {
            let message = "the client has no credential; write one of `bearer_token_file`, \
                `basic_file`, `mtls` and `anonymous: true`";
            Err(Problem::new(message))
        }
        (Some((one, _)), Some((other, _))) => {
            let message = format!("a client has one credential; keep `{one}` or `{other}`");
            Err(Problem::new(message))
        }
    }
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

fn certificate(raw: &raw::Mtls, has_client_ca: bool) -> Result<Credential, Problem> {
    if !has_client_ca {
        let message = "no client can show a certificate; name the authority that issues them in \
            `server.tls.client_ca`";
        return Err(Problem::new(message));
    }
    certificate_name(raw).map(Credential::Certificate)
}

/// Reads the one name that a certificate must have.
fn certificate_name(raw: &raw::Mtls) -> Result<CertificateName, Problem> {
    let common_name = NameMatcher {
        key: "common_name",
        is: |_| true,
        kind: "a common name",
    };
    let dns = NameMatcher {
        key: "san_dns",
        // Compared in lower case.
        is: |text| !text.contains(['/', ':', '@']) && !text.chars().any(char::is_uppercase),
        kind: "a DNS name in lower case such as \"opa.corp.example\"",
    };
    let uri = NameMatcher {
        key: "san_uri",
        is: |text| text.contains(':'),
        kind: "a URI such as \"spiffe://corp/opa/*\"",
    };
    let names = [
        common_name
            .pattern(raw.common_name.clone(), raw.common_name_regex.clone())?
            .map(CertificateName::CommonName),
        dns.pattern(raw.san_dns.clone(), raw.san_dns_regex.clone())?
            .map(CertificateName::Dns),
        uri.pattern(raw.san_uri.clone(), raw.san_uri_regex.clone())?
            .map(CertificateName::Uri),
    ];
    let mut names = names.into_iter().flatten();
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name),
        (None, _) => Err(Problem::new(
            "without it anyone with a certificate could read; write one of `common_name`, \
             `san_dns` and `san_uri`",
        )),
        (Some(_), Some(_)) => Err(Problem::new(
            "a certificate is matched by one name; keep one of `common_name`, `san_dns` and \
             `san_uri`",
        )),
    }
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
