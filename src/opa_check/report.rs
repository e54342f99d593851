//! Parses the output of `opa eval` and `opa test`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::text::{cut, one_line};

/// The maximum number of problems that are kept; the rest is counted.
const MAX_PROBLEMS: usize = 10;
/// The maximum size of all problems as one text.
const MAX_TEXT_BYTES: usize = 1000;
/// The maximum depth of nested test cases.
const MAX_DEPTH: usize = 8;

/// The verdict of `opa` about a bundle. Stored in the cache as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The bundle loads, and its tests passed if they were run.
    Passed {
        /// The number of tests that passed.
        tests: usize,
    },
    /// The bundle does not load, or a test failed.
    Refused(Problems),
}

/// The reasons for which a bundle is refused: at least one problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problems {
    /// The first problems.
    pub first: Vec<Problem>,
    /// The number of further problems.
    pub more: usize,
}

/// One error of OPA, or one failed test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The place, if OPA names one.
    pub place: Option<Place>,
    /// The message, on one line of limited length.
    pub message: String,
}

/// A place in a file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file's name in the bundle, without a leading slash.
    pub file: String,
    /// The line, counted from 1.
    pub row: u64,
}

/// The results of the tests of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TestRun {
    /// The number of tests that passed; each case of a test with cases counts.
    pub passed: usize,
    /// The number of tests marked as `todo_test_…`, which OPA skips.
    pub skipped: usize,
    /// The failed tests, by full name.
    pub failures: Vec<(String, Problem)>,
}

impl Problems {
    /// `None` if there is no problem.
    pub(super) fn of(problems: impl IntoIterator<Item = Problem>) -> Option<Self> {
        let mut problems = problems.into_iter();
        let first: Vec<_> = problems.by_ref().take(MAX_PROBLEMS).collect();
        (!first.is_empty()).then(|| Self {
            first,
            more: problems.count(),
        })
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems: Vec<_> = self.first.iter().map(ToString::to_string).collect();
        let mut text = cut(&problems.join("; "), MAX_TEXT_BYTES);
        if self.more > 0 {
            text += &format!("; and {} more", self.more);
        }
        f.write_str(&text)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(Place { file, row }) => write!(f, "{file}:{row}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl Problem {
    /// Parses a text that may begin with its place.
    fn of_text(text: &str) -> Self {
        let text = strip_loading_prefix(text);
        let (place, message) = match text
            .split_once(": ")
            .map(|(place, rest)| (Place::of_text(place), rest))
        {
            Some((Some(place), rest)) => (Some(place), rest),
            _ => (None, text),
        };
        Self {
            place,
            message: one_line(message),
        }
    }
}

impl Place {
    /// `FILE:LINE`.
    fn of_text(text: &str) -> Option<Self> {
        let (file, row) = text.rsplit_once(':')?;
        Some(Self {
            file: file_name(file),
            row: row.parse().ok()?,
        })
    }
}

/// The output of `opa eval`.
#[derive(Deserialize)]
struct Evaluation {
    result: Option<IgnoredAny>,
    #[serde(default)]
    errors: Vec<OpaError>,
}

#[derive(Deserialize)]
struct OpaError {
    #[serde(default)]
    message: String,
    #[serde(default)]
    code: String,
    location: Option<Location>,
}

#[derive(Deserialize)]
struct Location {
    #[serde(default)]
    file: String,
    #[serde(default)]
    row: u64,
}

/// One entry of the output of `opa test`.
#[derive(Deserialize)]
struct TestResult {
    #[serde(default)]
    package: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    fail: bool,
    #[serde(default)]
    skip: bool,
    error: Option<serde_json::Value>,
    location: Option<Location>,
    #[serde(default)]
    sub_results: BTreeMap<String, SubResult>,
}

#[derive(Deserialize)]
struct SubResult {
    #[serde(default)]
    fail: bool,
    #[serde(default)]
    sub_results: BTreeMap<String, SubResult>,
}

/// One entry of the output of `opa test` with a trace.
#[derive(Deserialize)]
struct Traced {
    #[serde(default)]
    package: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    trace: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    op: String,
    /// 0 is the query of the test runner itself.
    #[serde(default, rename = "QueryID")]
    query: u64,
    location: Option<Location>,
    #[serde(default)]
    node: serde_json::Value,
}

/// Whether an evaluation could load its bundle.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    Yes,
    No {
        problems: Problems,
        /// Whether all of them are type errors.
        only_types: bool,
    },
}

/// Parses the output of `opa eval --format json`; `None` if it is malformed or contradicts the exit
/// status.
pub(super) fn evaluation(success: bool, output: &[u8]) -> Option<Loaded> {
    let evaluation: Evaluation = serde_json::from_slice(output).ok()?;
    match Problems::of(evaluation.errors.iter().map(OpaError::problem)) {
        None if success && evaluation.result.is_some() => Some(Loaded::Yes),
        Some(problems) if !success => {
            let only_types = evaluation
                .errors
                .iter()
                .all(|error| error.code == "rego_type_error");
            Some(Loaded::No {
                problems,
                only_types,
            })
        }
        _ => None,
    }
}

/// Parses the output of `opa test --format json`; `None` if it is malformed, or if OPA cancelled a
/// test.
pub(super) fn tests(output: &[u8]) -> Option<TestRun> {
    // Go may write an empty list as `null`.
    let results: Option<Vec<TestResult>> = serde_json::from_slice(output).ok()?;
    let mut run = TestRun::default();
    for result in results.unwrap_or_default() {
        if result.is_cancelled() {
            return None;
        }
        result.add_to(&mut run);
    }
    Some(run)
}

/// Parses from `opa test --format json --explain fails` the place at which each test fails, by full
/// name: its last failed expression. An `every` fails at the expression inside it.
pub(super) fn failing_places(output: &[u8]) -> HashMap<String, Place> {
    let traced: Vec<Traced> = serde_json::from_slice(output).unwrap_or_default();
    let place = |traced: &Traced| traced.trace.iter().rev().find_map(Event::failing_place);
    traced
        .iter()
        .filter_map(|traced| Some((traced.full_name(), place(traced)?)))
        .collect()
}

/// Parses the text of `opa test` about modules that do not compile: `2 errors occurred:` and the
/// errors on lines of their own, or `1 error occurred:` and the error on the same line.
pub(super) fn compile_errors(output: &[u8]) -> Option<Problems> {
    let output = String::from_utf8_lossy(output);
    let (head, rest) = output.trim().split_once(" occurred:")?;
    let (count, word) = head.split_once(' ')?;
    if count.parse::<u64>().is_err() || !matches!(word, "error" | "errors") {
        return None;
    }
    // Indented lines are details of the line before.
    let lines = rest
        .trim()
        .lines()
        .filter(|line| !line.starts_with(char::is_whitespace));
    Problems::of(lines.map(Problem::of_text))
}

impl OpaError {
    fn problem(&self) -> Problem {
        let Some(place) = self.location.as_ref().and_then(Location::place) else {
            return Problem::of_text(&self.message);
        };
        let message = if self.code.is_empty() {
            self.message.clone()
        } else {
            format!("{}: {}", self.code, self.message)
        };
        Problem {
            place: Some(place),
            message: one_line(&message),
        }
    }
}

impl Location {
    fn place(&self) -> Option<Place> {
        (!self.file.is_empty()).then(|| Place {
            file: file_name(&self.file),
            row: self.row,
        })
    }
}

impl Traced {
    fn full_name(&self) -> String {
        format!("{}.{}", self.package, self.name)
    }
}

impl Event {
    fn failing_place(&self) -> Option<Place> {
        // The terms of an `every` are an object; the terms of other expressions are a list.
        let is_every = self
            .node
            .get("terms")
            .is_some_and(serde_json::Value::is_object);
        let place = self.location.as_ref().and_then(Location::place);
        place.filter(|_| self.op == "Fail" && self.query != 0 && !is_every)
    }
}

impl TestResult {
    fn is_cancelled(&self) -> bool {
        self.error.as_ref().is_some_and(|error| {
            error
                .get("code")
                .is_some_and(|code| code == "eval_cancel_error")
        })
    }

    fn add_to(&self, run: &mut TestRun) {
        if self.skip {
            run.skipped += 1;
            return;
        }
        let mut cases = Cases::default();
        self.sub_results
            .iter()
            .for_each(|(name, case)| case.count(&mut cases, name, 0));
        if !self.fail && self.error.is_none() && cases.failed.is_empty() {
            run.passed += cases.passed.max(1);
            return;
        }
        run.passed += cases.passed;
        let name = format!("{}.{}", self.package, self.name);
        let reason = match (&self.error, cases.failed.as_slice()) {
            (Some(error), _) => match error.get("message").and_then(|message| message.as_str()) {
                Some(message) => format!(": {message}"),
                None => ": OPA could not evaluate it".to_owned(),
            },
            (None, []) => String::new(),
            (None, cases) => format!(": case {}", cases.join(", ")),
        };
        let of_error = self
            .error
            .as_ref()
            .and_then(|error| Location::deserialize(error.get("location")?).ok());
        let place = of_error
            .as_ref()
            .or(self.location.as_ref())
            .and_then(Location::place);
        let message = one_line(&format!("test {name} failed{reason}"));
        run.failures.push((name, Problem { place, message }));
    }
}

/// The cases of one test that have no cases of their own.
#[derive(Default)]
struct Cases {
    passed: usize,
    /// Their names.
    failed: Vec<String>,
}

impl SubResult {
    fn count(&self, cases: &mut Cases, name: &str, depth: usize) {
        if self.sub_results.is_empty() || depth == MAX_DEPTH {
            if self.fail {
                cases.failed.push(name.to_owned())
            } else {
                cases.passed += 1
            }
            return;
        }
        for (inner, case) in &self.sub_results {
            case.count(cases, &format!("{name}/{inner}"), depth + 1);
        }
    }
}

/// A loading error without OPA's prefixes, which name the temporary file of the bundle and count
/// one error.
fn strip_loading_prefix(text: &str) -> &str {
    let text = text.strip_prefix("loading error: ").unwrap_or(text);
    let text = text
        .strip_prefix("bundle activation failed: ")
        .unwrap_or(text);
    let text = match text
        .strip_prefix("bundle ")
        .and_then(|rest| rest.split_once(": "))
    {
        Some((name, rest)) if name.ends_with(super::scratch::BUNDLE) => rest,
        _ => text,
    };
    text.strip_prefix("1 error occurred: ").unwrap_or(text)
}

/// The name of a file in the bundle. OPA writes `/a.rego`, `./a.rego` or `bundle.tar.gz/a.rego`.
fn file_name(file: &str) -> String {
    let file = file.trim_start_matches("./").trim_start_matches('/');
    let file = file
        .strip_prefix(super::scratch::BUNDLE)
        .unwrap_or(file)
        .trim_start_matches('/');
    one_line(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(output: &str) -> String {
        match evaluation(false, output.as_bytes()) {
            Some(Loaded::No { problems, .. }) => problems.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_have_file_line_and_code() {
        let output = r#"{"errors":[
            {"message":"var y is unsafe","code":"rego_unsafe_var_error","location":{"file":"/a/p.rego","row":6,"col":3}},
            {"message":"match error\n\tleft","code":"rego_type_error","location":{"file":"./q.rego","row":1,"col":1}}]}"#;
        let expected = "a/p.rego:6: rego_unsafe_var_error: var y is unsafe; q.rego:1: rego_type_error: match error left";
        assert_eq!(refused(output), expected);
    }

    #[test]
    fn the_place_in_a_loading_error_is_found() {
        let output = r#"{"errors":[{"message":"loading error: bundle bundle.tar.gz: 1 error occurred: ./p.rego:4: rego_parse_error: unexpected eof token\n\tx if {\n\t     ^"}]}"#;
        assert_eq!(
            refused(output),
            "p.rego:4: rego_parse_error: unexpected eof token x if { ^"
        );
        let output =
            r#"{"errors":[{"message":"loading error: bundle bundle.tar.gz: bundle read failed"}]}"#;
        assert_eq!(refused(output), "bundle read failed");
    }

    #[test]
    fn only_complete_and_consistent_output_is_accepted() {
        let result = br#"{"result":[{"expressions":[]}]}"#;
        let errors = br#"{"errors":[{"message":"x"}]}"#;
        assert_eq!(evaluation(true, result), Some(Loaded::Yes));
        for (success, output) in [
            (true, &b""[..]),
            (true, b"{}"),
            (true, errors),
            (false, result),
            (false, b"{}"),
            (false, br#"{"errors":[]}"#),
            (false, br#"{"errors":[{"message":"x"}"#),
            (false, b"panic: runtime error"),
            (false, b"fatal error: out of memory"),
        ] {
            assert_eq!(
                evaluation(success, output),
                None,
                "{success} {}",
                String::from_utf8_lossy(output)
            );
        }
    }

    #[test]
    fn a_hostile_text_is_one_short_line() {
        let message = format!("a\\n\\u001b[31m\\u0000{}", "é".repeat(5000));
        let error =
            format!(r#"{{"message":"{message}","code":"c","location":{{"file":"x\n","row":1}}}}"#);
        let output = format!(r#"{{"errors":[{}]}}"#, vec![error; 50].join(","));
        let text = refused(&output);
        assert!(
            text.len() < 1024 && !text.contains(char::is_control),
            "{text}"
        );
        assert!(text.ends_with("; and 40 more"), "{text}");
    }

    #[test]
    fn tests_are_counted_and_failures_have_a_name_and_a_place() {
        let output = br#"[
            {"location":{"file":"./p_test.rego","row":12,"col":1},"package":"data.t","name":"todo_test_later","skip":true},
            {"location":{"file":"./p_test.rego","row":23,"col":1},"package":"data.t","name":"test_cases","fail":true,
             "sub_results":{"one":{"name":"one"},"two":{"name":"two","sub_results":{"a":{"fail":true},"b":{}}}}},
            {"location":{"file":"./p_test.rego","row":5,"col":1},"package":"data.t","name":"test_ok"},
            {"location":{"file":"./p_test.rego","row":7,"col":1},"package":"data.t","name":"test_bad","fail":true,"output":"aGkK"},
            {"location":{"file":"./p_test.rego","row":9,"col":1},"package":"data.t","name":"test_error",
             "error":{"code":"eval_conflict_error","message":"conflict","location":{"file":"./p.rego","row":2}}}]"#;
        let run = tests(output).unwrap();
        assert_eq!((run.passed, run.skipped), (3, 1));
        let text: Vec<_> = run
            .failures
            .iter()
            .map(|(_, problem)| problem.to_string())
            .collect();
        let expected = [
            "p_test.rego:23: test data.t.test_cases failed: case two/a",
            "p_test.rego:7: test data.t.test_bad failed",
            "p.rego:2: test data.t.test_error failed: conflict",
        ];
        assert_eq!(text, expected);
        assert_eq!(tests(b"null").unwrap(), TestRun::default());
        assert_eq!(tests(b"[]").unwrap(), TestRun::default());
        assert_eq!(tests(b"{}"), None);
    }

    #[test]
    fn a_cancelled_test_gives_no_result() {
        let output = br#"[{"package":"data.t","name":"test_slow","error":{"code":"eval_cancel_error","message":"x"}}]"#;
        assert_eq!(tests(output), None);
    }

    #[test]
    fn the_expression_that_fails_is_found_in_the_trace() {
        let output = br#"[{"package":"data.t","name":"test_every","trace":[
            {"Op":"Enter","QueryID":1,"Location":{"file":"./t.rego","row":3},"Node":{"terms":[]}},
            {"Op":"Fail","QueryID":4,"Location":{"file":"./t.rego","row":5},"Node":{"terms":[]}},
            {"Op":"Fail","QueryID":2,"Location":{"file":"./t.rego","row":4},"Node":{"terms":{"domain":[]}}},
            {"Op":"Fail","QueryID":0,"Location":{"file":"","row":1},"Node":[]}]},
            {"package":"data.t","name":"test_without"}]"#;
        let places = failing_places(output);
        assert_eq!(places.len(), 1);
        assert_eq!(
            places["data.t.test_every"],
            Place {
                file: "t.rego".into(),
                row: 5
            }
        );
        assert!(failing_places(b"panic: x").is_empty());
    }

    #[test]
    fn errors_as_text_are_parsed_line_by_line() {
        let one = compile_errors(b"1 error occurred: ./p.rego:3: rego_compile_error: x\n").unwrap();
        assert_eq!(one.to_string(), "p.rego:3: rego_compile_error: x");
        let two =
            compile_errors(b"2 errors occurred:\n./p.rego:3: a: x\n\tleft: y\n./p.rego:4: b: z\n")
                .unwrap();
        assert_eq!(two.to_string(), "p.rego:3: a: x; p.rego:4: b: z");
        for output in [
            "",
            "panic: 1 error occurred: x",
            "Error: unknown flag",
            "many errors occurred: x",
        ] {
            assert_eq!(compile_errors(output.as_bytes()), None, "{output}");
        }
    }
}
