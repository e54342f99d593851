//! Paths in flags and arguments.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::oci::check_tilde;

/// Parses a path. A `~` that the shell did not expand, as in `--key=~/release.key`, is an error and
/// not a folder of that name.
pub(super) fn path_value() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| {
        let path = PathBuf::from(text);
        check_tilde(&path).map(|()| path)
    })
}
