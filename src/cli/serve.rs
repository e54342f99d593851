//! `bundlegate serve`.

use std::path::Path;

use crate::{
    config::Config,
    gateway::{self, Gateway, StopSignals},
};

pub(super) async fn run(file: &Path) -> anyhow::Result<()> {
    // The file is read again after every change, and a pipe can be read only once.
    if std::fs::metadata(file).is_ok_and(|metadata| !metadata.is_file()) {
        anyhow::bail!(
            "{}: it is not a regular file, and serve reads it again on every change; name one",
            file.display()
        );
    }
    let config = Config::load(file)?;
    let options = gateway::server_options(&config)?;
    let (drain, exit) = StopSignals::install()?.drain_and_exit();
    Gateway::start(config, options, Some(file))
        .await?
        .run(drain, exit)
        .await
}
