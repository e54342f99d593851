//! `webhooks`: notifications of registries, and how their senders are authenticated.

use std::{collections::HashSet, path::Path};

use super::{
    files::Base,
    problem::Problem,
    raw,
    values::{name, word},
};
use crate::{
    oci::Repository,
    webhooks::{Authentication, KeySet, Kind, Listener, Oidc, Pointer, Secret, Webhook},
};

/// Reads all of `webhooks`.
pub(super) fn read(raw: Vec<raw::Webhook>, base: Base<'_>) -> Result<Vec<Webhook>, Problem> {
    let mut webhooks = Vec::new();
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for (index, raw) in raw.into_iter().enumerate() {
        let at = |problem: Problem| problem.at_index(index);
        let webhook = webhook(raw, base).map_err(at)?;
        let Webhook {
            name,
            listener,
            path,
            ..
        } = &webhook;
        if !names.insert(name.clone()) {
            let message = format!("{name} is the name of two webhooks; rename one");
            return Err(at(Problem::new(message).at("name")));
        }
        if !paths.insert((listener.label(), path.clone())) {
            let message = format!("{path} is the path of two webhooks of one listener; change one");
            return Err(at(Problem::new(message).at("path")));
        }
        webhooks.push(webhook);
    }
    Ok(webhooks)
}

fn webhook(raw: raw::Webhook, base: Base<'_>) -> Result<Webhook, Problem> {
    name(&raw.name).map_err(|problem| problem.at("name"))?;
    let kind = kind(&raw)?;
    let listener = raw
        .listener
        .as_deref()
        .map_or(Ok(Listener::Admin), |text| {
            word(text, &LISTENERS).map_err(|problem| problem.at("listener"))
        })?;
    let path = match &raw.path {
        Some(path) => path.clone(),
        None => format!("/webhooks/{}", raw.name),
    };
    check_path(&path, listener).map_err(|problem| problem.at("path"))?;
    let host = host(raw.host.as_deref(), &kind).map_err(|problem| problem.at("host"))?;
    let authentication = authentication(&raw, &kind, listener, base)?;
    Ok(Webhook {
        name: raw.name,
        kind,
        listener,
        path,
        host,
        authentication,
    })
}

fn kind(raw: &raw::Webhook) -> Result<Kind, Problem> {
    let label = word(&raw.kind, &KINDS.map(|label| (label, label)))
        .map_err(|problem| problem.at("kind"))?;
    let refused = |message: &str| Err(Problem::new(message).at("pointer"));
    let pointer = match (label, &raw.pointer) {
        (GENERIC, Some(text)) => match Pointer::new(text) {
            Some(pointer) => pointer,
            None => return refused("not a JSON pointer; write one such as /image"),
        },
        (GENERIC, None) => {
            return refused("missing; write the JSON pointer of the image's name, such as /image");
        }
        (_, Some(_)) => return refused("only `kind: generic` has a pointer; remove it"),
        (_, None) => return Ok(named(label)),
    };
    Ok(Kind::Generic(pointer))
}

/// The kind of a label other than `generic`.
pub(super) fn named(label: &str) -> Kind {
    match label {
        "zot" => Kind::Zot,
        "harbor" => Kind::Harbor,
        "github" => Kind::Github,
        "gitlab" => Kind::Gitlab,
        "docker_hub" => Kind::DockerHub,
        "quay" => Kind::Quay,
        "jfrog" => Kind::Jfrog,
        "ecr" => Kind::Ecr,
        "acr" => Kind::Acr,
        "artifact_registry" => Kind::ArtifactRegistry,
        _ => Kind::Distribution,
    }
}

fn check_path(path: &str, listener: Listener) -> Result<(), Problem> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/._~-".contains(&byte);
    if !path.starts_with('/') || path == "/" || !path.bytes().all(fits) {
        return Err(Problem::new(format!(
            "{path:?} is not a path; begin with a slash, and use only letters, digits and / . _ ~ -"
        )));
    }
    let is_taken = |own: &str| path == own || own.ends_with('/') && path.starts_with(own);
    if listener == Listener::Admin
        && let Some(own) = ADMIN_PATHS.into_iter().find(|own| is_taken(own))
    {
        return Err(Problem::new(format!(
            "{own} belongs to the admin API; write another, such as /webhooks/NAME"
        )));
    }
    Ok(())
}

fn host(host: Option<&str>, kind: &Kind) -> Result<Option<String>, Problem> {
    let Some(host) = host else {
        if kind.names_host() {
            return Ok(None);
        }
        return Err(Problem::new(format!(
            "missing: {} does not say which registry it is; write the host as references have it",
            kind.label()
        )));
    };
    match format!("{host}/x").parse() {
        Ok(Repository::Registry { host: own, path }) if own == host && path == "x" => {
            Ok(Some(host.to_owned()))
        }
        _ => Err(Problem::new(format!(
            "{host:?} is not a host; write it as references have it, such as ghcr.io"
        ))),
    }
}

fn authentication(
    raw: &raw::Webhook,
    kind: &Kind,
    listener: Listener,
    base: Base<'_>,
) -> Result<Authentication, Problem> {
    let is_written = [
        raw.secret_file.is_some(),
        raw.bearer_token_file.is_some(),
        raw.basic_file.is_some(),
        raw.oidc.is_some(),
        raw.unauthenticated == Some(true),
    ];
    let keys = CREDENTIALS.into_iter().chain(["unauthenticated"]);
    let written = keys.zip(is_written).filter(|(_, is_written)| *is_written);
    let written: Vec<_> = written.map(|(key, _)| key).collect();
    let way = way(kind);
    let key = match written.as_slice() {
        [] => {
            let message = format!("anyone could send notifications; write {way}");
            return Err(Problem::new(message));
        }
        [key] => *key,
        [one, other, ..] => {
            let message =
                format!("a sender is authenticated in one way; keep `{one}` or `{other}`");
            return Err(Problem::new(message));
        }
    };
    if !can_send(kind, key) {
        let message = format!("{} can't send this; write {way}", kind.label());
        return Err(Problem::new(message).at(key));
    }
    if key == "unauthenticated" {
        if listener == Listener::Data {
            let message = "only a webhook of the admin listener may be unauthenticated; \
                remove it, or write `listener: admin`";
            return Err(Problem::new(message).at(key));
        }
        return Ok(Authentication::None);
    }
    read_credentials(raw, kind, base).map_err(|problem| problem.at(key))
}

/// Whether senders of this kind can be authenticated by the credential of this key.
pub(super) fn can_send(kind: &Kind, key: &str) -> bool {
    match key {
        "secret_file" => kind.secret_place().is_some(),
        "oidc" => *kind == Kind::ArtifactRegistry,
        "unauthenticated" => true,
        _ => kind.sends_authorization(),
    }
}

fn read_credentials(
    raw: &raw::Webhook,
    kind: &Kind,
    base: Base<'_>,
) -> Result<Authentication, Problem> {
    if let Some(oidc) = &raw.oidc {
        return self::oidc(oidc, base).map(Authentication::Oidc);
    }
    if let Some(file) = &raw.basic_file {
        let secrets = secrets(file, base)?;
        if !secrets.is_password {
            let message = format!("{}: write USER:PASSWORD, one a line", file.display());
            return Err(Problem::new(message));
        }
        return Ok(Authentication::Basic(secrets.lines));
    }
    if let Some(file) = &raw.bearer_token_file {
        return Ok(Authentication::Bearer(secrets(file, base)?.lines));
    }
    match (&raw.secret_file, kind.secret_place()) {
        (Some(file), Some(place)) => Ok(Authentication::Shared(place, secrets(file, base)?.lines)),
        _ => Err(Problem::new("no secret; write one")),
    }
}

/// How a kind of sender can be authenticated, in the words of the configuration.
fn way(kind: &Kind) -> &'static str {
    match (kind, kind.secret_place(), kind.sends_authorization()) {
        (Kind::ArtifactRegistry, ..) => "`oidc: { audience, email, jwks_file }`",
        (_, Some(_), true) => "`secret_file`, `bearer_token_file` or `basic_file`",
        (_, Some(_), false) => "`secret_file`",
        (_, None, _) => "`bearer_token_file` or `basic_file`",
    }
}

/// The lines of a file of secrets.
struct Secrets {
    lines: Vec<Secret>,
    /// Whether each line has a colon.
    is_password: bool,
}

/// Reads one secret per line; any of them is accepted. Errors do not quote the file.
fn secrets(file: &Path, base: Base<'_>) -> Result<Secrets, Problem> {
    let text = base.text(file)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    if lines.clone().any(|line| line.chars().any(char::is_control)) {
        let message = format!(
            "{} has control characters; name the right file",
            file.display()
        );
        return Err(Problem::new(message));
    }
    let is_password = lines.clone().all(|line| line.contains(':'));
    let lines: Vec<_> = lines.map(Secret::new).collect();
    if lines.is_empty() {
        let message = format!("{} is empty; write one secret per line", file.display());
        return Err(Problem::new(message));
    }
    Ok(Secrets { lines, is_password })
}

fn oidc(raw: &raw::WebhookOidc, base: Base<'_>) -> Result<Oidc, Problem> {
    for (key, text) in [("audience", &raw.audience), ("email", &raw.email)] {
        if text.is_empty() {
            return Err(Problem::new("empty; write the value of the token's claim").at(key));
        }
    }
    let keys = base.bytes(&raw.jwks_file).and_then(|bytes| {
        KeySet::parse(&bytes).map_err(|error| {
            let file = raw.jwks_file.display();
            Problem::new(format!(
                "{file}: {error}; save the keys of the issuer, such as {GOOGLE_KEYS}"
            ))
        })
    });
    let issuers = match &raw.issuer {
        Some(issuer) => vec![issuer.clone()],
        // Google's tokens have either form.
        None => GOOGLE.map(str::to_owned).into(),
    };
    Ok(Oidc {
        issuers,
        audience: raw.audience.clone(),
        email: raw.email.clone(),
        keys: keys.map_err(|problem| problem.at("jwks_file"))?,
    })
}

/// The words of `listener`; the first is the default.
pub(super) const LISTENERS: [(&str, Listener); 2] =
    [("admin", Listener::Admin), ("data", Listener::Data)];
/// The words of `kind`.
pub(super) const KINDS: [&str; 12] = [
    "distribution",
    "zot",
    "harbor",
    "github",
    "gitlab",
    "docker_hub",
    "quay",
    "jfrog",
    "ecr",
    "acr",
    "artifact_registry",
    GENERIC,
];
/// The kind with a `pointer`.
pub(super) const GENERIC: &str = "generic";
/// The keys of the credentials of senders, besides `unauthenticated`.
pub(super) const CREDENTIALS: [&str; 4] =
    ["secret_file", "bearer_token_file", "basic_file", "oidc"];
/// The paths of the admin API; those that end with a slash with all paths below them.
pub(super) const ADMIN_PATHS: [&str; 6] = [
    "/livez",
    "/readyz",
    "/metrics",
    "/status",
    "/refresh/",
    "/reload",
];
const GOOGLE: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];
const GOOGLE_KEYS: &str = "https://www.googleapis.com/oauth2/v3/certs";
