//! `bundlegate eval`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::task::spawn_blocking;

use super::{
    artifact::Found,
    diagnostics::SourceErrors,
    flags::RegistryFlags,
    local::{self, Subject},
    read, say_json,
    store_flag::{LIMITS, StoreFlag, Stored},
    target::Location,
};
use crate::{
    bundle::{Bundle, Limits, Parse, Policy, nests_too_deep},
    config::Size,
    oci::Reference,
};

/// Which policy, and where it is looked for.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The artifact: HOST/REPOSITORY:TAG, …@sha256:…, oci-layout:PATH; or a policy folder or
    /// bundle file on this machine.
    #[arg(value_name = "REF|PATH")]
    pub(super) subject: Subject,
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
  bundlegate eval policy/ data.authz.allow                                 of a folder
  echo '{\"user\": \"alice\"}' | bundlegate eval oci-layout:out 'x := data.authz' -i -";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let mut policy = options.which.load().await?;
    if let Some(file) = &options.input {
        let failed = || format!("--input {}", file.display());
        set_input(&mut policy, &file.display().to_string(), &read_input(file)?).with_context(failed)?;
    }
    check_query(&options.query)?;
    let answer = policy.query(&options.query).with_context(|| options.which.subject.to_string())?;
    say_json(&answer)
}

impl Which {
    /// Fetches and loads the policy.
    pub(super) async fn load(&self) -> anyhow::Result<Policy> {
        let limits = Limits { bundle: self.max_size.bytes(), ..LIMITS };
        let stored = match &self.subject {
            Subject::Artifact(stored) => stored.clone(),
            Subject::Path(path) => {
                let path = path.clone();
                let bundle = spawn_blocking(move || local::bundle(&path, limits, Parse::Strictly)).await??;
                return self.policy(bundle).await;
            }
        };
        let reference = &self.reference(stored).await?;
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
        let found = Found {
            reference: reference.clone(),
            source: location.source().clone(),
            pinned,
            manifest,
            in_store: false,
        };
        let bundle = found.bundle(&found.recipe(None)?, limits).await?;
        self.policy(bundle).await
    }

    async fn policy(&self, bundle: Bundle) -> anyhow::Result<Policy> {
        spawn_blocking(move || Policy::load(&bundle)).await?.with_context(|| self.subject.to_string())
    }

    async fn reference(&self, stored: Stored) -> anyhow::Result<Reference> {
        if self.remote {
            return stored.reference().cloned();
        }
        let store = self.store.clone();
        match stored {
            Stored::Reference(reference) => Ok(reference),
            digest @ Stored::Digest { .. } => spawn_blocking(move || digest.find(&store.open()?)).await?,
        }
    }
}

fn read_input(file: &Path) -> anyhow::Result<String> {
    match file == Path::new("-") {
        true => read::stdin("--input", read::DOCUMENT_LIMIT),
        false => read::text("--input", file, read::DOCUMENT_LIMIT),
    }
}

/// Refuses a query that the evaluator would parse for hours.
pub(super) fn check_query(query: &str) -> anyhow::Result<()> {
    if nests_too_deep(query) {
        bail!("query: brackets in it are nested too deep; write it in parts");
    }
    Ok(())
}

/// Sets the input document. What begins like JSON is JSON, and its errors are told as such: it
/// would be YAML as well, with other errors.
pub(super) fn set_input(policy: &mut Policy, place: &str, text: &str) -> anyhow::Result<()> {
    if text.trim_start().starts_with(['{', '['])
        && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text)
        && policy.set_input(text).is_err()
    {
        return Err(SourceErrors::json(place, text, &error));
    }
    Ok(policy.set_input(text)?)
}
