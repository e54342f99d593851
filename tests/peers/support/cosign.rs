//! Key pairs and signatures, by both generations of cosign.

use std::path::PathBuf;

use tempfile::TempDir;

use super::{Registry, run};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cosign {
    V3,
    V2,
}

/// Where the signature is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Sigstore bundle v0.3, a referrer.
    Bundle,
    /// Simple signing, under the `.sig` tag.
    Legacy,
}

/// A key pair of cosign's.
#[derive(Debug)]
pub(crate) struct KeyPair {
    folder: TempDir,
}

impl KeyPair {
    pub(crate) async fn generate() -> Self {
        let folder = TempDir::new().unwrap();
        run("cosign", folder.path(), &["generate-key-pair"]).await;
        Self { folder }
    }

    /// The public key, as PEM.
    pub(crate) fn public(&self) -> PathBuf {
        self.folder.path().join("cosign.pub")
    }

    /// Signs `name`, such as `acme/authz@sha256:…`, with the newest cosign in its own format.
    pub(crate) async fn sign(&self, registry: &Registry, name: &str) {
        self.sign_with(Cosign::V3, Format::Bundle, registry, name)
            .await;
    }

    /// Signs without a transparency log, which would be reached over the Internet.
    pub(crate) async fn sign_with(
        &self,
        cosign: Cosign,
        format: Format,
        registry: &Registry,
        name: &str,
    ) {
        let reference = registry.reference(name);
        let new_format = format!("--new-bundle-format={}", format == Format::Bundle);
        let mut arguments = vec![
            "sign",
            "-y",
            "--key",
            "cosign.key",
            "--tlog-upload=false",
            &new_format,
        ];
        let program = match cosign {
            Cosign::V3 => {
                arguments.push("--use-signing-config=false");
                "cosign"
            }
            Cosign::V2 => "cosign-2",
        };
        let flags = registry.cosign_flags();
        arguments.extend(flags.iter().map(String::as_str));
        arguments.push(&reference);
        run(program, self.folder.path(), &arguments).await;
    }
}

impl Format {
    /// The name of the format in `/status`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Legacy => "legacy",
        }
    }
}
