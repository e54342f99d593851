//! Passwords of key files: from the environment, or from a prompt without echo.

use std::{
    env,
    io::{IsTerminal as _, stdin},
    path::Path,
};

use anyhow::{Context as _, bail};
use zeroize::Zeroizing;

/// The variable that cosign uses.
const VARIABLE: &str = "COSIGN_PASSWORD";

/// The password of an existing key file.
pub(super) fn for_key_file(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    match from_environment()? {
        Some(password) => Ok(password),
        None => prompt(&format!("Password for {}: ", file.display())),
    }
}

/// The password for a new key file; the prompt asks twice.
pub(super) fn for_new_key_file(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    if let Some(password) = from_environment()? {
        return Ok(password);
    }
    let password = prompt(&format!(
        "New password for {} (may be empty): ",
        file.display()
    ))?;
    if *prompt("Repeat the password: ")? != *password {
        bail!("{}: the passwords differ; try again", file.display());
    }
    Ok(password)
}

/// The password in the environment; it may be empty.
fn from_environment() -> anyhow::Result<Option<Zeroizing<String>>> {
    match env::var(VARIABLE) {
        Ok(password) => Ok(Some(Zeroizing::new(password))),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => {
            bail!("{VARIABLE}: not UTF-8; unset it and enter the password at the prompt")
        }
    }
}

fn prompt(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    if !stdin().is_terminal() {
        bail!("password: no terminal to prompt on; set {VARIABLE}");
    }
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .context("password")
}
