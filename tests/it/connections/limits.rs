//! `registries.HOST.max_concurrent` and `.max_requests_per_second`.

use std::time::Duration;

use bundlegate::oci::Descriptor;
use bundlegate::{
    oci::Blob,
    registry::{BlobTransfer, Credentials, Options, Progress, Timeouts},
};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::{
    access::{Access, Scheme},
    faulty::{Fault, FaultyRegistry},
};

struct Quiet;

impl Progress for Quiet {
    fn update(&self, _: &Descriptor, _: u64) {}

    fn finished(&self, _: &Descriptor, _: BlobTransfer) {}
}

/// The options of a registry that gets one request at a time, with the password in `folder`.
fn one_at_a_time(registry: &FaultyRegistry, folder: &tempfile::TempDir) -> Options {
    let password_file = folder.path().join("password");
    std::fs::write(&password_file, "secret").unwrap();
    Options {
        max_concurrent: 1,
        credentials: Some(Credentials::PasswordFile {
            username: "robot".to_owned(),
            password_file,
        }),
        ..registry.options()
    }
}

#[tokio::test]
async fn with_one_request_at_a_time_nothing_waits_for_itself() {
    let (registry, folder) = (FaultyRegistry::start().await, tempfile::tempdir().unwrap());
    let (_, layer) = registry.put_artifact("live", &[3; 200_000]);
    registry.protect(Access::new(Scheme::Bearer, "robot:secret"));
    let registries = registry.registries(one_at_a_time(&registry, &folder));
    let reference = registry.reference("live");
    let source = registries.source(reference.repository()).unwrap();
    let destination = registries.destination(reference.repository()).unwrap();
    let work = async {
        // A token from the same host, a redirect within it, a broken transfer.
        let other = format!("/v2/acme/authz/blobs/{}", layer.digest);
        registry.fail(
            "GET /v2/acme/authz/blobs",
            1,
            Fault::Status(307, vec![("location", other)]),
        );
        registry.fail("GET /v2/acme/authz/blobs", 1, Fault::Truncate(1000));
        let pinned = source.resolve(&reference).await.unwrap();
        source.manifest(&pinned).await.unwrap();
        source.referrers(&pinned, 10).await.unwrap();
        let stream = source.blob(&layer).await.unwrap();
        stream.collect().await.unwrap();
        // Many at a time.
        let fetch = || async {
            source.resolve(&reference).await.unwrap();
            let stream = source.blob(&layer).await.unwrap();
            stream.collect().await.unwrap();
        };
        join_all((0..8).map(|_| fetch())).await;
        // Writing shares the limit: a mount that is refused, an upload that breaks off.
        let bytes = bytes::Bytes::from(vec![9; 50_000]);
        let descriptor = Descriptor::of("application/octet-stream", &bytes);
        let other = format!("{}/acme/other", registry.address).parse().unwrap();
        destination.mount(&descriptor, &other).await.unwrap();
        registry.fail("PUT", 1, Fault::Unanswered);
        let blob = Blob::check(&descriptor, bytes).unwrap();
        destination
            .send_blob(&descriptor, &blob, &Quiet)
            .await
            .unwrap();
        // A transfer that is given up gives its permit back.
        drop(source.blob(&layer).await.unwrap());
        source.resolve(&reference).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(120), work)
        .await
        .expect("no request waits for another one of its own operation");
}

#[tokio::test]
async fn no_more_requests_than_allowed_are_under_way_and_the_queue_is_no_failure() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    const SLOW: Duration = Duration::from_millis(100);
    registry.fail("HEAD", usize::MAX, Fault::Slow(SLOW));
    let timeouts = Timeouts {
        // The queue is longer than this.
        total: Duration::from_millis(1500),
        ..registry.options().timeouts
    };
    let source = registry.source_with(Options {
        max_concurrent: 2,
        timeouts,
        ..registry.options()
    });
    let began = Instant::now();
    let reference = registry.reference("live");
    let resolved = join_all((0..60).map(|_| source.resolve(&reference))).await;
    for resolved in resolved {
        resolved.unwrap();
    }
    assert!(began.elapsed() >= SLOW * 30, "{:?}", began.elapsed());
}

#[tokio::test]
async fn polls_beyond_the_rate_become_slower_and_none_of_them_fails() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    registry.protect(Access::new(Scheme::Bearer, "robot:secret"));
    let folder = tempfile::tempdir().unwrap();
    let timeouts = Timeouts {
        // The queue is longer than this.
        total: Duration::from_millis(1000),
        ..registry.options().timeouts
    };
    let interval = Duration::from_millis(50);
    let source = registry.source_with(Options {
        max_concurrent: 128,
        request_interval: Some(interval),
        timeouts,
        ..one_at_a_time(&registry, &folder)
    });
    let began = Instant::now();
    let reference = registry.reference("live");
    let resolved = join_all((0..80).map(|_| source.resolve(&reference))).await;
    for resolved in resolved {
        resolved.unwrap();
    }
    let sent = u32::try_from(registry.asked("").len()).unwrap();
    assert!(sent > 80);
    // The token counts as well, since it comes from the same host.
    assert!(began.elapsed() >= interval * (sent - 1), "{sent}");
    // It was not behind the queue.
    let paths: Vec<_> = registry
        .asked("")
        .into_iter()
        .map(|asked| asked.path)
        .collect();
    let token = paths.iter().position(|path| path.starts_with("/token"));
    assert!(token.is_some_and(|at| at < 4), "{paths:?}");
}
