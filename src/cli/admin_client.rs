//! Requests to the admin listener of a running gateway.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Certificate, Client, Method, RequestBuilder, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderName},
    redirect,
};
use serde_json::Value;

use super::{path::path_value, read};

/// The size of an answer. A gateway with 5000 bundles describes them in some 30 MB.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// The time beyond `--wait` after which the gateway itself counts as unreachable.
const GRACE: Duration = Duration::from_secs(10);
const EXAMPLE: &str = "write one such as http://127.0.0.1:8090 or unix:/run/bundlegate/admin.sock";

/// Flags for the admin listener.
#[derive(Debug, Args)]
pub(super) struct AdminFlags {
    /// The gateway's admin listener: a URL, or unix:PATH.
    #[arg(
        long,
        value_name = "URL",
        env = "BUNDLEGATE_ADMIN",
        default_value = "http://127.0.0.1:8090",
        help_heading = "Admin listener"
    )]
    admin: Admin,
    /// File with a token of the gateway's `server.admin_token_file`; the first line counts.
    #[arg(long, value_name = "FILE", help_heading = "Admin listener", value_parser = path_value())]
    admin_token_file: Option<PathBuf>,
    /// Trust the certificates in this PEM file in addition.
    #[arg(long, value_name = "FILE", help_heading = "Admin listener", value_parser = path_value())]
    ca_file: Option<PathBuf>,
    /// How long to wait for the result, such as 30s; at most 5m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = wait)]
    wait: Duration,
}

/// Where an admin listener is.
#[derive(Debug, Clone)]
enum Admin {
    Url(Url),
    Unix(PathBuf),
}

impl FromStr for Admin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(format!("the path is empty; {EXAMPLE}")),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let url: Url = text
            .parse()
            .map_err(|error| format!("{error}; {EXAMPLE}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(format!("neither an http:// nor an https:// URL; {EXAMPLE}"));
        }
        // Other users of this machine can read the command line.
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a URL has no credentials; use --admin-token-file FILE".to_owned());
        }
        Ok(Self::Url(url))
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    let example = "write a time from 1s to 5m, such as 30s";
    let wait = humantime::parse_duration(text).map_err(|error| format!("{error}; {example}"))?;
    let is_within = (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&wait);
    is_within.then_some(wait).ok_or_else(|| example.to_owned())
}

impl AdminFlags {
    /// Sends a POST with a JSON body to a path that begins with a slash, and returns the status and the JSON
    /// of the answer.
    ///
    /// # Errors
    /// When a file can't be read, the gateway does not answer, the answer is an error of it, or it
    /// is not one of bundlegate.
    pub(super) async fn post(
        &self,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let seconds = self.wait.as_secs();
        let request = self
            .request(Method::POST, path)?
            .header(CONTENT_TYPE, "application/json")
            .header(HeaderName::from_static("prefer"), format!("wait={seconds}"))
            .body(body.to_string());
        let request = match &self.admin_token_file {
            Some(file) => request.bearer_auth(token(file)?),
            None => request,
        };
        self.send(request).await
    }

    /// The JSON at a path that begins with a slash.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let (_, answer) = self.send(self.request(Method::GET, path)?).await?;
        Ok(answer)
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        // No proxy leads to an admin listener, and no redirect gets the token.
        let mut client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none());
        if let Some(file) = &self.ca_file {
            let pem = read::bytes("--ca-file", file, read::KEY_LIMIT)?;
            let roots = Certificate::from_pem_bundle(&pem)
                .with_context(|| format!("--ca-file {}", file.display()))?;
            client = client.tls_certs_merge(roots);
        }
        let base = match &self.admin {
            Admin::Url(url) => url.as_str().trim_end_matches('/'),
            Admin::Unix(socket) => {
                client = client.unix_socket(socket.as_path());
                "http://localhost"
            }
        };
        let request = client.build()?.request(method, format!("{base}{path}"));
        Ok(request.timeout(self.wait + GRACE))
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<(StatusCode, Value)> {
        let unreachable = || {
            let admin = match &self.admin {
                Admin::Url(url) => url.as_str().trim_end_matches('/').to_owned(),
                Admin::Unix(socket) => format!("unix:{}", socket.display()),
            };
            format!(
                "the gateway's admin listener at {admin} does not answer; start the gateway, or correct --admin"
            )
        };
        let mut response = request.send().await.with_context(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.with_context(unreachable)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                bail!("the answer exceeds {MAX_ANSWER_BYTES} bytes; check --admin");
            }
            body.extend_from_slice(&chunk);
        }
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        match answer.pointer("/error/message").and_then(Value::as_str) {
            Some(message) => bail!("{message}"),
            None => Ok((status, answer)),
        }
    }
}

/// A bundle's name in a path.
pub(super) fn name_path(name: &str) -> String {
    utf8_percent_encode(name, NAME).to_string()
}

/// Characters of a bundle's name that stay as they are in a URL.
const NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The first token in a file. The error does not quote it.
fn token(file: &Path) -> anyhow::Result<String> {
    let text = read::text("--admin-token-file", file, read::KEY_LIMIT)?;
    let token = text.lines().map(str::trim).find(|line| !line.is_empty());
    match token {
        Some(token) if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(token.to_owned()),
        _ => bail!(
            "--admin-token-file {}: the first line is no token; write one token per line",
            file.display()
        ),
    }
}
