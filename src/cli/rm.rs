//! `bundlegate rm`.

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{
    say, say_json, sentence,
    store_flag::{StoreFlag, Stored, stored},
    tell,
};
use crate::oci::Digest;

/// How to run `rm`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Images of the store; a digest, or the beginning of one, stands for all its tags in its
    /// repository.
    #[arg(required = true, value_name = "REF", value_parser = stored)]
    references: Vec<Stored>,
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
    let mut names = Vec::new();
    for name in &options.references {
        match name.find_one(&images) {
            Ok(reference) => names.push(reference),
            Err(error) => tell(&sentence(&error)),
        }
    }
    let mut removed = Vec::new();
    for (reference, outcome) in names.iter().zip(images.remove_all(&names)?) {
        match outcome {
            Ok(image) => {
                tell(&format!("removed {reference} from the image store"));
                removed.push((reference.to_string(), image.digest));
            }
            Err(error) => tell(&error.to_string()),
        }
    }
    if options.json {
        let list = removed.iter().map(|(reference, digest)| json!({ "reference": reference, "digest": digest }));
        say_json(&list.collect::<serde_json::Value>())?;
    } else {
        removed.iter().try_for_each(|(reference, digest)| say(&pinned(reference, digest)))?;
    }
    match (options.references.len(), options.references.len() - removed.len()) {
        (_, 0) => Ok(()),
        (all, failed) => bail!("rm: {failed} of {all} could not be removed"),
    }
}

/// A reference with its digest, which it may already have.
fn pinned(reference: &str, digest: &Digest) -> String {
    if reference.ends_with(digest.as_str()) { reference.to_owned() } else { format!("{reference}@{digest}") }
}
