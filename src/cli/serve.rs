//! `bundlegate serve`.

use std::path::Path;

use tokio::runtime::Handle;

use crate::{
    config::Config,
    gateway::{self, Gateway, StopSignals},
    service_manager::ServiceManager,
    telemetry,
};

/// Serves until a signal ends it. `serving` is the runtime for the connections of clients.
pub(super) async fn run(file: &Path, serving: Handle) -> anyhow::Result<()> {
    // The file is read again after every change, and a pipe can be read only once.
    if std::fs::metadata(file).is_ok_and(|metadata| !metadata.is_file()) {
        anyhow::bail!(
            "{}: it is not a regular file, and serve reads it again on every change; name one",
            file.display()
        );
    }
    let config = Config::load(file)?;
    telemetry::set_format(config.log.format);
    let options = gateway::server_options(&config)?;
    let (drain, exit) = StopSignals::install()?.drain_and_exit();
    // Clients get the same bundles without it.
    let manager = ServiceManager::from_env().unwrap_or_else(|error| {
        tracing::warn!(%error, "the service manager gets no messages");
        ServiceManager::default()
    });
    Gateway::start_on(serving, config, options, Some(file))
        .await?
        .report_to(manager)
        .run(drain, exit)
        .await
}
