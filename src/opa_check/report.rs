//! What `opa eval` and `opa test` say, in JSON.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use serde::{Deserialize, Serialize, de::IgnoredAny};

/// Characters of one problem.
const MAX_MESSAGE: usize = 400;
/// Problems that are kept; the rest is counted.
const MAX_PROBLEMS: usize = 10;
/// Bytes of all problems as one text.
const MAX_TEXT: usize = 1000;
/// How deep the cases of a test are looked into.
const MAX_DEPTH: usize = 8;

/// What `opa` makes of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It loads, and so many tests passed, where tests were to be run.
    Passed {
        /// How many.
        tests: usize,
    },
    /// It does not load, or a test failed.
    Refused(Problems),
}

/// Why a bundle is refused: at least one problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problems {
    /// The first ones.
    pub first: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

/// One error of OPA's, or one test that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where, if OPA says so.
    pub place: Option<Place>,
    /// What, on one line of limited length.
    pub message: String,
}

/// A place in a file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file's name in the bundle, without a slash in front.
    pub file: String,
    /// The line, from 1.
    pub row: u64,
}

/// How the tests of a policy went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TestRun {
    /// How many passed; of a test with cases, each case counts.
    pub passed: usize,
    /// How many are marked as not to be run (`todo_test_…`).
    pub skipped: usize,
    /// Those that failed, by full name.
    pub failures: Vec<(String, Problem)>,
}

impl Problems {
    /// `None` where there is none.
    pub(super) fn of(problems: impl IntoIterator<Item = Problem>) -> Option<Self> {
        let mut problems = problems.into_iter();
        let first: Vec<_> = problems.by_ref().take(MAX_PROBLEMS).collect();
        (!first.is_empty()).then(|| Self { first, more: problems.count() })
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told: Vec<_> = self.first.iter().map(ToString::to_string).collect();
        let mut text = cut(&told.join("; "), MAX_TEXT);
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
    /// From a text that may begin with its place.
    fn of_text(text: &str) -> Self {
        let text = plain(text);
        let (place, message) = match text.split_once(": ").map(|(place, rest)| (Place::of_text(place), rest)) {
            Some((Some(place), rest)) => (Some(place), rest),
            _ => (None, text),
        };
        Self { place, message: one_line(message) }
    }
}

impl Place {
    /// `FILE:LINE`.
    fn of_text(text: &str) -> Option<Self> {
        let (file, row) = text.rsplit_once(':')?;
        Some(Self { file: file_name(file), row: row.parse().ok()? })
    }
}

/// What `opa eval` answers.
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

/// One entry of what `opa test` answers.
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

/// One entry of what `opa test` answers with a trace.
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
    /// 0 is the runner's own query.
    #[serde(default, rename = "QueryID")]
    query: u64,
    location: Option<Location>,
    #[serde(default)]
    node: serde_json::Value,
}

/// What an evaluation says about what was loaded for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    Yes,
    No {
        problems: Problems,
        /// All of them are about types.
        only_types: bool,
    },
}

/// Reads the answer of `opa eval --format json`; `None` where it is none.
pub(super) fn evaluation(success: bool, said: &[u8]) -> Option<Loaded> {
    let answer: Evaluation = serde_json::from_slice(said).ok()?;
    match Problems::of(answer.errors.iter().map(OpaError::problem)) {
        None if success && answer.result.is_some() => Some(Loaded::Yes),
        Some(problems) if !success => {
            let only_types = answer.errors.iter().all(|error| error.code == "rego_type_error");
            Some(Loaded::No { problems, only_types })
        }
        _ => None,
    }
}

/// Reads the answer of `opa test --format json`; `None` where it is none, or where OPA broke a
/// test off.
pub(super) fn tests(said: &[u8]) -> Option<TestRun> {
    // An empty list of Go may be written as `null`.
    let results: Option<Vec<TestResult>> = serde_json::from_slice(said).ok()?;
    let mut run = TestRun::default();
    for result in results.unwrap_or_default() {
        if result.is_cancelled() {
            return None;
        }
        result.add_to(&mut run);
    }
    Some(run)
}

/// Reads from `opa test --format json --explain fails` where tests fail, by their full names: the
/// last expression that had no answer. An `every` fails where the expression in it does.
pub(super) fn failing_places(said: &[u8]) -> HashMap<String, Place> {
    let traced: Vec<Traced> = serde_json::from_slice(said).unwrap_or_default();
    let place = |traced: &Traced| traced.trace.iter().rev().find_map(Event::failing_place);
    traced.iter().filter_map(|traced| Some((traced.full_name(), place(traced)?))).collect()
}

/// Reads the text of `opa test` about modules that do not compile: `2 errors occurred:` and
/// the errors, or one behind the colon.
pub(super) fn compile_errors(said: &[u8]) -> Option<Problems> {
    let said = String::from_utf8_lossy(said);
    let (head, rest) = said.trim().split_once(" occurred:")?;
    let (count, word) = head.split_once(' ')?;
    if count.parse::<u64>().is_err() || !matches!(word, "error" | "errors") {
        return None;
    }
    // Indented lines explain the one before.
    let lines = rest.trim().lines().filter(|line| !line.starts_with(char::is_whitespace));
    Problems::of(lines.map(Problem::of_text))
}

impl OpaError {
    fn problem(&self) -> Problem {
        let Some(place) = self.location.as_ref().and_then(Location::place) else {
            return Problem::of_text(&self.message);
        };
        let message =
            if self.code.is_empty() { self.message.clone() } else { format!("{}: {}", self.code, self.message) };
        Problem { place: Some(place), message: one_line(&message) }
    }
}

impl Location {
    fn place(&self) -> Option<Place> {
        (!self.file.is_empty()).then(|| Place { file: file_name(&self.file), row: self.row })
    }
}

impl Traced {
    fn full_name(&self) -> String {
        format!("{}.{}", self.package, self.name)
    }
}

impl Event {
    fn failing_place(&self) -> Option<Place> {
        // The terms of an `every` are an object, those of other expressions a list.
        let is_every = self.node.get("terms").is_some_and(serde_json::Value::is_object);
        let place = self.location.as_ref().and_then(Location::place);
        place.filter(|_| self.op == "Fail" && self.query != 0 && !is_every)
    }
}

impl TestResult {
    fn is_cancelled(&self) -> bool {
        self.error.as_ref().is_some_and(|error| error.get("code").is_some_and(|code| code == "eval_cancel_error"))
    }

    fn add_to(&self, run: &mut TestRun) {
        if self.skip {
            run.skipped += 1;
            return;
        }
        let mut cases = Cases::default();
        self.sub_results.iter().for_each(|(name, case)| case.count(&mut cases, name, 0));
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
        let of_error = self.error.as_ref().and_then(|error| Location::deserialize(error.get("location")?).ok());
        let place = of_error.as_ref().or(self.location.as_ref()).and_then(Location::place);
        let message = one_line(&format!("test {name} failed{reason}"));
        run.failures.push((name, Problem { place, message }));
    }
}

/// The cases of one test that have no cases of their own.
#[derive(Default)]
struct Cases {
    passed: usize,
    /// By name.
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

/// What OPA puts before a loading error says nothing: our own name of the bundle's file, and
/// that there is one error.
fn plain(text: &str) -> &str {
    let text = text.strip_prefix("loading error: ").unwrap_or(text);
    let text = text.strip_prefix("bundle activation failed: ").unwrap_or(text);
    let text = match text.strip_prefix("bundle ").and_then(|rest| rest.split_once(": ")) {
        Some((name, rest)) if name.ends_with(super::scratch::BUNDLE) => rest,
        _ => text,
    };
    text.strip_prefix("1 error occurred: ").unwrap_or(text)
}

/// A name as it stands in the tarball: `/a.rego`, `./a.rego` or `bundle.tar.gz/a.rego`.
fn file_name(file: &str) -> String {
    let file = file.trim_start_matches("./").trim_start_matches('/');
    let file = file.strip_prefix(super::scratch::BUNDLE).unwrap_or(file).trim_start_matches('/');
    one_line(file)
}

/// Foreign text on one line, cut.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split(|character: char| character.is_whitespace() || character.is_control()).collect();
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    cut(&words.join(" "), MAX_MESSAGE)
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(said: &str) -> String {
        match evaluation(false, said.as_bytes()) {
            Some(Loaded::No { problems, .. }) => problems.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_are_told_with_file_line_and_code() {
        let said = r#"{"errors":[
            {"message":"var y is unsafe","code":"rego_unsafe_var_error","location":{"file":"/a/p.rego","row":6,"col":3}},
            {"message":"match error\n\tleft","code":"rego_type_error","location":{"file":"./q.rego","row":1,"col":1}}]}"#;
        let expected =
            "a/p.rego:6: rego_unsafe_var_error: var y is unsafe; q.rego:1: rego_type_error: match error left";
        assert_eq!(refused(said), expected);
    }

    #[test]
    fn the_place_in_a_loading_error_is_found() {
        let said = r#"{"errors":[{"message":"loading error: bundle bundle.tar.gz: 1 error occurred: ./p.rego:4: rego_parse_error: unexpected eof token\n\tx if {\n\t     ^"}]}"#;
        assert_eq!(refused(said), "p.rego:4: rego_parse_error: unexpected eof token x if { ^");
        let said = r#"{"errors":[{"message":"loading error: bundle bundle.tar.gz: bundle read failed"}]}"#;
        assert_eq!(refused(said), "bundle read failed");
    }

    #[test]
    fn only_a_whole_answer_is_one() {
        let result = br#"{"result":[{"expressions":[]}]}"#;
        let errors = br#"{"errors":[{"message":"x"}]}"#;
        assert_eq!(evaluation(true, result), Some(Loaded::Yes));
        for (success, said) in [
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
            assert_eq!(evaluation(success, said), None, "{success} {}", String::from_utf8_lossy(said));
        }
    }

    #[test]
    fn a_hostile_text_is_one_short_line() {
        let message = format!("a\\n\\u001b[31m\\u0000{}", "é".repeat(5000));
        let error = format!(r#"{{"message":"{message}","code":"c","location":{{"file":"x\n","row":1}}}}"#);
        let said = format!(r#"{{"errors":[{}]}}"#, vec![error; 50].join(","));
        let told = refused(&said);
        assert!(told.len() < 1024 && !told.contains(char::is_control), "{told}");
        assert!(told.ends_with("; and 40 more"), "{told}");
    }

    #[test]
    fn tests_are_counted_and_failures_have_a_name_and_a_place() {
        let said = br#"[
            {"location":{"file":"./p_test.rego","row":12,"col":1},"package":"data.t","name":"todo_test_later","skip":true},
            {"location":{"file":"./p_test.rego","row":23,"col":1},"package":"data.t","name":"test_cases","fail":true,
             "sub_results":{"one":{"name":"one"},"two":{"name":"two","sub_results":{"a":{"fail":true},"b":{}}}}},
            {"location":{"file":"./p_test.rego","row":5,"col":1},"package":"data.t","name":"test_ok"},
            {"location":{"file":"./p_test.rego","row":7,"col":1},"package":"data.t","name":"test_bad","fail":true,"output":"aGkK"},
            {"location":{"file":"./p_test.rego","row":9,"col":1},"package":"data.t","name":"test_error",
             "error":{"code":"eval_conflict_error","message":"conflict","location":{"file":"./p.rego","row":2}}}]"#;
        let run = tests(said).unwrap();
        assert_eq!((run.passed, run.skipped), (3, 1));
        let told: Vec<_> = run.failures.iter().map(|(_, problem)| problem.to_string()).collect();
        let expected = [
            "p_test.rego:23: test data.t.test_cases failed: case two/a",
            "p_test.rego:7: test data.t.test_bad failed",
            "p.rego:2: test data.t.test_error failed: conflict",
        ];
        assert_eq!(told, expected);
        assert_eq!(tests(b"null").unwrap(), TestRun::default());
        assert_eq!(tests(b"[]").unwrap(), TestRun::default());
        assert_eq!(tests(b"{}"), None);
    }

    #[test]
    fn a_test_that_was_broken_off_says_nothing() {
        let said = br#"[{"package":"data.t","name":"test_slow","error":{"code":"eval_cancel_error","message":"x"}}]"#;
        assert_eq!(tests(said), None);
    }

    #[test]
    fn the_expression_that_fails_is_found_in_the_trace() {
        let said = br#"[{"package":"data.t","name":"test_every","trace":[
            {"Op":"Enter","QueryID":1,"Location":{"file":"./t.rego","row":3},"Node":{"terms":[]}},
            {"Op":"Fail","QueryID":4,"Location":{"file":"./t.rego","row":5},"Node":{"terms":[]}},
            {"Op":"Fail","QueryID":2,"Location":{"file":"./t.rego","row":4},"Node":{"terms":{"domain":[]}}},
            {"Op":"Fail","QueryID":0,"Location":{"file":"","row":1},"Node":[]}]},
            {"package":"data.t","name":"test_without"}]"#;
        let places = failing_places(said);
        assert_eq!(places.len(), 1);
        assert_eq!(places["data.t.test_every"], Place { file: "t.rego".into(), row: 5 });
        assert!(failing_places(b"panic: x").is_empty());
    }

    #[test]
    fn errors_as_text_are_read_line_by_line() {
        let one = compile_errors(b"1 error occurred: ./p.rego:3: rego_compile_error: x\n").unwrap();
        assert_eq!(one.to_string(), "p.rego:3: rego_compile_error: x");
        let two = compile_errors(b"2 errors occurred:\n./p.rego:3: a: x\n\tleft: y\n./p.rego:4: b: z\n").unwrap();
        assert_eq!(two.to_string(), "p.rego:3: a: x; p.rego:4: b: z");
        for said in ["", "panic: 1 error occurred: x", "Error: unknown flag", "many errors occurred: x"] {
            assert_eq!(compile_errors(said.as_bytes()), None, "{said}");
        }
    }
}
