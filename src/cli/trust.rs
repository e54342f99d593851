//! The trust policy of a subcommand: keys or identities from flags, or a policy of the
//! configuration.

use std::{collections::BTreeMap, ffi::OsStr, path::PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use serde_json::Value;

use super::{path::path_value, read};
use crate::{
    config::CliConfig,
    metrics::Metrics,
    oci::Reference,
    verify::{
        Authority, AuthorityKey, AuthorityKind, Identity, Pattern, PublicKey, Requirements, Scheme,
        TlogPolicy, TrustPolicy, TrustRoot, TrustRootMetrics, TrustRootRefresher,
    },
};

/// Flags for the trust policy.
#[derive(Debug, Clone, Args)]
pub(super) struct TrustFlags {
    /// Trusted public key (PEM, such as cosign.pub); repeatable, any of them.
    #[arg(long = "key", value_name = "FILE", help_heading = "Trust", value_parser = path_value())]
    keys: Vec<PathBuf>,
    /// Signature scheme of the keys; default: the usual one for the key type; repeatable, any of
    /// them.
    #[arg(
        long = "key-scheme",
        value_name = "SCHEME",
        requires = "keys",
        help_heading = "Trust",
        value_parser = PossibleValuesParser::new(Scheme::names())
    )]
    schemes: Vec<String>,
    /// Trusted signer: the e-mail address or URI in a keyless certificate.
    #[arg(
        long = "certificate-identity",
        value_name = "IDENTITY",
        requires = "issued_by",
        help_heading = "Trust",
        conflicts_with_all = ["keys", "identity_regexp"]
    )]
    identity: Option<String>,
    /// Same, as a regular expression that matches the whole identity.
    #[arg(
        long = "certificate-identity-regexp",
        value_name = "REGEXP",
        requires = "issued_by",
        help_heading = "Trust",
        conflicts_with = "keys"
    )]
    identity_regexp: Option<String>,
    /// OIDC issuer in the certificate.
    #[arg(
        long = "certificate-oidc-issuer",
        value_name = "URL",
        group = "issued_by",
        help_heading = "Trust",
        conflicts_with = "issuer_regexp"
    )]
    issuer: Option<String>,
    /// Same, as a regular expression that matches the whole URL.
    #[arg(
        long = "certificate-oidc-issuer-regexp",
        value_name = "REGEXP",
        group = "issued_by",
        help_heading = "Trust"
    )]
    issuer_regexp: Option<String>,
    /// trusted_root.json of the Sigstore instance; default: the built-in one of the public-good
    /// instance.
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Trust",
        conflicts_with = "config", value_parser = path_value())]
    trusted_root: Option<PathBuf>,
    /// Whether the signature must be in a transparency log; default: none for keys, require for
    /// certificates.
    #[arg(
        long,
        value_name = "WHETHER",
        help_heading = "Trust",
        conflicts_with = "config"
    )]
    tlog: Option<Tlog>,
    /// Annotation that must be signed; repeatable, all of them.
    #[arg(short = 'a', long = "annotations", value_name = "KEY=VALUE", help_heading = "Trust", value_parser = key_value,
        conflicts_with = "config")]
    annotations: Vec<(String, String)>,
    /// Policy of the configuration; default: the policy of the bundle with this REF, or else the
    /// one whose `match` matches.
    #[arg(long, value_name = "NAME", requires = "config", help_heading = "Trust",
        conflicts_with_all = ["keys", "identity", "identity_regexp"])]
    policy: Option<String>,
}

/// The values of `tlog`, as in the configuration.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Tlog {
    /// Ignore transparency logs.
    None,
    /// Verify the log entry if there is one.
    #[value(name = "if_present", alias = "if-present")]
    IfPresent,
    /// Require a log entry.
    Require,
}

impl TrustFlags {
    /// The policy for an artifact; `None` without trust flags and without policies in the
    /// configuration.
    pub(super) async fn policy(
        &self,
        cli_config: Option<&CliConfig>,
        reference: &Reference,
    ) -> anyhow::Result<Option<TrustPolicy>> {
        if !self.keys.is_empty() {
            return self.requiring("--key", self.key_authorities()?).map(Some);
        }
        if let Some(identity) = self.certificate()? {
            return self
                .requiring("--certificate-identity", vec![identity])
                .map(Some);
        }
        let Some(cli_config) =
            cli_config.filter(|cli_config| self.policy.is_some() || !cli_config.trust.is_empty())
        else {
            return Ok(None);
        };
        let chosen = cli_config.policy_for(self.policy.as_deref(), reference);
        // These messages say "name one here", which means a bundle's `trust` in the
        // configuration and `--policy` on the command line.
        let here = |message: String| message.replacen(" here", " with --policy", 1);
        let chosen = chosen.map_err(|message| anyhow!("{reference}: {}", here(message)))?;
        with_fresh_roots(cli_config, chosen).await.map(Some)
    }

    fn requiring(
        &self,
        name: &'static str,
        authorities: Vec<Authority>,
    ) -> anyhow::Result<TrustPolicy> {
        let annotations: BTreeMap<_, _> = self
            .annotations
            .iter()
            .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
            .collect();
        let requirements = Requirements {
            annotations,
            ..Requirements::any_of(authorities)
        };
        TrustPolicy::signed(name.to_owned(), requirements).context(name)
    }

    /// An authority for each key, named after the file.
    fn key_authorities(&self) -> anyhow::Result<Vec<Authority>> {
        let schemes: Vec<Scheme> = self
            .schemes
            .iter()
            .filter_map(|name| Scheme::named(name))
            .collect();
        let tlog = self.tlog_policy(TlogPolicy::None);
        let root = if tlog == TlogPolicy::None && self.trusted_root.is_none() {
            None
        } else {
            Some(self.root()?)
        };
        let mut authorities: Vec<Authority> = Vec::new();
        for file in &self.keys {
            let text = read::text("--key", file, read::KEY_LIMIT)?;
            let read = if schemes.is_empty() {
                PublicKey::from_pem(&text)
            } else {
                PublicKey::with_schemes(&text, &schemes)
            };
            let key = read.map_err(|error| anyhow!("--key {}: {error}", file.display()))?;
            let known = |authority: &Authority| {
                authority
                    .keys()
                    .iter()
                    .any(|one| one.key.identity() == key.identity())
            };
            // A key that is given several times counts once.
            if !authorities.iter().any(known) {
                let name = file
                    .file_name()
                    .unwrap_or_else(|| OsStr::new("key"))
                    .to_string_lossy()
                    .into_owned();
                let kind = AuthorityKind::Keys(vec![AuthorityKey::from(key)]);
                authorities.push(Authority {
                    name,
                    kind,
                    tlog,
                    root: root.clone(),
                });
            }
        }
        Ok(authorities)
    }

    fn certificate(&self) -> anyhow::Result<Option<Authority>> {
        let subject = match (&self.identity, &self.identity_regexp) {
            (Some(exact), _) => Pattern::exact(exact).context("--certificate-identity")?,
            (None, Some(regexp)) => {
                Pattern::regex(regexp).context("--certificate-identity-regexp")?
            }
            (None, None) => return Ok(None),
        };
        let issuer = match (&self.issuer, &self.issuer_regexp) {
            (Some(exact), _) => Pattern::exact(exact).context("--certificate-oidc-issuer")?,
            (None, regexp) => Pattern::regex(regexp.as_deref().unwrap_or_default())
                .context("--certificate-oidc-issuer-regexp")?,
        };
        let name = subject.to_string();
        let identity = Identity {
            issuer,
            subject,
            claims: BTreeMap::new(),
        };
        let (tlog, root) = (self.tlog_policy(TlogPolicy::Require), Some(self.root()?));
        Ok(Some(Authority {
            name,
            kind: AuthorityKind::Keyless(identity),
            tlog,
            root,
        }))
    }

    fn root(&self) -> anyhow::Result<TrustRoot> {
        let Some(file) = &self.trusted_root else {
            return Ok(TrustRoot::sigstore()?);
        };
        let what = || format!("--trusted-root {}", file.display());
        let text = read::text("--trusted-root", file, read::KEY_LIMIT)?;
        TrustRoot::from_json("--trusted-root", &text).with_context(what)
    }

    fn tlog_policy(&self, default: TlogPolicy) -> TlogPolicy {
        match self.tlog {
            None => default,
            Some(Tlog::None) => TlogPolicy::None,
            Some(Tlog::IfPresent) => TlogPolicy::IfPresent,
            Some(Tlog::Require) => TlogPolicy::Require,
        }
    }
}

/// Fetches the TUF roots of the policy that are missing or expired: a running gateway would have
/// refreshed them.
async fn with_fresh_roots(
    cli_config: &CliConfig,
    policy: TrustPolicy,
) -> anyhow::Result<TrustPolicy> {
    let Some(mut requirements) = policy.requirements().cloned() else {
        return Ok(policy);
    };
    let sources = cli_config.trust.roots_of([&policy]);
    let mut fetched: BTreeMap<String, TrustRoot> = BTreeMap::new();
    for root in requirements
        .authorities
        .iter_mut()
        .filter_map(|authority| authority.root.as_mut())
    {
        if root.unusable_reason(crate::telemetry::now()).is_none() {
            continue;
        }
        let name = root.name().to_owned();
        if !fetched.contains_key(&name)
            && let Some(source) = sources.get(&name)
            && let Some(mut refresher) = TrustRootRefresher::open(
                &name,
                source,
                None,
                TrustRootMetrics::new(&Metrics::new())?,
            )?
        {
            refresher
                .refresh()
                .await
                .with_context(|| format!("trust root {name}"))?;
            fetched.insert(name.clone(), refresher.root().clone());
        }
        if let Some(fresh) = fetched.get(&name) {
            *root = fresh.clone();
        }
    }
    Ok(TrustPolicy::signed(policy.name().to_owned(), requirements)?)
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}
