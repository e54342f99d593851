//! Parsers that only other parts of this module call, for the fuzz targets. Not there in any
//! other build.

/// The JSON of a YAML text.
pub fn yaml_to_json(text: &[u8]) -> Option<Vec<u8>> {
    super::yaml::to_json(text).ok()
}
