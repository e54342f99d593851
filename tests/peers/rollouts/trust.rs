//! Versions that are revoked while they are rolled out.

use serde_json::{Value, json};

use super::{BOTH, Client, Fixture, answering, steps};
use crate::support::{GatewayConfig, Opa};

const REVOKED: &str = "/trust/policies/release/revoked_digests";

/// Two replicas, with a bundle that stands in for `authz`, and OPAs of both versions in the ring and outside.
async fn start(strategy: Value) -> (Fixture, Vec<(String, Opa)>) {
    let mut fixture = Fixture::without_replicas().await;
    fixture.publish(&answering("first").await).await;
    fixture
        .publish_as("denial", &answering("denied").await, &[])
        .await;
    for _ in 0..2 {
        let reference = fixture.registry.reference("acme/denial:live");
        let change = |config: GatewayConfig| {
            let bundle = json!({ "reference": reference, "trust": "release", "poll": "500ms" });
            config.with("/bundles/denial", bundle).with(
                "/bundles/authz/on_withdraw",
                json!({ "fallback": "denial" }),
            )
        };
        fixture.add_replica(&strategy, change).await;
    }
    fixture.all_in("idle").await;
    let mut opas = Vec::new();
    for kind in ["canary", "other"] {
        for (number, version) in BOTH.into_iter().enumerate() {
            let name = format!("{kind}-{number}");
            opas.push((
                name.clone(),
                fixture.opa(version, number, Client::named(&name)).await,
            ));
        }
    }
    run(&fixture, &opas, "first", "first").await;
    (fixture, opas)
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

/// Acceptance test 22.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_candidate_is_left_at_once_though_the_engine_hangs() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let (mut fixture, opas) = start(strategy).await;
    let second = fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    fixture.engine.process.signal("STOP");
    fixture.registry.kill();
    let down = |rollout: &Value| rollout["engine"] == "down";
    fixture.rollout_when(0, "no engine", down).await;
    fixture.reconfigure(REVOKED, &json!([second]));
    fixture.tell("the candidate is revoked, without engine and registry");
    run(&fixture, &opas, "first", "first").await;
    for replica in 0..2 {
        let (status, variant, _) = fixture.get(replica, "canary-new", None).await;
        assert_eq!((status, &*variant), (200, "stable"));
    }
    fixture.engine.process.signal("CONT");
    fixture.all_in("rolled_back").await;
    let rollout = fixture.rollout(0).await;
    let last = rollout["history"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(last["cause"], "trust", "{rollout:#}");
    run(&fixture, &opas, "first", "first").await;
    fixture.have_sent_no_server_errors().await;
}

/// Acceptance test 23.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_stable_version_promotes_the_candidate_and_two_revoked_ones_lead_to_the_fallback()
{
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let (fixture, opas) = start(strategy).await;
    let first = fixture.rollout(0).await["stable"]["manifest"].clone();
    let second = fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    fixture.operates(0, &["pause", "authz"]).await;
    fixture.all_in("paused").await;
    fixture.reconfigure(REVOKED, &json!([first]));
    fixture.tell("the stable version is revoked");
    run(&fixture, &opas, "second", "second").await;
    fixture.all_in("idle").await;
    assert_eq!(
        fixture.rollout(1).await["stable"]["manifest"],
        second.as_str()
    );
    fixture.reconfigure(REVOKED, &json!([first, second]));
    fixture.tell("both are revoked");
    run(&fixture, &opas, "denied", "denied").await;
    fixture.have_sent_no_server_errors().await;
}

/// The rest of acceptance test 23.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_stable_version_leads_to_the_fallback_where_the_strategy_says_so() {
    let mut strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    strategy["on_stable_lost"] = json!("withdraw");
    let (fixture, opas) = start(strategy).await;
    let first = fixture.rollout(0).await["stable"]["manifest"].clone();
    let second = fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    fixture.operates(0, &["pause", "authz"]).await;
    fixture.all_in("paused").await;
    fixture.reconfigure(REVOKED, &json!([first]));
    fixture.tell("the stable version is revoked");
    run(&fixture, &opas, "denied", "denied").await;
    let newcomer = fixture.opa(BOTH[0], 0, Client::named("new")).await;
    fixture.answers("new", &newcomer, "denied").await;
    fixture.reconfigure(REVOKED, &json!([first, second]));
    fixture.tell("both are revoked");
    run(&fixture, &opas, "denied", "denied").await;
    fixture.have_sent_no_server_errors().await;
}
