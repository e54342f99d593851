//! Private parsers of this module for the fuzz targets. Compiled for fuzzing only.

/// Converts YAML to JSON.
pub fn yaml_to_json(text: &[u8]) -> Option<Vec<u8>> {
    super::yaml::to_json(text).ok()
}

/// Parses JSON as OPA does and writes it again, with sorted members; of duplicate members the last
/// one counts.
pub fn json_to_json(text: &[u8]) -> Option<Vec<u8>> {
    let document =
        super::document::Document::of_json(text, super::document::Detail::Values).ok()?;
    Some(document.to_bytes())
}

/// The `patch.json` that makes the document `target` of `base`, if there is one.
///
/// # Errors
/// Why there is none.
pub fn patch(base: &[u8], target: &[u8]) -> Result<Vec<u8>, super::NoDelta> {
    super::delta::proved_patch(base, target)
}
