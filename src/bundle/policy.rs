//! Evaluating a bundle, for a quick look: regorus in the place of OPA.

use std::{
    fmt,
    io::{self, Read as _},
};

use flate2::bufread::MultiGzDecoder;
use regorus::{Engine, QueryResults, Value};

use super::Bundle;

/// A bundle's rules and data, ready for questions.
pub struct Policy {
    engine: Engine,
    packages: Vec<String>,
}

/// Why a bundle can't be evaluated, or a question can't be answered.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The tarball could not be read a second time.
    #[error("read the bundle: {0}")]
    Read(#[from] io::Error),
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
    #[error("{0}")]
    Query(String),
    /// The input document.
    #[error("input: {0}")]
    Input(String),
}

/// A data or Rego file of the bundle.
struct File {
    path: String,
    content: Vec<u8>,
}

impl Policy {
    /// Loads rules and data as OPA does: `data.json` and `data.yaml` are mounted where their
    /// folders say. Blocks.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn load(bundle: &Bundle) -> Result<Self, PolicyError> {
        let mut engine = Engine::new();
        // The bundle's own limits held when it was opened.
        engine.clear_policy_length_config();
        engine.set_rego_v0(bundle.manifest().rego_version == Some(0));
        let files = files(bundle)?;
        let mut packages = Vec::new();
        for File { path, content } in files.iter().filter(|file| file.path.ends_with(".rego")) {
            let text = std::str::from_utf8(content).map_err(|_| File::refused(path, "it is not UTF-8"))?;
            let package = engine.add_policy(path.clone(), text.to_owned()).map_err(|error| {
                let (place, reason) = told(&error.to_string());
                PolicyError::Rego { place: place.unwrap_or_else(|| path.clone()), reason }
            })?;
            packages.push(package);
        }
        if let Some(compiled) = files.iter().find(|file| packages.is_empty() && file.is_compiled()) {
            return Err(PolicyError::Compiled(compiled.path.clone()));
        }
        for file in &files {
            if let Some(data) = file.data()? {
                engine.add_data(data).map_err(|error| File::refused(&file.path, &error.to_string()))?;
            }
        }
        // Questions are asked in the Rego of today.
        engine.set_rego_v0(false);
        packages.sort();
        packages.dedup();
        Ok(Self { engine, packages })
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
        self.engine.set_input(input.map_err(|error| PolicyError::Input(told(&error.to_string()).1))?);
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
        self.engine.eval_query(question.to_owned(), false).map_err(|error| {
            PolicyError::Query(match told(&error.to_string()) {
                (Some(place), reason) => format!("{place}: {reason}"),
                (None, reason) => reason,
            })
        })
    }
}

impl File {
    fn refused(path: &str, reason: &str) -> PolicyError {
        PolicyError::Data { path: path.to_owned(), reason: told(reason).1 }
    }

    fn is_compiled(&self) -> bool {
        matches!(self.path.rsplit('/').next(), Some("policy.wasm" | "plan.json"))
    }

    /// What a data file holds, below the path that its folders make.
    fn data(&self) -> Result<Option<Value>, PolicyError> {
        let (folder, base) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let refused = |reason: &str| Self::refused(&self.path, reason);
        let text = || std::str::from_utf8(&self.content).map_err(|_| refused("it is not UTF-8"));
        let value = match base {
            "data.json" => Value::from_json_str(text()?.trim_start_matches('\u{feff}')),
            "data.yaml" | "data.yml" => Value::from_yaml_str(text()?),
            _ => return Ok(None),
        };
        let value = value.map_err(|error| refused(&error.to_string()))?;
        let folders = folder.split('/').filter(|name| !name.is_empty());
        let mounted = folders
            .rev()
            .fold(value, |inner, name| Value::from(std::collections::BTreeMap::from([(Value::from(name), inner)])));
        Ok(Some(mounted))
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("packages", &self.packages).finish_non_exhaustive()
    }
}

/// The files that OPA looks at. That they fit into the limits is known since the bundle was
/// opened.
fn files(bundle: &Bundle) -> io::Result<Vec<File>> {
    let mut archive = tar::Archive::new(MultiGzDecoder::new(bundle.blob().reader()));
    let mut files = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches(['/', '.']).to_owned();
        let base = path.rsplit('/').next().unwrap_or_default();
        let wanted = base.ends_with(".rego")
            || matches!(base, "data.json" | "data.yaml" | "data.yml" | "policy.wasm" | "plan.json");
        if wanted && entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.push(File { path, content });
        }
    }
    Ok(files)
}

/// regorus draws a picture: `--> FILE:LINE:COLUMN`, the source line, `error: REASON`. Gives
/// place and reason, each in one line.
fn told(picture: &str) -> (Option<String>, String) {
    let after = |mark: &str| picture.lines().find_map(|line| line.trim_start().strip_prefix(mark)).map(str::trim);
    let first = || picture.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let reason = match after("error:").unwrap_or_else(first) {
        // It does not name the end of the text.
        "expecting" => "it ends too early",
        reason => reason,
    };
    (after("-->").map(str::to_owned), reason.to_owned())
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
