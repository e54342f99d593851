//! `bundlegate tags`.

use clap::Args;

use super::{flags::RegistryFlags, remote_list};

/// Arguments of `tags`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The repository, such as ghcr.io/acme/authz.
    #[arg(value_name = "HOST/REPOSITORY")]
    repository: String,
    /// Print only names, one per line.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

pub(super) const EXAMPLES: &str = "Example:
  bundlegate tags ghcr.io/acme/authz

SIGNED means that a signature tag exists, unverified; `bundlegate verify` verifies it.";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let format = remote_list::ListFormat::of(options.json, options.quiet);
    remote_list::tags(&options.repository, format, &options.registry).await
}
