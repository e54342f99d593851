//! The program is killed by SIGKILL at random moments.

use std::{fmt::Write as _, fs, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout_at};

use crate::support::{
    Artifact, GatewayConfig, KeyPair, Kind, Proxy, Registry, TestGateway, http, poll_until,
};

const KILLS: usize = 200;
/// The longest life, counted from the launch or, for most, from the moment when the cache is
/// open: on a busy machine the start alone takes longer than this.
const LIFE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_kills_at_random_moments_cost_neither_the_cache_nor_the_truth() {
    let registry = Registry::start(Kind::Referrers).await;
    let key = KeyPair::generate().await;
    let versions = [
        Version::publish(&registry, &key, "one").await,
        Version::publish(&registry, &key, "two").await,
    ];
    // A transfer takes some 40 ms, so that kills fall into it.
    let proxy = Proxy::slow(&registry.host, Duration::from_millis(5)).await;
    let config = GatewayConfig::trusting(&key)
        .bundle("authz", &registry, "acme/authz:live")
        .cached();
    let config = config
        .by_way_of(&proxy.host, &registry)
        .with("/bundles/authz/poll", json!("100ms"));
    let mut gate = TestGateway::start(config).await;
    let (mut answers, mut opened, mut published, mut leftovers, mut set_aside) = (0, 0, 0, 0, 0);
    let [mut wanted, mut other] = versions.each_ref();
    let began = Instant::now();
    for kill in 0..KILLS {
        wanted.move_tag(&registry).await;
        gate.relaunch();
        if kill % 4 > 0 {
            cache_opened(&mut gate).await;
        }
        let until = Instant::now() + LIFE.mul_f64(fastrand::f64());
        answers += ask(&gate, &versions, until).await;
        gate.runner.process.kill();
        let log = gate.log();
        opened += log
            .iter()
            .filter(|line| line["message"] == "cache opened")
            .count();
        if log.iter().any(|line| line["manifest"] == wanted.digest) {
            // This version is on disk now, so that the other one has to be fetched.
            (published, wanted, other) = (published + 1, other, wanted);
        }
        leftovers += half_written(&gate);
        let mut trouble = log.iter().filter(|line| line["level"] == "ERROR");
        if log.iter().any(is_set_aside) {
            // Two kills in a row have met the same step, which here takes a large part of a life.
            // It looks like a bundle that ends the process; the alarm names the file to remove.
            set_aside += 1;
            fs::remove_file(gate.folder().join("cache/attempts.log")).unwrap();
        }
        assert!(trouble.all(is_set_aside), "kill {kill}: {log:#?}");
    }
    let seconds = began.elapsed().as_secs_f64();
    let transfers: usize = versions
        .iter()
        .map(|version| version.transfers(&registry))
        .sum();
    println!(
        "crash | {KILLS} kills in {seconds:.0} s | cache opened {opened} times, {leftovers} files were half written, \
         {set_aside} times two kills in a row met one step"
    );
    println!(
        "crash | {transfers} transfers begun | {published} versions published | {answers} answers, all right"
    );
    assert!(
        transfers > 0 && answers > 0,
        "killed too early to show anything"
    );
    // The last kills may have done so as well.
    let _ = fs::remove_file(gate.folder().join("cache/attempts.log"));
    gate.restart().await;
    for version in &versions {
        version.move_tag(&registry).await;
        gate.status_when("authz", "the tag's version", |status| {
            status["etag"] == version.etag
        })
        .await;
        assert!(ask(&gate, &versions, Instant::now() + LIFE).await > 0);
    }
    assert!(
        gate.log()
            .iter()
            .any(|line| line["message"] == "cache opened"),
        "{:#?}",
        gate.log()
    );
}

/// Whether a line of the log is the alarm about an artifact that the process died of twice.
fn is_set_aside(line: &serde_json::Value) -> bool {
    line["message"]
        .as_str()
        .is_some_and(|message| message.starts_with("not opened again: "))
}

/// Asks for the bundle until `until`. Whatever is served is one of `versions`, with its own
/// tag; gives how often.
async fn ask(gate: &TestGateway, versions: &[Version], until: Instant) -> usize {
    let (client, url, mut answers) = (http(), format!("{}/bundles/authz", gate.url), 0);
    while Instant::now() < until {
        let asking = async {
            let response = client
                .get(&url)
                .send()
                .await
                .ok()
                .filter(|response| response.status() == 200)?;
            let etag = response.headers()["etag"].to_str().unwrap().to_owned();
            Some((etag, response.bytes().await.ok()?))
        };
        match timeout_at(until, asking).await {
            Ok(Some((etag, bytes))) => {
                let known = versions.iter().any(|version| version.etag == etag);
                assert!(
                    known && etag == entity_tag(&bytes),
                    "wrong bytes under {etag}"
                );
                answers += 1;
            }
            // The gateway does not listen yet; the pause leaves it the CPU.
            Ok(None) => sleep(Duration::from_millis(5)).await,
            Err(_) => break,
        }
    }
    answers
}

async fn cache_opened(gate: &mut TestGateway) {
    let opened = |line: &str| line.contains("cache opened").then_some(());
    gate.runner.process.line(opened).await;
}

/// The number of half-written files on disk.
fn half_written(gate: &TestGateway) -> usize {
    let Ok(entries) = fs::read_dir(gate.folder().join("cache")) else {
        return 0;
    };
    entries
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with(".tmp-")
        })
        .count()
}

struct Version {
    name: &'static str,
    digest: String,
    layer: String,
    etag: String,
    manifest: Vec<u8>,
}

impl Version {
    /// A few hundred KiB that no compressor makes small, signed.
    async fn publish(registry: &Registry, key: &KeyPair, name: &'static str) -> Self {
        let mut noise = String::new();
        for _ in 0..50_000 {
            write!(noise, "{:016x}", fastrand::u64(..)).unwrap();
        }
        let artifact = Artifact::built(
            name,
            &[("data.json", &json!({ "noise": noise }).to_string())],
        )
        .await;
        let digest = registry
            .push(&format!("acme/authz:{name}"), &artifact.file())
            .await;
        key.sign(registry, &format!("acme/authz@{digest}")).await;
        let bytes = fs::read(artifact.file()).unwrap();
        println!("crash | version {name} has {} KiB", bytes.len() >> 10);
        let url = format!("http://{}/v2/acme/authz/manifests/{digest}", registry.host);
        let manifest = http()
            .get(url)
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
            .to_vec();
        let layer = bundlegate::oci::Digest::sha256(&bytes).to_string();
        Self {
            name,
            digest,
            layer,
            etag: entity_tag(&bytes),
            manifest,
        }
    }

    fn transfers(&self, registry: &Registry) -> usize {
        registry
            .asked("GET")
            .into_iter()
            .filter(|(path, _)| path.ends_with(&self.layer))
            .map(|(_, times)| times)
            .sum()
    }

    async fn move_tag(&self, registry: &Registry) {
        let url = format!("http://{}/v2/acme/authz/manifests/live", registry.host);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let put = async || {
            let request = http()
                .put(&url)
                .header("content-type", kind)
                .body(self.manifest.clone());
            request
                .send()
                .await
                .ok()
                .filter(|response| response.status().is_success())
                .map(drop)
        };
        poll_until(&format!("the tag to name {}", self.name), put).await;
    }
}

fn entity_tag(bytes: &[u8]) -> String {
    format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha256::digest(bytes)))
}
