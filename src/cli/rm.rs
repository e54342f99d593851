//! `bundlegate rm`.

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{
    eprint, one_line, print, print_json,
    store_flag::{ImageName, StoreFlag, image_name},
};
use crate::oci::Digest;

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Images in the store; a digest or digest prefix stands for all its tags in the
    /// repository.
    #[arg(required = true, value_name = "REF", value_parser = image_name)]
    references: Vec<ImageName>,
    #[command(flatten)]
    store: StoreFlag,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "Example:
  bundlegate rm ghcr.io/acme/authz:v1

Removes the name, and with the last name of an image also its files and signatures. The
registry is not changed.";

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let images = options.store.open()?;
    let mut names = Vec::new();
    for name in &options.references {
        match name.find_unique(&images) {
            Ok(reference) => names.push(reference),
            Err(error) => eprint(&one_line(&error)),
        }
    }
    let mut removed = Vec::new();
    for (reference, outcome) in names.iter().zip(images.remove_all(&names)?) {
        match outcome {
            Ok(image) => {
                eprint(&format!("removed {reference} from the image store"));
                removed.push((reference.to_string(), image.digest));
            }
            Err(error) => eprint(&error.to_string()),
        }
    }
    if options.json {
        let list = removed
            .iter()
            .map(|(reference, digest)| json!({ "reference": reference, "digest": digest }));
        print_json(&list.collect::<serde_json::Value>())?;
    } else {
        removed
            .iter()
            .try_for_each(|(reference, digest)| print(&pinned(reference, digest)))?;
    }
    match (
        options.references.len(),
        options.references.len() - removed.len(),
    ) {
        (_, 0) => Ok(()),
        (all, failed) => bail!("rm: {failed} of {all} could not be removed"),
    }
}

/// The reference with the digest, unless it has one already.
fn pinned(reference: &str, digest: &Digest) -> String {
    if reference.ends_with(digest.as_str()) {
        reference.to_owned()
    } else {
        format!("{reference}@{digest}")
    }
}
