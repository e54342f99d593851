//! `bundlegate eval`.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use tokio::task::spawn_blocking;

use super::{
    flags::RegistryFlags,
    found::Found,
    location::Location,
    place::{LIMITS, StoreFlag, reference},
    say_json,
};
use crate::{
    bundle::{Limits, Policy},
    config::Size,
    oci::Reference,
};

/// Which policy, and where it is looked for.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The artifact: HOST/REPOSITORY:TAG, …@sha256:…, or oci-layout:PATH.
    #[arg(value_name = "REF", value_parser = reference)]
    pub(super) reference: Reference,
    /// Look into the registry only, not into the image store first.
    #[arg(long)]
    remote: bool,
    /// The largest bundle to load.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
}

/// A question and its input.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    which: Which,
    /// The question, such as data.authz.allow.
    query: String,
    /// The input document, JSON or YAML; - reads standard input.
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate eval ghcr.io/acme/authz:v1 data.authz.allow --input input.json
  echo '{\"user\": \"alice\"}' | bundlegate eval oci-layout:out 'x := data.authz' -i -";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let mut policy = options.which.load().await?;
    if let Some(file) = &options.input {
        let failed = || format!("--input {}", file.display());
        policy.set_input(&read(file).with_context(failed)?).with_context(failed)?;
    }
    let answer = policy.query(&options.query).with_context(|| options.which.reference.to_string())?;
    say_json(&answer)
}

impl Which {
    /// Fetches and loads the policy.
    pub(super) async fn load(&self) -> anyhow::Result<Policy> {
        let reference = &self.reference;
        let access = self.registry.access()?;
        let location = match self.remote {
            true => Location::of(reference, false, &self.store, &self.registry, access.as_ref())?,
            false => Location::nearest(reference, &self.store, &self.registry, access.as_ref()).await?,
        };
        let pinned = location.resolve(reference).await;
        let pinned = match location.is_registry() && !self.remote {
            true => pinned.with_context(|| format!("{reference}: not in the image store"))?,
            false => pinned?,
        };
        let manifest = location.source().manifest(&pinned).await?;
        let found = Found { reference: reference.clone(), source: location.source().clone(), pinned, manifest };
        let limits = Limits { bundle: self.max_size.bytes(), ..LIMITS };
        let bundle = found.bundle(&found.recipe(None)?, limits).await?;
        spawn_blocking(move || Policy::load(&bundle)).await?.with_context(|| reference.to_string())
    }
}

fn read(file: &Path) -> io::Result<String> {
    if file != Path::new("-") {
        return fs::read_to_string(file);
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}
