//! Starts the real programs, and reads their state.

mod artifact;
mod author;
mod balancer;
mod ca;
mod cosign;
mod engine;
mod forward_proxy;
mod front;
mod gateway;
mod link;
mod load;
mod opa;
mod programs;
mod prometheus;
mod proxy;
mod registry;
mod sigstore;
mod simulated;
mod terminal;
mod tls_front;
mod tokens;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

pub(crate) use artifact::Artifact;
pub(crate) use author::{Author, READER, Ran, WRITER};
pub(crate) use balancer::{Balancer, BalancerKind};
pub(crate) use ca::Ca;
pub(crate) use cosign::{Cosign, Format, KeyPair};
pub(crate) use engine::{Engine, free_port, sentinel};
pub(crate) use forward_proxy::ForwardProxy;
pub(crate) use front::{Front, LinkForm, Quirk};
pub(crate) use gateway::GatewayConfig;
pub(crate) use link::Link;
pub(crate) use load::Load;
pub(crate) use opa::{Opa, OpaVersion, free_address, long_polling};
pub(crate) use programs::{program, run, search_path};
pub(crate) use prometheus::Prometheus;
pub(crate) use proxy::Proxy;
pub(crate) use registry::{HTPASSWD, Kind, PASSWORD, Registry, USER};
pub(crate) use sigstore::{Evidence, Identity, KeyKind, Signer, Signing, Sigstore};
pub(crate) use simulated::Simulated;
pub(crate) use terminal::Terminal;
pub(crate) use tls_front::{Clients, TlsFront, nginx};
pub(crate) use tokens::{Issued, READER as TOKEN_READER, RealTokenServer, TokenServer};

pub(crate) use crate::shared::{PATIENCE, Process, TestGateway, poll_until};

/// A client that ignores the proxies of the machine.
pub(crate) fn http() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

/// A folder of real samples, which a clone of the repository does not have.
pub(crate) fn fixture(name: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
    let folder = std::env::var_os("BUNDLEGATE_FIXTURES")
        .map_or_else(beside, PathBuf::from)
        .join(name);
    if !folder.exists() {
        // Written past the test runner, which shows no output of tests that pass.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: {name}, for {} is not there",
            folder.display()
        );
        return None;
    }
    Some(folder)
}
