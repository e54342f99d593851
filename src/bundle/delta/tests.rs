use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Duration;

use super::*;
use crate::{
    bundle::Limits,
    oci::{Descriptor, NewBlob},
};

const LIMITS: Limits = Limits {
    bundle: 64 << 20,
    unpacked: 64 << 20,
    files: 100,
    bundle_manifest: 1 << 20,
};

fn bundle(files: &[(&str, &str)]) -> Bundle {
    let mut tarball = Output::to(NewBlob::system_space()).tarball();
    for (name, content) in files {
        tarball
            .add(name, content.len() as u64, content.as_bytes())
            .unwrap();
    }
    let blob = tarball.finish().unwrap();
    let bytes = blob.read_at(0, usize::MAX).unwrap();
    Bundle::open(
        Blob::check(&Descriptor::of("", &bytes), bytes).unwrap(),
        &LIMITS,
    )
    .unwrap()
}

fn limits() -> DeltaLimits {
    DeltaLimits {
        memory: 64 << 20,
        deadline: Instant::now() + Duration::from_secs(60),
        // The bundles of these tests are as small as their deltas.
        ratio: 10.0,
    }
}

fn difference(base: &[(&str, &str)], target: &[(&str, &str)]) -> Result<Difference, NoDelta> {
    let [base, target] = [base, target].map(bundle);
    Difference::between(&base, &target, &limits(), NewBlob::system_space())
}

/// The files of a delta.
fn files(difference: Difference) -> Vec<(String, String)> {
    let Difference::Delta(blob) = difference else {
        panic!("no delta");
    };
    let mut files = Vec::new();
    let visit = |entry: &mut super::super::archive::Entry<'_>| {
        let content = String::from_utf8(entry.content()?).unwrap();
        files.push((entry.name().to_owned(), content));
        Ok::<_, super::super::BundleError>(())
    };
    super::super::archive::walk(&blob, &LIMITS, visit).unwrap();
    files
}

#[test]
fn a_delta_has_the_patch_and_the_manifest_of_the_new_version() {
    let rego = ("a/p.rego", "package a\n");
    let found = difference(
        &[
            (".manifest", r#"{"revision":"1","roots":["a"]}"#),
            rego,
            ("a/data.json", r#"{"x":1,"y":[1]}"#),
        ],
        &[
            ("a/data.json", r#"{"y":[1],"x":1.0}"#),
            rego,
            (
                ".manifest",
                r#"{"roots":["a"],"revision":"2","metadata":{"z":0}}"#,
            ),
        ],
    );
    let expected = [
        (
            ".manifest",
            r#"{"roots":["a"],"revision":"2","metadata":{"z":0}}"#,
        ),
        (
            "patch.json",
            r#"{"data":[{"op":"replace","path":"/a/x","value":1.0}]}"#,
        ),
    ];
    let found = files(found.unwrap());
    let found: Vec<_> = found
        .iter()
        .map(|(name, text)| (&**name, &**text))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn whatever_is_not_json_data_excludes_a_delta() {
    let rego = ("a/p.rego", "package a\n");
    let data = |x: &'static str| ("a/data.json", x);
    let roots = |roots: &'static str| (".manifest", roots);
    let (one, two) = (data(r#"{"x":1}"#), data(r#"{"x":2}"#));
    let yaml = |text: &'static str| ("a/b/data.yaml", text);
    for (base, target, reason) in [
        (
            vec![rego, one],
            vec![("a/p.rego", "package a\n\n"), two],
            NoDelta::Policy,
        ),
        (vec![rego, one], vec![two], NoDelta::Policy),
        (
            vec![roots(r#"{"roots":["a"]}"#), one],
            vec![roots(r#"{"roots":["a","b"]}"#), two],
            NoDelta::Roots,
        ),
        (
            vec![roots(r#"{"rego_version":0}"#), one],
            vec![roots(r#"{"rego_version":1}"#), two],
            NoDelta::Policy,
        ),
        (
            vec![roots(r#"{"revision":"1"}"#), one],
            vec![roots(r#"{"revision":"2"}"#), one],
            NoDelta::ManifestOnly,
        ),
        (vec![one], vec![roots("{}"), one], NoDelta::ManifestOnly),
        (
            vec![yaml("x: 1"), one],
            vec![yaml("x: 2"), one],
            NoDelta::Policy,
        ),
        (
            vec![yaml("x: NO"), ("a/b/c/data.json", "1")],
            vec![yaml("x: NO"), ("a/b/c/data.json", "2")],
            NoDelta::Policy,
        ),
        (
            vec![("data.yaml", "y: 1"), one],
            vec![("data.yaml", "y: 1"), two],
            NoDelta::Policy,
        ),
        (
            vec![(".signatures.json", r#"{"signatures":[]}"#), one],
            vec![(".signatures.json", r#"{"signatures":[]}"#), two],
            NoDelta::Signed,
        ),
        // OPA compares roots with the path as it is written in the patch.
        (
            vec![
                roots(r#"{"roots":["a~b"]}"#),
                ("a~b/data.json", r#"{"x":1}"#),
            ],
            vec![
                roots(r#"{"roots":["a~b"]}"#),
                ("a~b/data.json", r#"{"x":2}"#),
            ],
            NoDelta::Inexpressible,
        ),
        (
            vec![roots(r#"{"roots":["a/b"]}"#), ("a/b/data.json", "1")],
            vec![roots(r#"{"roots":["a/b"]}"#)],
            NoDelta::Inexpressible,
        ),
    ] {
        let found = difference(&base, &target).err();
        assert_eq!(found, Some(reason), "{base:?} {target:?}");
    }
    let beside = difference(
        &[yaml("x: NO"), ("a/c/data.json", "1")],
        &[yaml("x: NO"), ("a/c/data.json", "2")],
    );
    assert_eq!(files(beside.unwrap()).len(), 1);
}

/// Versions and stores of OPA read these differently.
#[test]
fn files_that_opas_read_differently_exclude_a_delta() {
    let data = |x: &'static str| ("a/data.json", x);
    let (one, two) = (data(r#"{"x":1}"#), data(r#"{"x":2}"#));
    for (base, target) in [
        (
            vec![("m\u{fc}nchen/data.json", r#"{"x":1}"#)],
            vec![("m\u{fc}nchen/data.json", r#"{"x":2}"#)],
        ),
        (
            vec![("a%20b/data.json", r#"{"x":1}"#)],
            vec![("a%20b/data.json", r#"{"x":2}"#)],
        ),
        (vec![one], vec![two, ("a/c/data.json", "null")]),
        (
            vec![data(r#"{"b":{"c":1}}"#), ("a/b/data.json", r#"{"d":1}"#)],
            vec![data(r#"{"b":{"c":2}}"#), ("a/b/data.json", r#"{"d":1}"#)],
        ),
        (
            vec![one, ("a/data.yaml", "y: 1")],
            vec![two, ("a/data.yaml", "y: 1")],
        ),
    ] {
        let found = difference(&base, &target).err();
        assert_eq!(found, Some(NoDelta::Files), "{base:?} {target:?}");
    }
    let below = difference(
        &[("data.json", r#"{"x":1}"#), ("a/b/data.json", r#"{"y":1}"#)],
        &[("data.json", r#"{"x":1}"#), ("a/b/data.json", r#"{"y":2}"#)],
    );
    assert_eq!(files(below.unwrap()).len(), 1);
}

#[test]
fn the_same_content_in_other_bytes_is_no_difference() {
    let one = [
        (".manifest", r#"{"revision":"1","roots":[""]}"#),
        ("data.json", r#"{"a":1,"b":{}}"#),
    ];
    let other = [
        ("b/data.json", "{}"),
        ("data.json", r#" {"a": 1}"#),
        (".manifest", r#"{"roots": [""], "revision": "1"} "#),
        ("README.md", "OPA does not read this."),
    ];
    assert!(matches!(difference(&one, &other), Ok(Difference::None)));
}

#[test]
fn size_memory_and_time_are_limited() {
    let data = |x: &str| format!(r#"{{"x":"{x}","y":"{}"}}"#, "y".repeat(50_000));
    let (one, two) = (data("1"), data(&"2".repeat(40_000)));
    let [base, target] = [&one, &two].map(|data| bundle(&[("data.json", data)]));
    let with = |limits: DeltaLimits| {
        Difference::between(&base, &target, &limits, NewBlob::system_space()).err()
    };
    assert_eq!(with(limits()), None);
    assert_eq!(
        with(DeltaLimits {
            ratio: 0.5,
            ..limits()
        }),
        Some(NoDelta::TooLarge)
    );
    assert_eq!(
        with(DeltaLimits {
            memory: 100_000,
            ..limits()
        }),
        Some(NoDelta::Memory)
    );
    let long = "z".repeat(2 << 20);
    let [base, target] = ["1", "2"].map(|x| {
        let data = format!(r#"{{"x":{x},"z":"{long}"}}"#);
        bundle(&[("data.json", &data)])
    });
    let over = DeltaLimits {
        deadline: Instant::now() - Duration::from_secs(1),
        ..limits()
    };
    let found = Difference::between(&base, &target, &over, NewBlob::system_space());
    assert_eq!(found.err(), Some(NoDelta::Time));
}

/// A value of any shape, with names and numbers that are easy to get wrong.
pub(super) fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        prop_oneof![
            Just("0"),
            Just("-0"),
            Just("1"),
            Just("1.0"),
            Just("1e3"),
            Just("1E+3"),
            Just("0.1"),
            Just("12345678901234567890123"),
            Just("1e400"),
            Just("-1.5e-7"),
        ]
        .prop_map(str::to_owned),
        name(),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6)
                .prop_map(|items| format!("[{}]", items.join(","))),
            object(inner),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        "[a-c]{0,2}",
        "[~/%.\\\\\"\u{e9}\u{1f600}\u{2028}\u{0}-\u{1f} ]{0,3}",
        Just("-".to_owned()),
        Just("0".to_owned()),
        Just("%41".to_owned()),
        Just("~1".to_owned()),
    ];
    text.prop_map(|text| {
        let mut written = Vec::new();
        write_string(&mut written, &text);
        String::from_utf8(written).unwrap()
    })
}

fn object(values: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    prop::collection::vec((name(), values), 0..6).prop_map(|members| {
        let members: Vec<_> = members
            .iter()
            .map(|(name, value)| format!("{name}:{value}"))
            .collect();
        format!("{{{}}}", members.join(","))
    })
}

proptest! {
    /// Whatever the two versions are, the patch that is computed leads from one to the other.
    #[test]
    fn every_patch_is_proved(base in object(value()), target in object(value())) {
        let work = Work::new(64 << 20, Instant::now() + Duration::from_secs(60));
        let [base, target] = [&base, &target].map(|text| canonical(text.as_bytes(), &work).unwrap());
        let operations = match operations(&base, &target, &work) {
            Ok(operations) => operations,
            Err(reason) => {
                prop_assert_eq!(reason, NoDelta::Inexpressible);
                return Ok(());
            }
        };
        prop_assert_eq!(operations.is_empty(), base == target);
        prop_assert_eq!(prove(&patch_of(&operations), &base, &target, &work), Ok(()));
    }
}

#[test]
fn a_delta_of_a_blob_on_disk_is_the_same() {
    let long: String = (0..300_000).map(|at| format!("\"{at}\":{at},")).collect();
    let [base, target] = ["1", "2"].map(|x| {
        let data = format!("{{{long}\"x\":{x}}}");
        bundle(&[("data.json", &data)])
    });
    let found = Difference::between(&base, &target, &limits(), NewBlob::system_space());
    assert_eq!(
        files(found.unwrap())[0].1,
        r#"{"data":[{"op":"replace","path":"/x","value":2}]}"#
    );
    assert!(Bytes::from(long).len() > 1 << 20);
}
