//! `bundlegate dev`: an author's loop. Builds a folder, signs it with a key of its own, and
//! serves it verified. What serves is `serve`, on a configuration that this writes.

mod example;
mod hints;
mod shelf;
mod state;
mod test_run;
mod workshop;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde_json::json;

use self::{state::State, workshop::Workshop};
use super::{opa::OpaChoice, say, tell};
use crate::{
    config::Config,
    gateway::{self, Gateway, StopSignals},
    sign::KeyPair,
};

/// The warning about few open files does not matter on a machine for editing.
pub(super) const LOG: &str = "warn,bundlegate::gateway::open_files=error";
/// The local disk answers in milliseconds.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(30);
const LAYOUT: &str = "layout";
const PUBLIC_KEY: &str = "cosign.pub";

/// How to run `dev`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The policy folder; without it, a copy of the built-in example.
    path: Option<PathBuf>,
    /// Where OPA is served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8282")]
    listen: SocketAddr,
    /// The bundle's name in the URL.
    #[arg(long, default_value = "dev")]
    name: String,
    /// Keep the artifacts and the configuration that serves them in this folder, outside
    /// PATH; default: a temporary one, removed at the end.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Serve even Rego that the built-in parser, which lags behind the newest OPA, can't read.
    #[arg(long)]
    no_parse: bool,
    /// The real opa (1.0 or newer) that loads each build before it is served, and runs the
    /// tests: auto is the one in PATH, if there is one; none is the built-in evaluator.
    #[arg(long, value_name = "PROGRAM", default_value = "auto")]
    opa: OpaChoice,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let given = options.path.as_deref().map(policy_folder).transpose()?;
    let state = State::open(options.state.as_deref(), given.as_deref())?;
    let policy = given.map_or_else(|| example_in(&state), Ok)?;
    let key = KeyPair::generate()?;
    fs::write(state.join(PUBLIC_KEY), key.public_pem()).context("write the public key")?;
    let config = write_config(&state, &options)?;
    let workshop = Workshop::open(workshop::Options {
        policy: policy.clone(),
        parse: !options.no_parse,
        limits: config.limits.bundle_limits(),
        key,
        layout: state.join(LAYOUT),
        checker: options.opa.checker().await?,
    })?;
    let (workshop, package) = workshop.first_build().await?;
    let server = gateway::server_options(&config)?;
    let (drain, exit) = StopSignals::install()?.drain_and_exit();
    let gateway = Gateway::start(config, server, None).await.map_err(naming_the_flag)?;
    gateway.first_snapshots(FIRST_SNAPSHOT).await?;
    let addresses = hints::Addresses { data: gateway.data_address()?, admin: gateway.admin_address()? };
    for line in hints::lines(addresses, &options.name, &policy, package.as_deref()) {
        say(&line)?;
    }
    let fate = if policy.starts_with(state.path()) && state.is_temporary() { " (gone at the end)" } else { "" };
    tell(&format!("watching {}{fate}; edit it, and OPA decides by the new policy; Ctrl-C ends", policy.display()));
    tokio::select! {
        ended = gateway.run(drain, exit) => ended,
        broken = workshop.follow() => broken,
    }
}

/// The configuration is written here, and the author writes flags.
fn naming_the_flag(error: anyhow::Error) -> anyhow::Error {
    let sentence = format!("{error:#}");
    if sentence.starts_with("server.listen ") {
        anyhow!("{}", sentence.replace("server.listen", "--listen"))
    } else {
        error
    }
}

fn policy_folder(path: &Path) -> anyhow::Result<PathBuf> {
    let found = fs::canonicalize(path).with_context(|| format!("{}: no such policy folder", path.display()))?;
    if !found.is_dir() {
        bail!("{}: not a folder; name the folder that holds the policy", path.display());
    }
    Ok(found)
}

fn example_in(state: &State) -> anyhow::Result<PathBuf> {
    let folder = state.join("example");
    example::write(&folder).with_context(|| format!("write the example to {}", folder.display()))?;
    Ok(folder)
}

/// Writes the configuration that serves the layout, and reads it as `serve` would. JSON is
/// YAML, and has one way to quote a name.
fn write_config(state: &State, options: &Options) -> anyhow::Result<Config> {
    let text = json!({
        "version": 1,
        "server": { "listen": options.listen, "admin": "127.0.0.1:0", "drain": { "notice": "0s", "over": "1s" } },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "trust": {
            "authorities": { "dev": { "keys": [PUBLIC_KEY], "tlog": "none" } },
            "policies": { "dev": { "require": { "any_of": ["dev"] } } },
        },
        "bundles": {
            &options.name: {
                "reference": format!("oci-layout:{LAYOUT}:{}", shelf::TAG),
                "trust": "dev",
                "poll": "250ms",
                // Undoing an edit is no alarm.
                "expect": { "on_older": "serve" },
            },
        },
    });
    let file = state.join("bundlegate.yaml");
    fs::write(&file, format!("{text:#}\n")).with_context(|| format!("write {}", file.display()))?;
    Ok(Config::load(&file)?)
}
