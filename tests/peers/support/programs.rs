//! Finding the real programs, and running those that end by themselves.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use tokio::{process::Command, time::timeout};

use super::PATIENCE;

/// The peer `name` as `tests/peers/install` left it, or else as the machine has it.
pub(crate) fn program(name: &str) -> PathBuf {
    let found = env::split_paths(&search_path())
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("peer {name} is missing; run tests/peers/install"))
}

/// Runs `name` in `folder` to its end, and gives its standard output.
pub(crate) async fn run(name: &str, folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(program(name));
    // HOME: nobody's docker credentials or caches; each test stands alone.
    command
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .env("COSIGN_PASSWORD", "");
    command.env("PATH", search_path()).kill_on_drop(true);
    let ended = timeout(PATIENCE, command.output()).await;
    let output = ended
        .unwrap_or_else(|_| panic!("{name} {arguments:?} does not end"))
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}\n{stdout}{stderr}",
        output.status
    );
    stdout.trim().to_owned()
}

/// The peers and our own program first, for shells that run them by name.
pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = Path::new(env!("CARGO_BIN_EXE_bundlegate"))
        .parent()
        .unwrap()
        .to_owned();
    env::join_paths(
        [installed().join("bin"), own]
            .into_iter()
            .chain(env::split_paths(&path)),
    )
    .unwrap()
}

fn installed() -> PathBuf {
    if let Some(folder) = env::var_os("BUNDLEGATE_PEERS") {
        return folder.into();
    }
    let home = PathBuf::from(env::var_os("HOME").unwrap_or_default());
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    cache.join("bundlegate-peers")
}
