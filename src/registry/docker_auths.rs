//! The entries of a docker configuration: which key names a registry, and the credentials in an
//! entry. Pure functions over the parsed text.
//!
//! Read as docker (docker/cli, `cli/config`), crane, oras and podman read it: `config.json`,
//! podman's `auth.json`, Kubernetes' `.dockerconfigjson`, and the older `.dockercfg`, which has the
//! entries without `auths` around them.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::docker_hub::is_docker_hub;

/// The key of Docker Hub, whatever its host is called (docker/cli, `getAuthConfigKey`).
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// Docker writes padded base64; Kubernetes accepts both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// The rank of a key with a path, which is more specific than every key of the host alone. The
/// length of the path is added.
const SCOPED: usize = 10;

/// The credentials for a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Login {
    /// None are stored.
    Anonymous,
    /// User name and password.
    Password { username: String, password: String },
    /// A refresh token for the token server; user name and password may be stored beside it, and
    /// are empty otherwise.
    IdentityToken {
        token: String,
        username: String,
        password: String,
    },
    /// A token that the registry itself accepts.
    RegistryToken(String),
}

/// A parsed configuration. Errors say what is wrong, without the text, which may be a secret.
#[derive(Default)]
pub(super) struct DockerAuths(pub(super) Map<String, Value>);

/// A field that is absent, `null` or empty has no value.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
}

impl DockerAuths {
    /// Parses a text; an empty one counts as an empty object.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        // serde's message quotes the offending text, which may be a secret.
        serde_json::from_slice(text).map(Self).map_err(|error| {
            format!(
                "it is not a JSON object (line {}, column {})",
                error.line(),
                error.column()
            )
        })
    }

    /// The helper for `host`, without `docker-credential-`: its own (`credHelpers`), which may be
    /// empty to use none, or the common one (`credsStore`).
    pub(super) fn helper(&self, host: &str) -> Result<Option<String>, String> {
        let own = self
            .0
            .get("credHelpers")
            .and_then(Value::as_object)
            .and_then(|helpers| {
                let keys = helpers.iter().filter(|(_, helper)| helper.is_string());
                let ranked = keys.filter_map(|(key, helper)| Some((rank(key, host, "")?, helper)));
                ranked.max_by_key(|(rank, _)| *rank)
            })
            .and_then(|(_, helper)| helper.as_str());
        let helper = own
            .or_else(|| self.0.get("credsStore").and_then(Value::as_str))
            .unwrap_or_default();
        if helper.contains(['/', '\\', '\0']) {
            return Err(format!("{helper:?} is not the name of a helper"));
        }
        Ok((!helper.is_empty()).then(|| helper.to_owned()))
    }

    /// The credentials in the text itself: those of the longest key that is a prefix of
    /// HOST/REPOSITORY, else those of the host. An entry without a value is skipped: docker leaves
    /// one where a helper has the credentials. `repository` is empty for a request to no
    /// repository.
    pub(super) fn login(&self, host: &str, repository: &str) -> Result<Option<Login>, String> {
        let mut ranked: Vec<_> = self
            .entries()?
            .filter_map(|(key, entry)| Some((rank(key, host, repository)?, key, entry)))
            .collect();
        ranked.sort_by(|(one, ..), (other, ..)| other.cmp(one));
        for (_, key, entry) in ranked {
            let login = login_in(entry).map_err(|reason| format!("auths.{key:?}: {reason}"))?;
            if login.is_some() {
                return Ok(login);
            }
        }
        Ok(None)
    }

    /// Whether there is an entry for some repositories of `host`.
    pub(super) fn lists_path_of(&self, host: &str) -> bool {
        let is_path = |key: &str| {
            key.split_once('/')
                .is_some_and(|(named, _)| canonical(named) == canonical(host))
        };
        let entries = self.entries().into_iter().flatten();
        entries
            .filter(|(key, _)| is_path(key))
            .any(|(_, entry)| login_in(entry).is_ok_and(|login| login.is_some()))
    }

    fn entries(&self) -> Result<impl Iterator<Item = (&String, &Value)>, String> {
        let entries = match self.0.get("auths") {
            None => Some(&self.0),
            Some(Value::Null) => None,
            Some(Value::Object(auths)) => Some(auths),
            Some(_) => return Err("auths is not an object".to_owned()),
        };
        Ok(entries.into_iter().flatten())
    }
}

/// Docker's key of a registry, which is also what helpers get.
pub(super) fn config_key(host: &str) -> String {
    match canonical(host) {
        "index.docker.io" => DOCKER_HUB_KEY.to_owned(),
        _ => host.to_owned(),
    }
}

/// Whether a key names the registry as a whole, and not a path in it.
pub(super) fn names_host(key: &str, host: &str) -> bool {
    rank(key, host, "").is_some()
}

/// How specific a key is for HOST/REPOSITORY; `None` if it names something else. Docker, crane and
/// oras drop scheme and path of a key; podman and Kubernetes take a path without a scheme as a
/// prefix of repositories, which we do as well: credentials for one path are not sent for another.
fn rank(key: &str, host: &str, repository: &str) -> Option<usize> {
    if key == config_key(host) {
        return Some(4);
    }
    if key == host {
        return Some(3);
    }
    let without_scheme = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let (named, path) = match without_scheme.unwrap_or(key).split_once('/') {
        Some((named, path)) => (named, path.trim_matches('/')),
        None => (without_scheme.unwrap_or(key), ""),
    };
    if canonical(named) != canonical(host) {
        return None;
    }
    if without_scheme.is_some() {
        return Some(1);
    }
    // The versions of the registry API, not repositories.
    if matches!(path, "" | "v1" | "v2") {
        return Some(2);
    }
    let rest = repository.strip_prefix(path)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(SCOPED + path.len())
}

/// Docker Hub has several names.
fn canonical(host: &str) -> &str {
    if is_docker_hub(host) {
        "index.docker.io"
    } else {
        host
    }
}

fn login_in(entry: &Value) -> Result<Option<Login>, String> {
    if entry.is_null() {
        return Ok(None);
    }
    let malformed = |_| "the entry can't be parsed".to_owned();
    let entry = Entry::deserialize(entry).map_err(malformed)?;
    if let Some(token) = filled(entry.registry_token) {
        return Ok(Some(Login::RegistryToken(token)));
    }
    let pair = match filled(entry.auth) {
        Some(auth) => Some(user_and_password(&auth)),
        None => filled(entry.username)
            .map(|username| Ok((username, entry.password.unwrap_or_default()))),
    };
    if let Some(token) = filled(entry.identity_token) {
        // ACR: docker writes a user name without a password beside it.
        let (username, password) = pair.and_then(Result::ok).unwrap_or_default();
        return Ok(Some(Login::IdentityToken {
            token,
            username,
            password,
        }));
    }
    let login = |(username, password)| Login::Password { username, password };
    pair.transpose().map(|pair| pair.map(login))
}

/// `auth`: USER:PASSWORD in base64.
fn user_and_password(auth: &str) -> Result<(String, String), String> {
    let malformed = || "auth is not base64 of USER:PASSWORD".to_owned();
    let auth: String = auth.split_ascii_whitespace().collect();
    let pair = BASE64.decode(auth).map_err(|_| malformed())?;
    let pair = String::from_utf8(pair).map_err(|_| malformed())?;
    let (username, password) = pair.split_once(':').ok_or_else(malformed)?;
    // As docker does.
    let password = password.trim_matches('\0').to_owned();
    Ok((username.to_owned(), password))
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(..)")
    }
}

impl std::fmt::Debug for DockerAuths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DockerAuths(..)")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn auths(config: &Value) -> DockerAuths {
        DockerAuths::parse(config.to_string().as_bytes()).unwrap()
    }

    /// The user name that is found for a repository, with these keys in `auths`.
    fn user(keys: &[&str], host: &str, repository: &str) -> Option<String> {
        let entries: Map<_, _> = keys
            .iter()
            .map(|key| {
                (
                    (*key).to_owned(),
                    json!({ "username": key, "password": "p" }),
                )
            })
            .collect();
        match auths(&json!({ "auths": entries })).login(host, repository) {
            Ok(Some(Login::Password { username, .. })) => Some(username),
            Ok(None) => None,
            other => panic!("{other:?}"),
        }
    }

    fn password(username: &str, password: &str) -> Option<Login> {
        Some(Login::Password {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }

    #[test]
    fn every_spelling_of_a_host_is_found() {
        for key in [
            "r.io:5000",
            "r.io:5000/",
            "https://r.io:5000",
            "https://r.io:5000/",
            "https://r.io:5000/v1/",
            "https://r.io:5000/v2/",
            "http://r.io:5000",
            "r.io:5000/v1/",
            "r.io:5000/v2",
            "https://r.io:5000/any/path",
        ] {
            assert_eq!(user(&[key], "r.io:5000", "a/b").as_deref(), Some(key));
        }
        for key in [
            "r.io",
            "r.io:50000",
            "https://r.io",
            "xr.io:5000",
            "",
            "/",
            "https://",
        ] {
            assert_eq!(user(&[key], "r.io:5000", "a/b"), None, "{key}");
        }
    }

    #[test]
    fn docker_hub_has_one_key_under_all_its_names() {
        for host in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            for key in [
                "https://index.docker.io/v1/",
                "docker.io",
                "index.docker.io",
                "https://registry-1.docker.io/v2/",
                "docker.io/library",
            ] {
                assert_eq!(user(&[key], host, "library/x").as_deref(), Some(key));
            }
        }
        let both = ["docker.io", "https://index.docker.io/v1/"];
        assert_eq!(user(&both, "docker.io", "a").as_deref(), Some(both[1]));
    }

    #[test]
    fn the_longest_path_before_a_repository_wins_and_no_other_path_counts() {
        let keys = ["r.io", "r.io/acme", "r.io/acme/authz", "https://r.io/v1/"];
        for (repository, key) in [
            ("acme/authz", "r.io/acme/authz"),
            ("acme/authz/deep", "r.io/acme/authz"),
            ("acme/authzx", "r.io/acme"),
            ("acme", "r.io/acme"),
            ("acmex", "r.io"),
            ("other", "r.io"),
            ("", "r.io"),
        ] {
            assert_eq!(user(&keys, "r.io", repository).as_deref(), Some(key));
        }
        assert_eq!(user(&["r.io/acme"], "r.io", "other"), None);
        assert_eq!(
            user(&["r.io/acme/"], "r.io", "acme/x").as_deref(),
            Some("r.io/acme/")
        );
    }

    #[test]
    fn an_entry_without_a_value_is_skipped() {
        for empty in [
            json!(null),
            json!({}),
            json!({ "auth": null }),
            json!({ "auth": "", "username": null, "identitytoken": "" }),
            json!({ "email": "a@b" }),
        ] {
            let config = json!({ "auths": { "r.io": empty, "https://r.io": { "auth": "YTpi" } } });
            assert_eq!(
                auths(&config).login("r.io", ""),
                Ok(password("a", "b")),
                "{empty}"
            );
            let config = json!({ "auths": { "r.io": empty } });
            assert_eq!(auths(&config).login("r.io", ""), Ok(None), "{empty}");
        }
        assert_eq!(auths(&json!({ "auths": null })).login("r.io", ""), Ok(None));
    }

    #[test]
    fn every_kind_of_entry_is_read() {
        for (entry, login) in [
            (
                json!({ "auth": "bWU6cGFzczp3b3Jk" }),
                password("me", "pass:word"),
            ),
            (
                json!({ "auth": " bWU6\ncGFzcw==\n" }),
                password("me", "pass"),
            ),
            (json!({ "auth": "bWU6cGFzcw" }), password("me", "pass")),
            (
                json!({ "username": "hub", "password": "pw" }),
                password("hub", "pw"),
            ),
            (
                json!({ "auth": "MDAwMDo=", "identitytoken": "id" }),
                Some(Login::IdentityToken {
                    token: "id".to_owned(),
                    username: "0000".to_owned(),
                    password: String::new(),
                }),
            ),
            (
                json!({ "registrytoken": "tok", "auth": "YTpi" }),
                Some(Login::RegistryToken("tok".to_owned())),
            ),
        ] {
            let config = json!({ "auths": { "r.io": entry } });
            assert_eq!(auths(&config).login("r.io", ""), Ok(login), "{entry}");
            // The older `.dockercfg`.
            let config = json!({ "r.io": entry });
            assert!(
                auths(&config)
                    .login("r.io", "")
                    .is_ok_and(|login| login.is_some())
            );
        }
    }

    #[test]
    fn a_malformed_entry_is_an_error_without_its_text_and_not_anonymous() {
        for entry in [
            json!({ "auth": "s3cret" }),
            json!({ "auth": "czNjcmV0" }),
            json!({ "auth": 5 }),
            json!(["s3cret"]),
            json!("s3cret"),
        ] {
            let config = json!({ "auths": { "r.io": entry, "other.io": { "auth": "YTpi" } } });
            let error = auths(&config).login("r.io", "").unwrap_err();
            assert!(
                !error.contains("s3cret") && error.contains("r.io"),
                "{error}"
            );
            assert_eq!(auths(&config).login("other.io", ""), Ok(password("a", "b")));
        }
        let error = DockerAuths::parse(br#"{"auths": {"r.io": {"auth": s3cret}}}"#).unwrap_err();
        assert!(
            error.contains("line 1") && !error.contains("s3cret"),
            "{error}"
        );
    }

    #[test]
    fn the_helper_of_a_host_comes_before_the_common_one_and_may_be_none() {
        let config = auths(&json!({
            "credsStore": "common",
            "credHelpers": { "r.io": "own", "https://s.io": "url", "none.io": "", "t.io/x": "no" },
        }));
        for (host, helper) in [
            ("r.io", Some("own")),
            ("s.io", Some("url")),
            ("none.io", None),
            ("t.io", Some("common")),
            ("docker.io", Some("common")),
        ] {
            assert_eq!(config.helper(host), Ok(helper.map(str::to_owned)), "{host}");
        }
        assert!(
            auths(&json!({ "credsStore": "../../evil" }))
                .helper("r.io")
                .is_err()
        );
        assert_eq!(auths(&json!({})).helper("r.io"), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(key in "\\PC{0,30}", auth in "\\PC{0,30}", repository in "\\PC{0,20}") {
            let config = auths(&json!({ "auths": { key: { "auth": auth } } }));
            let _ = config.login("r.io", &repository);
        }
    }
}
