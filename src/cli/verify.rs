//! `bundlegate verify`: the gateway's own judge, with its reasons.

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args};
use serde::Serialize;

use super::{
    flags::RegistryFlags,
    say, say_json,
    store_flag::{StoreFlag, Stored, stored},
    table,
    target::Location,
    tell,
    trust::TrustFlags,
};
use crate::{
    oci::{Manifest, PinnedReference, Reference},
    verify::{self, Circumstances, Finding, Reason, Rejection, Report, TrustPolicy, Verified},
};

/// What to verify, and whom to trust.
#[derive(Debug, Args)]
#[command(
    override_usage = "bundlegate verify [OPTIONS] <WHOM> <REF>\n  WHOM: --key FILE, --certificate-identity NAME or --config FILE"
)]
#[command(group = ArgGroup::new("whom").args(["keys", "identity", "identity_regexp", "config"]).required(true).multiple(true))]
pub(super) struct Options {
    /// The artifact: HOST/REPOSITORY:TAG, …@sha256:…, or oci-layout:PATH; with --local, the
    /// beginning of a digest, too.
    #[arg(value_name = "REF", value_parser = stored)]
    reference: Stored,
    /// Show every signature and every check.
    #[arg(short, long, conflicts_with = "json")]
    verbose: bool,
    /// Look into the image store instead of the registry.
    #[arg(long)]
    local: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: TrustFlags,
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
    signatures: &'a [Finding],
}

/// A judgement and everything that was seen on the way.
struct Judged {
    pinned: PinnedReference,
    verdict: Result<Verified<Manifest>, Rejection>,
    report: Report,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate verify ghcr.io/acme/authz:v1 --key cosign.pub
  bundlegate verify ghcr.io/acme/authz:v1 --certificate-identity alice@acme.example \\
    --certificate-oidc-issuer https://accounts.google.com
  bundlegate verify ghcr.io/acme/authz:v1 --config bundlegate.yaml --policy release";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let access = options.registry.access()?;
    let reference = options.reference.in_place(&options.store, options.local).await?;
    let policy = options.trust.policy(access.as_ref(), &reference).await?;
    let policy = policy
        .context("--config: it names no trust policy; name a key (--key) or a signer (--certificate-identity)")?;
    let location = Location::of(&reference, options.local, &options.store, &options.registry, access.as_ref())?;
    let judged = judge(&reference, &location, &policy).await?;
    for skipped in &judged.report.skipped {
        tell(&format!("{reference}: skipped {skipped}"));
    }
    if options.json {
        say_json(&document(&reference, &judged, &policy))?;
    } else {
        say(&text(&reference, &judged, &policy, options.verbose))?;
    }
    match judged.verdict {
        Ok(_) => Ok(()),
        Err(rejection) => {
            let more = match options.verbose || options.json || judged.report.findings.is_empty() {
                true => "",
                false => " (-v shows every check)",
            };
            bail!("{reference}: {rejection}; {}{more}", way_out(rejection.reason))
        }
    }
}

/// Resolves once; everything else is about that digest.
async fn judge(reference: &Reference, location: &Location, policy: &TrustPolicy) -> anyhow::Result<Judged> {
    let pinned = location.resolve(reference).await?;
    let manifest = location.source().manifest(&pinned).await?;
    let evidence = verify::collect(&location.signatures(policy)?, &pinned, location.limits().evidence).await?;
    let (verdict, report) = Verified::explain(policy, &pinned, manifest, &evidence, Circumstances::now());
    Ok(Judged { pinned, verdict, report })
}

fn document<'a>(reference: &Reference, judged: &'a Judged, policy: &'a TrustPolicy) -> Document<'a> {
    Document {
        reference: reference.to_string(),
        digest: judged.pinned.digest().as_str(),
        verified: judged.verdict.is_ok(),
        policy: policy.name(),
        signatures: &judged.report.findings,
    }
}

/// The verdict first, and what it is about; with `-v` every check.
fn text(reference: &Reference, judged: &Judged, policy: &TrustPolicy, verbose: bool) -> String {
    // By the name that the author knows, also where the image store was looked into.
    let pinned = format!("{}@{}", reference.repository(), judged.pinned.digest());
    let mut lines = vec![verdict(judged), pinned];
    // Flags make a policy of their own, whose name says nothing.
    if !policy.name().starts_with("--") {
        lines.push(format!("policy {}", policy.name()));
    }
    if verbose {
        lines.extend(judged.report.findings.iter().flat_map(details));
    }
    table::printable_lines(&lines)
}

fn verdict(judged: &Judged) -> String {
    match &judged.verdict {
        Ok(verified) if verified.signers().is_empty() => "accepted without a signature".to_owned(),
        Ok(verified) => {
            let voters: Vec<_> = verified
                .signers()
                .iter()
                .map(|signer| match signer.identity.starts_with("sha256:") {
                    // A key, which the authority names.
                    true => signer.authority.clone(),
                    false => format!("{} ({})", signer.authority, signer.identity),
                })
                .collect();
            format!("verified by {}", voters.join(", "))
        }
        Err(_) => "not verified".to_owned(),
    }
}

/// A signature, and a line for each of its checks.
fn details(finding: &Finding) -> Vec<String> {
    let signer = finding.signer.as_ref().map_or("an unknown signer", |signer| &signer.authority);
    let width = finding.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut lines = vec![String::new(), format!("{} signature by {signer}", finding.format.label())];
    lines.extend(finding.checks.iter().map(|check| {
        let outcome = if check.ok { "ok" } else { "failed" };
        format!("  {outcome:<6}  {:<width$}  {}", check.name, check.detail).trim_end().to_owned()
    }));
    lines
}

fn way_out(reason: Reason) -> &'static str {
    match reason {
        Reason::Unsigned => "sign it (bundlegate sign)",
        Reason::AnotherKey | Reason::Certificate | Reason::Identity | Reason::Claim => {
            "name whoever signed it, or have it signed by somebody trusted"
        }
        Reason::Scheme => "declare the scheme for this key (trust.authorities.NAME.keys: schemes)",
        Reason::Format => "allow the format (formats), or sign it in the other one",
        Reason::Root => "refresh the trust root, or name a newer one (trust.roots)",
        Reason::Log | Reason::Timestamp => "sign it with the log and the timestamp authority of the trust root",
        Reason::Unsupported => "sign with another kind of key, or trust this one by itself (tlog: none, no root)",
        Reason::Validity | Reason::RevokedKey | Reason::TooOld => "sign it again, with a key that counts today",
        Reason::TooFewVotes => "have it signed by more of the policy's authorities",
        Reason::Attestation => "attest what the policy asks for (cosign attest)",
        Reason::RevokedDigest => "use another version",
        Reason::Malformed
        | Reason::NotASignature
        | Reason::Signature
        | Reason::OtherDigest
        | Reason::Repository
        | Reason::Annotations => "sign this digest as the policy asks (bundlegate sign)",
    }
}
