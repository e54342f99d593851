//! Trust roots that the program fetches from a TUF repository while it serves.

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    forge::{By, Certified, Envelope, ISSUER, SUBJECT, Sigstore, statement},
    tuf::{Answer, Tuf},
};

/// A Sigstore, the repository that delivers its root, and a registry with what it signed.
struct World {
    forge: Sigstore,
    signer: Certified,
    tuf: Tuf,
    registry: FaultyRegistry,
}

impl World {
    async fn new() -> Self {
        let forge = Sigstore::new();
        let (signer, tuf) = (
            forge.signer(),
            Tuf::start(&forge.trusted_root().to_string()).await,
        );
        let world = Self {
            forge,
            signer,
            tuf,
            registry: FaultyRegistry::start().await,
        };
        world.push("one");
        world
    }

    fn push(&self, text: &str) {
        let (digest, _) = self.registry.put_artifact("live", &bundle(text));
        let (by, envelope) = (
            By::Certificate(&self.signer),
            Envelope::sign(&self.signer.key, &statement(&digest)),
        );
        let signature = envelope.bundle(by, &[self.forge.log_envelope(by, &envelope)], &[]);
        self.registry.put_bundles(&digest, &[signature]);
    }

    fn config(&self) -> Value {
        let mut config = config(&self.registry);
        config["trust"]["roots"] = json!({ "corp": { "tuf": { "url": self.tuf.url().as_str(), "root": "root.json", "refresh": "1s" } } });
        config["trust"]["authorities"]["release"] =
            json!({ "keyless": { "root": "corp", "issuer": ISSUER, "subject": SUBJECT } });
        config["bundles"]["authz"]["poll"] = json!("1s");
        config["cache"] = json!({ "directory": "cache" });
        config
    }

    async fn serve(&self) -> Serving {
        let root = |folder: &TempDir| {
            fs::write(
                folder.path().join("root.json"),
                self.tuf.bytes("1.root.json"),
            )
            .unwrap()
        };
        Serving::start(root, &self.config()).await
    }
}

/// As after a crash.
async fn restarted(mut serving: Serving) -> Serving {
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    let folder = std::mem::replace(&mut serving.folder, TempDir::new().unwrap());
    drop(serving);
    Serving::run(folder).await
}

#[tokio::test]
async fn a_root_that_its_repository_rotates_counts_at_once_with_the_registry_dead() {
    let mut world = World::new().await;
    let serving = world.serve().await;
    let etag = tag(&serving.get("", 60).await);
    world.registry.fail("", usize::MAX, Fault::Stall);
    world
        .tuf
        .publish_root(&Sigstore::new().trusted_root().to_string());
    let status = serving
        .status_when("withdrawn", |status| status["state"] == "withdrawn")
        .await;
    assert_eq!(status["last_failure"]["class"], "distrusted", "{status}");
    assert_eq!(serving.get(&etag, 0).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(
        serving
            .metric(r#"bundlegate_trust_root_refreshes_total{outcome="changed",root="corp"}"#)
            .await,
        2.0
    );

    world.registry.heal();
    world
        .tuf
        .publish_root(&format!("{:#}", world.forge.trusted_root()));
    serving
        .status_when("serving", |status| status["state"] == "serving")
        .await;
    assert_eq!(tag(&serving.get("", 60).await), etag);
}

#[tokio::test]
async fn an_expired_root_lets_nothing_new_in_and_takes_nothing_away() {
    let mut world = World::new().await;
    world.tuf.expires = Timestamp::now() + SignedDuration::from_secs(15);
    world.tuf.publish();
    let serving = world.serve().await;
    let etag = tag(&serving.get("", 60).await);
    let expires = Timestamp::from_second(world.tuf.expires.as_second()).unwrap();
    let expired = format!("trust root corp expired at {expires}");
    serving
        .said(
            &format!("{expired}; it accepts no new artifact until it is refreshed"),
            |_| true,
        )
        .await;

    world.push("two");
    let refused = |status: &Value| {
        status["last_failure"]["message"]
            .to_string()
            .contains(&expired)
    };
    let status = serving.status_when("refused", refused).await;
    assert_eq!(
        (&status["state"], &status["last_failure"]["class"]),
        (&json!("serving"), &json!("evidence"))
    );
    assert_eq!(tag(&serving.get("", 0).await), etag);
    let sample = r#"bundlegate_trust_root_expires_timestamp_seconds{root="corp"}"#;
    assert_eq!(serving.metric(sample).await, expires.as_second() as f64);

    // Nor does a cold start, with the repository dead: it was the same root that let it in.
    let timestamp = world.tuf.answer("timestamp.json", Answer::Status(500, ""));
    let serving = restarted(serving).await;
    assert_eq!(tag(&serving.get("", 60).await), etag);
    let status = serving.status_when("refused again", refused).await;
    assert_eq!(status["state"], "serving");
    world.tuf.answer("timestamp.json", timestamp.unwrap());

    // The same root, for longer: nothing but its end has changed.
    world.tuf.expires = Timestamp::now() + SignedDuration::from_hours(1);
    world.tuf.publish();
    let changed = serving.get(&etag, 60).await;
    assert_eq!(changed.status(), StatusCode::OK);
    assert_ne!(tag(&changed), etag);
}

/// The command line has nothing on disk, and asks the repository itself.
#[tokio::test]
async fn verify_uses_the_root_that_the_repository_has_now() {
    let mut world = World::new().await;
    let folder = TempDir::new().unwrap();
    fs::write(
        folder.path().join("root.json"),
        world.tuf.bytes("1.root.json"),
    )
    .unwrap();
    let file = folder.path().join("bundlegate.yaml");
    fs::write(&file, world.config().to_string()).unwrap();
    let verify = async || {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_bundlegate"));
        command.args([
            "verify",
            &world.registry.reference("live").to_string(),
            "--policy",
            "release",
            "--config",
        ]);
        let output = command.arg(&file).output().await.unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, said) = verify().await;
    assert_eq!(code, Some(0), "{said}");
    world
        .tuf
        .publish_root(&Sigstore::new().trusted_root().to_string());
    let (code, said) = verify().await;
    assert_ne!(code, Some(0), "{said}");
    world.tuf.answer("timestamp.json", Answer::Status(500, ""));
    let (code, said) = verify().await;
    assert_ne!(code, Some(0));
    assert!(
        said.contains("trust root corp: transport error: fetch timestamp.json: HTTP 500"),
        "{said}"
    );
}
