//! `bundlegate verify`: the verification of the gateway, with a report.

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args};
use serde::Serialize;

use super::{
    eprint,
    flags::RegistryFlags,
    print, print_json,
    store_flag::{ImageName, StoreFlag, image_name},
    table,
    target::Target,
    trust::TrustFlags,
};
use crate::{
    oci::{Manifest, PinnedReference, Reference},
    registry::Source,
    verify::{
        self, Reason, Report, SignatureReport, TrustPolicy, VerificationContext, VerificationError,
        Verified,
    },
};

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(
    override_usage = "bundlegate verify [OPTIONS] <TRUST> <REF>\n  TRUST: --key FILE, --certificate-identity NAME or --config FILE"
)]
#[command(group = ArgGroup::new("signer").args(["keys", "identity", "identity_regexp", "config"]).required(true).multiple(true))]
pub(super) struct Options {
    /// The artifact: HOST/REPOSITORY:TAG, …@sha256:…, or oci-layout:PATH; with --local also a
    /// digest prefix.
    #[arg(value_name = "REF", value_parser = image_name)]
    reference: ImageName,
    /// Show every signature and every check.
    #[arg(short, long, conflicts_with = "json")]
    verbose: bool,
    /// Look in the image store instead of the registry.
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
    signatures: &'a [SignatureReport],
}

/// A verdict and the report of all checks.
struct VerifyResult {
    pinned: PinnedReference,
    verdict: Result<Verified<Manifest>, VerificationError>,
    report: Report,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate verify ghcr.io/acme/authz:v1 --key cosign.pub
  bundlegate verify ghcr.io/acme/authz:v1 --certificate-identity alice@acme.example \\
    --certificate-oidc-issuer https://accounts.google.com
  bundlegate verify ghcr.io/acme/authz:v1 --config bundlegate.yaml --policy release";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let cli_config = options.registry.cli_config()?;
    let reference = options
        .reference
        .resolve_name(&options.store, options.local)
        .await?;
    let policy = options
        .trust
        .policy(cli_config.as_ref(), &reference)
        .await?;
    let policy = policy
        .context("--config: no trust policy in the file; name a key (--key) or a signer (--certificate-identity)")?;
    let target = Target::new(
        &reference,
        options.local,
        &options.store,
        &options.registry,
        cli_config.as_ref(),
    )?;
    let result = verify_reference(&reference, &target, &policy).await?;
    for skipped in &result.report.skipped {
        eprint(&format!("{reference}: skipped {skipped}"));
    }
    if options.json {
        print_json(&document(&reference, &result, &policy))?;
    } else {
        print(&text(&reference, &result, &policy, options.verbose))?;
    }
    match result.verdict {
        Ok(_) => Ok(()),
        Err(rejection) => {
            let more = match options.verbose || options.json || result.report.signatures.is_empty()
            {
                true => "",
                false => " (-v shows every check)",
            };
            bail!("{reference}: {rejection}; {}{more}", hint(rejection.reason))
        }
    }
}

/// Resolves the reference once, and verifies that digest.
async fn verify_reference(
    reference: &Reference,
    target: &Target,
    policy: &TrustPolicy,
) -> anyhow::Result<VerifyResult> {
    let pinned = target.resolve(reference).await?;
    let manifest = target.source().manifest(&pinned).await?;
    let source = target.signatures(policy)?;
    let verify = async |source: &Source| {
        let collected = verify::collect(source, &pinned, target.limits().evidence).await;
        collected.map(|evidence| {
            let is_beyond_limit = evidence.beyond_limit().is_some();
            let verified = Verified::verify_with_report(
                policy,
                &pinned,
                manifest.clone(),
                &evidence,
                VerificationContext::now(),
            );
            (verified, is_beyond_limit)
        })
    };
    let mut verified = verify(&source).await;
    // The lists of a mirror may lack a signature.
    if source.has_mirrors() && !matches!(&verified, Ok(((Ok(_), _), _))) {
        verified = verify(&source.clone().at_every_host()).await;
        // What it lists may have left none of the limit to the signatures that the registry has.
        if matches!(&verified, Ok(((Err(_), _), true))) {
            verified = verify(&source.at_origin()).await;
        }
    }
    let ((verdict, report), _) = verified?;
    Ok(VerifyResult {
        pinned,
        verdict,
        report,
    })
}

fn document<'a>(
    reference: &Reference,
    result: &'a VerifyResult,
    policy: &'a TrustPolicy,
) -> Document<'a> {
    Document {
        reference: reference.to_string(),
        digest: result.pinned.digest().as_str(),
        verified: result.verdict.is_ok(),
        policy: policy.name(),
        signatures: &result.report.signatures,
    }
}

/// The verdict and the pinned reference; with `-v` also every check.
fn text(
    reference: &Reference,
    result: &VerifyResult,
    policy: &TrustPolicy,
    verbose: bool,
) -> String {
    // The name that the user gave, also if the image is in the store.
    let pinned = format!("{}@{}", reference.repository(), result.pinned.digest());
    let mut lines = vec![verdict(result), pinned];
    // A policy made from flags has no useful name.
    if !policy.name().starts_with("--") {
        lines.push(format!("policy {}", policy.name()));
    }
    if verbose {
        lines.extend(result.report.signatures.iter().flat_map(details));
    }
    table::printable_lines(&lines)
}

fn verdict(result: &VerifyResult) -> String {
    match &result.verdict {
        Ok(verified) if verified.signers().is_empty() => "accepted without a signature".to_owned(),
        Ok(verified) => {
            let signers: Vec<_> = verified
                .signers()
                .iter()
                .map(|signer| match signer.identity.starts_with("sha256:") {
                    // A key; the authority identifies it.
                    true => signer.authority.clone(),
                    false => format!("{} ({})", signer.authority, signer.identity),
                })
                .collect();
            format!("verified by {}", signers.join(", "))
        }
        Err(_) => "not verified".to_owned(),
    }
}

/// A signature with one line for each check.
fn details(finding: &SignatureReport) -> Vec<String> {
    let signer = finding
        .signer
        .as_ref()
        .map_or("an unknown signer", |signer| &signer.authority);
    let width = finding
        .checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or_default();
    let mut lines = vec![
        String::new(),
        format!("{} signature by {signer}", finding.format.label()),
    ];
    lines.extend(finding.checks.iter().map(|check| {
        let outcome = if check.ok { "ok" } else { "failed" };
        format!("  {outcome:<6}  {:<width$}  {}", check.name, check.detail)
            .trim_end()
            .to_owned()
    }));
    lines
}

fn hint(reason: Reason) -> &'static str {
    match reason {
        Reason::Unsigned => "sign it (bundlegate sign)",
        Reason::AnotherKey | Reason::Certificate | Reason::Identity | Reason::Claim => {
            "trust the signer, or have it signed by a trusted one"
        }
        Reason::Scheme => "declare the scheme for this key (trust.authorities.NAME.keys: schemes)",
        Reason::Format => "allow the format (formats), or sign it in the other one",
        Reason::Root => "refresh the trust root, or name a newer one (trust.roots)",
        Reason::Log | Reason::Timestamp => {
            "sign it with a log and timestamp authority of the trust root"
        }
        Reason::Unsupported => {
            "sign with another key type, or trust this key without a log (tlog: none, no root)"
        }
        Reason::Validity | Reason::RevokedKey | Reason::TooOld => "sign it again, with a valid key",
        Reason::TooFewVotes => "have it signed by more authorities of the policy",
        Reason::Attestation => "add the attestation that the policy requires (cosign attest)",
        Reason::RevokedDigest => "use another version",
        Reason::Malformed
        | Reason::NotASignature
        | Reason::Signature
        | Reason::OtherDigest
        | Reason::Repository
        | Reason::Annotations => "sign this digest as the policy requires (bundlegate sign)",
    }
}
