//! `bundlegate verify-bundle`, hidden: the client protocol of sigstore-conformance
//! (its `docs/cli_protocol.md`).

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::{ArgGroup, Args};

use super::{path::path_value, read};
use crate::{
    oci::{Digest, read_regular_or_pipe},
    verify::{
        Identity, Pattern, TrustRoot,
        conformance::{ExpectedSigner, Subject, verify_bundle},
    },
};

/// Arguments of `verify-bundle`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("signer").args(["identity", "key"]).required(true))]
pub(super) struct Options {
    /// Trust Sigstore's staging instance instead of the public-good one.
    #[arg(long, conflicts_with = "trusted_root")]
    staging: bool,
    /// The Sigstore bundle.
    #[arg(long, value_name = "FILE", value_parser = path_value())]
    bundle: PathBuf,
    /// Identity in the certificate.
    #[arg(
        long = "certificate-identity",
        value_name = "IDENTITY",
        requires = "issuer"
    )]
    identity: Option<String>,
    /// OIDC issuer in the certificate.
    #[arg(
        long = "certificate-oidc-issuer",
        value_name = "URL",
        requires = "identity"
    )]
    issuer: Option<String>,
    /// Public key instead of a certificate identity.
    #[arg(long, value_name = "FILE", value_parser = path_value())]
    key: Option<PathBuf>,
    /// trusted_root.json instead of the built-in one.
    #[arg(long, value_name = "FILE", value_parser = path_value())]
    trusted_root: Option<PathBuf>,
    /// A file, or `sha256:` and 64 hexadecimal digits.
    #[arg(value_name = "FILE_OR_DIGEST")]
    subject: String,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let bundle = read::bytes("--bundle", &options.bundle, read::EVIDENCE_LIMIT)?;
    let signer = match (&options.identity, &options.issuer, &options.key) {
        (Some(identity), Some(issuer), _) => ExpectedSigner::Identity(Identity {
            issuer: Pattern::exact(issuer)?,
            subject: Pattern::exact(identity)?,
            claims: Default::default(),
        }),
        (_, _, Some(file)) => ExpectedSigner::Key(read::text("--key", file, read::KEY_LIMIT)?),
        _ => return Err(anyhow!("name a signer: --certificate-identity or --key")),
    };
    let root = match &options.trusted_root {
        Some(file) => TrustRoot::from_json(
            "--trusted-root",
            &read::text("--trusted-root", file, read::KEY_LIMIT)?,
        )?,
        None if options.staging => TrustRoot::sigstore_staging()?,
        None => TrustRoot::sigstore()?,
    };
    let subject = options.subject()?;
    verify_bundle(&bundle, &subject, &signer, &root)
        .map_err(|reason| anyhow!("{}: {reason}", options.bundle.display()))
}

impl Options {
    fn subject(&self) -> anyhow::Result<Subject> {
        match read_regular_or_pipe(self.subject.as_ref(), read::DOCUMENT_LIMIT) {
            Ok(bytes) => Ok(Subject::Bytes(bytes)),
            Err(error) => match self.subject.parse::<Digest>() {
                Ok(digest) if digest.algorithm() == "sha256" => Ok(Subject::Digest(digest)),
                _ => Err(error).with_context(|| self.subject.clone()),
            },
        }
    }
}
