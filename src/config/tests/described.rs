//! The schema against the parser: what the parser accepts, the schema accepts, and a default that
//! the schema names is that of the parser.

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};

use super::*;

/// A validator for the schema.
struct Validator {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Validator {
    fn new() -> Self {
        let mut compiler = Compiler::new();
        let (mut schemas, id) = (Schemas::new(), "urn:schema");
        compiler.add_resource(id, schema()).unwrap();
        let index = compiler.compile(id, &mut schemas);
        let index = index.unwrap_or_else(|error| panic!("{error:#}"));
        Self { schemas, index }
    }
}

thread_local! {
    static VALIDATOR: Validator = Validator::new();
}

#[track_caller]
pub(super) fn accepts(text: &str) {
    let value: Value = serde_saphyr::from_str(text).unwrap();
    VALIDATOR.with(|validator| {
        let valid = validator.schemas.validate(&value, validator.index);
        let valid = valid.map_err(|error| format!("{error:#}"));
        assert!(valid.is_ok(), "{}: {text}", valid.unwrap_err());
    });
}

/// Keys of which the default depends on other keys of the example, so that the others decide.
const PATHS: usize = 40;

#[test]
fn a_default_of_the_schema_is_the_one_of_the_parser() {
    let folder = trust::folder();
    let mut example: Value = serde_saphyr::from_str(EXAMPLE).unwrap();
    // Each TLS configuration has its own session keys, so no two are equal.
    for key in ["tls", "admin_tls"] {
        example["server"].as_object_mut().unwrap().remove(key);
    }
    let clients = example["clients"].as_array_mut().unwrap();
    clients.retain(|client| client.get("mtls").is_none());
    with_rollouts(&mut example);
    let parsed = |value: &Value| {
        let config = folder.parse(&value.to_string()).ok()?;
        let printed = format!("{config:?}");
        // The text is the last field.
        let (checked, _) = printed.rsplit_once(", text: ").unwrap();
        Some(checked.to_owned())
    };
    assert!(parsed(&example).is_some());
    let mut places = Vec::new();
    defaults(&schema(), &example, &mut Vec::new(), &mut places);
    let mut compared = 0;
    for (place, default) in &places {
        let (mut with, mut without) = (example.clone(), example.clone());
        let (key, above) = place.split_last().unwrap();
        at(&mut with, above)[key.as_str()] = default.clone();
        at(&mut without, above).as_object_mut().unwrap().remove(key);
        if let (Some(with), Some(without)) = (parsed(&with), parsed(&without)) {
            assert_eq!(with, without, "{place:?} {default}");
            compared += 1;
        }
    }
    assert!(compared >= PATHS, "{compared} of {}", places.len());
}

/// Adds what the example has in comments.
fn with_rollouts(example: &mut Value) {
    example["shared"] = json!({ "url": "redis://valkey" });
    example["prometheus"] = json!({ "url": "http://prometheus:9090" });
    let check = json!({ "name": "errors", "query": "sum(up)", "max": 1 });
    let step = json!({ "percent": 1, "soak": "6m" });
    let strategy = json!({ "steps": [step], "checks": [check] });
    example["rollouts"] = json!({ "careful": strategy });
    example["bundles"]["public/hello"]["rollout"] = json!("careful");
}

/// Collects the places in `value` where a key could be that has a default.
fn defaults(
    schema: &Value,
    value: &Value,
    path: &mut Vec<String>,
    places: &mut Vec<(Vec<String>, Value)>,
) {
    for choice in schema["anyOf"].as_array().into_iter().flatten() {
        defaults(choice, value, path, places);
    }
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        path.push(key.clone());
        if let Some(default) = property.get("default")
            && value.is_object()
        {
            places.push((path.clone(), default.clone()));
        }
        if let Some(value) = value.get(key) {
            defaults(property, value, path, places);
        }
        path.pop();
    }
    let named = value.as_object().into_iter().flatten();
    let listed = value.as_array().into_iter().flatten().enumerate();
    let below = named
        .map(|(name, value)| ("additionalProperties", name.clone(), value))
        .chain(listed.map(|(index, value)| ("items", index.to_string(), value)));
    for (keyword, step, value) in below {
        if schema[keyword].is_object() {
            path.push(step);
            defaults(&schema[keyword], value, path, places);
            path.pop();
        }
    }
}

fn at<'v>(value: &'v mut Value, path: &[String]) -> &'v mut Value {
    path.iter().fold(value, |value, step| match value {
        Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
        value => &mut value[step],
    })
}

#[test]
fn every_key_is_described() {
    fn undescribed(schema: &Value, path: &str, found: &mut Vec<String>) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            if property["description"].as_str().is_none_or(str::is_empty)
                || property["title"].is_null()
            {
                found.push(path.clone());
            }
            undescribed(property, &path, found);
        }
        for keyword in ["additionalProperties", "items"] {
            if let Some(values) = schema.get(keyword) {
                undescribed(values, path, found);
            }
        }
        for choice in schema["anyOf"].as_array().into_iter().flatten() {
            undescribed(choice, path, found);
        }
    }
    let mut found = Vec::new();
    undescribed(&schema(), "", &mut found);
    assert_eq!(found, [""; 0]);
}

#[test]
fn a_description_says_the_default_and_whether_a_change_needs_a_restart() {
    let schema = schema();
    let key = |path: &str| {
        let pointer = format!("/properties/{}", path.replace('.', "/properties/"));
        schema.pointer(&pointer).unwrap().clone()
    };
    let restart = "A change takes effect at the next start.";
    for (path, title, default, needs_restart) in [
        ("server.listen", "server.listen", json!(":8080"), true),
        (
            "server.max_connections",
            "server.max_connections",
            json!(20_000),
            false,
        ),
        ("cache.disk", "cache.disk", json!("10GiB"), false),
        ("cache.required", "cache.required", json!(true), true),
        ("long_poll.spread", "long_poll.spread", json!("auto"), false),
        ("fleet.retention", "fleet.retention", json!("24h"), true),
        ("shared.grace", "shared.grace", json!("10m"), true),
        (
            "prometheus.timeout",
            "prometheus.timeout",
            json!("10s"),
            true,
        ),
        (
            "fleet.status.limit",
            "fleet.status.limit",
            json!("1MiB"),
            true,
        ),
    ] {
        let key = key(path);
        assert_eq!((&key["title"], &key["default"]), (&json!(title), &default));
        let description = key["description"].as_str().unwrap();
        let named = default
            .as_str()
            .map_or_else(|| default.to_string(), str::to_owned);
        assert!(
            description.contains(&format!("Default: `{named}`.")),
            "{description}"
        );
        assert_eq!(
            description.ends_with(restart),
            needs_restart,
            "{description}"
        );
    }
    let strategy = &schema["properties"]["rollouts"]["additionalProperties"]["properties"];
    let quorum = strategy["quorum"]["description"].as_str().unwrap();
    assert!(quorum.ends_with("Default: `90%`."), "{quorum}");
    let soak = &strategy["steps"]["items"]["properties"]["soak"];
    assert_eq!(soak["title"], "rollouts.NAME.steps[].soak");
    let poll = &schema["properties"]["bundles"]["additionalProperties"]["properties"]["poll"];
    assert_eq!(poll["title"], "bundles.NAME.poll");
}
