//! `bundlegate reload`: has a running gateway read its configuration again.

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{admin_client::AdminFlags, interruptible, print, print_json};

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate reload
  bundlegate reload --admin unix:/run/bundlegate/admin.sock
  bundlegate reload --admin https://gate.internal:8090 --admin-token-file admin.token

The gateway accepts this from its own machine, and with a token of its server.admin_token_file from
others. The configuration is applied as a whole or refused as a whole.";

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    admin: AdminFlags,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    interruptible(reload(&options)).await?
}

async fn reload(options: &Options) -> anyhow::Result<()> {
    let (status, answer) = options
        .admin
        .post("/reload", &json!({}))
        .await
        .context("reload")?;
    if let Some(message) = answer.get("message").and_then(Value::as_str) {
        bail!("reload: {message}");
    }
    let Some(applied) = answer.get("applied").and_then(Value::as_bool) else {
        bail!("reload: the answer ({status}) is not one of bundlegate; check --admin");
    };
    if options.json {
        print_json(&answer)?;
    }
    if !applied {
        let reason = answer.get("refused").and_then(Value::as_str);
        let reason = reason.unwrap_or("the configuration is refused");
        bail!("reload: {reason}");
    }
    if options.json {
        return Ok(());
    }
    let keys = answer.get("restart_keys").and_then(Value::as_array);
    let keys: Vec<_> = keys
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    match keys.as_slice() {
        [] => print("the configuration is in force"),
        keys => print(&format!(
            "the configuration is in force, except for keys that take effect at the next start: {}",
            keys.join(", ")
        )),
    }
}
