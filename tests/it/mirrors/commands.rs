//! Commands that read from a registry with a mirror, whose `registries` are in `--config`.

use bundlegate::oci::{Digest, NewManifest, media_type};
use serde_json::json;

use super::evidence::{PLACES, Scene};
use crate::{
    command::{Author, Ran},
    faulty::{Fault, FaultyRegistry},
    gateway::bundle,
};

/// A user whose configuration has the registry, its mirror and the policy of the scene.
fn author(scene: &Scene) -> Author {
    let hosts = [&scene.hosts.registry, scene.hosts.mirror()];
    // A copy has the image's configuration as well.
    let config = format!("blobs/{}", Digest::sha256(NewManifest::CONFIG));
    for host in hosts {
        host.put(&config, media_type::IMAGE_CONFIG, NewManifest::CONFIG);
    }
    let [host, other] = hosts.map(|host| host.address.to_string());
    let everything = format!("{host}/**");
    // Short, because a command waits for a registry that does not answer.
    let timeouts = json!({ "connect": "1s", "read": "1s", "total": "5s" });
    let config = json!({
        "version": 1,
        "registries": {
            host: { "scheme": "http", "mirrors": [other], "timeouts": timeouts },
            other: { "scheme": "http" },
        },
        "trust": {
            "authorities": { "key": { "keys": ["key.pub"], "tlog": "none" } },
            "policies": { "release": { "match": [everything], "require": { "any_of": ["key"] } } },
        },
    });
    Author::with(&[
        ("key.pub", &scene.key.pem()),
        ("bundlegate.yaml", &config.to_string()),
    ])
}

fn run(author: &Author, line: &str) -> Ran {
    let line = format!("{line} --config bundlegate.yaml");
    tokio::task::block_in_place(|| author.line(&line))
}

fn resolved_at(registry: &FaultyRegistry) -> usize {
    let tag = "GET /v2/acme/authz/manifests/live";
    registry.asked(tag).len() + registry.asked("HEAD ").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_and_pull_ask_the_registry_before_they_refuse() {
    for place in PLACES {
        let scene = Scene::new().await;
        scene.sign_foreign(scene.hosts.mirror(), place);
        let registry = &scene.hosts.registry;
        let author = author(&scene);
        let reference = registry.reference("live");
        for command in ["verify", "pull"] {
            let refused = run(&author, &format!("{command} {reference}"));
            assert_eq!(refused.code, 1, "{command}: {refused:?}");
        }
        scene.sign(registry, place);
        for command in ["verify", "pull"] {
            let accepted = run(&author, &format!("{command} {reference}"));
            assert_eq!(accepted.code, 0, "{command}, {place:?}: {accepted:?}");
        }
        assert_eq!(resolved_at(registry), 0);
    }
}

/// The signature that counts may be in a list that was not read.
#[tokio::test(flavor = "multi_thread")]
async fn verify_and_pull_name_the_registry_that_does_not_answer_and_not_the_signatures() {
    for place in PLACES {
        let scene = Scene::new().await;
        scene.sign_foreign(scene.hosts.mirror(), place);
        let registry = &scene.hosts.registry;
        let author = author(&scene);
        registry.fail("", usize::MAX, Fault::Status(503, vec![]));
        for command in ["verify", "pull"] {
            let failed = run(
                &author,
                &format!("{command} {}", registry.reference("live")),
            );
            assert_eq!(failed.code, 1, "{command}, {place:?}: {failed:?}");
            assert!(failed.stderr.contains("HTTP 503"), "{command}: {failed:?}");
            assert!(!failed.stderr.contains("bundlegate sign"), "{failed:?}");
            assert!(!failed.stdout.contains("not verified"), "{failed:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_takes_the_tag_of_the_registry_and_that_of_a_mirror_only_while_it_does_not_answer() {
    let scene = Scene::new().await;
    let (registry, mirror) = (&scene.hosts.registry, scene.hosts.mirror());
    let author = author(&scene);
    let old = registry.held("manifests/live").unwrap().1;
    let (new, _) = registry.put_artifact("live", &bundle("two"));
    let source = registry.reference("live");
    let copy = |to: &str| run(&author, &format!("copy {source} oci-layout:{to}:live"));
    let copied = copy("first");
    assert_eq!(copied.code, 0, "{copied:?}");
    assert!(copied.stdout.contains(&new.to_string()), "{copied:?}");
    registry.fail("", usize::MAX, Fault::Status(503, vec![]));
    let outdated = copy("second");
    assert_eq!(outdated.code, 0, "{outdated:?}");
    let old = Digest::sha256(&old).to_string();
    assert!(outdated.stdout.contains(&old), "{outdated:?}");
    assert!(outdated.stderr.contains("that of a mirror"), "{outdated:?}");
    assert!(!mirror.asked("").is_empty());
}
