//! A file of bearer tokens.

use std::path::{Path, PathBuf};

use super::{
    client_credential::{Secret, retain_tokens_in, tokens},
    files::Base,
    problem::Problem,
};

/// The bearer tokens in a file, one per line, any of which is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    file: PathBuf,
    /// Empty only if all were revoked.
    tokens: Vec<Secret>,
}

impl TokenFile {
    pub(super) fn read(file: &Path, base: Base<'_>) -> Result<Self, Problem> {
        let tokens = tokens(&base.text(file)?)
            .map_err(|reason| Problem::new(format!("{}: {reason}", file.display())))?;
        Ok(Self {
            file: base.path(file)?,
            tokens,
        })
    }

    /// The tokens.
    pub fn tokens(&self) -> &[Secret] {
        &self.tokens
    }

    /// Removes the tokens that are no longer in the file, as
    /// [`ClientConfig::revoke`](super::ClientConfig::revoke) does. Blocks.
    pub fn revoke(&mut self) -> bool {
        retain_tokens_in(&self.file, &mut self.tokens)
    }
}
