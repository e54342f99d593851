//! `bundlegate copy`.

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use super::{flags::RegistryFlags, interruptible, progress::Bars, say, say_json, store_flag::reference, tell};
use crate::{
    config::Size,
    oci::{Digest, Reference, Selector},
    transfer::{Signatures, Transfer},
};

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate copy ghcr.io/acme/authz:v1 registry.lan:5000/acme/authz:v1
  bundlegate copy ghcr.io/acme/authz:v1 oci-layout:carry               into a folder, and
  bundlegate copy oci-layout:carry:v1 registry.lan:5000/acme/authz:v1  out of it, on the other side";

/// How to run `copy`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An artifact of a registry, or of a folder (oci-layout:PATH[:TAG]).
    #[arg(value_name = "SRC", value_parser = reference)]
    source: Reference,
    /// The destination; a folder without a tag takes that of SRC.
    #[arg(value_name = "DST", value_parser = reference)]
    destination: Reference,
    /// Leave its signatures and other referrers.
    #[arg(long)]
    no_signatures: bool,
    /// Speak plain HTTP to the registry of SRC alone.
    #[arg(long, help_heading = "Registry")]
    from_plain_http: bool,
    /// Speak plain HTTP to the registry of DST alone.
    #[arg(long, help_heading = "Registry")]
    to_plain_http: bool,
    /// Copy nothing larger than this.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let digest = interruptible(copy(&options)).await??;
    if options.json {
        let reference = options.destination.to_string();
        return say_json(&json!({ "reference": reference, "digest": digest }));
    }
    say(&options.destination.repository().pin(digest).to_string())
}

async fn copy(options: &Options) -> anyhow::Result<Digest> {
    let Options { source, destination, .. } = options;
    let access = options.registry.access()?;
    let (from_flags, to_flags) = (options.flags(options.from_plain_http), options.flags(options.to_plain_http));
    let described = [(source.repository().host(), &from_flags), (destination.repository().host(), &to_flags)];
    let registries = options.registry.registries_as(access.as_ref(), &described, options.registry.login())?;
    let from = registries.source(source.repository())?;
    let to = registries.destination(destination.repository())?;
    let pinned = from.resolve(source).await?;
    let tags = match destination.selector() {
        Selector::Tag(tag) => vec![tag.clone()],
        Selector::Only => source.tag().map(str::to_owned).into_iter().collect(),
        Selector::Digest(digest) if digest == pinned.digest() => Vec::new(),
        Selector::Digest(digest) => {
            bail!("copy {source}: it is {}, not {digest}; name a tag for the copy", pinned.digest());
        }
    };
    let bars = Bars::new();
    let transfer = Transfer {
        from: &from,
        to: &to,
        signatures: if options.no_signatures { Signatures::Left } else { Signatures::Along },
        neighbours: &[],
        max_size: options.max_size.bytes(),
        progress: &bars,
    };
    let copied = transfer.run(&pinned, &tags).await.with_context(|| format!("copy {source}"))?;
    for skipped in copied.skipped {
        tell(&format!("copy {source}: left out a signature: {skipped}"));
    }
    Ok(pinned.digest().clone())
}

impl Options {
    fn flags(&self, plain_http: bool) -> RegistryFlags {
        let mut flags = self.registry.clone();
        flags.plain_http |= plain_http;
        flags
    }
}
