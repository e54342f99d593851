//! Replicas that are restarted one after the other behind a load balancer, under load.

use reqwest::{Client, StatusCode};
use serde_json::json;

use crate::{
    shared::raise_open_files,
    support::{
        Artifact, Balancer, BalancerKind, GatewayConfig, KeyPair, Kind, Load, Opa, OpaVersion,
        Registry, TestGateway, long_polling, poll_until,
    },
};

/// Each OPA has a bundle name of its own, so that the balancer's log tells them apart.
const OPAS: [(&str, OpaVersion); 2] = [("newest", OpaVersion::Newest), ("old", OpaVersion::V0_70)];

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_behind_nginx() {
    no_request_fails_behind(BalancerKind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_behind_haproxy() {
    no_request_fails_behind(BalancerKind::Haproxy).await;
}

async fn no_request_fails_behind(kind: BalancerKind) {
    raise_open_files();
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    publish(&registry, &key, "first").await;
    let mut replicas = [
        replica(&registry, &key).await,
        replica(&registry, &key).await,
    ];
    for replica in &replicas {
        replica
            .status_when("load", "served", |status| status["state"] == "serving")
            .await;
    }
    let balancer = Balancer::start(kind, &replicas.each_ref()).await;
    let mut opas = Vec::new();
    for (name, version) in OPAS {
        let mut config = long_polling(&balancer.url, name);
        config["bundles"][name]["polling"]["long_polling_timeout_seconds"] = json!(8);
        let opa = Opa::start(version, &config).await;
        opa.answers("first").await;
        opas.push((name, opa));
    }
    let client = Client::builder().no_proxy().build().unwrap();
    let mut load = Load::start(client, &format!("{}/bundles/load", balancer.url)).await;
    for replica in &mut replicas {
        replica.runner.process.signal("TERM");
        assert!(replica.runner.process.ended().await.success());
        load.goes_on().await;
        replica.restart().await;
        poll_until("the replica to be ready", async || {
            let ready = replica.admin_response("/readyz").await;
            (ready.status() == StatusCode::OK).then_some(())
        })
        .await;
        load.goes_on().await;
    }
    publish(&registry, &key, "second").await;
    for (name, opa) in &opas {
        opa.answers("second").await;
        let answers = balancer.answers(&format!("/bundles/{name}"));
        assert!(
            answers.iter().all(|status| matches!(status, 200 | 304)),
            "{name}: {answers:?}"
        );
        println!(
            "rolling restart | {kind:?} | {name} | {} polls",
            answers.len()
        );
    }
    println!("rolling restart | {kind:?} | {}", load.end().await);
}

async fn replica(registry: &Registry, key: &KeyPair) -> TestGateway {
    let mut config = GatewayConfig::trusting(key)
        .cached()
        .bundle("load", registry, "acme/load:live")
        .with("/server/drain", json!({ "notice": "1s", "over": "2s" }));
    for (name, _) in OPAS {
        config = config.bundle(name, registry, "acme/authz:live");
    }
    TestGateway::start(config).await
}

/// Pushes and signs a version for the OPAs; the first one for the load as well.
async fn publish(registry: &Registry, key: &KeyPair, answer: &str) {
    let artifact = Artifact::answering(answer).await;
    let repositories: &[_] = match answer {
        "first" => &["acme/authz", "acme/load"],
        _ => &["acme/authz"],
    };
    for repository in repositories {
        let digest = registry
            .push(&format!("{repository}:{answer}"), &artifact.file())
            .await;
        let pinned = format!("{repository}@{digest}");
        key.sign(registry, &pinned).await;
        registry.tag(&pinned, "live").await;
    }
}
