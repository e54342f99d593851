//! `bundlegate verify`: the gateway's own judge, with its reasons.

use std::{ffi::OsStr, fs, path::PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde::Serialize;

use super::{
    flags::RegistryFlags,
    location::Location,
    place::{StoreFlag, reference},
    say, say_json, tell,
};
use crate::{
    config::Access,
    oci::{Manifest, PinnedReference, Reference},
    verify::{self, Authority, Finding, PublicKey, Reason, Rejection, Report, TrustPolicy, Verified},
};

/// What to verify, and whom to trust.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The artifact: HOST/REPOSITORY:TAG, …@sha256:…, or oci-layout:PATH.
    #[arg(value_name = "REF", value_parser = reference)]
    reference: Reference,
    /// Trust this public key (PEM, such as cosign.pub); several: any of them.
    #[arg(long = "key", value_name = "FILE", required_unless_present = "config")]
    keys: Vec<PathBuf>,
    /// Judge by this policy of the configuration; default: the one whose `match` fits.
    #[arg(long, value_name = "NAME", requires = "config", conflicts_with = "keys")]
    policy: Option<String>,
    /// Look into the image store instead of the registry.
    #[arg(long)]
    local: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
}

#[derive(Serialize)]
struct Document<'a> {
    reference: String,
    digest: &'a str,
    verified: bool,
    policy: &'a str,
    signatures: Vec<Signature<'a>>,
}

#[derive(Serialize)]
struct Signature<'a> {
    format: &'static str,
    authority: Option<&'a str>,
    identity: Option<&'a str>,
    verified: bool,
    checks: Vec<Check<'a>>,
}

#[derive(Serialize)]
struct Check<'a> {
    check: &'a str,
    ok: bool,
    detail: &'a str,
}

/// A judgement and everything that was seen on the way.
struct Judged {
    pinned: PinnedReference,
    verdict: Result<Verified<Manifest>, Rejection>,
    report: Report,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate verify ghcr.io/acme/authz:v1 --key cosign.pub
  bundlegate verify ghcr.io/acme/authz:v1 --config bundlegate.yaml --policy release";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let access = options.registry.access()?;
    let policy = options.policy(access.as_ref())?;
    let location = Location::of(&options.reference, options.local, &options.store, &options.registry, access.as_ref())?;
    let judged = judge(&options.reference, &location, &policy).await?;
    for skipped in &judged.report.skipped {
        tell(&format!("{}: skipped {skipped}", options.reference));
    }
    if options.json {
        say_json(&options.document(&judged, &policy))?;
    } else {
        say(&text(&judged, &policy))?;
    }
    match judged.verdict {
        Ok(_) => Ok(()),
        Err(rejection) => bail!("{}: {rejection}; {}", options.reference, way_out(rejection.reason)),
    }
}

/// Resolves once; everything else is about that digest.
async fn judge(reference: &Reference, location: &Location, policy: &TrustPolicy) -> anyhow::Result<Judged> {
    let pinned = location.resolve(reference).await?;
    let manifest = location.source().manifest(&pinned).await?;
    let evidence = verify::collect(location.source(), &pinned, location.limits().evidence).await?;
    let (verdict, report) = Verified::explain(policy, &pinned, manifest, &evidence);
    Ok(Judged { pinned, verdict, report })
}

impl Options {
    fn policy(&self, access: Option<&Access>) -> anyhow::Result<TrustPolicy> {
        if !self.keys.is_empty() {
            return policy_of(&self.keys);
        }
        let access = access.context("whom to trust is not said; name a key (--key) or a configuration (--config)")?;
        let chosen = access.trust.choose(self.policy.as_deref(), self.reference.repository());
        chosen.map_err(|sentence| anyhow!("--policy: {sentence}"))
    }

    fn document<'a>(&'a self, judged: &'a Judged, policy: &'a TrustPolicy) -> Document<'a> {
        Document {
            reference: self.reference.to_string(),
            digest: judged.pinned.digest().as_str(),
            verified: judged.verdict.is_ok(),
            policy: policy.name(),
            signatures: judged.report.findings.iter().map(Signature::of).collect(),
        }
    }
}

impl<'a> Signature<'a> {
    fn of(finding: &'a Finding) -> Self {
        let checks = finding.checks.iter();
        Self {
            format: finding.format.label(),
            authority: finding.signer.as_ref().map(|signer| signer.authority.as_str()),
            identity: finding.signer.as_ref().map(|signer| signer.identity.as_str()),
            verified: finding.is_verified(),
            checks: checks.map(|check| Check { check: check.name, ok: check.ok, detail: &check.detail }).collect(),
        }
    }
}

/// Any of the keys, each an authority of its own with the file's name.
pub(super) fn policy_of(files: &[PathBuf]) -> anyhow::Result<TrustPolicy> {
    let mut authorities: Vec<Authority> = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| format!("--key {}", file.display()))?;
        let key = PublicKey::from_pem(&text).map_err(|error| anyhow!("--key {}: {error}", file.display()))?;
        let known = |authority: &Authority| authority.keys.iter().any(|known| known.identity() == key.identity());
        // One key is one voter, however often it is named.
        if !authorities.iter().any(known) {
            let name = file.file_name().unwrap_or_else(|| OsStr::new("key")).to_string_lossy().into_owned();
            authorities.push(Authority { name, keys: vec![key] });
        }
    }
    TrustPolicy::any_of("--key".to_owned(), authorities).context("--key: none is named")
}

fn text(judged: &Judged, policy: &TrustPolicy) -> String {
    let mut lines = vec![judged.pinned.to_string()];
    for finding in &judged.report.findings {
        let signer = finding.signer.as_ref().map_or("by nobody the policy knows", |signer| &signer.authority);
        lines.push(format!("  {} signature: {signer}", finding.format.label()));
        for check in &finding.checks {
            let outcome = if check.ok { "ok" } else { "failed" };
            lines.push(format!("    {outcome:<8}{:<11}{}", check.name, check.detail));
        }
    }
    match &judged.verdict {
        Ok(verified) if verified.signers().is_empty() => {
            lines.push(format!("accepted without a signature, by policy {}", policy.name()));
        }
        Ok(verified) => {
            let voters: Vec<_> = verified.signers().iter().map(|signer| signer.authority.as_str()).collect();
            lines.push(format!("verified: signed by {}, accepted by policy {}", voters.join(", "), policy.name()));
        }
        Err(_) => lines.push("not verified".to_owned()),
    }
    lines.join("\n")
}

fn way_out(reason: Reason) -> &'static str {
    match reason {
        Reason::Unsigned => "sign it (bundlegate sign)",
        Reason::AnotherKey => "name the key that signed it, or sign it with a trusted one",
        Reason::Malformed | Reason::NotASignature | Reason::OtherDigest => "sign this digest (bundlegate sign)",
    }
}
