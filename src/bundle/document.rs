//! Data documents, merged as OPA does. Numbers keep their text.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io::{self, Write},
};

use super::BundleManifest;

mod parse;

pub(super) use parse::{Detail, DocumentError, FirstValue, is_json};

/// A document. All its nodes are in one list, so that parsing, merging and dropping a deeply nested
/// document does not recurse.
#[derive(Debug, Clone)]
pub(super) struct Document {
    nodes: Vec<Node>,
    /// The number of the file that each node comes from.
    origins: Vec<u32>,
}

#[derive(Debug, Clone)]
enum Node {
    /// A value that is not an object, where only objects are kept.
    Outlined,
    /// An object whose members are not kept.
    Pruned,
    Null,
    Bool(bool),
    Number(Box<str>),
    String(Box<str>),
    Array(Vec<NodeId>),
    Object(BTreeMap<Box<str>, NodeId>),
}

impl Node {
    /// The approximate memory of the node without those below it, in bytes: itself, its origin, its
    /// place in the node above it, and its own text or keys, each of which is an allocation.
    fn memory(&self) -> u64 {
        const ALLOCATION: usize = 16;
        const ITSELF: usize = size_of::<Node>() + size_of::<u32>() + size_of::<NodeId>();
        let below = match self {
            Self::Number(text) | Self::String(text) => text.len() + ALLOCATION,
            Self::Object(members) => members.keys().map(|key| member_memory(key)).sum(),
            _ => 0,
        };
        (ITSELF + below) as u64
    }
}

/// The approximate memory of a key in an object. The nodes of a B-tree are about two thirds full.
fn member_memory(key: &str) -> usize {
    key.len() + 64
}

/// Writes a string as JSON.
fn json_string(output: &mut impl Write, text: &str) -> io::Result<()> {
    serde_json::to_writer(output, text).map_err(Into::into)
}

/// An index into [`Document::nodes`]; the root is the first.
type NodeId = usize;
const ROOT: NodeId = 0;

/// A value in a document.
pub(super) enum Part<'a> {
    /// Null, or a value that was not kept.
    Null,
    Bool(bool),
    Number(&'a str),
    String(&'a str),
    Array(Items<'a>),
    Object(Members<'a>),
}

/// The items of an array.
pub(super) struct Items<'a> {
    document: &'a Document,
    nodes: std::slice::Iter<'a, NodeId>,
}

/// The members of an object, sorted by name.
pub(super) struct Members<'a> {
    document: &'a Document,
    nodes: std::collections::btree_map::Iter<'a, Box<str>, NodeId>,
}

impl<'a> Iterator for Items<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        self.nodes.next().map(|node| self.document.part(*node))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a str, Part<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.nodes
            .next()
            .map(|(key, node)| (&**key, self.document.part(*node)))
    }
}

/// Two documents set the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Collision {
    /// The path.
    pub(super) path: Vec<String>,
    /// The number of the first of the two files.
    pub(super) first: u32,
}

impl Document {
    /// An empty object.
    pub(super) fn empty() -> Self {
        Self {
            nodes: vec![Node::Object(BTreeMap::new())],
            origins: vec![0],
        }
    }

    /// Whether the document is an object, which the root of all data must be.
    pub(super) fn is_object(&self) -> bool {
        matches!(self.nodes[ROOT], Node::Object(_) | Node::Pruned)
    }

    /// Mounts the document at `path` from the root of all data.
    pub(super) fn mounted(self, path: &[String]) -> Self {
        let Some(depth) = path.len().checked_sub(1) else {
            return self;
        };
        let mut above = Self {
            nodes: Vec::new(),
            origins: Vec::new(),
        };
        for (at, key) in path.iter().enumerate() {
            above
                .nodes
                .push(Node::Object([(key.as_str().into(), at + 1)].into()));
        }
        above.origins.resize(depth + 1, self.origins[ROOT]);
        above.append(self);
        above
    }

    /// Sets the number of the document's file.
    pub(super) fn numbered(mut self, number: u32) -> Self {
        self.origins.fill(number);
        self
    }

    /// Merges two documents as OPA does (`internal/merge`): objects are merged, and everything else
    /// but pruned objects collides.
    ///
    /// # Errors
    /// The first collision; this document must not be used afterwards.
    pub(super) fn merge(&mut self, other: Self) -> Result<(), Collision> {
        let root = self.append(other);
        let mut pairs = vec![(ROOT, root, Vec::new())];
        while let Some((ours, theirs, path)) = pairs.pop() {
            if matches!(self.nodes[ours], Node::Pruned)
                || matches!(self.nodes[theirs], Node::Pruned)
            {
                continue;
            }
            let collision = |path| {
                Err(Collision {
                    path,
                    first: self.origins[ours],
                })
            };
            let (Node::Object(_), Node::Object(_)) = (&self.nodes[ours], &self.nodes[theirs])
            else {
                return collision(path);
            };
            let Node::Object(added) = std::mem::replace(&mut self.nodes[theirs], Node::Null) else {
                return collision(path);
            };
            let Node::Object(members) = &mut self.nodes[ours] else {
                return collision(path);
            };
            for (key, theirs) in added {
                match members.entry(key) {
                    Entry::Vacant(place) => drop(place.insert(theirs)),
                    Entry::Occupied(ours) => {
                        let below = path
                            .iter()
                            .cloned()
                            .chain([ours.key().to_string()])
                            .collect();
                        pairs.push((*ours.get(), theirs, below));
                    }
                }
            }
        }
        Ok(())
    }

    /// The path of the first value outside the roots of a bundle, as OPA searches it
    /// (`validateAndInjectDefaults` and `dfs` in `v1/bundle/bundle.go`).
    pub(super) fn first_outside(&self, owner: &BundleManifest) -> Option<String> {
        let mut nodes = vec![(ROOT, String::new())];
        while let Some((node, path)) = nodes.pop() {
            let at = path.trim_matches('/');
            if owner.owns(at) {
                continue;
            }
            match &self.nodes[node] {
                Node::Object(members) if owner.may_own_below(at) => {
                    let members = members.iter().rev();
                    nodes.extend(members.map(|(key, node)| (*node, format!("{path}/{key}"))));
                }
                _ => return Some(at.to_owned()),
            }
        }
        None
    }

    /// Whether a rule at this path conflicts with data: with data at the path, or with a value
    /// above it that is not an object (`storage.NonEmpty`).
    pub(super) fn conflicts_with_rule(&self, path: &[String]) -> bool {
        let mut node = ROOT;
        for key in path {
            match &self.nodes[node] {
                Node::Object(members) => match members.get(key.as_str()) {
                    Some(below) => node = *below,
                    None => return false,
                },
                Node::Pruned => return false,
                _ => return true,
            }
        }
        true
    }

    /// Writes the document as JSON, members sorted by name.
    ///
    /// # Errors
    /// When the output fails.
    pub(super) fn write(&self, output: &mut impl Write) -> io::Result<()> {
        self.write_node(ROOT, output, json_string)
    }

    /// As [`Self::write`], with each string and key written by `string`, quotes included.
    ///
    /// # Errors
    /// When the output fails.
    pub(super) fn write_with<W: Write>(
        &self,
        output: &mut W,
        string: fn(&mut W, &str) -> io::Result<()>,
    ) -> io::Result<()> {
        self.write_node(ROOT, output, string)
    }

    /// The approximate memory that it takes, in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.nodes.iter().map(Node::memory).sum()
    }

    fn write_node<W: Write>(
        &self,
        node: NodeId,
        output: &mut W,
        string: fn(&mut W, &str) -> io::Result<()>,
    ) -> io::Result<()> {
        enum Step<'a> {
            Node(NodeId),
            Text(&'static str),
            Key(&'a str),
        }
        let mut steps = vec![Step::Node(node)];
        while let Some(step) = steps.pop() {
            let node = match step {
                Step::Text(text) => {
                    output.write_all(text.as_bytes())?;
                    continue;
                }
                Step::Key(key) => {
                    string(output, key)?;
                    output.write_all(b":")?;
                    continue;
                }
                Step::Node(node) => &self.nodes[node],
            };
            match node {
                Node::Outlined | Node::Pruned | Node::Null => output.write_all(b"null")?,
                Node::Bool(value) => write!(output, "{value}")?,
                Node::Number(text) => output.write_all(text.as_bytes())?,
                Node::String(text) => string(output, text)?,
                Node::Array(items) => {
                    output.write_all(b"[")?;
                    steps.push(Step::Text("]"));
                    for (at, item) in items.iter().enumerate().rev() {
                        steps.push(Step::Node(*item));
                        steps.extend((at > 0).then_some(Step::Text(",")));
                    }
                }
                Node::Object(members) => {
                    output.write_all(b"{")?;
                    steps.push(Step::Text("}"));
                    for (at, (key, node)) in members.iter().enumerate().rev() {
                        steps.push(Step::Node(*node));
                        steps.push(Step::Key(key));
                        steps.extend((at > 0).then_some(Step::Text(",")));
                    }
                }
            }
        }
        Ok(())
    }

    /// The members of an object, each as JSON; `None` for any other value.
    pub(super) fn members(&self) -> Option<BTreeMap<String, String>> {
        let Node::Object(members) = &self.nodes[ROOT] else {
            return None;
        };
        let text = |node| {
            let mut bytes = Vec::new();
            // Can't fail: writes to memory succeed, and JSON is UTF-8.
            let _ = self.write_node(node, &mut bytes, json_string);
            String::from_utf8(bytes).unwrap_or_default()
        };
        Some(
            members
                .iter()
                .map(|(key, node)| (key.to_string(), text(*node)))
                .collect(),
        )
    }

    /// As [`Self::write`], into memory.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Can't fail: writes to memory succeed.
        let _ = self.write(&mut bytes);
        bytes
    }

    /// The root value.
    pub(super) fn root(&self) -> Part<'_> {
        self.part(ROOT)
    }

    fn part(&self, node: NodeId) -> Part<'_> {
        match &self.nodes[node] {
            Node::Outlined | Node::Pruned | Node::Null => Part::Null,
            Node::Bool(value) => Part::Bool(*value),
            Node::Number(text) => Part::Number(text),
            Node::String(text) => Part::String(text),
            Node::Array(items) => Part::Array(Items {
                document: self,
                nodes: items.iter(),
            }),
            Node::Object(members) => Part::Object(Members {
                document: self,
                nodes: members.iter(),
            }),
        }
    }

    fn append(&mut self, other: Self) -> NodeId {
        let offset = self.nodes.len();
        self.origins.extend(other.origins);
        self.nodes.extend(other.nodes.into_iter().map(|mut node| {
            match &mut node {
                Node::Array(items) => items.iter_mut().for_each(|item| *item += offset),
                Node::Object(members) => members.values_mut().for_each(|member| *member += offset),
                _ => {}
            }
            node
        }));
        offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(json: &str) -> Document {
        Document::of_json(json.as_bytes(), Detail::Values).unwrap()
    }

    fn text(document: &Document) -> String {
        String::from_utf8(document.to_bytes()).unwrap()
    }

    fn path(text: &str) -> Vec<String> {
        text.split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn values_keep_their_text() {
        let mut one = document(r#"{"a":{"n":12345678901234567890123.10},"l":[1e400,[],{}]}"#);
        one.merge(document(r#"{"a":{"b":1e3}}"#)).unwrap();
        assert_eq!(
            text(&one),
            r#"{"a":{"b":1e3,"n":12345678901234567890123.10},"l":[1e400,[],{}]}"#
        );
        assert_eq!(
            one.merge(document(r#"{"a":{"b":1e3}}"#)).unwrap_err().path,
            ["a", "b"]
        );
    }

    #[test]
    fn a_collision_names_the_first_file() {
        let mut data = document(r#"{"x":1}"#).numbered(7).mounted(&path("a"));
        data.merge(document(r#"{"b":{"y":1}}"#).numbered(8).mounted(&path("a")))
            .unwrap();
        let collision = data
            .merge(document("{}").numbered(9).mounted(&path("a/b/y")))
            .unwrap_err();
        assert_eq!(
            collision,
            Collision {
                path: path("a/b/y"),
                first: 8
            }
        );
        let mut data = document("[]").numbered(1).mounted(&path("a"));
        let collision = data
            .merge(document("1").numbered(2).mounted(&path("a/b")))
            .unwrap_err();
        assert_eq!(
            collision,
            Collision {
                path: path("a"),
                first: 1
            }
        );
    }

    #[test]
    fn a_deeply_nested_document_needs_no_deep_stack() {
        let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let mut deep = document(&nested(crate::bundle::json::MAX_DEPTH));
        deep.merge(document(r#"{"b":1}"#)).unwrap();
        assert!(text(&deep).ends_with(r#","b":1}"#));
        for depth in [crate::bundle::json::MAX_DEPTH + 1, 1_000_000] {
            let error = Document::of_json(nested(depth).as_bytes(), Detail::Values).unwrap_err();
            assert!(error.to_string().contains("nested"), "{error}");
        }
    }

    #[test]
    fn the_last_of_duplicate_members_counts() {
        assert_eq!(
            text(&document(r#"{"a":{"x":1},"a":{"y":2}}"#)),
            r#"{"a":{"y":2}}"#
        );
    }

    #[test]
    fn yaml_that_is_json_keeps_its_numbers() {
        let read = |content: &[u8]| {
            Document::of_yaml(content, Detail::Values).map(|document| text(&document))
        };
        assert_eq!(read(b"{\"n\": 1.10}").unwrap(), r#"{"n":1.10}"#);
        assert_eq!(read(b"\xef\xbb\xbfn: 1.10\n").unwrap(), r#"{"n":1.1}"#);
        assert!(
            read(b"a: [\n").unwrap_err().to_string().contains("2:1") || read(b"a: [\n").is_err()
        );
    }

    fn outside(json: &str, roots: &str) -> Option<String> {
        let owner = BundleManifest::parse(format!(r#"{{"roots":{roots}}}"#).as_bytes()).unwrap();
        let found = document(json).first_outside(&owner);
        let detail = Detail::Outline {
            mount: &[],
            prunes: &|path| owner.owns(path),
        };
        let outlined = Document::of_json(json.as_bytes(), detail).unwrap();
        assert_eq!(outlined.first_outside(&owner), found, "{json} {roots}");
        found
    }

    #[test]
    fn data_outside_the_roots_is_found() {
        let roots = r#"["a/b"]"#;
        for inside in [
            r#"{"a":{"b":{"c":1}}}"#,
            "{}",
            r#"{"a":{}}"#,
            r#"{"a":{"c":{"d":{}}}}"#,
            r#"{"a/b":1}"#,
        ] {
            assert_eq!(outside(inside, roots), None, "{inside}");
        }
        for (json, at) in [
            (r#"{"a":{"b":1,"c":{"d":1}}}"#, "a/c/d"),
            (r#"{"a":{"b":1,"c":1}}"#, "a/c"),
            (r#"{"a":1}"#, "a"),
            (r#"{"x":{}}"#, "x"),
            ("1", ""),
        ] {
            assert_eq!(outside(json, roots).as_deref(), Some(at), "{json}");
        }
    }

    #[test]
    fn pruned_objects_are_not_kept() {
        let json = r#"{"a":{"b":{"c":1}},"d":{"e":[{}]}}"#;
        let detail = Detail::Outline {
            mount: &[],
            prunes: &|path| path == "a",
        };
        let outline = Document::of_json(json.as_bytes(), detail).unwrap();
        assert_eq!(text(&outline), r#"{"a":null,"d":{"e":null}}"#);
    }

    #[test]
    fn a_rule_conflicts_with_data_at_its_path_and_with_values_above_it() {
        let data = document(r#"{"a":{"allow":true,"l":[1]}}"#);
        for (rule, conflicts) in [
            ("a/allow", true),
            ("a/allow/x", true),
            ("a", true),
            ("a/l/0", true),
            ("a/deny", false),
            ("b/c", false),
        ] {
            assert_eq!(data.conflicts_with_rule(&path(rule)), conflicts, "{rule}");
        }
    }
}
