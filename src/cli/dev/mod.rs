//! `bundlegate dev`: builds a policy folder, signs it with a temporary key, and serves it
//! verified, again after every change. It serves with the same gateway as `serve`, with a
//! configuration that it generates.

mod builder;
mod example;
mod hints;
mod layout;
mod state;
mod test_run;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde_json::json;
use tokio::runtime::Handle;

use self::{builder::Builder, state::State};
use super::{eprint, opa::OpaChoice, path::path_value, print};
use crate::{
    config::Config,
    gateway::{self, Gateway, StopSignals},
    sign::KeyPair,
};

/// Log filter. The warning about the limit of open files does not matter for one author.
pub(super) const LOG: &str = "warn,bundlegate::gateway::open_files=error";
/// Timeout of the first publication. The source is the local disk, which takes milliseconds.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(30);
const LAYOUT: &str = "layout";
const PUBLIC_KEY: &str = "cosign.pub";

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The policy folder; default: a copy of the built-in example.
    #[arg(value_parser = path_value())]
    path: Option<PathBuf>,
    /// Listen address for OPA.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8282")]
    listen: SocketAddr,
    /// Name of the bundle in the URL.
    #[arg(long, default_value = "dev")]
    name: String,
    /// Keep the artifacts and the generated configuration in this folder, outside PATH; default: a
    /// temporary folder, removed on exit.
    #[arg(long, value_name = "DIR", value_parser = path_value())]
    state: Option<PathBuf>,
    /// Don't parse the Rego: the built-in parser may lag behind the newest OPA.
    #[arg(long)]
    no_parse: bool,
    /// The opa (1.0 or newer) that loads each build before it is served and runs the tests: auto
    /// is the one in PATH if there is one, none is the built-in evaluator.
    #[arg(long, value_name = "PROGRAM", default_value = "auto")]
    opa: OpaChoice,
}

/// Builds and serves until a signal ends it. `serving` is the runtime for the connections of
/// clients.
pub(super) async fn run(options: Options, serving: Handle) -> anyhow::Result<()> {
    let given = options.path.as_deref().map(policy_folder).transpose()?;
    let state = State::open(options.state.as_deref(), given.as_deref())?;
    let policy = given.map_or_else(|| example_in(&state), Ok)?;
    let key = KeyPair::generate()?;
    fs::write(state.join(PUBLIC_KEY), key.public_pem()).context("write the public key")?;
    let config = write_config(&state, &options)?;
    let builder = Builder::open(builder::Options {
        policy: policy.clone(),
        parse: !options.no_parse,
        limits: config.limits.bundle_limits(),
        key,
        layout: state.join(LAYOUT),
        checker: options.opa.checker().await?,
    })?;
    let (builder, package) = builder.first_build().await?;
    let server = gateway::server_options(&config)?;
    let (drain, exit) = StopSignals::install()?.drain_and_exit();
    let gateway = Gateway::start_on(serving, config, server, None)
        .await
        .map_err(with_flag_name)?;
    gateway.first_snapshots(FIRST_SNAPSHOT).await?;
    let addresses = hints::Addresses {
        data: gateway.data_address()?,
        admin: gateway.admin_address()?,
    };
    for line in hints::lines(&addresses, &options.name, &policy, package.as_deref()) {
        print(&line)?;
    }
    let fate = if policy.starts_with(state.path()) && state.is_temporary() {
        " (removed on exit)"
    } else {
        ""
    };
    eprint(&format!(
        "watching {}{fate}; edits take effect in OPA; Ctrl-C exits",
        policy.display()
    ));
    tokio::select! {
        ended = gateway.run(drain, exit) => ended,
        broken = builder.follow() => broken,
    }
}

/// Names the flag instead of the key: the configuration is generated from the flags.
fn with_flag_name(error: anyhow::Error) -> anyhow::Error {
    let message = format!("{error:#}");
    if message.starts_with("server.listen ") {
        anyhow!("{}", message.replace("server.listen", "--listen"))
    } else {
        error
    }
}

fn policy_folder(path: &Path) -> anyhow::Result<PathBuf> {
    let found = fs::canonicalize(path)
        .with_context(|| format!("{}: no such policy folder", path.display()))?;
    if !found.is_dir() {
        bail!(
            "{}: not a folder; name the folder that holds the policy",
            path.display()
        );
    }
    Ok(found)
}

fn example_in(state: &State) -> anyhow::Result<PathBuf> {
    let folder = state.join("example");
    example::write(&folder)
        .with_context(|| format!("write the example to {}", folder.display()))?;
    Ok(folder)
}

/// Writes the configuration that serves the layout, and loads it as `serve` would. The file is
/// JSON, which is valid YAML and has only one way to quote a name.
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
                "reference": format!("oci-layout:{LAYOUT}:{}", layout::TAG),
                "trust": "dev",
                "poll": "250ms",
                // An undone edit is no rollback to warn about.
                "expect": { "on_older": "serve" },
            },
        },
    });
    let file = state.join("bundlegate.yaml");
    fs::write(&file, format!("{text:#}\n")).with_context(|| format!("write {}", file.display()))?;
    Ok(Config::load(&file)?)
}
