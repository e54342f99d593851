//! Bundles that are added when a client asks for them.

use std::time::Duration;

use bundlegate::publish::OnMissing;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    faulty::FaultyRegistry,
    gateway::{HOUR, READER, Setup, TestGateway, bundle, clients, error, eventually, tag, wishing},
    shared::poll_until,
};

const IDLE: &str = "1h";

type Gateway = TestGateway<crate::gateway::InProcess>;

async fn gateway(
    registry: &FaultyRegistry,
    pattern: (&'static str, &'static str, usize),
) -> Gateway {
    TestGateway::with(registry, setup(pattern)).await
}

/// Polls once an hour, so that each request to the registry has a cause.
fn setup(pattern: (&'static str, &'static str, usize)) -> Setup {
    let mut setup = Setup {
        pattern: Some(pattern),
        ..Setup::default()
    };
    setup.rules.poll = HOUR;
    setup
}

async fn get(gate: &Gateway, path: &str) -> Response {
    gate.request(Method::GET, path).send().await.unwrap()
}

/// The error that a client with a token gets.
async fn refusal(gate: &Gateway, path: &str) -> Value {
    let request = gate.request(Method::GET, path).bearer_auth(READER);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    error(response).await
}

/// What of a response does not depend on its time.
async fn on_the_wire(response: Response) -> (StatusCode, Vec<(String, String)>, String) {
    let headers = response.headers().iter();
    let headers = headers
        .filter(|(name, _)| *name != "date")
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    (response.status(), headers, response.text().await.unwrap())
}

#[tokio::test]
async fn a_bundle_is_watched_once_a_client_asks_for_it() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("configured"));
    registry.put_artifact("red", &bundle("red"));
    registry.put_artifact("blue", &bundle("blue"));
    let mut setup = setup(("teams/{tag}", IDLE, 10));
    setup.rules.poll = Duration::from_millis(100);
    let gate = TestGateway::with(&registry, setup).await;
    assert_eq!(gate.get("", 0).await.status(), StatusCode::OK);
    assert!(registry.asked("manifests/red").is_empty());
    for path in [
        "/bundles/teams/red",
        "/bundle/teams/red",
        "/teams/red",
        "/teams/%72ed",
    ] {
        let response = get(&gate, path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.bytes().await.unwrap(), bundle("red"), "{path}");
    }
    let red = tag(&get(&gate, "/teams/red").await);
    let held = wishing(gate.request(Method::GET, "/teams/red"), &red, 60);
    let held = tokio::spawn(async move { held.send().await.unwrap() });
    let status = gate
        .status_when("teams/red", "a held request", |status| {
            status["waiters"] == 1
        })
        .await;
    assert_eq!(status["pattern"], "teams/{tag}");
    assert_eq!(status["state"], "serving");
    registry.put_artifact("red", &bundle("scarlet"));
    assert_eq!(
        held.await.unwrap().bytes().await.unwrap(),
        bundle("scarlet")
    );
    assert_eq!(get(&gate, "/teams/blue").await.status(), StatusCode::OK);
    // All bundles of a pattern have one label, and no series of versions.
    let metrics = gate.admin_text("/metrics").await;
    let series = r#"bundlegate_bundle_state{bundle="teams/{tag}",state="serving"} 2"#;
    assert!(metrics.contains(series), "{metrics}");
    assert!(!metrics.contains("teams/red"), "{metrics}");
    assert!(
        !metrics.contains(r#"bundlegate_bundle_info{bundle="teams/"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn ten_thousand_names_of_a_client_that_may_read_ten_of_them_start_ten_watchers() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("configured"));
    for team in 0..10 {
        registry.put_artifact(&format!("own-{team}"), &bundle("own"));
    }
    registry.put_artifact("other", &bundle("other"));
    let clients = clients(&[("teams/own-*", Some("token")), ("**", Some("all"))]);
    let gate = TestGateway::with(
        &registry,
        Setup {
            clients: Some(clients),
            ..setup(("teams/{tag}", IDLE, 100))
        },
    )
    .await;
    let ask = |path: String, token: &str| {
        let request = gate.request(Method::GET, &path).bearer_auth(token);
        async { request.send().await.unwrap() }
    };
    // Another client is served a bundle that this one may not read.
    assert_eq!(ask("/teams/other".into(), "all").await.status(), 200);
    let unknown = on_the_wire(ask("/no/pattern/has/this".into(), "token").await).await;
    assert_eq!(unknown.0, StatusCode::NOT_FOUND);
    for name in [
        "teams/other",
        "teams/never",
        "authz/main",
        "teams/A",
        "teams/own-/x",
    ] {
        let response = on_the_wire(ask(format!("/bundles/{name}"), "token").await).await;
        assert_eq!(response, unknown, "{name}");
    }
    let before = registry.asked("").len();
    for name in 0..10_000 {
        let path = match name % 1000 {
            0 => format!("/teams/own-{}", name / 1000),
            _ => format!("/teams/foreign-{name}"),
        };
        let expected = if name % 1000 == 0 { 200 } else { 404 };
        assert_eq!(
            ask(path.clone(), "token").await.status(),
            expected,
            "{path}"
        );
    }
    let requests = registry.asked("").len() - before;
    println!("10 000 names, ten of them readable: {requests} requests to the registry");
    // For each of the ten the manifest; all have the same layer.
    assert!((10..=40).contains(&requests), "{requests}");
    assert!(registry.asked("foreign").is_empty());
    // A wrong token learns nothing either.
    let refused = on_the_wire(ask("/teams/own-1".into(), "wrong").await).await;
    assert_eq!(
        refused,
        on_the_wire(ask("/teams/x".into(), "wrong").await).await
    );
}

#[tokio::test]
async fn a_client_that_may_read_a_bundle_learns_why_there_is_none_and_asking_again_costs_nothing() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("configured"));
    registry.put_artifact("broken", b"no tarball");
    let gate = gateway(&registry, ("teams/{tag}", IDLE, 10)).await;
    let mut bodies: Vec<Value> = Vec::new();
    for name in ["missing", "broken"] {
        let path = format!("/teams/{name}");
        let first = refusal(&gate, &path).await;
        assert_eq!(first["reason"], "withdrawn", "{first}");
        let requests = registry.asked(name).len();
        for _ in 0..100 {
            assert_eq!(refusal(&gate, &path).await, first);
        }
        // An anonymous client is told neither the registry nor the reason.
        let anonymous = error(get(&gate, &path).await).await;
        let told = anonymous["message"].as_str().unwrap();
        assert!(
            told.contains("/status of the admin listener")
                && !told.contains(name)
                && !told.contains(&registry.address.to_string()),
            "{told}"
        );
        assert_eq!(registry.asked(name).len(), requests);
        bodies.push(first);
    }
    let message = |index: usize| bodies[index]["message"].as_str().unwrap();
    assert!(message(0).contains("missing"), "{bodies:?}");
    assert!(message(1).contains("gzip"), "{bodies:?}");
}

#[tokio::test]
async fn a_pattern_has_at_most_max_bundles_and_failures_make_room_for_others() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("configured"));
    for name in ["a", "b", "c"] {
        registry.put_artifact(name, &bundle(name));
    }
    let gate = gateway(&registry, ("teams/{tag}", IDLE, 2)).await;
    assert_eq!(get(&gate, "/teams/a").await.status(), StatusCode::OK);
    for name in 0..50 {
        let response = error(get(&gate, &format!("/teams/missing-{name}")).await).await;
        assert_eq!(response["reason"], "withdrawn", "{response}");
    }
    let requests = registry.asked("missing").len();
    for name in 0..49 {
        let response = error(get(&gate, &format!("/teams/missing-{name}")).await).await;
        assert_eq!(response["reason"], "withdrawn", "{response}");
    }
    assert_eq!(
        registry.asked("missing").len(),
        requests,
        "failures are remembered"
    );
    assert_eq!(get(&gate, "/teams/b").await.status(), StatusCode::OK);
    let refused = refusal(&gate, "/teams/c").await;
    assert_eq!(refused["reason"], "pending");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("patterns[].max"), "{message}");
    assert!(registry.asked("manifests/c").is_empty());
    for name in ["a", "b"] {
        let response = get(&gate, &format!("/teams/{name}")).await;
        assert_eq!(response.status(), StatusCode::OK, "{name}");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_names_that_do_not_exist_keeps_no_others_out() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("configured"));
    registry.put_artifact("real", &bundle("real"));
    let gate = gateway(&registry, ("teams/{tag}", IDLE, 2)).await;
    let mut held = Vec::new();
    for name in ["missing-1", "missing-2"] {
        let request = wishing(
            gate.request(Method::GET, &format!("/teams/{name}")),
            "\"x\"",
            120,
        );
        held.push(tokio::spawn(async move { request.send().await.unwrap() }));
        let name = format!("teams/{name}");
        gate.status_when(&name, "missing", |status| {
            status["last_failure"]["class"] == "not_found"
        })
        .await;
    }
    assert_eq!(
        get(&gate, "/teams/real").await.status(),
        StatusCode::OK,
        "there is room"
    );
    // A request for a name that made room is answered with the failure that is remembered.
    let (first, _, others) = futures_util::future::select_all(held).await;
    assert_eq!(error(first.unwrap()).await["reason"], "withdrawn");
    others.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_bundle_that_no_client_asks_for_is_removed_and_one_that_is_waited_for_is_not() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("configured"));
    registry.put_artifact("idle", &bundle("idle"));
    registry.put_artifact("held", &bundle("held"));
    let gate = gateway(&registry, ("teams/{tag}", "1s", 10)).await;
    let etag = tag(&get(&gate, "/teams/held").await);
    let held = wishing(gate.request(Method::GET, "/teams/held"), &etag, 120);
    let held = tokio::spawn(async move { held.send().await.unwrap() });
    assert_eq!(get(&gate, "/teams/idle").await.status(), StatusCode::OK);
    poll_until("the idle bundle is removed", async || {
        gate.bundle_status("teams/idle")
            .await
            .is_null()
            .then_some(())
    })
    .await;
    assert_eq!(gate.bundle_status("teams/held").await["state"], "serving");
    assert!(!held.is_finished());
    let requests = registry.asked("manifests/idle").len();
    assert_eq!(get(&gate, "/teams/idle").await.status(), StatusCode::OK);
    assert!(registry.asked("manifests/idle").len() > requests);
    held.abort();
    poll_until("the other one as well", async || {
        gate.bundle_status("teams/held")
            .await
            .is_null()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_configured_name_wins_and_bundles_on_demand_do_not_delay_readiness() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("configured"));
    registry.put_artifact("main", &bundle("by the pattern"));
    let mut setup = setup(("authz/{tag}", IDLE, 10));
    setup.rules.on_missing = OnMissing::Keep;
    let gate = TestGateway::with(&registry, setup).await;
    let response = get(&gate, "/bundles/authz/main").await;
    assert_eq!(response.bytes().await.unwrap(), bundle("configured"));
    eventually("it is ready", || gate.state() == "serving").await;
    assert_eq!(
        gate.admin_response("/readyz").await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_thousand_cold_clients_of_one_name_share_one_watcher() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("configured"));
    registry.put_artifact("red", &bundle("red"));
    let gate = TestGateway::with(
        &registry,
        Setup {
            max_connections: 2000,
            ..setup(("teams/{tag}", IDLE, 10))
        },
    )
    .await;
    let requests = (0..1000).map(|_| get(&gate, "/teams/red"));
    for response in futures_util::future::join_all(requests).await {
        assert_eq!(response.status(), StatusCode::OK);
    }
    assert_eq!(registry.asked("GET /v2/acme/authz/manifests/red").len(), 1);
}
