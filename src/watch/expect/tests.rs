use std::sync::LazyLock;

use super::*;
use crate::bundle::Revision;

static DIGEST: LazyLock<Digest> = LazyLock::new(|| Digest::sha256(b"this one"));

/// Facts, one changed at a time.
struct Given {
    annotations: BTreeMap<String, String>,
    signed_at: Option<Timestamp>,
    tag: Option<&'static str>,
    /// `None` before the download.
    bundle: Option<BundleManifest>,
}

impl Given {
    fn annotated(annotations: &[(&str, &str)]) -> Self {
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Self {
            annotations,
            signed_at: None,
            tag: Some("live"),
            bundle: None,
        }
    }

    fn version(version: &str) -> Self {
        Self::annotated(&[(VERSION, version)])
    }

    fn tagged(self, tag: &'static str) -> Self {
        Self {
            tag: Some(tag),
            ..self
        }
    }

    fn opened(self, revision: &str, roots: &[&str]) -> Self {
        let roots = roots.iter().map(|root| (*root).to_owned()).collect();
        let revision = Revision::from(revision.to_owned());
        Self {
            bundle: Some(BundleManifest {
                revision,
                roots,
                ..BundleManifest::default()
            }),
            ..self
        }
    }

    fn facts(&self) -> Facts<'_> {
        let Self {
            annotations,
            signed_at,
            tag,
            bundle,
        } = self;
        Facts {
            digest: &DIGEST,
            annotations,
            signed_at: *signed_at,
            tag: *tag,
            bundle: bundle.as_ref(),
        }
    }
}

fn refusing(order: Order) -> Expect {
    Expect {
        order: Some(order),
        on_older: OnOlder::Refuse,
        ..Expect::default()
    }
}

fn versions(minimum: Option<&str>) -> Expect {
    refusing(Order::Version {
        minimum: minimum.map(|minimum| minimum.parse().unwrap()),
    })
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// What `expect` has against it, in one word.
fn verdict(expect: &Expect, given: &Given, past: &History) -> &'static str {
    expect
        .check(&given.facts(), past)
        .map_or_else(|unmet| unmet.label(), |()| "ok")
}

fn having_served(version: &str) -> History {
    let position = Position::Version(version.parse().unwrap());
    History::default().after_serving(&Digest::sha256(b"another"), Some(position), OnOlder::Refuse)
}

#[test]
fn nothing_is_expected_by_default_but_a_digest_that_comes_back_is_noticed() {
    let (expect, given) = (Expect::default(), Given::annotated(&[]).opened("", &[""]));
    assert_eq!(verdict(&expect, &given, &History::default()), "ok");
    let past = History::default().after_serving(&DIGEST, None, OnOlder::Alarm);
    assert_eq!(
        expect.older(&given.facts(), &past),
        Ok(None),
        "it never went away"
    );
    let newest = Digest::sha256(b"another");
    let past = past.after_serving(&newest, None, OnOlder::Alarm);
    let older = Older::Digest {
        digest: DIGEST.clone(),
        newest,
    };
    assert_eq!(expect.older(&given.facts(), &past), Ok(Some(older)));
    assert_eq!(
        verdict(&expect, &given, &past),
        "ok",
        "an alarm is no refusal"
    );
    let refuse = Expect {
        on_older: OnOlder::Refuse,
        ..expect
    };
    assert_eq!(verdict(&refuse, &given, &past), "older");
}

#[test]
fn annotations_are_there_with_exactly_the_expected_values() {
    let expect = |key: &str, value: &str| Expect {
        annotations: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        ..Expect::default()
    };
    let given = Given::annotated(&[("title", "authz"), ("other", "x")]);
    for (key, value, outcome) in [
        ("title", "authz", "ok"),
        ("title", "Authz", "expect_annotations"),
        ("title", "authz ", "expect_annotations"),
        ("title", "", "expect_annotations"),
        ("Title", "authz", "expect_annotations"),
        ("missing", "", "expect_annotations"),
    ] {
        assert_eq!(
            verdict(&expect(key, value), &given, &History::default()),
            outcome,
            "{key}={value:?}"
        );
    }
    let unmet = expect("source", "acme")
        .check(&given.facts(), &History::default())
        .unwrap_err();
    assert_eq!(
        unmet.to_string(),
        r#"annotation source is missing, not "acme" as expected"#
    );
}

#[test]
fn roots_lie_within_the_expected_ones_by_whole_segments() {
    for (expected, roots, outcome) in [
        (&["authz"][..], &["authz"][..], "ok"),
        (&["authz"], &["authz/users", "authz/options"], "ok"),
        (&["authz"], &["authzx"], "expect_roots"),
        (&["authz/users"], &["authz"], "expect_roots"),
        (&["authz"], &["authz", "system"], "expect_roots"),
        (&["authz"], &[""], "expect_roots"),
        (&["authz", "users"], &["users/x"], "ok"),
        (&[""], &[""], "ok"),
        (&[""], &["anything"], "ok"),
        // It claims nothing, and OPA lets it have nothing.
        (&["authz"], &[], "ok"),
        (&[], &[""], "ok"),
    ] {
        let expect = Expect {
            roots: expected.iter().map(|root| (*root).to_owned()).collect(),
            ..Expect::default()
        };
        let given = Given::annotated(&[]).opened("", roots);
        assert_eq!(
            verdict(&expect, &given, &History::default()),
            outcome,
            "{roots:?} within {expected:?}"
        );
    }
    // A bundle without `.manifest`.
    let expect = Expect {
        roots: vec!["authz".to_owned()],
        ..Expect::default()
    };
    let given = Given {
        bundle: Some(BundleManifest::default()),
        ..Given::annotated(&[])
    };
    let unmet = expect
        .check(&given.facts(), &History::default())
        .unwrap_err();
    assert_eq!(
        unmet.to_string(),
        r#"root "" is outside expect.roots, authz"#
    );
}

#[test]
fn a_version_tag_is_on_the_version_that_the_manifest_states() {
    for (tag, version, outcome) in [
        ("live", "1.4.0", "ok"),
        ("1.4.0", "1.4.0", "ok"),
        ("v1.4.0", "1.4.0", "ok"),
        ("1.4.0", "v1.4.0", "ok"),
        ("1.4.0", "1.3.9", "expect_version"),
        ("1.4.0", "1.4.1", "expect_version"),
        ("1.4.0", "1.4.0-rc.1", "expect_version"),
        ("1.4", "1.4.9", "ok"),
        ("v1", "2.0.0", "expect_version"),
        ("live", "one", "expect_version"),
        ("live", "", "expect_version"),
    ] {
        let given = Given::version(version).tagged(tag);
        assert_eq!(
            verdict(&versions(None), &given, &History::default()),
            outcome,
            "{tag} on {version}"
        );
    }
    let unmet = versions(None).check(
        &Given::version("1.3.9").tagged("v1.4.0").facts(),
        &History::default(),
    );
    assert_eq!(
        unmet.unwrap_err().to_string(),
        "the tag v1.4.0 is on version 1.3.9"
    );
}

#[test]
fn the_revision_states_the_version_where_the_manifest_does_not() {
    let untold = || Given::annotated(&[]).tagged("1.4.0");
    for (given, outcome) in [
        (untold(), "ok"), // Not fetched yet.
        (untold().opened("1.4.0", &[]), "ok"),
        (untold().opened("1.3.0", &[]), "expect_version"),
        (untold().opened("", &[]), "expect_version"),
        (untold().opened("abc123", &[]), "expect_version"),
        (
            Given::version("1.4.0")
                .tagged("1.4.0")
                .opened("abc123", &[]),
            "ok",
        ),
        (
            Given::version("nonsense")
                .tagged("1.4.0")
                .opened("1.4.0", &[]),
            "expect_version",
        ),
    ] {
        assert_eq!(
            verdict(&versions(None), &given, &History::default()),
            outcome,
            "{:?}",
            given.facts()
        );
    }
}

#[test]
fn versions_only_go_up() {
    for (served, version, outcome) in [
        ("1.4.0", "1.4.0", "ok"),
        ("1.4.0", "1.10.0", "ok"),
        ("1.4.0", "1.3.9", "older"),
        ("1.4.0", "1.4.0-rc.1", "older"),
    ] {
        let (past, given) = (having_served(served), Given::version(version));
        assert_eq!(
            verdict(&versions(None), &given, &past),
            outcome,
            "{version} after {served}"
        );
        let revised = Given::annotated(&[]).opened(version, &[]);
        assert_eq!(
            verdict(&versions(None), &revised, &past),
            outcome,
            "{version} after {served}, by its revision"
        );
        for on_older in [OnOlder::Serve, OnOlder::Alarm] {
            assert_eq!(
                verdict(
                    &Expect {
                        on_older,
                        ..versions(None)
                    },
                    &given,
                    &past
                ),
                "ok"
            );
        }
    }
}

#[test]
fn a_minimum_holds_where_nothing_was_served_yet() {
    for (minimum, version, outcome) in [
        ("1.4.0", "1.4.0", "ok"),
        ("1.4.0", "1.3.9", "older"),
        ("1.4.0", "1.4.0-rc.1", "older"),
    ] {
        let expect = versions(Some(minimum));
        assert_eq!(
            verdict(&expect, &Given::version(version), &History::default()),
            outcome,
            "{version}"
        );
    }
    // It doesn't lower what was reached.
    assert_eq!(
        verdict(
            &versions(Some("1.0.0")),
            &Given::version("1.3.0"),
            &having_served("1.4.0")
        ),
        "older"
    );
    let unmet = versions(Some("1.4.0"))
        .check(&Given::version("1.3.9").facts(), &History::default())
        .unwrap_err();
    assert_eq!(
        unmet.to_string(),
        "version 1.3.9 is older than the minimum, version 1.4.0"
    );
}

#[test]
fn times_of_creation_only_go_up_and_are_stated() {
    let expect = |minimum| refusing(Order::Created { minimum });
    let past = History::default().after_serving(
        &Digest::sha256(b"another"),
        Some(Position::Created("2026-01-01T00:00:00Z".parse().unwrap())),
        OnOlder::Refuse,
    );
    for (created, outcome) in [
        ("2026-01-01T00:00:00Z", "ok"),
        ("2026-01-01T01:00:00+02:00", "older"),
        ("2025-12-31T23:59:59Z", "older"),
        ("yesterday", "expect_created"),
        ("", "expect_created"),
    ] {
        let given = Given::annotated(&[(CREATED, created)]);
        assert_eq!(verdict(&expect(None), &given, &past), outcome, "{created}");
    }
    assert_eq!(
        verdict(&expect(None), &Given::annotated(&[]), &History::default()),
        "expect_created"
    );
    let given = Given::annotated(&[(CREATED, "1970-01-01T00:00:00Z")]);
    assert_eq!(
        verdict(&expect(Some(time(1))), &given, &History::default()),
        "older"
    );
}

#[test]
fn times_of_signing_only_go_up_and_are_proved() {
    let signed = |second| Given {
        signed_at: Some(time(second)),
        ..Given::annotated(&[])
    };
    let expect = refusing(Order::SignedTime {
        minimum: Some(time(100)),
    });
    let past = History::default().after_serving(
        &Digest::sha256(b"another"),
        Some(Position::Signed(time(200))),
        OnOlder::Refuse,
    );
    for (second, outcome) in [(99, "older"), (199, "older"), (200, "ok"), (201, "ok")] {
        assert_eq!(
            verdict(&expect, &signed(second), &past),
            outcome,
            "{second}"
        );
    }
    assert_eq!(
        verdict(&expect, &Given::annotated(&[]), &past),
        "expect_signed_time"
    );
}

/// The others are properties of the bytes, which are not fetched again.
#[test]
fn only_a_failure_that_a_new_signature_may_change_is_checked_again() {
    let past = History::default().after_serving(&DIGEST, None, OnOlder::Alarm);
    let past = past.after_serving(&Digest::sha256(b"another"), None, OnOlder::Alarm);
    let by_time = |minimum| {
        refusing(Order::SignedTime {
            minimum: Some(time(minimum)),
        })
    };
    let signed = Given {
        signed_at: Some(time(1)),
        ..Given::annotated(&[])
    };
    let old = Given::annotated(&[(VERSION, "1.0.0"), (CREATED, "1970-01-01T00:00:00Z")]);
    for (expect, given, curable) in [
        (by_time(2), &signed, true),
        (by_time(2), &old, true),
        (versions(Some("2.0.0")), &old, false),
        (
            refusing(Order::Created {
                minimum: Some(time(1)),
            }),
            &old,
            false,
        ),
        (
            Expect {
                on_older: OnOlder::Refuse,
                ..Expect::default()
            },
            &old,
            false,
        ),
        (versions(None), &Given::version("x"), false),
    ] {
        let unmet = expect.check(&given.facts(), &past).unwrap_err();
        assert_eq!(unmet.changes_by_signing(), curable, "{unmet}");
    }
}

#[test]
fn foreign_text_is_cut_before_it_reaches_the_log() {
    let long = "x".repeat(100_000);
    let expect = Expect {
        annotations: BTreeMap::from([("title".to_owned(), "authz".to_owned())]),
        roots: vec!["authz".to_owned()],
        ..Expect::default()
    };
    for (expect, given) in [
        (expect.clone(), Given::annotated(&[("title", &long)])),
        (
            expect,
            Given::annotated(&[("title", "authz")]).opened("", &[&long]),
        ),
        (versions(None), Given::version(&long)),
        (
            refusing(Order::Created { minimum: None }),
            Given::annotated(&[(CREATED, &long)]),
        ),
    ] {
        let unmet = expect
            .check(&given.facts(), &History::default())
            .unwrap_err();
        assert!(unmet.to_string().len() < 400, "{unmet}");
    }
}
