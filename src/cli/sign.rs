//! `bundlegate sign`.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;

use super::{
    flags::RegistryFlags,
    interruptible, password, read, say, say_json,
    store_flag::{StoreFlag, Stored, annotation, stored},
    target::Location,
};
use crate::{
    oci::{PinnedReference, Reference},
    sign::{Attachment, Claim, KeyPair, LegacySignature},
    verify::Format,
};

/// What to sign, and how.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The artifact: HOST/REPOSITORY:TAG, …@sha256:…, or oci-layout:PATH; with --local, the
    /// beginning of a digest, too.
    #[arg(value_name = "REF", value_parser = stored)]
    reference: Stored,
    /// The private key file, as `cosign generate-key-pair` or `cosign import-key-pair` makes
    /// it. COSIGN_PASSWORD opens it, or it is asked for.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Sign this along; may be repeated.
    #[arg(short, long = "annotations", value_name = "KEY=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    /// Write cosign's first format, under the tag sha256-….sig, instead of a Sigstore bundle.
    #[arg(long)]
    legacy: bool,
    /// Sign what is in the image store; `push` takes the signature along.
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
    let reference = options.reference.in_place(&options.store, options.local).await?;
    let pinned = interruptible(sign(&options, &reference, &key)).await??;
    // The name that the author knows, also where the image store was written to.
    let name = format!("{}@{}", reference.repository(), pinned.digest());
    let format = if options.legacy { Format::Legacy } else { Format::Bundle }.label();
    if options.json {
        let (reference, digest) = (reference.to_string(), pinned.digest().to_string());
        return say_json(&Signed { reference, digest, format, identity: key.identity() });
    }
    say(&format!("{name}\nsigned by {} ({format})", key.identity()))
}

/// Resolves once; everything else is about that digest.
async fn sign(options: &Options, reference: &Reference, key: &KeyPair) -> anyhow::Result<PinnedReference> {
    let access = options.registry.access()?;
    let location = Location::of(reference, options.local, &options.store, &options.registry, access.as_ref())?;
    let pinned = location.resolve(reference).await?;
    let subject = location.source().manifest(&pinned).await?.descriptor();
    let claim = Claim { subject, annotations: options.annotations.iter().cloned().collect::<BTreeMap<_, _>>() };
    let destination = location.destination()?;
    if options.legacy {
        let repository = reference.repository().to_string();
        let signature = LegacySignature::sign(key, &claim, &repository)?;
        signature.append(&pinned, location.source(), &destination).await?;
    } else {
        Attachment::sign(key, &claim)?.attach(&pinned, &destination).await?;
    }
    Ok(pinned)
}

impl Options {
    fn open_key(&self) -> anyhow::Result<KeyPair> {
        let file = self.key.display();
        let text = read::text("--key", &self.key, read::KEY_LIMIT)?;
        KeyPair::check(&text).map_err(|error| anyhow!("--key {file}: {error}"))?;
        let password = password::of(&self.key)?;
        KeyPair::open(&text, password.as_bytes()).map_err(|error| anyhow!("--key {file}: {error}"))
    }
}
