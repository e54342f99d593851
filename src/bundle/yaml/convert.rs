//! Converts a YAML text to JSON.

use super::{YamlError, decode, input, json, normalize, tree::Tree};

/// The size that aliases may add to a text, besides [`MAX_GROWTH`] times its own size.
const MAX_EXTRA_BYTES: usize = 16 << 20;
/// Escapes make a text up to six times as large.
const MAX_GROWTH: usize = 8;

/// Converts a YAML text to the JSON that OPA 1.22.2 makes of it (`YAMLToJSON` in its
/// `internal/yaml`, on go.yaml.in/yaml/v3 3.0.5). The members of objects are sorted by name.
///
/// A stream may hold several documents: the first one counts, and all have to be YAML. A text
/// without a document is null. A text that is valid JSON is YAML as well, but OPA reads it as JSON,
/// where numbers keep their text: a data file is first parsed as JSON, after a UTF-8 byte order
/// mark is removed.
///
/// # Errors
/// An error with line and column when OPA refuses the text, or when it can't be represented
/// exactly: a byte order mark inside the text, two keys of one mapping that get the same name in
/// JSON through aliases or merge keys (OPA takes a random one), more than 4 194 304 values, or JSON
/// of more than 16 MiB plus eight times the size of the text.
pub(in crate::bundle) fn to_json(text: &[u8]) -> Result<Vec<u8>, YamlError> {
    let decoded = input::decode(text)?;
    let mut tree = Tree::parse(&decoded)?;
    let Some(root) = tree.root else {
        return Ok(b"null".to_vec());
    };
    normalize::normalize(&mut tree)?;
    let max_bytes = text
        .len()
        .saturating_mul(MAX_GROWTH)
        .saturating_add(MAX_EXTRA_BYTES);
    let values = decode::decode(&tree, root, max_bytes)?;
    json::write(&tree, &values, max_bytes)
}
