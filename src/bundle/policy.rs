//! Evaluates a bundle with regorus, for `eval` and `repl`.

use std::{collections::BTreeMap, fmt};

use regorus::{Engine, Value};

use super::{
    Bundle, BundleError, Module, RegoVersion,
    archive::Entry,
    check::version_of,
    diagnostic::with_position,
    document::Document,
    paths::{base, data_path, is_data, mount},
    rego::{self, RegoError, RegoErrors},
    value::{Answers, read_exact, value_of},
};

/// The rules and data of a bundle, ready for queries.
pub struct Policy {
    engine: Engine,
    packages: Vec<String>,
}

/// An error in loading a bundle or evaluating a query.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Never in practice: opening the bundle read every file.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The evaluator can't parse a Rego file; OPA may.
    #[error(
        "{place}: {reason}; if a newer OPA accepts it, save the bundle and use that (opa eval -b)"
    )]
    Rego {
        /// `FILE:LINE:COLUMN`.
        place: String,
        /// The parser's message.
        reason: String,
    },
    /// A rule conflicts with data, so OPA does not compile it.
    #[error("{place}: the rule conflicts with data that sets {at}; rename one of the two")]
    RuleOverData {
        /// `FILE:LINE:COLUMN`.
        place: String,
        /// The path, such as `data.authz.allow`.
        at: String,
    },
    /// A data file can't be loaded.
    #[error("bundle file {path}: {reason}")]
    Data {
        /// The file's name in the bundle.
        path: String,
        /// The reason.
        reason: String,
    },
    /// The rules are compiled, and there is no Rego.
    #[error("the bundle holds {0} and no Rego; only OPA can evaluate it (opa eval -b)")]
    Compiled(String),
    /// The query, or a rule that it evaluates, fails.
    #[error("{place}: {reason}")]
    Query {
        /// The place in the query or in a file.
        place: String,
        /// The evaluator's message.
        reason: String,
    },
    /// The input document can't be parsed.
    #[error("input: {0}")]
    Input(String),
}

impl Policy {
    /// Loads rules and data as OPA does: `data.json` and `data.yaml` are mounted by their folders.
    /// Blocks.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn load(bundle: &Bundle) -> Result<Self, PolicyError> {
        let mut loader = Loader::default();
        bundle.walk(|entry| loader.add(entry))?;
        if let Some(compiled) = loader.compiled.filter(|_| loader.modules.is_empty()) {
            return Err(PolicyError::Compiled(compiled));
        }
        let mut policy = Self {
            engine: evaluator()?,
            packages: Vec::new(),
        };
        let mut rules = Vec::new();
        for (place, (name, text)) in &loader.modules {
            let version = version_of(bundle.manifest(), name);
            rules.extend(Module::parse(name, place, text, version)?.rules);
            policy.engine.set_rego_v0(version == RegoVersion::V0);
            policy
                .packages
                .push(rego::add(&mut policy.engine, place, text)?);
        }
        if let Some(rule) = rules
            .iter()
            .find(|rule| loader.data.conflicts_with_rule(&rule.path))
        {
            return Err(PolicyError::RuleOverData {
                place: rule.place.clone(),
                at: data_path(&rule.path),
            });
        }
        let data = value_of(&loader.data);
        let refused = |reason: String| PolicyError::Data {
            path: loader.data_files.join(", "),
            reason,
        };
        let data = data.map_err(refused)?;
        policy
            .engine
            .add_data(data)
            .map_err(|error| refused(one_line(&error.to_string())))?;
        // Queries are in Rego v1, also for bundles in Rego v0.
        policy.engine.set_rego_v0(false);
        policy.packages.sort();
        policy.packages.dedup();
        Ok(policy)
    }

    /// The packages, such as `data.authz`.
    pub fn packages(&self) -> &[String] {
        &self.packages
    }

    /// Sets `input` from JSON or YAML.
    ///
    /// # Errors
    /// When it is neither.
    pub fn set_input(&mut self, text: &str) -> Result<(), PolicyError> {
        let input =
            read_exact("input.yaml", text.as_bytes()).and_then(|document| value_of(&document));
        self.engine.set_input(input.map_err(PolicyError::Input)?);
        Ok(())
    }

    /// Makes `input` undefined.
    pub fn clear_input(&mut self) {
        self.engine.set_input(Value::Undefined);
    }

    /// Evaluates a query; the result is serialised as by `opa eval`. An undefined result is empty,
    /// not an error.
    ///
    /// # Errors
    /// When the query is malformed, or its evaluation fails.
    pub fn query(&mut self, query: &str) -> Result<Answers, PolicyError> {
        let answers = self.engine.eval_query(query.to_owned(), false);
        let mut answers = answers.map_err(|error| {
            let RegoError { place, reason } = RegoError::from_report("query", &error.to_string());
            PolicyError::Query {
                place: place.replace("<query.rego>", "query"),
                reason,
            }
        })?;
        for answer in &mut answers.result {
            // OPA does not list declarations (`some x`) among the expressions.
            answer
                .expressions
                .retain(|one| !one.text.starts_with("some ") || one.text.contains(" in "));
        }
        Ok(Answers(answers))
    }
}

/// The files of a bundle that are evaluated.
struct Loader {
    /// The Rego files with their names, by normalised name; of duplicates OPA takes the last.
    modules: BTreeMap<String, (String, String)>,
    data: Document,
    data_files: Vec<String>,
    /// The name of a compiled policy.
    compiled: Option<String>,
}

impl Default for Loader {
    fn default() -> Self {
        Self {
            modules: BTreeMap::new(),
            data: Document::empty(),
            data_files: Vec::new(),
            compiled: None,
        }
    }
}

impl Loader {
    fn add(&mut self, entry: &mut Entry<'_>) -> Result<(), PolicyError> {
        let name = entry.name().to_owned();
        let parts: Vec<_> = name
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .collect();
        let place = parts.join("/");
        let refused = |reason: String| {
            let (path, reason) = with_position(&place, &reason);
            PolicyError::Data { path, reason }
        };
        if name.ends_with(".rego") {
            let text = String::from_utf8(entry.content()?)
                .map_err(|_| refused("it is not UTF-8".to_owned()))?;
            self.modules.insert(place, (name, text));
        } else if is_data(&name) {
            let document = read_exact(&name, &entry.content()?)
                .map_err(refused)?
                .mounted(&mount(&name));
            // Never fails: opening the bundle found no collision.
            self.data
                .merge(document)
                .map_err(|at| refused(format!("another file sets {}", data_path(&at.path))))?;
            self.data_files.push(place);
        } else if matches!(base(&name), "policy.wasm" | "plan.json") {
            self.compiled = Some(place);
        }
        Ok(())
    }
}

impl From<RegoErrors> for PolicyError {
    fn from(RegoErrors(errors): RegoErrors) -> Self {
        let first = errors.into_iter().next();
        first.map_or_else(
            || Self::Rego {
                place: String::new(),
                reason: String::new(),
            },
            |first| Self::Rego {
                place: first.place(),
                reason: first.reason,
            },
        )
    }
}

impl From<RegoError> for PolicyError {
    fn from(RegoError { place, reason }: RegoError) -> Self {
        Self::Rego { place, reason }
    }
}

/// An evaluator whose YAML functions parse as OPA does.
pub(super) fn evaluator() -> Result<Engine, PolicyError> {
    let mut engine = rego::engine(RegoVersion::V1);
    let unmarshal = |arguments: Vec<Value>| {
        let read = text_of(&arguments).and_then(|text| read_exact("data.yaml", text.as_bytes()));
        // As in OPA, the result is undefined if the text can't be parsed.
        Ok(read
            .and_then(|document| value_of(&document))
            .unwrap_or(Value::Undefined))
    };
    let is_valid = |arguments: Vec<Value>| {
        let read = text_of(&arguments).and_then(|text| read_exact("data.yaml", text.as_bytes()));
        Ok(Value::from(read.is_ok()))
    };
    let failed = |error: anyhow::Error| PolicyError::Query {
        place: "yaml".to_owned(),
        reason: error.to_string(),
    };
    engine
        .add_extension("yaml.unmarshal".to_owned(), 1, Box::new(unmarshal))
        .map_err(failed)?;
    engine
        .add_extension("yaml.is_valid".to_owned(), 1, Box::new(is_valid))
        .map_err(failed)?;
    Ok(engine)
}

fn text_of(arguments: &[Value]) -> Result<String, String> {
    let text = arguments.first().and_then(|value| value.as_string().ok());
    text.map(ToString::to_string)
        .ok_or_else(|| "not a string".to_owned())
}

fn one_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim().to_owned()
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("packages", &self.packages)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bundle::Limits,
        oci::{Blob, Descriptor},
    };

    const LIMITS: Limits = Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 10,
        bundle_manifest: 1 << 20,
    };

    fn load(files: &[(&str, &str)]) -> Result<Policy, PolicyError> {
        let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(encoder);
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            // `opa build` writes names with a leading slash.
            builder
                .append_data(&mut header, format!("./{path}"), content.as_bytes())
                .unwrap();
        }
        let bytes = bytes::Bytes::from(builder.into_inner().unwrap().finish().unwrap());
        let blob = Blob::check(&Descriptor::of("", &bytes), bytes).unwrap();
        Policy::load(&Bundle::open(blob, &LIMITS).unwrap())
    }

    fn answer(policy: &mut Policy, query: &str) -> String {
        serde_json::to_value(policy.query(query).unwrap())
            .unwrap()
            .to_string()
    }

    #[test]
    fn rules_see_mounted_data_and_the_input() {
        let mut policy = load(&[
            ("authz.rego", "package authz\n\ndefault allow := false\n\nallow if input.user in data.people.admins\n"),
            ("people/data.json", r#"{"admins":["alice"]}"#),
            ("people/more/data.yaml", "x: 1\n"),
            ("data.json", r#"{"people":{"guests":[]}}"#),
        ])
        .unwrap();
        policy.set_input(r#"{"user":"alice"}"#).unwrap();
        let allowed = policy.query("data.authz.allow").unwrap();
        assert_eq!(allowed.0.result[0].expressions[0].value, Value::from(true));
        policy.set_input("user: bob\n").unwrap();
        assert!(answer(&mut policy, "data.authz.allow").contains(r#""value":false"#));
        assert!(
            answer(
                &mut policy,
                "data.people.more.x + count(data.people.guests)"
            )
            .contains(r#""value":1"#)
        );
        assert!(answer(&mut policy, "x := 1; y := x + 1").contains(r#""bindings":{"x":1,"y":2}"#));
        assert_eq!(answer(&mut policy, "data.authz.nothing"), "{}");
        assert_eq!(policy.packages(), ["data.authz"]);
    }

    /// OPA refuses to compile each of these.
    #[test]
    fn a_rule_that_conflicts_with_data_is_refused() {
        let rule = |text| ("p.rego", text);
        for (rego, data) in [
            ("package a\n\ndefault allow := false\n", r#"{"allow":true}"#),
            ("package a\n\nallow.x := 1\n", r#"{"allow":true}"#),
            ("package a\n\nallow := 1\n", r#"{"allow":{}}"#),
            ("package a\n\nf(x) := x\n", r#"{"f":1}"#),
            ("package a\n\np contains 1\n", r#"{"p":[]}"#),
        ] {
            let error = load(&[rule(rego), ("a/data.json", data)]).unwrap_err();
            assert!(
                matches!(error, PolicyError::RuleOverData { .. }),
                "{rego}: {error}"
            );
        }
        load(&[
            rule("package a\n\nallow := 1\n"),
            ("a/data.json", r#"{"deny":{}}"#),
        ])
        .unwrap();
    }

    #[test]
    fn yaml_in_data_input_and_rules_is_parsed_as_by_opa() {
        let mut policy = load(&[
            ("data.yaml", "c: [NO, SE]\n"),
            ("p.rego", "package p\n\nx := yaml.unmarshal(\"- on\")\n"),
        ])
        .unwrap();
        assert!(answer(&mut policy, "data.c").contains(r#"["NO","SE"]"#));
        assert!(answer(&mut policy, "data.p.x").contains(r#"["on"]"#));
        policy.set_input("off").unwrap();
        assert!(answer(&mut policy, "input").contains(r#""off""#));
    }

    #[test]
    fn rego_v0_is_parsed_if_the_manifest_states_it() {
        let old = "package authz\n\nallow { input.x }\n";
        assert!(matches!(
            load(&[("a.rego", old)]),
            Err(PolicyError::Rego { .. })
        ));
        let mut policy = load(&[(".manifest", r#"{"rego_version":0}"#), ("a.rego", old)]).unwrap();
        policy.set_input(r#"{"x":true}"#).unwrap();
        assert!(answer(&mut policy, "data.authz.allow").contains("true"));
    }

    #[test]
    fn every_error_is_one_line_with_its_place() {
        let broken = load(&[("dir/a.rego", "package a\n\nallow if {\n")])
            .unwrap_err()
            .to_string();
        assert!(
            broken.starts_with("dir/a.rego:") && !broken.contains('\n'),
            "{broken}"
        );
        let rule = ("a/p.rego", "package a\n\ndefault allow := false\n");
        let conflict = load(&[rule, ("a/data.json", r#"{"allow":true}"#)])
            .unwrap_err()
            .to_string();
        assert!(
            conflict.starts_with("a/p.rego:3:1: ") && !conflict.contains('\n'),
            "{conflict}"
        );
        let inexact = load(&[("a/data.json", r#"{"n":0.12345678901234567890}"#)])
            .unwrap_err()
            .to_string();
        assert!(
            inexact.starts_with("bundle file a/data.json:1:6: "),
            "{inexact}"
        );
        assert!(matches!(
            load(&[("policy.wasm", "x")]),
            Err(PolicyError::Compiled(_))
        ));
        let mut policy = load(&[("a.rego", "package a\n\nb := to_number(\"x\")\n")]).unwrap();
        for query in ["data.a.", "nothing(1)", "1 +"] {
            let error = policy.query(query).unwrap_err().to_string();
            assert!(
                !error.contains('\n') && !error.is_empty(),
                "{query}: {error}"
            );
        }
        assert!(policy.set_input("{").is_err());
    }
}
