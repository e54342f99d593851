//! `/status` as JSON.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    CertificateInUse,
    overview::{BundleOverview, LostVersion, Overview, ReadinessState},
    rollout_api,
    webhooks::WebhookStatus,
};
use crate::{
    oci::TagRule,
    publish::{FailureStatus, FallbackStatus, RootFailure, Status, TrustRootStatus, VerdictStatus},
    telemetry::{NAME_BYTES, cut},
};

/// The whole document.
pub(super) fn gateway(overview: &Overview) -> Value {
    let now = overview.at;
    let certificates = overview.certificates.iter();
    let certificates = certificates.map(|one| (one.key.clone(), certificate(one, now)));
    let roots = overview.trust_roots.iter();
    let roots = roots.map(|(name, root)| (name.clone(), trust_root(root, now)));
    let bundles = overview.bundles.iter();
    let bundles = bundles.map(|one| (one.name.clone(), Value::Object(bundle(one))));
    let webhooks = overview.webhooks.iter();
    let webhooks = webhooks.map(|(name, one)| (name.clone(), webhook(one)));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "since": milliseconds(overview.since),
        "ready": overview.readiness == ReadinessState::Ready,
        "cache": { "problem": overview.cache_problem },
        "config": overview.reload.as_ref().map(|outcome| outcome.status()),
        "certificates": certificates.collect::<Map<_, _>>(),
        "trust_roots": roots.collect::<Map<_, _>>(),
        "bundles": bundles.collect::<Map<_, _>>(),
        "webhooks": webhooks.collect::<Map<_, _>>(),
    })
}

fn bundle(bundle: &BundleOverview) -> Map<String, Value> {
    let mut status = published(&bundle.status);
    status.insert("waiters".to_owned(), bundle.waiters.into());
    if let Some(pattern) = bundle.pattern.as_deref() {
        status.insert("pattern".to_owned(), pattern.into());
    }
    let lost = bundle.lost.as_ref().map(lost);
    status.insert("lost".to_owned(), lost.unwrap_or_default());
    let fallback = bundle.fallback.as_ref().map(fallback);
    status.insert("fallback".to_owned(), fallback.unwrap_or_default());
    if let Some(rollout) = &bundle.rollout {
        status.insert("rollout".to_owned(), rollout_api::summary(rollout));
    }
    status
}

/// The part of a bundle, but for what the server counts.
fn published(status: &Status) -> Map<String, Value> {
    let signers = status.signers.iter().map(|signer| {
        json!({
            "authority": signer.authority,
            "identity": cut(&signer.identity, NAME_BYTES),
            "format": signer.format.label(),
            "signed_at": signer.signed_at.map(milliseconds),
        })
    });
    let status = json!({
        "state": status.state.label(),
        "reference": status.reference.written(),
        "tag": status.tag_of_served(),
        "chosen": status.reference.rule().and_then(|rule| chosen(rule, status)),
        "suspended": status.suspended,
        "manifest": status.manifest,
        "image": status.image,
        "etag": status.etag,
        "revision": status.revision,
        "size": status.size,
        "policy": status.policy,
        "policy_revision": status.policy_revision.to_string(),
        "signers": signers.collect::<Vec<_>>(),
        "since": milliseconds(status.since),
        "last_check": status.last_check.map(milliseconds),
        "last_failure": status.last_failure.as_ref().map(failure),
        "older": status.older,
        "verdict": status.verdict.as_ref().map(verdict),
        "refused": status.rejected.as_ref().map(verdict),
    });
    match status {
        Value::Object(status) => status,
        _ => Map::new(),
    }
}

/// `fallback` of a bundle: what is served in its place, and since when.
fn fallback(fallback: &FallbackStatus) -> Value {
    json!({
        "bundle": &*fallback.bundle,
        "manifest": fallback.manifest,
        "etag": fallback.etag,
        "since": fallback.since.map(milliseconds),
    })
}

fn lost(lost: &LostVersion) -> Value {
    let LostVersion { version, clients } = lost;
    json!({ "manifest": version.manifest, "etag": version.etag, "clients": clients })
}

fn webhook(webhook: &WebhookStatus) -> Value {
    let refusal = webhook.last_refusal.as_ref().map(|(at, reason, message)| {
        json!({ "at": milliseconds(*at), "reason": reason, "message": message })
    });
    json!({
        "kind": webhook.kind,
        "listener": webhook.listener,
        "path": webhook.path,
        "authentication": webhook.authentication,
        "events": webhook.events,
        "last_event": webhook.last_event.map(milliseconds),
        "last_refusal": refusal,
    })
}

fn chosen(rule: &TagRule, status: &Status) -> Option<Value> {
    let chosen = status.chosen.as_ref()?;
    Some(json!({
        "tag": chosen.tag,
        "rule": cut(&rule.to_string(), NAME_BYTES),
        "candidates": chosen.candidates,
        "reason": chosen.reason,
    }))
}

/// A certificate of `certificates`.
fn certificate(certificate: &CertificateInUse, now: Timestamp) -> Value {
    let expiry = &certificate.expiry;
    json!({
        "subject": expiry.subject,
        "valid_from": milliseconds(expiry.not_before),
        "expires": milliseconds(expiry.not_after),
        "expired": expiry.is_expired_at(now),
    })
}

/// A trust root of `trust_roots`.
fn trust_root(root: &TrustRootStatus, now: Timestamp) -> Value {
    let failure = |failure: &RootFailure| {
        json!({
            "at": milliseconds(failure.at),
            "reason": failure.reason,
            "message": failure.message,
        })
    };
    json!({
        "source": root.source(),
        "url": root.url(),
        "revision": root.revision(),
        "pending": root.is_pending(),
        "expires": root.expires().map(milliseconds),
        "expired": root.expires().is_some_and(|expires| expires < now),
        "last_refresh": root.last_refresh().map(milliseconds),
        "last_failure": root.last_failure().map(failure),
    })
}

/// A failure of a check.
pub(super) fn failure(failure: &FailureStatus) -> Value {
    json!({
        "at": milliseconds(failure.at),
        "class": failure.class.label(),
        "step": failure.step.to_string(),
        "digest": failure.digest,
        "message": failure.message,
    })
}

fn verdict(verdict: &VerdictStatus) -> Value {
    json!({
        "digest": verdict.digest,
        "verified": verdict.verified,
        "policy": verdict.policy,
        "policy_revision": verdict.policy_revision.to_string(),
        "at": milliseconds(verdict.at),
        "valid_until": verdict.valid_until.map(milliseconds),
        "signatures": verdict.signatures,
        "skipped": verdict.skipped,
    })
}

/// RFC 3339, UTC, milliseconds.
pub(super) fn milliseconds(time: Timestamp) -> String {
    format!("{time:.3}")
}
