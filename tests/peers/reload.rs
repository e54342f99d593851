//! Bundles that are added, removed and re-pointed while real OPAs decide by others.

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{spawn, time::Instant};

use crate::{
    cold_clients::{CLIENTS, Crowd},
    support::{
        Artifact, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, TestGateway, http,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn bundles_come_go_and_move_while_a_thousand_clients_wait_for_another_one() {
    let (mut registry, key) = (
        Registry::start(Kind::Distribution).await,
        KeyPair::generate().await,
    );
    for answer in ["first", "second"] {
        let artifact = Artifact::answering(answer).await;
        let digest = registry
            .push(&format!("acme/authz:{answer}"), &artifact.file())
            .await;
        key.sign(&registry, &format!("acme/authz@{digest}")).await;
    }
    let mut config = GatewayConfig::trusting(&key).cached();
    for name in ["authz", "moving", "going"] {
        config = config.bundle(name, &registry, "acme/authz:first");
    }
    let gate = TestGateway::start(config).await;
    let serving = |status: &Value| status["state"] == "serving";
    let etag = gate.status_when("authz", "served", serving).await["etag"]
        .as_str()
        .unwrap()
        .to_owned();
    gate.status_when("going", "served", serving).await;
    let moving = Opa::polling(OpaVersion::V0_70, &gate.url, "moving").await;
    moving.answers("first").await;
    // This OPA gets 404 until the bundle is added, and polls again and again.
    let coming = Opa::polling(OpaVersion::Newest, &gate.url, "coming").await;
    let held = {
        let request = http()
            .get(format!("{}/bundles/going", gate.url))
            .header("if-none-match", &etag);
        spawn(
            request
                .header("prefer", "modes=snapshot,delta;wait=50")
                .send(),
        )
    };
    let mut crowd = Crowd::ask(&gate, "authz", Some(etag));
    gate.status_when("authz", "all wait", |status| status["waiters"] == CLIENTS)
        .await;
    gate.status_when("going", "one waits", |status| status["waiters"] == 1)
        .await;

    let config = gate
        .config()
        .bundle("coming", &registry, "acme/authz:second");
    let mut config = config.with(
        "/bundles/moving/reference",
        json!(registry.reference("acme/authz:second")),
    );
    let going = config.0["bundles"]
        .as_object_mut()
        .unwrap()
        .remove("going")
        .unwrap();
    let changed = Instant::now();
    gate.reconfigure(&config);
    let answer = async {
        let answer = held.await.unwrap().unwrap();
        (answer.status(), changed.elapsed())
    };
    let decided = async |opa: &Opa| {
        opa.answers("second").await;
        changed.elapsed()
    };
    let ((status, gone), moved, came) = tokio::join!(answer, decided(&moving), decided(&coming));
    println!(
        "reload | {CLIENTS} wait for another bundle | a held request for a removed bundle: {status} after {gone:?}"
    );
    println!("reload | a re-pointed bundle decides after {moved:?}, an added one after {came:?}");
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(gate.bundle_status("going").await, Value::Null);
    crowd.is_untouched();
    assert_eq!(gate.bundle_status("authz").await["waiters"], CLIENTS);

    // A removed bundle is served again from the version on disk.
    registry.kill();
    gate.reconfigure(&config.with("/bundles/going", going));
    let status = gate.status_when("going", "served again", serving).await;
    assert_eq!(
        status["manifest"],
        gate.bundle_status("authz").await["manifest"]
    );
    crowd.is_untouched();
}
