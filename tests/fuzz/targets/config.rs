//! The configuration. An error is one line.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use bundlegate::config::Config;
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = bundlegate_fuzz::scratch("config");
    fs::write(
        folder.join("release.pub"),
        bundlegate_fuzz::key().public_pem(),
    )
    .expect("a folder of our own");
    fs::write(folder.join("token"), "s3cret").expect("a folder of our own");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text, &FOLDER) {
        Ok(config) => assert!(!config.clients.is_empty() && config.limits.files > 0),
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error:?}"),
    }
});
