//! Bundles whose tag is chosen by `semver` or `filter_tags`, and suspended bundles.

mod lists;
mod live;
mod suspend;

use bundlegate::{
    oci::{Digest, Pick, TagFilter, TagOrder, TagRule},
    publish::OnMissing,
    watch::{Expect, OnOlder, Order},
};
use serde_json::{Value, json};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{HOUR, InProcess, Setup, TestGateway, bundle, error, tag},
    signing::Signer,
};

fn semver(range: &str) -> TagRule {
    TagRule::new(TagOrder::Version(range.parse().unwrap()), None)
}

/// Polls ten times a second.
fn choosing(rule: TagRule) -> Setup {
    Setup {
        rule: Some(rule),
        ..Setup::default()
    }
}

/// Pushes a version under its tag. It is listed only by [`FaultyRegistry::list_tags`].
fn push(registry: &FaultyRegistry, version: &str) -> Digest {
    push_as(registry, version, version)
}

fn push_as(registry: &FaultyRegistry, tag: &str, version: &str) -> Digest {
    let stated = [("org.opencontainers.image.version", version)];
    let (digest, _) = registry.put_annotated(tag, &bundle(version), &stated);
    digest
}

impl TestGateway<InProcess> {
    async fn until_serving(&self, digest: &Digest) -> Value {
        let what = format!("serves {digest}");
        self.until_shown(&what, |status| status["manifest"] == digest.to_string())
            .await
    }

    async fn until_failed(&self, class: &str) -> Value {
        let what = format!("a failure of class {class}");
        self.until_shown(&what, |status| status["last_failure"]["class"] == class)
            .await
    }

    async fn until_shown(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.status_when(self.name(), what, wanted).await
    }
}

fn message(status: &Value) -> &str {
    status["last_failure"]["message"].as_str().unwrap()
}

#[tokio::test]
async fn the_highest_tag_in_the_range_is_served_and_a_higher_one_wakes_a_long_poll() {
    let registry = FaultyRegistry::start().await;
    let [_, served, _] = ["1.0.0", "1.1.0", "2.0.0"].map(|version| push(&registry, version));
    registry.list_tags(&["latest", "v1", "1.1.0", "2.0.0", "1.0.0", "1.2.0-rc.1"]);
    let gate = TestGateway::with(&registry, choosing(semver("^1"))).await;
    let etag = tag(&gate.get("", 30).await);
    let status = gate.until_serving(&served).await;
    assert_eq!(
        status["chosen"],
        json!({
            "tag": "1.1.0", "rule": "semver ^1", "candidates": 2,
            "reason": "the highest of 2 versions in ^1",
        })
    );
    let reference = format!("{}/acme/authz", registry.address);
    assert_eq!(status["reference"], reference);
    assert_eq!(status["last_failure"], Value::Null);
    let held = gate.asking(&etag, 60).send();
    let pushed = async {
        gate.until_waiting(1).await;
        let digest = push(&registry, "1.2.0");
        registry.list_tags(&["1.2.0", "1.1.0", "2.0.0", "1.0.0"]);
        digest
    };
    let (answer, digest) = tokio::join!(held, pushed);
    assert_eq!(
        answer.unwrap().headers()["bundlegate-manifest"],
        digest.to_string()
    );
    assert_eq!(gate.shown().await["chosen"]["tag"], "1.2.0");
    // The same bytes under a higher tag are no other version.
    push_as(&registry, "1.3.0", "1.2.0");
    registry.list_tags(&["1.3.0", "1.2.0"]);
    let status = gate
        .until_shown("the tag is chosen", |status| {
            status["chosen"]["tag"] == "1.3.0"
        })
        .await;
    assert_eq!(status["manifest"], digest.to_string());
}

#[tokio::test]
async fn filter_tags_extracts_what_is_compared() {
    let registry = FaultyRegistry::start().await;
    let tags = [
        "main-ffe-20260102",
        "main-0a1-20260201",
        "main-000-9",
        "dev-1-99999999",
    ];
    let [_, newest, oldest, _] = tags.map(|tag| push(&registry, tag));
    registry.list_tags(&tags);
    for (pick, served, reason) in [
        (Pick::Highest, newest, "the highest of 3 numbers"),
        (Pick::Lowest, oldest, "the lowest of 3 numbers"),
    ] {
        let filter = TagFilter::new("^main-[0-9a-f]+-(?P<ts>[0-9]+)$", Some("$ts")).unwrap();
        let rule = TagRule::new(TagOrder::Numerical(pick), Some(filter));
        let gate = TestGateway::with(&registry, choosing(rule)).await;
        let status = gate.until_serving(&served).await;
        assert_eq!(status["chosen"]["reason"], reason);
    }
}

#[tokio::test]
async fn an_unsigned_highest_tag_neither_replaces_the_served_version_nor_leads_to_an_older_one() {
    let (registry, signer) = (FaultyRegistry::start().await, Signer::new());
    let served = push(&registry, "1.0.0");
    signer.sign_bundle(&registry, &served);
    registry.list_tags(&["1.0.0"]);
    let setup = || Setup {
        policy: signer.policy(),
        ..choosing(semver("^1"))
    };
    let gate = TestGateway::with(&registry, setup()).await;
    gate.until_serving(&served).await;
    let unsigned = push(&registry, "1.1.0");
    registry.list_tags(&["1.0.0", "1.1.0"]);
    let status = gate.until_failed("evidence").await;
    assert_eq!(status["manifest"], served.to_string());
    assert_eq!(status["last_failure"]["digest"], unsigned.to_string());
    assert_eq!(status["chosen"]["tag"], "1.1.0");
    // A machine without a history does not serve the older one in its place.
    let fresh = TestGateway::with(&registry, setup()).await;
    let status = fresh.until_failed("evidence").await;
    assert_eq!(
        (&status["state"], &status["manifest"]),
        (&json!("withdrawn"), &Value::Null)
    );
    signer.sign_bundle(&registry, &unsigned);
    gate.until_serving(&unsigned).await;
    fresh.until_serving(&unsigned).await;
}

#[tokio::test]
async fn a_deleted_tag_is_a_rollback_to_the_next_lower_one() {
    for (on_older, rolls_back) in [(OnOlder::Alarm, true), (OnOlder::Refuse, false)] {
        let registry = FaultyRegistry::start().await;
        let first = push(&registry, "1.0.0");
        registry.list_tags(&["1.0.0"]);
        let expect = Expect {
            on_older,
            order: Some(Order::Version { minimum: None }),
            ..Expect::default()
        };
        let setup = Setup {
            expect,
            ..choosing(semver("^1"))
        };
        let gate = TestGateway::with(&registry, setup).await;
        gate.until_serving(&first).await;
        let second = push(&registry, "1.1.0");
        registry.list_tags(&["1.0.0", "1.1.0"]);
        gate.until_serving(&second).await;
        registry.list_tags(&["1.0.0"]);
        registry.remove("manifests/1.1.0");
        if rolls_back {
            let status = gate.until_serving(&first).await;
            let older = status["older"].as_str().unwrap();
            assert!(older.contains("version 1.0.0 is older"), "{older}");
            assert_eq!(
                status["chosen"]["reason"],
                "the only version in ^1; 1.1.0 is gone"
            );
        } else {
            let status = gate.until_failed("defect").await;
            assert_eq!(status["manifest"], second.to_string());
            assert!(
                message(&status).contains("version 1.0.0 is older"),
                "{status}"
            );
        }
    }
}

#[tokio::test]
async fn on_missing_decides_when_no_tag_matches_any_more() {
    for (on_missing, state) in [
        (OnMissing::Keep, "serving"),
        (OnMissing::Withdraw, "withdrawn"),
    ] {
        let registry = FaultyRegistry::start().await;
        let served = push(&registry, "1.0.0");
        registry.list_tags(&["1.0.0"]);
        let mut setup = choosing(semver("^1"));
        setup.rules.on_missing = on_missing;
        let gate = TestGateway::with(&registry, setup).await;
        gate.until_serving(&served).await;
        registry.list_tags(&["2.0.0", "latest"]);
        registry.remove("manifests/1.0.0");
        let status = gate.until_failed("not_found").await;
        let expected = "(semver ^1): none of 2 tags matches";
        assert!(message(&status).ends_with(expected), "{status}");
        assert_eq!(
            (&status["state"], &status["chosen"]),
            (&json!(state), &Value::Null)
        );
        registry.remove("tags/list?n=1000");
        let gone = |status: &Value| message(status).contains("has no tags, or does not exist");
        gate.until_shown("the repository is gone", gone).await;
        let again = push(&registry, "1.0.1");
        registry.list_tags(&["1.0.1"]);
        gate.until_serving(&again).await;
    }
}

#[tokio::test]
async fn a_tag_that_states_another_version_than_its_manifest_is_refused_until_it_is_gone() {
    let registry = FaultyRegistry::start().await;
    let first = push(&registry, "1.0.0");
    registry.list_tags(&["1.0.0"]);
    let setup = || Setup {
        expect: Expect {
            order: Some(Order::Version { minimum: None }),
            ..Expect::default()
        },
        ..choosing(semver("^1"))
    };
    let gate = TestGateway::with(&registry, setup()).await;
    gate.until_serving(&first).await;
    // Whoever can move tags puts an old version above all that follow.
    assert_eq!(push_as(&registry, "1.99.0", "1.0.0"), first);
    registry.list_tags(&["1.0.0", "1.99.0"]);
    let expected = "the tag 1.99.0 is on version 1.0.0";
    for gate in [&gate, &TestGateway::with(&registry, setup()).await] {
        let status = gate.until_failed("defect").await;
        assert!(message(&status).contains(expected), "{status}");
    }
    let cold = TestGateway::with(&registry, setup()).await;
    cold.until_failed("defect").await;
    registry.list_tags(&["1.0.0"]);
    registry.remove("manifests/1.99.0");
    // The digest itself has no defect.
    cold.until_serving(&first).await;
    let status = gate
        .until_shown("the alarm ends", |status| {
            status["last_failure"] == Value::Null
        })
        .await;
    assert_eq!(status["manifest"], first.to_string());
}

#[tokio::test]
async fn with_order_version_the_extracted_part_of_a_tag_states_the_version() {
    let registry = FaultyRegistry::start().await;
    let first = push_as(&registry, "1.1.0-prod", "1.1.0");
    let expect = Expect {
        order: Some(Order::Version { minimum: None }),
        ..Expect::default()
    };
    registry.list_tags(&["1.1.0-prod"]);
    let filter = TagFilter::new("^(.+)-prod$", Some("$1")).unwrap();
    let rule = TagRule::new(TagOrder::Version("^1".parse().unwrap()), Some(filter));
    let setup = Setup {
        expect,
        ..choosing(rule)
    };
    let gate = TestGateway::with(&registry, setup).await;
    gate.until_serving(&first).await;
    push_as(&registry, "1.9.0-prod", "1.2.0");
    registry.list_tags(&["1.1.0-prod", "1.9.0-prod"]);
    let status = gate.until_failed("defect").await;
    let expected = "the tag 1.9.0 is on version 1.2.0";
    assert!(message(&status).contains(expected), "{status}");
}

#[tokio::test]
async fn confirm_within_looks_at_the_list_of_tags_as_well() {
    let registry = FaultyRegistry::start().await;
    let first = push(&registry, "1.0.0");
    registry.list_tags(&["1.0.0"]);
    let mut setup = choosing(semver("^1"));
    setup.rules.poll = HOUR;
    let gate = TestGateway::with(&registry, setup).await;
    gate.until_serving(&first).await;
    let second = push(&registry, "1.1.0");
    registry.list_tags(&["1.1.0", "1.0.0"]);
    // A client of a replica that has seen the push.
    let answer = gate.get("\"another\"", 60).await;
    assert_eq!(answer.headers()["bundlegate-manifest"], second.to_string());
}
