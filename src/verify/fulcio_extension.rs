//! The certificate extensions in which Fulcio describes the CI run that requested the
//! certificate.

use std::fmt;

use sigstore_verify::crypto::CertificateInfo;

/// An extension, by its name in Fulcio's documentation (`docs/oid-info.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FulcioExtension(usize);

type Read = fn(&CertificateInfo) -> Option<&String>;

/// The extensions `.9` to `.24` below 1.3.6.1.4.1.57264.1, then the names of `.2` to `.6`, which
/// only GitHub's certificates have and which Fulcio no longer recommends.
const EXTENSIONS: &[(&str, Read)] = &[
    ("build_signer_uri", |info| {
        info.ci_claims.build_signer_uri.as_ref()
    }),
    ("build_signer_digest", |info| {
        info.ci_claims.build_signer_digest.as_ref()
    }),
    ("runner_environment", |info| {
        info.ci_claims.runner_environment.as_ref()
    }),
    ("source_repository_uri", |info| {
        info.ci_claims.source_repository_uri.as_ref()
    }),
    ("source_repository_digest", |info| {
        info.ci_claims.source_repository_digest.as_ref()
    }),
    ("source_repository_ref", |info| {
        info.ci_claims.source_repository_ref.as_ref()
    }),
    ("source_repository_id", |info| {
        info.ci_claims.source_repository_identifier.as_ref()
    }),
    ("source_repository_owner_uri", |info| {
        info.ci_claims.source_repository_owner_uri.as_ref()
    }),
    ("source_repository_owner_id", |info| {
        info.ci_claims.source_repository_owner_identifier.as_ref()
    }),
    ("build_config_uri", |info| {
        info.ci_claims.build_config_uri.as_ref()
    }),
    ("build_config_digest", |info| {
        info.ci_claims.build_config_digest.as_ref()
    }),
    ("build_trigger", |info| {
        info.ci_claims.build_trigger.as_ref()
    }),
    ("run_invocation_uri", |info| {
        info.ci_claims.run_invocation_uri.as_ref()
    }),
    ("source_repository_visibility", |info| {
        info.ci_claims
            .source_repository_visibility_at_signing
            .as_ref()
    }),
    ("deployment_environment", |info| {
        info.ci_claims.deployment_environment.as_ref()
    }),
    ("token_subject", |info| {
        info.ci_claims.token_subject.as_ref()
    }),
    ("workflow_trigger", |info| {
        info.ci_claims.deprecated_github.workflow_trigger.as_ref()
    }),
    ("workflow_sha", |info| {
        info.ci_claims.deprecated_github.workflow_sha.as_ref()
    }),
    ("workflow_name", |info| {
        info.ci_claims.deprecated_github.workflow_name.as_ref()
    }),
    ("workflow_repository", |info| {
        info.ci_claims
            .deprecated_github
            .workflow_repository
            .as_ref()
    }),
    ("workflow_ref", |info| {
        info.ci_claims.deprecated_github.workflow_ref.as_ref()
    }),
];

impl FulcioExtension {
    /// The extension with this name.
    pub fn named(name: &str) -> Option<Self> {
        EXTENSIONS
            .iter()
            .position(|(known, _)| *known == name)
            .map(Self)
    }

    /// The names of all extensions.
    pub fn names() -> impl Iterator<Item = &'static str> + Clone {
        EXTENSIONS.iter().map(|(name, _)| *name)
    }

    pub(super) fn of(self, certificate: &CertificateInfo) -> Option<&str> {
        let (_, read) = EXTENSIONS.get(self.0)?;
        read(certificate).map(String::as_str)
    }
}

impl fmt::Display for FulcioExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXTENSIONS.get(self.0).map_or("", |(name, _)| name))
    }
}
