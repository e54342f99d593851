use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

macro_rules! captured {
    ($name:literal) => {
        include_str!(concat!(
            "../../../tests/shared/status_reports/",
            $name,
            ".json"
        ))
    };
}

const COMPILE_ERROR: &str = captured!("compile_error.1.22.2");

/// A captured report with as many metrics as OPA sends.
fn with_metrics(captured: &str) -> String {
    let mut metrics = String::new();
    for number in 0..140 {
        write!(
            metrics,
            r#""family_{number}": {{"name": "family_{number}", "help": "{}", "type": "COUNTER",
            "metric": [{{"counter": {{"value": {number}, "createdTimestamp": "2026-11-28T19:00:19Z"}}}}]}},"#,
            "h".repeat(300)
        )
        .unwrap();
    }
    let metrics = format!(r#""prometheus": {{{}}}"#, metrics.trim_end_matches(','));
    let report = captured.replacen(r#""prometheus": {}"#, &metrics, 1);
    assert!(report.len() > 60_000);
    report
}

/// Reads a report that is complete.
fn parse(report: &str) -> Result<Report, ReportError> {
    Report::parse(report.as_bytes(), false)
}

/// Reads the only bundle of a report that is complete.
fn parse_bundle(bundle: &str) -> BundleReport {
    let report = format!(r#"{{"labels": {{}}, "bundles": {{"a": {bundle}}}}}"#);
    let mut bundles = parse(&report).unwrap().bundles;
    assert_eq!(bundles.len(), 1, "{bundle}");
    bundles.remove(0)
}

#[test]
fn captured_reports_are_read_with_all_their_metrics() {
    let bundle = |name: &str, active_revision: Option<&str>, size| BundleReport {
        name: name.into(),
        active_revision: active_revision.map(Into::into),
        size: Some(size),
        ..BundleReport::default()
    };
    let failed = |message: &str| {
        Some(ReportedError {
            code: "bundle_error".into(),
            message: message.into(),
        })
    };
    let cases = [
        (
            COMPILE_ERROR,
            "1.22.2",
            vec![
                BundleReport {
                    error: failed(
                        "error(s) occurred while compiling module(s): \
                         a/p.rego:3:10: rego_unsafe_var_error: var x is unsafe",
                    ),
                    ..bundle("a", Some("v2"), 184)
                },
                bundle("b", None, 175),
            ],
        ),
        (
            captured!("root_conflict.0.70.0"),
            "0.70.0",
            vec![
                bundle("a", Some("v2"), 184),
                BundleReport {
                    error: failed("detected overlapping roots in bundle manifest with: [a]"),
                    ..bundle("b", None, 175)
                },
            ],
        ),
        (
            captured!("withdrawn_404.1.22.2"),
            "1.22.2",
            vec![
                bundle("a", Some("v2"), 184),
                BundleReport {
                    http_code: Some("404".into()),
                    error: failed("server replied with Not Found"),
                    ..bundle("b", None, 175)
                },
            ],
        ),
        (
            captured!("discovery.1.22.2"),
            "1.22.2",
            vec![
                bundle("a", Some("v1"), 184),
                bundle("discovery", Some("d1"), 272),
            ],
        ),
        (
            captured!("no_manifest.1.22.2"),
            "1.22.2",
            vec![bundle("a", None, 132)],
        ),
        (
            captured!("first_before_any_bundle.0.70.0"),
            "0.70.0",
            vec![],
        ),
    ];
    for (captured, version, bundles) in cases {
        let report = parse(&with_metrics(captured)).unwrap();
        assert_eq!(report.bundles, bundles);
        assert_eq!(report.opa.version.as_deref(), Some(version));
        assert_eq!(report.opa.id.map(|id| id.len()), Some(36));
    }
}

#[test]
fn labels_are_those_of_the_configuration_of_the_opa() {
    let labels = parse(COMPILE_ERROR).unwrap().opa.labels;
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    assert_eq!(
        labels,
        [("app", "shop"), ("pod", "pod-7"), ("region", "eu")]
    );
}

#[test]
fn a_cut_report_is_too_long_until_the_metrics_begin() {
    let whole = parse(COMPILE_ERROR).unwrap();
    let metrics = COMPILE_ERROR.rfind(r#""metrics": {"#).unwrap() + r#""metrics""#.len();
    for end in 0..COMPILE_ERROR.len() {
        let prefix = &COMPILE_ERROR.as_bytes()[..end];
        let (cut, complete) = (Report::parse(prefix, true), Report::parse(prefix, false));
        if end < metrics {
            assert_eq!(cut, Err(ReportError::TooLong), "{end}");
            assert!(matches!(complete, Err(ReportError::Malformed(_))), "{end}");
        } else {
            assert_eq!(
                (cut.as_ref(), complete.as_ref()),
                (Ok(&whole), Ok(&whole)),
                "{end}"
            );
        }
    }
}

#[test]
fn metrics_are_not_read_after_labels_and_bundles_and_are_skipped_before_them() {
    let expected = parse(r#"{"labels": {"id": "i"}, "bundles": {"a": {}}}"#).unwrap();
    for report in [
        r#"{"labels": {"id": "i"}, "bundles": {"a": {}}, "metrics": ]]]"#,
        r#"{"labels": {"id": "i"}, "bundles": {"a": {}}, "plugins": 1} more"#,
        r#"{"metrics": {"a": [{}, "}"]}, "bundles": {"a": {}}, "plugins": 1, "labels": {"id": "i"}}"#,
        r#"{"labels": {"id": "i"}, "metrics": {}, "bundle": {"name": "a"}, "plugins": ]"#,
    ] {
        assert_eq!(parse(report).as_ref(), Ok(&expected), "{report}");
    }
    // The bundles may follow what is missing.
    let cut = r#"{"labels": {"id": "i"}, "metrics": {"a": 1"#;
    assert_eq!(
        Report::parse(cut.as_bytes(), true),
        Err(ReportError::TooLong)
    );
}

#[test]
fn a_report_of_other_types_is_malformed() {
    let long = format!(r#""{}""#, "s".repeat(100_000));
    let nested = "[".repeat(100_000);
    for report in [
        "",
        "[]",
        "1",
        "true",
        &long,
        &nested,
        "{",
        "{]",
        r#"{"labels": []}"#,
        r#"{"labels": 1.5}"#,
        &format!(r#"{{"labels": {long}}}"#),
        &format!(r#"{{"labels": {nested}"#),
        r#"{"bundles": [{"name": "a"}]}"#,
        r#"{"bundles": {"a": 5}}"#,
        r#"{"bundles": {"a": {"errors": {}}}}"#,
        &format!(r#"{{"bundles": {{"a": {{"errors": {long}}}}}}}"#),
        r#"{"bundles": {"a": {"size": 1e999}}}"#,
        r#"{"labels": {"a": "\x"}}"#,
        r#"{"labels": {"a": "\ud800"}}"#,
        "{\"labels\": {\"a\": \"\n\"}}",
    ] {
        let error = parse(report).unwrap_err();
        assert!(matches!(error, ReportError::Malformed(_)), "{report}");
        assert!(error.to_string().len() < 2 * NAME_BYTES, "{error}");
    }
    let invalid = b"{\"labels\": {\"a\": \"\xff\"}}";
    assert!(matches!(
        Report::parse(invalid, true),
        Err(ReportError::Malformed(_))
    ));
}

#[test]
fn members_that_are_null_or_missing_are_empty() {
    for report in [
        "null",
        "{}",
        r#"{"labels": null, "bundles": null, "metrics": null}"#,
        r#"{"labels": {}, "bundles": {}, "plugins": {}}"#,
        r#"{"labels": {"id": "", "version": null, "x": ""}}"#,
        r#"{"labels": {"id": [], "version": {"a": 1}, "x": true, "y": 1.5}}"#,
    ] {
        assert_eq!(parse(report), Ok(Report::default()), "{report}");
    }
    let a = BundleReport {
        name: "a".into(),
        ..BundleReport::default()
    };
    for bundle in [
        "null",
        "{}",
        r#"{"name": "other", "active_revision": "", "code": "", "message": "", "errors": null}"#,
        r#"{"active_revision": ["r"], "size": -1, "http_code": {}, "code": false, "errors": [{}]}"#,
        r#"{"size": 1.5, "message": [[]], "metrics": [[{}]]}"#,
    ] {
        assert_eq!(parse_bundle(bundle), a, "{bundle}");
    }
}

#[test]
fn the_first_of_several_members_with_a_name_counts() {
    let report = r#"{
        "labels": {"id": "i", "id": "j", "x": "1", "x": "2"},
        "labels": {"id": "k", "x": "3", "y": "4"},
        "bundle": {"name": "a", "size": 1},
        "bundles": {"a": {"size": 2}, "b": {"size": 3}, "b": {"size": 4}},
        "discovery": {"name": "a", "size": 5}, "discovery": {"size": 6}
    }"#;
    let Report { opa, bundles } = parse(report).unwrap();
    assert_eq!(opa.id.as_deref(), Some("i"));
    assert_eq!(
        opa.labels,
        BTreeMap::from([("x".into(), "1".into()), ("y".into(), "4".into())])
    );
    let bundles: Vec<_> = bundles
        .iter()
        .map(|bundle| (&*bundle.name, bundle.size))
        .collect();
    assert_eq!(bundles, [("a", Some(1)), ("b", Some(3)), ("a", Some(5))]);
}

#[test]
fn single_bundles_without_a_name_have_that_of_their_member() {
    let report = r#"{"bundle": {"size": 1}, "discovery": null}"#;
    let bundles = parse(report).unwrap().bundles;
    let bundles: Vec<_> = bundles
        .iter()
        .map(|bundle| (&*bundle.name, bundle.size))
        .collect();
    assert_eq!(bundles, [("bundle", Some(1)), ("discovery", None)]);
}

#[test]
fn messages_have_the_errors_of_the_compiler_and_their_positions() {
    let cases = [
        (r#"{"code": "c"}"#, "c", ""),
        (r#"{"message": "m"}"#, "", "m"),
        (r#"{"code": "c", "errors": [{"message": "m"}]}"#, "c", "m"),
        (
            r#"{"message": "m", "errors": [{}, null, "text", 1, [2], {"message": "n"}]}"#,
            "",
            "m: n",
        ),
        (
            r#"{"message": "m", "errors": [
                {"code": "c1", "message": "m1", "location": {"file": "a.rego", "row": 3}},
                {"message": "m2", "location": {"row": 4, "col": "5"}, "details": {}},
                {"code": "c3", "location": "b.rego"}
            ]}"#,
            "",
            "m: a.rego:3: c1: m1; :4:5: m2; c3",
        ),
    ];
    for (bundle, code, message) in cases {
        let error = ReportedError {
            code: code.into(),
            message: message.into(),
        };
        assert_eq!(parse_bundle(bundle).error, Some(error), "{bundle}");
    }
}

#[test]
fn texts_keep_their_characters() {
    let bundle = r#"{"active_revision": "\u0000\u001b[31m\u202e\ud83d\ude00", "http_code": 503}"#;
    let bundle = parse_bundle(bundle);
    assert_eq!(
        bundle.active_revision.as_deref(),
        Some("\0\u{1b}[31m\u{202e}\u{1f600}")
    );
    assert_eq!(bundle.http_code.as_deref(), Some("503"));
}

/// What a report may have at most.
fn assert_within_limits(report: &Report) {
    let is_short = |text: &Option<Box<str>>| text.as_ref().is_none_or(|text| text.len() <= 256);
    let OpaInstance {
        id,
        version,
        labels,
    } = &report.opa;
    assert!(is_short(id) && is_short(version));
    assert!(labels.len() <= 32);
    let bytes: usize = labels
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    assert!(bytes <= 1024);
    assert!(report.bundles.len() <= 1001);
    for bundle in &report.bundles {
        assert!(bundle.name.len() <= 256);
        assert!(is_short(&bundle.active_revision) && is_short(&bundle.http_code));
        if let Some(error) = &bundle.error {
            assert!(error.code.len() <= 256 && error.message.len() <= 1024);
        }
    }
}

#[test]
fn long_texts_are_cut() {
    let long = "\u{e9}".repeat(20_000);
    let report = format!(
        r#"{{"labels": {{"id": "{long}", "version": "{long}", "{long}": "{long}", "x": "y"}},
        "bundles": {{"{long}": {{"active_revision": "{long}", "http_code": "{long}",
            "code": "{long}", "message": "{long}",
            "errors": [{{"code": "{long}", "message": "{long}", "location": {{"file": "{long}"}}}}]}}}}}}"#
    );
    let report = parse(&report).unwrap();
    assert_within_limits(&report);
    assert_eq!(report.opa.labels.len(), 2);
    let bundle = &report.bundles[0];
    assert!(bundle.name.starts_with('\u{e9}'), "{}", bundle.name);
    assert!(
        bundle
            .error
            .as_ref()
            .is_some_and(|error| error.message.len() > 1000)
    );
}

#[test]
fn labels_bundles_and_errors_beyond_the_limits_are_left_out() {
    let list = |count: usize, item: fn(usize) -> String| {
        (0..count).map(item).collect::<Vec<_>>().join(",")
    };
    let labels = list(100, |number| format!(r#""l{number:03}": "v""#));
    let wide = list(100, |number| {
        format!(r#""l{number:03}": "{}""#, "v".repeat(200))
    });
    let bundles = list(10_000, |number| {
        format!(r#""b{number:05}": {{"size": {number}}}"#)
    });
    let errors = list(10_000, |number| format!(r#"{{"message": "e{number:05}"}}"#));
    let report = format!(
        r#"{{"labels": {{"id": "i", {labels}, "version": "v"}},
        "bundles": {{"a": {{"message": "m", "errors": [{errors}], "size": 7}}, {bundles}}},
        "discovery": {{"size": 8}}}}"#
    );
    let report = parse(&report).unwrap();
    assert_within_limits(&report);
    assert_eq!(
        (report.opa.labels.len(), report.opa.version.as_deref()),
        (32, Some("v"))
    );
    assert_eq!(report.bundles.len(), 1001);
    assert_eq!(report.bundles[0].size, Some(7));
    assert_eq!(&*report.bundles[999].name, "b00998");
    assert_eq!(report.bundles[1000].size, Some(8));
    let message = &report.bundles[0].error.as_ref().unwrap().message;
    assert!(message.starts_with("m: e00000; e00001; ") && message.ends_with("; e00015"));

    let report = parse(&format!(r#"{{"labels": {{{wide}, "z": "zzz"}}}}"#)).unwrap();
    assert_within_limits(&report);
    // Five of 204 bytes, and one that fits into the rest.
    let labels: Vec<_> = report.opa.labels.keys().map(|name| &**name).collect();
    assert_eq!(labels, ["l000", "l001", "l002", "l003", "l004", "z"]);
}

#[test]
fn nesting_that_is_skipped_may_be_deep() {
    let (open, close) = ("[".repeat(30_000), "]".repeat(30_000));
    let report =
        format!(r#"{{"x": {open}{close}, "bundles": {{"a": {{"metrics": {open}{close}}}}}}}"#);
    assert_eq!(parse(&report).unwrap().bundles.len(), 1);
    for cut in [r#"{"x": "#, r#"{"labels": {"x": "#] {
        let report = format!("{cut}{open}");
        assert_eq!(
            Report::parse(report.as_bytes(), true),
            Err(ReportError::TooLong)
        );
    }
}

proptest! {
    /// Reports with a few other bytes.
    #[test]
    fn a_changed_report_is_read_within_limits(
        changes in prop::collection::vec((0..COMPILE_ERROR.len(), any::<u8>()), 0..8),
        end in 0..=COMPILE_ERROR.len(),
        is_cut: bool,
    ) {
        let mut bytes = COMPILE_ERROR.as_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(report) = Report::parse(&bytes[..end], is_cut) {
            assert_within_limits(&report);
        }
    }
}
