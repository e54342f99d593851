//! `bundlegate refresh`: has a running gateway check the registry for a bundle.

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{
    admin_client::{AdminFlags, name_path},
    interruptible, print, print_json,
};

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate refresh authz/main
  bundlegate refresh authz/main --admin http://127.0.0.1:9090 --json
  bundlegate refresh authz/main --admin unix:/run/bundlegate/admin.sock
  bundlegate refresh authz/main --admin https://gate.internal:8090 --admin-token-file admin.token

The gateway accepts this from its own machine, and with a token of its server.admin_token_file from
others. It never asks a registry earlier than the registry allows (Retry-After); the command then
fails and says until when it has to wait.";

/// Arguments of `refresh`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The bundle's name in the configuration.
    name: String,
    #[command(flatten)]
    admin: AdminFlags,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    interruptible(refresh(&options)).await?
}

async fn refresh(options: &Options) -> anyhow::Result<()> {
    let (name, json) = (&options.name, options.json);
    let path = format!("/refresh/{}", name_path(name));
    let (status, answer) = options
        .admin
        .post(&path, &json!({}))
        .await
        .with_context(|| format!("refresh {name}"))?;
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
