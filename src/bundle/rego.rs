//! Reading Rego, to name file, line and reason before OPA would.

use super::PackError;

/// Which Rego a file without imports is written in (`.manifest`, `rego_version`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegoVersion {
    V0,
    V1,
}

/// Parses one file and gives its package, such as `authz.api`.
///
/// The parser is regorus, which lags behind the newest OPA.
pub(super) fn package(path: &str, text: &str, version: RegoVersion) -> Result<String, PackError> {
    let mut engine = regorus::Engine::new();
    engine.set_rego_v0(version == RegoVersion::V0);
    // The folder's own limits hold.
    engine.clear_policy_length_config();
    match engine.add_policy(path.to_owned(), text.to_owned()) {
        Ok(package) => Ok(package.strip_prefix("data.").unwrap_or(&package).to_owned()),
        Err(error) => Err(refusal(path, &error.to_string())),
    }
}

/// regorus draws a picture: `--> FILE:LINE:COLUMN`, the source line, `error: REASON`.
fn refusal(path: &str, picture: &str) -> PackError {
    let after = |mark: &str| picture.lines().find_map(|line| line.trim_start().strip_prefix(mark)).map(str::trim);
    let place = after("-->").unwrap_or(path).to_owned();
    let reason = after("error:").unwrap_or_else(|| picture.trim()).to_owned();
    PackError::Rego { place, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_named_without_data() {
        let text = "package authz.api\n\nimport rego.v1\n\nallow if input.user == \"alice\"\n";
        assert_eq!(package("a.rego", text, RegoVersion::V1).unwrap(), "authz.api");
        assert_eq!(package("a.rego", text, RegoVersion::V0).unwrap(), "authz.api");
        let old = "package authz\n\nallow { input.x }\n";
        assert_eq!(package("a.rego", old, RegoVersion::V0).unwrap(), "authz");
        assert!(package("a.rego", old, RegoVersion::V1).is_err());
    }

    #[test]
    fn an_error_names_file_line_and_reason_in_one_line() {
        for text in ["package a\n\nallow if {\n\tinput.x ==\n}\n", "package a\nallow if", "", "x"] {
            let error = package("dir/a.rego", text, RegoVersion::V1).unwrap_err().to_string();
            assert!(error.starts_with("dir/a.rego:") && !error.contains('\n'), "{error}");
        }
        let error = package("dir/a.rego", "package a\n\nallow if {\n\tinput.x ==\n}\n", RegoVersion::V1);
        assert!(error.unwrap_err().to_string().starts_with("dir/a.rego:5:1: "));
    }
}
