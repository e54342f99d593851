//! `bundlegate sign`.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;

use super::{
    flags::RegistryFlags,
    interruptible, password,
    path::path_value,
    print, print_json, read,
    store_flag::{ImageName, StoreFlag, annotation, image_name},
    target::Target,
};
use crate::{
    oci::{PinnedReference, Reference},
    sign::{Attachment, KeyPair, LegacySignature, SigningRequest},
    verify::Format,
};

/// Arguments of `sign`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The artifact: HOST/REPOSITORY:TAG, …@sha256:…, or oci-layout:PATH; with --local also a
    /// digest prefix.
    #[arg(value_name = "REF", value_parser = image_name)]
    reference: ImageName,
    /// Private key file of `cosign generate-key-pair` or `cosign import-key-pair`. The password
    /// comes from COSIGN_PASSWORD or a prompt.
    #[arg(long, value_name = "FILE", value_parser = path_value())]
    key: PathBuf,
    /// Annotation to sign as well; repeatable.
    #[arg(short, long = "annotations", value_name = "KEY=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    /// Write the format of cosign 2, with the tag sha256-….sig, instead of a Sigstore bundle.
    #[arg(long)]
    legacy: bool,
    /// Sign an image in the store; `push` pushes the signature as well.
    #[arg(long)]
    local: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate sign ghcr.io/acme/authz:v1 --key cosign.key
  bundlegate sign ghcr.io/acme/authz:v1 --key cosign.key --legacy -a env=prod";

#[derive(Serialize)]
struct Signed {
    reference: String,
    digest: String,
    format: &'static str,
    identity: String,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let key = options.open_key()?;
    let reference = options
        .reference
        .resolve_name(&options.store, options.local)
        .await?;
    let pinned = interruptible(sign(&options, &reference, &key)).await??;
    // The name that the user gave, also if the image is in the store.
    let name = format!("{}@{}", reference.repository(), pinned.digest());
    let format = if options.legacy {
        Format::Legacy
    } else {
        Format::Bundle
    }
    .label();
    if options.json {
        let (reference, digest) = (reference.to_string(), pinned.digest().to_string());
        return print_json(&Signed {
            reference,
            digest,
            format,
            identity: key.identity(),
        });
    }
    print(&format!("{name}\nsigned by {} ({format})", key.identity()))
}

/// Resolves the reference once, and signs that digest.
async fn sign(
    options: &Options,
    reference: &Reference,
    key: &KeyPair,
) -> anyhow::Result<PinnedReference> {
    let cli_config = options.registry.cli_config()?;
    let target = Target::new(
        reference,
        options.local,
        &options.store,
        &options.registry,
        cli_config.as_ref(),
    )?;
    // What is signed is what the registry has, and not what a mirror has.
    let target = target.at_origin();
    let pinned = target.resolve(reference).await?;
    let subject = target.source().manifest(&pinned).await?.descriptor();
    let claim = SigningRequest {
        subject,
        annotations: options
            .annotations
            .iter()
            .cloned()
            .collect::<BTreeMap<_, _>>(),
    };
    let destination = target.destination()?;
    if options.legacy {
        let repository = reference.repository().to_string();
        let signature = LegacySignature::sign(key, &claim, &repository)?;
        signature
            .append(&pinned, target.source(), &destination)
            .await?;
    } else {
        Attachment::sign(key, &claim)?
            .attach(&pinned, &destination)
            .await?;
    }
    Ok(pinned)
}

impl Options {
    fn open_key(&self) -> anyhow::Result<KeyPair> {
        let file = self.key.display();
        let text = read::text("--key", &self.key, read::KEY_LIMIT)?;
        KeyPair::check(&text).map_err(|error| anyhow!("--key {file}: {error}"))?;
        let password = password::for_key_file(&self.key)?;
        KeyPair::open(&text, password.as_bytes()).map_err(|error| anyhow!("--key {file}: {error}"))
    }
}
