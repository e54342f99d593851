//! Docker's `config.json` (docker/cli, `cli/config`), read and written as docker does, and the other
//! places where tools store credentials in its format.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    credential_helper::{Helper, HelperCache, HelperError},
    docker_auths::{DockerAuths, Login, config_key, names_host},
};
use crate::oci::read_regular;

/// A longer file is not read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// How long a helper may take by default.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// A file that can't be parsed may be half written, and is read again after a moment.
const PARSE_ATTEMPTS: usize = 3;
const PARSE_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The variable with a whole configuration (docker CLI 27, GitLab).
const ENVIRONMENT: &str = "DOCKER_AUTH_CONFIG";

/// One or several docker configurations, which are read at every use. Files that are missing count
/// as empty.
#[derive(Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// The text of `DOCKER_AUTH_CONFIG`; comes before the files.
    environment: Option<String>,
    /// In the order in which they are searched.
    files: Vec<PathBuf>,
    /// Where helpers are looked up, instead of `PATH`.
    search_path: Option<OsString>,
    helper_timeout: Duration,
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
    /// No configuration has credentials for the registry.
    #[error("no credentials for {host} in {searched}; log in with `docker login {host}`")]
    NotListed {
        /// The registry.
        host: String,
        /// The places that were searched.
        searched: String,
    },
    /// The helper can't be run, or failed.
    #[error("{source}; correct credsStore or credHelpers in {}", file.display())]
    Helper {
        /// How it failed.
        source: HelperError,
        /// The file that names it.
        file: PathBuf,
    },
}

impl DockerConfig {
    /// The configuration in `file`.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            environment: None,
            files: vec![file.into()],
            search_path: None,
            helper_timeout: HELPER_TIMEOUT,
        }
    }

    /// The default configurations, in this order; the first with credentials for a registry is
    /// used:
    ///
    /// 1. the text in `DOCKER_AUTH_CONFIG`,
    /// 2. `config.json` in `DOCKER_CONFIG`, or without this variable in `~/.docker`,
    /// 3. podman's: `REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json`,
    ///    `$XDG_CONFIG_HOME/containers/auth.json` or `~/.config/containers/auth.json`.
    ///
    /// `variable` reads the environment.
    pub fn default_locations(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let filled = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| filled(name).map(PathBuf::from);
        let home = |folder: &str| path("HOME").map(|home| home.join(folder));
        let docker = path("DOCKER_CONFIG").or_else(|| home(".docker"));
        let configuration = path("XDG_CONFIG_HOME").or_else(|| home(".config"));
        let files = [
            docker.map(|folder| folder.join("config.json")),
            path("REGISTRY_AUTH_FILE"),
            path("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
            configuration.map(|folder| folder.join("containers/auth.json")),
        ];
        Self {
            // Invalid UTF-8 is not JSON, which is told where the text is used.
            environment: filled(ENVIRONMENT).map(|text| text.to_string_lossy().into_owned()),
            files: files.into_iter().flatten().collect(),
            search_path: None,
            helper_timeout: HELPER_TIMEOUT,
        }
    }

    /// The files, in the order in which they are searched. Some may be missing.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(PathBuf::as_path)
    }

    /// The time in which a helper must answer, instead of 10 seconds. Then it is killed.
    #[must_use]
    pub fn with_helper_timeout(self, helper_timeout: Duration) -> Self {
        Self {
            helper_timeout,
            ..self
        }
    }

    /// Looks helpers up in these folders, instead of those in this process's `PATH`.
    #[must_use]
    pub fn with_helpers_in(self, search_path: impl Into<OsString>) -> Self {
        Self {
            search_path: Some(search_path.into()),
            ..self
        }
    }

    /// The credentials for a repository of `host`, which is empty for a request to none: from the
    /// first configuration that has any. In each, the helper comes before the entries. `refused`
    /// are credentials that the registry does not accept any more.
    pub(super) async fn find(
        &self,
        host: &str,
        repository: &str,
        helpers: &HelperCache,
        refused: Option<&Login>,
    ) -> Result<Option<Login>, DockerConfigError> {
        for source in self.sources() {
            let (helper, written) = source.lookup(host, repository).await?;
            if let Some(name) = helper {
                let (helper, server) = (self.helper(name), config_key(host));
                let answer = helpers.get(&helper, &server, refused).await;
                let login = answer.map_err(|error| source.helper_failed(error))?;
                if login.is_some() {
                    return Ok(login);
                }
            }
            if let Some(login) = written.map_err(|reason| source.malformed(reason))? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// Checks, without running a helper, that the configuration can be read and that it has an
    /// entry or a helper for `host`. Blocks.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(&self, host: &str) -> Result<(), DockerConfigError> {
        for source in self.sources() {
            let auths = source.read_now()?;
            let malformed = |reason| source.malformed(reason);
            if let Some(helper) = auths.helper(host).map_err(malformed)? {
                let found = self.helper(helper).find_program();
                return found.map_err(|error| source.helper_failed(error));
            }
            if auths.login(host, "").map_err(malformed)?.is_some() || auths.lists_path_of(host) {
                return Ok(());
            }
        }
        Err(DockerConfigError::NotListed {
            host: host.to_owned(),
            searched: self.to_string(),
        })
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
        let source = self.writable()?;
        let host_key = config_key(host);
        if let Some(helper) = source.lookup(host, "").await?.0 {
            let input = json!({ "ServerURL": host_key, "Username": username, "Secret": password })
                .to_string();
            let stored = self.helper(helper.clone());
            let stored = stored.change("store", &input).await;
            stored.map_err(|error| source.helper_failed(error))?;
            // As docker does: an entry without a secret marks the registry as logged in.
            source
                .update_auths(move |auths| auths.insert(host_key, json!({})).is_none())
                .await?;
            return Ok(StoredIn::Helper(helper));
        }
        let auth = STANDARD.encode(format!("{username}:{password}"));
        source
            .update_auths(move |auths| {
                auths.insert(host_key, json!({ "auth": auth }));
                true
            })
            .await?;
        Ok(StoredIn::File(source.name))
    }

    /// Removes the stored credentials. Returns `false` where there are none.
    ///
    /// # Errors
    /// When the helper or the disk fails.
    pub async fn erase(&self, host: &str) -> Result<bool, DockerConfigError> {
        let source = self.writable()?;
        let mut erased = false;
        if let Some(name) = source.lookup(host, "").await?.0 {
            let (helper, server) = (self.helper(name), config_key(host));
            let failed = |error| source.helper_failed(error);
            if helper.get(&server).await.map_err(failed)?.is_some() {
                helper.change("erase", &server).await.map_err(failed)?;
                erased = true;
            }
        }
        let host = host.to_owned();
        let dropped = source.update_auths(move |auths| {
            let before = auths.len();
            auths.retain(|key, _| !names_host(key, &host));
            auths.len() < before
        });
        Ok(dropped.await? || erased)
    }

    fn sources(&self) -> impl Iterator<Item = DockerConfigText> {
        let environment = self.environment.iter().map(|text| DockerConfigText {
            name: PathBuf::from(ENVIRONMENT),
            text: Some(text.clone()),
        });
        let files = self.files.iter().map(|file| DockerConfigText {
            name: file.clone(),
            text: None,
        });
        environment.chain(files)
    }

    /// The file to which credentials are written.
    fn writable(&self) -> Result<DockerConfigText, DockerConfigError> {
        let file = self.files.first().ok_or_else(|| DockerConfigError::Io {
            operation: "write",
            file: PathBuf::from("~/.docker/config.json"),
            source: io::Error::new(io::ErrorKind::NotFound, "no home folder (HOME is unset)"),
        })?;
        Ok(DockerConfigText {
            name: file.clone(),
            text: None,
        })
    }

    fn helper(&self, name: String) -> Helper {
        Helper {
            name,
            search_path: self.search_path.clone(),
            deadline: self.helper_timeout,
        }
    }
}

/// One configuration: a file, or the text of a variable.
#[derive(Clone)]
struct DockerConfigText {
    /// The path, or the name of the variable.
    name: PathBuf,
    /// The text of the variable.
    text: Option<String>,
}

/// The helper for a registry, and the credentials in the text.
type Lookup = (Option<String>, Result<Option<Login>, String>);

impl DockerConfigText {
    async fn lookup(&self, host: &str, repository: &str) -> Result<Lookup, DockerConfigError> {
        let auths = self.read().await?;
        let helper = auths
            .helper(host)
            .map_err(|reason| self.malformed(reason))?;
        Ok((helper, auths.login(host, repository)))
    }

    async fn read(&self) -> Result<DockerAuths, DockerConfigError> {
        let mut attempt = 1;
        loop {
            let this = self.clone();
            match blocking(move || this.read_now()).await {
                Err(DockerConfigError::Malformed { .. }) if attempt < PARSE_ATTEMPTS => {
                    attempt += 1;
                    sleep(PARSE_RETRY_DELAY).await;
                }
                read => return read,
            }
        }
    }

    fn read_now(&self) -> Result<DockerAuths, DockerConfigError> {
        let parse = |text: &[u8]| DockerAuths::parse(text).map_err(|reason| self.malformed(reason));
        if let Some(text) = &self.text {
            return parse(text.as_bytes());
        }
        match read_regular(&self.name, MAX_CONFIG_BYTES) {
            Ok(text) => parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DockerAuths::default()),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(self.malformed("it is too long".to_owned()))
            }
            Err(source) => Err(self.io("read", source)),
        }
    }

    /// Applies `change` to `auths`, and replaces the file if it returns `true`: atomically, with
    /// mode 0600. Everything else in the file is kept.
    async fn update_auths(
        &self,
        change: impl FnOnce(&mut Map<String, Value>) -> bool + Send + 'static,
    ) -> Result<bool, DockerConfigError> {
        let this = self.clone();
        blocking(move || {
            let DockerAuths(mut config) = this.read_now()?;
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
        let file = fs::canonicalize(&self.name).unwrap_or_else(|_| self.name.clone());
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
            file: self.name.clone(),
            source,
        }
    }

    fn malformed(&self, reason: String) -> DockerConfigError {
        DockerConfigError::Malformed {
            file: self.name.clone(),
            reason,
        }
    }

    fn helper_failed(&self, source: HelperError) -> DockerConfigError {
        DockerConfigError::Helper {
            source,
            file: self.name.clone(),
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

/// The places that are searched.
impl std::fmt::Display for DockerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self
            .sources()
            .map(|source| source.name.display().to_string())
            .collect();
        f.write_str(&names.join(", "))
    }
}

impl std::fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DockerConfig({self})")
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
            DockerConfig::new(self.file())
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join("config.json")
        }
    }

    async fn find(config: &DockerConfig, host: &str) -> Result<Option<Login>, DockerConfigError> {
        config
            .find(host, "acme/authz", &HelperCache::default(), None)
            .await
    }

    fn password(username: &str, password: &str) -> Option<Login> {
        Some(Login::Password {
            username: username.to_owned(),
            password: password.to_owned(),
        })
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
            find(&config, "b.example").await.unwrap(),
            password("me", "secret")
        );
        assert_eq!(
            find(&config, "a.example").await.unwrap(),
            password("a", "b")
        );
        let text = fs::read_to_string(folder.file()).unwrap();
        assert!(
            text.contains("psFormat") && text.starts_with("{\n\t"),
            "{text}"
        );
        let mode = fs::metadata(folder.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = fs::read_dir(folder.folder.path()).unwrap().count();
        assert_eq!(files, 1, "no temporary file stays");
        assert!(config.erase("b.example").await.unwrap());
        assert!(!config.erase("b.example").await.unwrap());
        assert_eq!(find(&config, "b.example").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_missing_file_is_empty_and_the_error_of_a_malformed_one_has_no_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/config.json");
        let config = DockerConfig::new(&file);
        assert_eq!(find(&config, "a.example").await.unwrap(), None);
        config.store("a.example", "me", "pw").await.unwrap();
        assert_eq!(
            find(&config, "a.example").await.unwrap(),
            password("me", "pw")
        );
        for text in [
            r#"{"auths": {"a.example": {"auth": s3cret}}}"#,
            r#"{"auths": {"a.example": {"auth": "s3cret"}}}"#,
        ] {
            fs::write(&file, text).unwrap();
            let error = find(&config, "a.example").await.unwrap_err().to_string();
            assert!(
                error.contains("new/config.json") && !error.contains("s3cret"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_file_that_is_half_written_is_read_again() {
        let folder = ConfigFolder::holding(&json!({}));
        fs::write(folder.file(), r#"{"auths": {"a.ex"#).unwrap();
        let config = folder.config();
        let found = find(&config, "a.example");
        let rest = async {
            sleep(PARSE_RETRY_DELAY / 2).await;
            let whole = json!({ "auths": { "a.example": { "auth": "YTpi" } } }).to_string();
            fs::write(folder.file(), whole).unwrap();
        };
        let (found, ()) = tokio::join!(found, rest);
        assert_eq!(found.unwrap(), password("a", "b"));
    }

    #[tokio::test]
    async fn a_helper_name_with_a_path_is_refused() {
        let folder = ConfigFolder::holding(&json!({ "credsStore": "../../evil" }));
        assert!(matches!(
            find(&folder.config(), "a.example").await,
            Err(DockerConfigError::Malformed { .. })
        ));
    }

    /// The order of docker, and then of podman.
    #[tokio::test]
    async fn default_locations_are_searched_in_order_until_one_has_credentials() {
        let home = tempfile::tempdir().unwrap();
        let entry = |name: &str| {
            json!({ "auths": { "a.example": { "username": name, "password": "p" } } }).to_string()
        };
        let files = [
            "docker/config.json",
            "auth.json",
            "run/containers/auth.json",
            ".config/containers/auth.json",
            ".docker/config.json",
        ];
        for file in files {
            let path = home.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, entry(file)).unwrap();
        }
        let path = |name: &str| Some(home.path().join(name).into_os_string());
        let environment = entry("environment");
        let all = |name: &str| match name {
            "DOCKER_AUTH_CONFIG" => Some(environment.clone().into()),
            "DOCKER_CONFIG" => path("docker"),
            "REGISTRY_AUTH_FILE" => path("auth.json"),
            "XDG_RUNTIME_DIR" => path("run"),
            "HOME" => path(""),
            _ => None,
        };
        let config = DockerConfig::default_locations(all);
        assert_eq!(
            find(&config, "a.example").await.unwrap(),
            password("environment", "p")
        );
        let without = |name: &str| (name != "DOCKER_AUTH_CONFIG").then(|| all(name)).flatten();
        let config = DockerConfig::default_locations(without);
        for file in &files[..4] {
            assert_eq!(
                find(&config, "a.example").await.unwrap(),
                password(file, "p")
            );
            config.check("a.example").unwrap();
            // An entry of another registry does not end the search.
            fs::write(
                home.path().join(file),
                entry(file).replace("a.example", "b.example"),
            )
            .unwrap();
        }
        // `DOCKER_CONFIG` takes the place of `~/.docker`.
        assert_eq!(find(&config, "a.example").await.unwrap(), None);
        let error = config.check("a.example").unwrap_err().to_string();
        assert!(error.contains("docker/config.json, "), "{error}");
        let config = DockerConfig::default_locations(|name| path("").filter(|_| name == "HOME"));
        assert_eq!(
            find(&config, "a.example").await.unwrap(),
            password(files[4], "p")
        );
        assert!(!format!("{:?}", DockerConfig::default_locations(all)).contains("environment"));
    }

    #[tokio::test]
    async fn a_malformed_default_is_an_error_and_not_the_next_one() {
        let folder =
            ConfigFolder::holding(&json!({ "auths": { "a.example": { "auth": "YTpi" } } }));
        let config = DockerConfig::default_locations(|name| match name {
            "DOCKER_AUTH_CONFIG" => Some("{".into()),
            "DOCKER_CONFIG" => Some(folder.folder.path().into()),
            _ => None,
        });
        let error = find(&config, "a.example").await.unwrap_err().to_string();
        assert!(
            error.starts_with("DOCKER_AUTH_CONFIG is not docker's configuration"),
            "{error}"
        );
    }

    #[test]
    fn check_accepts_a_host_a_helper_or_a_path_and_nothing_else() {
        for (config, is_listed) in [
            (
                json!({ "auths": { "a.example": { "auth": "YTpi" } } }),
                true,
            ),
            (
                json!({ "auths": { "a.example/acme": { "auth": "YTpi" } } }),
                true,
            ),
            (json!({ "credHelpers": { "a.example": "x" } }), true),
            (json!({ "credsStore": "x" }), true),
            (json!({ "auths": { "a.example": {} } }), false),
            (
                json!({ "auths": { "b.example": { "auth": "YTpi" } } }),
                false,
            ),
            (json!({ "credHelpers": { "b.example": "x" } }), false),
        ] {
            let folder = ConfigFolder::holding(&config);
            fs::write(folder.folder.path().join("docker-credential-x"), "").unwrap();
            let checked = folder.config().with_helpers_in(folder.folder.path());
            assert_eq!(checked.check("a.example").is_ok(), is_listed, "{config}");
        }
        let folder = ConfigFolder::holding(&json!({ "credsStore": "x" }));
        let config = folder.config().with_helpers_in(folder.folder.path());
        let error = config.check("a.example").unwrap_err().to_string();
        assert!(
            error.starts_with("docker-credential-x get: no such program in PATH"),
            "{error}"
        );
    }
}
