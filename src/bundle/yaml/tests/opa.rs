//! Compares values with those of the real OPA.

use std::{
    collections::BTreeMap,
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::{
    REFUSED, read,
    snippets::{combinations, rows},
};

const SEED: u64 = 14;
const COMBINATIONS: usize = 20_000;

#[test]
fn values_equal_those_of_opa() {
    let Some(opa) = opa() else {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: YAML against OPA, for BUNDLEGATE_PEERS names no folder with bin/opa"
        );
        return;
    };
    let mut texts: Vec<String> = rows().map(|(text, _)| (*text).to_owned()).collect();
    texts.extend(combinations(SEED, COMBINATIONS));
    let theirs = unmarshal(&opa, &texts);
    let mut wrong = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let ours = read(text.as_bytes());
        let ours: Option<Value> = (ours != REFUSED).then(|| serde_json::from_str(&ours).unwrap());
        let theirs = theirs.get(&at.to_string());
        if ours.as_ref() != theirs && !is_known(text) {
            wrong.push(format!("{text:?}\n  OPA: {theirs:?}\n  we:  {ours:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        theirs.len() > texts.len() / 4,
        "only {} of {} texts are YAML",
        theirs.len(),
        texts.len()
    );
}

/// Refused on purpose: see [`crate::bundle::yaml::to_json`].
fn is_known(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').contains('\u{feff}')
        || super::to_json(text.as_bytes())
            .is_err_and(|error| error.reason().starts_with("two keys of different types"))
}

fn opa() -> Option<PathBuf> {
    let opa = Path::new(&env::var_os("BUNDLEGATE_PEERS")?).join("bin/opa");
    opa.exists().then_some(opa)
}

/// OPA's values by the number of their text. A text that OPA refuses has no value.
fn unmarshal(opa: &Path, texts: &[String]) -> BTreeMap<String, Value> {
    let input = tempfile::NamedTempFile::new().unwrap();
    serde_json::to_writer(&input, &json!({ "texts": texts })).unwrap();
    let query = "{i: v | some i, text in input.texts; v := yaml.unmarshal(text)}";
    let mut command = Command::new(opa);
    command
        .args(["eval", "--format", "json", "--input"])
        .arg(input.path())
        .arg(query);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(result["result"][0]["expressions"][0]["value"].clone()).unwrap()
}
