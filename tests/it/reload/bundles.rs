//! Bundles that are added, removed and re-pointed in the configuration of a running gateway.

use tokio::{spawn, task::JoinHandle, time::timeout};

use super::*;
use crate::gateway::{PATIENCE, header};

/// The cause of a reload.
#[derive(Debug, Clone, Copy)]
enum By {
    File,
    Signal,
}

/// A gateway with a cache and two bundles: `authz`, and `other` from the same reference.
struct Scene {
    registry: FaultyRegistry,
    signer: Signer,
    config: Value,
    gateway: TestGateway,
    etag: String,
}

impl Scene {
    async fn start(change: impl FnOnce(&mut Value)) -> Self {
        let signer = Signer::new();
        let registry = registry(&signer).await;
        let mut config = config(&registry);
        config["cache"] = json!({ "directory": "cache" });
        config["bundles"]["other"] = config["bundles"]["authz"].clone();
        change(&mut config);
        let key = |folder: &TempDir| {
            fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap()
        };
        let gateway = TestGateway::start(key, &config).await;
        let etag = tag(&gateway.get("", 60).await);
        assert_eq!(tag(&gateway.get_of("other", "", 60).await), etag);
        Self {
            registry,
            signer,
            config,
            gateway,
            etag,
        }
    }

    fn push(&self, tag: &str, text: &str) -> Digest {
        let (digest, _) = self.registry.put_artifact(tag, &bundle(text));
        self.signer.sign_bundle(&self.registry, &digest);
        digest
    }

    fn reference(&self, tag: &str) -> Value {
        json!(self.registry.reference(tag).to_string())
    }

    /// Writes the configuration as it is now, and waits until it is applied.
    async fn apply(&self, by: By) -> Value {
        let applied = || {
            self.gateway
                .lines(READ)
                .into_iter()
                .filter(|line| line["outcome"] == "applied")
        };
        let before = applied().count();
        self.gateway
            .write("bundlegate.yaml", self.config.to_string());
        if matches!(by, By::Signal) {
            self.gateway.hang_up();
        }
        self.gateway
            .until("it is applied", async || applied().nth(before))
            .await
    }

    /// A request that is held, as OPA makes it.
    fn waits(&self, name: &str) -> JoinHandle<Response> {
        let request = self
            .gateway
            .http
            .get(format!("http://{}/bundles/{name}", self.gateway.data));
        let request = wishing(request, &self.etag, 120);
        spawn(async move { request.send().await.unwrap() })
    }

    async fn until_waiting(&self, name: &str) {
        let sample = format!("bundlegate_waiters{{bundle=\"{name}\"}}");
        self.gateway
            .until("it waits", async || {
                (self.gateway.metric(&sample).await == 1.0).then_some(())
            })
            .await;
    }
}

const READ: &str = "configuration read again";

#[tokio::test]
async fn bundles_come_and_go_and_those_who_wait_for_another_one_do_not_notice() {
    for by in [By::File, By::Signal] {
        let mut scene = Scene::start(|_| ()).await;
        let (others, going) = (scene.waits("other"), scene.waits("authz"));
        scene.until_waiting("other").await;
        scene.until_waiting("authz").await;
        let digest = scene.push("next", "two");
        let mut coming = scene.config["bundles"]["authz"].clone();
        coming["reference"] = scene.reference("next");
        scene.config["bundles"]["coming"] = coming;
        let read = scene.apply(by).await;
        assert_eq!(
            (&read["added"], &read["outcome"]),
            (&json!(1), &json!("applied")),
            "{by:?}"
        );
        let answer = scene.gateway.get_of("coming", "", 60).await;
        assert_eq!(answer.status(), StatusCode::OK, "{by:?}");
        assert_eq!(
            scene.gateway.bundle_status("coming").await["manifest"],
            digest.to_string()
        );

        let removed = scene.config["bundles"]
            .as_object_mut()
            .unwrap()
            .remove("authz")
            .unwrap();
        let read = scene.apply(by).await;
        assert_eq!(read["removed"], 1, "{by:?}");
        // The answer is that for a bundle which never existed.
        let unknown = error(scene.gateway.get_of("unknown", "", 0).await).await;
        let gone = timeout(PATIENCE, going)
            .await
            .expect("it is not answered")
            .unwrap();
        assert_eq!(gone.status(), StatusCode::NOT_FOUND);
        assert_eq!(error(gone).await, unknown);
        assert_eq!(
            error(scene.gateway.get(&scene.etag, 60).await).await,
            unknown
        );
        assert_eq!(scene.gateway.bundle_status("authz").await, Value::Null);
        let series = async || {
            scene
                .gateway
                .admin_text("/metrics")
                .await
                .contains("bundle=\"authz\"")
        };
        assert!(!series().await, "{by:?}: its metrics go with it");

        // The bundle is served from disk again, although the registry is dead.
        dead(&scene.registry);
        scene.config["bundles"]["authz"] = removed;
        assert_eq!(scene.apply(by).await["added"], 1, "{by:?}");
        assert_eq!(tag(&scene.gateway.get("", 60).await), scene.etag);
        assert!(
            !others.is_finished(),
            "{by:?}: a client that waits for another bundle was answered"
        );
        assert_eq!(scene.gateway.lines("bundle removed").len(), 1);
        others.abort();
    }
}

#[tokio::test]
async fn a_removed_bundle_keeps_its_floor() {
    let mut scene = Scene::start(|config| {
        config["bundles"]["authz"]["expect"] = json!({ "on_older": "refuse" });
        config["bundles"]["authz"]["poll"] = json!("200ms");
    })
    .await;
    let first = scene.etag.clone();
    let digest = scene.push("live", "two");
    let served = |status: &Value| status["manifest"] == digest.to_string();
    scene
        .gateway
        .status_when("authz", "the second version is served", served)
        .await;
    let removed = scene.config["bundles"]
        .as_object_mut()
        .unwrap()
        .remove("authz")
        .unwrap();
    scene.apply(By::File).await;
    assert_eq!(scene.gateway.bundle_status("authz").await, Value::Null);
    // The tag is moved back meanwhile.
    scene.push("live", "one");
    scene.config["bundles"]["authz"] = removed;
    scene.apply(By::File).await;
    let refused = |status: &Value| {
        status["last_failure"]["message"]
            .to_string()
            .contains("was served earlier")
    };
    let status = scene
        .gateway
        .status_when("authz", "the older version is refused", refused)
        .await;
    assert_eq!(
        (&status["state"], &status["manifest"]),
        (&json!("serving"), &json!(digest))
    );
    assert_ne!(tag(&scene.gateway.get("", 60).await), first);
}

#[tokio::test]
async fn a_re_pointed_bundle_is_served_from_the_old_reference_until_the_new_one_is_verified() {
    for by in [By::File, By::Signal] {
        let mut scene = Scene::start(|_| ()).await;
        let (others, held) = (scene.waits("other"), scene.waits("authz"));
        scene.until_waiting("other").await;
        scene.until_waiting("authz").await;
        // Pushed, and not signed yet.
        let (digest, _) = scene.registry.put_artifact("next", &bundle("two"));
        scene.config["bundles"]["authz"]["reference"] = scene.reference("next");
        let read = scene.apply(by).await;
        assert_eq!(
            (&read["replaced"], &read["bundles"]),
            (&json!(1), &json!(0)),
            "{by:?}"
        );
        let refused = |status: &Value| status["last_failure"]["class"] == "evidence";
        let status = scene
            .gateway
            .status_when("authz", "the new one is refused", refused)
            .await;
        assert_eq!(
            (&status["state"], &status["etag"]),
            (&json!("serving"), &json!(scene.etag))
        );
        assert_eq!(status["reference"], scene.reference("next"));
        assert_eq!(tag(&scene.gateway.get(&scene.etag, 0).await), scene.etag);
        assert_eq!(
            scene
                .gateway
                .metric("bundlegate_bundle_state{bundle=\"authz\",state=\"serving\"}")
                .await,
            1.0
        );
        assert!(!held.is_finished(), "{by:?}: it was answered too early");

        scene.signer.sign_bundle(&scene.registry, &digest);
        let answer = timeout(PATIENCE, held)
            .await
            .expect("it is not answered")
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{by:?}");
        assert_ne!(tag(&answer), scene.etag);
        let served = |status: &Value| status["manifest"] == digest.to_string();
        let status = scene
            .gateway
            .status_when("authz", "the new one is served", served)
            .await;
        assert_eq!(
            (&status["last_failure"], &status["refused"]),
            (&Value::Null, &Value::Null)
        );
        assert!(
            !others.is_finished(),
            "{by:?}: a client that waits for another bundle was answered"
        );
        others.abort();
    }
}

#[tokio::test]
async fn an_option_that_changes_is_in_force_and_those_who_wait_go_on_waiting() {
    let mut scene = Scene::start(|_| ()).await;
    let held = scene.waits("authz");
    scene.until_waiting("authz").await;
    scene.config["bundles"]["authz"]["poll"] = json!("200ms");
    assert_eq!(scene.apply(By::Signal).await["replaced"], 1);
    scene
        .gateway
        .said("the changed bundle is served from now on", |line| {
            line["bundle"] == "authz"
        })
        .await;
    let checks = scene.registry.asked("HEAD").len();
    scene
        .gateway
        .until("it polls", async || {
            (scene.registry.asked("HEAD").len() > checks + 3).then_some(())
        })
        .await;
    assert!(
        !held.is_finished(),
        "it was answered without another version"
    );
    let digest = scene.push("live", "two");
    let answer = timeout(PATIENCE, held)
        .await
        .expect("it is not answered")
        .unwrap();
    assert_eq!(
        (answer.status(), header(&answer, "bundlegate-manifest")),
        (StatusCode::OK, digest.as_str())
    );
}

#[tokio::test]
async fn a_bundle_that_is_changed_back_goes_on_as_before() {
    let mut scene = Scene::start(|_| ()).await;
    let held = scene.waits("authz");
    scene.until_waiting("authz").await;
    let before = scene.config.clone();
    scene.config["bundles"]["authz"]["reference"] = scene.reference("nothing");
    scene.apply(By::Signal).await;
    let missing = |status: &Value| status["last_failure"]["class"] == "not_found";
    scene
        .gateway
        .status_when("authz", "there is nothing", missing)
        .await;
    scene.config = before;
    scene.apply(By::Signal).await;
    let status = scene.gateway.bundle_status("authz").await;
    assert_eq!(
        (&status["state"], &status["reference"]),
        (&json!("serving"), &scene.reference("live"))
    );
    assert_eq!(status["last_failure"], Value::Null);
    assert!(!held.is_finished(), "it was answered");
}

#[tokio::test]
async fn a_fallback_is_linked_anew_while_clients_of_a_withdrawn_bundle_wait() {
    let mut scene = Scene::start(|_| ()).await;
    let other = Signer::new();
    scene.gateway.write("other.pub", other.public_pem());
    let denial = {
        let (digest, _) = scene.registry.put_artifact("deny", &bundle("deny"));
        other.sign_bundle(&scene.registry, &digest);
        digest
    };
    // Only the bundle that denies is signed by a key that is still trusted.
    scene.config["trust"]["authorities"]["release"]["keys"] = json!(["other.pub"]);
    let held = scene.waits("authz");
    scene.until_waiting("authz").await;
    scene.apply(By::File).await;
    scene
        .gateway
        .status_when("authz", "it is withdrawn", |status| {
            status["state"] == "withdrawn"
        })
        .await;
    assert!(!held.is_finished(), "it was answered without a fallback");
    let mut deny = scene.config["bundles"]["other"].clone();
    deny["reference"] = scene.reference("deny");
    scene.config["bundles"]["deny"] = deny;
    scene.config["bundles"]["authz"]["on_withdraw"] = json!({ "fallback": "deny" });
    let read = scene.apply(By::File).await;
    assert_eq!(
        (&read["added"], &read["fallbacks"], &read["replaced"]),
        (&json!(1), &json!(1), &json!(0))
    );
    let answer = timeout(PATIENCE, held)
        .await
        .expect("it is not answered")
        .unwrap();
    assert_eq!(
        (answer.status(), header(&answer, "bundlegate-manifest")),
        (StatusCode::OK, denial.as_str())
    );
    assert_eq!(
        scene.gateway.bundle_status("authz").await["fallback"]["bundle"],
        "deny"
    );
}

#[tokio::test]
async fn a_configuration_that_is_refused_changes_no_bundle() {
    let mut scene = Scene::start(|_| ()).await;
    let held = scene.waits("authz");
    scene.until_waiting("authz").await;
    let good = scene.config.clone();
    scene.push("next", "two");
    // The new bundle is valid but for its `opa`, which does not exist.
    let mut coming = scene.config["bundles"]["authz"].clone();
    coming["opa_check"] = json!({ "opa": "./no-such-opa" });
    scene.config["bundles"]["coming"] = coming;
    scene.config["bundles"]["authz"]["reference"] = scene.reference("next");
    scene.config["bundles"]
        .as_object_mut()
        .unwrap()
        .remove("other");
    scene
        .gateway
        .write("bundlegate.yaml", scene.config.to_string());
    let refused = scene
        .gateway
        .said("configuration refused: the one in force stays", |_| true)
        .await;
    assert!(
        refused["error"]
            .as_str()
            .unwrap()
            .starts_with("bundles.coming.opa_check.opa: "),
        "{refused}"
    );
    let status: Value = serde_json::from_str(&scene.gateway.admin_text("/status").await).unwrap();
    let names: Vec<_> = status["bundles"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(names, ["authz", "other"]);
    assert_eq!(
        status["bundles"]["authz"]["reference"],
        scene.reference("live")
    );
    assert_eq!(
        tag(&scene.gateway.get_of("other", &scene.etag, 0).await),
        scene.etag
    );
    assert!(!held.is_finished(), "it was answered");
    scene.config = good;
    scene
        .gateway
        .write("bundlegate.yaml", scene.config.to_string());
    scene
        .gateway
        .said(READ, |line| line["outcome"] == "unchanged")
        .await;
    assert!(!held.is_finished(), "it was answered");
}
