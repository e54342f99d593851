//! `bundlegate tags`.

use clap::Args;

use super::{flags::RegistryFlags, remote_list};

/// How to run `tags`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The repository, such as ghcr.io/acme/authz.
    #[arg(value_name = "HOST/REPOSITORY")]
    repository: String,
    /// Print names alone, one a line.
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

SIGNED says that a signature lies under a tag of its own; `bundlegate verify` judges it.";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let form = remote_list::Form::of(options.json, options.quiet);
    remote_list::tags(&options.repository, form, &options.registry).await
}
