//! YAML as the JSON that it means.
pub(super) fn to_json(text: &[u8]) -> Result<Vec<u8>, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let value: serde_json::Value =
        serde_saphyr::from_slice_with_options(text, options).map_err(|error| error.to_string())?;
    Ok(value.to_string().into_bytes())
}
