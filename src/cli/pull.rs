//! `bundlegate pull`.

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use tokio::task::spawn_blocking;

use super::{
    eprint,
    flags::RegistryFlags,
    for_each,
    progress::Bars,
    store_flag::{StoreFlag, reference},
    trust::TrustFlags,
    verification::{Subject, Verification},
};
use crate::{
    config::{CliConfig, Size},
    images::Images,
    oci::{PinnedReference, Reference, Repository},
    registry::{Registries, Source},
    transfer::{Signatures, Transfer},
    verify::TrustPolicy,
};

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate pull ghcr.io/acme/authz:v1
  bundlegate pull ghcr.io/acme/authz:v1 --key cosign.pub
  bundlegate pull ghcr.io/acme/authz:v1 --config bundlegate.yaml";

/// Arguments of `pull`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Artifacts in a registry.
    #[arg(value_name = "REF", required = true, value_parser = reference)]
    references: Vec<Reference>,
    /// Maximum size of a blob.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: TrustFlags,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let cli_config = options.registry.cli_config()?;
    let store = options.store.clone();
    let images = spawn_blocking(move || store.open()).await??;
    let work =
        async |reference: &Reference| pull(&options, cli_config.as_ref(), &images, reference).await;
    for_each::in_order(&options.references, options.json, work).await
}

async fn pull(
    options: &Options,
    cli_config: Option<&CliConfig>,
    images: &Images,
    reference: &Reference,
) -> anyhow::Result<PinnedReference> {
    let repository = reference.repository();
    if let Repository::Layout { .. } = repository {
        bail!("pull {reference}: artifacts of folders can't be stored; use `bundlegate copy`");
    }
    let policy = options.trust.policy(cli_config, reference).await?;
    let (registries, limits) = options.registry.registries(cli_config, repository)?;
    let from = registries.source(repository)?;
    let pinned = from.resolve(reference).await?;
    if let Some(policy) = policy {
        let signatures = policy
            .signatures()
            .map(|repository| registries.source(repository))
            .transpose()?;
        let subject = Subject {
            pinned: &pinned,
            manifest: &from.manifest(&pinned).await?,
            source: &from,
            signatures: signatures.as_ref().unwrap_or(&from),
            limit: limits.evidence,
        };
        check(subject, &policy).await?;
    }
    let manifest = fetch(options, &registries, &from, images, &pinned, reference).await;
    manifest.with_context(|| format!("pull {reference}"))?;
    eprint(&format!("pulled {reference} into the image store"));
    Ok(pinned)
}

/// Verifies the artifact before it is downloaded.
async fn check(subject: Subject<'_>, policy: &TrustPolicy) -> anyhow::Result<()> {
    let verification = subject.verify(policy).await;
    let Verification { verdict, .. } = verification.context("nothing was pulled")?;
    verdict.map(drop).map_err(|rejection| {
        let pinned = subject.pinned;
        anyhow!("{pinned}: {rejection}; nothing was pulled, see `bundlegate verify`")
    })
}

async fn fetch(
    options: &Options,
    registries: &Registries,
    from: &Source,
    images: &Images,
    pinned: &PinnedReference,
    reference: &Reference,
) -> anyhow::Result<()> {
    let store = images.clone();
    let lease = spawn_blocking(move || store.write_lease()).await??;
    let to = registries
        .destination(&images.repository())?
        .with_tag_prefix(reference.repository());
    let bars = Bars::new();
    let transfer = Transfer {
        from,
        to: &to,
        signatures: Signatures::Include,
        mount_from: &[],
        max_size: options.max_size.bytes(),
        progress: &bars,
    };
    let (manifest, copied) = transfer.copy_tree(pinned).await?;
    for skipped in copied.skipped {
        eprint(&format!("pull {reference}: skipped a signature: {skipped}"));
    }
    let (store, name) = (images.clone(), reference.clone());
    spawn_blocking(move || store.set_name(&lease, manifest.descriptor(), &name)).await??;
    Ok(())
}
