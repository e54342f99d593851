//! Values of every type at every key: an error on one line, never a panic.

use serde_json::{Value, json};

use super::*;

/// The path of a value inside another.
type Path = Vec<String>;

fn paths(value: &Value, at: &Path, all: &mut Vec<Path>) {
    all.push(at.clone());
    let below = |name: String| [at.clone(), vec![name]].concat();
    match value {
        Value::Object(entries) => entries
            .iter()
            .for_each(|(key, value)| paths(value, &below(key.clone()), all)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(i, value)| paths(value, &below(i.to_string()), all)),
        _ => {}
    }
}

fn at<'v>(value: &'v mut Value, path: &[String]) -> &'v mut Value {
    path.iter().fold(value, |value, step| match value {
        Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
        value => &mut value[step],
    })
}

fn remove(value: &mut Value, path: &[String]) {
    let (last, above) = path.split_last().unwrap();
    match at(value, above) {
        Value::Array(items) => drop(items.remove(last.parse().unwrap())),
        value => drop(value.as_object_mut().unwrap().remove(last)),
    }
}

#[test]
fn every_value_of_trust_and_bundles_may_be_anything() {
    let folder = trust::folder();
    let mut example: Value = serde_saphyr::from_str(EXAMPLE).unwrap();
    let mut good: Value = serde_saphyr::from_str(LEAST).unwrap();
    for key in ["trust", "bundles"] {
        good[key] = example[key].take();
    }
    folder.parse(&good.to_string()).unwrap();
    let mut all = Vec::new();
    for key in ["trust", "bundles"] {
        paths(&good[key], &vec![key.to_owned()], &mut all);
    }
    let shapes = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1),
        json!(u64::MAX),
        json!(1.5),
        json!(""),
        json!("none"),
        json!("\n\u{0}é/../:@%"),
        json!([]),
        json!([[{}]]),
        json!({}),
        json!({ "": { "file": [] } }),
    ];
    let (mut refused, mut accepted) = (0, 0);
    let mut tried = |value: &Value| match folder.parse(&value.to_string()) {
        Ok(_) => accepted += 1,
        Err(error) => {
            refused += 1;
            assert!(
                !error.key().is_empty() && !error.to_string().contains('\n'),
                "{error:?}"
            );
        }
    };
    for path in &all {
        for shape in &shapes {
            let mut bent = good.clone();
            *at(&mut bent, path) = shape.clone();
            tried(&bent);
        }
        let mut without = good.clone();
        remove(&mut without, path);
        tried(&without);
    }
    assert!(
        refused > 10 * accepted,
        "{} places: {refused} refused, {accepted} accepted",
        all.len()
    );
}
