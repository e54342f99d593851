//! Passwords of key files: from the environment, or typed where nobody sees them.

use std::{
    env,
    io::{IsTerminal as _, stdin},
    path::Path,
};

use anyhow::{Context as _, bail};
use zeroize::Zeroizing;

/// cosign's own variable.
const VARIABLE: &str = "COSIGN_PASSWORD";

/// The password that opens a key file.
pub(super) fn of(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    match given()? {
        Some(password) => Ok(password),
        None => typed(&format!("Password for {}: ", file.display())),
    }
}

/// A password for a key file that is about to be made: typed twice.
pub(super) fn for_new(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    if let Some(password) = given()? {
        return Ok(password);
    }
    let password = typed(&format!("New password for {} (may be empty): ", file.display()))?;
    if *typed("The same again: ")? != *password {
        bail!("{}: the two passwords differ; try again", file.display());
    }
    Ok(password)
}

/// An empty one is one, too.
fn given() -> anyhow::Result<Option<Zeroizing<String>>> {
    match env::var(VARIABLE) {
        Ok(password) => Ok(Some(Zeroizing::new(password))),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => bail!("{VARIABLE}: not UTF-8; type the password instead"),
    }
}

fn typed(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    if !stdin().is_terminal() {
        bail!("password: there is no terminal to ask at; set {VARIABLE}");
    }
    rpassword::prompt_password(prompt).map(Zeroizing::new).context("password")
}
