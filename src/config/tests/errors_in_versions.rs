//! The errors of `semver`, `filter_tags` and `suspend`.

use super::errors::check;

/// Rows about one bundle: its keys after the policy, the path of the error below the bundle, and
/// the error.
#[track_caller]
fn check_bundle(rows: &[(&str, &str, &str)]) {
    let rows: Vec<_> = rows
        .iter()
        .map(|(keys, path, error)| {
            (
                format!("bundles: {{ a/b: {{ trust: dev, {keys} }} }}\ntrust: {{ policies: {{ dev: unsigned }} }}"),
                format!("bundles.a/b.{path}: {error}"),
            )
        })
        .collect();
    let rows: Vec<_> = rows
        .iter()
        .map(|(typed, error)| (typed.as_str(), error.as_str()))
        .collect();
    check(&rows);
}

#[test]
fn a_reference_has_either_a_version_or_a_rule() {
    check_bundle(&[
        (
            "reference: r.io/a",
            "reference",
            "reference \"r.io/a\" names neither tag nor digest; add one, such as r.io/a:v1, or choose a tag by `semver` or `filter_tags`",
        ),
        (
            "reference: 'r.io/a:v1', semver: ^1",
            "reference",
            "reference \"r.io/a:v1\" has a tag or digest, but `semver` chooses the tag; remove one of them",
        ),
        (
            "reference: 'oci-layout:x:v1', semver: ^1",
            "reference",
            "reference \"oci-layout:x:v1\" has a tag or digest, but `semver` chooses the tag; remove one of them",
        ),
        (
            "reference: 'r.io/a:v1', filter_tags: { pattern: x, order: alphabetical }",
            "reference",
            "reference \"r.io/a:v1\" has a tag or digest, but `filter_tags` chooses the tag; remove one of them",
        ),
        (
            "reference: 'https://r.io/a', semver: ^1",
            "reference",
            "reference \"https://r.io/a\" is malformed: it has a scheme; write HOST/REPOSITORY",
        ),
    ]);
}

#[test]
fn errors_of_semver_and_filter_tags_name_the_key_and_a_fix() {
    check_bundle(&[
        (
            "reference: r.io/a, semver: '^1 ||'",
            "semver",
            "\"^1 ||\" is not a version range: a part of it is empty; write one such as \"^1 || ^3\", \">=1.2 <2\" or \"1.2 - 2.0\"",
        ),
        (
            "reference: r.io/a, semver: 1.2",
            "semver",
            "expected text, found the floating point `1.2`; put it in quotes",
        ),
        (
            "reference: r.io/a, filter_tags: { order: numerical }",
            "filter_tags.pattern",
            "missing; write it",
        ),
        (
            "reference: r.io/a, filter_tags: { pattern: '(', order: numerical }",
            "filter_tags.pattern",
            "not a regular expression: unclosed group; correct it",
        ),
        (
            "reference: r.io/a, filter_tags: { pattern: '^(?P<ts>.*)$', extract: $st, order: numerical }",
            "filter_tags.extract",
            "the pattern has no group \"st\"; it has $ts; name one of them",
        ),
        (
            "reference: r.io/a, filter_tags: { pattern: x }",
            "filter_tags.order",
            "missing; write alphabetical or numerical, or add `semver` to the bundle for the order of versions",
        ),
        (
            "reference: r.io/a, filter_tags: { pattern: x, order: version }",
            "filter_tags.order",
            "the order of versions needs a range; add `semver` to the bundle, such as \"*\"",
        ),
        (
            "reference: r.io/a, semver: ^1, filter_tags: { pattern: x, order: numerical }",
            "filter_tags.order",
            "`semver` chooses by the order of versions; write version, or remove `semver`",
        ),
        (
            "reference: r.io/a, filter_tags: { pattern: x, order: numeric }",
            "filter_tags.order",
            "\"numeric\" is not one of `version`, `alphabetical` and `numerical`; did you mean `numerical`?",
        ),
        (
            "reference: r.io/a, semver: ^1, filter_tags: { pattern: x, pick: lowest }",
            "filter_tags.pick",
            "`semver` chooses the highest version in its range; remove this key",
        ),
        (
            "reference: 'r.io/a:v1', suspend: maybe",
            "suspend",
            "expected true or false, found \"maybe\"; correct the value",
        ),
    ]);
}
