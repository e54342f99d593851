//! Staged roll-outs of a single replica: what clients get, a restart, and a key that is removed.

use std::fs;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    faulty::FaultyRegistry,
    gateway::{bundle, wishing},
    shared::{TestGateway, poll_until},
};

/// A gateway with the bundle `authz`, which clients with names that begin with `canary` get first.
struct Fixture {
    registry: FaultyRegistry,
    gate: TestGateway,
}

/// What a response says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    etag: String,
    variant: Option<String>,
}

impl Fixture {
    /// It serves the version `one`.
    async fn start() -> Self {
        let registry = FaultyRegistry::start().await;
        registry.put_artifact("live", &bundle("one"));
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("cache")).unwrap();
        let fixture = Self {
            gate: Self::serve(&registry, folder, &json!("careful")).await,
            registry,
        };
        fixture.phase("idle").await;
        fixture
    }

    async fn serve(registry: &FaultyRegistry, folder: TempDir, rollout: &Value) -> TestGateway {
        let config = Self::config(registry, rollout).to_string();
        fs::write(folder.path().join("bundlegate.yaml"), config).unwrap();
        TestGateway::run(folder).await
    }

    /// `rollout`: null for no such key.
    fn config(registry: &FaultyRegistry, rollout: &Value) -> Value {
        let reference = registry.reference("live").to_string();
        let mut bundle = json!({
            "reference": reference, "trust": "dev", "poll": "200ms", "on_missing": "withdraw",
        });
        if !rollout.is_null() {
            bundle["rollout"] = rollout.clone();
        }
        json!({
            "version": 1,
            "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "drain": { "notice": "0s", "over": "0s" } },
            "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
            "registries": { registry.address.to_string(): { "scheme": "http" } },
            "trust": { "policies": { "dev": "unsigned" } },
            "cache": { "directory": "cache" },
            "shared": { "url": "local:" },
            "rollouts": { "careful": { "steps": [{ "ids": ["canary*"], "approve": true }] } },
            "bundles": { "authz": bundle },
        })
    }

    async fn get(&self, name: &str, runs: Option<&Answer>) -> Answer {
        self.request(Method::GET, name, runs, 0).await
    }

    /// A request of the client with this name. `wait`: for how many seconds it may be held.
    async fn request(
        &self,
        method: Method,
        name: &str,
        runs: Option<&Answer>,
        wait: u32,
    ) -> Answer {
        let url = format!("{}/bundles/authz", self.gate.url);
        let tag = runs.map_or("", |runs| &runs.etag);
        let request = wishing(self.gate.http.request(method, url), tag, wait);
        let response = request.header("Bundlegate-Client", name).send().await;
        let response = response.unwrap();
        let text = |name| {
            let value = response.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        Answer {
            status: response.status(),
            etag: text("etag").unwrap_or_default(),
            variant: text("bundlegate-rollout"),
        }
    }

    async fn rollout(&self) -> Value {
        let text = self.gate.admin_text("/rollouts/authz").await;
        serde_json::from_str(&text).unwrap()
    }

    async fn phase(&self, phase: &str) {
        let look = async || (self.rollout().await["phase"] == phase).then_some(());
        poll_until(phase, look).await;
    }

    /// Asks until the answer is this one.
    async fn gets(&self, name: &str, runs: Option<&Answer>, expected: &Answer) {
        let look = async || (self.get(name, runs).await == *expected).then_some(());
        poll_until(&format!("{name} gets {expected:?}"), look).await;
    }

    async fn post(&self, operation: &str) -> StatusCode {
        let url = format!("http://{}/rollouts/authz/{operation}", self.gate.admin);
        let request = self.gate.http.post(url);
        let request = request
            .header("content-type", "application/json")
            .body("{}");
        request.send().await.unwrap().status()
    }

    /// Pushes the version `two`. Returns what a canary gets.
    async fn push(&self, runs: &Answer) -> Answer {
        self.registry.put_artifact("live", &bundle("two"));
        let look = async || {
            let answer = self.request(Method::GET, "canary-1", Some(runs), 2).await;
            (answer.status == StatusCode::OK).then_some(answer)
        };
        poll_until("a canary gets the version", look).await.0
    }

    async fn restart(self, rollout: &Value) -> Self {
        let Self { registry, gate } = self;
        let TestGateway { runner, .. } = gate;
        let (folder, mut process) = (runner.folder, runner.process);
        process.kill();
        Self {
            gate: Self::serve(&registry, folder, rollout).await,
            registry,
        }
    }

    /// Writes the configuration and has it read.
    async fn reload(&self, rollout: &Value) {
        let config = Self::config(&self.registry, rollout).to_string();
        fs::write(
            self.gate.runner.folder.path().join("bundlegate.yaml"),
            config,
        )
        .unwrap();
        let request = self
            .gate
            .http
            .post(format!("http://{}/reload", self.gate.admin));
        let request = request
            .header("content-type", "application/json")
            .body("{}");
        let answer = request.send().await.unwrap().text().await.unwrap();
        assert!(answer.contains(r#""applied":true"#), "{answer}");
    }

    /// Waits for a line of the log with this text.
    async fn logs(&self, text: &str) {
        let look = async || {
            let log = self.gate.log();
            let mut messages = log.iter().filter_map(|line| line["message"].as_str());
            messages.any(|message| message.contains(text)).then_some(())
        };
        poll_until(text, look).await;
    }
}

impl Answer {
    /// 304 to a client that runs this.
    fn unchanged(&self) -> Self {
        Self {
            status: StatusCode::NOT_MODIFIED,
            ..self.clone()
        }
    }

    fn of(&self) -> (u16, Option<&str>) {
        (self.status.as_u16(), self.variant.as_deref())
    }
}

const STABLE: Option<&str> = Some("stable");
const CANDIDATE: Option<&str> = Some("candidate");

#[tokio::test]
async fn a_ring_gets_a_new_version_and_each_response_says_which_version_it_has() {
    let fixture = Fixture::start().await;
    let first = fixture.get("other", None).await;
    assert_eq!(first.of(), (200, STABLE));
    let second = fixture.push(&first).await;
    assert_eq!(second.of(), (200, CANDIDATE));
    for (name, runs, expected) in [
        ("other", Some(&first), first.unchanged()),
        ("other", None, first.clone()),
        ("canary-2", None, second.clone()),
        ("canary-1", Some(&second), second.unchanged()),
        // A client that runs the candidate keeps it, whatever its name.
        ("other", Some(&second), second.unchanged()),
    ] {
        assert_eq!(fixture.get(name, runs).await, expected, "{name} {runs:?}");
    }
    let head = fixture.request(Method::HEAD, "other", None, 0).await;
    assert_eq!(head.of(), (200, STABLE));
    let text = fixture.gate.admin_text("/fleet").await;
    let fleet: Value = serde_json::from_str(&text).unwrap();
    assert!(
        fleet["bundles"]["authz"]["states"]["candidate"].as_u64() > Some(0),
        "{text}"
    );
    // A held request is answered when the plan changes.
    let held = fixture.request(Method::GET, "other", Some(&first), 20);
    let promoted = async {
        let look = async || (fixture.post("promote").await == StatusCode::OK).then_some(());
        poll_until("promote", look).await;
    };
    let (held, ()) = tokio::join!(held, promoted);
    assert_eq!(
        (held.etag.as_str(), held.status.as_u16()),
        (second.etag.as_str(), 200)
    );
}

#[tokio::test]
async fn a_version_that_was_rolled_back_is_not_offered_again_after_a_restart() {
    let fixture = Fixture::start().await;
    let first = fixture.get("canary-1", None).await;
    let second = fixture.push(&first).await;
    assert_eq!(fixture.post("abort").await, StatusCode::OK);
    assert_eq!(fixture.post("abort").await, StatusCode::CONFLICT);
    fixture.gets("canary-1", Some(&second), &first).await;
    let fixture = fixture.restart(&json!("careful")).await;
    for name in ["canary-1", "other"] {
        assert_eq!(fixture.get(name, None).await, first);
        assert_eq!(fixture.get(name, Some(&first)).await, first.unchanged());
    }
    assert_eq!(fixture.rollout().await["phase"], "rolled_back");
    assert_eq!(fixture.post("retry").await, StatusCode::OK);
    fixture.gets("canary-1", Some(&first), &second).await;
}

#[tokio::test]
async fn without_its_key_a_refused_version_is_still_not_served_and_with_none_it_is() {
    let fixture = Fixture::start().await;
    let first = fixture.get("canary-1", None).await;
    let second = fixture.push(&first).await;
    assert_eq!(fixture.post("abort").await, StatusCode::OK);
    let removed = "`rollout` was removed while a version is rolled back";
    fixture.reload(&Value::Null).await;
    fixture.logs(removed).await;
    assert_eq!(fixture.get("canary-1", None).await, first);
    let fixture = fixture.restart(&Value::Null).await;
    fixture.logs(removed).await;
    assert_eq!(fixture.get("other", None).await.etag, first.etag);
    fixture.reload(&json!("none")).await;
    let served = fixture.get("other", None).await;
    assert_eq!(
        (served.of(), served.etag.clone()),
        ((200, None), second.etag.clone())
    );
}

#[tokio::test]
async fn without_its_key_a_newer_version_than_the_refused_one_is_served_at_once() {
    let fixture = Fixture::start().await;
    let first = fixture.get("canary-1", None).await;
    fixture.push(&first).await;
    assert_eq!(fixture.post("abort").await, StatusCode::OK);
    fixture.reload(&Value::Null).await;
    fixture.registry.put_artifact("live", &bundle("three"));
    let look = async || {
        let answer = fixture.get("other", Some(&first)).await;
        (answer.status == StatusCode::OK && answer.variant.is_none()).then_some(answer)
    };
    poll_until("the newer version is served", look).await;
}

#[tokio::test]
async fn a_deleted_tag_withdraws_both_versions_and_they_come_back_with_it() {
    let fixture = Fixture::start().await;
    let first = fixture.get("other", None).await;
    let second = fixture.push(&first).await;
    fixture.registry.remove("manifests/live");
    let clients = [("other", &first), ("canary-1", &second)];
    for (name, runs) in clients {
        let look = async || {
            let answer = fixture.get(name, Some(runs)).await;
            (answer.status == StatusCode::NOT_FOUND).then_some(())
        };
        poll_until(&format!("{name} finds no bundle"), look).await;
    }
    fixture.phase("paused").await;
    fixture.registry.put_artifact("live", &bundle("two"));
    for (name, runs) in clients {
        fixture.gets(name, Some(runs), &runs.unchanged()).await;
    }
}
