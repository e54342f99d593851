//! `bundlegate copy`.

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use super::{
    eprint, flags::RegistryFlags, interruptible, print, print_json, progress::Bars,
    store_flag::reference,
};
use crate::{
    config::Size,
    oci::{Digest, PinnedReference, Reference, Selector},
    registry::Source,
    transfer::{Signatures, Transfer},
};

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate copy ghcr.io/acme/authz:v1 registry.lan:5000/acme/authz:v1
  bundlegate copy ghcr.io/acme/authz:v1 oci-layout:carry               to a folder
  bundlegate copy oci-layout:carry:v1 registry.lan:5000/acme/authz:v1  from a folder";

/// Arguments of `copy`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Source: an artifact in a registry or in a folder (oci-layout:PATH[:TAG]).
    #[arg(value_name = "SRC", value_parser = reference)]
    source: Reference,
    /// Destination; a folder without a tag gets the tag of SRC.
    #[arg(value_name = "DST", value_parser = reference)]
    destination: Reference,
    /// Don't copy signatures and other referrers.
    #[arg(long)]
    no_signatures: bool,
    /// Use plain HTTP for the registry of SRC only.
    #[arg(long, help_heading = "Registry")]
    from_plain_http: bool,
    /// Use plain HTTP for the registry of DST only.
    #[arg(long, help_heading = "Registry")]
    to_plain_http: bool,
    /// Maximum size of a blob.
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
        return print_json(&json!({ "reference": reference, "digest": digest }));
    }
    print(&options.destination.repository().pin(digest).to_string())
}

async fn copy(options: &Options) -> anyhow::Result<Digest> {
    let Options {
        source,
        destination,
        ..
    } = options;
    let cli_config = options.registry.cli_config()?;
    let (from_flags, to_flags) = (
        options.flags(options.from_plain_http),
        options.flags(options.to_plain_http),
    );
    let hosts = [
        (source.repository().host(), &from_flags),
        (destination.repository().host(), &to_flags),
    ];
    let registries =
        options
            .registry
            .registries_as(cli_config.as_ref(), &hosts, options.registry.login())?;
    let from = registries.source(source.repository())?;
    let to = registries.destination(destination.repository())?;
    let pinned = resolve(&from, source).await?;
    let tags = match destination.selector() {
        Selector::Tag(tag) => vec![tag.clone()],
        Selector::Only | Selector::Rule(_) => source.tag().map(str::to_owned).into_iter().collect(),
        Selector::Digest(digest) if digest == pinned.digest() => Vec::new(),
        Selector::Digest(digest) => {
            bail!(
                "copy {source}: its digest is {}, not {digest}; name a tag for the copy",
                pinned.digest()
            );
        }
    };
    let bars = Bars::new();
    let transfer = Transfer {
        from: &from,
        to: &to,
        signatures: if options.no_signatures {
            Signatures::Exclude
        } else {
            Signatures::Include
        },
        mount_from: &[],
        max_size: options.max_size.bytes(),
        progress: &bars,
    };
    let copied = transfer
        .run(&pinned, &tags)
        .await
        .with_context(|| format!("copy {source}"))?;
    for skipped in copied.skipped {
        eprint(&format!("copy {source}: skipped a signature: {skipped}"));
    }
    Ok(pinned.digest().clone())
}

/// Resolves the source at the registry itself, whose tag may have moved since a mirror fetched it;
/// at a mirror only while the registry does not answer.
async fn resolve(from: &Source, source: &Reference) -> anyhow::Result<PinnedReference> {
    match from.clone().at_origin().resolve(source).await {
        Err(error) if from.is_out_of_service(&error) => {
            // A mirror answers, or the registry fails again.
            let pinned = from.resolve(source).await?;
            eprint(&format!(
                "copy {source}: {error}; its tag is that of a mirror"
            ));
            Ok(pinned)
        }
        resolved => Ok(resolved?),
    }
}

impl Options {
    fn flags(&self, plain_http: bool) -> RegistryFlags {
        let mut flags = self.registry.clone();
        flags.plain_http |= plain_http;
        flags
    }
}
