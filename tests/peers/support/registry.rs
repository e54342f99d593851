//! The three registries.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Ca, Process, ca::Certificate, program, run};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Debian's docker-registry 2.8: no referrers API.
    Debian,
    /// CNCF distribution 3: no referrers API either.
    Distribution,
    /// go-containerregistry's, with the referrers API; forgets everything at its end.
    Referrers,
}

/// Runs on loopback until it is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) kind: Kind,
    /// The host as references and `registries` name it.
    pub(crate) host: String,
    ca: Option<PathBuf>,
    certificate: Option<Certificate>,
    protected: bool,
    /// More of its configuration; not for the one that forgets.
    settings: Value,
    folder: TempDir,
    process: Process,
}

/// Who may use a protected registry. There is no program here that makes bcrypt hashes, so
/// this one is written down.
pub(crate) const USER: &str = "robot";
pub(crate) const PASSWORD: &str = "open sesame";
pub(crate) const HTPASSWD: &str =
    "robot:$2y$05$N7mQ2vXcT4kLhZ9pWbRs1uol0wTHXdTf3sDYIaOOmJMJ3aQrLy4Xy";

impl Registry {
    /// Over plain HTTP, for anybody.
    pub(crate) async fn start(kind: Kind) -> Self {
        Self::with(kind, None, false, json!({})).await
    }

    /// A pull-through mirror of `upstream` (distribution's `proxy`), over plain HTTP.
    pub(crate) async fn mirroring(kind: Kind, upstream: &Self) -> Self {
        let proxy = json!({ "remoteurl": format!("http://{}", upstream.host) });
        Self::with(kind, None, false, json!({ "proxy": proxy })).await
    }

    /// Over HTTPS with a certificate of `ca`.
    pub(crate) async fn secured(kind: Kind, ca: &Ca) -> Self {
        Self::with(kind, Some(ca), false, json!({})).await
    }

    /// Over HTTPS, and only for [`USER`] with [`PASSWORD`].
    pub(crate) async fn protected(kind: Kind, ca: &Ca) -> Self {
        Self::with(kind, Some(ca), true, json!({})).await
    }

    /// Over plain HTTP, and only for [`USER`] with [`PASSWORD`].
    pub(crate) async fn with_password(kind: Kind) -> Self {
        Self::with(kind, None, true, json!({})).await
    }

    /// Over plain HTTP, for the holders of tokens of this server, who log in as [`USER`] with
    /// [`PASSWORD`].
    pub(crate) async fn with_tokens(kind: Kind, auth: Value) -> Self {
        let settings = json!({ "auth": { "token": auth } });
        Self::with(kind, None, true, settings).await.named()
    }

    /// The same over HTTPS.
    pub(crate) async fn with_tokens_over_tls(kind: Kind, ca: &Ca, auth: Value) -> Self {
        let settings = json!({ "auth": { "token": auth } });
        Self::with(kind, Some(ca), true, settings).await.named()
    }

    /// Over plain HTTP, for anybody, telling `endpoint` of everything that happens.
    pub(crate) async fn notifying(kind: Kind, endpoint: Value) -> Self {
        let settings = json!({ "notifications": { "endpoints": [endpoint] } });
        Self::with(kind, None, false, settings).await
    }

    fn named(self) -> Self {
        let host = by_name(&self.host);
        Self { host, ..self }
    }

    async fn with(kind: Kind, ca: Option<&Ca>, protected: bool, settings: Value) -> Self {
        let folder = TempDir::new().unwrap();
        let certificate = ca.map(|ca| ca.issue("registry"));
        let (process, host) = launch(
            kind,
            "127.0.0.1:0",
            certificate.as_ref(),
            protected,
            &settings,
            folder.path(),
        )
        .await;
        Self {
            kind,
            host,
            ca: ca.map(Ca::file),
            certificate,
            protected,
            settings,
            folder,
            process,
        }
    }

    /// Its entry under `registries` in a `bundlegate.yaml`.
    pub(crate) fn settings(&self) -> Value {
        let mut settings = json!({ "scheme": "http" });
        if let Some(ca) = &self.ca {
            settings = json!({ "scheme": "https", "ca_file": ca });
        }
        if self.protected {
            let password_file = self.folder.path().join("password");
            fs::write(&password_file, PASSWORD).unwrap();
            settings["credentials"] = json!({ "username": USER, "password_file": password_file });
        }
        settings
    }

    /// Pushes a file as an OPA bundle, and gives the manifest's digest.
    pub(crate) async fn push(&self, name: &str, file: &Path) -> String {
        self.push_with(name, file, &[]).await
    }

    /// Pushes with more flags for oras.
    pub(crate) async fn push_with(&self, name: &str, file: &Path, flags: &[&str]) -> String {
        let folder = self.folder.path();
        fs::write(folder.join("config.json"), "{}").unwrap();
        let config = "config.json:application/vnd.oci.image.config.v1+json";
        fs::copy(file, folder.join("bundle.tar.gz")).unwrap();
        let layer = "bundle.tar.gz:application/vnd.oci.image.layer.v1.tar+gzip";
        let reference = self.reference(name);
        let mut arguments = vec![
            "push",
            &reference,
            "--config",
            config,
            layer,
            "--format",
            "go-template={{.digest}}",
        ];
        arguments.extend(flags);
        self.oras(&arguments).await
    }

    /// Lets `tag` name what `name` (a tag or digest of the same repository) names.
    pub(crate) async fn tag(&self, name: &str, tag: &str) {
        self.oras(&["tag", &self.reference(name), tag]).await;
    }

    /// Runs oras with what it takes to reach this registry.
    pub(crate) async fn oras(&self, arguments: &[&str]) -> String {
        let mut all = arguments.to_vec();
        let ca = self.ca.as_ref().map(|ca| ca.to_str().unwrap());
        match ca {
            // By default it speaks plain HTTP to `localhost`.
            Some(ca) => all.extend(["--plain-http=false", "--ca-file", ca]),
            None => all.push("--plain-http"),
        }
        if self.protected {
            all.extend(["--username", USER, "--password", PASSWORD]);
        }
        run("oras", self.folder.path(), &all).await
    }

    /// The flags by which cosign reaches it.
    pub(crate) fn cosign_flags(&self) -> Vec<String> {
        let mut flags = match &self.ca {
            Some(ca) => vec![format!("--registry-cacert={}", ca.display())],
            None => vec!["--allow-http-registry".to_owned()],
        };
        if self.protected {
            flags.extend([
                format!("--registry-username={USER}"),
                format!("--registry-password={PASSWORD}"),
            ]);
        }
        flags
    }

    /// `HOST/NAME`, or `HOST/REPOSITORY@DIGEST`.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }

    /// Where a blob lies on disk; not for the one that forgets.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.folder
            .path()
            .join("docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    /// How often each path was asked for with `method` since it started; not for Debian's.
    pub(crate) fn asked(&self, method: &str) -> BTreeMap<String, usize> {
        let mut times = BTreeMap::new();
        for path in self
            .process
            .log()
            .lines()
            .filter_map(|line| asked_for(line, method))
        {
            *times.entry(path).or_default() += 1;
        }
        times
    }

    /// The output so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// The folder that it keeps everything in; not for the one that forgets.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The flags by which bundlegate reaches it.
    pub(crate) fn own_flags(&self) -> Vec<&str> {
        match &self.ca {
            Some(_) => vec!["--ca-file", self.ca()],
            None => vec!["--plain-http"],
        }
    }

    /// Whether it asks for [`USER`] with [`PASSWORD`].
    pub(crate) fn is_protected(&self) -> bool {
        self.protected
    }

    /// The text of the certificate that vouches for it; empty for plain HTTP.
    pub(crate) fn ca_pem(&self) -> String {
        let read = |file| fs::read_to_string(file).unwrap();
        self.ca.as_ref().map_or_else(String::new, read)
    }

    /// The certificate that vouches for it.
    pub(crate) fn ca(&self) -> &str {
        self.ca.as_deref().and_then(Path::to_str).unwrap()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again at the same address.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let (certificate, folder) = (self.certificate.as_ref(), self.folder.path());
        (self.process, _) = launch(
            self.kind,
            &self.host,
            certificate,
            self.protected,
            &self.settings,
            folder,
        )
        .await;
    }

    /// Sends notifications from now on, with this `Authorization` header. Starts it again.
    pub(crate) async fn notify(&mut self, url: &str, authorization: &str) {
        self.settings["notifications"] = json!({ "endpoints": [{
            "name": "bundlegate", "url": url, "headers": { "Authorization": [authorization] },
            "timeout": "5s", "threshold": 3, "backoff": "1s",
        }] });
        self.restart().await;
    }
}

/// `localhost` for an address on loopback. crane and cosign send no credentials to a token server at
/// such an address, and oras sends none to one whose name has another such address than the
/// registry's.
pub(super) fn by_name(address: &str) -> String {
    address.replace("127.0.0.1", "localhost")
}

async fn launch(
    kind: Kind,
    address: &str,
    certificate: Option<&Certificate>,
    protected: bool,
    settings: &Value,
    folder: &Path,
) -> (Process, String) {
    let mut command = match kind {
        Kind::Debian => Command::new(program("docker-registry")),
        Kind::Distribution => Command::new(program("registry-3")),
        Kind::Referrers => Command::new(program("referrers-registry")),
    };
    if kind == Kind::Referrers {
        command.args(["-listen", address]);
        if let Some(files) = certificate {
            command
                .arg("-cert")
                .arg(&files.certificate)
                .arg("-key")
                .arg(&files.key);
        }
        let mut process = Process::start("referrers-registry", &mut command);
        let host = process
            .line(|line| line.strip_prefix("listening ").map(str::to_owned))
            .await;
        return (process, host);
    }
    let mut config = json!({
        "version": "0.1",
        "log": { "level": "info", "formatter": "json" },
        "storage": { "filesystem": { "rootdirectory": folder }, "delete": { "enabled": true } },
        "http": { "addr": address, "secret": "test" },
    });
    if let Some(files) = certificate {
        config["http"]["tls"] = json!({ "certificate": files.certificate, "key": files.key });
    }
    if protected {
        let file = folder.join("htpasswd");
        fs::write(&file, HTPASSWD).unwrap();
        config["auth"] = json!({ "htpasswd": { "realm": "test", "path": file } });
    }
    for (key, value) in settings.as_object().unwrap() {
        config[key] = value.clone();
    }
    let file = folder.join("config.yml");
    fs::write(&file, config.to_string()).unwrap();
    let mut process = Process::start(&format!("{kind:?}"), command.arg("serve").arg(&file));
    let host = process.line(listening).await;
    (process, host)
}

/// The path in a registry's line about a request with `method`: JSON of distribution's, or
/// `DATE TIME METHOD PATH …`.
fn asked_for(line: &str, method: &str) -> Option<String> {
    if let Ok(line) = serde_json::from_str::<Value>(line) {
        let told = line["msg"] == "response completed" && line["http.request.method"] == method;
        return told.then(|| line["http.request.uri"].as_str().unwrap().to_owned());
    }
    let mut words = line.split_whitespace().skip_while(|word| *word != method);
    words
        .nth(1)
        .filter(|path| path.starts_with("/v2/"))
        .map(str::to_owned)
}

/// The address in `"msg":"listening on 127.0.0.1:43210, tls"`.
fn listening(line: &str) -> Option<String> {
    let address = line.split_once("listening on ")?.1;
    let end = address
        .find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit())
        .unwrap_or(address.len());
    Some(address[..end].to_owned())
}
