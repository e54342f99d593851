//! `bundlegate tag`.

use clap::Args;
use serde_json::json;

use super::{
    say, say_json,
    store_flag::{StoreFlag, Stored, reference, stored},
    tell,
};
use crate::oci::Reference;

/// How to run `tag`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An image of the store, by tag, digest or the beginning of one.
    #[arg(value_name = "SRC", value_parser = stored)]
    source: Stored,
    /// What to call it, too.
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
    tell(&format!("tagged {source} as {}", options.name));
    let (reference, digest) = (options.name.to_string(), tagged.digest);
    if options.json {
        return say_json(&json!({ "reference": reference, "digest": digest }));
    }
    say(&format!("{reference}@{digest}"))
}
