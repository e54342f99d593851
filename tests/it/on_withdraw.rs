//! `on_withdraw`: what clients of a withdrawn bundle get, and how many still run it.

use std::time::Duration;

use bundlegate::{
    oci::Digest,
    verify::{AuthorityKind, Requirements, TrustPolicy},
};
use reqwest::Response;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{spawn, task::JoinHandle, time::Instant};

use crate::{
    attacks::{keyed, policy, policy_with},
    cache::{blob_path, on_disk},
    faulty::FaultyRegistry,
    forge::{By, Envelope, Key, statement},
    gateway::{
        FALLBACK, InProcess, Setup, TestGateway, bundle, error, eventually, header, tag, wishing,
    },
    shared::poll_until,
};

/// A registry with a bundle, signed by a key, and one that denies everything.
struct World {
    registry: FaultyRegistry,
    key: Key,
    bundle: Digest,
    denial: Digest,
}

impl World {
    async fn new() -> Self {
        let (registry, key) = (FaultyRegistry::start().await, Key::p256());
        let (bundle, denial) = (
            push(&registry, "live", "allow"),
            push(&registry, "deny", "deny"),
        );
        let signed = Envelope::sign(&key, &statement(&bundle)).bundle(By::Key(&key), &[], &[]);
        registry.put_bundles(&bundle, &[signed]);
        Self {
            registry,
            key,
            bundle,
            denial,
        }
    }

    fn setup(&self, fallback: Option<&'static str>) -> Setup {
        Setup {
            policy: self.trusted(),
            fallback,
            ..Setup::default()
        }
    }

    /// The same with a policy, a cache and a fallback.
    fn setup_with_cache(&self, policy: TrustPolicy, cache: &TempDir) -> Setup {
        Setup {
            cache: on_disk(cache),
            policy,
            ..self.setup(Some("deny"))
        }
    }

    async fn gate(&self, fallback: Option<&'static str>) -> TestGateway<InProcess> {
        let gate = TestGateway::with(&self.registry, self.setup(fallback)).await;
        eventually("it is served", || gate.state() == "serving").await;
        gate
    }

    /// The policy that accepts the bundle.
    fn trusted(&self) -> TrustPolicy {
        policy([keyed(&self.key)])
    }

    /// A policy with another key in the place of the one that signed.
    fn key_replaced(&self) -> TrustPolicy {
        policy([keyed(&Key::p256())])
    }

    /// A policy that names the bundle's digest as revoked.
    fn digest_revoked(&self) -> TrustPolicy {
        policy_with([keyed(&self.key)], |wanted: &mut Requirements| {
            wanted.revoked_digests.insert(self.bundle.clone());
        })
    }
}

impl World {
    /// A policy that names the key as revoked that signed.
    fn key_revoked(&self) -> TrustPolicy {
        let mut authority = keyed(&self.key);
        let AuthorityKind::Keys(keys) = &mut authority.kind else {
            panic!("no keys")
        };
        keys[0].revoked = true;
        policy([authority])
    }
}

fn push(registry: &FaultyRegistry, tag: &str, text: &str) -> Digest {
    registry.put_artifact(tag, &bundle(text)).0
}

/// The entity tag of `bundle(text)`.
async fn tag_of(gate: &TestGateway<InProcess>, name: &str) -> String {
    let request = gate.request(reqwest::Method::GET, &format!("/bundles/{name}"));
    tag(&request.send().await.unwrap())
}

/// An OPA that waits for another version than the one that it runs.
fn waiting(gate: &TestGateway<InProcess>, runs: &str) -> JoinHandle<(Response, Instant)> {
    let request = gate.asking(runs, 120);
    spawn(async move { (request.send().await.unwrap(), Instant::now()) })
}

fn assert_is_denial(world: &World, answer: &Response) {
    assert_eq!(answer.status(), 200);
    assert_eq!(header(answer, "bundlegate-manifest"), world.denial.as_str());
}

#[tokio::test]
async fn those_who_wait_get_the_fallback_at_once_and_the_bundle_back_once_it_is_trusted_again() {
    let world = World::new().await;
    let gate = world.gate(Some("deny")).await;
    let (allow, deny) = (
        tag_of(&gate, gate.name()).await,
        tag_of(&gate, FALLBACK).await,
    );
    let first = waiting(&gate, &allow);
    gate.until_waiting(1).await;
    // A dead registry neither prevents nor delays the fallback.
    world.registry.refuse("", 503, "");
    let began = Instant::now();
    gate.trust(world.key_replaced());
    let (answer, ended) = first.await.unwrap();
    eprintln!(
        "the fallback reached a waiting client {:?} after the policy changed",
        ended - began
    );
    assert_is_denial(&world, &answer);
    assert_eq!(
        (tag(&answer), header(&answer, "bundlegate-signer")),
        (deny.clone(), "")
    );
    let status = gate.shown().await;
    assert_eq!(status["state"], "withdrawn");
    let fallback = &status["fallback"];
    assert_eq!(
        (
            &fallback["bundle"],
            &fallback["manifest"],
            &fallback["etag"]
        ),
        (&json!(FALLBACK), &json!(world.denial), &json!(deny))
    );
    assert!(
        fallback["since"].as_str().unwrap() >= status["since"].as_str().unwrap(),
        "{status}"
    );
    assert_eq!(gate.gauge("bundlegate_bundle_fallback").await, "1");
    // Later clients get it as well: with nothing, with another version, and with the withdrawn one.
    for runs in ["", "\"something\"", &allow] {
        assert_is_denial(&world, &gate.get(runs, 0).await);
        assert_is_denial(&world, &gate.get(runs, 60).await);
    }
    assert_eq!(gate.get(&deny, 0).await.status(), 304);
    let second = waiting(&gate, &format!("{deny}, {allow}"));
    gate.until_waiting(1).await;
    world.registry.heal();
    gate.trust(world.trusted());
    let (answer, _) = second.await.unwrap();
    assert_eq!((answer.status().as_u16(), tag(&answer)), (200, allow));
    let status = gate.shown().await;
    assert_eq!(
        (&status["state"], &status["fallback"], &status["lost"]),
        (&json!("serving"), &Value::Null, &Value::Null)
    );
    assert_eq!(gate.gauge("bundlegate_bundle_fallback").await, "0");
}

#[tokio::test]
async fn a_new_version_of_the_fallback_reaches_those_who_run_the_old_one() {
    let world = World::new().await;
    let gate = world.gate(Some("deny")).await;
    gate.trust(world.key_replaced());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let answer = gate.get("", 60).await;
    assert_is_denial(&world, &answer);
    let runs = tag(&answer);
    let waiting = waiting(&gate, &runs);
    gate.until_waiting(1).await;
    let denial = push(&world.registry, "deny", "deny, and say why");
    let (answer, _) = waiting.await.unwrap();
    assert_eq!(
        (
            answer.status().as_u16(),
            header(&answer, "bundlegate-manifest")
        ),
        (200, denial.as_str())
    );
}

#[tokio::test]
async fn a_fallback_that_has_nothing_to_serve_is_none() {
    let world = World::new().await;
    let gate = world.gate(Some("nothing")).await;
    let runs = tag_of(&gate, gate.name()).await;
    let held = waiting(&gate, &runs);
    gate.until_waiting(1).await;
    gate.trust(world.key_replaced());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let refused = error(gate.get(&runs, 0).await).await;
    assert_eq!(refused["reason"], "withdrawn");
    let fallback = &gate.shown().await["fallback"];
    assert_eq!(
        *fallback,
        json!({"bundle": FALLBACK, "manifest": null, "etag": null, "since": null})
    );
    assert_eq!(gate.gauge("bundlegate_bundle_fallback").await, "0");
    // As soon as it has a version, it is served.
    let denial = push(&world.registry, "nothing", "deny");
    let (answer, _) = held.await.unwrap();
    assert_eq!(
        (
            answer.status().as_u16(),
            header(&answer, "bundlegate-manifest")
        ),
        (200, denial.as_str())
    );
}

#[tokio::test]
async fn without_a_fallback_the_status_tells_how_many_still_run_what_was_withdrawn() {
    let world = World::new().await;
    let gate = world.gate(None).await;
    let runs = tag_of(&gate, gate.name()).await;
    // Three clients wait that look the same. Their second tag does not count.
    let held: Vec<_> = (0..3)
        .map(|_| waiting(&gate, &format!("{runs}, \"older\"")))
        .collect();
    let other = waiting(&gate, "");
    let [served] = [other.await.unwrap().0];
    assert_eq!(tag(&served), runs);
    gate.until_waiting(3).await;
    assert_eq!(gate.shown().await["lost"], Value::Null);
    world.registry.refuse("", 503, "");
    gate.trust(world.key_replaced());
    let lost = async || gate.shown().await["lost"].clone();
    poll_until("three clients are lost", async || {
        (lost().await["clients"] == 3).then_some(())
    })
    .await;
    assert_eq!(
        lost().await,
        json!({"manifest": world.bundle, "etag": runs, "clients": 3})
    );
    assert_eq!(gate.gauge("bundlegate_lost_clients").await, "3");
    // Clients that poll are known by their `User-Agent`, and count once.
    let polling = async |agent: &str, runs: &str| {
        let request = wishing(gate.request(reqwest::Method::GET, "/authz/main"), runs, 0);
        let answer = request.header("user-agent", agent).send().await.unwrap();
        assert_eq!(error(answer).await["reason"], "withdrawn");
    };
    for _ in 0..4 {
        polling("one", &runs).await;
        polling("two", &runs).await;
        polling("three", "\"something else\"").await;
        polling("four", "").await;
    }
    assert_eq!(lost().await["clients"], 5);
    // A client restarts, and runs nothing any more.
    polling("two", "").await;
    assert_eq!(lost().await["clients"], 4);
    held.into_iter().for_each(|one| one.abort());
    world.registry.heal();
    gate.trust(world.trusted());
    eventually("it is served again", || gate.state() == "serving").await;
    assert_eq!(
        (lost().await, &*gate.gauge("bundlegate_lost_clients").await),
        (Value::Null, "0")
    );
}

#[tokio::test]
async fn a_restart_does_not_forget_that_something_was_withdrawn() {
    let (world, cache) = (World::new().await, tempfile::tempdir().unwrap());
    let setup = |policy| world.setup_with_cache(policy, &cache);
    let gate = TestGateway::with(&world.registry, setup(world.trusted())).await;
    eventually("it is served", || gate.state() == "serving").await;
    let runs = tag_of(&gate, gate.name()).await;
    gate.trust(world.key_replaced());
    assert_is_denial(&world, &gate.get(&runs, 60).await);
    gate.end(cache.path()).await;
    // The bundle is no longer on disk, but its fallback is.
    world.registry.refuse("", 503, "");
    let gate = TestGateway::with(&world.registry, setup(world.key_replaced())).await;
    assert_is_denial(&world, &gate.get(&runs, 60).await);
    let status = gate.shown().await;
    assert_eq!(
        (&status["state"], &status["lost"]["etag"]),
        (&json!("withdrawn"), &json!(runs)),
        "{status}"
    );
    gate.end(cache.path()).await;
    world.registry.heal();
    let gate = TestGateway::with(&world.registry, setup(world.trusted())).await;
    assert_eq!(tag(&gate.get(&runs, 0).await), runs);
    eventually("it is served", || gate.state() == "serving").await;
    assert_eq!(gate.shown().await["lost"], Value::Null);
}

/// The signature follows the push, and the other replicas serve the earlier version.
#[tokio::test]
async fn a_cold_replica_takes_nothing_from_those_who_may_be_served_elsewhere() {
    let world = World::new().await;
    let gate = TestGateway::with(
        &world.registry,
        Setup {
            policy: world.key_replaced(),
            ..world.setup(Some("deny"))
        },
    )
    .await;
    eventually("it is rejected", || gate.state() == "withdrawn").await;
    let held = waiting(&gate, "\"of another replica\"");
    gate.until_waiting(1).await;
    assert_eq!(gate.get("\"of another replica\"", 0).await.status(), 404);
    assert!(!held.is_finished());
    held.abort();
    // A client without a version gets the fallback, and keeps it.
    let answer = gate.get("", 60).await;
    assert_is_denial(&world, &answer);
    assert_eq!(gate.get(&tag(&answer), 0).await.status(), 304);
}

#[tokio::test]
async fn a_cold_replica_serves_the_fallback_for_what_is_named_as_revoked() {
    let world = World::new().await;
    let warm = world.gate(None).await;
    let runs = tag_of(&warm, warm.name()).await;
    let revoked = Setup {
        policy: world.digest_revoked(),
        ..world.setup(Some("deny"))
    };
    let gate = TestGateway::with(&world.registry, revoked).await;
    assert_is_denial(&world, &gate.get(&runs, 60).await);
    let status = gate.shown().await;
    assert_eq!(
        status["lost"],
        json!({"manifest": world.bundle, "etag": runs, "clients": 1}),
        "{status}"
    );
    assert_eq!(status["last_failure"]["class"], "distrusted");
}

/// An attacker who can move the tag points it at an old artifact of a revoked key. The other replicas
/// serve the good version, and this replica has an empty cache.
#[tokio::test]
async fn a_cold_replica_takes_the_good_version_from_no_client_when_the_tag_leads_to_a_revoked_one()
{
    let world = World::new().await;
    let old = world.gate(None).await;
    let revoked = tag_of(&old, old.name()).await;
    for policy in [world.digest_revoked(), world.key_revoked()] {
        let gate = TestGateway::with(
            &world.registry,
            Setup {
                policy,
                ..world.setup(Some("deny"))
            },
        )
        .await;
        eventually("it is rejected", || gate.state() == "withdrawn").await;
        eventually("there is a fallback", || gate.fallback_is_serving()).await;
        let good = "\"of the good version\"";
        // The second tag is that of a version which the client ran earlier.
        for runs in [good.to_owned(), format!("{good}, {revoked}")] {
            assert_eq!(gate.get(&runs, 0).await.status(), 404, "{runs}");
            assert_eq!(gate.get(&runs, 1).await.status(), 404, "{runs}");
        }
        let denial = gate.get("", 0).await;
        assert_is_denial(&world, &denial);
        assert_eq!(gate.get(&tag(&denial), 0).await.status(), 304);
        assert_is_denial(&world, &gate.get(&revoked, 60).await);
        assert_is_denial(&world, &gate.get(&format!("{revoked}, {good}"), 60).await);
    }
}

/// The replica has served the bundle before its restart, and has lost the bytes since.
#[tokio::test]
async fn a_replica_with_a_history_serves_the_fallback_to_all_when_the_tag_leads_to_a_revoked_version()
 {
    let (world, cache) = (World::new().await, tempfile::tempdir().unwrap());
    let setup = |policy| world.setup_with_cache(policy, &cache);
    let gate = TestGateway::with(&world.registry, setup(world.trusted())).await;
    eventually("it is served", || gate.state() == "serving").await;
    gate.end(cache.path()).await;
    std::fs::remove_file(blob_path(&cache, &bundle("allow"))).unwrap();
    let gate = TestGateway::with(&world.registry, setup(world.digest_revoked())).await;
    eventually("it is rejected", || gate.refreshes("revoked_digest") > 0).await;
    assert_is_denial(&world, &gate.get("\"another version\"", 60).await);
    gate.end(cache.path()).await;
}

#[tokio::test]
async fn a_revoked_digest_that_is_pushed_again_takes_nothing_away() {
    let world = World::new().await;
    let revoked = world.bundle.clone();
    let good = push(&world.registry, "live", "allow, carefully");
    let signed =
        Envelope::sign(&world.key, &statement(&good)).bundle(By::Key(&world.key), &[], &[]);
    world.registry.put_bundles(&good, &[signed]);
    let setup = Setup {
        policy: world.digest_revoked(),
        ..world.setup(Some("deny"))
    };
    let gate = TestGateway::with(&world.registry, setup).await;
    eventually("it is served", || gate.state() == "serving").await;
    assert_eq!(push(&world.registry, "live", "allow"), revoked);
    eventually("it is rejected", || gate.refreshes("revoked_digest") > 0).await;
    let answer = gate.get("", 0).await;
    assert_eq!(header(&answer, "bundlegate-manifest"), good.as_str());
}

/// Half of the replicas have withdrawn the bundle already, and a balancer sends a client to both.
#[tokio::test]
async fn a_client_between_replicas_that_disagree_does_not_go_round_in_circles() {
    let world = World::new().await;
    let (trusting, distrusting) = (
        world.gate(Some("deny")).await,
        world.gate(Some("deny")).await,
    );
    distrusting.trust(world.digest_revoked());
    eventually("it is withdrawn", || distrusting.state() == "withdrawn").await;
    let (began, mut runs, mut rounds) = (Instant::now(), String::new(), 0);
    while began.elapsed() < Duration::from_secs(3) {
        for gate in [&trusting, &distrusting] {
            runs = tag(&gate.get(&runs, 60).await);
        }
        rounds += 1;
    }
    eprintln!(
        "{rounds} rounds between two replicas in {:?}",
        began.elapsed()
    );
    assert!(rounds <= 7, "{rounds} rounds");
}
