//! `cache.directory` and `cache.required`: which folders are used, and what stops the start.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    command::{Author, Ran},
    faulty::{Fault, FaultyRegistry},
    gateway::bundle,
    shared::{TestGateway, gateway::Program, poll_until},
};

/// A configuration with the bundle `authz` and this `cache`.
fn config(registry: &FaultyRegistry, cache: &Value) -> Value {
    json!({
        "version": 1,
        "server": {
            "listen": "127.0.0.1:0", "admin": "127.0.0.1:0",
            "drain": { "notice": "0s", "over": "0s" },
        },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "cache": cache,
        "registries": { registry.address.to_string(): { "scheme": "http" } },
        "trust": { "policies": { "dev": "unsigned" } },
        "bundles": { "authz": {
            "reference": registry.reference("live").to_string(), "trust": "dev", "poll": "200ms",
        } },
    })
}

fn folder(config: &Value) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
    folder
}

fn check(folder: &TempDir) -> Ran {
    let file = folder.path().join("bundlegate.yaml");
    Author::new().run(&["config", "check", file.to_str().unwrap()])
}

const ALARM: &str = "cache.directory can't be used: blobs are held in memory only, \
                     a cold start needs the registry";

impl TestGateway {
    /// The problem of the cache in `/status`, which is in the log and in the metric as well.
    async fn cache_problem(&self) -> Option<String> {
        let status: Value = serde_json::from_str(&self.admin_text("/status").await).unwrap();
        let problem = status["cache"]["problem"].as_str().map(str::to_owned);
        let logged = self.log().iter().any(|line| line["message"] == ALARM);
        let metric = self.metric("bundlegate_cache_unavailable").await;
        assert_eq!(
            (logged, metric == 1.0),
            (problem.is_some(), problem.is_some())
        );
        problem
    }

    async fn serves(&self, version: &str) {
        let url = format!("{}/bundles/authz", self.url);
        poll_until(&format!("{version} is served"), async || {
            let response = self.http.get(&url).send().await.unwrap();
            (response.bytes().await.unwrap() == bundle(version)).then_some(())
        })
        .await;
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What is made of a folder, and the reason for which it is refused.
type Case<'a> = (&'a dyn Fn(&TempDir), &'a str);

#[tokio::test]
async fn a_folder_that_is_no_cache_stops_the_start_unless_none_is_required() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let foreign = |folder: &TempDir| {
        fs::create_dir(folder.path().join("cache")).unwrap();
        fs::write(folder.path().join("cache/mine.txt"), "x").unwrap();
    };
    let unusable = |folder: &TempDir| fs::write(folder.path().join("cache"), "x").unwrap();
    let cases: [Case<'_>; 2] = [
        (&foreign, "holds files that are not part of a cache"),
        (&unusable, "cache: "),
    ];
    for (make, reason) in cases {
        let required = folder(&config(&registry, &json!({ "directory": "cache" })));
        make(&required);
        let checked = check(&required);
        assert!(
            checked.error().contains(reason) && checked.error().contains("cache.directory: "),
            "{checked:?}"
        );
        let mut process = Program::launch(&required);
        assert!(!process.ended().await.success());
        let log = process.log();
        assert!(
            log.contains(reason) && log.contains("cache.required: false"),
            "{log}"
        );
        let cache = required.path().join("cache");
        if cache.is_dir() {
            assert_eq!(entries(&cache), ["mine.txt"]);
        }

        let optional = json!({ "directory": "cache", "required": false });
        let optional = folder(&config(&registry, &optional));
        make(&optional);
        let checked = check(&optional);
        assert_eq!(checked.code, 0, "{checked:?}");
        assert!(checked.stderr.contains(reason), "{checked:?}");
        let gateway = TestGateway::run(optional).await;
        gateway.serves("one").await;
        let problem = gateway.cache_problem().await.unwrap();
        assert!(problem.contains(reason), "{problem}");
    }
}

#[tokio::test]
async fn a_check_of_the_configuration_leaves_the_folder_as_it_is() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let new = folder(&config(&registry, &json!({ "directory": "deep/cache" })));
    check(&new).ok();
    assert_eq!(entries(new.path()), ["bundlegate.yaml"]);
    // Also that of a gateway that runs.
    let gateway = TestGateway::run(new).await;
    gateway.serves("one").await;
    assert_eq!(check(&gateway.runner.folder).ok().lines().count(), 1);
    assert_eq!(gateway.cache_problem().await, None);
}

/// A rolling update on one volume: the new process starts while the old one runs.
#[tokio::test]
async fn of_two_replicas_on_one_volume_the_second_serves_from_memory_until_it_starts_again() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let volume = TempDir::new().unwrap();
    let cache = volume.path().join("cache");
    let config = config(&registry, &json!({ "directory": cache, "required": true }));
    let index = || fs::read_to_string(cache.join("index.json")).unwrap_or_default();
    let first = TestGateway::run(folder(&config)).await;
    first.serves("one").await;
    assert_eq!(first.cache_problem().await, None);
    let second = TestGateway::run(folder(&config)).await;
    second.serves("one").await;
    let problem = second.cache_problem().await.unwrap();
    assert!(problem.contains("in use by another process"), "{problem}");

    // The first one still writes to the disk.
    let before = index();
    registry.put_artifact("live", &bundle("two"));
    first.serves("two").await;
    second.serves("two").await;
    poll_until("it is written", async || (index() != before).then_some(())).await;
    assert_eq!(first.cache_problem().await, None);
    first.runner.process.signal("TERM");
    let mut first = first;
    assert!(first.runner.process.ended().await.success());
    // What the second one serves does not depend on the first one.
    registry.put_artifact("live", &bundle("three"));
    second.serves("three").await;

    // A later start serves what the first one has stored, although the registry is dead.
    drop(second);
    registry.fail("", usize::MAX, Fault::Status(503, vec![]));
    let third = TestGateway::run(folder(&config)).await;
    third.serves("two").await;
    assert_eq!(third.cache_problem().await, None);
}
