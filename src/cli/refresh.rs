//! `bundlegate refresh`: has a running gateway check the registry for a bundle.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Client, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderName},
};
use serde_json::Value;

use super::{interruptible, print, print_json};

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate refresh authz/main
  bundlegate refresh authz/main --admin http://127.0.0.1:9090 --json

The gateway accepts this from its own machine only. It never asks a registry earlier than the
registry allows (Retry-After); the command then fails and says until when it has to wait.";

/// Characters of a bundle's name that stay as they are in a URL.
const NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The size of an answer.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// The time beyond `--wait` after which the gateway itself counts as unreachable.
const GRACE: Duration = Duration::from_secs(10);

/// Arguments of `refresh`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The bundle's name in the configuration.
    name: String,
    /// URL of the gateway's admin listener.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8090", value_parser = admin_url)]
    admin: Url,
    /// How long to wait for the result, such as 30s; at most 5m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = wait)]
    wait: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn admin_url(text: &str) -> Result<Url, String> {
    let example = "write one such as http://127.0.0.1:8090";
    let url: Url = text
        .parse()
        .map_err(|error| format!("{error}; {example}"))?;
    // The admin listener speaks plain HTTP only.
    if url.scheme() != "http" || !url.has_host() {
        return Err(format!("not an http:// URL; {example}"));
    }
    Ok(url)
}

fn wait(text: &str) -> Result<Duration, String> {
    let example = "write a time from 1s to 5m, such as 30s";
    let wait = humantime::parse_duration(text).map_err(|error| format!("{error}; {example}"))?;
    let is_within = (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&wait);
    is_within.then_some(wait).ok_or_else(|| example.to_owned())
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    interruptible(refresh(&options)).await?
}

async fn refresh(options: &Options) -> anyhow::Result<()> {
    let (name, json) = (&options.name, options.json);
    let (status, answer) = ask(options).await?;
    if let Some(message) = answer.pointer("/error/message").and_then(Value::as_str) {
        bail!("refresh {name}: {message}");
    }
    if !status.is_success() || answer.get("outcome").is_none() {
        bail!("refresh {name}: the answer ({status}) is not one of bundlegate; check --admin");
    }
    if json {
        print_json(&answer)?;
    }
    match outcome(&answer) {
        Ok(text) if json => drop(text),
        Ok(text) => print(&format!("{name}: {text}"))?,
        Err(reason) => bail!("refresh {name}: {reason}"),
    }
    Ok(())
}

async fn ask(options: &Options) -> anyhow::Result<(StatusCode, Value)> {
    let name = utf8_percent_encode(&options.name, NAME);
    let base = options.admin.as_str().trim_end_matches('/');
    let url = format!("{base}/refresh/{name}");
    let seconds = options.wait.as_secs();
    // The gateway is on this machine; no proxy leads to it.
    let client = Client::builder().no_proxy().build()?;
    let request = client
        .post(&url)
        .header(CONTENT_TYPE, "application/json")
        .header(HeaderName::from_static("prefer"), format!("wait={seconds}"))
        .timeout(options.wait + GRACE)
        .body("{}");
    let unreachable = || {
        format!(
            "the gateway's admin listener at {base} does not answer; start the gateway, or correct --admin"
        )
    };
    let mut response = request.send().await.with_context(unreachable)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.with_context(unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            bail!("{url}: the answer exceeds {MAX_ANSWER_BYTES} bytes; check --admin");
        }
        body.extend_from_slice(&chunk);
    }
    let answer = serde_json::from_slice(&body).unwrap_or_default();
    Ok((status, answer))
}

/// What the answer says: a sentence, or why the bundle was not refreshed.
fn outcome(answer: &Value) -> Result<String, String> {
    let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str);
    let version = || match (text("/manifest"), text("/revision")) {
        (Some(manifest), Some(revision)) if !revision.is_empty() => {
            format!("{manifest} (revision {revision})")
        }
        (Some(manifest), _) => manifest.to_owned(),
        (None, _) => "nothing".to_owned(),
    };
    match text("/outcome") {
        Some("changed") => Ok(format!("changed: serving {}", version())),
        Some("unchanged") => Ok(format!("unchanged: serving {}", version())),
        Some("failed") => Err(format!(
            "{}; serving {}",
            text("/failure/message").unwrap_or("the check has failed"),
            version()
        )),
        Some("held") => Err(format!(
            "{}; the next check is at {}",
            text("/message").unwrap_or("the registry has asked for a pause"),
            text("/next_check").unwrap_or("an unknown time")
        )),
        _ => Err(text("/message")
            .unwrap_or("the check has not ended yet; see /status")
            .to_owned()),
    }
}
