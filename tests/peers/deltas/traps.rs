//! What could leave an OPA with the wrong data, or have it download the same delta for ever.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{ballast, gateway, layout::Files, layout::Layout, opa_config, total};
use crate::support::{Opa, OpaVersion, TestGateway, http};

const NAME: &str = "authz";
const BOTH: [OpaVersion; 2] = [OpaVersion::Newest, OpaVersion::V0_70];

/// A layout with one bundle, the gateway that serves it, and an OPA of each version.
struct Fixture {
    layout: Layout,
    gateway: TestGateway,
    opas: Vec<Opa>,
    ballast: String,
}

impl Fixture {
    async fn start(delta: Value) -> Self {
        Self::with(delta, |_| {}).await
    }

    /// With a change of each OPA's configuration.
    async fn with(delta: Value, change: impl Fn(&mut Value)) -> Self {
        let (layout, names) = (Layout::new(), [NAME.to_owned()]);
        let ballast = ballast(&mut fastrand::Rng::with_seed(1), 8000);
        let mut fixture = Self {
            gateway: {
                layout.publish([(NAME.to_owned(), files(&ballast, "first", "1", &["authz"]))]);
                gateway(&layout, &names, Some(delta)).await
            },
            layout,
            opas: Vec::new(),
            ballast,
        };
        for version in BOTH {
            let mut config = opa_config(&fixture.gateway, &names);
            change(&mut config);
            fixture.opas.push(Opa::start(version, &config).await);
        }
        fixture.answers("first", "1").await;
        fixture
    }

    fn publish(&self, answer: &str, user: &str) {
        self.publish_files(files(&self.ballast, answer, user, &["authz"]));
    }

    fn publish_files(&self, files: Files) {
        self.layout.publish([(NAME.to_owned(), files)]);
    }

    /// Waits until each OPA answers by this policy and these data.
    async fn answers(&self, answer: &str, user: &str) {
        for opa in &self.opas {
            opa.decides("authz/answer", &json!(format!("{answer} {user}")))
                .await;
        }
    }

    async fn sent(&self) -> f64 {
        total(&self.gateway, "bundlegate_delta_responses_total", "sent").await
    }

    async fn bodies(&self) -> f64 {
        let sample = format!(r#"bundlegate_http_requests_total{{bundle="{NAME}",code="200"}}"#);
        self.gateway.metric(&sample).await
    }

    async fn not_computed(&self, reason: &str) -> f64 {
        let label = format!("outcome=\"{reason}\"");
        total(&self.gateway, "bundlegate_deltas_total", &label).await
    }
}

fn files(ballast: &str, answer: &str, user: &str, roots: &[&str]) -> Files {
    let policy = format!(
        "package authz\n\nimport rego.v1\n\nanswer := concat(\" \", [\"{answer}\", data.authz.users[count(data.authz.users) - 1].name])\n"
    );
    let data = json!({
        "ballast": ballast,
        "users": [{ "name": "0", "more": ballast }, { "name": user, "more": 1 }],
    });
    let manifest = json!({ "revision": format!("{answer}-{user}"), "roots": roots });
    Files::default()
        .with(".manifest", &manifest.to_string())
        .with("authz/policy.rego", &policy)
        .with("authz/data.json", &data.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_an_array_and_back_reaches_opa_by_deltas() {
    let fixture = Fixture::start(json!({ "history": 4 })).await;
    // A, B, A, and so on.
    for (round, user) in ["2", "1", "2", "3", "1"].into_iter().enumerate() {
        fixture.publish("first", user);
        fixture.answers("first", user).await;
        assert_eq!(fixture.sent().await, (2 * (round + 1)) as f64, "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_policy_or_roots_is_sent_as_a_whole() {
    let fixture = Fixture::start(json!({ "history": 4 })).await;
    fixture.publish("second", "2");
    fixture.answers("second", "2").await;
    fixture.publish_files(files(&fixture.ballast, "second", "3", &["authz", "more"]));
    fixture.answers("second", "3").await;
    assert_eq!(fixture.sent().await, 0.0);
    assert!(fixture.not_computed("policy").await >= 1.0);
    assert!(fixture.not_computed("roots").await >= 1.0);
    // The next change of data has a delta again.
    fixture.publish_files(files(&fixture.ballast, "second", "4", &["authz", "more"]));
    fixture.answers("second", "4").await;
    assert_eq!(fixture.sent().await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opa_that_persists_bundles_refuses_one_delta_and_gets_whole_bundles_from_then_on() {
    let fixture = Fixture::with(json!({ "history": 4 }), |config| {
        config["bundles"][NAME]["persist"] = json!(true);
        config["persistence_directory"] = json!("./persisted");
    })
    .await;
    let before = fixture.bodies().await;
    for user in ["2", "3", "4"] {
        fixture.publish("first", user);
        fixture.answers("first", user).await;
    }
    for opa in &fixture.opas {
        opa.fails_with("persisting delta bundle to disk is not supported")
            .await;
    }
    // Each OPA: one delta, and a whole bundle for each version.
    assert_eq!(fixture.sent().await, 2.0);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(fixture.bodies().await - before, 8.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_history_is_sent_as_a_whole() {
    // After a restart the gateway knows no earlier version.
    let mut fixture = Fixture::start(json!({ "history": 1 })).await;
    fixture.gateway.restart().await;
    fixture.publish("first", "2");
    fixture.answers("first", "2").await;
    let first_tag = tag_of(&fixture, "first", "1");
    for user in ["3", "4"] {
        fixture.publish("first", user);
        fixture.answers("first", user).await;
    }
    let (status, base, etag) = ask(&fixture.gateway, &first_tag).await;
    assert_eq!((status, base), (200, None), "{etag}");
    // One that the history has.
    let (status, base, _) = ask(&fixture.gateway, &tag_of(&fixture, "first", "3")).await;
    assert_eq!((status, base), (200, Some(tag_of(&fixture, "first", "3"))));
}

/// Nobody runs the versions before the last one as long as all OPAs follow.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_is_compared_once_clients_run_it_and_all_of_them_get_its_delta() {
    let fixture = Fixture::start(json!({ "history": 4 })).await;
    for user in ["2", "3", "4"] {
        fixture.publish("first", user);
        fixture.answers("first", user).await;
    }
    let computed = async || {
        let outcome = "outcome=\"computed\"";
        total(&fixture.gateway, "bundlegate_deltas_total", outcome).await
    };
    assert_eq!(computed().await, 3.0);
    let oldest = tag_of(&fixture, "first", "1");
    let names: Vec<_> = (0..20).map(|client| format!("client {client}")).collect();
    let clients = names
        .iter()
        .map(|name| ask_as(name, &fixture.gateway, &oldest));
    for (status, base, etag) in futures_util::future::join_all(clients).await {
        assert_eq!((status, base.as_ref()), (200, Some(&oldest)));
        assert_eq!(etag, tag_of(&fixture, "first", "4"));
    }
    assert_eq!(computed().await, 4.0);
}

/// It names no version then, and gets the whole bundle.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_name_gets_deltas_again_after_its_restart() {
    let fixture = Fixture::start(json!({ "history": 4 })).await;
    let tag = |user: &str| tag_of(&fixture, "first", user);
    let ask = async |runs: Option<&str>| {
        let mut request = http()
            .get(format!("{}/bundles/{NAME}", fixture.gateway.url))
            .header("bundlegate-client", "restarted")
            .header("prefer", "modes=snapshot,delta");
        if let Some(user) = runs {
            request = request.header("if-none-match", tag(user));
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.headers().contains_key("bundlegate-delta-base")
    };
    let publish = async |user: &str| {
        fixture.publish("first", user);
        fixture.answers("first", user).await;
    };
    publish("2").await;
    assert!(ask(Some("1")).await);
    publish("3").await;
    assert!(!ask(None).await, "it has started anew");
    publish("4").await;
    assert!(ask(Some("3")).await);
    assert!(!ask(Some("3")).await, "it has refused the delta");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_history_there_are_no_deltas() {
    let fixture = Fixture::start(json!({ "history": 0 })).await;
    for user in ["2", "3"] {
        fixture.publish("first", user);
        fixture.answers("first", user).await;
    }
    assert_eq!(fixture.sent().await, 0.0);
    assert_eq!(
        total(&fixture.gateway, "bundlegate_deltas_total", "").await,
        0.0
    );
}

/// Only the bytes of the tarball have changed: OPA would take an empty patch for an empty bundle.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_in_other_bytes_is_not_sent() {
    let fixture = Fixture::start(json!({ "history": 4 })).await;
    let before = fixture.bodies().await;
    let again =
        files(&fixture.ballast, "first", "1", &["authz"]).with("README", "Not read by OPA.");
    fixture.publish_files(again);
    crate::support::poll_until("the comparison", async || {
        (fixture.not_computed("no_change").await > 0.0).then_some(())
    })
    .await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(fixture.bodies().await, before);
    fixture.answers("first", "1").await;
    // A client that does not wait gets 304 with its own tag.
    let tag = tag_of(&fixture, "first", "1");
    let request = http().get(format!("{}/bundles/{NAME}", fixture.gateway.url));
    let response = request.header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(response.status(), 304);
    assert_eq!(response.headers()["etag"].to_str().unwrap(), tag);
    // A later change reaches the OPAs by a delta from the version that they kept.
    fixture.publish("first", "2");
    fixture.answers("first", "2").await;
    assert_eq!(fixture.sent().await, 2.0);
}

/// The entity tag of a version: the base64url SHA-256 of its tarball.
fn tag_of(fixture: &Fixture, answer: &str, user: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use sha2::{Digest as _, Sha256};
    let tarball = files(&fixture.ballast, answer, user, &["authz"]).tarball();
    format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha256::digest(tarball)))
}

async fn ask(gateway: &TestGateway, tag: &str) -> (u16, Option<String>, String) {
    ask_as("a client", gateway, tag).await
}

/// The status, the base of the delta and the tag of a response to a client that runs this version, and that its
/// `User-Agent` tells from others.
async fn ask_as(client: &str, gateway: &TestGateway, tag: &str) -> (u16, Option<String>, String) {
    let request = http()
        .get(format!("{}/bundles/{NAME}", gateway.url))
        .header("user-agent", client)
        .header("prefer", "modes=snapshot,delta;wait=5")
        .header("if-none-match", tag);
    let response = request.send().await.unwrap();
    // No cache may give a delta to another client.
    let is_delta = response.headers().contains_key("bundlegate-delta-base");
    let is_stored = response
        .headers()
        .get("cache-control")
        .is_none_or(|value| value != "no-store");
    assert_eq!(is_delta, !is_stored);
    assert_eq!(is_delta, response.headers().contains_key("vary"));
    let header = |name: &str| {
        let value = response.headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    (
        response.status().as_u16(),
        header("bundlegate-delta-base"),
        header("etag").unwrap_or_default(),
    )
}
