//! The wiring: starting the programs, and asking them what they see.

mod artifact;
mod author;
mod balancer;
mod ca;
mod cosign;
mod gate;
mod opa;
mod process;
mod programs;
mod proxy;
mod registry;
mod sigstore;
mod terminal;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep};

pub(crate) use artifact::Artifact;
pub(crate) use author::{Author, READER, Ran, WRITER};
pub(crate) use balancer::Balancer;
pub(crate) use ca::Ca;
pub(crate) use cosign::{Cosign, Format, KeyPair};
pub(crate) use gate::{Gate, GateConfig};
pub(crate) use opa::{Opa, OpaVersion, free_address, long_polling};
pub(crate) use process::Process;
pub(crate) use programs::{program, run, search_path};
pub(crate) use proxy::Proxy;
pub(crate) use registry::{Kind, PASSWORD, Registry, USER};
pub(crate) use sigstore::{Evidence, Identity, KeyKind, Signer, Signing, Sigstore};
pub(crate) use terminal::Terminal;

/// Far beyond what anything here takes, even on a machine with better things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until there is something to see, and says how long that took.
pub(crate) async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> (T, Duration) {
    let began = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return (seen, began.elapsed());
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// A client that no proxy of the machine gets between.
pub(crate) fn http() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

/// A folder of samples from the field, which a clone of the repository alone does not have.
pub(crate) fn fixture(name: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
    let folder = std::env::var_os("BUNDLEGATE_FIXTURES")
        .map_or_else(beside, PathBuf::from)
        .join(name);
    if !folder.exists() {
        // Past the test runner, which shows nothing of tests that pass.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: {name}, for {} is not there",
            folder.display()
        );
        return None;
    }
    Some(folder)
}
