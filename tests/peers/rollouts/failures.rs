//! Versions that OPAs can't activate, and the way back.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{BOTH, Client, Fixture, Observed, answering, broken, duration, rooted, steps};
use crate::support::{GatewayConfig, OpaVersion};

/// Acceptance test 14.
#[tokio::test(flavor = "multi_thread")]
async fn one_client_that_fails_halts_all_replicas_and_the_version_is_not_offered_again() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let mut fixture = Fixture::without_replicas().await;
    fixture.publish(&answering("first").await).await;
    let plain = rooted("plain", "plain", &["plain"]).await;
    fixture.publish_as("plain", &plain, &[]).await;
    for _ in 0..3 {
        let registry = fixture.registry.host.clone();
        let change = |config: GatewayConfig| {
            let bundle = json!({
                "reference": format!("{registry}/acme/plain:live"), "trust": "release", "poll": "500ms",
            });
            config.with("/bundles/plain", bundle)
        };
        fixture.add_replica(&strategy, change).await;
    }
    fixture.all_in("idle").await;
    for (has_status, version) in [(false, OpaVersion::V0_70), (true, OpaVersion::Newest)] {
        let opas = fail_and_halt(&fixture, version, has_status).await;
        for gate in &mut fixture.gates {
            gate.restart().await;
        }
        fixture.all_in("rolled_back").await;
        let named: Vec<_> = opas.iter().map(|(name, opa)| (&**name, opa)).collect();
        let observed = Observed::start(&named);
        for replica in 0..3 {
            let (status, variant, _) = fixture.get(replica, "canary-new", None).await;
            assert_eq!((status, &*variant), (200, "stable"));
        }
        for (name, decisions) in observed.end_after(Duration::from_secs(4)).await {
            assert_eq!(decisions, ["first"], "{name}");
        }
        // Until an operator says so.
        fixture.operates(0, &["retry", "authz"]).await;
        fixture.answers("a canary", &opas[1].1, "second").await;
        fixture.operates(1, &["abort", "authz"]).await;
        fixture.all_in("rolled_back").await;
        fixture.answers("a canary", &opas[1].1, "first").await;
        // So that the same can happen again.
        fixture.registry.tag("acme/authz:first", "live").await;
        fixture.all_in("idle").await;
    }
    fixture.have_sent_no_server_errors().await;
}

/// Rolls out a version that claims a root of another bundle: the OPA with both can't activate it.
async fn fail_and_halt(
    fixture: &Fixture,
    version: OpaVersion,
    has_status: bool,
) -> Vec<(String, crate::support::Opa)> {
    let first = fixture.rollout(0).await["stable"]["manifest"].clone();
    let pinned = format!("acme/authz@{}", first.as_str().unwrap());
    fixture.registry.tag(&pinned, "first").await;
    let both = Client {
        bundles: &["authz", "plain"],
        has_status,
        ..Client::named("canary-both")
    };
    let mut opas = vec![(
        "canary-both".to_owned(),
        fixture.opa(version, 1, both).await,
    )];
    for (replica, name) in ["canary-0", "other-1", "canary-2"].into_iter().enumerate() {
        let opa = fixture
            .opa(BOTH[replica % 2], replica, Client::named(name))
            .await;
        opas.push((name.to_owned(), opa));
    }
    for (name, opa) in &opas {
        fixture.answers(name, opa, "first").await;
    }
    let text = format!("second, for {version:?}");
    let policy = "package authz\n\nanswer := \"second\"\n";
    let manifest = json!({ "roots": ["authz", "plain/more"] }).to_string();
    let files = [(".manifest", &*manifest), ("policy.rego", policy)];
    let second = crate::support::Artifact::built(&text, &files).await;
    let digest = fixture.publish(&second).await;
    let began = Instant::now();
    let is_refused = |rollout: &Value| {
        rollout["phase"] == "rolled_back" && rollout["refused"].to_string().contains(&digest)
    };
    for replica in 0..3 {
        fixture
            .rollout_when(replica, "rolled back", is_refused)
            .await;
    }
    fixture.tell(&format!(
        "all replicas halted {:.2?} after the push",
        began.elapsed()
    ));
    let rollout = fixture.rollout(2).await;
    let history = rollout["history"].as_array().unwrap();
    assert_eq!(history.last().unwrap()["cause"], "failures", "{rollout:#}");
    for (name, opa) in &opas {
        fixture.answers(name, opa, "first").await;
    }
    let text = fixture.gates[0]
        .admin_text("/fleet?search=canary-both")
        .await;
    let fleet: Value = serde_json::from_str(&text).unwrap();
    fixture.tell(&format!(
        "the client: {}",
        fleet["clients"][0]["bundles"]["authz"]
    ));
    opas
}

/// Acceptance test 15.
#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_fails_everywhere_is_offered_rarely_where_nothing_halts_it() {
    let mut strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    strategy["max_failures"] = json!(1000);
    let fixture = Fixture::start(1, strategy).await;
    let opa = fixture
        .opa(OpaVersion::V0_70, 0, Client::named("canary-0"))
        .await;
    fixture.answers("canary-0", &opa, "first").await;
    let sample = r#"bundlegate_http_requests_total{bundle="authz",code="200"}"#;
    let before = fixture.gates[0].metric(sample).await;
    fixture.publish(&broken()).await;
    let fails = |rollout: &Value| rollout["criteria"]["clients"]["failed"] == 1;
    fixture.rollout_when(0, "a client fails", fails).await;
    let observed = Observed::start(&[("canary-0", &opa)]);
    let time = duration(50, 600);
    let decisions = observed.end_after(time).await;
    assert_eq!(decisions["canary-0"], ["first"]);
    let sent = fixture.gates[0].metric(sample).await - before;
    fixture.tell(&format!("{sent} downloads in {time:?}"));
    // Two at once, then after 60, 120, 240 and 480 s.
    let allowed = if time > Duration::from_secs(60) {
        6.0
    } else {
        3.0
    };
    assert!(sent <= allowed, "{sent}");
    // One without a policy gets the candidate, can't activate it, and then gets the stable version.
    for (number, version) in BOTH.into_iter().enumerate() {
        let name = format!("canary-new-{number}");
        let fresh = fixture.opa(version, 0, Client::named(&name)).await;
        fixture.answers(&name, &fresh, "first").await;
    }
    assert_eq!(fixture.rollout(0).await["phase"], "progressing");
}

/// Acceptance test 17.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_superseded_tags_goes_back_within_a_poll() {
    let fixture = Fixture::start(2, steps(json!([{ "ids": ["canary-*"], "approve": true }]))).await;
    let mut opas = Vec::new();
    for long_polling in [false, true] {
        let name = format!("canary-{long_polling}");
        let client = Client {
            long_polling,
            supersedes: true,
            ..Client::named(&name)
        };
        opas.push(
            fixture
                .opa(OpaVersion::Newest, usize::from(long_polling), client)
                .await,
        );
    }
    for answer in ["first", "second", "first"] {
        match answer {
            "second" => drop(fixture.publish(&answering(answer).await).await),
            _ if fixture.rollout(0).await["phase"] != "idle" => {
                fixture.operates(0, &["abort", "authz"]).await;
            }
            _ => {}
        }
        for opa in &opas {
            fixture
                .answers("an OPA with earlier tags", opa, answer)
                .await;
        }
    }
    // And forward again to a version whose tag it keeps.
    fixture.operates(1, &["retry", "authz"]).await;
    for opa in &opas {
        fixture
            .answers("an OPA with earlier tags", opa, "second")
            .await;
    }
    fixture.have_sent_no_server_errors().await;
}
