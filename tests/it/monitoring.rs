//! The alert rules, their runbook and the dashboard in `config/deploy`, beside the metrics of the
//! product. `peers::dashboard` runs them in Prometheus.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    index::{code_below, entries, metric_names},
    shared::names,
};

const RULES: &str = include_str!("../../config/deploy/prometheus/alerts.yaml");
const RULE_TESTS: &str = include_str!("../../config/deploy/prometheus/alerts_test.yaml");
const RUNBOOK: &str = include_str!("../../config/deploy/prometheus/RUNBOOK.md");
const DASHBOARD: &str = include_str!("../../config/deploy/grafana/bundlegate.json");

/// As in the client libraries of Prometheus.
const PROCESS_METRICS: [&str; 7] = [
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
];
/// Metrics and labels of Prometheus itself, and of service discovery.
const PROMETHEUS_METRICS: [&str; 2] = ["ALERTS", "up"];
const PROMETHEUS_LABELS: [&str; 6] = ["alertname", "alertstate", "instance", "job", "le", "pod"];

#[test]
fn every_alert_has_what_operators_need_and_a_section_in_the_runbook() {
    let alerts = alerts();
    assert!(alerts.len() > 30, "{}", alerts.len());
    for alert in &alerts {
        let name = text(alert, "/alert");
        let severity = text(alert, "/labels/severity");
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}: {severity}"
        );
        assert!(
            !text(alert, "/annotations/summary").ends_with('.'),
            "{name}"
        );
        assert!(
            text(alert, "/annotations/description").ends_with('.'),
            "{name}"
        );
        assert_eq!(
            text(alert, "/annotations/runbook_url"),
            format!(
                "config/deploy/prometheus/RUNBOOK.md#{}",
                name.to_lowercase()
            )
        );
    }
    let named: BTreeSet<_> = alerts.iter().map(|alert| text(alert, "/alert")).collect();
    let sections: BTreeMap<_, _> = sections().collect();
    assert_eq!(named, sections.keys().copied().collect());
    for (name, section) in sections {
        for part in [
            "**Meaning.**",
            "**Effect.**",
            "**Diagnosis.**",
            "**Mending.**",
        ] {
            assert_eq!(section.matches(part).count(), 1, "{name}: {part}");
        }
    }
}

#[test]
fn the_runbook_names_sections_and_keys_that_exist() {
    let anchors: BTreeSet<_> = sections().map(|(name, _)| name.to_lowercase()).collect();
    for link in RUNBOOK.split("](#").skip(1) {
        let (anchor, _) = link.split_once(')').unwrap();
        assert!(anchors.contains(anchor), "#{anchor}");
    }
    let keys = entries("Configuration keys");
    let is_key = |name: &&str| {
        let mut characters = name.chars();
        name.contains('.')
            && !name.contains(' ')
            && keys
                .iter()
                .any(|key| key.split(['.', '[']).next() == name.split(['.', '[']).next())
            && characters.all(|char| char.is_ascii_alphabetic() || "._[]".contains(char))
    };
    let named: BTreeSet<_> = code_in(RUNBOOK).filter(is_key).collect();
    assert!(named.len() > 20, "{named:?}");
    let is_known = |name: &&&str| {
        keys.iter()
            .any(|key| key == **name || key.starts_with(&format!("{name}.")))
    };
    let unknown: Vec<_> = named.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "no such keys: {unknown:?}");
}

#[test]
fn every_alert_is_tested_firing_and_not_firing() {
    let tests: Value = serde_saphyr::from_str(RULE_TESTS).unwrap();
    let tests = tests["tests"].as_array().unwrap();
    let checks: Vec<_> = tests
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array().unwrap())
        .collect();
    for alert in &alerts() {
        let (name, severity) = (text(alert, "/alert"), text(alert, "/labels/severity"));
        let expected = checks
            .iter()
            .filter(|check| check["alertname"] == name)
            .map(|check| check["exp_alerts"].as_array().unwrap());
        let expected: Vec<_> = expected.collect();
        let fires = |alerts: &&Vec<Value>| {
            alerts
                .iter()
                .any(|alert| text(alert, "/exp_labels/severity") == severity)
        };
        assert!(
            expected.iter().any(fires),
            "{name} ({severity}) is not tested firing"
        );
        assert!(
            expected.iter().any(|alerts| alerts.is_empty()),
            "{name} is not tested without firing"
        );
    }
}

#[test]
fn alerts_and_dashboard_read_only_metrics_and_labels_that_exist() {
    let metrics = metric_names();
    let is_metric = |name: &str| {
        let histogram = name.strip_suffix("_bucket");
        metrics.contains(histogram.unwrap_or(name))
            || PROCESS_METRICS.contains(&name)
            || PROMETHEUS_METRICS.contains(&name)
    };
    let code = code_below("src").concat();
    let is_label =
        |name: &str| PROMETHEUS_LABELS.contains(&name) || code.contains(&format!("\"{name}\""));
    let alerts = alerts();
    let of_alerts = alerts.iter().map(|alert| text(alert, "/expr").to_owned());
    let panels = panels();
    let of_panels = panels.iter().flat_map(expressions);
    for expression in of_alerts.chain(of_panels) {
        let read = names(&expression);
        assert!(!read.metrics.is_empty(), "{expression}");
        for name in &read.metrics {
            assert!(is_metric(name), "no metric {name}: {expression}");
        }
        for name in &read.labels {
            assert!(is_label(name), "no label {name}: {expression}");
        }
    }
}

#[test]
fn every_panel_of_the_dashboard_is_complete() {
    let (mut ids, mut refs) = (BTreeSet::new(), BTreeSet::new());
    for panel in &panels() {
        let title = text(panel, "/title");
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: its id is used twice"
        );
        if panel["type"] == "row" {
            continue;
        }
        assert!(!text(panel, "/description").is_empty(), "{title}");
        assert!(
            !text(panel, "/fieldConfig/defaults/unit").is_empty(),
            "{title}"
        );
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            assert!(!text(target, "/expr").is_empty(), "{title}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let reference = (title.to_owned(), text(target, "/refId").to_owned());
            assert!(refs.insert(reference), "{title}: a refId is used twice");
        }
    }
    assert!(refs.len() > 50, "{}", refs.len());
}

#[test]
fn the_panels_of_the_dashboard_do_not_overlap() {
    let mut cells = BTreeMap::new();
    for panel in &panels() {
        let title = text(panel, "/title");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title} is too wide");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                let other = cells.insert((x, y), title.to_owned());
                assert_eq!(other, None, "{title} covers another panel");
            }
        }
    }
}

#[test]
fn every_variable_of_the_dashboard_is_defined_and_used() {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let defined: BTreeSet<_> = variables
        .iter()
        .map(|variable| text(variable, "/name"))
        .collect();
    assert_eq!(defined.first(), Some(&"bundle"));
    let without_panels = dashboard["templating"].to_string();
    let text = dashboard["panels"].to_string() + &without_panels;
    let mut used = BTreeSet::new();
    for rest in text.split('$').skip(1) {
        let rest = rest.strip_prefix('{').unwrap_or(rest);
        let end = rest.find(|char: char| !char.is_ascii_alphanumeric() && char != '_');
        let name = &rest[..end.unwrap_or(rest.len())];
        if !name.starts_with("__") {
            used.insert(name);
        }
    }
    assert_eq!(defined, used);
}

fn alerts() -> Vec<Value> {
    let rules: Value = serde_saphyr::from_str(RULES).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

/// The sections of the runbook, by their titles.
fn sections() -> impl Iterator<Item = (&'static str, &'static str)> {
    let sections = RUNBOOK.split("\n## ").skip(1);
    sections.map(|section| section.split_once('\n').unwrap())
}

/// What is between backticks.
fn code_in(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).unwrap()
}

fn panels() -> Vec<Value> {
    dashboard()["panels"].as_array().unwrap().clone()
}

fn expressions(panel: &Value) -> Vec<String> {
    let targets = panel["targets"].as_array();
    let targets = targets.into_iter().flatten();
    targets
        .map(|target| text(target, "/expr").to_owned())
        .collect()
}

/// The text at a JSON pointer.
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("{pointer} is missing in {value}"))
}
