//! Runs the tests of a policy: the `test_` rules of `*_test.rego` files.

use std::{path::Path, rc::Rc};

use super::{
    BundleError, BundleManifest, Folder, PackError, PackOptions,
    check::version_of,
    document::Document,
    pack::members_text,
    paths::{data_path, is_data, mount},
    policy::evaluator,
    rego::{self, Module, RegoError, RegoVersion},
    statements::{Expression, expressions, statements},
    value::{read_exact, value_of},
};
use crate::oci::read_regular;

/// The results of the tests of a policy.
#[derive(Debug, Clone, Default)]
pub struct TestSummary {
    /// The number of tests that passed.
    pub passed: usize,
    /// The failed tests: name, file, line and reason.
    pub failures: Vec<String>,
}

impl Folder {
    /// Runs all tests with the built-in evaluator, which has most of OPA's functions but not its
    /// cryptography. Blocks.
    ///
    /// # Errors
    /// When the tests can't be run. A failed test is not an error.
    pub fn test(&self, options: &PackOptions) -> Result<TestSummary, PackError> {
        let manifest = members_text(&self.manifest_for(options));
        let manifest =
            BundleManifest::parse(manifest.as_bytes()).map_err(|reason| BundleError::File {
                path: ".manifest".to_owned(),
                reason,
            })?;
        let refused = |reason: String| PackError::File {
            place: ".manifest".to_owned(),
            reason,
        };
        let mut engine = evaluator().map_err(|error| refused(error.to_string()))?;
        let mut data = Document::empty();
        for name in self.files.keys() {
            let content = self.content(name)?;
            if name.ends_with(".rego") {
                let text =
                    String::from_utf8(content).map_err(|_| PackError::NotText(self.place(name)))?;
                add(
                    &mut engine,
                    &self.place(name),
                    &text,
                    version_of(&manifest, name),
                )?;
            } else if is_data(name) {
                let refused = |reason: String| PackError::in_file(&self.place(name), &reason);
                let document = read_exact(name, &content)
                    .map_err(refused)?
                    .mounted(&mount(name));
                data.merge(document)
                    .map_err(|at| refused(format!("another file sets {}", data_path(&at.path))))?;
            }
        }
        let data = value_of(&data).map_err(|reason| PackError::File {
            place: "data".to_owned(),
            reason,
        })?;
        engine
            .add_data(data)
            .map_err(|error| refused(error.to_string()))?;
        let mut found = Vec::new();
        for (name, path) in &self.tests {
            let place = path.display().to_string();
            let text = read_text(path)?;
            let version = version_of(&manifest, name);
            let module = Module::parse(name, &place, &text, version)?;
            add(&mut engine, &place, &text, version)?;
            let rules = test_rules(&text).into_iter();
            let declared = rules.filter(|rule| {
                engine
                    .has_declared_rule_rooted_at(&place, rule)
                    .unwrap_or(false)
            });
            let declared: Vec<_> = declared.collect();
            let file = Rc::new(TestFile {
                place,
                text,
                version,
                module,
            });
            found.extend(declared.into_iter().map(|rule| (Rc::clone(&file), rule)));
        }
        let mut run = TestSummary::default();
        for (file, rule) in found {
            let path = rule_path(&file.module, &rule);
            match outcome(&mut engine.clone(), &path) {
                Ok(()) => run.passed += 1,
                Err(reason) => {
                    let (line, reason) = file.explain(&engine, &rule, reason);
                    run.failures
                        .push(format!("{path} ({}:{line}): {reason}", file.place));
                }
            }
        }
        Ok(run)
    }
}

/// A file with tests.
struct TestFile {
    place: String,
    text: String,
    version: RegoVersion,
    module: Module,
}

impl TestFile {
    /// The line and the expression at which a test fails, if they can be determined; otherwise the
    /// line of the test and `reason`.
    fn explain(&self, engine: &regorus::Engine, rule: &str, reason: String) -> (usize, String) {
        let is_rule = |line: &str| {
            line.strip_prefix(rule)
                .is_some_and(|rest| !rest.starts_with(is_identifier_char))
        };
        let statements = statements(&self.text);
        let own: Vec<_> = statements.iter().filter(|one| is_rule(one.text)).collect();
        let line = own.first().map_or(0, |one| one.line);
        let [only] = own.as_slice() else {
            return (line, reason);
        };
        if reason != UNDEFINED {
            return (line, reason);
        }
        match self.first_undefined(engine, &expressions(only.text)) {
            Some(expression) => {
                let text = expression
                    .text
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ");
                (line + expression.line, format!("{reason}: {text}"))
            }
            None => (line, reason),
        }
    }

    /// The first expression of a body at which the body becomes undefined. For each expression, a
    /// rule with the body up to it is added to the package and evaluated.
    fn first_undefined<'a>(
        &self,
        engine: &regorus::Engine,
        body: &[Expression<'a>],
    ) -> Option<Expression<'a>> {
        let head = if self.version == RegoVersion::V0 {
            ""
        } else {
            " if"
        };
        let mut engine = engine.clone();
        let mut text = String::new();
        for count in 1..=body.len().min(MAX_EXPRESSIONS) {
            let lines: Vec<_> = body[..count]
                .iter()
                .map(|expression| expression.text)
                .collect();
            text.push_str(&format!(
                "\n{PROBE_PREFIX}{count}{head} {{\n{}\n}}\n",
                lines.join("\n")
            ));
        }
        let imports = statements(&self.text)
            .into_iter()
            .filter(|one| one.text.starts_with("import"));
        let imports: String = imports.map(|one| one.text).collect();
        let package = rule_path(&self.module, "");
        let package = package.trim_start_matches("data.").trim_end_matches('.');
        add(
            &mut engine,
            "",
            &format!("package {package}\n{imports}{text}"),
            self.version,
        )
        .ok()?;
        (1..=body.len().min(MAX_EXPRESSIONS)).find_map(|count| {
            let probe = rule_path(&self.module, &format!("{PROBE_PREFIX}{count}"));
            (outcome(&mut engine.clone(), &probe).err().as_deref() == Some(UNDEFINED))
                .then(|| body[count - 1])
        })
    }
}

/// Reads a test file.
fn read_text(path: &Path) -> Result<String, PackError> {
    let bytes =
        read_regular(path, MAX_TEST_FILE_BYTES).map_err(|source| PackError::io(path, source))?;
    String::from_utf8(bytes).map_err(|_| PackError::NotText(path.display().to_string()))
}

fn is_identifier_char(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The reason for a test without a value.
const UNDEFINED: &str = "undefined or false";
/// The prefix of the names of probe rules, which no policy uses.
const PROBE_PREFIX: &str = "bundlegate_probe_";
/// The maximum number of expressions of a test that are probed.
const MAX_EXPRESSIONS: usize = 100;
/// The maximum size of a test file.
const MAX_TEST_FILE_BYTES: u64 = 64 << 20;

fn add(
    engine: &mut regorus::Engine,
    place: &str,
    text: &str,
    version: RegoVersion,
) -> Result<(), PackError> {
    engine.set_rego_v0(version == RegoVersion::V0);
    rego::add(engine, place, text)?;
    Ok(())
}

/// The names at the start of lines that may be names of test rules.
fn test_rules(text: &str) -> Vec<String> {
    let mut rules: Vec<String> = Vec::new();
    for line in text
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with("test_"))
    {
        let end = line.find(|character: char| !(character.is_alphanumeric() || character == '_'));
        let name = &line[..end.unwrap_or(line.len())];
        if !rules.iter().any(|known| known == name) {
            rules.push(name.to_owned());
        }
    }
    rules
}

/// The path of a rule, such as `data.a["b-c"].test_x`.
fn rule_path(module: &Module, rule: &str) -> String {
    let plain = |segment: &str| {
        segment
            .chars()
            .all(|character| character.is_alphanumeric() || character == '_')
    };
    let package = module.path.iter().map(|segment| {
        if plain(segment) {
            format!(".{segment}")
        } else {
            format!("[{}]", serde_json::Value::from(segment.as_str()))
        }
    });
    format!("data{}.{rule}", package.collect::<String>())
}

/// Evaluates a test. It passes if it is true, or if all of its cases are.
fn outcome(engine: &mut regorus::Engine, rule: &str) -> Result<(), String> {
    let results = engine.eval_query(rule.to_owned(), false).map_err(|error| {
        let error = RegoError::from_report("", &error.to_string());
        format!("{} {}", error.place, error.reason)
            .trim()
            .to_owned()
    })?;
    let value = results
        .result
        .first()
        .and_then(|result| result.expressions.first())
        .map(|found| &found.value);
    match value {
        Some(regorus::Value::Bool(true)) => Ok(()),
        Some(regorus::Value::Object(cases)) => {
            let failed = cases
                .iter()
                .find(|(_, passed)| **passed != regorus::Value::Bool(true));
            failed.map_or(Ok(()), |(case, _)| Err(format!("case {case} fails")))
        }
        Some(regorus::Value::Bool(false)) => Err("its value is false".to_owned()),
        Some(regorus::Value::Undefined) | None => Err(UNDEFINED.to_owned()),
        Some(other) => Err(format!("its value is {other} instead of true")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::bundle::Limits;

    const LIMITS: Limits = Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 100,
        bundle_manifest: 1 << 20,
    };

    fn run(files: &[(&str, &str)]) -> TestSummary {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        Folder::read(folder.path(), &LIMITS)
            .unwrap()
            .test(&PackOptions::new(LIMITS))
            .unwrap()
    }

    const POLICY: (&str, &str) = (
        "a/p.rego",
        "package a.b\n\nallow if data.users[input.user].admin\n",
    );

    #[test]
    fn tests_see_policy_data_and_input() {
        let run = run(&[
            POLICY,
            ("users/data.json", r#"{"alice":{"admin":true}}"#),
            ("users/more/data.yaml", "x: 1\n"),
            (
                "a/p_test.rego",
                "package a.b_test\n\nimport data.a.b\n\ntest_admin if b.allow with input.user as \"alice\"\n\n\
                 test_other if not b.allow with input.user as \"bob\"\n\n\
                 test_mocked if b.allow with input.user as \"bob\" with data.users as {\"bob\": {\"admin\": true}}\n\n\
                 test_data if data.users.more.x == 1\n\nhelper if false\n",
            ),
        ]);
        assert_eq!((run.passed, run.failures), (4, Vec::<String>::new()));
    }

    #[test]
    fn failed_tests_have_a_name_and_a_reason() {
        let run = run(&[
            POLICY,
            (
                "p_test.rego",
                "package p_test\n\ntest_undefined if 1 == 2\n\ntest_false := false\n\ntest_odd := 7\n\n\
              test_cases[name] := passed if {\n\tsome name, passed in {\"one\": true, \"two\": false}\n}\n\ntest_good if true\n",
            ),
        ]);
        assert_eq!(run.passed, 1);
        for (failure, expected) in run.failures.iter().zip([
            "undefined or false: 1 == 2",
            "is false",
            "is 7",
            "case \"two\"",
        ]) {
            assert!(
                failure.starts_with("data.p_test.test_") && failure.contains(expected),
                "{failure}"
            );
            assert!(
                failure.contains("p_test.rego:") && !failure.contains('\n'),
                "{failure}"
            );
        }
        assert_eq!(run.failures.len(), 4);
    }

    #[test]
    fn a_failed_test_names_the_line_and_the_expression() {
        let run = run(&[
            POLICY,
            (
                "p_test.rego",
                "package a.b_test\n\nimport data.a.b\n\ntest_admin if {\n\tname := \"bob\"\n\tcount(name) == 3\n\
                 \tb.allow\n\t\twith input as {\"user\": name}\n\tname == \"bob\"\n}\n\n\
                 test_twice if false\n\ntest_twice if {\n\tfalse\n}\n\ntest_line if data.nothing.here == 1 # no\n",
            ),
        ]);
        let failures: Vec<_> = run
            .failures
            .iter()
            .map(|failure| failure.split_once("p_test.rego:").unwrap().1)
            .collect();
        let expected = [
            "8): undefined or false: b.allow with input as {\"user\": name}",
            "13): undefined or false",
            "19): undefined or false: data.nothing.here == 1",
        ];
        assert_eq!(failures, expected);
    }

    #[test]
    fn common_functions_of_opa_exist() {
        let run = run(&[
            POLICY,
            (
                "p_test.rego",
                "package p_test\n\ntest_functions if {\n\tregex.match(\"^a+$\", \"aaa\")\n\tglob.match(\"*.x\", [\".\"], \"a.x\")\n\
                 \tnet.cidr_contains(\"10.0.0.0/8\", \"10.1.2.3\")\n\tbase64.decode(\"YQ==\") == \"a\"\n\
                 \tsemver.compare(\"1.0.0\", \"1.0.1\") == -1\n\ttime.parse_rfc3339_ns(\"1970-01-01T00:00:01Z\") == 1000000000\n\
                 \tyaml.unmarshal(\"a: 1\").a == 1\n\tobject.get({}, \"a\", 2) == 2\n\tjson.patch({}, [{\"op\": \"add\", \"path\": \"/a\", \"value\": 1}]) == {\"a\": 1}\n}\n",
            ),
        ]);
        assert_eq!((run.passed, run.failures), (1, Vec::<String>::new()));
    }
}
