//! What people do: further pushes, tags that move back, deletions, and operations.

use std::time::Duration;

use reqwest::{Client as Http, StatusCode};
use serde_json::{Value, json};

use super::{BOTH, Client, Fixture, Observed, answering, steps};
use crate::support::Opa;

async fn opas(fixture: &Fixture, names: &[&str]) -> Vec<(String, Opa)> {
    let mut opas = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let replica = number % fixture.gates.len();
        let opa = fixture
            .opa(BOTH[number % 2], replica, Client::named(name))
            .await;
        opas.push(((*name).to_owned(), opa));
    }
    opas
}

/// Acceptance test 24, without its deletion.
#[tokio::test(flavor = "multi_thread")]
async fn a_further_push_supersedes_a_candidate_and_a_tag_moved_back_ends_the_roll_out() {
    let strategy = steps(json!([
        { "ids": ["canary-*"], "soak": "3s" },
        { "ids": ["early"], "approve": true },
    ]));
    let fixture = Fixture::start(2, strategy).await;
    let first = fixture.rollout(0).await["stable"]["manifest"].clone();
    let opas = opas(&fixture, &["canary-0", "canary-1", "early", "late"]).await;
    let run = async |answers: [&str; 4]| {
        for ((name, opa), answer) in opas.iter().zip(answers) {
            fixture.answers(name, opa, answer).await;
        }
    };
    run(["first"; 4]).await;
    fixture.publish(&answering("second").await).await;
    fixture.step(0, 2).await;
    run(["second", "second", "second", "first"]).await;
    let observed = Observed::start(&[("late", &opas[3].1)]);
    fixture.publish(&answering("third").await).await;
    run(["third", "third", "third", "first"]).await;
    fixture.step(1, 2).await;
    let pinned = format!("acme/authz@{}", first.as_str().unwrap());
    fixture.registry.tag(&pinned, "live").await;
    fixture.tell("the tag is moved back");
    fixture.all_in("idle").await;
    run(["first"; 4]).await;
    let rollout = fixture.rollout(0).await;
    assert_eq!(rollout["stable"]["manifest"], first, "{rollout:#}");
    let decisions = observed.end_after(Duration::from_secs(1)).await;
    assert_eq!(decisions["late"], ["first"]);
    fixture.have_sent_no_server_errors().await;
}

/// The rest of acceptance test 24.
#[tokio::test(flavor = "multi_thread")]
async fn a_stable_version_that_is_deleted_in_the_registry_stays_where_a_replica_has_it() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let mut fixture = Fixture::start(2, strategy.clone()).await;
    let first = fixture.rollout(0).await["stable"].clone();
    let opas = opas(&fixture, &["canary-0", "other-0"]).await;
    fixture.publish(&answering("second").await).await;
    fixture.answers("canary-0", &opas[0].1, "second").await;
    fixture.answers("other-0", &opas[1].1, "first").await;
    let manifest = first["manifest"].as_str().unwrap();
    let reference = fixture
        .registry
        .reference(&format!("acme/authz@{manifest}"));
    fixture
        .registry
        .oras(&["manifest", "delete", "--force", &reference])
        .await;
    fixture.tell("the stable version is deleted in the registry");
    let observed = Observed::start(&[("canary-0", &opas[0].1), ("other-0", &opas[1].1)]);
    fixture.add_replica(&strategy, |config| config).await;
    fixture.step(2, 1).await;
    let etag = first["etag"].as_str().unwrap().trim_matches('"').to_owned();
    let quoted = format!("\"{etag}\"");
    let (status, variant, tag) = fixture.get(2, "other-1", Some(&quoted)).await;
    fixture.tell(&format!(
        "the new replica, for the stable version: {status} {variant:?} {tag}"
    ));
    assert_eq!((status, tag), (304, quoted));
    let (status, ..) = fixture.get(2, "other-2", None).await;
    assert_eq!(status, 404);
    let (status, variant, _) = fixture.get(2, "canary-1", None).await;
    assert_eq!((status, &*variant), (200, "candidate"));
    let old = fixture.get(0, "other-3", None).await;
    assert_eq!((old.0, &*old.1), (200, "stable"));
    for (name, decisions) in observed.end_after(Duration::from_secs(3)).await {
        assert_eq!(
            decisions,
            [if name == "canary-0" {
                "second"
            } else {
                "first"
            }]
        );
    }
    fixture.operates(2, &["promote", "authz", "--full"]).await;
    fixture.all_in("idle").await;
    fixture.answers("other-0", &opas[1].1, "second").await;
    let (status, ..) = fixture.get(2, "other-2", None).await;
    assert_eq!(status, 200);
    fixture.have_sent_no_server_errors().await;
}

/// Acceptance test 25.
#[tokio::test(flavor = "multi_thread")]
async fn operations_that_the_plan_does_not_allow_are_refused_and_abort_wins() {
    let strategy = steps(json!([{ "ids": ["canary-*"], "approve": true }]));
    let fixture = Fixture::start(2, strategy).await;
    let opas = opas(&fixture, &["canary-0", "other-0"]).await;
    for operation in ["abort", "promote", "pause", "resume", "retry"] {
        let (code, text) = fixture.operate(0, &[operation, "authz"]).await;
        assert_ne!(code, 0, "{text}");
    }
    let (status, _) = post(&fixture, 0, "abort", "{}").await;
    assert_eq!(status, StatusCode::CONFLICT);
    let second = fixture.publish(&answering("second").await).await;
    fixture.answers("canary-0", &opas[0].1, "second").await;
    let epoch = fixture.step(0, 1).await["epoch"].as_u64().unwrap();
    let stale = format!("{{\"epoch\": {}}}", epoch - 1);
    assert_eq!(
        post(&fixture, 1, "abort", &stale).await.0,
        StatusCode::CONFLICT
    );
    let http = Http::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/rollouts/authz/abort", fixture.gates[0].admin);
    for (header, value) in [
        ("Content-Type", "text/plain"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Origin", "https://evil.example"),
        ("Host", "evil.example"),
    ] {
        let request = http.post(&url).header(header, value).body("{}");
        let request = match header {
            "Content-Type" => request,
            _ => request.header("Content-Type", "application/json"),
        };
        let status = request.send().await.unwrap().status();
        fixture.tell(&format!("a POST with {header}: {value} → {status}"));
        assert!(status.is_client_error(), "{header}: {value}: {status}");
    }
    assert_eq!(fixture.rollout(0).await["epoch"], epoch);

    // Whichever comes first, an abort is not undone by a promotion of the same plan.
    let body = json!({ "full": true, "epoch": epoch }).to_string();
    let abort = json!({ "epoch": epoch, "reason": "INC-7", "by": "on-call" }).to_string();
    let (promoted, aborted) = tokio::join!(
        post(&fixture, 0, "promote", &body),
        post(&fixture, 1, "abort", &abort),
    );
    fixture.tell(&format!(
        "promote --full: {}, abort: {}",
        promoted.0, aborted.0
    ));
    let statuses = [promoted.0, aborted.0];
    assert!(statuses.contains(&StatusCode::OK), "{statuses:?}");
    assert!(statuses.contains(&StatusCode::CONFLICT), "{statuses:?}");
    let (phase, answers) = match aborted.0 {
        StatusCode::OK => ("rolled_back", ["first", "first"]),
        _ => ("idle", ["second", "second"]),
    };
    fixture.all_in(phase).await;
    for ((name, opa), answer) in opas.iter().zip(answers) {
        fixture.answers(name, opa, answer).await;
    }
    let manifest = ["--manifest", &second];
    let (code, text) = fixture
        .operate(0, &[&["wait", "authz"], &manifest[..]].concat())
        .await;
    assert_eq!(code, i32::from(phase == "rolled_back"), "{text}");

    waits(&fixture).await;
    fixture.have_sent_no_server_errors().await;
}

/// The exit codes of `bundlegate rollout wait`.
async fn waits(fixture: &Fixture) {
    let third = fixture.publish(&answering("third").await).await;
    fixture.step(0, 1).await;
    let short = ["wait", "authz", "--manifest", &third, "--timeout", "3s"];
    let (code, text) = fixture.operate(0, &short).await;
    assert_eq!(code, 2, "{text}");
    let wait = ["wait", "authz", "--manifest", &third];
    let paused = async {
        fixture.operates(1, &["pause", "authz"]).await;
    };
    let ((code, text), ()) = tokio::join!(fixture.operate(0, &wait), paused);
    assert_eq!(code, 1, "{text}");
    fixture.operates(1, &["resume", "authz"]).await;
    fixture.all_in("progressing").await;
    let promoted = async {
        fixture.operates(1, &["promote", "authz", "--full"]).await;
    };
    let ((code, text), ()) = tokio::join!(fixture.operate(0, &wait), promoted);
    assert_eq!(code, 0, "{text}");
    let list = fixture.operates(0, &["list", "--json"]).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        list["rollouts"]["authz"]["stable"]["manifest"],
        third.as_str(),
        "{list:#}"
    );
}

/// A POST as a script sends it.
async fn post(
    fixture: &Fixture,
    replica: usize,
    operation: &str,
    body: &str,
) -> (StatusCode, String) {
    let gate = &fixture.gates[replica];
    let url = format!("http://{}/rollouts/authz/{operation}", gate.admin);
    let request = gate
        .http
        .post(url)
        .header("Content-Type", "application/json");
    let response = request.body(body.to_owned()).send().await.unwrap();
    let status = response.status();
    (status, response.text().await.unwrap())
}
