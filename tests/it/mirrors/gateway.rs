//! What clients of a gateway see of the hosts behind it.

use super::Mirrored;
use crate::{
    attacks::{keyed, policy},
    faulty::{Fault, FaultyRegistry},
    forge::{Key, Legacy, payload},
    gateway::{Setup, TestGateway, bundle, eventually, sample},
};

fn publish(registries: &[&FaultyRegistry], key: &Key, text: &str) -> bundlegate::oci::Digest {
    let mut published = None;
    for registry in registries {
        // The digest first, so that the tag names a signed artifact.
        let (digest, _) = registry.put_artifact("next", &bundle(text));
        let signature = Legacy::sign(key, &payload(&digest, "r.example/authz"));
        registry.put_legacy(&digest, &[signature]);
        let (kind, manifest) = registry.held("manifests/next").unwrap();
        registry.put("manifests/live", &kind, manifest);
        published = Some(digest);
    }
    published.unwrap()
}

fn setup(hosts: &Mirrored, key: &Key) -> Setup {
    Setup {
        policy: policy([keyed(key)]),
        mirrors: hosts.options(),
        ..Setup::default()
    }
}

/// While a client holds a long poll all the time: no answer but 200 and 304, and each new version.
#[tokio::test]
async fn versions_reach_clients_while_either_host_is_dead() {
    let key = Key::p256();
    let hosts = Mirrored::with(1, |registry| drop(publish(&[registry], &key, "one"))).await;
    let gate = TestGateway::with(&hosts.registry, setup(&hosts, &key)).await;
    let both = [&hosts.registry, hosts.mirror()];
    let shows = |digest: &bundlegate::oci::Digest| gate.status().manifest.as_ref() == Some(digest);
    eventually("it is served", || gate.state() == "serving").await;
    // The registry is dead: its requests fail, and the mirror has the next version.
    hosts.registry.fail("", usize::MAX, Fault::Unanswered);
    let second = publish(&both, &key, "two");
    eventually("the second version, from the mirror", || shows(&second)).await;
    assert_eq!(gate.get("", 0).await.status(), 200);
    hosts.registry.heal();
    // The mirror is dead, and then silent.
    for (text, fault) in [("three", Fault::Unanswered), ("four", Fault::Stall)] {
        hosts.mirror().heal();
        hosts.mirror().fail("", usize::MAX, fault);
        let next = publish(&[&hosts.registry], &key, text);
        eventually("the next version, from the registry", || shows(&next)).await;
        assert_eq!(gate.get("", 0).await.status(), 200);
    }
    // It lives again, with what it missed.
    hosts.mirror().heal();
    let fifth = publish(&both, &key, "five");
    eventually("the fifth version", || shows(&fifth)).await;
    let before = hosts.mirror().asked("HEAD ").len();
    eventually("the mirror is asked again", || {
        hosts.mirror().asked("HEAD ").len() > before + 3
    })
    .await;
    assert_eq!(gate.state(), "serving");
}

/// What a mirror says about a tag counts only with the manifest.
#[tokio::test]
async fn a_mirror_whose_tag_names_a_manifest_that_it_lacks_hides_no_version() {
    let key = Key::p256();
    let hosts = Mirrored::with(1, |registry| drop(publish(&[registry], &key, "one"))).await;
    let gate = TestGateway::with(&hosts.registry, setup(&hosts, &key)).await;
    eventually("it is served", || gate.state() == "serving").await;
    let nowhere = format!("sha256:{}", "ab".repeat(32));
    hosts.mirror().fail(
        "/manifests/live",
        usize::MAX,
        Fault::With("docker-content-digest", nowhere),
    );
    let second = publish(&[&hosts.registry], &key, "two");
    let shows = || gate.status().manifest.as_ref() == Some(&second);
    eventually("the second version", shows).await;
}

#[tokio::test]
async fn requests_are_counted_under_the_host_that_was_asked() {
    let key = Key::p256();
    let hosts = Mirrored::with(1, |registry| drop(publish(&[registry], &key, "one"))).await;
    hosts
        .mirror()
        .fail("/blobs/", usize::MAX, Fault::Status(404, vec![]));
    let mut setup = setup(&hosts, &key);
    setup.rules.poll = crate::gateway::HOUR;
    let gate = TestGateway::with(&hosts.registry, setup).await;
    eventually("it is served", || gate.state() == "serving").await;
    let counted = |registry: &FaultyRegistry, operation: &str, outcome: &str| {
        let series = format!(
            "bundlegate_registry_requests_total{{operation=\"{operation}\",outcome=\"{outcome}\",registry=\"{}\"}}",
            registry.address
        );
        sample(gate.metrics(), &series).unwrap_or_default() as usize
    };
    let blobs = |registry: &FaultyRegistry| registry.asked("/blobs/").len();
    assert_eq!(counted(hosts.mirror(), "resolve", "ok"), 1);
    assert_eq!(counted(&hosts.registry, "resolve", "ok"), 0);
    assert_eq!(
        counted(hosts.mirror(), "blob", "not_found"),
        blobs(hosts.mirror())
    );
    assert_eq!(
        counted(&hosts.registry, "blob", "ok"),
        blobs(&hosts.registry)
    );
    assert!(blobs(&hosts.registry) > 0);
}

/// The cache is kept by repository and user: a mirror that is added later does not lose it.
#[tokio::test]
async fn what_is_cached_is_served_after_a_restart_with_mirrors_and_every_host_dead() {
    let (key, cache) = (Key::p256(), tempfile::tempdir().unwrap());
    let hosts = Mirrored::with(1, |registry| drop(publish(&[registry], &key, "one"))).await;
    let with_cache = |mirrors| {
        let mut setup = Setup {
            policy: policy([keyed(&key)]),
            mirrors,
            ..Setup::default()
        };
        setup.cache.directory = Some(cache.path().join("cache"));
        setup
    };
    let gate = TestGateway::with(&hosts.registry, with_cache(Vec::new())).await;
    eventually("it is served", || gate.state() == "serving").await;
    gate.end(&cache.path().join("cache")).await;
    for host in [&hosts.registry, hosts.mirror()] {
        host.fail("", usize::MAX, Fault::Unanswered);
    }
    let gate = TestGateway::with(&hosts.registry, with_cache(hosts.options())).await;
    eventually("it is served again", || gate.state() == "serving").await;
}
