//! Evaluating a bundle, for a quick look: regorus in the place of OPA.

use std::{collections::BTreeMap, fmt};

use regorus::{Engine, QueryResults, Value};

use super::{
    Bundle, NotABundle, RegoVersion,
    check::{is_data, mount, version_of},
    rego::{self, Unreadable},
};

/// A bundle's rules and data, ready for questions.
pub struct Policy {
    engine: Engine,
    packages: Vec<String>,
}

/// Why a bundle can't be evaluated, or a question can't be answered.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not in practice: opening the bundle has read it all.
    #[error(transparent)]
    Bundle(#[from] NotABundle),
    /// Rego that the evaluator does not know; OPA may.
    #[error("{place}: {reason}; where a newer OPA reads it, save the bundle and ask that (opa eval -b)")]
    Rego {
        /// `FILE:LINE:COLUMN`.
        place: String,
        /// What the parser said.
        reason: String,
    },
    /// A data file that does not fit.
    #[error("bundle file {path}: {reason}")]
    Data {
        /// The file's name in the bundle.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Rules that were compiled to something else than Rego.
    #[error("the bundle holds {0} and no Rego; only OPA can evaluate it (opa eval -b)")]
    Compiled(String),
    /// The question, or a rule that it leads to.
    #[error("{place}: {reason}")]
    Query {
        /// Where, in the question or in a file.
        place: String,
        /// What the evaluator said.
        reason: String,
    },
    /// The input document.
    #[error("input: {0}")]
    Input(String),
}

impl Policy {
    /// Loads rules and data as OPA does: `data.json` and `data.yaml` are mounted where their
    /// folders say. Blocks.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn load(bundle: &Bundle) -> Result<Self, PolicyError> {
        let mut policy = Self { engine: rego::engine(RegoVersion::V1), packages: Vec::new() };
        let mut compiled = None;
        bundle.walk(|entry| -> Result<(), PolicyError> {
            let name = entry.name().trim_start_matches(['/', '.']).to_owned();
            if name.ends_with(".rego") {
                let text = text(&name, entry.content()?)?;
                policy.add_rules(&name, &text, version_of(bundle.manifest(), entry.name()))?;
            } else if is_data(&name) {
                let text = text(&name, entry.content()?)?;
                policy.add_data(&name, &text).map_err(|reason| PolicyError::Data { path: name, reason })?;
            } else if matches!(name.rsplit('/').next(), Some("policy.wasm" | "plan.json")) {
                compiled = Some(name);
            }
            Ok(())
        })?;
        if let Some(compiled) = compiled.filter(|_| policy.packages.is_empty()) {
            return Err(PolicyError::Compiled(compiled));
        }
        // Questions are asked in the Rego of today.
        policy.engine.set_rego_v0(false);
        policy.packages.sort();
        policy.packages.dedup();
        Ok(policy)
    }

    fn add_rules(&mut self, name: &str, text: &str, version: RegoVersion) -> Result<(), PolicyError> {
        self.engine.set_rego_v0(version == RegoVersion::V0);
        let package = rego::add(&mut self.engine, name, text)
            .map_err(|Unreadable { place, reason }| PolicyError::Rego { place, reason })?;
        self.packages.push(package);
        Ok(())
    }

    fn add_data(&mut self, name: &str, text: &str) -> Result<(), String> {
        let told = |error: anyhow::Error| Unreadable::from_picture(name, &error.to_string()).reason;
        let value = match name.ends_with(".json") {
            true => Value::from_json_str(text.trim_start_matches('\u{feff}')),
            false => Value::from_yaml_str(text),
        };
        let mounted = mount(name)
            .into_iter()
            .rev()
            .fold(value.map_err(told)?, |inner, folder| Value::from(BTreeMap::from([(Value::from(folder), inner)])));
        self.engine.add_data(mounted).map_err(told)
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
        let input = Value::from_json_str(text).or_else(|_| Value::from_yaml_str(text));
        let told = |error: anyhow::Error| PolicyError::Input(Unreadable::from_picture("", &error.to_string()).reason);
        self.engine.set_input(input.map_err(told)?);
        Ok(())
    }

    /// Leaves `input` undefined again.
    pub fn forget_input(&mut self) {
        self.engine.set_input(Value::Undefined);
    }

    /// Answers a question; the result has the JSON of `opa eval`. Undefined is an empty
    /// result, not an error.
    ///
    /// # Errors
    /// When the question is no Rego, or evaluating it fails.
    pub fn query(&mut self, question: &str) -> Result<QueryResults, PolicyError> {
        let answers = self.engine.eval_query(question.to_owned(), false);
        let mut answers = answers.map_err(|error| {
            let Unreadable { place, reason } = Unreadable::from_picture("query", &error.to_string());
            PolicyError::Query { place: place.replace("<query.rego>", "query"), reason }
        })?;
        for answer in &mut answers.result {
            // OPA does not list declarations (`some x`) among the expressions.
            answer.expressions.retain(|one| !one.text.starts_with("some ") || one.text.contains(" in "));
        }
        Ok(answers)
    }
}

fn text(name: &str, content: Vec<u8>) -> Result<String, PolicyError> {
    let not_text = |_| PolicyError::Data { path: name.to_owned(), reason: "it is not UTF-8".to_owned() };
    String::from_utf8(content).map_err(not_text)
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("packages", &self.packages).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bundle::Limits,
        oci::{Blob, Descriptor},
    };

    const LIMITS: Limits = Limits { bundle: 1 << 20, unpacked: 1 << 20, files: 10 };

    fn load(files: &[(&str, &str)]) -> Result<Policy, PolicyError> {
        let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(encoder);
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            // As `opa build` writes them.
            builder.append_data(&mut header, format!("./{path}"), content.as_bytes()).unwrap();
        }
        let bytes = bytes::Bytes::from(builder.into_inner().unwrap().finish().unwrap());
        let blob = Blob::check(&Descriptor::of("", &bytes), bytes).unwrap();
        Policy::load(&Bundle::open(blob, &LIMITS).unwrap())
    }

    fn answer(policy: &mut Policy, question: &str) -> String {
        serde_json::to_value(policy.query(question).unwrap()).unwrap().to_string()
    }

    #[test]
    fn rules_decide_over_data_mounted_by_folder_and_the_input() {
        let mut policy = load(&[
            ("authz.rego", "package authz\n\ndefault allow := false\n\nallow if input.user in data.people.admins\n"),
            ("people/data.json", r#"{"admins":["alice"]}"#),
            ("people/more/data.yaml", "x: 1\n"),
            ("data.json", r#"{"people":{"guests":[]}}"#),
        ])
        .unwrap();
        policy.set_input(r#"{"user":"alice"}"#).unwrap();
        let allowed = policy.query("data.authz.allow").unwrap();
        assert_eq!(allowed.result[0].expressions[0].value, Value::from(true));
        policy.set_input("user: bob\n").unwrap();
        assert!(answer(&mut policy, "data.authz.allow").contains(r#""value":false"#));
        assert!(answer(&mut policy, "data.people.more.x + count(data.people.guests)").contains(r#""value":1"#));
        assert!(answer(&mut policy, "x := 1; y := x + 1").contains(r#""bindings":{"x":1,"y":2}"#));
        assert_eq!(answer(&mut policy, "data.authz.nothing"), "{}");
        assert_eq!(policy.packages(), ["data.authz"]);
    }

    #[test]
    fn old_rego_is_read_where_the_manifest_says_so() {
        let old = "package authz\n\nallow { input.x }\n";
        assert!(matches!(load(&[("a.rego", old)]), Err(PolicyError::Rego { .. })));
        let mut policy = load(&[(".manifest", r#"{"rego_version":0}"#), ("a.rego", old)]).unwrap();
        policy.set_input(r#"{"x":true}"#).unwrap();
        assert!(answer(&mut policy, "data.authz.allow").contains("true"));
    }

    #[test]
    fn every_failure_is_one_line_that_names_its_place() {
        let broken = load(&[("dir/a.rego", "package a\n\nallow if {\n")]).unwrap_err().to_string();
        assert!(broken.starts_with("dir/a.rego:") && !broken.contains('\n'), "{broken}");
        let twice = [("data.json", r#"{"a":{"b":1}}"#), ("a/data.json", r#"{"b":2}"#)];
        let conflict = load(&twice).unwrap_err().to_string();
        assert!(conflict.starts_with("bundle file a/data.json: ") && !conflict.contains('\n'), "{conflict}");
        assert!(matches!(load(&[("policy.wasm", "x")]), Err(PolicyError::Compiled(_))));
        let mut policy = load(&[("a.rego", "package a\n\nb := to_number(\"x\")\n")]).unwrap();
        for question in ["data.a.", "nothing(1)", "1 +"] {
            let error = policy.query(question).unwrap_err().to_string();
            assert!(!error.contains('\n') && !error.is_empty(), "{question}: {error}");
        }
        assert!(policy.set_input("{").is_err());
    }
}
