//! Published bundles for the tests of other modules and for fuzz targets.

#![allow(clippy::unwrap_used, reason = "a failed setup must abort the test")]

use std::{fs, sync::Arc, time::Duration};

use serde_json::json;

use super::{
    Event, Handle, OnMissing, Outcome, PublishMetrics, Publisher, PublisherOptions, Snapshot,
    VerificationRecord,
};
use crate::{
    bundle,
    metrics::{BundleScope, Metrics},
    oci::{Descriptor, Manifest, ManifestPath, Reference, media_type},
    telemetry,
    verify::{Evidence, TrustPolicy, Verified},
};

/// One version of a bundle, made as the pipeline makes it.
pub(crate) fn snapshot(version: u8) -> Arc<Snapshot> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("data.json"),
        json!({ "version": version }).to_string(),
    )
    .unwrap();
    let limits = bundle::Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 10,
        bundle_manifest: 1 << 20,
    };
    let bundle = bundle::pack(folder.path(), &limits).unwrap().bundle;
    let layer = Descriptor::of(
        media_type::LAYER_TAR_GZIP,
        bundle.blob().in_memory().unwrap(),
    );
    let document = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [layer],
    });
    let manifest = Manifest::parse(document.to_string().into(), None, 1 << 20).unwrap();
    let pinned = format!("r.example/a@{}", manifest.digest())
        .parse::<Reference>()
        .unwrap()
        .pinned()
        .unwrap();
    let policy = TrustPolicy::unsigned("test".into());
    let path = ManifestPath::new(manifest.digest().clone(), manifest.clone());
    let verified = Verified::verify(&policy, &pinned, manifest, &Evidence::default()).unwrap();
    let record = VerificationRecord {
        path: Arc::new(path),
        evidence: Vec::new(),
        policy_revision: policy.revision().clone(),
        root_revisions: Vec::new(),
        verdict: None,
    };
    Arc::new(Snapshot::new(verified, record, bundle).unwrap())
}

/// A publisher that has published nothing yet.
pub(crate) fn pending(bundle: &str) -> (Publisher, Handle) {
    let metrics = PublishMetrics::new(&Metrics::new()).unwrap();
    let options = PublisherOptions {
        bundle: bundle.into(),
        reference: "r.example/a:live".parse().unwrap(),
        policy: Arc::new(TrustPolicy::unsigned("dev".into())),
        on_missing: OnMissing::Keep,
        max_stale: None,
        poll: Duration::from_secs(30),
        confirm_within: Duration::ZERO,
        metrics: Arc::new(metrics.bundle(&BundleScope::new(bundle.into()))),
        waiters: None,
        is_staged: false,
    };
    let (publisher, handle, _requests) = Publisher::new(options);
    (publisher, handle)
}

/// A publisher of a version, which was accepted without a signature.
pub(crate) fn serving(bundle: &str, version: u8) -> (Publisher, Handle) {
    let (mut publisher, handle) = pending(bundle);
    let accepted = Event::Checked {
        outcome: Outcome::Accepted(snapshot(version)),
        at: telemetry::now(),
    };
    publisher.apply(&accepted, None).unwrap();
    (publisher, handle)
}
