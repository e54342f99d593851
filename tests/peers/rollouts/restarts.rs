//! Replicas that restart, and configurations that change, in the middle of a roll-out.

use std::time::Duration;

use serde_json::{Value, json};

use super::{BOTH, Client, Fixture, Observed, answering, steps};
use crate::support::{GatewayConfig, Opa};

async fn opas(fixture: &Fixture) -> Vec<(String, Opa)> {
    let mut opas = Vec::new();
    for kind in ["canary", "other"] {
        for (number, version) in BOTH.into_iter().enumerate() {
            let name = format!("{kind}-{number}");
            let replica = number % fixture.gates.len();
            let opa = fixture.opa(version, replica, Client::named(&name)).await;
            opas.push((name, opa));
        }
    }
    opas
}

fn observe(opas: &[(String, Opa)]) -> Observed {
    let named: Vec<_> = opas.iter().map(|(name, opa)| (&**name, opa)).collect();
    Observed::start(&named)
}

async fn run(fixture: &Fixture, opas: &[(String, Opa)], ring: &str, others: &str) {
    for (name, opa) in opas {
        let answer = if name.starts_with("canary") {
            ring
        } else {
            others
        };
        fixture.answers(name, opa, answer).await;
    }
}

/// The ring `canary-*` runs `second`, and the others run `first`.
fn check_unmoved(name: &str, decisions: &[String]) {
    let ring = name.starts_with("canary");
    assert_eq!(decisions, [if ring { "second" } else { "first" }], "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_restart_without_engine_and_registry_go_on_with_the_plan_on_disk() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let mut fixture = Fixture::start(2, strategy).await;
    let opas = opas(&fixture).await;
    run(&fixture, &opas, "first", "first").await;
    fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    let before = fixture.step(0, 1).await;
    let observed = observe(&opas);
    fixture.engine.process.signal("STOP");
    fixture.registry.kill();
    for gate in &mut fixture.gates {
        gate.restart().await;
    }
    fixture.tell("both replicas have restarted, without engine and registry");
    for replica in 0..2 {
        let rollout = fixture.step(replica, 1).await;
        assert_eq!(rollout["epoch"], before["epoch"], "{rollout:#}");
        for (name, expected) in [("canary-new", "candidate"), ("other-new", "stable")] {
            let (status, variant, _) = fixture.get(replica, name, None).await;
            assert_eq!((status, &*variant), (200, expected), "{name}");
        }
    }
    for (name, decisions) in observed.end_after(Duration::from_secs(5)).await {
        check_unmoved(&name, &decisions);
    }
    fixture.engine.process.signal("CONT");
    let is_up = |rollout: &Value| rollout["engine"] == "up";
    for replica in 0..2 {
        fixture
            .rollout_when(replica, "the engine is up", is_up)
            .await;
    }
    fixture.operates(1, &["promote", "authz", "--full"]).await;
    run(&fixture, &opas, "second", "second").await;
    fixture.have_sent_no_server_errors().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_keeps_its_plan_on_disk() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let mut fixture = Fixture::without_replicas().await;
    fixture.publish(&answering("first").await).await;
    let local = |config: GatewayConfig| config.with("/shared", json!({ "url": "local:" }));
    fixture.add_replica(&strategy, local).await;
    fixture.all_in("idle").await;
    let opas = opas(&fixture).await;
    run(&fixture, &opas, "first", "first").await;
    fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    let before = fixture.step(0, 1).await;
    let observed = observe(&opas);
    fixture.gates[0].restart().await;
    let rollout = fixture.step(0, 1).await;
    assert_eq!(rollout["epoch"], before["epoch"], "{rollout:#}");
    for (name, decisions) in observed.end_after(Duration::from_secs(3)).await {
        check_unmoved(&name, &decisions);
    }
    fixture.operates(0, &["abort", "authz"]).await;
    run(&fixture, &opas, "first", "first").await;
    fixture.gates[0].restart().await;
    fixture.all_in("rolled_back").await;
    run(&fixture, &opas, "first", "first").await;
    fixture.have_sent_no_server_errors().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_brings_no_version_back_that_was_rolled_back_and_none_does() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let fixture = Fixture::start(2, strategy).await;
    let opas = opas(&fixture).await;
    run(&fixture, &opas, "first", "first").await;
    fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    fixture.operates(0, &["abort", "authz"]).await;
    fixture.all_in("rolled_back").await;
    run(&fixture, &opas, "first", "first").await;
    let observed = observe(&opas);
    for gate in &fixture.gates {
        let GatewayConfig(mut config) = gate.config();
        let authz = config["bundles"]["authz"].as_object_mut().unwrap();
        authz.remove("rollout");
        gate.reconfigure(&GatewayConfig(config));
    }
    fixture.tell("the key is removed");
    for (name, decisions) in observed.end_after(Duration::from_secs(5)).await {
        assert_eq!(decisions, ["first"], "{name}");
    }
    fixture.reconfigure("/bundles/authz/rollout", &json!("none"));
    fixture.tell("rollout: none");
    run(&fixture, &opas, "second", "second").await;
    fixture.have_sent_no_server_errors().await;
}
