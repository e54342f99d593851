//! Which clients get a version, and when.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use super::{BOTH, Client, Fixture, Observed, TOKEN, VERSION, answering, steps};
use crate::support::poll_until;

/// Acceptance test 12.
#[tokio::test(flavor = "multi_thread")]
async fn a_ring_by_credential_gets_a_push_and_no_other_client_does_until_it_is_promoted() {
    let strategy = steps(json!([{ "clients": ["canary"], "approve": true }]));
    let fixture = Fixture::start(2, strategy).await;
    let (mut canaries, mut others) = (Vec::new(), Vec::new());
    for (replica, version) in BOTH.into_iter().enumerate() {
        let name = format!("canary-{replica}");
        let client = Client {
            token: Some(TOKEN),
            ..Client::named(&name)
        };
        canaries.push(fixture.opa(version, replica, client).await);
        let name = format!("other-{replica}");
        let client = Client::named(&name);
        others.push(fixture.opa(version, replica, client).await);
    }
    for opa in canaries.iter().chain(&others) {
        fixture.answers("an OPA", opa, "first").await;
    }
    let observed = Observed::start(&[("other-0", &others[0]), ("other-1", &others[1])]);
    fixture.publish(&answering("second").await).await;
    for opa in &canaries {
        fixture.answers("a canary", opa, "second").await;
    }
    let awaits = |rollout: &Value| {
        let criteria = &rollout["criteria"];
        criteria["approval"]["awaited"] == true && criteria["clients"]["acknowledged"] == 2
    };
    fixture.leader_when("an approval is awaited", awaits).await;
    for replica in 0..2 {
        let (status, variant, _) = fixture.get(replica, "newcomer", None).await;
        assert_eq!((status, &*variant), (200, "stable"));
    }
    for (name, decisions) in observed.end_after(Duration::from_secs(2)).await {
        assert_eq!(decisions, ["first"], "{name}");
    }
    let reason = ["--reason", "looks good"];
    fixture
        .operates(1, &[&["promote", "authz"], &reason[..]].concat())
        .await;
    for opa in &others {
        fixture.answers("another OPA", opa, "second").await;
    }
    fixture.all_in("idle").await;
    let rollout = fixture.rollout(0).await;
    let history = rollout["history"].as_array().unwrap();
    let promoted = history.iter().find(|it| it["cause"] == "operator").unwrap();
    assert_eq!(
        (&promoted["by"], &promoted["reason"]),
        (&json!("ops"), &json!("looks good"))
    );
    fixture.have_sent_no_server_errors().await;
}

/// Acceptance test 13.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_version_takes_all_steps_by_itself_and_is_the_floor_of_later_ones_only_then() {
    let mut fixture = Fixture::without_replicas().await;
    let version = |version: &str| format!("{VERSION}={version}");
    let publish = async |fixture: &Fixture, name: &str| {
        let flags = ["--annotation", &version(name)];
        fixture
            .publish_as("authz", &answering(name).await, &flags)
            .await
    };
    publish(&fixture, "1.0.0").await;
    let strategy = steps(json!([
        { "ids": ["canary-*"], "soak": "4s" },
        { "percent": 50, "soak": "3s" },
    ]));
    for _ in 0..2 {
        let expect = json!({ "order": "version", "on_older": "refuse" });
        let change =
            |config: crate::support::GatewayConfig| config.with("/bundles/authz/expect", expect);
        fixture.add_replica(&strategy, change).await;
    }
    fixture.all_in("idle").await;
    let mut opas = Vec::new();
    for (number, name) in ["canary-0", "canary-1", "other-0", "other-1"]
        .iter()
        .enumerate()
    {
        opas.push(
            fixture
                .opa(BOTH[number % 2], number % 2, Client::named(name))
                .await,
        );
    }
    for opa in &opas {
        fixture.answers("an OPA", opa, "1.0.0").await;
    }
    publish(&fixture, "2.0.0").await;
    fixture.answers("a canary", &opas[0], "2.0.0").await;
    // Older than the candidate, and newer than the stable version.
    let good = publish(&fixture, "1.5.0").await;
    let is_candidate = |rollout: &Value| rollout["candidate"]["manifest"] == good.as_str();
    fixture
        .rollout_when(0, "the next candidate", is_candidate)
        .await;
    for opa in &opas {
        fixture.answers("an OPA", opa, "1.5.0").await;
    }
    fixture.all_in("idle").await;
    let rollout = fixture.rollout(1).await;
    assert_eq!(rollout["stable"]["manifest"], good.as_str());
    let history: Vec<_> = rollout["history"].as_array().unwrap().iter().collect();
    let seen: Vec<_> = history
        .iter()
        .map(|it| format!("{} {} {}", it["cause"], it["to"], it["step"]).replace('"', ""))
        .collect();
    let expected = [
        "version idle null",
        "version progressing 1",
        "version progressing 1",
        "criteria progressing 2",
        "criteria progressing 3",
        "criteria idle null",
    ];
    assert_eq!(seen, expected, "{rollout:#}");
    for transition in history {
        fixture.tell(&format!("{} {}", transition["at"], transition["reason"]));
    }
    let older = publish(&fixture, "1.2.0").await;
    for gate in &fixture.gates {
        let is_refused = |status: &Value| status["last_failure"]["digest"] == older.as_str();
        let status = gate
            .status_when("authz", "an older version is refused", is_refused)
            .await;
        let message = status["last_failure"]["message"].as_str().unwrap();
        let older = "is older than a version served before, version 1.5.0";
        assert!(message.contains(older), "{message}");
    }
    assert_eq!(fixture.rollout(0).await["phase"], "idle");
    fixture.have_sent_no_server_errors().await;
}

/// Acceptance test 11.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_ten_percent_has_the_same_clients_on_each_replica_and_after_restarts() {
    let mut strategy = steps(json!([{ "percent": 10, "ids": ["probe"], "approve": true }]));
    // These clients never send a tag.
    strategy["max_failures"] = json!(1000);
    let mut fixture = Fixture::start(2, strategy).await;
    let in_step = async |fixture: &Fixture, replica: usize| {
        // A replica may know the step before it has fetched the candidate.
        let has_candidate = async || {
            let (_, variant, _) = fixture.get(replica, "probe", None).await;
            (variant == "candidate").then_some(())
        };
        poll_until("the candidate to be served", has_candidate).await;
        let mut names = BTreeSet::new();
        for number in 0..100 {
            let name = format!("opa-{number}");
            let (status, variant, _) = fixture.get(replica, &name, None).await;
            assert_eq!(status, 200);
            if variant == "candidate" {
                names.insert(number);
            }
        }
        names
    };
    fixture.publish(&answering("second").await).await;
    fixture.step(0, 1).await;
    fixture.step(1, 1).await;
    let names = in_step(&fixture, 0).await;
    fixture.tell(&format!("10 % of 100 are {}: {names:?}", names.len()));
    assert!((4..=16).contains(&names.len()), "{names:?}");
    assert_eq!(in_step(&fixture, 1).await, names, "the other replica");
    for gate in &mut fixture.gates {
        gate.restart().await;
    }
    fixture.step(0, 1).await;
    assert_eq!(in_step(&fixture, 0).await, names, "after a restart");
    let third = fixture.publish(&answering("third").await).await;
    let is_candidate = |rollout: &Value| rollout["candidate"]["manifest"] == third.as_str();
    fixture
        .rollout_when(1, "the next candidate", is_candidate)
        .await;
    assert_eq!(in_step(&fixture, 1).await, names, "the next version");
}
