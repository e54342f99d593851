//! Runs the Rego tests of the policy folder.

use std::{
    collections::HashMap,
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Map, Value};

use super::super::opa::{describe_problem, describe_problems, source_file};
use crate::{
    bundle::{Folder, PackOptions, Packed},
    oci::{Blob, Descriptor, read_regular},
    opa_check::{Checker, Opa, Place, TestOutcome},
};

/// The maximum length of a printed expression, in characters.
const MAX_EXPRESSION: usize = 120;
/// Limits of the search for test files: files, and levels of folders.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 64;
/// The maximum size of a test file, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Runs the tests with `opa`. Returns a line for each failure and a summary; no line if there are
/// no tests.
pub(super) async fn with_opa(
    checker: &Checker,
    opa: &Opa,
    policy: &Path,
    packed: &Packed,
) -> Vec<String> {
    let tests = match test_files(policy) {
        Ok(tests) if tests.is_empty() => return Vec::new(),
        tests => tests,
    };
    let tarball = tests.and_then(|tests| tarball(packed, &tests));
    let tarball = match tarball.context("the tests can't be read") {
        Ok(tarball) => tarball,
        Err(error) => return vec![format!("{error:#}")],
    };
    let sources = [policy.to_owned()];
    match checker.test(opa, &tarball).await {
        Ok(TestOutcome::Ran(run)) => {
            let names: Vec<_> = run.failures.iter().map(|(name, _)| name.as_str()).collect();
            let places = match names.as_slice() {
                [] => HashMap::new(),
                names => checker.failing_places(opa, &tarball, names).await,
            };
            let failures = run.failures.iter().map(|(name, problem)| {
                let expression = places
                    .get(name)
                    .and_then(|place| expression(place, &sources));
                format!(
                    "FAIL {}{}",
                    describe_problem(problem, &sources),
                    expression.unwrap_or_default()
                )
            });
            failures
                .chain(summary(run.passed, run.skipped, run.failures.len()))
                .collect()
        }
        Ok(TestOutcome::NotLoaded(problems)) => {
            vec![format!(
                "the tests don't load: {}",
                describe_problems(&problems, &sources)
            )]
        }
        Err(error) => vec![format!("the tests were not run: {error}")],
    }
}

/// Runs the tests with the built-in evaluator. Blocks.
pub(super) fn built_in(folder: &Folder, options: &PackOptions) -> Vec<String> {
    match folder.test(options) {
        Ok(run) => {
            let failures = run.failures.iter().map(|failure| format!("FAIL {failure}"));
            failures
                .chain(summary(run.passed, 0, run.failures.len()))
                .collect()
        }
        Err(error) => vec![format!("the tests were not run: {error}")],
    }
}

/// A summary such as `4 tests passed`.
fn summary(passed: usize, skipped: usize, failed: usize) -> Option<String> {
    let tests = |count: usize| format!("{count} test{}", if count == 1 { "" } else { "s" });
    let beside = if skipped > 0 {
        format!(", {skipped} skipped")
    } else {
        String::new()
    };
    match (passed, failed) {
        (0, 0) if skipped == 0 => None,
        (passed, 0) => Some(format!("{} passed{beside}", tests(passed))),
        (passed, failed) => {
            let all = tests(passed + failed);
            Some(format!(
                "{failed} of {all} failed{beside}; this build is served anyway"
            ))
        }
    }
}

/// The source line on which a test fails.
fn expression(place: &Place, sources: &[PathBuf]) -> Option<String> {
    let file = source_file(&place.file, sources)?;
    let text = String::from_utf8(read_regular(&file, MAX_FILE_BYTES).ok()?).ok()?;
    let line = text
        .lines()
        .nth(usize::try_from(place.row).ok()?.checked_sub(1)?)?
        .trim();
    let line: String = line.chars().take(MAX_EXPRESSION).collect();
    Some(format!(": {}:{}: {line}", file.display(), place.row))
}

/// The test files of a folder: relative name and path. Hidden folders are skipped, as in `build`.
fn test_files(policy: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let (mut found, mut folders) = (Vec::new(), vec![(policy.to_owned(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            // Links are not followed: they may form a loop.
            if fs::symlink_metadata(&path)?.is_dir() {
                if !name.starts_with('.') && depth < MAX_DEPTH {
                    folders.push((path, depth + 1));
                }
            } else if name.ends_with("_test.rego") && found.len() < MAX_FILES {
                let relative = path
                    .strip_prefix(policy)
                    .unwrap_or(&path)
                    .to_string_lossy()
                    .into_owned();
                found.push((relative, path));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The packed bundle together with the tests, without `roots`: the package of a test is usually
/// outside of them.
fn tarball(packed: &Packed, tests: &[(String, PathBuf)]) -> io::Result<Blob> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut output = tar::Builder::new(encoder);
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        output.append_data(&mut header, name.trim_start_matches('/'), content)
    };
    let mut input = tar::Archive::new(flate2::read::GzDecoder::new(packed.bundle.blob().reader()));
    for entry in input.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        if name.trim_start_matches('/') == ".manifest" {
            content = without_roots(&content)?;
        }
        add(&name, &content)?;
    }
    for (name, path) in tests {
        add(name, &read_regular(path, MAX_FILE_BYTES)?)?;
    }
    let bytes = output.into_inner()?.finish()?;
    Blob::check(&Descriptor::of("", &bytes), bytes.into()).map_err(io::Error::other)
}

fn without_roots(manifest: &[u8]) -> io::Result<Vec<u8>> {
    let mut manifest: Map<String, Value> = serde_json::from_slice(manifest)?;
    manifest.remove("roots");
    Ok(serde_json::to_vec(&manifest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_tests() {
        let text = |passed, skipped, failed| summary(passed, skipped, failed).unwrap_or_default();
        assert_eq!(text(0, 0, 0), "");
        assert_eq!(text(1, 0, 0), "1 test passed");
        assert_eq!(text(4, 0, 0), "4 tests passed");
        assert_eq!(text(4, 1, 0), "4 tests passed, 1 skipped");
        assert_eq!(
            text(3, 0, 1),
            "1 of 4 tests failed; this build is served anyway"
        );
    }

    #[test]
    fn tests_are_found_in_every_folder_that_is_not_hidden() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "a_test.rego",
            "b/c/d_test.rego",
            ".git/e_test.rego",
            "b/p.rego",
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "package x\n").unwrap();
        }
        std::os::unix::fs::symlink(folder.path(), folder.path().join("circle")).unwrap();
        let found = test_files(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a_test.rego", "b/c/d_test.rego"]);
    }
}
