//! A configuration that changes while the program serves it.

mod bundles;
mod tuf;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use bundlegate::oci::Digest;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    faulty::{Fault, FaultyRegistry},
    forge::{By, Envelope, ISSUER, SUBJECT, Sigstore, statement},
    gate::{PATIENCE, bundle, error, tag, wishing},
    signing::Signer,
};

/// A folder with a configuration, and the program that serves it until this is dropped.
struct Serving {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    folder: TempDir,
    http: reqwest::Client,
    data: String,
    admin: String,
}

/// `authz` from `registry`, signed by the key in `key.pub`; polled once an hour.
fn config(registry: &FaultyRegistry) -> Value {
    json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "registries": { registry.address.to_string(): { "scheme": "http" } },
        "trust": {
            "authorities": { "release": { "keys": ["key.pub"], "tlog": "none" } },
            "policies": { "release": { "require": { "any_of": ["release"] } } },
        },
        "bundles": { "authz": {
            "reference": registry.reference("live").to_string(), "trust": "release", "poll": "1h",
        } },
    })
}

impl Serving {
    /// `files` come first, so that the configuration may name them.
    async fn start(files: impl FnOnce(&TempDir), config: &Value) -> Self {
        let folder = TempDir::new().unwrap();
        files(&folder);
        fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
        Self::run(folder).await
    }

    async fn run(folder: TempDir) -> Self {
        let file = folder.path().join("bundlegate.yaml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
        command
            .args(["serve", "--config"])
            .arg(&file)
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (heard, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                heard
                    .lock()
                    .unwrap()
                    .push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        let [data, admin] = [String::new(), String::new()];
        let mut serving = Self {
            child,
            log,
            folder,
            http: reqwest::Client::new(),
            data,
            admin,
        };
        let address = |line: &Value| line["address"].as_str().unwrap().to_owned();
        serving.data = address(
            &serving
                .said("listening", |line| line["listener"] == "data")
                .await,
        );
        serving.admin = address(
            &serving
                .said("listening", |line| line["listener"] == "admin")
                .await,
        );
        serving
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn hang_up(&self) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-HUP", &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for a line of the log.
    async fn said(&self, message: &str, like: impl Fn(&Value) -> bool) -> Value {
        self.until(message, async || {
            self.lines(message).into_iter().find(&like)
        })
        .await
    }

    /// What was said so far with these words.
    fn lines(&self, message: &str) -> Vec<Value> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|line| line["message"] == message)
            .cloned()
            .collect()
    }

    async fn get(&self, tags: &str, wait: u32) -> Response {
        self.get_of("authz", tags, wait).await
    }

    async fn get_of(&self, name: &str, tags: &str, wait: u32) -> Response {
        wishing(
            self.http
                .get(format!("http://{}/bundles/{name}", self.data)),
            tags,
            wait,
        )
        .send()
        .await
        .unwrap()
    }

    async fn admin(&self, path: &str) -> String {
        self.http
            .get(format!("http://{}{path}", self.admin))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    async fn status(&self) -> Value {
        self.status_of("authz").await
    }

    async fn status_of(&self, name: &str) -> Value {
        serde_json::from_str::<Value>(&self.admin("/status").await).unwrap()["bundles"][name].take()
    }

    /// Waits for what must become true of the bundle.
    async fn status_when(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.until(what, async || Some(self.status().await).filter(&holds))
            .await
    }

    async fn metric(&self, sample: &str) -> f64 {
        let text = self.admin("/metrics").await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    async fn until<T>(&self, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
        let looking = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        let found = timeout(PATIENCE, looking).await;
        found.unwrap_or_else(|_| panic!("never: {what}\n{:#?}", self.log.lock().unwrap()))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry with a bundle that `signer` has signed.
async fn registry(signer: &Signer) -> FaultyRegistry {
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    signer.sign_bundle(&registry, &digest);
    registry
}

/// From now on it answers no request any more, and refuses none either: what is found out then
/// is found out from the evidence in hand.
fn dead(registry: &FaultyRegistry) {
    registry.fail("", usize::MAX, Fault::Stall);
}

async fn is_withdrawn_soon(serving: &Serving, how: &str) {
    let began = Instant::now();
    let status = serving
        .status_when("withdrawn", |status| status["state"] == "withdrawn")
        .await;
    println!("{how}: withdrawn {:?} after the change", began.elapsed());
    // Evidence is collected afresh at once, and where the registry is alive that has failed as
    // well by the time the status is read.
    let class = &status["last_failure"]["class"];
    assert!(class == "distrusted" || class == "evidence", "{status}");
    assert!(
        status["last_failure"]["message"]
            .as_str()
            .unwrap()
            .contains("signature by another key"),
        "{status}"
    );
    assert_eq!(
        status["refused"]["signatures"][0]["verified"], false,
        "{status}"
    );
}

/// As editors do it, as `cp` does it, and as Kubernetes does it.
#[tokio::test]
async fn a_key_file_that_is_replaced_in_any_way_counts_at_once_with_the_registry_dead() {
    let (old, new) = (Signer::new(), Signer::new());
    for how in ["renamed over", "written in place", "links swapped"] {
        let registry = registry(&old).await;
        let files = |folder: &TempDir| match how {
            "links swapped" => {
                let keys = |version: &str, signer: &Signer| {
                    fs::create_dir(folder.path().join(version)).unwrap();
                    fs::write(
                        folder.path().join(version).join("key.pub"),
                        signer.public_pem(),
                    )
                    .unwrap();
                };
                keys("..one", &old);
                keys("..two", &new);
                symlink("..one", folder.path().join("..data")).unwrap();
                symlink("..data/key.pub", folder.path().join("key.pub")).unwrap();
            }
            _ => fs::write(folder.path().join("key.pub"), old.public_pem()).unwrap(),
        };
        let serving = Serving::start(files, &config(&registry)).await;
        let etag = tag(&serving.get("", 60).await);
        dead(&registry);
        match how {
            "renamed over" => {
                serving.write("key.pub.new", new.public_pem());
                fs::rename(serving.path("key.pub.new"), serving.path("key.pub")).unwrap();
            }
            "written in place" => serving.write("key.pub", new.public_pem()),
            _ => {
                symlink("..two", serving.path("..data_tmp")).unwrap();
                fs::rename(serving.path("..data_tmp"), serving.path("..data")).unwrap();
            }
        }
        is_withdrawn_soon(&serving, how).await;
        let read = serving.said("configuration read again", |_| true).await;
        assert_eq!(
            (&read["cause"], &read["bundles"], &read["outcome"]),
            (&json!("files"), &json!(1), &json!("applied"))
        );
        assert_eq!(
            serving
                .metric(r#"bundlegate_config_reloads_total{outcome="applied"}"#)
                .await,
            1.0
        );
        let gone = serving.get(&etag, 0).await;
        assert_eq!(gone.status(), StatusCode::NOT_FOUND);
        assert_eq!(error(gone).await["reason"], "withdrawn");
    }
}

/// A root that is rotated, and a signature that only the earlier root supports.
#[tokio::test]
async fn a_trust_root_that_is_rotated_counts_at_once_with_the_registry_dead() {
    let (forge, other) = (Sigstore::new(), Sigstore::new());
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let signer = forge.signer();
    let (by, envelope) = (
        By::Certificate(&signer),
        Envelope::sign(&signer.key, &statement(&digest)),
    );
    let signature = envelope.bundle(by, &[forge.log_envelope(by, &envelope)], &[]);
    let entry = registry.put_referrer(&digest, signature.to_string().as_bytes(), |_| {});
    registry.list_referrers(&digest, &json!([entry]));
    let mut config = config(&registry);
    config["trust"]["roots"] = json!({ "corp": { "trusted_root": "root.json" } });
    config["trust"]["authorities"]["release"] =
        json!({ "keyless": { "root": "corp", "issuer": ISSUER, "subject": SUBJECT } });
    let root = |folder: &TempDir| {
        fs::write(
            folder.path().join("root.json"),
            forge.trusted_root().to_string(),
        )
        .unwrap()
    };
    let serving = Serving::start(root, &config).await;
    let etag = tag(&serving.get("", 60).await);
    let before = serving.status().await;
    assert!(before["signers"][0]["signed_at"].is_string(), "{before}");

    dead(&registry);
    // The same root in other words is another file, and accepts the same.
    serving.write("root.json", format!("{:#}\n", forge.trusted_root()));
    let after = serving
        .status_when("judged again", |status| {
            status["policy_revision"] != before["policy_revision"]
        })
        .await;
    assert_eq!(
        (&after["state"], &after["since"]),
        (&json!("serving"), &before["since"])
    );
    serving.write("root.json", other.trusted_root().to_string());
    let began = Instant::now();
    let status = serving
        .status_when("withdrawn", |status| status["state"] == "withdrawn")
        .await;
    println!(
        "another trusted root: withdrawn {:?} after the change",
        began.elapsed()
    );
    assert_eq!(status["last_failure"]["class"], "distrusted", "{status}");
    let checks = status["refused"]["signatures"][0]["checks"]
        .as_array()
        .unwrap();
    assert_eq!(checks.last().unwrap()["ok"], false, "{status}");
    assert_eq!(serving.get(&etag, 0).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_configuration_that_is_refused_leaves_the_old_trust_and_says_why() {
    let (signer, other) = (Signer::new(), Signer::new());
    let registry = registry(&signer).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
    let good = config(&registry);
    let serving = Serving::start(key, &good).await;
    let etag = tag(&serving.get("", 60).await);
    assert_eq!(
        serving
            .metric("bundlegate_config_last_reload_successful")
            .await,
        1.0
    );
    // Whole or not at all: the key is another one, too.
    serving.write("other.pub", other.public_pem());
    let mut broken = good.clone();
    broken["trust"]["authorities"]["release"]["keys"] = json!(["other.pub"]);
    broken["bundles"]["authz"]["trust"] = json!("relaese");
    serving.write("bundlegate.yaml", broken.to_string());
    const REFUSED: &str = "configuration refused: the old trust stays";
    let refused = serving.said(REFUSED, |_| true).await;
    let sentence = refused["error"].as_str().unwrap();
    assert!(
        sentence.contains("bundles.authz.trust: ") && sentence.contains("did you mean `release`?"),
        "{sentence}"
    );
    // SIGHUP logs it once more, and nothing else does.
    serving.hang_up();
    serving
        .said(REFUSED, |line| line["cause"] == "SIGHUP")
        .await;
    sleep(Duration::from_secs(7)).await;
    assert_eq!(
        serving.lines(REFUSED).len(),
        2,
        "{:?}",
        serving.lines(REFUSED)
    );
    assert_eq!(
        serving
            .metric("bundlegate_config_last_reload_successful")
            .await,
        0.0
    );
    assert_eq!(
        serving
            .metric(r#"bundlegate_config_reloads_total{outcome="refused"}"#)
            .await,
        2.0
    );
    assert_eq!(tag(&serving.get(&etag, 0).await), etag);
    assert_eq!(serving.status().await["state"], "serving");

    serving.write("bundlegate.yaml", good.to_string());
    serving
        .said("configuration read again", |line| {
            line["outcome"] == "unchanged"
        })
        .await;
    assert_eq!(
        serving
            .metric("bundlegate_config_last_reload_successful")
            .await,
        1.0
    );
    assert_eq!(tag(&serving.get(&etag, 0).await), etag);
}

/// The order in which people do things.
#[tokio::test]
async fn a_configuration_that_names_a_file_too_early_is_taken_when_the_file_is_there() {
    let (old, new) = (Signer::new(), Signer::new());
    let registry = registry(&old).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), old.public_pem()).unwrap();
    let mut config = config(&registry);
    let serving = Serving::start(key, &config).await;
    serving.get("", 60).await;
    config["trust"]["authorities"]["release"]["keys"] = json!(["keys/new.pub"]);
    serving.write("bundlegate.yaml", config.to_string());
    serving
        .said("configuration refused: the old trust stays", |line| {
            line["error"].to_string().contains("new.pub")
        })
        .await;
    dead(&registry);
    fs::create_dir(serving.path("keys")).unwrap();
    serving.write("keys/new.pub", new.public_pem());
    is_withdrawn_soon(&serving, "a file that was missing").await;
}

/// A link in the middle of a path belongs to a folder that is not watched.
#[tokio::test]
async fn a_change_that_no_event_tells_is_found_by_looking() {
    let (old, new) = (Signer::new(), Signer::new());
    let registry = registry(&old).await;
    let keys = TempDir::new().unwrap();
    for (version, signer) in [("one", &old), ("two", &new)] {
        fs::create_dir(keys.path().join(version)).unwrap();
        fs::write(
            keys.path().join(version).join("key.pub"),
            signer.public_pem(),
        )
        .unwrap();
    }
    symlink("one", keys.path().join("current")).unwrap();
    let mut config = config(&registry);
    config["trust"]["authorities"]["release"]["keys"] =
        json!([keys.path().join("current/key.pub")]);
    let serving = Serving::start(|_| (), &config).await;
    serving.get("", 60).await;
    dead(&registry);
    symlink("two", keys.path().join("next")).unwrap();
    fs::rename(keys.path().join("next"), keys.path().join("current")).unwrap();
    is_withdrawn_soon(&serving, "a link on the way").await;
}

#[tokio::test]
async fn sighup_reads_everything_and_what_is_not_live_waits_for_the_next_start() {
    let (signer, other) = (Signer::new(), Signer::new());
    let registry = registry(&signer).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
    let mut config = config(&registry);
    config["bundles"]["going"] = config["bundles"]["authz"].clone();
    let serving = Serving::start(key, &config).await;
    let etag = tag(&serving.get("", 60).await);
    serving.hang_up();
    let read = serving
        .said("configuration read again", |line| line["cause"] == "SIGHUP")
        .await;
    assert_eq!(read["outcome"], "unchanged");
    // Other files of the folder don't matter, however often they change.
    serving.write("notes.txt", "x");
    sleep(Duration::from_secs(4)).await;
    assert_eq!(serving.lines("configuration read again").len(), 1);

    config["server"]["listen"] = json!("127.0.0.1:1");
    config["limits"] = json!({ "bundle": "1MiB" });
    config["bundles"]["coming"] = config["bundles"]["authz"].clone();
    config["bundles"].as_object_mut().unwrap().remove("going");
    config["bundles"]["authz"]["poll"] = json!("1s");
    serving.write("bundlegate.yaml", config.to_string());
    let told = serving
        .said(
            "these changes of the configuration take effect at the next start",
            |_| true,
        )
        .await;
    assert_eq!(told["keys"], "server.listen, limits (new)");
    assert_eq!(tag(&serving.get(&etag, 0).await), etag);
    serving
        .said("the changed bundle is served from now on", |line| {
            line["bundle"] == "authz"
        })
        .await;
    assert_eq!(
        serving.get_of("coming", "", 60).await.status(),
        StatusCode::OK
    );
    dead(&registry);
    serving.write("key.pub", other.public_pem());
    is_withdrawn_soon(&serving, "a bundle that stays").await;
    let coming = async || (serving.status_of("coming").await["state"] == "withdrawn").then_some(());
    serving
        .until("a bundle that came is withdrawn", coming)
        .await;
}

/// Everything that a thorough person renames in the same edit. One bundle keeps its name and gets
/// another reference, the other one is renamed.
#[tokio::test]
async fn what_one_edit_revokes_or_removes_counts_for_bundles_that_it_re_points_or_renames() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let digest = registry
        .held("manifests/live")
        .map(|(_, bytes)| Digest::sha256(&bytes))
        .unwrap();
    let unused = Signer::new();
    for what in [
        "a key",
        "a key under another name",
        "a digest",
        "a digest of what is unsigned",
    ] {
        let key = |folder: &TempDir| {
            fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
            fs::write(folder.path().join("unused.pub"), unused.public_pem()).unwrap();
        };
        let mut config = config(&registry);
        // So that a request which the dead registry holds ends soon.
        config["registries"][registry.address.to_string()]["timeouts"] = json!({ "read": "1s" });
        config["bundles"]["authz"]["poll"] = json!("1h");
        if what == "a digest of what is unsigned" {
            config["trust"]["policies"]["dev"] = json!("unsigned");
            config["bundles"]["authz"]["trust"] = json!("dev");
        }
        config["bundles"]["second"] = config["bundles"]["authz"].clone();
        let serving = Serving::start(key, &config).await;
        let etag = tag(&serving.get("", 60).await);
        let is_served =
            async || (serving.status_of("second").await["state"] == "serving").then_some(());
        serving.until("the second is served", is_served).await;
        dead(&registry);
        let (authority, keys, digests) = match what {
            "a key" => (
                "release",
                json!([{ "file": "key.pub", "revoked": true }]),
                json!([]),
            ),
            "a key under another name" => (
                "signers",
                json!([{ "file": "key.pub", "revoked": true }]),
                json!([]),
            ),
            _ => ("signers", json!(["unused.pub"]), json!([digest])),
        };
        let mut bundle = config["bundles"]["authz"].clone();
        bundle["trust"] = json!("renamed");
        config["trust"] = json!({
            "authorities": { authority: { "keys": keys, "tlog": "none" } },
            "policies": { "renamed": { "require": { "any_of": [authority] }, "revoked_digests": digests } },
        });
        let mut re_pointed = bundle.clone();
        re_pointed["reference"] = json!(registry.reference("next").to_string());
        config["bundles"] = json!({ "authz": re_pointed, "second-v2": bundle });
        serving.write("bundlegate.yaml", config.to_string());
        let read = serving
            .said("configuration read again", |line| {
                line["outcome"] == "applied"
            })
            .await;
        let counts =
            ["bundles", "added", "replaced", "removed"].map(|key| read[key].as_u64().unwrap());
        assert_eq!(counts, [1, 1, 1, 1], "{what}");
        serving
            .status_when("it is withdrawn", |status| status["state"] == "withdrawn")
            .await;
        assert_eq!(
            serving.get(&etag, 0).await.status(),
            StatusCode::NOT_FOUND,
            "{what}"
        );
        assert_eq!(
            error(serving.get_of("second", &etag, 0).await).await["reason"],
            "not_found",
            "{what}"
        );
        assert_eq!(serving.status_of("second").await, Value::Null, "{what}");
        // Nor under the other name, once the registry is there to say what it is.
        registry.heal();
        let refused =
            async || (serving.status_of("second-v2").await["state"] == "withdrawn").then_some(());
        serving
            .until("it is refused under the other name", refused)
            .await;
    }
}

#[tokio::test]
async fn a_trust_root_that_one_edit_removes_counts_for_a_bundle_that_it_re_points() {
    let forge = Sigstore::new();
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let signer = forge.signer();
    let (by, envelope) = (
        By::Certificate(&signer),
        Envelope::sign(&signer.key, &statement(&digest)),
    );
    let signature = envelope.bundle(by, &[forge.log_envelope(by, &envelope)], &[]);
    let entry = registry.put_referrer(&digest, signature.to_string().as_bytes(), |_| {});
    registry.list_referrers(&digest, &json!([entry]));
    let mut config = config(&registry);
    config["trust"]["roots"] = json!({ "corp": { "trusted_root": "root.json" } });
    config["trust"]["authorities"]["release"] =
        json!({ "keyless": { "root": "corp", "issuer": ISSUER, "subject": SUBJECT } });
    let files = |folder: &TempDir| {
        fs::write(
            folder.path().join("root.json"),
            forge.trusted_root().to_string(),
        )
        .unwrap();
        fs::write(folder.path().join("key.pub"), Signer::new().public_pem()).unwrap();
    };
    let serving = Serving::start(files, &config).await;
    serving.get("", 60).await;
    dead(&registry);
    let mut bundle = config["bundles"]["authz"].clone();
    bundle["trust"] = json!("renamed");
    config["trust"] = json!({
        "authorities": { "signers": { "keys": ["key.pub"], "tlog": "none" } },
        "policies": { "renamed": { "require": { "any_of": ["signers"] } } },
    });
    bundle["reference"] = json!(registry.reference("next").to_string());
    config["bundles"] = json!({ "authz": bundle });
    serving.write("bundlegate.yaml", config.to_string());
    serving
        .status_when("it is withdrawn", |status| status["state"] == "withdrawn")
        .await;
}

/// The other half: what nothing is said against goes on.
#[tokio::test]
async fn a_bundle_that_is_re_pointed_with_its_policy_renamed_is_served_until_the_other_version_is_there()
 {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
    let mut config = config(&registry);
    let serving = Serving::start(key, &config).await;
    let etag = tag(&serving.get("", 60).await);
    let mut bundle = config["bundles"]["authz"].clone();
    bundle["trust"] = json!("renamed");
    config["trust"]["policies"] = json!({ "renamed": { "require": { "any_of": ["release"] } } });
    bundle["reference"] = json!(registry.reference("next").to_string());
    config["bundles"] = json!({ "authz": bundle });
    serving.write("bundlegate.yaml", config.to_string());
    serving
        .said("configuration read again", |line| line["replaced"] == 1)
        .await;
    let missing = |status: &Value| status["last_failure"]["class"] == "not_found";
    let status = serving
        .status_when("the other reference names nothing", missing)
        .await;
    assert_eq!(
        (&status["state"], &status["reference"]),
        (&json!("serving"), &bundle["reference"])
    );
    assert_eq!(tag(&serving.get(&etag, 0).await), etag);
    let (digest, _) = registry.put_artifact("next", &crate::gate::bundle("two"));
    signer.sign_bundle(&registry, &digest);
    config["bundles"]["authz"]["poll"] = json!("1s");
    serving.write("bundlegate.yaml", config.to_string());
    let served = |status: &Value| status["manifest"] == digest.to_string();
    let status = serving
        .status_when("the other version is served", served)
        .await;
    assert_eq!(
        (&status["policy"], &status["last_failure"]),
        (&json!("renamed"), &Value::Null)
    );
    assert_ne!(tag(&serving.get(&etag, 60).await), etag);
}

/// Only clients with a token of `edge.tokens` may read.
async fn locked(registry: &FaultyRegistry, signer: &Signer) -> Serving {
    let files = |folder: &TempDir| {
        fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
        fs::write(folder.path().join("edge.tokens"), "first\nsecond\n").unwrap();
    };
    let mut config = config(registry);
    config["clients"] =
        json!([{ "name": "edge", "bearer_token_file": "edge.tokens", "bundles": ["**"] }]);
    let serving = Serving::start(files, &config).await;
    assert_eq!(serving.asks("first", 60).await, StatusCode::OK);
    assert_eq!(serving.asks("second", 0).await, StatusCode::OK);
    assert_eq!(serving.asks("third", 0).await, StatusCode::UNAUTHORIZED);
    serving
}

impl Serving {
    async fn asks(&self, token: &str, wait: u32) -> StatusCode {
        let request = self
            .http
            .get(format!("http://{}/bundles/authz", self.data))
            .bearer_auth(token);
        wishing(request, "", wait).send().await.unwrap().status()
    }

    /// Waits until a token opens something, or nothing.
    async fn asks_until(&self, token: &str, status: StatusCode) {
        let began = Instant::now();
        self.until("the token counts", async || {
            (self.asks(token, 0).await == status).then_some(())
        })
        .await;
        println!("{token}: {status} {:?} after the change", began.elapsed());
    }
}

/// It worked on once, and SIGHUP said "unchanged".
#[tokio::test]
async fn a_token_counts_for_as_long_as_it_is_in_its_file() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let serving = locked(&registry, &signer).await;
    serving.write("edge.tokens", "second\nthird\n");
    serving.asks_until("first", StatusCode::UNAUTHORIZED).await;
    let read = serving
        .said("configuration read again", |line| line["clients"] == true)
        .await;
    assert_eq!(
        (&read["outcome"], &read["bundles"]),
        (&json!("applied"), &json!(0))
    );
    assert_eq!(serving.asks("second", 0).await, StatusCode::OK);
    assert_eq!(serving.asks("third", 0).await, StatusCode::OK);
    // So do the entries of `clients`, and the files that they name.
    let mut config = config(&registry);
    serving.write("other.tokens", "fourth\n");
    config["clients"] =
        json!([{ "name": "edge", "bearer_token_file": "other.tokens", "bundles": ["**"] }]);
    serving.write("bundlegate.yaml", config.to_string());
    serving.asks_until("fourth", StatusCode::OK).await;
    assert_eq!(serving.asks("third", 0).await, StatusCode::UNAUTHORIZED);
    config["clients"][0]["bundles"] = json!(["other/*"]);
    serving.write("bundlegate.yaml", config.to_string());
    serving.asks_until("fourth", StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn a_token_that_is_taken_away_counts_no_more_whatever_else_is_wrong() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    for how in ["another mistake", "malformed", "empty", "gone"] {
        let serving = locked(&registry, &signer).await;
        match how {
            "another mistake" => {
                let broken = fs::read_to_string(serving.path("bundlegate.yaml"))
                    .unwrap()
                    .replace("any_of", "any");
                serving.write("bundlegate.yaml", broken);
                serving.write("edge.tokens", "second\nthird\n");
            }
            "malformed" => serving.write("edge.tokens", "second\nfirst and third\n"),
            "empty" => serving.write("edge.tokens", ""),
            _ => fs::remove_file(serving.path("edge.tokens")).unwrap(),
        }
        serving.asks_until("first", StatusCode::UNAUTHORIZED).await;
        serving
            .said("configuration refused: the old trust stays", |_| true)
            .await;
        let left = if matches!(how, "empty" | "gone") {
            StatusCode::UNAUTHORIZED
        } else {
            StatusCode::OK
        };
        assert_eq!(serving.asks("second", 0).await, left, "{how}");
        // What is new is not taken from a configuration that is refused.
        assert_eq!(
            serving.asks("third", 0).await,
            StatusCode::UNAUTHORIZED,
            "{how}"
        );
        if how != "another mistake" {
            serving.write("edge.tokens", "first\n");
            serving.asks_until("first", StatusCode::OK).await;
            assert_eq!(
                serving.asks("second", 0).await,
                StatusCode::UNAUTHORIZED,
                "{how}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_status_tells_of_a_verdict_is_what_verify_tells() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
    let serving = Serving::start(key, &config(&registry)).await;
    serving.get("", 60).await;
    let status = serving.status().await;
    let reference = registry.reference("live").to_string();
    let mut verify = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    let verify = verify
        .args(["verify", &reference, "--json", "--config"])
        .arg(serving.path("bundlegate.yaml"));
    let told =
        tokio::task::block_in_place(|| verify.args(["--policy", "release"]).output().unwrap());
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let verdict = &status["verdict"];
    for key in ["digest", "verified", "policy", "signatures"] {
        assert_eq!(verdict[key], told[key], "{key}");
    }
    assert_eq!(verdict["signatures"][0]["authority"], "release");
    assert_eq!(verdict["policy_revision"], status["policy_revision"]);
    assert_eq!(
        (&status["policy"], &status["refused"]),
        (&json!("release"), &Value::Null)
    );
}
