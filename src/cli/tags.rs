//! `bundlegate tags`.

use clap::Args;

use super::{flags::RegistryFlags, remote_list};
use crate::oci::{TagOrder, TagRule, VersionRange};

/// Arguments of `tags`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The repository, such as ghcr.io/acme/authz.
    #[arg(value_name = "HOST/REPOSITORY")]
    repository: String,
    /// Only the versions in this range, the highest first: the one that a bundle with this `semver`
    /// serves.
    #[arg(long, value_name = "RANGE")]
    semver: Option<VersionRange>,
    /// Print only names, one per line.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate tags ghcr.io/acme/authz
  bundlegate tags --semver '^1 || ^3' ghcr.io/acme/authz

SIGNED means that a signature tag exists, unverified; `bundlegate verify` verifies it.";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let format = remote_list::ListFormat::of(options.json, options.quiet);
    let rule = options
        .semver
        .map(|range| TagRule::new(TagOrder::Version(range), None));
    remote_list::tags(
        &options.repository,
        rule.as_ref(),
        format,
        &options.registry,
    )
    .await
}
