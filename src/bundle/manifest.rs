//! `.manifest`, which states the revision and the roots of a bundle, and the form of
//! `.signatures.json`.

use std::{collections::BTreeMap, fmt};

use super::json::{JsonError, JsonReader, Token};

/// A `.manifest`, with OPA's defaults for absent members. Its metadata is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleManifest {
    /// Free text that identifies a version in status reports; often empty.
    pub revision: Revision,
    /// The paths of `data` that the bundle owns. `[""]` stands for all of it.
    pub roots: Vec<String>,
    /// The version of Rego in its files, if stated.
    pub rego_version: Option<i64>,
    /// The versions of files with another version, by glob (`/legacy/*.rego`).
    pub file_rego_versions: BTreeMap<String, i64>,
    /// The rules that were compiled to WebAssembly.
    pub wasm: Vec<WasmEntrypoint>,
}

/// A rule that is compiled to a WebAssembly module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WasmEntrypoint {
    /// The rule, such as `authz/allow`.
    pub entrypoint: String,
    /// The module's file in the bundle.
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
        }
    }
}

/// The newest version of Rego in OPA 1.22 (`RegoVersionFromIntStrict`).
const MAX_REGO_VERSION: i64 = 2;
/// The names of the members.
const MEMBERS: [&str; 6] = [
    "revision",
    "roots",
    "rego_version",
    "file_rego_versions",
    "wasm",
    "metadata",
];

impl BundleManifest {
    /// Parses the file as OPA does (`Manifest` in `v1/bundle/bundle.go`): unknown members and
    /// everything after the first JSON value are ignored.
    ///
    /// # Errors
    /// A sentence that names what OPA would refuse.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw = RawManifest::read(bytes)?;
        for (version, file) in raw.versions() {
            if !(0..=MAX_REGO_VERSION).contains(&version) {
                return Err(format!(
                    "rego_version {version}{file} does not exist; the newest is {MAX_REGO_VERSION}"
                ));
            }
        }
        let mut roots: Vec<String> = match raw.roots {
            None => vec![String::new()],
            Some(roots) => roots
                .iter()
                .map(|root| root.trim_matches('/').to_owned())
                .collect(),
        };
        if roots.is_empty() {
            return Err(
                "roots is empty, so the bundle may hold nothing; omit it to own everything".into(),
            );
        }
        roots.sort();
        if let Some((a, b)) = overlap(&roots) {
            return Err(format!("roots {a:?} and {b:?} overlap"));
        }
        if let Some(root) = roots.iter().find(|root| !is_unescapable(root)) {
            return Err(format!(
                "root {root:?} has a % that is not followed by two hexadecimal digits"
            ));
        }
        Ok(Self {
            revision: Revision(raw.revision),
            roots,
            rego_version: raw.rego_version,
            file_rego_versions: raw.file_rego_versions,
            wasm: raw.wasm,
        })
    }

    /// The canonical name of a member; see [`fold_case`].
    pub(super) fn member(name: String) -> String {
        let folded = fold_case(&name);
        if MEMBERS.contains(&folded.as_str()) {
            folded
        } else {
            name
        }
    }

    /// Whether a path below `data`, such as `a/b`, lies inside the roots.
    pub fn owns(&self, path: &str) -> bool {
        self.roots.iter().any(|root| contains(root, path))
    }

    /// Whether a package lies inside the roots, by its segments. A segment may contain a slash.
    pub(super) fn owns_segments(&self, path: &[String]) -> bool {
        self.roots.iter().any(|root| {
            let mut path = path.iter();
            root.is_empty()
                || root
                    .split('/')
                    .all(|segment| path.next().is_some_and(|other| other == segment))
        })
    }

    /// Whether OPA descends into an object at a path outside the roots, where it ignores an empty
    /// object. It does so if any segment of the path is
    /// empty or the first segment of a root.
    pub(super) fn may_own_below(&self, path: &str) -> bool {
        let first = |root: &str| root.split('/').next().unwrap_or_default().to_owned();
        path.split('/').any(|segment| {
            let begins = |root: &String| segment.is_empty() || segment == first(root);
            self.roots.iter().any(begins)
        })
    }
}

/// The members as they are in the file.
#[derive(Debug, Default)]
struct RawManifest {
    revision: String,
    roots: Option<Vec<String>>,
    rego_version: Option<i64>,
    file_rego_versions: BTreeMap<String, i64>,
    wasm: Vec<WasmEntrypoint>,
}

impl RawManifest {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut raw = Self::default();
        let mut reader = JsonReader::new(bytes);
        if is_null(&mut reader, "the manifest", Token::StartObject)? {
            return Ok(raw);
        }
        while let Some(key) = next_key(&mut reader)? {
            raw.member(&fold_case(&key), &mut reader)?;
        }
        Ok(raw)
    }

    /// Parses one member. Duplicate members are decoded into one value, one after the other, as by
    /// `encoding/json`.
    fn member(&mut self, name: &str, reader: &mut JsonReader<&[u8]>) -> Result<(), String> {
        match name {
            "revision" => string(reader, name, &mut self.revision)?,
            "roots" => match is_null(reader, name, Token::StartArray)? {
                true => self.roots = None,
                false => {
                    let mut roots = self.roots.take().unwrap_or_default();
                    array(reader, &mut roots, |reader, root| {
                        string(reader, name, root)
                    })?;
                    self.roots = Some(roots);
                }
            },
            "rego_version" => self.rego_version = integer(reader, name)?,
            "file_rego_versions" => match is_null(reader, name, Token::StartObject)? {
                true => self.file_rego_versions.clear(),
                false => {
                    while let Some(glob) = next_key(reader)? {
                        let version = integer(reader, name)?.unwrap_or_default();
                        self.file_rego_versions.insert(glob, version);
                    }
                }
            },
            "wasm" => match is_null(reader, name, Token::StartArray)? {
                true => self.wasm.clear(),
                false => array(reader, &mut self.wasm, WasmEntrypoint::read)?,
            },
            "metadata" => {
                if !is_null(reader, name, Token::StartObject)? {
                    reader.skip_container().map_err(to_text)?;
                }
            }
            _ => reader.skip_value().map_err(to_text)?,
        }
        Ok(())
    }

    /// All stated versions, each with the file that it applies to, for a message.
    fn versions(&self) -> impl Iterator<Item = (i64, String)> {
        let files = self.file_rego_versions.iter();
        let files = files.map(|(glob, version)| (*version, format!(" for {glob:?}")));
        self.rego_version
            .into_iter()
            .map(|version| (version, String::new()))
            .chain(files)
    }
}

impl WasmEntrypoint {
    fn read(reader: &mut JsonReader<&[u8]>, entry: &mut Self) -> Result<(), String> {
        if is_null(reader, "an entry of wasm", Token::StartObject)? {
            return Ok(());
        }
        while let Some(key) = next_key(reader)? {
            match fold_case(&key).as_str() {
                "entrypoint" => string(reader, "wasm.entrypoint", &mut entry.entrypoint)?,
                "module" => string(reader, "wasm.module", &mut entry.module)?,
                "annotations" => {
                    if !is_null(reader, "wasm.annotations", Token::StartArray)? {
                        reader.skip_container().map_err(to_text)?;
                    }
                }
                _ => reader.skip_value().map_err(to_text)?,
            }
        }
        Ok(())
    }
}

/// A `.signatures.json` in the form that OPA decodes first (`SignaturesConfig`).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SignatureFile {
    /// `None` if there is no list.
    pub(super) signatures: Option<Vec<String>>,
    pub(super) plugin: String,
}

impl SignatureFile {
    /// Parses the file. Signatures are not read here.
    ///
    /// # Errors
    /// A sentence that names what OPA would refuse.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut file = Self::default();
        let mut reader = JsonReader::new(bytes);
        if is_null(&mut reader, "the file", Token::StartObject)? {
            return Ok(file);
        }
        while let Some(key) = next_key(&mut reader)? {
            let key = fold_case(&key);
            match key.as_str() {
                "signatures" => match is_null(&mut reader, &key, Token::StartArray)? {
                    true => file.signatures = None,
                    false => {
                        let mut signatures = file.signatures.take().unwrap_or_default();
                        array(&mut reader, &mut signatures, |reader, item| {
                            string(reader, "signatures", item)
                        })?;
                        file.signatures = Some(signatures);
                    }
                },
                "plugin" => string(&mut reader, &key, &mut file.plugin)?,
                _ => reader.skip_value().map_err(to_text)?,
            }
        }
        Ok(file)
    }

    /// Whether OPA takes the bundle for an unsigned one.
    pub(super) fn is_empty(&self) -> bool {
        self.signatures.is_none() && self.plugin.is_empty()
    }
}

fn to_text(error: JsonError) -> String {
    error.to_string()
}

/// A name as `encoding/json` compares it with the fields of a struct: case-insensitively, including
/// two letters beyond ASCII.
fn fold_case(name: &str) -> String {
    name.chars()
        .map(|character| match character {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            character => character.to_ascii_lowercase(),
        })
        .collect()
}

/// Reads the next token. Returns whether it is null; anything but null or `wanted` is an error.
fn is_null(
    reader: &mut JsonReader<&[u8]>,
    what: &str,
    wanted: Token<'static>,
) -> Result<bool, String> {
    match reader.next().map_err(to_text)? {
        Some(Token::Null) => Ok(true),
        Some(token) if token == wanted => Ok(false),
        found => Err(mismatch(
            what,
            if wanted == Token::StartArray {
                "a list"
            } else {
                "an object"
            },
            found,
        )),
    }
}

/// Reads a string into `value`; null leaves it unchanged.
fn string(reader: &mut JsonReader<&[u8]>, what: &str, value: &mut String) -> Result<(), String> {
    match reader.next().map_err(to_text)? {
        Some(Token::Null) => {}
        Some(Token::String(text)) => text.clone_into(value),
        found => return Err(mismatch(what, "a string", found)),
    }
    Ok(())
}

fn integer(reader: &mut JsonReader<&[u8]>, what: &str) -> Result<Option<i64>, String> {
    match reader.next().map_err(to_text)? {
        Some(Token::Null) => Ok(None),
        Some(Token::Number(digits)) => match digits.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(format!("{what} is {digits} instead of an integer")),
        },
        found => Err(mismatch(what, "an integer", found)),
    }
}

/// Reads the rest of a list into `items`, decoding into the items that exist.
fn array<T: Default>(
    reader: &mut JsonReader<&[u8]>,
    items: &mut Vec<T>,
    read: impl Fn(&mut JsonReader<&[u8]>, &mut T) -> Result<(), String>,
) -> Result<(), String> {
    let mut count = 0;
    while !reader.ends_array().map_err(to_text)? {
        if count == items.len() {
            items.push(T::default());
        }
        read(reader, &mut items[count])?;
        count += 1;
    }
    items.truncate(count);
    Ok(())
}

/// The next key of an object; `None` at its end.
fn next_key(reader: &mut JsonReader<&[u8]>) -> Result<Option<String>, String> {
    match reader.next().map_err(to_text)? {
        Some(Token::Key(key)) => Ok(Some(key.to_owned())),
        _ => Ok(None),
    }
}

fn mismatch(what: &str, wanted: &str, found: Option<Token<'_>>) -> String {
    let found = match found {
        Some(Token::Null) | None => "null",
        Some(Token::Bool(_)) => "a boolean",
        Some(Token::Number(_)) => "a number",
        Some(Token::String(_) | Token::Key(_)) => "a string",
        Some(Token::StartArray | Token::EndArray) => "a list",
        Some(Token::StartObject | Token::EndObject) => "an object",
    };
    format!("{what} is {found} instead of {wanted}")
}

/// Whether OPA can turn a root into a storage path (`url.PathUnescape`).
fn is_unescapable(root: &str) -> bool {
    root.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Two roots of which one contains the other. In the order of their segments such roots are
/// neighbours; comparing all pairs would take hours for a list of megabytes.
fn overlap(roots: &[String]) -> Option<(&str, &str)> {
    let mut roots: Vec<&str> = roots.iter().map(String::as_str).collect();
    roots.sort_by(|a, b| a.split('/').cmp(b.split('/')));
    roots.windows(2).find_map(|pair| match pair {
        [a, b] if contains(a, b) => Some((*a, *b)),
        _ => None,
    })
}

fn contains(root: &str, path: &str) -> bool {
    root.is_empty()
        || path == root
        || path
            .strip_prefix(root)
            .is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_members_have_the_defaults_of_opa() {
        assert_eq!(
            BundleManifest::parse(b"{}").unwrap(),
            BundleManifest::default()
        );
        assert!(BundleManifest::default().owns("anything/at/all"));
    }

    #[test]
    fn names_of_members_are_case_insensitive_as_in_opa() {
        let manifest =
            BundleManifest::parse(br#"{"Revision":"r1","ROOTS":["a"],"Rego_Version":0}"#).unwrap();
        assert_eq!(
            (manifest.revision.as_str(), manifest.rego_version),
            ("r1", Some(0))
        );
        assert_eq!(manifest.roots, ["a"]);
    }

    #[test]
    fn roots_are_trimmed_and_match_whole_segments() {
        let manifest =
            BundleManifest::parse(br#"{"revision":"r1","roots":["/a/b/","c"],"x":1} trailing"#)
                .unwrap();
        assert_eq!(manifest.roots, ["a/b", "c"]);
        assert_eq!(manifest.revision.as_str(), "r1");
        assert!(
            manifest.owns("a/b/c")
                && manifest.owns("c")
                && !manifest.owns("a")
                && !manifest.owns("cc")
        );
    }

    /// Checked against OPA 1.22.2, which accepts each of these.
    #[test]
    fn manifests_that_opa_accepts_are_accepted() {
        let deep = format!(
            r#"{{"metadata":{{"a":{}1{}}}}}"#,
            "[".repeat(200),
            "]".repeat(200)
        );
        for text in [
            "null",
            "{} trailing",
            r#"{"metadata":{"a":1e400,"b":"\ud800"}}"#,
            r#"{"metadata":null,"wasm":null,"roots":null,"rego_version":null,"revision":null}"#,
            r#"{"file_rego_versions":{"/a.rego":null}}"#,
            r#"{"unknown":[1e400]}"#,
            r#"{"roots":["a b","c%20d"]}"#,
            &deep,
        ] {
            BundleManifest::parse(text.as_bytes())
                .unwrap_or_else(|error| panic!("{text:.60}: {error}"));
        }
        BundleManifest::parse(b"{\"metadata\":{\"\xe9\":\"\xff\"}}").unwrap();
        let lone = BundleManifest::parse(br#"{"revision":"a\ud800b"}"#).unwrap();
        assert_eq!(lone.revision.as_str(), "a\u{fffd}b");
        assert_eq!(
            BundleManifest::parse("{\"root\u{17f}\":[\"a\"]}".as_bytes())
                .unwrap()
                .roots,
            ["a"]
        );
    }

    #[test]
    fn manifests_that_opa_refuses_are_refused() {
        for text in [
            "",
            "[]",
            "x",
            r#"{"revision":1}"#,
            r#"{"roots":"a"}"#,
            r#"{"roots":[1]}"#,
            r#"{"roots":[]}"#,
            r#"{"roots":["a%zz"]}"#,
            r#"{"rego_version":3}"#,
            r#"{"rego_version":-1}"#,
            r#"{"rego_version":1.0}"#,
            r#"{"rego_version":"1"}"#,
            r#"{"rego_version":1e400}"#,
            r#"{"file_rego_versions":{"/a.rego":3}}"#,
            r#"{"file_rego_versions":[]}"#,
            r#"{"metadata":"x"}"#,
            r#"{"wasm":{}}"#,
            r#"{"wasm":[{"module":1}]}"#,
            "{\"roots\":[\"a\"],}",
        ] {
            assert!(BundleManifest::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_form_of_signatures_is_checked() {
        for good in [
            "null",
            "{}",
            r#"{"signatures":["x"],"plugin":"p","other":[1]} x"#,
            r#"{"signatures":null}"#,
        ] {
            SignatureFile::parse(good.as_bytes()).unwrap();
        }
        for bad in [
            "",
            "x",
            "[]",
            r#"{"signatures":"x"}"#,
            r#"{"signatures":[1]}"#,
            r#"{"plugin":1}"#,
        ] {
            assert!(SignatureFile::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn duplicate_members_are_decoded_into_one_value() {
        let manifest = BundleManifest::parse(
            br#"{"roots":["a","b"],"ROOTS":[null,"c"],"file_rego_versions":{"x":0},"File_Rego_Versions":{"y":1}}"#,
        )
        .unwrap();
        assert_eq!(manifest.roots, ["a", "c"]);
        assert_eq!(manifest.file_rego_versions.len(), 2);
    }

    #[test]
    fn overlapping_roots_are_refused_in_any_order() {
        for roots in [
            r#"["a","a/b"]"#,
            r#"["a/b","a-b","a"]"#,
            r#"["","x"]"#,
            r#"["a","a"]"#,
        ] {
            assert!(
                BundleManifest::parse(format!(r#"{{"roots":{roots}}}"#).as_bytes()).is_err(),
                "{roots}"
            );
        }
        BundleManifest::parse(br#"{"roots":["a","a-b","ab/c"]}"#).unwrap();
    }

    #[test]
    fn a_list_of_200_000_roots_is_parsed_quickly() {
        let roots: Vec<String> = (0..200_000).map(|number| format!("a/{number}")).collect();
        let manifest = |roots: &[String]| serde_json::json!({ "roots": roots }).to_string();
        assert_eq!(
            BundleManifest::parse(manifest(&roots).as_bytes())
                .unwrap()
                .roots
                .len(),
            roots.len()
        );
        let overlapping = [roots, vec!["a/7/b".to_owned()]].concat();
        assert!(BundleManifest::parse(manifest(&overlapping).as_bytes()).is_err());
    }
}
