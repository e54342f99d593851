//! An engine that hangs, loses its data, or is out of reach of some replicas.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{BOTH, Client, Fixture, Observed, TIMEOUT, answering, duration, steps};
use crate::support::{
    Balancer, BalancerKind, Engine, GatewayConfig, Opa, OpaVersion, poll_until, sentinel,
};

/// OPAs of both versions in the ring `canary-*`, and as many outside of it.
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

fn named(opas: &[(String, Opa)]) -> Vec<(&str, &Opa)> {
    opas.iter().map(|(name, opa)| (&**name, opa)).collect()
}

/// Waits until the ring `canary-*` runs `ring` and the others run `others`.
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

/// Acceptance test 19.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_moves_no_client_and_the_step_goes_on_without_counting_that_time() {
    const SOAK: Duration = Duration::from_secs(12);
    let outage = duration(25, 300);
    let strategy = steps(json!([{ "ids": ["canary-*"], "soak": "12s" }]));
    let fixture = Fixture::start(2, strategy).await;
    let opas = opas(&fixture).await;
    run(&fixture, &opas, "first", "first").await;
    fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    let soaks = |rollout: &Value| rollout["criteria"]["soak"]["observed_s"].as_u64() >= Some(1);
    fixture.leader_when("the step is observed", soaks).await;
    fixture.engine.process.signal("STOP");
    fixture.tell("the engine hangs");
    let observed = Observed::start(&named(&opas));
    for (number, version) in BOTH.into_iter().enumerate() {
        for (kind, answer) in [("canary", "second"), ("other", "first")] {
            let name = format!("{kind}-new-{number}");
            let opa = fixture.opa(version, number, Client::named(&name)).await;
            fixture.answers(&name, &opa, answer).await;
        }
    }
    // A push has no effect until the engine answers.
    for (name, decisions) in observed.end_after(outage).await {
        let ring = name.starts_with("canary");
        assert_eq!(decisions, [if ring { "second" } else { "first" }], "{name}");
    }
    for replica in 0..2 {
        let rollout = fixture.rollout(replica).await;
        assert_eq!(
            (&rollout["engine"], &rollout["step"]),
            (&json!("down"), &json!(1))
        );
        let (code, text) = fixture.operate(replica, &["promote", "authz"]).await;
        assert_eq!(code, 1, "{text}");
    }
    fixture.engine.process.signal("CONT");
    fixture.tell("the engine goes on");
    let is_up = |rollout: &Value| rollout["engine"] == "up";
    fixture.rollout_when(0, "the engine is up", is_up).await;
    run(&fixture, &opas, "second", "second").await;
    fixture.all_in("idle").await;
    let rollout = fixture.rollout(0).await;
    let history = rollout["history"].as_array().unwrap();
    let at = |step: u64| {
        let mut found = history.iter().filter(|it| it["step"] == step);
        let text = found.next().unwrap()["at"].as_str().unwrap().to_owned();
        humantime::parse_rfc3339(&text).unwrap()
    };
    let lasted = at(2).duration_since(at(1)).unwrap();
    fixture.tell(&format!(
        "step 1 took {lasted:.1?}: a soak of {SOAK:?} and an outage of {outage:?}"
    ));
    // The outage is noticed a little later than it begins.
    let least = SOAK + outage - Duration::from_secs(5);
    assert!(lasted >= least, "{lasted:?} < {least:?}");
    fixture.have_sent_no_server_errors().await;
}

/// Rule R5, by an operator.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_engine_each_replica_halts_by_itself_and_the_plan_follows_later() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let fixture = Fixture::start(2, strategy).await;
    let opas = opas(&fixture).await;
    run(&fixture, &opas, "first", "first").await;
    fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    fixture.engine.process.signal("STOP");
    for (replica, (_, canary)) in opas.iter().take(2).enumerate() {
        let down = |rollout: &Value| rollout["engine"] == "down";
        fixture.rollout_when(replica, "no engine", down).await;
        let (code, text) = fixture.operate(replica, &["abort", "authz"]).await;
        assert_eq!(code, 1, "{text}");
        let is_halted =
            |rollout: &Value| rollout["halted_here"] == true && rollout["phase"] == "progressing";
        fixture
            .rollout_when(replica, "halted here", is_halted)
            .await;
        fixture
            .answers("a canary of the replica", canary, "first")
            .await;
    }
    run(&fixture, &opas, "first", "first").await;
    fixture.engine.process.signal("CONT");
    fixture.all_in("rolled_back").await;
    let rollout = fixture.rollout(0).await;
    let last = rollout["history"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(
        (&last["cause"], &last["by"]),
        (&json!("operator"), &json!("ops")),
        "{rollout:#}"
    );
    run(&fixture, &opas, "first", "first").await;
    fixture.have_sent_no_server_errors().await;
}

/// Slow is less than `shared.timeout`, too slow is more.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_engine_delays_a_step_and_one_that_is_too_slow_moves_no_client() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "soak": "5s" }]));
    let fixture = Fixture::start(2, strategy).await;
    let opas = opas(&fixture).await;
    run(&fixture, &opas, "first", "first").await;
    let slow = |delay| {
        for link in &fixture.links {
            link.slow(Duration::from_millis(delay));
        }
        fixture.tell(&format!("the engine answers after {} ms", 2 * delay));
    };
    slow(100);
    fixture.publish(&answering("second").await).await;
    for (name, opa) in opas.iter().filter(|(name, _)| name.starts_with("canary")) {
        fixture.answers(name, opa, "second").await;
    }
    slow(2000);
    let down = |rollout: &Value| rollout["engine"] == "down";
    for replica in 0..2 {
        fixture.rollout_when(replica, "no engine", down).await;
    }
    let observed = Observed::start(&named(&opas));
    for (name, decisions) in observed.end_after(Duration::from_secs(8)).await {
        let ring = name.starts_with("canary");
        assert_eq!(decisions, [if ring { "second" } else { "first" }], "{name}");
    }
    slow(0);
    run(&fixture, &opas, "second", "second").await;
    fixture.all_in("idle").await;
    fixture.have_sent_no_server_errors().await;
}

/// Acceptance test 20, and the rest of 19.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_loses_its_data_gets_the_plan_back_and_no_client_is_moved() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "soak": "20s" }]));
    let mut fixture = Fixture::start(2, strategy).await;
    let opas = opas(&fixture).await;
    run(&fixture, &opas, "first", "first").await;
    let digest = fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    let observed = Observed::start(&named(&opas));
    for loss in ["FLUSHALL", "restart"] {
        let before = fixture.step(0, 1).await;
        match loss {
            "FLUSHALL" => drop(fixture.engine.command(&["FLUSHALL"])),
            _ => fixture.engine.restart_empty().await,
        }
        fixture.tell(loss);
        let is_restored = |rollout: &Value| {
            let is_later = rollout["epoch"].as_u64() > before["epoch"].as_u64();
            is_later && rollout["engine"] == "up"
        };
        for replica in 0..2 {
            let rollout = fixture.rollout_when(replica, "restored", is_restored).await;
            assert_eq!(
                (&rollout["phase"], &rollout["step"]),
                (&json!("progressing"), &json!(1))
            );
            assert_eq!(rollout["candidate"]["manifest"], digest.as_str());
            assert!(rollout["generation"].as_u64() > before["generation"].as_u64());
        }
    }
    for (name, decisions) in observed.end_after(Duration::from_secs(3)).await {
        let ring = name.starts_with("canary");
        assert_eq!(decisions, [if ring { "second" } else { "first" }], "{name}");
    }
    // The clients are counted anew, and the step is completed.
    fixture.operates(0, &["wait", "authz"]).await;
    run(&fixture, &opas, "second", "second").await;
    fixture.have_sent_no_server_errors().await;
}

/// Acceptance test 18.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_cut_off_during_a_rollback_moves_no_client_to_and_fro() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let fixture = Fixture::start(2, strategy).await;
    let gates: Vec<_> = fixture.gates.iter().collect();
    let balancer = Balancer::start(BalancerKind::Haproxy, &gates).await;
    let mut opas = Vec::new();
    for long_polling in [true, false] {
        for version in BOTH {
            let name = format!("canary-{}-{long_polling}", version.program());
            let client = Client {
                long_polling,
                ..Client::named(&name)
            };
            let opa = client.start(version, &balancer.url).await;
            opas.push((name, opa));
        }
    }
    run(&fixture, &opas, "first", "first").await;
    fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    fixture.links[1].cut();
    fixture.tell("replica 1 is cut off");
    let down = |rollout: &Value| rollout["engine"] == "down";
    fixture.rollout_when(1, "no engine", down).await;
    let observed = Observed::start(&named(&opas));
    let before = downloads(&balancer);
    fixture.operates(0, &["abort", "authz"]).await;
    // Each leaves the candidate once the balancer leads it to the other replica, and stays there.
    for (name, opa) in &opas {
        fixture.answers(name, opa, "first").await;
    }
    let histories = observed.end_after(Duration::from_secs(30)).await;
    for (name, decisions) in &histories {
        fixture.tell(&format!("{name}: {decisions:?}"));
        assert!(decisions.len() <= 4, "{name}: {decisions:?}");
        assert_eq!(
            decisions.last().map(String::as_str),
            Some("first"),
            "{name}"
        );
    }
    let sent = downloads(&balancer) - before;
    fixture.tell(&format!("{sent} downloads by {} OPAs", opas.len()));
    assert!(sent <= 3 * opas.len(), "{sent}");
    fixture.links[1].restore();
    fixture.all_in("rolled_back").await;
    run(&fixture, &opas, "first", "first").await;
    fixture.have_sent_no_server_errors().await;
}

fn downloads(balancer: &Balancer) -> usize {
    let answers = balancer.answers("/bundles/authz").into_iter();
    answers.filter(|status| *status == 200).count()
}

/// The rest of acceptance test 18.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_the_roll_out_is_noticed_and_clients_are_moved_a_few_times_a_minute() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let mut fixture = Fixture::start(1, strategy.clone()).await;
    fixture
        .add_replica(&strategy, |GatewayConfig(mut config)| {
            config["bundles"]["authz"]
                .as_object_mut()
                .unwrap()
                .remove("rollout");
            GatewayConfig(config)
        })
        .await;
    let first = json!("first");
    let serves = |status: &Value| status["revision"] == first;
    fixture.gates[1].status_when("authz", "first", serves).await;
    let gates: Vec<_> = fixture.gates.iter().collect();
    let balancer = Balancer::start(BalancerKind::Haproxy, &gates).await;
    let mut opas = Vec::new();
    // An odd number, so that requests in turns do not lead each of them to one replica.
    for (version, long_polling) in [(BOTH[0], true), (BOTH[1], true), (BOTH[0], false)] {
        let name = format!("other-{}-{long_polling}", version.program());
        let client = Client {
            long_polling,
            ..Client::named(&name)
        };
        opas.push((name.clone(), client.start(version, &balancer.url).await));
    }
    run(&fixture, &opas, "first", "first").await;
    fixture.publish(&answering("second").await).await;
    let outside = r#"bundlegate_rollout_clients{bundle="authz",kind="outside"}"#;
    poll_until("clients outside of the step", async || {
        (fixture.gates[0].metric(outside).await > 0.0).then_some(())
    })
    .await;
    fixture.tell("the metric shows clients outside of the step");
    fixture.operates(0, &["abort", "authz"]).await;
    let observed = Observed::start(&named(&opas));
    for (name, decisions) in observed.end_after(Duration::from_secs(50)).await {
        fixture.tell(&format!(
            "{name}: {} moves: {decisions:?}",
            decisions.len() - 1
        ));
        // Five a minute.
        assert!(decisions.len() <= 6, "{name}: {decisions:?}");
    }
    fixture.have_sent_no_server_errors().await;
}

/// Acceptance test 21.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_the_engine_takes_no_epoch_back_and_moves_no_client() {
    let folder = TempDir::new().unwrap();
    let mut fixture = Fixture::without_replicas().await;
    let source = fixture.engine.port.to_string();
    let _replica = Engine::with(&["--replicaof", "127.0.0.1", &source]).await;
    let (_sentinel, port) = sentinel(&folder, &fixture.engine, None).await;
    let nodes = [format!("127.0.0.1:{port}")];
    let shared = json!({
        "url": "redis:///0", "sentinel": { "master": "main", "nodes": nodes }, "timeout": TIMEOUT,
    });
    fixture.publish(&answering("first").await).await;
    let strategy = steps(json!([{ "ids": ["canary-*"], "soak": "20s" }]));
    for _ in 0..2 {
        let shared = shared.clone();
        fixture
            .add_replica(&strategy, |config| config.with("/shared", shared))
            .await;
    }
    fixture.all_in("idle").await;
    let opas = opas(&fixture).await;
    run(&fixture, &opas, "first", "first").await;
    fixture.publish(&answering("second").await).await;
    run(&fixture, &opas, "second", "first").await;
    let before = fixture.step(0, 1).await;
    let observed = Observed::start(&named(&opas));
    fixture.engine.process.kill();
    fixture.tell("the primary is killed");
    let down = |rollout: &Value| rollout["engine"] == "down";
    fixture.rollout_when(0, "no engine", down).await;
    let is_up = |rollout: &Value| {
        rollout["engine"] == "up" && rollout["epoch"].as_u64() >= before["epoch"].as_u64()
    };
    for replica in 0..2 {
        let rollout = fixture
            .rollout_when(replica, "another primary", is_up)
            .await;
        assert_eq!(
            (&rollout["phase"], &rollout["step"]),
            (&json!("progressing"), &json!(1))
        );
    }
    for (name, decisions) in observed.end_after(Duration::from_secs(2)).await {
        let ring = name.starts_with("canary");
        assert_eq!(decisions, [if ring { "second" } else { "first" }], "{name}");
    }
    fixture.operates(0, &["wait", "authz"]).await;
    run(&fixture, &opas, "second", "second").await;
    let fresh = fixture
        .opa(OpaVersion::Newest, 1, Client::named("new"))
        .await;
    fixture.answers("new", &fresh, "second").await;
    fixture.have_sent_no_server_errors().await;
}
