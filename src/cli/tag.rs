//! `bundlegate tag`.

use clap::Args;
use serde_json::json;

use super::{
    eprint, print, print_json,
    store_flag::{ImageName, StoreFlag, image_name, reference},
};
use crate::oci::Reference;

/// Arguments of `tag`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Source: an image in the store, by tag, digest or digest prefix.
    #[arg(value_name = "SRC", value_parser = image_name)]
    source: ImageName,
    /// Destination: the new name.
    #[arg(value_name = "DST", value_parser = reference)]
    name: Reference,
    #[command(flatten)]
    store: StoreFlag,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "Example:
  bundlegate tag ghcr.io/acme/authz:v1 ghcr.io/acme/authz:live";

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let images = options.store.open()?;
    let source = options.source.find(&images)?;
    let tagged = images.tag(&source, &options.name)?;
    eprint(&format!("tagged {source} as {}", options.name));
    let (reference, digest) = (options.name.to_string(), tagged.digest);
    if options.json {
        return print_json(&json!({ "reference": reference, "digest": digest }));
    }
    print(&format!("{reference}@{digest}"))
}
