//! `bundlegate version`.

use std::env::consts::{ARCH, OS};

use serde_json::json;

use super::{print, print_json};

pub(super) fn run(as_json: bool) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    if as_json {
        return print_json(&json!({ "version": version, "os": OS, "arch": ARCH }));
    }
    print(&format!("bundlegate {version} ({OS}, {ARCH})"))
}
