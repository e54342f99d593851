//! The credentials of `clients`: their files and rules.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use url::{Host, Url};

use super::{
    files::{self, Base},
    name_matcher::{NameMatcher, refused},
    problem::Problem,
    raw,
};
use crate::{
    access::{CertificateName, InvalidKeySet, KeySet, KeyUrl, PasswordFile, TokenRule},
    oci::read_regular,
    verify::Pattern,
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
    /// A JSON Web Token.
    Jwt {
        /// The claims that it must have.
        rule: TokenRule,
        /// The keys of the issuer.
        keys: Jwks,
    },
}

/// Where the keys of an issuer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jwks {
    /// In a file.
    File {
        /// The file.
        file: PathBuf,
        /// The keys; none only if all were removed.
        keys: KeySet,
    },
    /// At a URL.
    Url(KeyUrl),
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
    /// Removes the tokens, users and keys that are no longer in their file, and returns whether
    /// there were any. It ignores errors elsewhere in the configuration: they must not keep a leaked
    /// credential valid. A deleted file has none; a file that can't be read for another reason
    /// changes nothing. Blocks.
    pub fn revoke(&mut self) -> bool {
        let Some(left) = self.file().and_then(left_in) else {
            return false;
        };
        match self {
            Self::Anonymous | Self::Certificate(_) => false,
            Self::Jwt { keys, .. } => keys.retain_keys_of(&left),
            Self::Tokens { tokens, .. } => retain_tokens_of(&left, tokens),
            Self::Passwords { users, .. } => users.retain_lines_of(&left),
        }
    }

    /// The file from which credentials can be removed, if there is one.
    fn file(&self) -> Option<&Path> {
        match self {
            Self::Anonymous
            | Self::Certificate(_)
            | Self::Jwt {
                keys: Jwks::Url(_), ..
            } => None,
            Self::Jwt {
                keys: Jwks::File { file, .. },
                ..
            } => Some(file),
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
            Self::Jwt { .. } => "jwt",
        }
    }
}

impl Jwks {
    /// Removes the keys that are not in a document, and returns whether there were any. A document
    /// that is malformed changes nothing, but an empty one has no keys.
    fn retain_keys_of(&mut self, document: &[u8]) -> bool {
        let Self::File { keys, .. } = self else {
            return false;
        };
        if document.trim_ascii().is_empty() {
            return keys.clear();
        }
        match KeySet::parse(document) {
            Ok(left) => keys.retain_keys_of(&left),
            Err(InvalidKeySet::Empty) => keys.clear(),
            Err(_) => false,
        }
    }
}

/// What is left in a file, of which credentials may have been removed; `None` if it can't be read.
fn left_in(file: &Path) -> Option<Vec<u8>> {
    match read_regular(file, files::MAX_FILE_BYTES) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Vec::new()),
        Err(_) => None,
    }
}

/// Removes the tokens that are no longer in their file, as [`Credential::revoke`] does.
pub(super) fn retain_tokens_in(file: &Path, tokens: &mut Vec<Secret>) -> bool {
    left_in(file).is_some_and(|left| retain_tokens_of(&left, tokens))
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
        Kind::Jwt(raw) => jwt(raw, base).map_err(|problem| problem.at("jwt")),
    }
}

/// The key that a client has.
enum Kind<'a> {
    Anonymous,
    Tokens(&'a Path),
    Passwords(&'a Path),
    Certificate(&'a raw::Mtls),
    Jwt(&'a raw::ClientJwt),
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
        ("jwt", raw.jwt.as_ref().map(Kind::Jwt)),
    ];
    let mut written = kinds
        .into_iter()
        .filter_map(|(key, kind)| Some((key, kind?)));
    match (written.next(), written.next()) {
        (Some((_, kind)), None) => Ok(kind),
        (None, _) => {
            let message = "the client has no credential; write one of `bearer_token_file`, \
                `basic_file`, `mtls`, `jwt` and `anonymous: true`";
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
    let name = certificate_name(raw)?;
    if !has_client_ca {
        let message = "no client can show a certificate; name the authority that issues them in \
            `server.tls.client_ca`";
        return Err(Problem::new(message));
    }
    Ok(Credential::Certificate(name))
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

fn jwt(raw: &raw::ClientJwt, base: Base<'_>) -> Result<Credential, Problem> {
    for (key, text) in [("issuer", &raw.issuer), ("audience", &raw.audience)] {
        if text.is_empty() {
            return Err(Problem::new("empty; write the value of the token's claim").at(key));
        }
    }
    let claims = raw.claims.iter().map(|(name, text)| {
        let pattern = Pattern::glob(text).map_err(|error| refused(error).at(name));
        Ok((name.clone(), pattern?))
    });
    let rule = TokenRule {
        issuer: raw.issuer.clone(),
        audience: raw.audience.clone(),
        claims: claims
            .collect::<Result<_, Problem>>()
            .map_err(|problem| problem.at("claims"))?,
    };
    let keys = jwks(raw, base)?;
    Ok(Credential::Jwt { rule, keys })
}

fn jwks(raw: &raw::ClientJwt, base: Base<'_>) -> Result<Jwks, Problem> {
    match (&raw.jwks_file, &raw.jwks_url) {
        (Some(file), None) => {
            if raw.ca_file.is_some() {
                let message = "nothing is fetched with `jwks_file`; remove it";
                return Err(Problem::new(message).at("ca_file"));
            }
            key_file(file, base).map_err(|problem| problem.at("jwks_file"))
        }
        (None, Some(url)) => {
            let url = key_url(url).map_err(|problem| problem.at("jwks_url"))?;
            let extra_roots = match &raw.ca_file {
                Some(file) => base.roots(file).map_err(|problem| problem.at("ca_file"))?,
                None => Vec::new(),
            };
            Ok(Jwks::Url(KeyUrl { url, extra_roots }))
        }
        (None, None) => Err(Problem::new(
            "no keys verify the tokens; write `jwks_file` or `jwks_url`",
        )),
        (Some(_), Some(_)) => Err(Problem::new(
            "the keys are in one place; keep `jwks_file` or `jwks_url`",
        )),
    }
}

fn key_file(file: &Path, base: Base<'_>) -> Result<Jwks, Problem> {
    let keys = KeySet::parse(&base.bytes(file)?).map_err(|error| {
        let message = format!("{error}; save the issuer's JSON Web Key Set");
        in_file(file, &message)
    })?;
    let file = base.path(file)?;
    Ok(Jwks::File { file, keys })
}

/// Parses the URL of a key set. Keys that come without TLS could be anyone's, except from this
/// machine.
fn key_url(text: &str) -> Result<Url, Problem> {
    let example = "write one such as \"https://issuer.example/.well-known/jwks.json\"";
    let url = Url::parse(text)
        .map_err(|error| Problem::new(format!("{text:?} is not a URL ({error}); {example}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Problem::new(
            "a URL with a user would appear in logs; remove the user",
        ));
    }
    let is_local = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_local => Ok(url),
        _ => Err(Problem::new(format!(
            "{text:?} is neither https nor http on this machine; {example}"
        ))),
    }
}

fn in_file(file: &Path, reason: &dyn fmt::Display) -> Problem {
    Problem::new(format!("{}: {reason}", file.display()))
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
