//! Limits of an attacker who can move tags (attack 22), for a bundle that says what it expects:
//! while it is served, across a restart, and on a machine with an empty cache.

use bundlegate::{
    oci::{Descriptor, Digest},
    publish::OnMissing,
    store,
    verify::TrustPolicy,
    watch::{Expect, OnOlder, Order},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    attacks::{keyed, keyless, policy},
    faulty::FaultyRegistry,
    forge::{By, Certified, Envelope, Key, Legacy, Sigstore, minutes, payload, statement},
    gateway::{InProcess, PATIENCE, Setup, TestGateway, bundle, eventually, packed, tag},
};

/// One registry, and the cache of one machine in front of it.
struct World {
    registry: FaultyRegistry,
    cache: TempDir,
    tag: &'static str,
    expect: Expect,
    on_missing: OnMissing,
    policy: TrustPolicy,
}

/// A version that was pushed.
struct Pushed {
    digest: Digest,
    layer: Descriptor,
    etag: String,
}

impl World {
    async fn expecting(expect: Expect) -> Self {
        let (registry, cache) = (FaultyRegistry::start().await, tempfile::tempdir().unwrap());
        let (on_missing, policy) = (OnMissing::Keep, TrustPolicy::unsigned("test".into()));
        Self {
            registry,
            cache,
            tag: "live",
            expect,
            on_missing,
            policy,
        }
    }

    /// Moves the tag to an artifact with these annotations.
    fn push(&self, annotations: &[(&str, &str)], bundle: &[u8]) -> Pushed {
        let (digest, layer) = self.registry.put_annotated(self.tag, bundle, annotations);
        Pushed {
            digest,
            layer,
            etag: etag(bundle),
        }
    }

    fn push_version(&self, version: &str) -> Pushed {
        self.push(
            &[("org.opencontainers.image.version", version)],
            &bundle(version),
        )
    }

    /// A gateway with the cache as the one before it left it.
    async fn gate(&self) -> TestGateway<InProcess> {
        let directory = Some(self.cache.path().to_owned());
        self.with_cache(store::Options {
            directory,
            disk: 1 << 20,
            memory: 1 << 20,
        })
        .await
    }

    /// A gateway on another machine.
    async fn fresh_gate(&self) -> TestGateway<InProcess> {
        self.with_cache(Setup::default().cache).await
    }

    async fn with_cache(&self, cache: store::Options) -> TestGateway<InProcess> {
        let (expect, policy, tag) = (self.expect.clone(), self.policy.clone(), self.tag);
        let mut setup = Setup {
            expect,
            policy,
            tag,
            cache,
            ..Setup::default()
        };
        setup.rules.on_missing = self.on_missing;
        TestGateway::with(&self.registry, setup).await
    }

    async fn restart(&self, gate: TestGateway<InProcess>) -> TestGateway<InProcess> {
        gate.end(self.cache.path()).await;
        self.gate().await
    }

    fn downloads(&self, pushed: &Pushed) -> usize {
        self.registry
            .asked(&format!("blobs/{}", pushed.layer.digest))
            .len()
    }
}

fn etag(bundle: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use sha2::{Digest as _, Sha256};
    format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha256::digest(bundle)))
}

/// A bundle with this `.manifest`, and a rule in `authz`.
fn stating(manifest: &Value) -> Vec<u8> {
    packed(&[
        (".manifest", &manifest.to_string()),
        ("rules.rego", "package authz.users\n\nallow := true\n"),
    ])
}

async fn serves(gate: &TestGateway<InProcess>, pushed: &Pushed) {
    eventually("it is served", || gate.state() == "serving").await;
    let served = async {
        let mut answer = gate.get("", 0).await;
        while tag(&answer) != pushed.etag {
            answer = gate.get(&tag(&answer), 1).await;
        }
    };
    timeout(PATIENCE, served).await.expect("it is not served");
}

/// It was refused for this reason, once more than before, and nobody gets it.
async fn refuses(
    gate: &TestGateway<InProcess>,
    pushed: &Pushed,
    reason: &str,
    serving: Option<&Pushed>,
) {
    eventually(reason, || gate.refreshes(reason) > 0).await;
    let status = gate.shown().await;
    let failure = &status["last_failure"];
    assert_eq!(failure["digest"], json!(pushed.digest), "{status}");
    assert!(
        failure["message"]
            .as_str()
            .unwrap()
            .ends_with("see `expect`"),
        "{status}"
    );
    let answer = gate.get("", 0).await;
    match serving {
        Some(old) => {
            assert_eq!(
                (&status["state"], &status["manifest"]),
                (&json!("serving"), &json!(old.digest)),
                "{status}"
            );
            assert_eq!(tag(&answer), old.etag);
        }
        None => {
            assert_eq!(
                (&status["state"], &status["lost"]),
                (&json!("withdrawn"), &Value::Null),
                "{status}"
            );
            assert_eq!(answer.status(), 404);
        }
    }
}

/// While something good is served, across a restart, and on a fresh machine. `downloads`: what
/// may be asked for of the bad one's bytes, at each start of a gateway.
async fn is_refused_for_ever(
    world: &World,
    good: Pushed,
    bad: impl Fn() -> Pushed,
    reason: &str,
    downloads: usize,
) {
    let gate = world.gate().await;
    serves(&gate, &good).await;
    let bad = bad();
    let before = world.downloads(&bad);
    refuses(&gate, &bad, reason, Some(&good)).await;
    // It is known to be hopeless by now, whatever it cost the first time.
    let polls = world.registry.asked("HEAD").len();
    eventually("it is looked at again", || {
        world.registry.asked("HEAD").len() > polls + 3
    })
    .await;
    assert_eq!(world.downloads(&bad), before + downloads);
    let gate = world.restart(gate).await;
    refuses(&gate, &bad, reason, Some(&good)).await;
    let gate = world.fresh_gate().await;
    refuses(&gate, &bad, reason, None).await;
    assert_eq!(world.downloads(&bad), before + 3 * downloads);
}

fn order(order: Order) -> Expect {
    Expect {
        order: Some(order),
        on_older: OnOlder::Refuse,
        ..Expect::default()
    }
}

fn versions(minimum: Option<&str>) -> Expect {
    order(Order::Version {
        minimum: minimum.map(|version| version.parse().unwrap()),
    })
}

#[tokio::test]
async fn a_tag_moved_back_is_refused_for_the_price_of_a_manifest_also_after_a_restart() {
    let mut world = World::expecting(versions(None)).await;
    let old = world.push_version("1.0.0");
    let gate = world.gate().await;
    serves(&gate, &old).await;
    let new = world.push_version("1.1.0");
    serves(&gate, &new).await;
    let old = world.push_version("1.0.0");
    let downloads = world.downloads(&old);
    refuses(&gate, &old, "older", Some(&new)).await;
    let gate = world.restart(gate).await;
    refuses(&gate, &old, "older", Some(&new)).await;
    // The registry may be gone as well.
    world.registry.refuse("", 503, "");
    let gate = world.restart(gate).await;
    serves(&gate, &new).await;
    world.registry.heal();
    assert_eq!(world.downloads(&old), downloads, "a manifest was enough");
    gate.end(world.cache.path()).await;
    // A fresh machine knows nothing, unless somebody tells it.
    let fresh = world.fresh_gate().await;
    serves(&fresh, &old).await;
    world.expect = versions(Some("1.1.0"));
    let fresh = world.fresh_gate().await;
    refuses(&fresh, &old, "older", None).await;
    let new = world.push_version("1.1.0");
    serves(&fresh, &new).await;
}

#[tokio::test]
async fn what_was_reached_is_not_forgotten_with_the_bundle() {
    let mut world = World::expecting(versions(None)).await;
    world.on_missing = OnMissing::Withdraw;
    let new = world.push_version("2.0.0");
    let gate = world.gate().await;
    serves(&gate, &new).await;
    world.registry.remove("manifests/live");
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let gate = world.restart(gate).await;
    let old = world.push_version("1.0.0");
    eventually("older", || gate.refreshes("older") > 0).await;
    assert_eq!((gate.state(), world.downloads(&old)), ("withdrawn", 0));
    let newer = world.push_version("2.0.1");
    serves(&gate, &newer).await;
}

#[tokio::test]
async fn a_version_tag_on_another_versions_digest_is_refused() {
    let mut world = World::expecting(versions(None)).await;
    world.tag = "v1.4.0";
    let good = world.push_version("1.4.0");
    is_refused_for_ever(
        &world,
        good,
        || world.push_version("1.3.9"),
        "expect_version",
        0,
    )
    .await;
}

/// Where only the bundle says which version it is, it has to be fetched to be refused.
#[tokio::test]
async fn a_version_that_only_the_revision_states_counts_as_well() {
    let revised = |revision: &str| stating(&json!({ "revision": revision }));
    let mut world = World::expecting(versions(None)).await;
    world.tag = "1.4.0";
    let good = world.push(&[], &revised("1.4.0"));
    is_refused_for_ever(
        &world,
        good,
        || world.push(&[], &revised("1.3.9")),
        "expect_version",
        1,
    )
    .await;
}

/// With its signatures, which say nothing about where it belongs.
#[tokio::test]
async fn a_bundle_copied_from_another_repository_is_refused() {
    let title = "org.opencontainers.image.title";
    let annotations = [(title.to_owned(), "authz".to_owned())].into();
    let world = World::expecting(Expect {
        annotations,
        ..Expect::default()
    })
    .await;
    let good = world.push(&[(title, "authz")], &bundle("ours"));
    let bad = || world.push(&[(title, "billing")], &bundle("theirs"));
    is_refused_for_ever(&world, good, bad, "expect_annotations", 0).await;
}

#[tokio::test]
async fn roots_outside_what_is_expected_are_refused() {
    // The other one has no `.manifest`, and so claims everything.
    for bad in [
        stating(&json!({ "roots": ["authz", "system"] })),
        bundle("everything"),
    ] {
        let world = World::expecting(Expect {
            roots: vec!["authz".into()],
            ..Expect::default()
        })
        .await;
        let good = world.push(&[], &stating(&json!({ "roots": ["authz/users"] })));
        is_refused_for_ever(&world, good, || world.push(&[], &bad), "expect_roots", 1).await;
    }
}

#[tokio::test]
async fn what_comes_back_is_refused_where_nothing_gives_an_order() {
    let world = World::expecting(Expect {
        on_older: OnOlder::Refuse,
        ..Expect::default()
    })
    .await;
    let first = world.push(&[], &bundle("first"));
    let gate = world.gate().await;
    serves(&gate, &first).await;
    let second = world.push(&[], &bundle("second"));
    serves(&gate, &second).await;
    let first = world.push(&[], &bundle("first"));
    refuses(&gate, &first, "older", Some(&second)).await;
    let gate = world.restart(gate).await;
    refuses(&gate, &first, "older", Some(&second)).await;
    let gate = world.fresh_gate().await;
    serves(&gate, &first).await;
}

#[tokio::test]
async fn by_default_what_comes_back_is_served_with_an_alarm_until_something_newer_is() {
    let world = World::expecting(Expect::default()).await;
    let first = world.push(&[], &bundle("first"));
    let gate = world.gate().await;
    serves(&gate, &first).await;
    let second = world.push(&[], &bundle("second"));
    serves(&gate, &second).await;
    assert_eq!(
        (
            &gate.shown().await["older"],
            &*gate.gauge("bundlegate_bundle_older").await
        ),
        (&Value::Null, "0")
    );
    let first = world.push(&[], &bundle("first"));
    serves(&gate, &first).await;
    let expected = format!(
        "{} was served earlier and has been replaced, last by {}",
        first.digest, second.digest
    );
    let gate = {
        eventually("the alarm", || gate.status().older.is_some()).await;
        assert_eq!(gate.gauge("bundlegate_bundle_older").await, "1");
        assert_eq!(gate.shown().await["older"], json!(expected));
        world.restart(gate).await
    };
    serves(&gate, &first).await;
    assert_eq!(
        gate.shown().await["older"],
        json!(expected),
        "also after a restart"
    );
    let second = world.push(&[], &bundle("second"));
    serves(&gate, &second).await;
    eventually("no alarm", || gate.status().older.is_none()).await;
    assert_eq!(gate.gauge("bundlegate_bundle_older").await, "0");
    assert_eq!(gate.shown().await["older"], Value::Null);
}

#[tokio::test]
async fn going_back_on_purpose_makes_the_old_version_the_newest() {
    let mut world = World::expecting(versions(None)).await;
    let new = world.push_version("2.0.0");
    let gate = world.gate().await;
    serves(&gate, &new).await;
    gate.end(world.cache.path()).await;
    world.expect.on_older = OnOlder::Serve;
    let old = world.push_version("1.0.0");
    let gate = world.gate().await;
    serves(&gate, &old).await;
    assert_eq!(gate.shown().await["older"], Value::Null);
    gate.end(world.cache.path()).await;
    world.expect.on_older = OnOlder::Refuse;
    let gate = world.gate().await;
    serves(&gate, &old).await;
    let older = world.push_version("0.9.0");
    refuses(&gate, &older, "older", Some(&old)).await;
}

/// The disk may hold what today's configuration would not take.
#[tokio::test]
async fn what_lies_on_disk_is_held_to_what_is_expected_today() {
    let mut world = World::expecting(Expect::default()).await;
    let pushed = world.push(&[], &bundle("everything"));
    let gate = world.gate().await;
    serves(&gate, &pushed).await;
    gate.end(world.cache.path()).await;
    world.expect.roots = vec!["authz".into()];
    world.registry.refuse("", 503, "");
    let gate = world.gate().await;
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let status = gate.shown().await;
    assert_eq!(status["last_failure"]["class"], "distrusted", "{status}");
    assert_eq!(status["lost"]["etag"], json!(pushed.etag), "{status}");
}

/// Signs a digest, at the forge's present.
fn signed(world: &World, forge: &Sigstore, signer: &Certified, pushed: &Pushed) {
    let (by, envelope) = (
        By::Certificate(signer),
        Envelope::sign(&signer.key, &statement(&pushed.digest)),
    );
    let bundle = envelope.bundle(by, &[forge.log_envelope(by, &envelope)], &[]);
    world.registry.put_bundles(&pushed.digest, &[bundle]);
}

#[tokio::test]
async fn by_the_time_of_signing_an_old_version_is_the_newest_once_it_is_signed_again() {
    let mut world = World::expecting(order(Order::SignedTime { minimum: None })).await;
    let mut forge = Sigstore::new();
    let signer = forge.signer();
    world.policy = policy([keyless(forge.trust())]);
    let first = world.push(&[], &bundle("first"));
    signed(&world, &forge, &signer, &first);
    let gate = world.gate().await;
    serves(&gate, &first).await;
    forge.then += minutes(2);
    let second = world.push(&[], &bundle("second"));
    signed(&world, &forge, &signer, &second);
    serves(&gate, &second).await;
    let first = world.push(&[], &bundle("first"));
    refuses(&gate, &first, "older", Some(&second)).await;
    let gate = world.restart(gate).await;
    refuses(&gate, &first, "older", Some(&second)).await;
    // No tag moves: a signature may follow, so it is looked at again.
    forge.then += minutes(2);
    signed(&world, &forge, &signer, &first);
    serves(&gate, &first).await;
    assert_eq!(gate.shown().await["older"], Value::Null);
}

/// A signature of the index counts first, which may be the older one.
#[tokio::test]
async fn a_signature_of_the_image_meets_the_expectation_that_one_of_its_index_does_not() {
    let mut forge = Sigstore::new();
    let minimum = Some(forge.then + minutes(1));
    let mut world = World::expecting(order(Order::SignedTime { minimum })).await;
    let signer = forge.signer();
    world.policy = policy([keyless(forge.trust())]);
    let image = world.push(&[], &bundle("first"));
    let digest = world
        .registry
        .put_index("live", &[(&image.digest, json!({}))]);
    let index = Pushed {
        digest,
        layer: image.layer.clone(),
        etag: image.etag.clone(),
    };
    signed(&world, &forge, &signer, &index);
    let gate = world.gate().await;
    refuses(&gate, &index, "older", None).await;
    forge.then += minutes(2);
    signed(&world, &forge, &signer, &image);
    serves(&gate, &index).await;
    world.registry.refuse("", 503, "");
    let gate = world.restart(gate).await;
    serves(&gate, &index).await;
}

/// The newer signature is in the referrers API, which the registry has not had before.
#[tokio::test]
async fn a_signature_in_an_api_that_was_missing_before_meets_the_expectation() {
    let (key, forge) = (Key::p256(), Sigstore::new());
    let mut world = World::expecting(order(Order::SignedTime { minimum: None })).await;
    world.policy = policy([keyed(&key), keyless(forge.trust())]);
    let pushed = world.push(&[], &bundle("first"));
    // A signature whose time no log has seen.
    let signature = Legacy::sign(&key, &payload(&pushed.digest, "r.example/authz"));
    world.registry.put_legacy(&pushed.digest, &[signature]);
    let gate = world.gate().await;
    eventually("a failed check", || gate.last_failure().is_some()).await;
    assert_eq!(gate.last_failure().unwrap().class, "evidence");
    let signer = forge.signer();
    let (by, envelope) = (
        By::Certificate(&signer),
        Envelope::sign(&signer.key, &statement(&pushed.digest)),
    );
    let bundle = envelope.bundle(by, &[forge.log_envelope(by, &envelope)], &[]);
    let bytes = bundle.to_string();
    let entry = world
        .registry
        .put_referrer(&pushed.digest, bytes.as_bytes(), |_| {});
    world
        .registry
        .list_referrers(&pushed.digest, &json!([entry]));
    serves(&gate, &pushed).await;
}

#[tokio::test]
async fn a_history_is_kept_where_there_is_no_room_for_the_bundle() {
    let world = World::expecting(versions(None)).await;
    let tiny = || {
        let directory = Some(world.cache.path().to_owned());
        world.with_cache(store::Options {
            directory,
            disk: 10,
            memory: 1 << 20,
        })
    };
    let new = world.push_version("2.0.0");
    let gate = tiny().await;
    serves(&gate, &new).await;
    gate.end(world.cache.path()).await;
    let old = world.push_version("1.0.0");
    let gate = tiny().await;
    refuses(&gate, &old, "older", None).await;
}
