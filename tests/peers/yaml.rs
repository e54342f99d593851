//! YAML data keeps, through every command that reads it, the values that OPA 1.22.2 reads: each
//! text of the list that the parser is tested by goes through `build` of two folders, `save` of
//! what conftest has pushed, `eval`, and `build --test`.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use crate::support::{Author, Kind, Registry};

#[path = "../../src/bundle/yaml/tests/snippets/mod.rs"]
mod snippets;

const SEED: u64 = 41;
const COMBINATIONS: usize = 3_000;
/// The least that is compared in each way.
const ENOUGH: usize = 300;

/// Texts that are an object to OPA, so that they can be merged with another file, by name.
async fn objects(author: &Author) -> BTreeMap<String, String> {
    let mut texts: Vec<String> = snippets::rows()
        .map(|(text, _)| (*text).to_owned())
        .collect();
    texts.extend(snippets::combinations(SEED, COMBINATIONS));
    author.write("texts.json", &json!({ "texts": texts }).to_string());
    let query = "{i | some i, text in input.texts; is_object(yaml.unmarshal(text))}";
    let found = author
        .peer("opa", &["eval", "--input", "texts.json", query])
        .await
        .json();
    let found: Vec<usize> =
        serde_json::from_value(found["result"][0]["expressions"][0]["value"].clone()).unwrap();
    // A byte order mark inside of a text is refused, with the reason; OPA drops characters there.
    let kept = |text: &&String| !text.trim_start_matches('\u{feff}').contains('\u{feff}');
    found
        .iter()
        .map(|at| (format!("s{at}"), &texts[*at]))
        .filter(|(_, text)| kept(text))
        .map(|(name, text)| (name, text.clone()))
        .collect()
}

/// Takes out the texts that `what` refuses, by their names in its message, until it succeeds.
async fn without_refused(
    author: &Author,
    texts: &mut BTreeMap<String, String>,
    folders: &[&str],
    what: &[&str],
    why: &str,
) {
    loop {
        let ran = match what {
            ["bundlegate", rest @ ..] => author.run(rest).await,
            [program, rest @ ..] => author.peer(program, rest).await,
            [] => return,
        };
        if ran.code == Some(0) {
            return;
        }
        assert!(ran.stderr.contains(why), "{what:?}: {}", ran.stderr);
        let refused: Vec<_> = texts
            .keys()
            .filter(|name| ran.stderr.contains(&format!("/{name}/")))
            .cloned()
            .collect();
        assert!(!refused.is_empty(), "{what:?}: {}", ran.stderr);
        for name in refused {
            for folder in folders {
                fs::remove_dir_all(author.path(&format!("{folder}/{name}"))).unwrap();
            }
            texts.remove(&name);
        }
    }
}

/// The values that OPA reads from a bundle or folder, by name.
async fn read_by_opa(author: &Author, bundle: &str) -> BTreeMap<String, Value> {
    let answer = author
        .peer("opa", &["eval", "--bundle", bundle, "data"])
        .await
        .json();
    serde_json::from_value(answer["result"][0]["expressions"][0]["value"].clone()).unwrap()
}

/// The names whose values differ, with both.
fn differences(expected: &BTreeMap<String, Value>, found: &BTreeMap<String, Value>) -> Vec<String> {
    let differ = expected
        .iter()
        .filter(|(name, value)| found.get(*name) != Some(value));
    differ
        .map(|(name, value)| format!("{name}: OPA {value}, ours {:?}", found.get(name)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn yaml_keeps_its_values_through_build_eval_and_tests() {
    let author = Author::new();
    let mut texts = objects(&author).await;
    for (name, text) in &texts {
        author.write(&format!("one/{name}/data.yaml"), text);
    }
    // Of such keys OPA takes one by chance.
    let build = ["bundlegate", "build", "one", "-t", "r.example/yaml:one"];
    without_refused(
        &author,
        &mut texts,
        &["one"],
        &build,
        "two keys of different types",
    )
    .await;
    for name in texts.keys() {
        author.write(&format!("two/{name}/data.yaml"), "zz_other: [NO]\n");
    }
    let alone = read_by_opa(&author, "one").await;
    let mut expected = alone.clone();
    for value in expected.values_mut() {
        value["zz_other"] = json!(["NO"]);
    }
    author.line("bundlegate build one two -t r.example/yaml:merged && bundlegate save r.example/yaml:merged").await;
    let wrong = differences(&expected, &read_by_opa(&author, "bundle.tar.gz").await);
    assert!(
        wrong.is_empty(),
        "build: {} differ: {wrong:#?}",
        wrong.len()
    );
    let answer = author
        .line("bundlegate eval r.example/yaml:merged data")
        .await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let ours: BTreeMap<String, Value> =
        serde_json::from_value(answer["result"][0]["expressions"][0]["value"].clone()).unwrap();
    let wrong = differences(&expected, &ours);
    assert!(wrong.is_empty(), "eval: {} differ: {wrong:#?}", wrong.len());
    // A rule for each, so that each is named where it fails.
    let tests: String = alone
        .iter()
        .map(|(name, value)| {
            let text = Value::from(value.to_string());
            format!("test_{name} if data.{name} == json.unmarshal({text})\n\n")
        })
        .collect();
    author.write("one/all_test.rego", &format!("package all_test\n\n{tests}"));
    author.write("one/p.rego", "package p\n");
    let told = author
        .run(&["build", "one", "-t", "r.example/yaml:tested", "--test"])
        .await;
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    assert!(
        told.stderr
            .contains(&format!("{} tests passed", alone.len())),
        "{}",
        told.stderr
    );
    println!(
        "YAML: {} texts through build, save, eval and build --test as OPA reads them",
        alone.len()
    );
    assert!(alone.len() >= ENOUGH, "only {} texts", alone.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn yaml_of_conftests_keeps_its_values_through_pull_and_save() {
    let (author, registry) = (Author::new(), Registry::start(Kind::Distribution).await);
    let mut texts: BTreeMap<_, _> = objects(&author)
        .await
        .into_iter()
        .take(2 * ENOUGH)
        .collect();
    author.write("policy/main.rego", "package main\n");
    for (name, text) in &texts {
        author.write(&format!("original/{name}/data.yaml"), text);
        author.write(&format!("values/{name}/one.yaml"), text);
    }
    let build = [
        "bundlegate",
        "build",
        "original",
        "-t",
        "r.example/yaml:one",
    ];
    without_refused(
        &author,
        &mut texts,
        &["original", "values"],
        &build,
        "two keys of different types",
    )
    .await;
    let name = registry.reference("yaml/conftest:v1");
    // conftest reads YAML by an older library, which refuses more.
    let push = [
        "conftest", "push", &name, "--policy", "policy", "--data", "values",
    ];
    without_refused(&author, &mut texts, &["original", "values"], &push, "YAML").await;
    for name in texts.keys() {
        // Every other one is alone in its folder, and so stays as it is.
        if name.ends_with(['0', '2', '4', '6', '8']) {
            author.write(&format!("values/{name}/two.yaml"), "zz_other: [NO]\n");
        }
    }
    let mut expected = read_by_opa(&author, "original").await;
    for (_, value) in expected
        .iter_mut()
        .filter(|(name, _)| name.ends_with(['0', '2', '4', '6', '8']))
    {
        value["zz_other"] = json!(["NO"]);
    }
    author
        .line(&format!(
            "conftest push {name} --policy policy --data values"
        ))
        .await;
    author
        .line(&format!(
            "bundlegate pull {name} --plain-http && bundlegate save {name} --data-root values"
        ))
        .await;
    let wrong = differences(&expected, &read_by_opa(&author, "bundle.tar.gz").await);
    assert!(wrong.is_empty(), "{} differ: {wrong:#?}", wrong.len());
    author
        .line("mkdir unpacked && tar xzf bundle.tar.gz -C unpacked")
        .await;
    for (name, text) in texts
        .iter()
        .filter(|(name, _)| !name.ends_with(['0', '2', '4', '6', '8']))
    {
        assert_eq!(
            &fs::read_to_string(author.path(&format!("unpacked/{name}/data.yaml"))).unwrap(),
            text,
            "{name}"
        );
    }
    println!(
        "YAML: {} texts through conftest push, pull and save as OPA reads them",
        texts.len()
    );
    assert!(texts.len() >= ENOUGH, "only {} texts", texts.len());
}
