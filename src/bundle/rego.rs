//! Parses Rego, to report errors with file and line before OPA does.

use regorus::unstable::{Expr, Rule, RuleHead};

use super::{
    diagnostic::Diagnostic,
    package::{Declaration, declaration},
    statements::{Statement, skip_quoted, statements},
};

/// The version of Rego of a file without imports (`rego_version` in `.manifest`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegoVersion {
    /// OPA's default before 1.0.
    V0,
    /// OPA's default since 1.0.
    V1,
}

/// A summary of a Rego file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The file's name in the bundle.
    pub file: String,
    /// Its package, such as `authz.api`; `None` if it could not be determined.
    pub package: Option<String>,
    /// The rules and packages that are annotated as entrypoints, such as `authz/api/allow`.
    pub entrypoints: Vec<String>,
    /// The package's segments.
    pub(super) path: Vec<String>,
    /// Its rules; empty if it was not parsed.
    pub(super) rules: Vec<RulePath>,
}

/// The path and the place of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RulePath {
    /// The path below `data`, up to the first segment that depends on evaluation.
    pub(super) path: Vec<String>,
    /// `FILE:LINE:COLUMN`.
    pub(super) place: String,
}

/// The errors of a file that can't be parsed; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegoErrors(pub(super) Vec<Diagnostic>);

/// One error of a file that can't be parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegoError {
    /// `FILE:LINE:COLUMN`.
    pub(super) place: String,
    pub(super) reason: String,
}

impl RegoVersion {
    /// The version with this number in `.manifest`; the parser treats 2 as 1.
    pub(super) fn from_number(number: i64) -> Self {
        if number == 0 { Self::V0 } else { Self::V1 }
    }

    /// Its number in `.manifest`.
    pub fn number(self) -> i64 {
        match self {
            Self::V0 => 0,
            Self::V1 => 1,
        }
    }
}

impl Module {
    /// Reads the package and the entrypoints without a parser.
    pub(super) fn scan_package(file: &str, text: &str) -> Self {
        let path = match declaration(text) {
            Declaration::Package(path) => path,
            Declaration::Invalid(_) | Declaration::NeedsParser => Vec::new(),
        };
        let package = (!path.is_empty()).then(|| path.join("."));
        let entrypoints = entrypoints(&path, without_bom(text));
        Self {
            file: file.to_owned(),
            package,
            entrypoints,
            path,
            rules: Vec::new(),
        }
    }

    /// Parses a file; `place` is its name in messages.
    ///
    /// The parser is regorus, which lags behind the newest OPA.
    pub(super) fn parse(
        file: &str,
        place: &str,
        text: &str,
        version: RegoVersion,
    ) -> Result<Self, RegoErrors> {
        let text = without_bom(text);
        let mut engine = engine(version);
        add(&mut engine, place, text)
            .map_err(|first| RegoErrors(errors(place, text, version, &first)))?;
        let packages = engine.get_policy_package_components().unwrap_or_default();
        let path = packages
            .into_iter()
            .next()
            .map(|package| package.components)
            .unwrap_or_default();
        let rules = rule_paths(&mut engine, place, &path);
        Ok(Self {
            package: Some(path.join(".")),
            entrypoints: entrypoints(&path, text),
            path,
            rules,
            ..Self::scan_package(file, text)
        })
    }
}

/// The errors of a file. The parser stops at the first error, so each statement is parsed again by
/// itself, after the package and the imports.
fn errors(place: &str, text: &str, version: RegoVersion, first: &RegoError) -> Vec<Diagnostic> {
    let first = Diagnostic::new(&first.place, first.reason.clone(), text);
    let statements = statements(text);
    let is_head =
        |one: &&Statement<'_>| one.text.starts_with("package") || one.text.starts_with("import");
    let head: String = statements
        .iter()
        .take_while(is_head)
        .map(|one| one.text)
        .collect();
    let head_lines = head.lines().count();
    let mut found: Vec<Diagnostic> = Vec::new();
    // Bounds the total size that is parsed again, for any number of statements.
    let mut left = MAX_REPARSED_BYTES;
    for statement in statements.iter().skip_while(is_head) {
        let alone = format!("{head}{}", statement.text);
        left = left.saturating_sub(alone.len());
        if left == 0 || found.len() == MAX_ERRORS {
            break;
        }
        let Err(error) = add(&mut engine(version), place, &alone) else {
            continue;
        };
        let mut error = Diagnostic::new(&error.place, error.reason, &alone);
        // An error in the package or the imports is the first error of the file.
        if error.line > head_lines {
            error.line = error.line - head_lines + statement.line - 1;
            found.push(error);
        }
    }
    // The parser splits statements differently, or the error is in the package or the imports.
    if found.is_empty() || first.line < found[0].line {
        found.insert(0, first);
    }
    found
}

/// Adds a file to an evaluator, and returns its package.
pub(super) fn add(
    engine: &mut regorus::Engine,
    place: &str,
    text: &str,
) -> Result<String, RegoError> {
    let text = without_bom(text);
    if nests_too_deep(text) {
        let reason = "its brackets are nested too deeply for the built-in parser".to_owned();
        return Err(RegoError {
            place: place.to_owned(),
            reason,
        });
    }
    let added = engine.add_policy(place.to_owned(), text.to_owned());
    added.map_err(|error| RegoError::from_report(place, &error.to_string()))
}

/// Whether the built-in parser would take hours for this text, a file or a query.
pub fn nests_too_deep(text: &str) -> bool {
    parse_effort(text)
        > BASE_EFFORT.saturating_add(EFFORT_PER_BYTE.saturating_mul(text.len() as u64))
}

/// An estimate of the characters that regorus parses. It parses the first element in brackets as
/// the head of a comprehension, and then again as an ordinary expression, which doubles the work at
/// every level: thirty nested brackets would take hours.
fn parse_effort(text: &str) -> u64 {
    let mut sum = 0_u64;
    // For each open bracket, whether the position is still in its first element.
    let mut brackets: Vec<bool> = Vec::new();
    let mut doublings = 0_u32;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '#' => drop(characters.find(|character| *character == '\n')),
            '`' => drop(characters.find(|character| *character == '`')),
            '"' => skip_quoted(&mut characters),
            '[' | '{' => {
                brackets.push(true);
                doublings += 1;
            }
            // Parsed once, but a comma inside does not end an element of the outer bracket.
            '(' => brackets.push(false),
            ')' | ']' | '}' => doublings -= u32::from(brackets.pop() == Some(true)),
            ',' | ';' | '|' => {
                if let Some(first) = brackets.last_mut() {
                    doublings -= u32::from(std::mem::take(first));
                }
            }
            _ => {}
        }
        sum = sum.saturating_add(1_u64.checked_shl(doublings).unwrap_or(u64::MAX));
    }
    sum
}

/// The maximum number of reported errors of one file.
const MAX_ERRORS: usize = 20;
/// The maximum total size that is parsed again to find further errors.
const MAX_REPARSED_BYTES: usize = 8 << 20;
/// The effort that is allowed for every file, which takes milliseconds.
const BASE_EFFORT: u64 = 1 << 18;
const EFFORT_PER_BYTE: u64 = 32;

/// Removes a byte order mark. OPA skips it; regorus takes it for a character of the policy.
pub(super) fn without_bom(text: &str) -> &str {
    text.trim_start_matches('\u{feff}')
}

/// An evaluator without limits of its own, because the limits of the bundle apply.
pub(super) fn engine(version: RegoVersion) -> regorus::Engine {
    let mut engine = regorus::Engine::new();
    engine.set_rego_v0(version == RegoVersion::V0);
    engine.clear_policy_length_config();
    engine
}

impl RegoError {
    /// Parses an error report of regorus: `--> FILE:LINE:COLUMN`, the source line, `error: REASON`.
    pub(super) fn from_report(place: &str, report: &str) -> Self {
        let after = |mark: &str| {
            report
                .lines()
                .find_map(|line| line.trim_start().strip_prefix(mark))
                .map(str::trim)
        };
        let first = report
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or_default();
        let place = after("-->").unwrap_or(place).to_owned();
        let reason = match after("error:").unwrap_or(first) {
            // regorus does not name the end of input.
            "expecting" => "unexpected end of input",
            reason => reason,
        };
        Self {
            place,
            reason: reason.to_owned(),
        }
    }
}

/// The rules of the only file of an evaluator, with their paths below `package`.
fn rule_paths(engine: &mut regorus::Engine, place: &str, package: &[String]) -> Vec<RulePath> {
    let rules = engine
        .get_modules()
        .iter()
        .flat_map(|module| &module.policy);
    rules
        .map(|rule| {
            let span = rule.span();
            let head = match &**rule {
                Rule::Default { refr, .. } => refr,
                Rule::Spec { head, .. } => match head {
                    RuleHead::Compr { refr, .. }
                    | RuleHead::Set { refr, .. }
                    | RuleHead::Func { refr, .. } => refr,
                },
            };
            let path = package.iter().cloned().chain(ground_prefix(head)).collect();
            RulePath {
                path,
                place: format!("{place}:{}:{}", span.line, span.col),
            }
        })
        .collect()
}

/// The segments of a reference up to the first that is not a string.
fn ground_prefix(reference: &Expr) -> Vec<String> {
    // The segments are in reverse order.
    let mut segments = Vec::new();
    let mut rest = reference;
    loop {
        match rest {
            Expr::RefDot { refr, field, .. } => {
                segments.push(field.1.as_string().ok().map(ToString::to_string));
                rest = refr;
            }
            Expr::RefBrack { refr, index, .. } => {
                segments.push(match &**index {
                    Expr::String { value, .. } | Expr::RawString { value, .. } => {
                        value.as_string().ok().map(ToString::to_string)
                    }
                    _ => None,
                });
                rest = refr;
            }
            Expr::Var { span, .. } => {
                segments.push(Some(span.text().to_owned()));
                break;
            }
            _ => break,
        }
    }
    segments
        .into_iter()
        .rev()
        .map_while(|segment| segment)
        .collect()
}

/// The segments of a reference such as `a.b["c d"]`.
fn segments(path: &str) -> Vec<String> {
    let segments = path
        .split(['.', '[', ']'])
        .map(|segment| segment.trim_matches(['"', '`']));
    segments
        .filter(|segment| !segment.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The rules and packages below a `# METADATA` comment with `entrypoint: true`, as paths of `data`.
fn entrypoints(package: &[String], text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut annotated = false;
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        match line.strip_prefix('#') {
            Some(comment) if comment.trim() == "METADATA" => (annotated, marked) = (true, false),
            Some(comment) if annotated => marked |= is_entrypoint(comment),
            Some(_) => {}
            None if line.is_empty() => {}
            None => {
                if annotated && marked {
                    let path = declared(package, line).join("/");
                    if !path.is_empty() && !found.contains(&path) {
                        found.push(path);
                    }
                }
                (annotated, marked) = (false, false);
            }
        }
    }
    found
}

fn is_entrypoint(comment: &str) -> bool {
    // A deeper indentation belongs to `custom:` or another key.
    let comment = comment.strip_prefix(' ').unwrap_or(comment);
    comment
        .strip_prefix("entrypoint:")
        .is_some_and(|value| value.trim() == "true")
}

/// The path that a statement declares: of a package, or of a rule.
fn declared(package: &[String], line: &str) -> Vec<String> {
    if line.starts_with("package") {
        return package.to_vec();
    }
    let head = line.strip_prefix("default ").unwrap_or(line).trim_start();
    let end =
        head.find(|character: char| !(character.is_alphanumeric() || "_.".contains(character)));
    let head = &head[..end.unwrap_or(head.len())];
    package.iter().cloned().chain(segments(head)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, version: RegoVersion) -> Result<Module, RegoErrors> {
        Module::parse("a.rego", "dir/a.rego", text, version)
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(
            parse("\u{feff}package a\nx := 1\n", RegoVersion::V1)
                .unwrap()
                .path,
            ["a"]
        );
        assert_eq!(
            Module::scan_package("a.rego", "\u{feff}package a\n???").path,
            ["a"]
        );
    }

    #[test]
    fn deeply_nested_brackets_are_refused_instead_of_parsed_for_hours() {
        let nested = |open: &str, close: &str, depth: usize| {
            format!(
                "package a\nx := {}1{}\n",
                open.repeat(depth),
                close.repeat(depth)
            )
        };
        for (open, close) in [
            ("[", "]"),
            ("{", "}"),
            ("{\"k\": ", "}"),
            ("[ # ,\n", "]"),
            ("[count([1,", "])]"),
            ("[`,`, [", "]]"),
        ] {
            assert!(
                parse(&nested(open, close, 5), RegoVersion::V1).is_ok(),
                "{open}"
            );
            for depth in [30, 10_000] {
                let error = parse(&nested(open, close, depth), RegoVersion::V1).unwrap_err();
                assert!(!error.0[0].reason.is_empty(), "{open}: {error:?}");
            }
        }
        // A long file is not deeply nested.
        let rows = "{\"a\": [{\"b\": {\"c\": [1, 2]}}]},\n".repeat(300);
        parse(&format!("package a\nx := [\n{rows}]\n"), RegoVersion::V1).unwrap();
    }

    #[test]
    fn a_package_is_named_without_data() {
        let text = "package authz.api\n\nimport rego.v1\n\nallow if input.user == \"alice\"\n";
        assert_eq!(
            parse(text, RegoVersion::V1).unwrap().package.as_deref(),
            Some("authz.api")
        );
        assert_eq!(parse(text, RegoVersion::V0).unwrap().path, ["authz", "api"]);
        let old = "package authz\n\nallow { input.x }\n";
        assert_eq!(parse(old, RegoVersion::V0).unwrap().path, ["authz"]);
        assert!(parse(old, RegoVersion::V1).is_err());
    }

    #[test]
    fn the_package_of_a_file_that_cannot_be_parsed_is_found() {
        let text = "# a comment\n\npackage a.b[\"c.d\"] # another\n\nimport rego.v9\n???";
        assert_eq!(Module::scan_package("a.rego", text).path, ["a", "b", "c.d"]);
        assert_eq!(
            Module::scan_package("a.rego", "package a.b\n???")
                .package
                .as_deref(),
            Some("a.b")
        );
        assert_eq!(Module::scan_package("a.rego", "???").package, None);
    }

    #[test]
    fn an_error_names_file_line_and_reason_in_one_line() {
        for text in [
            "package a\n\nallow if {\n\tinput.x ==\n}\n",
            "package a\nallow if",
            "",
            "x",
        ] {
            let error = parse(text, RegoVersion::V1).unwrap_err();
            let first = &error.0[0];
            assert!(
                first.place().starts_with("dir/a.rego") && !first.reason.contains('\n'),
                "{error:?}"
            );
        }
        let error = parse(
            "package a\n\nallow if {\n\tinput.x ==\n}\n",
            RegoVersion::V1,
        )
        .unwrap_err();
        assert_eq!(error.0[0].place(), "dir/a.rego:5:1");
    }

    #[test]
    fn every_malformed_statement_is_reported_with_its_line() {
        let text = "package a\n\nimport data.b\n\nallow if {\n\tinput.x ==\n}\n\nfine if b.x\n\ndeny contains x if {\n\tx := [1, 2\n}\n\nlast := :=\n";
        let errors = parse(text, RegoVersion::V1).unwrap_err().0;
        let places: Vec<_> = errors.iter().map(Diagnostic::place).collect();
        assert_eq!(
            places,
            ["dir/a.rego:7:1", "dir/a.rego:12:7", "dir/a.rego:15:9"],
            "{errors:?}"
        );
        assert_eq!(errors[2].source, "last := :=");
        // A missing brace is one error, not one for each rule below it.
        let open = "package a\n\nallow if {\n\tinput.x\n\nfine if input.y\n\nother if input.z\n";
        assert_eq!(parse(open, RegoVersion::V1).unwrap_err().0.len(), 1);
        // An error in the imports is reported once, not for every rule below them.
        let head = parse(
            "package a\n\nimport :=\n\nx := 1\n\ny := 2\n",
            RegoVersion::V1,
        )
        .unwrap_err()
        .0;
        assert_eq!((head.len(), head[0].line), (1, 3), "{head:?}");
        // The number of reported errors is limited.
        let many = format!("package a\n{}", "x := :=\n".repeat(1000));
        assert_eq!(
            parse(&many, RegoVersion::V1).unwrap_err().0.len(),
            MAX_ERRORS
        );
    }

    #[test]
    fn rules_have_paths_up_to_the_first_variable() {
        let text = "package a.b\n\ndefault allow := false\n\nx.y[\"z w\"] := 1\n\np contains 1\n\nq[k].r := k if some k in [1]\n\nf(x) := x\n";
        let module = parse(text, RegoVersion::V1).unwrap();
        let rules: Vec<_> = module
            .rules
            .iter()
            .map(|rule| rule.path.join("/"))
            .collect();
        assert_eq!(
            rules,
            ["a/b/allow", "a/b/x/y/z w", "a/b/p", "a/b/q", "a/b/f"]
        );
        assert_eq!(module.rules[1].place, "dir/a.rego:5:1");
    }

    #[test]
    fn annotated_rules_and_packages_are_entrypoints() {
        let text = "# METADATA\n# title: all of it\n# entrypoint: true\npackage a.b\n\n# METADATA\n# entrypoint: true\n\
                    default allow := false\n\nallow if input.x\n\n# METADATA\n# custom:\n#   entrypoint: true\n\
                    other := 1\n\n# METADATA\n# entrypoint: true\nfirst.second contains 1\n";
        let module = parse(text, RegoVersion::V1).unwrap();
        assert_eq!(module.entrypoints, ["a/b", "a/b/allow", "a/b/first/second"]);
    }
}
