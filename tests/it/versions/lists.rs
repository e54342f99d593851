//! Lists of tags: pages, conditional requests, failures, and what bundles share.

use super::*;

const LIST: &str = "tags/list?n=1000";

#[tokio::test]
async fn pages_are_followed_and_unsorted_or_null_tags_are_read() {
    let registry = FaultyRegistry::start().await;
    let [_, served] = ["1.2.0", "1.10.0"].map(|version| push(&registry, version));
    let pages = [
        (
            LIST,
            json!({ "tags": ["2.0.0", "1.2.0", "../../../catalog", "a/b", "1.11.0?x", ""] }),
        ),
        ("tags/list?n=1000&last=a", json!({ "tags": null })),
        (
            "tags/list?n=1000&last=b",
            json!({ "tags": ["latest", "1.10.0", "1.2.0"] }),
        ),
    ];
    for (path, page) in &pages {
        registry.put(path, "application/json", page.to_string());
    }
    registry.link(pages[0].0, pages[1].0);
    registry.link(pages[1].0, pages[2].0);
    let gate = TestGateway::with(&registry, choosing(semver("^1"))).await;
    let status = gate.until_serving(&served).await;
    assert_eq!(status["chosen"]["candidates"], 2);
    assert!(registry.asked("catalog").is_empty());
}

#[tokio::test]
async fn a_list_with_validators_is_sent_again_only_when_it_has_changed() {
    for (header, value, condition) in [
        ("etag", "\"one\"", "if-none-match"),
        (
            "last-modified",
            "Sun, 29 Nov 2020 10:00:00 GMT",
            "if-modified-since",
        ),
    ] {
        let registry = FaultyRegistry::start().await;
        let [first, second] = ["1.0.0", "1.1.0"].map(|version| push(&registry, version));
        registry.list_tags(&["1.0.0"]);
        registry.fail("tags/list", 1, Fault::With(header, value.to_owned()));
        registry.fail("tags/list", usize::MAX, Fault::Status(304, Vec::new()));
        let gate = TestGateway::with(&registry, choosing(semver("^1"))).await;
        gate.until_serving(&first).await;
        let what = "three lists";
        crate::gateway::eventually(what, || registry.asked("tags/list").len() >= 3).await;
        let asked = registry.asked("tags/list");
        assert!(asked[0].headers.get(condition).is_none());
        assert_eq!(asked[2].headers[condition], value);
        assert_eq!(gate.shown().await["last_failure"], Value::Null);
        registry.heal();
        registry.list_tags(&["1.0.0", "1.1.0"]);
        gate.until_serving(&second).await;
    }
}

/// Makes the list fail, or lack its end.
type Break = fn(&FaultyRegistry);

#[tokio::test]
async fn a_list_that_fails_or_lacks_its_end_leaves_the_served_version() {
    fn fail(registry: &FaultyRegistry, fault: Fault) {
        registry.fail("tags/list", usize::MAX, fault);
    }
    let broken: [(&str, Break); 9] = [
        ("transient", |registry| {
            fail(registry, Fault::Status(503, Vec::new()))
        }),
        ("transient", |registry| {
            fail(registry, Fault::Refuse(200, "<html>"))
        }),
        ("transient", |registry| {
            fail(registry, Fault::Refuse(200, "{\"tags\": [1]}"))
        }),
        ("transient", |registry| fail(registry, Fault::Truncate(5))),
        ("transient", |registry| fail(registry, Fault::Endless)),
        ("transient", |registry| registry.link(LIST, LIST)),
        ("transient", |registry| {
            registry.link(LIST, "tags/list?n=1000&last=gone")
        }),
        ("denied", |registry| {
            fail(registry, Fault::Status(401, Vec::new()))
        }),
        ("rate_limited", |registry| {
            fail(
                registry,
                Fault::Status(429, vec![("retry-after", "1".to_owned())]),
            );
        }),
    ];
    for (number, (class, destroy)) in broken.into_iter().enumerate() {
        let registry = FaultyRegistry::start().await;
        let [first, second] = ["1.0.0", "1.1.0"].map(|version| push(&registry, version));
        registry.list_tags(&["1.0.0"]);
        let gate = TestGateway::with(&registry, choosing(semver("^1"))).await;
        gate.until_serving(&first).await;
        registry.list_tags(&["1.0.0", "1.1.0"]);
        destroy(&registry);
        let status = gate
            .until_shown("the list fails", |status| {
                status["last_failure"] != Value::Null
            })
            .await;
        assert_eq!(status["last_failure"]["class"], class, "{number}: {status}");
        assert!(
            message(&status).contains("(semver ^1): tags at"),
            "{number}: {status}"
        );
        assert_eq!(status["chosen"]["tag"], "1.0.0", "{number}");
        registry.heal();
        registry.unlink();
        gate.until_serving(&second).await;
    }
}

#[tokio::test]
async fn a_list_that_lacks_a_tag_which_still_exists_leads_to_no_older_version() {
    let registry = FaultyRegistry::start().await;
    let [first, second] = ["1.0.0", "1.1.0"].map(|version| push(&registry, version));
    registry.list_tags(&["1.0.0", "1.1.0"]);
    let mut setup = choosing(semver("^1"));
    setup.rules.on_missing = OnMissing::Withdraw;
    let gate = TestGateway::with(&registry, setup).await;
    gate.until_serving(&second).await;
    for listed in [&["1.0.0"][..], &[]] {
        registry.list_tags(listed);
        let status = gate.until_failed("transient").await;
        let expected = "lacks 1.1.0, which is still there";
        assert!(message(&status).contains(expected), "{status}");
        assert_eq!(status["manifest"], second.to_string());
        registry.list_tags(&["1.0.0", "1.1.0"]);
        gate.until_shown("the failure ends", |status| {
            status["last_failure"] == Value::Null
        })
        .await;
    }
    registry.list_tags(&["1.0.0"]);
    registry.remove("manifests/1.1.0");
    gate.until_serving(&first).await;
}

#[tokio::test]
async fn the_served_tag_is_asked_for_after_a_higher_one_was_refused_and_deleted() {
    let (registry, signer) = (FaultyRegistry::start().await, Signer::new());
    let [_, served] = ["1.0.0", "1.1.0"].map(|version| {
        let digest = push(&registry, version);
        signer.sign_bundle(&registry, &digest);
        digest
    });
    registry.list_tags(&["1.0.0", "1.1.0"]);
    let setup = Setup {
        policy: signer.policy(),
        ..choosing(semver("^1"))
    };
    let gate = TestGateway::with(&registry, setup).await;
    gate.until_serving(&served).await;
    push(&registry, "1.2.0");
    registry.list_tags(&["1.0.0", "1.1.0", "1.2.0"]);
    gate.until_failed("evidence").await;
    registry.list_tags(&["1.0.0"]);
    registry.remove("manifests/1.2.0");
    let status = gate.until_failed("transient").await;
    let expected = "lacks 1.1.0, which is still there";
    assert!(message(&status).contains(expected), "{status}");
    assert_eq!(status["manifest"], served.to_string());
}

#[tokio::test]
async fn a_mirror_that_still_has_a_deleted_tag_does_not_keep_it() {
    let [registry, mirror] = [FaultyRegistry::start().await, FaultyRegistry::start().await];
    let [first, second] = ["1.0.0", "1.1.0"].map(|version| push(&registry, version));
    registry.list_tags(&["1.0.0", "1.1.0"]);
    mirror.copy_from(&registry);
    let setup = Setup {
        mirrors: vec![(mirror.address.to_string(), mirror.options())],
        ..choosing(semver("^1"))
    };
    let gate = TestGateway::with(&registry, setup).await;
    gate.until_serving(&second).await;
    registry.list_tags(&["1.0.0"]);
    registry.remove("manifests/1.1.0");
    gate.until_serving(&first).await;
}

#[tokio::test]
async fn tags_that_are_listed_many_times_count_as_often() {
    let registry = FaultyRegistry::start().await;
    registry.list_tags(&vec!["1.0.0"; 60_000]);
    let (_, page) = registry.held(LIST).unwrap();
    let next = "tags/list?n=1000&last=a";
    registry.put(next, "application/json", page);
    registry.link(LIST, next);
    let gate = TestGateway::with(&registry, choosing(semver("^1"))).await;
    let status = gate.until_failed("transient").await;
    assert!(
        message(&status).contains("more than 100000 tags"),
        "{status}"
    );
}

/// A server whose `ETag` covers only the body answers 304 for such a page, though it has a
/// successor now.
#[tokio::test]
async fn a_last_page_that_is_full_is_always_asked_for_anew() {
    let registry = FaultyRegistry::start().await;
    let first = push(&registry, "1.0.0");
    let mut tags: Vec<_> = (0..999).map(|number| format!("build-{number}")).collect();
    tags.insert(0, "1.0.0".to_owned());
    let tags: Vec<_> = tags.iter().map(String::as_str).collect();
    registry.fail(
        "tags/list",
        usize::MAX,
        Fault::With("etag", "\"one\"".to_owned()),
    );
    for (count, is_conditional) in [(1000, false), (999, true)] {
        registry.list_tags(&tags[..count]);
        let gate = TestGateway::with(&registry, choosing(semver("^1"))).await;
        gate.until_serving(&first).await;
        let before = registry.asked("tags/list").len();
        let what = "two more lists";
        crate::gateway::eventually(what, || registry.asked("tags/list").len() >= before + 2).await;
        let last = registry.asked("tags/list").pop().unwrap();
        assert_eq!(last.headers.contains_key("if-none-match"), is_conditional);
        gate.suspend(true);
    }
}

#[tokio::test]
async fn a_listed_tag_that_names_nothing_is_passed_over_until_it_names_something() {
    let registry = FaultyRegistry::start().await;
    let first = push(&registry, "1.0.0");
    registry.list_tags(&["1.0.0", "1.1.0", "1.2.0"]);
    let gate = TestGateway::with(&registry, choosing(semver("^1"))).await;
    let status = gate.until_serving(&first).await;
    assert_eq!(
        status["chosen"]["reason"],
        "the only version in ^1; listed, but not there: 1.1.0, 1.2.0"
    );
    let third = push(&registry, "1.2.0");
    gate.until_serving(&third).await;
    // More than a few of them are a failure of the registry, which withdraws nothing.
    let many: Vec<_> = (0..20).map(|number| format!("1.3.{number}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).chain(["1.2.0"]).collect();
    registry.list_tags(&many);
    let status = gate.until_failed("transient").await;
    assert!(
        message(&status).contains("listed, but name nothing"),
        "{status}"
    );
    assert_eq!(status["manifest"], third.to_string());
}

#[tokio::test]
async fn bundles_of_one_repository_share_its_list() {
    let registry = FaultyRegistry::start().await;
    let [one, two] = ["1.0.0", "2.0.0"].map(|version| push(&registry, version));
    registry.list_tags(&["1.0.0", "2.0.0"]);
    let mut config = live::config(&registry);
    let bundles = (0..40).map(|number| {
        let bundle = json!({
            "reference": format!("{}/acme/authz", registry.address), "trust": "dev",
            "semver": format!("^{}", 1 + number % 2), "poll": "1h", "confirm_within": "3m",
        });
        (format!("bundle-{number}"), bundle)
    });
    config["bundles"] = bundles.collect();
    let gate = live::start(&config).await;
    for number in 0..40 {
        let digest = if number % 2 == 0 { &one } else { &two };
        gate.status_when(&format!("bundle-{number}"), "served", |status| {
            status["manifest"] == digest.to_string()
        })
        .await;
    }
    assert_eq!(registry.asked("tags/list").len(), 1);
}
