//! `bundlegate rm`.

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{
    place::{StoreFlag, reference},
    say, tell,
};
use crate::oci::Reference;

/// How to run `rm`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Images of the store; a digest stands for all its tags in that repository.
    #[arg(required = true, value_name = "REF", value_parser = reference)]
    references: Vec<Reference>,
    #[command(flatten)]
    store: StoreFlag,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "Example:
  bundlegate rm ghcr.io/acme/authz:v1

Takes the name away, and with the last name of an image its files and signatures. What lies
in a registry stays there.";

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let images = options.store.open()?;
    let mut removed = Vec::new();
    for reference in &options.references {
        match images.remove(reference) {
            Ok(image) => removed.push((reference.to_string(), image.digest)),
            Err(error) => tell(&error.to_string()),
        }
    }
    if options.json {
        let list = removed.iter().map(|(reference, digest)| json!({ "reference": reference, "digest": digest }));
        say(&format!("{:#}", list.collect::<serde_json::Value>()))?;
    } else {
        removed.iter().try_for_each(|(reference, digest)| say(&format!("{reference}@{digest}")))?;
    }
    match (options.references.len(), options.references.len() - removed.len()) {
        (_, 0) => Ok(()),
        (all, failed) => bail!("rm: {failed} of {all} could not be removed"),
    }
}
