//! Flags of OPA's own signatures, for `build` and `sign`.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;

use super::{eprint, path::path_value, read};
use crate::bundle::{Signer, SigningAlgorithm};

/// The group of the flag that makes a signature for OPA, which the others need.
pub(super) const SIGNS_FOR_OPA: &str = "signs_for_opa";

/// The key that signs a bundle as `opa build --signing-key` does.
#[derive(Debug, Args)]
#[command(next_help_heading = "OPA's own signature")]
pub(super) struct BundleSigningFlags {
    /// Sign the bundle for OPA with this private key: PEM, not encrypted, or a secret for HS256.
    #[arg(long, value_name = "FILE", group = SIGNS_FOR_OPA, value_parser = path_value())]
    signing_key: Option<PathBuf>,
    #[command(flatten)]
    how: SignatureFlags,
}

/// How a signature for OPA is made.
#[derive(Debug, Args)]
#[command(next_help_heading = "OPA's own signature")]
pub(super) struct SignatureFlags {
    /// Algorithm: ES256, RS256, PS256 or HS256, also with 384 and 512; OPA's `keys` must name it.
    #[arg(
        long,
        value_name = "ALG",
        default_value = "RS256",
        requires = SIGNS_FOR_OPA,
        value_parser = algorithm
    )]
    signing_alg: SigningAlgorithm,
    /// Name of the key in OPA's `keys`.
    #[arg(
        long,
        value_name = "KID",
        default_value = "default",
        visible_alias = "verification-key-id",
        requires = SIGNS_FOR_OPA,
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    signing_kid: String,
    /// Scope of the signature; OPA accepts it only with the same scope in its configuration.
    #[arg(
        long,
        value_name = "SCOPE",
        default_value = "",
        hide_default_value = true,
        requires = SIGNS_FOR_OPA
    )]
    scope: String,
}

impl BundleSigningFlags {
    /// The signer, if there is a key.
    pub(super) fn signer(&self) -> anyhow::Result<Option<Signer>> {
        let key = self.signing_key.as_deref();
        key.map(|file| self.how.signer("--signing-key", file))
            .transpose()
    }
}

impl SignatureFlags {
    /// The signer with the key in a file, which `flag` names.
    pub(super) fn signer(&self, flag: &str, file: &Path) -> anyhow::Result<Signer> {
        let algorithm = self.signing_alg;
        let content = zeroize::Zeroizing::new(read::bytes(flag, file, read::KEY_LIMIT)?);
        if algorithm.is_symmetric() {
            eprint(&format!(
                "--signing-alg {algorithm}: every OPA that can check the signature can forge one; prefer ES256"
            ));
        }
        let signer = Signer::new(&content, algorithm, &*self.signing_kid, &*self.scope);
        signer.map_err(|error| {
            anyhow!(
                "{flag} {}: it has {error}; name the right file, or another --signing-alg",
                file.display()
            )
        })
    }
}

fn algorithm(text: &str) -> Result<SigningAlgorithm, String> {
    SigningAlgorithm::named(text).ok_or_else(|| {
        let names = SigningAlgorithm::ALL.map(|(name, _)| name);
        format!("{text:?} is not one of {}", names.join(", "))
    })
}
