//! Docker's `config.json` and its credential helpers (docker/cli, `cli/config`), read and written
//! as docker does.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command, task::spawn_blocking, time::timeout};

use crate::oci::read_regular;

/// A longer file is not read.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// How long a helper may take: some ask their user to unlock a key ring.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
/// The key of Docker Hub, whatever its host is called.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which a helper marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// One `config.json`, which may be missing.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    file: PathBuf,
}

/// The stored credentials of a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum DockerLogin {
    Password { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

/// Why credentials can't be read or stored. Contains no secret.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// The operating system reports an error.
    #[error("{operation} {}: {source}", file.display())]
    Io {
        /// The operation.
        operation: &'static str,
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a docker configuration.
    #[error("{} is not docker's configuration: {reason}; correct or remove it", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The helper can't be run, or failed.
    #[error("docker-credential-{helper} {verb}: {reason}; correct credsStore or credHelpers in {}", file.display())]
    Helper {
        /// Its name without `docker-credential-`.
        helper: String,
        /// `get`, `store` or `erase`.
        verb: &'static str,
        /// How it failed.
        reason: String,
        /// The file that names it.
        file: PathBuf,
    },
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
    #[serde(rename = "registrytoken")]
    registry_token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl DockerConfig {
    /// The configuration in `file`, which is read at every use.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into() }
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The credentials for `host`: from its own helper or the common one, else from the file.
    pub(super) async fn find(&self, host: &str) -> Result<Option<DockerLogin>, DockerConfigError> {
        let config = self.read().await?;
        if let Some(helper) = self.helper(&config, host)?
            && let Some(login) = self.ask_helper(&helper, host).await?
        {
            return Ok(Some(login));
        }
        self.login_in_file(&config, host)
    }

    /// Stores a user name and password with the helper where one is configured, else in the file,
    /// which only its owner may read.
    ///
    /// # Errors
    /// When the helper or the disk fails; the file is then unchanged.
    pub async fn store(
        &self,
        host: &str,
        username: &str,
        password: &str,
    ) -> Result<StoredIn, DockerConfigError> {
        let config = self.read().await?;
        let (host_key, helper) = (config_key(host), self.helper(&config, host)?);
        if let Some(helper) = helper {
            let input = json!({ "ServerURL": host_key, "Username": username, "Secret": password })
                .to_string();
            self.run_helper(&helper, "store", &input).await?;
            // As docker does: an entry without a secret marks the registry as logged in.
            self.update_auths(move |auths| auths.insert(host_key, json!({})).is_none())
                .await?;
            return Ok(StoredIn::Helper(helper));
        }
        let auth = STANDARD.encode(format!("{username}:{password}"));
        self.update_auths(move |auths| {
            auths.insert(host_key, json!({ "auth": auth }));
            true
        })
        .await?;
        Ok(StoredIn::File(self.file.clone()))
    }

    /// Removes the stored credentials. Returns `false` where there are none.
    ///
    /// # Errors
    /// When the helper or the disk fails.
    pub async fn erase(&self, host: &str) -> Result<bool, DockerConfigError> {
        let config = self.read().await?;
        let mut erased = false;
        if let Some(helper) = self.helper(&config, host)?
            && self.ask_helper(&helper, host).await?.is_some()
        {
            self.run_helper(&helper, "erase", &config_key(host)).await?;
            erased = true;
        }
        let names = config_keys(host);
        let dropped = self.update_auths(move |auths| {
            names
                .iter()
                .filter(|name| auths.remove(*name).is_some())
                .count()
                > 0
        });
        Ok(dropped.await? || erased)
    }

    async fn read(&self) -> Result<Map<String, Value>, DockerConfigError> {
        let this = self.clone();
        blocking(move || this.read_now()).await
    }

    fn read_now(&self) -> Result<Map<String, Value>, DockerConfigError> {
        match read_regular(&self.file, MAX_CONFIG_BYTES) {
            Ok(text) => self.parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Map::new()),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(self.malformed("it is too long".to_owned()))
            }
            Err(source) => Err(self.io("read", source)),
        }
    }

    fn parse(&self, text: &[u8]) -> Result<Map<String, Value>, DockerConfigError> {
        if text.trim_ascii().is_empty() {
            return Ok(Map::new());
        }
        // serde's message quotes the offending text, which may be a secret.
        serde_json::from_slice(text).map_err(|error| {
            self.malformed(format!(
                "it is not a JSON object (line {}, column {})",
                error.line(),
                error.column()
            ))
        })
    }

    /// The helper that the text of a file names for `host`, and the login in the text itself.
    #[cfg(fuzzing)]
    pub(super) fn parse_login(
        &self,
        text: &[u8],
        host: &str,
    ) -> Result<(Option<String>, Option<DockerLogin>), DockerConfigError> {
        let config = self.parse(text)?;
        Ok((
            self.helper(&config, host)?,
            self.login_in_file(&config, host)?,
        ))
    }

    fn helper(
        &self,
        config: &Map<String, Value>,
        host: &str,
    ) -> Result<Option<String>, DockerConfigError> {
        let own = config.get("credHelpers").and_then(|helpers| {
            config_keys(host)
                .iter()
                .find_map(|name| helpers.get(name))
                .and_then(Value::as_str)
        });
        let helper = own
            .or_else(|| config.get("credsStore").and_then(Value::as_str))
            .unwrap_or_default();
        if helper.contains(['/', '\\', '\0']) {
            return Err(self.malformed(format!("{helper:?} is not the name of a helper")));
        }
        Ok((!helper.is_empty()).then(|| helper.to_owned()))
    }

    fn login_in_file(
        &self,
        config: &Map<String, Value>,
        host: &str,
    ) -> Result<Option<DockerLogin>, DockerConfigError> {
        let auths = config.get("auths").and_then(Value::as_object);
        let Some(entry) =
            auths.and_then(|auths| config_keys(host).iter().find_map(|name| auths.get(name)))
        else {
            return Ok(None);
        };
        let malformed = || self.malformed(format!("the entry of {host} can't be parsed"));
        let entry = Entry::deserialize(entry).map_err(|_| malformed())?;
        if !entry.registry_token.is_empty() {
            return Ok(Some(DockerLogin::RegistryToken(entry.registry_token)));
        }
        if !entry.identity_token.is_empty() {
            return Ok(Some(DockerLogin::IdentityToken(entry.identity_token)));
        }
        if entry.auth.is_empty() {
            let Entry {
                username, password, ..
            } = entry;
            return Ok(
                (!username.is_empty()).then_some(DockerLogin::Password { username, password })
            );
        }
        let pair = STANDARD
            .decode(entry.auth.trim())
            .ok()
            .and_then(|pair| String::from_utf8(pair).ok());
        let pair = pair.ok_or_else(malformed)?;
        let (username, password) = pair.split_once(':').ok_or_else(malformed)?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(DockerLogin::Password {
            username: username.to_owned(),
            password,
        }))
    }

    async fn ask_helper(
        &self,
        helper: &str,
        host: &str,
    ) -> Result<Option<DockerLogin>, DockerConfigError> {
        let answer = match self.run_helper(helper, "get", &config_key(host)).await {
            Ok(answer) => answer,
            // By this text helpers report that they have no credentials.
            Err(DockerConfigError::Helper { reason, .. })
                if reason.contains("credentials not found") =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        Self::parse_helper_answer(&answer).map_err(|_| {
            self.helper_failed(
                helper,
                "get",
                "its answer is not JSON with credentials".to_owned(),
            )
        })
    }

    /// The login in the answer of a helper.
    pub(super) fn parse_helper_answer(
        answer: &[u8],
    ) -> Result<Option<DockerLogin>, serde_json::Error> {
        let answer: HelperAnswer = serde_json::from_slice(answer)?;
        if answer.secret.is_empty() && answer.username.is_empty() {
            return Ok(None);
        }
        Ok(Some(match answer.username.as_str() {
            TOKEN_USER => DockerLogin::IdentityToken(answer.secret),
            _ => DockerLogin::Password {
                username: answer.username,
                password: answer.secret,
            },
        }))
    }

    /// Runs a helper. Secrets go through the pipe, not through the arguments, which every user of
    /// the machine can read.
    async fn run_helper(
        &self,
        helper: &str,
        verb: &'static str,
        input: &str,
    ) -> Result<Vec<u8>, DockerConfigError> {
        let failed = |reason: String| self.helper_failed(helper, verb, reason);
        let mut child = Command::new(format!("docker-credential-{helper}"))
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let mut stdin = child.stdin.take();
        let exchange = async {
            if let Some(mut stdin) = stdin.take() {
                // A helper that does not read its input explains why on stdout.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = timeout(HELPER_TIMEOUT, exchange)
            .await
            .map_err(|_| failed("no answer".to_owned()))?;
        let output = output.map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        // Helpers print their errors on stdout.
        let message = String::from_utf8_lossy(&output.stdout);
        let message: String = message
            .trim()
            .chars()
            .filter(|shown| !shown.is_control())
            .take(200)
            .collect();
        Err(failed(if message.is_empty() {
            output.status.to_string()
        } else {
            message
        }))
    }

    /// Applies `change` to `auths`, and replaces the file if it returns `true`: atomically, with
    /// mode 0600. Everything else in the file is kept.
    async fn update_auths(
        &self,
        change: impl FnOnce(&mut Map<String, Value>) -> bool + Send + 'static,
    ) -> Result<bool, DockerConfigError> {
        let this = self.clone();
        blocking(move || {
            let mut config = this.read_now()?;
            let auths = config.entry("auths").or_insert_with(|| json!({}));
            let auths = auths
                .as_object_mut()
                .ok_or_else(|| this.malformed("auths is not an object".to_owned()))?;
            if !change(auths) {
                return Ok(false);
            }
            this.replace(&Value::Object(config))?;
            Ok(true)
        })
        .await
    }

    fn replace(&self, config: &Value) -> Result<(), DockerConfigError> {
        let failed = |source| self.io("write", source);
        // A symbolic link is kept: the file may be managed elsewhere.
        let file = fs::canonicalize(&self.file).unwrap_or_else(|_| self.file.clone());
        let folder = file
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or_else(|| Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        // tempfile creates files with mode 0600.
        let mut temporary = tempfile::Builder::new()
            .prefix(".config.json-")
            .tempfile_in(folder)
            .map_err(failed)?;
        // Docker indents by tabs.
        let mut text = Vec::new();
        let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        serde::Serialize::serialize(
            config,
            &mut serde_json::Serializer::with_formatter(&mut text, tabs),
        )
        .map_err(|error| failed(error.into()))?;
        temporary.write_all(&text).map_err(failed)?;
        temporary.as_file().sync_all().map_err(failed)?;
        temporary
            .persist(&file)
            .map(drop)
            .map_err(|error| failed(error.error))
    }

    fn io(&self, operation: &'static str, source: io::Error) -> DockerConfigError {
        DockerConfigError::Io {
            operation,
            file: self.file.clone(),
            source,
        }
    }

    fn malformed(&self, reason: String) -> DockerConfigError {
        DockerConfigError::Malformed {
            file: self.file.clone(),
            reason,
        }
    }

    fn helper_failed(&self, helper: &str, verb: &'static str, reason: String) -> DockerConfigError {
        DockerConfigError::Helper {
            helper: helper.to_owned(),
            verb,
            reason,
            file: self.file.clone(),
        }
    }
}

/// Where credentials are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredIn {
    /// With `docker-credential-<name>`.
    Helper(String),
    /// In the configuration file, in plain text.
    File(PathBuf),
}

impl std::fmt::Debug for DockerLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DockerLogin(..)")
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DockerConfigError> + Send + 'static,
) -> Result<T, DockerConfigError> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}

/// Docker's key of a registry.
fn config_key(host: &str) -> String {
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB_KEY.to_owned(),
        _ => host.to_owned(),
    }
}

/// The keys that docker and older tools use for a registry.
fn config_keys(host: &str) -> Vec<String> {
    let mut names = vec![config_key(host), host.to_owned()];
    for scheme in ["https", "http"] {
        for path in ["", "/", "/v1/", "/v2/"] {
            names.push(format!("{scheme}://{host}{path}"));
        }
    }
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    struct ConfigFolder {
        folder: tempfile::TempDir,
    }

    impl ConfigFolder {
        fn holding(config: &Value) -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            Self { folder }
        }

        fn config(&self) -> DockerConfig {
            DockerConfig::new(self.folder.path().join("config.json"))
        }
    }

    fn password(username: &str, password: &str) -> Option<DockerLogin> {
        Some(DockerLogin::Password {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }

    #[tokio::test]
    async fn entries_are_found_under_every_key() {
        let folder = ConfigFolder::holding(&json!({ "auths": {
            "ghcr.io": { "auth": STANDARD.encode("me:pass:word") },
            "https://index.docker.io/v1/": { "username": "hub", "password": "pw" },
            "https://quay.io/v2/": { "auth": STANDARD.encode("q:r") },
            "acr.example": { "auth": STANDARD.encode("0000:"), "identitytoken": "id" },
            "reg.example:5000": { "registrytoken": "tok" },
            "empty.example": {},
        }}));
        let config = folder.config();
        assert_eq!(
            config.find("ghcr.io").await.unwrap(),
            password("me", "pass:word")
        );
        assert_eq!(
            config.find("docker.io").await.unwrap(),
            password("hub", "pw")
        );
        assert_eq!(config.find("quay.io").await.unwrap(), password("q", "r"));
        assert_eq!(
            config.find("acr.example").await.unwrap(),
            Some(DockerLogin::IdentityToken("id".into()))
        );
        assert_eq!(
            config.find("reg.example:5000").await.unwrap(),
            Some(DockerLogin::RegistryToken("tok".into()))
        );
        assert_eq!(config.find("reg.example").await.unwrap(), None);
        assert_eq!(config.find("empty.example").await.unwrap(), None);
    }

    #[tokio::test]
    async fn store_keeps_the_rest_of_the_file_and_sets_mode_0600() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = ConfigFolder::holding(
            &json!({ "psFormat": "x", "auths": { "a.example": { "auth": "YTpi" } } }),
        );
        let config = folder.config();
        config.store("b.example", "me", "secret").await.unwrap();
        assert_eq!(
            config.find("b.example").await.unwrap(),
            password("me", "secret")
        );
        assert_eq!(config.find("a.example").await.unwrap(), password("a", "b"));
        let text = fs::read_to_string(config.file()).unwrap();
        assert!(
            text.contains("psFormat") && text.starts_with("{\n\t"),
            "{text}"
        );
        assert_eq!(
            fs::metadata(config.file()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs::read_dir(folder.folder.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );
        assert!(config.erase("b.example").await.unwrap());
        assert!(!config.erase("b.example").await.unwrap());
        assert_eq!(config.find("b.example").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_missing_file_is_empty_and_the_error_of_a_malformed_one_has_no_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let config = DockerConfig::new(folder.path().join("new/config.json"));
        assert_eq!(config.find("a.example").await.unwrap(), None);
        config.store("a.example", "me", "pw").await.unwrap();
        assert_eq!(
            config.find("a.example").await.unwrap(),
            password("me", "pw")
        );
        fs::write(
            config.file(),
            r#"{"auths": {"a.example": {"auth": s3cret}}}"#,
        )
        .unwrap();
        let error = config.find("a.example").await.unwrap_err().to_string();
        assert!(
            error.contains("line 1") && !error.contains("s3cret"),
            "{error}"
        );
        fs::write(
            config.file(),
            r#"{"auths": {"a.example": {"auth": "s3cret"}}}"#,
        )
        .unwrap();
        let error = config.find("a.example").await.unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[tokio::test]
    async fn a_helper_name_with_a_path_is_refused() {
        let folder = ConfigFolder::holding(&json!({ "credsStore": "../../evil" }));
        assert!(matches!(
            folder.config().find("a.example").await,
            Err(DockerConfigError::Malformed { .. })
        ));
    }
}
