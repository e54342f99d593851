//! `bundlegate serve`.

use std::path::Path;

use super::gate::Gate;
use crate::config::Config;

pub(super) async fn run(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let options = super::gate::server_options(&config)?;
    Gate::start(config, options, Some(file)).await?.run().await
}
