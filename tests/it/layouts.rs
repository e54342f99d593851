//! OCI layout folders as sources: a change is served without waiting for the poll.

use std::{fs, path::Path, process::Command};

use bundlegate::oci::{Descriptor, Digest, Layout, NewManifest, media_type};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::{
    command::Author,
    gateway::{TestGateway, bundle},
    shared::{
        Process,
        gateway::{Program, listener},
        poll_until,
    },
};

/// Puts an artifact into a layout folder, and tags it by replacing the index.
fn put(root: &Path, tags: &[&str], text: &str) -> Digest {
    let bundle = bundle(text);
    let layout = Layout::create(root).unwrap();
    let layer = Descriptor::of(media_type::LAYER_TAR_GZIP, &bundle);
    let manifest = NewManifest::new(media_type::IMAGE_CONFIG, vec![layer])
        .to_bytes()
        .unwrap();
    for blob in [&bundle[..], &manifest, NewManifest::CONFIG] {
        layout.write_blob(blob).unwrap();
    }
    let entry = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
    layout
        .update_index(|index| tags.iter().for_each(|tag| index.set(tag, entry.clone())))
        .unwrap();
    entry.digest
}

/// A configuration with these bundles from the folder `layout`, which is polled once an hour.
fn config(trust: Value, bundles: &[(&str, &str)]) -> Value {
    let entry = |(name, tag): &(&str, &str)| {
        let reference = format!("oci-layout:layout:{tag}");
        let bundle = json!({ "reference": reference, "trust": "dev", "poll": "1h" });
        ((*name).to_owned(), bundle)
    };
    let bundles: serde_json::Map<_, _> = bundles.iter().map(entry).collect();
    json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "trust": trust,
        "bundles": bundles,
    })
}

async fn serving_by(trust: Value, folder: TempDir, bundles: &[(&str, &str)]) -> TestGateway {
    let config = config(trust, bundles).to_string();
    fs::write(folder.path().join("bundlegate.yaml"), config).unwrap();
    TestGateway::run(folder).await
}

async fn serving(folder: TempDir, bundles: &[(&str, &str)]) -> TestGateway {
    serving_by(
        json!({ "policies": { "dev": "unsigned" } }),
        folder,
        bundles,
    )
    .await
}

async fn until(gate: &TestGateway, name: &str, digest: &Digest) {
    let wanted = |status: &Value| status["manifest"] == digest.as_str();
    gate.status_when(name, &format!("serving {digest}"), wanted)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_layout_is_served_before_the_next_poll() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("layout");
    // The folder does not exist at the start.
    let gate = serving(folder, &[("authz", "live"), ("other", "v1")]).await;
    let failed = |status: &Value| status["last_failure"]["step"] == "resolve";
    gate.status_when("authz", "not found", failed).await;
    let one = put(&root, &["live", "v1"], "one");
    until(&gate, "authz", &one).await;
    until(&gate, "other", &one).await;
    let two = put(&root, &["live"], "two");
    until(&gate, "authz", &two).await;
    // Deleted and created again.
    fs::rename(&root, root.with_extension("old")).unwrap();
    let three = put(&root, &["live"], "three");
    until(&gate, "authz", &three).await;
    assert_eq!(gate.bundle_status("other").await["manifest"], one.as_str());
    assert_eq!(gate.metric("bundlegate_unwatched_layouts").await, 0.0);
}

/// One folder, one watch, and a check for each bundle whose own tag has moved.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_concerns_the_bundles_whose_tag_has_moved() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("layout");
    let names: Vec<_> = (0..200).map(|number| format!("b{number}")).collect();
    let tags: Vec<&str> = names.iter().map(String::as_str).collect();
    let one = put(&root, &tags, "one");
    let bundles: Vec<_> = tags.iter().map(|name| (*name, *name)).collect();
    let gate = serving(folder, &bundles).await;
    for name in &tags {
        until(&gate, name, &one).await;
    }
    let unchanged = async || {
        let text = gate.admin_text("/metrics").await;
        let lines = text
            .lines()
            .filter(|line| line.starts_with("bundlegate_refreshes_total"));
        let unchanged = lines.filter(|line| line.contains("outcome=\"unchanged\""));
        unchanged.count()
    };
    let before = unchanged().await;
    let two = put(&root, &["b7"], "two");
    until(&gate, "b7", &two).await;
    assert_eq!(unchanged().await, before, "other bundles were checked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_in_a_layout_wakes_the_bundle_that_waits_for_it() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("layout");
    let digest = put(&root, &["live"], "one");
    let author = Author::new();
    author.run(&["generate-key-pair"]).ok();
    fs::copy(author.path("cosign.pub"), folder.path().join("key.pub")).unwrap();
    let trust = json!({
        "authorities": { "release": { "keys": ["key.pub"], "tlog": "none" } },
        "policies": { "dev": { "require": { "any_of": ["release"] } } },
    });
    let gate = serving_by(trust, folder, &[("authz", "live")]).await;
    // So many failures that the next retry is more than a minute away.
    for _ in 0..8 {
        let url = format!("http://{}/refresh/authz", gate.admin);
        let request = gate
            .http
            .post(url)
            .header("content-type", "application/json");
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["failure"]["class"], "evidence", "{answer}");
    }
    let reference = format!("oci-layout:{}:live", root.display());
    let signing = spawn_blocking(move || {
        author
            .run(&["sign", "--key", "cosign.key", &reference])
            .ok();
    });
    signing.await.unwrap();
    until(&gate, "authz", &digest).await;
}

/// The limits are those of a user namespace, which leaves the machine's own as they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_layout_that_can_not_be_watched_is_polled_with_an_alarm() {
    let namespace = ["--user", "--map-root-user", "sh", "-c"];
    let limit = "echo 0 > /proc/sys/user/max_inotify_instances";
    let mut unshare = Command::new("unshare");
    if !unshare
        .args(namespace)
        .arg(limit)
        .output()
        .is_ok_and(|ran| ran.status.success())
    {
        println!("skipped: this machine allows no user namespaces");
        return;
    }
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("layout");
    let one = put(&root, &["live"], "one");
    let dev = json!({ "policies": { "dev": "unsigned" } });
    let mut config = config(dev, &[("authz", "live")]);
    config["bundles"]["authz"]["poll"] = json!("500ms");
    fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
    let serve = format!("{limit} && exec \"$0\" serve --config \"$1\"");
    let mut command = Command::new("unshare");
    command
        .args(namespace)
        .args([&serve, env!("CARGO_BIN_EXE_bundlegate")])
        .arg(folder.path().join("bundlegate.yaml"));
    let mut process = Process::start("bundlegate", &mut command);
    let data = listener(&mut process, "data").await;
    let admin = listener(&mut process, "admin").await;
    let gate = TestGateway::new("http", data, admin, Program { process, folder });
    until(&gate, "authz", &one).await;
    poll_until("the alarm", async || {
        (gate.metric("bundlegate_unwatched_layouts").await == 1.0).then_some(())
    })
    .await;
    assert!(
        gate.runner
            .process
            .log()
            .contains("the layout can't be watched")
    );
    let two = put(&root, &["live"], "two");
    until(&gate, "authz", &two).await;
}
