//! `.manifest`, the file with which a bundle says what it owns.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;
use serde_json::{Map, Value};

/// What `.manifest` says, with OPA's defaults where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleManifest {
    /// Free text by which people and status reports recognise a version; often empty.
    pub revision: Revision,
    /// The parts of `data` that the bundle owns. `[""]` means everything.
    pub roots: Vec<String>,
    /// The version of Rego that its files are written in, where stated.
    pub rego_version: Option<i64>,
    /// The versions of files that differ, by glob (`/legacy/*.rego`).
    pub file_rego_versions: BTreeMap<String, i64>,
    /// The rules that were compiled to WebAssembly.
    pub wasm: Vec<WasmEntrypoint>,
    /// Whatever its author noted.
    pub metadata: Map<String, Value>,
}

/// One rule that a WebAssembly module answers for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WasmEntrypoint {
    /// The rule, such as `authz/allow`.
    #[serde(default)]
    pub entrypoint: String,
    /// The file in the bundle.
    #[serde(default)]
    pub module: String,
}

/// A bundle's revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// The text; may be empty.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Revision {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Default for BundleManifest {
    fn default() -> Self {
        Self {
            revision: Revision::default(),
            roots: vec![String::new()],
            rego_version: None,
            file_rego_versions: BTreeMap::new(),
            wasm: Vec::new(),
            metadata: Map::new(),
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    revision: Option<String>,
    #[serde(default)]
    roots: Option<Vec<String>>,
    #[serde(default)]
    rego_version: Option<i64>,
    #[serde(default)]
    file_rego_versions: Option<BTreeMap<String, i64>>,
    #[serde(default)]
    wasm: Option<Vec<WasmEntrypoint>>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
}

impl BundleManifest {
    /// Reads the file as OPA does: unknown members are ignored, and so is what follows the
    /// first JSON value.
    ///
    /// # Errors
    /// A sentence naming what OPA would refuse.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Map<String, Value>>();
        let members = match values.next() {
            Some(Ok(members)) => members,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("it is empty".to_owned()),
        };
        let members: Map<String, Value> =
            members.into_iter().map(|(name, value)| (Self::member(name), value)).collect();
        let raw = Raw::deserialize(Value::Object(members)).map_err(|error| error.to_string())?;
        // OPA 1.22 knows 0, 1 and 2; what later ones add is not for a gateway to refuse.
        let file_rego_versions = raw.file_rego_versions.unwrap_or_default();
        if let Some(version) = raw.rego_version.iter().chain(file_rego_versions.values()).find(|version| **version < 0)
        {
            return Err(format!("rego_version {version} does not exist"));
        }
        let mut roots: Vec<String> = match raw.roots {
            None => vec![String::new()],
            Some(roots) => roots.iter().map(|root| root.trim_matches('/').to_owned()).collect(),
        };
        roots.sort();
        if let Some((a, b)) = overlap(&roots) {
            return Err(format!("roots {a:?} and {b:?} overlap"));
        }
        let revision = Revision(raw.revision.unwrap_or_default());
        Ok(Self {
            revision,
            roots,
            rego_version: raw.rego_version,
            file_rego_versions,
            wasm: raw.wasm.unwrap_or_default(),
            metadata: raw.metadata.unwrap_or_default(),
        })
    }

    /// The name of a member as it is known: OPA (Go's `encoding/json`) looks past the case.
    pub(super) fn member(name: String) -> String {
        const KNOWN: [&str; 6] = ["revision", "roots", "rego_version", "file_rego_versions", "wasm", "metadata"];
        KNOWN.iter().find(|known| known.eq_ignore_ascii_case(&name)).map_or(name, |known| (*known).to_owned())
    }

    /// Whether a path below `data`, such as `a/b`, lies in what the bundle owns.
    pub fn owns(&self, path: &str) -> bool {
        self.roots.iter().any(|root| contains(root, path))
    }

    /// Whether something below a path may lie in what the bundle owns.
    pub(super) fn owns_below(&self, path: &str) -> bool {
        self.roots.iter().any(|root| contains(path, root))
    }

    /// How many segments the longest root has.
    pub(super) fn depth(&self) -> usize {
        self.roots.iter().map(|root| root.split('/').count()).max().unwrap_or_default()
    }
}

/// Two roots of which one contains the other. In the order of their segments such two are
/// neighbours; comparing each with each would take hours for a list of megabytes.
fn overlap(roots: &[String]) -> Option<(&str, &str)> {
    let mut roots: Vec<&str> = roots.iter().map(String::as_str).collect();
    roots.sort_by(|a, b| a.split('/').cmp(b.split('/')));
    roots.windows(2).find_map(|pair| match pair {
        [a, b] if contains(a, b) => Some((*a, *b)),
        _ => None,
    })
}

fn contains(root: &str, path: &str) -> bool {
    root.is_empty() || path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_members_have_opas_defaults() {
        assert_eq!(BundleManifest::parse(b"{}").unwrap(), BundleManifest::default());
        assert!(BundleManifest::default().owns("anything/at/all"));
    }

    #[test]
    fn members_are_known_in_any_case_as_opa_knows_them() {
        let manifest = BundleManifest::parse(br#"{"Revision":"r1","ROOTS":["a"],"Rego_Version":0}"#).unwrap();
        assert_eq!((manifest.revision.as_str(), manifest.rego_version), ("r1", Some(0)));
        assert_eq!(manifest.roots, ["a"]);
    }

    #[test]
    fn roots_are_trimmed_and_own_whole_segments() {
        let manifest = BundleManifest::parse(br#"{"revision":"r1","roots":["/a/b/","c"],"x":1} trailing"#).unwrap();
        assert_eq!(manifest.roots, ["a/b", "c"]);
        assert_eq!(manifest.revision.as_str(), "r1");
        assert!(manifest.owns("a/b/c") && manifest.owns("c") && !manifest.owns("a") && !manifest.owns("cc"));
    }

    #[test]
    fn overlapping_roots_are_refused_in_any_order() {
        for roots in [r#"["a","a/b"]"#, r#"["a/b","a-b","a"]"#, r#"["","x"]"#, r#"["a","a"]"#] {
            assert!(BundleManifest::parse(format!(r#"{{"roots":{roots}}}"#).as_bytes()).is_err(), "{roots}");
        }
        BundleManifest::parse(br#"{"roots":["a","a-b","ab/c"]}"#).unwrap();
    }

    #[test]
    fn a_list_of_roots_that_fills_megabytes_is_read_in_moments() {
        let roots: Vec<String> = (0..200_000).map(|number| format!("a/{number}")).collect();
        let manifest = |roots: &[String]| serde_json::json!({ "roots": roots }).to_string();
        assert_eq!(BundleManifest::parse(manifest(&roots).as_bytes()).unwrap().roots.len(), roots.len());
        let overlapping = [roots, vec!["a/7/b".to_owned()]].concat();
        assert!(BundleManifest::parse(manifest(&overlapping).as_bytes()).is_err());
    }
}
