//! `tests/README.md`: every key, route, header and metric is in one of its tables, and every test
//! that it names exists.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

const PAGE: &str = include_str!("../README.md");

/// Keys whose children have names chosen by the user.
const NAMED: [(&str, &str); 5] = [
    ("registries", "HOST"),
    ("trust.roots", "NAME"),
    ("trust.authorities", "NAME"),
    ("trust.policies", "NAME"),
    ("bundles", "NAME"),
];

#[test]
fn every_key_of_the_example_is_in_the_table() {
    let example: Value = serde_saphyr::from_str(&source("config/bundlegate.yaml")).unwrap();
    let mut keys = BTreeSet::new();
    collect_keys(&example, "", &mut keys);
    assert!(keys.len() > 60, "{keys:?}");
    let table = entries("Configuration keys");
    let missing: Vec<_> = keys.iter().filter(|key| !table.contains(*key)).collect();
    assert!(missing.is_empty(), "not in tests/README.md: {missing:#?}");
}

/// Also those that the example has only in comments.
#[test]
fn the_table_has_the_keys_of_the_schema_and_no_others() {
    let schema = fields(
        &[
            source("src/config/raw.rs"),
            source("src/config/raw/trust.rs"),
            source("src/config/raw/rollout.rs"),
            source("src/config/raw/opa_signature_keys.rs"),
        ]
        .concat(),
    );
    assert!(schema.len() > 60, "{schema:?}");
    let table = entries("Configuration keys");
    let segments = |key: &String| {
        key.split(['.', '[', ']'])
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let named: BTreeSet<String> = table
        .iter()
        .flat_map(segments)
        .filter(|name| !name.is_empty())
        .collect();
    let missing: Vec<_> = schema.difference(&named).collect();
    assert!(missing.is_empty(), "not in tests/README.md: {missing:?}");
    let unknown: Vec<_> = named
        .difference(&schema)
        .filter(|name| !["NAME", "HOST", "unsigned"].contains(&name.as_str()))
        .collect();
    assert!(
        unknown.is_empty(),
        "in tests/README.md, but no key: {unknown:?}"
    );
}

#[test]
fn every_route_is_in_the_table() {
    let mut routes: BTreeSet<String> = [
        "/bundles/NAME",
        "/bundle/NAME",
        "/NAME",
        "/refresh/NAME",
        "/rollouts/NAME",
        "/rollouts/NAME/OPERATION",
        "/webhooks/NAME",
    ]
    .map(str::to_owned)
    .into();
    for code in code_below("src/server") {
        let arms = code
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("\"/") && line.contains("\" =>"));
        routes.extend(arms.filter_map(|line| Some(line.split('"').nth(1)?.to_owned())));
    }
    assert!(routes.len() > 6, "{routes:?}");
    assert_eq!(entries("Routes"), routes);
}

#[test]
fn every_header_is_in_the_table() {
    let mut headers = BTreeSet::new();
    for code in ["src/publish", "src/server", "src/webhooks"]
        .into_iter()
        .flat_map(code_below)
    {
        for (at, _) in code.match_indices("header::") {
            let rest = &code[at + "header::".len()..];
            let names = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap_or_default(),
                None => rest
                    .split(|char: char| !char.is_alphanumeric() && char != '_')
                    .next()
                    .unwrap_or_default(),
            };
            let names = names.split(|char: char| char.is_whitespace() || char == ',');
            let constants = names.filter(|name| {
                !name.is_empty()
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
            });
            headers.extend(constants.map(|name| name.to_ascii_lowercase().replace('_', "-")));
        }
        let custom = |name: &&str| {
            name.starts_with("bundlegate-")
                || name.starts_with("x-")
                || name.starts_with("sec-fetch-")
                || name.starts_with("cross-origin-")
                || ["prefer", "ce-type", "ce-source"].contains(name)
        };
        headers.extend(code.split('"').filter(custom).map(str::to_owned));
    }
    assert!(headers.len() > 10, "{headers:?}");
    let table: BTreeSet<_> = entries("Headers")
        .iter()
        .map(|name| name.to_ascii_lowercase())
        .collect();
    assert_eq!(table, headers);
}

#[test]
fn every_metric_is_in_the_table() {
    let metrics = metric_names();
    assert!(metrics.len() > 15, "{metrics:?}");
    assert_eq!(entries("Metrics"), metrics);
}

#[test]
fn every_test_that_the_page_names_exists() {
    let mut checked = 0;
    let mut missing = Vec::new();
    for name in PAGE.split('`').skip(1).step_by(2) {
        let Some((path, test)) = name.rsplit_once("::") else {
            continue;
        };
        // A pattern such as `it::FILE::TEST`, or a whole file.
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) || matches!(path, "it" | "peers") {
            continue;
        }
        let file = match path.starts_with("src/") {
            true => path.to_owned(),
            false => format!("tests/{}.rs", path.replace("::", "/")),
        };
        checked += 1;
        let code = fs::read_to_string(root().join(&file)).unwrap_or_default();
        if !code.contains(&format!("fn {test}(")) {
            missing.push(format!("{file}: {test}"));
        }
    }
    assert!(checked > 80, "only {checked} names were found");
    assert!(
        missing.is_empty(),
        "named in tests/README.md, but not there: {missing:#?}"
    );
}

/// Every file of the two test programs has an entry in the list of files, and every entry a file.
#[test]
fn every_test_file_is_in_the_list_of_files() {
    let listed = entries("Files");
    let mut files = BTreeSet::new();
    for program in ["it", "peers"] {
        for entry in fs::read_dir(root().join("tests").join(program)).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let is_module = path.extension().is_some_and(|extension| extension == "rs")
                || path.join("mod.rs").exists();
            if is_module && stem != "main" {
                files.insert(format!("{program}::{stem}"));
            }
        }
    }
    assert_eq!(listed, files);
}

/// The names in backticks in the first column of a section's table.
pub(crate) fn entries(section: &str) -> BTreeSet<String> {
    let (_, rest) = PAGE.split_once(&format!("\n## {section}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let first = rows.filter_map(|line| line.split(" | ").next());
    first
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// The paths of all keys: `HOST` and `NAME` for names chosen by the user, `[]` for the items of a
/// list of mappings.
fn collect_keys(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
    let is_free = path.ends_with(".annotations") || path.ends_with(".claims");
    match value {
        Value::Object(entries) if !is_free => {
            let name = NAMED
                .iter()
                .find(|(parent, _)| *parent == path)
                .map(|(_, name)| *name);
            for (key, value) in entries {
                let key = name.unwrap_or(key);
                let path = if path.is_empty() {
                    key.to_owned()
                } else {
                    format!("{path}.{key}")
                };
                collect_keys(value, &path, keys);
            }
        }
        Value::Array(items) => {
            for item in items {
                let path = if item.is_object() {
                    format!("{path}[]")
                } else {
                    path.to_owned()
                };
                collect_keys(item, &path, keys);
            }
        }
        _ => drop(keys.insert(path.to_owned())),
    }
}

/// The keys in the raw types of the configuration.
fn fields(code: &str) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    let mut renamed = None;
    for line in code.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[serde(rename = \"") {
            renamed = rest.split('"').next().map(str::to_owned);
        }
        let field = line
            .strip_prefix("pub(super) ")
            .or_else(|| line.strip_prefix("pub(in crate::config) "));
        let Some((name, _)) = field.and_then(|field| field.split_once(": ")) else {
            continue;
        };
        if name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            fields.insert(renamed.take().unwrap_or_else(|| name.to_owned()));
        }
    }
    fields
}

/// The names of the metrics in the sources.
pub(crate) fn metric_names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for code in code_below("src") {
        for (at, _) in code.match_indices("\"bundlegate_") {
            let name = code[at + 1..].split('"').next().unwrap_or_default();
            let is_metric = name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                && !name.ends_with('_');
            names.extend(is_metric.then(|| name.to_owned()));
        }
    }
    names
}

/// The code of every file below a folder, without its unit tests.
pub(crate) fn code_below(folder: &str) -> Vec<String> {
    let mut code = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                let text = fs::read_to_string(path).unwrap();
                code.push(
                    text.split("\n#[cfg(test)]\nmod tests {")
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                );
            }
        }
    }
    code
}

pub(crate) fn source(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}
