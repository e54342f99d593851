//! Durations, refusals and labels in `/metrics`.

use std::time::Duration;

use flate2::{Compression, write::GzEncoder};
use reqwest::{Client, StatusCode};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{HOUR, InProcess, Setup, TestGateway, bundle, eventually, sample, tag, wishing},
    protocols::tls,
};

type Gate = TestGateway<InProcess>;

const DURATIONS: &str = "bundlegate_http_request_duration_seconds";
const HOLDS: &str = "bundlegate_hold_duration_seconds";
const PUBLICATIONS: &str = "bundlegate_publication_duration_seconds";

impl Gate {
    /// The number of observations of a histogram, and their sum.
    fn observed(&self, name: &str, labels: &str) -> (u64, f64) {
        let of = |part| {
            let series = format!("{name}_{part}{{{labels}}}");
            sample(self.metrics(), &series).unwrap_or_default()
        };
        (of("count") as u64, of("sum"))
    }
}

/// Asks for one response of each kind, and holds one request until its deadline and one until a push.
async fn ask(gate: &Gate, registry: &FaultyRegistry, http: &Client, scheme: &str) {
    let url = format!("{scheme}://localhost:{}/bundles", gate.data.port());
    let own = format!("{url}/{}", gate.name());
    let get = async |url: &str, tags: &str, wait| {
        let response = wishing(http.get(url), tags, wait).send().await.unwrap();
        let (status, etag) = (response.status().as_u16(), tag(&response));
        response.bytes().await.unwrap();
        (status, etag)
    };
    let (status, etag) = get(&own, "", 0).await;
    assert_eq!(status, 200);
    assert_eq!(get(&own, &etag, 0).await.0, 304);
    assert_eq!(get(&format!("{url}/nope"), "", 0).await.0, 404);
    assert_eq!(get(&own, &etag, 1).await.0, 304);
    // It has no version, and a request with a wait is held.
    assert_eq!(get(&format!("{url}/absent"), "", 1).await.0, 404);
    let (woken, ()) = tokio::join!(get(&own, &etag, 60), async {
        gate.until_waiting(1).await;
        registry.put_artifact("live", &bundle("two"));
        gate.refresh().await;
    });
    assert_eq!(woken.0, 200);
    gate.until_waiting(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_measured_over_every_protocol_without_the_time_for_which_they_are_held() {
    let (tls, root) = tls();
    let plain = || Client::builder().no_proxy();
    let secured = || plain().tls_certs_only([root.clone()]);
    for (protocol, scheme, client) in [
        ("HTTP/1.1", "http", plain()),
        ("HTTP/2", "http", plain().http2_prior_knowledge()),
        ("TLS, HTTP/1.1", "https", secured().http1_only()),
        ("TLS, HTTP/2", "https", secured()),
    ] {
        let registry = FaultyRegistry::start().await;
        registry.put_artifact("live", &bundle("one"));
        let mut setup = Setup {
            tls: (scheme == "https").then(|| tls.clone()),
            others: &[("absent", "absent")],
            ..Setup::default()
        };
        setup.rules.poll = HOUR;
        let gate = Gate::with(&registry, setup).await;
        let http = client.build().unwrap();
        eventually("it is served", || gate.state() == "serving").await;
        ask(&gate, &registry, &http, scheme).await;
        for (code, expected) in [("200", 2), ("304", 2), ("404", 2)] {
            let (count, sum) = gate.observed(DURATIONS, &format!("code=\"{code}\""));
            assert_eq!(count, expected, "{protocol} {code}");
            assert!(sum > 0.0 && sum < 0.4, "{protocol} {code}: {sum} s");
        }
        // Requests that wait for a second are answered half a second after they have arrived, and are
        // held from a moment later on.
        for (outcome, least) in [("changed", 0.0), ("unchanged", 0.4), ("error", 0.4)] {
            let (count, sum) = gate.observed(HOLDS, &format!("outcome=\"{outcome}\""));
            assert_eq!(count, 1, "{protocol} {outcome}");
            assert!(sum >= least && sum < 30.0, "{protocol} {outcome}: {sum} s");
        }
        // A client that leaves.
        let held = tokio::spawn(
            wishing(
                http.get(format!(
                    "{scheme}://localhost:{}/bundles/{}",
                    gate.data.port(),
                    gate.name()
                )),
                &tag(&http
                    .get(format!(
                        "{scheme}://localhost:{}/bundles/{}",
                        gate.data.port(),
                        gate.name()
                    ))
                    .send()
                    .await
                    .unwrap()),
                60,
            )
            .send(),
        );
        gate.until_waiting(1).await;
        held.abort();
        let left = || gate.observed(HOLDS, "outcome=\"disconnected\"").0 == 1;
        eventually("the client has left", left).await;
    }
}

#[tokio::test]
async fn a_publication_is_measured_by_what_caused_its_check() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::before(&registry, HOUR).await;
    let first = tag(&gate.get("", 0).await);
    let count = |trigger| {
        gate.observed(PUBLICATIONS, &format!("trigger=\"{trigger}\""))
            .0
    };
    assert_eq!(count("start"), 1);
    registry.put_artifact("live", &bundle("two"));
    gate.refresh().await;
    assert_eq!((count("start"), count("refresh")), (1, 1));
    registry.put_artifact("live", &bundle("three"));
    let third = gate.get("\"another\"", 30).await;
    assert!(third.status() == StatusCode::OK && tag(&third) != first);
    assert_eq!((count("refresh"), count("request")), (1, 1));
    let verified = gate.observed(
        "bundlegate_verification_duration_seconds",
        "outcome=\"accepted\"",
    );
    assert!(verified.0 == 3 && verified.1 > 0.0, "{verified:?}");
    let page = gate.metrics().render().unwrap();
    let registry = format!("registry=\"{}\"", registry.address);
    let answers = page.lines().filter(|line| {
        line.starts_with("bundlegate_registry_request_duration_seconds_count")
            && line.contains(&registry)
    });
    assert!(answers.count() >= 2, "{page}");
}

#[tokio::test]
async fn a_poll_that_finds_a_version_which_fails_for_a_while_measures_until_it_is_published() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::before(&registry, Duration::from_millis(100)).await;
    gate.get("", 0).await;
    let checks = gate.refreshes("unchanged");
    eventually("it is polled", || gate.refreshes("unchanged") > checks).await;
    registry.fail("/blobs/", 12, Fault::Status(503, vec![]));
    registry.put_artifact("live", &bundle("two"));
    let polled = || gate.observed(PUBLICATIONS, "trigger=\"poll\"");
    eventually("it is published", || polled().0 == 1).await;
    // Retries come after a second and more.
    assert!(polled().1 > 0.5, "{:?}", polled());
}

#[tokio::test]
async fn a_refused_version_counts_as_refused_until_another_one_is_accepted() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::before(&registry, HOUR).await;
    gate.get("", 0).await;
    let refused = async || gate.gauge("bundlegate_bundle_refused").await;
    assert_eq!(refused().await, "0");
    registry.put_artifact("live", b"no bundle");
    gate.refresh().await;
    assert_eq!((gate.state(), &*refused().await), ("serving", "1"));
    // An outage says nothing about it.
    registry.fail("", usize::MAX, Fault::Status(503, vec![]));
    gate.refresh().await;
    assert_eq!(gate.last_failure().unwrap().class, "transient");
    assert_eq!(refused().await, "1");
    registry.heal();
    registry.put_artifact("live", &bundle("two"));
    gate.refresh().await;
    assert_eq!(refused().await, "0");
    registry.put_artifact("live", b"no bundle");
    gate.refresh().await;
    assert_eq!(refused().await, "1");
    // The tag moves back to what is served.
    registry.put_artifact("live", &bundle("two"));
    gate.refresh().await;
    assert_eq!(refused().await, "0");
}

/// A bundle without a `.manifest`, as `tar` makes it.
fn without_manifest() -> Vec<u8> {
    let gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    let (content, mut header) = (b"{}", tar::Header::new_gnu());
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, "data.json", content.as_slice())
        .unwrap();
    archive.into_inner().unwrap().finish().unwrap()
}

#[tokio::test]
async fn no_label_is_empty_and_a_bundle_without_a_revision_has_its_series() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &without_manifest());
    let gate = Gate::before(&registry, HOUR).await;
    gate.get("", 0).await;
    assert_eq!(gate.status().revision.as_deref(), Some(""));
    let page = gate.admin_text("/metrics").await;
    assert!(!page.contains("=\"\""), "{page}");
    let (name, digest) = (gate.name(), gate.status().manifest.unwrap());
    let series = format!(
        "bundlegate_bundle_info{{bundle=\"{name}\",manifest=\"{digest}\",revision=\"(none)\"}} 1\n"
    );
    assert!(page.contains(&series), "{page}");
    for name in [
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
    ] {
        assert!(page.contains(&format!("\n{name} ")), "{name}: {page}");
    }
}
