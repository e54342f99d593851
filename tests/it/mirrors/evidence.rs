//! Signatures at hosts of which some lack them, have old ones, or do not answer.

use bundlegate::{
    oci::{Digest, media_type},
    verify::TrustPolicy,
};
use serde_json::json;

use super::Mirrored;
use crate::{
    attacks::{keyed, policy},
    faulty::{Fault, FaultyRegistry},
    forge::{By, Envelope, Key, Legacy, payload, statement},
    gateway::{Setup, TestGateway, bundle, eventually},
};

/// Where a signature is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// At the `.sig` tag.
    Legacy,
    /// In the list of the referrers API.
    Listed,
    /// In the index at the referrers tag.
    Tagged,
}

pub(super) const PLACES: [Place; 3] = [Place::Legacy, Place::Listed, Place::Tagged];

fn sign(registry: &FaultyRegistry, key: &Key, digest: &Digest, place: Place) {
    if place == Place::Legacy {
        let signature = Legacy::sign(key, &payload(digest, "r.example/authz"));
        registry.put_legacy(digest, &[signature]);
        return;
    }
    let envelope = Envelope::sign(key, &statement(digest));
    let bundle = envelope.bundle(By::Key(key), &[], &[]).to_string();
    let entry = registry.put_referrer(digest, bundle.as_bytes(), |_| {});
    if place == Place::Listed {
        registry.list_referrers(digest, &json!([entry]));
        return;
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry],
    });
    let tag = format!("manifests/sha256-{}", digest.hex());
    registry.put(&tag, media_type::OCI_INDEX, index.to_string());
}

pub(super) struct Scene {
    pub(super) hosts: Mirrored,
    pub(super) key: Key,
    digest: Digest,
}

impl Scene {
    /// An artifact without signatures at a registry and its mirror.
    pub(super) async fn new() -> Self {
        let mut digest = None;
        let hosts = Mirrored::with(1, |registry| {
            digest = Some(registry.put_artifact("live", &bundle("one")).0);
        });
        Self {
            hosts: hosts.await,
            key: Key::p256(),
            digest: digest.unwrap(),
        }
    }

    fn policy(&self) -> TrustPolicy {
        policy([keyed(&self.key)])
    }

    pub(super) fn sign(&self, registry: &FaultyRegistry, place: Place) {
        sign(registry, &self.key, &self.digest, place);
    }

    /// Attaches a signature by nobody whom the policy trusts.
    pub(super) fn sign_foreign(&self, registry: &FaultyRegistry, place: Place) {
        sign(registry, &Key::p256(), &self.digest, place);
    }

    async fn gateway(&self) -> TestGateway<crate::gateway::InProcess> {
        let setup = Setup {
            policy: self.policy(),
            mirrors: self.hosts.options(),
            ..Setup::default()
        };
        TestGateway::with(&self.hosts.registry, setup).await
    }
}

async fn class(gate: &TestGateway<crate::gateway::InProcess>) -> &'static str {
    eventually("a failed check", || gate.last_failure().is_some()).await;
    gate.last_failure().unwrap().class
}

#[tokio::test]
async fn a_signature_that_only_the_registry_has_counts() {
    for place in PLACES {
        // Beside nothing at the mirror, and beside an outdated list.
        for outdated in [
            None,
            Some(Place::Legacy),
            Some(Place::Listed),
            Some(Place::Tagged),
        ] {
            let scene = Scene::new().await;
            scene.sign(&scene.hosts.registry, place);
            if let Some(outdated) = outdated {
                scene.sign_foreign(scene.hosts.mirror(), outdated);
            }
            let gate = scene.gateway().await;
            let what = format!("{place:?} beside {outdated:?} at the mirror");
            eventually(&what, || gate.state() == "serving").await;
        }
    }
}

#[tokio::test]
async fn a_signature_that_only_the_mirror_has_counts_while_the_registry_is_dead() {
    for place in PLACES {
        let scene = Scene::new().await;
        scene.sign(scene.hosts.mirror(), place);
        for fault in [
            Fault::Status(500, vec![]),
            Fault::Status(429, vec![("retry-after", "60".to_owned())]),
            Fault::Unanswered,
        ] {
            scene.hosts.registry.heal();
            let what = format!("{place:?}: {fault:?}");
            scene.hosts.registry.fail("", usize::MAX, fault);
            let gate = scene.gateway().await;
            eventually(&what, || gate.state() == "serving").await;
        }
    }
}

/// The signature that counts may be in a list that the registry did not deliver.
#[tokio::test]
async fn a_refusal_takes_an_answer_of_the_registry_and_not_only_of_its_mirrors() {
    let limited = Fault::Status(429, vec![("retry-after", "60".to_owned())]);
    for place in PLACES {
        for (fault, expected) in [
            (Fault::Status(500, vec![]), "transient"),
            (Fault::Unanswered, "transient"),
            (limited.clone(), "rate_limited"),
            (Fault::Status(401, vec![]), "denied"),
        ] {
            let scene = Scene::new().await;
            scene.sign_foreign(scene.hosts.mirror(), place);
            let what = format!("{place:?}: {fault:?}");
            scene.hosts.registry.fail("", usize::MAX, fault);
            let gate = scene.gateway().await;
            assert_eq!(
                class(&gate).await,
                expected,
                "{what}: {:?}",
                gate.last_failure()
            );
        }
    }
}

#[tokio::test]
async fn a_refusal_counts_once_the_registry_has_answered_whatever_the_mirror_does() {
    for fault in [
        None,
        Some(Fault::Status(500, vec![])),
        Some(Fault::Unanswered),
    ] {
        let scene = Scene::new().await;
        if let Some(fault) = fault.clone() {
            scene.hosts.mirror().fail("", usize::MAX, fault);
        }
        let gate = scene.gateway().await;
        let refused = || {
            gate.last_failure()
                .is_some_and(|failure| failure.class == "evidence")
        };
        eventually("the verdict", refused).await;
        // Signing follows the push.
        scene.sign(&scene.hosts.registry, Place::Listed);
        eventually("it is served", || gate.state() == "serving").await;
    }
}

/// The registry answers 403 for tags that are missing, as ECR does, and the manifest that proves it
/// must be the registry's own.
#[tokio::test]
async fn a_refused_tag_counts_as_a_missing_one_only_where_the_registry_delivers_the_artifact() {
    let scene = Scene::new().await;
    scene.sign_foreign(scene.hosts.mirror(), Place::Legacy);
    let registry = &scene.hosts.registry;
    registry.fail("/manifests/sha256-", usize::MAX, Fault::Status(403, vec![]));
    let by_digest = format!("GET /v2/acme/authz/manifests/{}", scene.digest);
    registry.fail(&by_digest, usize::MAX, Fault::Status(403, vec![]));
    let gate = scene.gateway().await;
    assert_eq!(class(&gate).await, "denied");
    registry.heal();
    registry.fail("/manifests/sha256-", usize::MAX, Fault::Status(403, vec![]));
    let refused = || {
        gate.last_failure()
            .is_some_and(|failure| failure.class == "evidence")
    };
    eventually("the verdict", refused).await;
}

/// A piece of evidence that the mirror has wrong comes from the registry.
#[tokio::test]
async fn a_signature_that_is_damaged_at_the_mirror_is_fetched_from_the_registry() {
    for place in PLACES {
        let scene = Scene::new().await;
        for host in [&scene.hosts.registry, scene.hosts.mirror()] {
            host.put_artifact("live", &bundle("one"));
        }
        scene.sign(&scene.hosts.registry, place);
        scene.hosts.mirror().copy_from(&scene.hosts.registry);
        scene
            .hosts
            .mirror()
            .fail("/blobs/", usize::MAX, Fault::Replace("wrong".into()));
        let gate = scene.gateway().await;
        eventually("it is served", || gate.state() == "serving").await;
    }
}

/// Nothing in a list is verified: an entry of the mirror with the digest of the registry's signature
/// and another size can't be fetched, and does not hide the right one.
#[tokio::test]
async fn a_mirror_that_lists_a_signature_with_another_size_does_not_hide_it() {
    for place in PLACES {
        for extra in [-1_i64, 1] {
            let scene = Scene::new().await;
            let (registry, mirror) = (&scene.hosts.registry, scene.hosts.mirror());
            scene.sign(registry, place);
            mirror.copy_from(registry);
            let hex = scene.digest.hex();
            let (path, member) = match place {
                Place::Legacy => (format!("manifests/sha256-{hex}.sig"), "layers"),
                Place::Listed => (format!("referrers/{}", scene.digest), "manifests"),
                Place::Tagged => (format!("manifests/sha256-{hex}"), "manifests"),
            };
            let (kind, list) = mirror.held(&path).unwrap();
            let mut list: serde_json::Value = serde_json::from_slice(&list).unwrap();
            let size = &mut list[member][0]["size"];
            *size = json!(size.as_i64().unwrap() + extra);
            mirror.put(&path, &kind, list.to_string());
            let gate = scene.gateway().await;
            let what = format!("{place:?}, {extra} bytes");
            eventually(&what, || gate.state() == "serving").await;
        }
    }
}

/// The mirror lists so much that nothing of `limits.evidence` is left for what the registry lists.
#[tokio::test]
async fn a_mirror_that_uses_up_the_limit_of_evidence_does_not_hide_the_signature() {
    let scene = Scene::new().await;
    let (registry, mirror) = (&scene.hosts.registry, scene.hosts.mirror());
    // Longer than each of those at the mirror, which therefore come first.
    let envelope = Envelope::sign(&scene.key, &statement(&scene.digest));
    let bundle = envelope.bundle(By::Key(&scene.key), &[], &[]).to_string();
    let entry = registry.put_referrer(&scene.digest, bundle.as_bytes(), |manifest| {
        manifest["annotations"]["note"] = "long".repeat(50_000).into();
    });
    registry.list_referrers(&scene.digest, &json!([entry]));
    let mut junk = Vec::new();
    for number in 0..8 {
        junk.push(mirror.put_referrer(&scene.digest, b"{}", |manifest| {
            manifest["annotations"]["note"] = number.to_string().repeat(150_000).into();
        }));
    }
    mirror.list_referrers(&scene.digest, &json!(junk));
    let gate = scene.gateway().await;
    eventually("it is served", || gate.state() == "serving").await;
}
