//! `bundlegate push`.

use anyhow::Context as _;
use clap::Args;
use tokio::task::spawn_blocking;

use super::{
    eprint,
    flags::RegistryFlags,
    for_each,
    progress::Bars,
    store_flag::{ImageName, StoreFlag, image_name},
};
use crate::{
    config::{CliConfig, Size},
    images::Images,
    oci::{PinnedReference, Reference, Repository},
    transfer::{Signatures, Transfer},
};

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate push ghcr.io/acme/authz:v1
  bundlegate push ghcr.io/acme/authz:v1 ghcr.io/acme/authz:live
  bundlegate push --plain-http localhost:5000/acme/authz:v1";

/// Arguments of `push`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Images in the store; their names contain the registry.
    #[arg(value_name = "REF", required = true, value_parser = image_name)]
    references: Vec<ImageName>,
    /// Don't push the signatures in the store.
    #[arg(long)]
    no_signatures: bool,
    /// Maximum size of a blob.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let cli_config = options.registry.cli_config()?;
    let store = options.store.clone();
    let names = options.references.clone();
    let (images, references) = spawn_blocking(move || -> anyhow::Result<_> {
        let images = store.open()?;
        let references = names
            .iter()
            .map(|name| name.find_unique(&images))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok((images, references))
    })
    .await??;
    let work =
        async |reference: &Reference| push(&options, cli_config.as_ref(), &images, reference).await;
    for_each::in_order(&references, options.json, work).await
}

async fn push(
    options: &Options,
    cli_config: Option<&CliConfig>,
    images: &Images,
    reference: &Reference,
) -> anyhow::Result<PinnedReference> {
    let repository = reference.repository();
    let (registries, _) = options.registry.registries(cli_config, repository)?;
    let from = registries
        .source(&images.repository())?
        .with_tag_prefix(repository);
    let to = registries.destination(repository)?;
    let (store, name) = (images.clone(), reference.clone());
    let (found, neighbours) = spawn_blocking(move || -> anyhow::Result<_> {
        let found = store.resolve(&name)?;
        let found = found
            .with_context(|| format!("{name}: not in the image store; see `bundlegate images`"))?;
        let neighbours = neighbours(&store, &name)?;
        Ok((found, neighbours))
    })
    .await??;
    let bars = Bars::new();
    let signatures = if options.no_signatures {
        Signatures::Exclude
    } else {
        Signatures::Include
    };
    let transfer = Transfer {
        from: &from,
        to: &to,
        signatures,
        mount_from: &neighbours,
        max_size: options.max_size.bytes(),
        progress: &bars,
    };
    let tags: Vec<_> = reference.tag().map(str::to_owned).into_iter().collect();
    let copied = transfer
        .run(&images.repository().pin(found.digest.clone()), &tags)
        .await;
    let copied = copied.with_context(|| format!("push {reference}"))?;
    for skipped in copied.skipped {
        eprint(&format!("push {reference}: skipped a signature: {skipped}"));
    }
    drop(bars);
    let signatures = match copied.referrers {
        0 => String::new(),
        1 => " with 1 signature or referrer".to_owned(),
        many => format!(" with {many} signatures and referrers"),
    };
    eprint(&format!("pushed {reference}{signatures}"));
    Ok(repository.pin(found.digest))
}

/// Other repositories of the same registry in which the image has a name. Blobs that were pushed
/// there can be mounted.
fn neighbours(images: &Images, reference: &Reference) -> anyhow::Result<Vec<Repository>> {
    const MAX_NEIGHBOURS: usize = 3;
    let Some(digest) = images.resolve(reference)?.map(|found| found.digest) else {
        return Ok(Vec::new());
    };
    let mut found: Vec<Repository> = Vec::new();
    for image in images.list()?.iter().filter(|image| image.digest == digest) {
        let Ok(other) = image.name().parse::<Reference>() else {
            continue;
        };
        let other = other.repository();
        let near = other.host() == reference.repository().host() && other != reference.repository();
        if near && !found.contains(other) && found.len() < MAX_NEIGHBOURS {
            found.push(other.clone());
        }
    }
    Ok(found)
}
