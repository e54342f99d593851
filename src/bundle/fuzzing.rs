//! Parsers that only other parts of this module call, for the fuzz targets. Not there in any
//! other build.

/// The JSON of a YAML text.
pub fn yaml_to_json(text: &[u8]) -> Option<Vec<u8>> {
    super::yaml::to_json(text).ok()
}

/// A JSON text as OPA reads it, written again: members sorted, of two with one name the last.
pub fn json_to_json(text: &[u8]) -> Option<Vec<u8>> {
    let document = super::document::Document::of_json(text, super::document::Detail::Values).ok()?;
    Some(document.to_bytes())
}
