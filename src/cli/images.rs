//! `bundlegate images`.

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{flags::RegistryFlags, place::StoreFlag, remote, say, table};
use crate::images::Image;

/// How to run `images`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// List what a registry has instead: the tags of HOST/REPOSITORY, or the repositories
    /// of HOST where it keeps a list of them.
    #[arg(long, value_name = "HOST[/REPOSITORY]")]
    remote: Option<String>,
    /// Only repositories whose name contains this.
    #[arg(long, value_name = "WORD", requires = "remote")]
    search: Option<String>,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate images
  bundlegate images --remote ghcr.io/acme/authz
  bundlegate images --remote registry.lan:5000 --search authz

SIGNED says that a signature lies beside the image; `bundlegate verify` judges it.";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    if let Some(from) = &options.remote {
        return remote::run(from, options.search.as_deref(), options.json, &options.registry).await;
    }
    let images = options.store.open()?.list()?;
    if options.json {
        return say(&format!("{:#}", images.iter().map(in_json).collect::<Value>()));
    }
    let now = crate::telemetry::now();
    let rows: Vec<_> = images.iter().map(|image| row(image, now)).collect();
    say(&table::columns(["REPOSITORY", "TAG", "DIGEST", "REVISION", "CREATED", "SIZE", "SIGNED"], &rows))
}

fn row(image: &Image, now: Timestamp) -> [String; 7] {
    [
        image.repository.clone(),
        image.tag.clone().unwrap_or_else(|| "-".to_owned()),
        image.digest.hex()[..12].to_owned(),
        image.revision.clone(),
        image.created.map_or_else(|| "-".to_owned(), |created| table::age(created, now)),
        table::size(image.size),
        if image.signed { "yes" } else { "no" }.to_owned(),
    ]
}

fn in_json(image: &Image) -> Value {
    json!({ "repository": image.repository, "tag": image.tag, "digest": image.digest,
        "revision": image.revision, "created": image.created.map(|created| format!("{created:.3}")),
        "size": image.size, "signed": image.signed })
}
