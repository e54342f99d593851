//! `bundlegate eval`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::task::spawn_blocking;

use super::{
    artifact::ResolvedArtifact,
    diagnostics::SourceErrors,
    flags::RegistryFlags,
    local::{self, ArtifactOrPath},
    path::path_value,
    print_json, read,
    store_flag::{ImageName, LIMITS, StoreFlag},
    target::Target,
};
use crate::{
    bundle::{Bundle, Limits, Parse, Policy, nests_too_deep},
    config::Size,
    oci::Reference,
};

/// Arguments that select a policy.
#[derive(Debug, Args)]
pub(super) struct PolicyArgs {
    /// The artifact: HOST/REPOSITORY:TAG, …@sha256:…, oci-layout:PATH; or a policy folder or
    /// bundle file on this machine.
    #[arg(value_name = "REF|PATH")]
    pub(super) source: ArtifactOrPath,
    /// Look only in the registry; default: in the image store first.
    #[arg(long)]
    remote: bool,
    /// Maximum size of the bundle.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    policy_args: PolicyArgs,
    /// The query, such as data.authz.allow.
    query: String,
    /// The input document, JSON or YAML; - reads standard input.
    #[arg(short, long, value_name = "FILE", value_parser = path_value())]
    input: Option<PathBuf>,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate eval ghcr.io/acme/authz:v1 data.authz.allow --input input.json
  bundlegate eval policy/ data.authz.allow                                 a folder
  echo '{\"user\": \"alice\"}' | bundlegate eval oci-layout:out 'x := data.authz' -i -";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let mut policy = options.policy_args.load().await?;
    if let Some(file) = &options.input {
        let failed = || format!("--input {}", file.display());
        set_input(&mut policy, &file.display().to_string(), &read_input(file)?)
            .with_context(failed)?;
    }
    check_query(&options.query)?;
    let answer = policy
        .query(&options.query)
        .with_context(|| options.policy_args.source.to_string())?;
    print_json(&answer)
}

impl PolicyArgs {
    /// Fetches and loads the policy.
    pub(super) async fn load(&self) -> anyhow::Result<Policy> {
        let limits = Limits {
            bundle: self.max_size.bytes(),
            ..LIMITS
        };
        let image_name = match &self.source {
            ArtifactOrPath::Artifact(image_name) => image_name.clone(),
            ArtifactOrPath::Path(path) => {
                let path = path.clone();
                let bundle =
                    spawn_blocking(move || local::bundle(&path, limits, Parse::Strictly)).await??;
                return self.policy(bundle).await;
            }
        };
        let reference = &self.reference(image_name).await?;
        let cli_config = self.registry.cli_config()?;
        let target = match self.remote {
            true => Target::new(
                reference,
                false,
                &self.store,
                &self.registry,
                cli_config.as_ref(),
            )?,
            false => {
                Target::store_or_registry(
                    reference,
                    &self.store,
                    &self.registry,
                    cli_config.as_ref(),
                )
                .await?
            }
        };
        let pinned = target.resolve(reference).await;
        let pinned = match target.is_registry() && !self.remote {
            true => pinned.with_context(|| format!("{reference}: not in the image store"))?,
            false => pinned?,
        };
        let manifest = target.source().manifest(&pinned).await?;
        let found = ResolvedArtifact {
            reference: reference.clone(),
            source: target.source().clone(),
            pinned,
            manifest,
            in_store: false,
        };
        let bundle = found.bundle(&found.layer_plan(None)?, limits).await?;
        self.policy(bundle).await
    }

    async fn policy(&self, bundle: Bundle) -> anyhow::Result<Policy> {
        spawn_blocking(move || Policy::load(&bundle))
            .await?
            .with_context(|| self.source.to_string())
    }

    async fn reference(&self, image_name: ImageName) -> anyhow::Result<Reference> {
        if self.remote {
            return image_name.reference().cloned();
        }
        let store = self.store.clone();
        match image_name {
            ImageName::Reference(reference) => Ok(reference),
            digest @ ImageName::Digest { .. } => {
                spawn_blocking(move || digest.find(&store.open()?)).await?
            }
        }
    }
}

fn read_input(file: &Path) -> anyhow::Result<String> {
    match file == Path::new("-") {
        true => read::stdin("--input", read::DOCUMENT_LIMIT),
        false => read::text("--input", file, read::DOCUMENT_LIMIT),
    }
}

/// Rejects a query with deeply nested brackets: the evaluator would parse it for hours.
pub(super) fn check_query(query: &str) -> anyhow::Result<()> {
    if nests_too_deep(query) {
        bail!("query: brackets are nested too deep; split the query");
    }
    Ok(())
}

/// Sets the input document. Text that begins like JSON gets JSON errors: the parser reads YAML,
/// whose errors would mislead.
pub(super) fn set_input(policy: &mut Policy, place: &str, text: &str) -> anyhow::Result<()> {
    if text.trim_start().starts_with(['{', '['])
        && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text)
        && policy.set_input(text).is_err()
    {
        return Err(SourceErrors::json(place, text, &error));
    }
    Ok(policy.set_input(text)?)
}
