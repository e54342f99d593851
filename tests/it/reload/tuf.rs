//! Trust roots that the program fetches from a TUF repository while it serves.

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    forge::{By, Certified, Envelope, ISSUER, SUBJECT, Sigstore, statement},
    shared::gateway::Program,
    tuf::{Answer, Tuf},
};

const EXPIRES: &str = r#"bundlegate_trust_root_expires_timestamp_seconds{root="corp"}"#;

/// A Sigstore, the repository that delivers its root, and a registry with an artifact that it signed.
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

    /// Publishes metadata that expires within seconds, and waits until the gateway has it. A
    /// machine that is too busy to fetch it before it expires gets more time.
    async fn expire_soon(&mut self, gateway: &TestGateway) -> Timestamp {
        for seconds in [4, 8, 16, 32] {
            let expires = Timestamp::now().as_second() + seconds;
            self.tuf.expires = Timestamp::from_second(expires).unwrap();
            self.tuf.publish();
            let fetched = gateway
                .until("the metadata is fetched or expires", async || {
                    let fetched = gateway.metric(EXPIRES).await == expires as f64;
                    (fetched || Timestamp::now() > self.tuf.expires).then_some(fetched)
                })
                .await;
            if fetched {
                return self.tuf.expires;
            }
        }
        panic!("the metadata is not fetched in time");
    }

    async fn serve(&self) -> TestGateway {
        let root = |folder: &TempDir| {
            fs::write(
                folder.path().join("root.json"),
                self.tuf.bytes("1.root.json"),
            )
            .unwrap()
        };
        TestGateway::start(root, &self.config()).await
    }
}

/// Kills the program, as a crash does, and runs it again in the same folder.
async fn restarted(gateway: TestGateway) -> TestGateway {
    let Program {
        mut process,
        folder,
    } = gateway.runner;
    process.kill();
    TestGateway::run(folder).await
}

#[tokio::test]
async fn a_root_that_its_repository_rotates_counts_at_once_with_the_registry_dead() {
    let mut world = World::new().await;
    let gateway = world.serve().await;
    let etag = tag(&gateway.get("", 60).await);
    world.registry.fail("", usize::MAX, Fault::Stall);
    world
        .tuf
        .publish_root(&Sigstore::new().trusted_root().to_string());
    let status = gateway
        .status_when("authz", "withdrawn", |status| {
            status["state"] == "withdrawn"
        })
        .await;
    assert_eq!(status["last_failure"]["class"], "distrusted", "{status}");
    assert_eq!(gateway.get(&etag, 0).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(
        gateway
            .metric(r#"bundlegate_trust_root_refreshes_total{outcome="changed",root="corp"}"#)
            .await,
        2.0
    );

    world.registry.heal();
    world
        .tuf
        .publish_root(&format!("{:#}", world.forge.trusted_root()));
    gateway
        .status_when("authz", "serving", |status| status["state"] == "serving")
        .await;
    assert_eq!(tag(&gateway.get("", 60).await), etag);
}

#[tokio::test]
async fn an_expired_root_lets_nothing_new_in_and_takes_nothing_away() {
    let mut world = World::new().await;
    let gateway = world.serve().await;
    let etag = tag(&gateway.get("", 60).await);
    let expires = world.expire_soon(&gateway).await;
    let expired = format!("trust root corp expired at {expires}");
    gateway
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
    let status = gateway.status_when("authz", "refused", refused).await;
    assert_eq!(
        (&status["state"], &status["last_failure"]["class"]),
        (&json!("serving"), &json!("evidence"))
    );
    assert_eq!(tag(&gateway.get("", 0).await), etag);
    assert_eq!(gateway.metric(EXPIRES).await, expires.as_second() as f64);

    // A cold start with a dead repository does not withdraw the bundle either, because the same root
    // has accepted it.
    let timestamp = world.tuf.answer("timestamp.json", Answer::Status(500, ""));
    let gateway = restarted(gateway).await;
    assert_eq!(tag(&gateway.get("", 60).await), etag);
    let status = gateway.status_when("authz", "refused again", refused).await;
    assert_eq!(status["state"], "serving");
    world.tuf.answer("timestamp.json", timestamp.unwrap());

    // The same root with a later expiry accepts new artifacts again.
    world.tuf.expires = Timestamp::now() + SignedDuration::from_hours(1);
    world.tuf.publish();
    let changed = gateway.get(&etag, 60).await;
    assert_eq!(changed.status(), StatusCode::OK);
    assert_ne!(tag(&changed), etag);
}

/// The command has no cache, and fetches the root from the repository.
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
