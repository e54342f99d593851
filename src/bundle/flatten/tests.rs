//! Layers of images, and the files that are left of them.

use tar::EntryType;

use super::*;
use crate::{
    bundle::archive::walk,
    oci::{Descriptor, media_type},
};

const LIMITS: Limits = Limits {
    bundle: 1 << 20,
    unpacked: 1 << 20,
    files: 20,
    bundle_manifest: 1 << 20,
};

/// A member of a layer: its name and its content, or its type.
enum Member {
    File(&'static str, &'static str),
    Of(&'static str, EntryType),
}

use Member::{File, Of};

fn folder(name: &'static str) -> Member {
    Of(name, EntryType::Directory)
}

/// A layer as an uncompressed tarball; names are written as they are.
fn layer(members: &[Member]) -> Blob {
    let mut builder = tar::Builder::new(Vec::new());
    for member in members {
        let (name, kind, content) = match member {
            File(name, content) => (*name, EntryType::Regular, *content),
            Of(name, kind) => (*name, *kind, ""),
        };
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    let bytes = builder.into_inner().unwrap();
    Blob::check(
        &Descriptor::of(media_type::LAYER_TAR_GZIP, &bytes),
        bytes.into(),
    )
    .unwrap()
}

fn flattened(layers: &[&[Member]]) -> Result<Vec<(String, String)>, String> {
    let layers: Vec<_> = layers.iter().map(|members| layer(members)).collect();
    let output = Output::to(NewBlob::system_space());
    let blob = flatten(&layers, &LIMITS, &output).map_err(|error| error.to_string())?;
    let mut files = Vec::new();
    walk(&blob, &LIMITS, |entry| {
        let content = String::from_utf8(entry.content()?).unwrap();
        files.push((entry.name().to_owned(), content));
        Ok::<_, BundleError>(())
    })
    .unwrap();
    Ok(files)
}

fn names(layers: &[&[Member]]) -> Vec<String> {
    let files = flattened(layers).unwrap();
    files.into_iter().map(|(name, _)| name).collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a flat table")]
fn later_layers_replace_and_remove_what_earlier_ones_have() {
    let rego = "package a\n";
    let base: &[Member] = &[
        folder("policy/"),
        File("policy/a.rego", rego),
        File("policy/b.rego", rego),
        folder("data/"),
        File("data/x/data.json", "{}"),
        File("data/y/data.json", "{}"),
        File("./README", "x"),
    ];
    let table: &[(&str, &[Member], &[&str])] = &[
        (
            "nothing",
            &[],
            &[
                "README",
                "data/x/data.json",
                "data/y/data.json",
                "policy/a.rego",
                "policy/b.rego",
            ],
        ),
        (
            "a whiteout of a file",
            &[File("policy/.wh.a.rego", "")],
            &[
                "README",
                "data/x/data.json",
                "data/y/data.json",
                "policy/b.rego",
            ],
        ),
        (
            "a whiteout of a folder",
            &[File("/.wh.data", "")],
            &["README", "policy/a.rego", "policy/b.rego"],
        ),
        (
            "a whiteout of something that is not there, and metadata of AUFS",
            &[
                File(".wh.none", ""),
                File(".wh..wh.plnk", ""),
                File(".wh..wh.aufs", ""),
            ],
            &[
                "README",
                "data/x/data.json",
                "data/y/data.json",
                "policy/a.rego",
                "policy/b.rego",
            ],
        ),
        (
            "an opaque folder, whose own files stay in any order",
            &[
                File("data/z/data.json", "{}"),
                File("data/.wh..wh..opq", ""),
                File("data/data.json", "{}"),
            ],
            &[
                "README",
                "data/data.json",
                "data/z/data.json",
                "policy/a.rego",
                "policy/b.rego",
            ],
        ),
        (
            "an opaque root",
            &[File(".wh..wh..opq", ""), File("p.rego", rego)],
            &["p.rego"],
        ),
        (
            "a file that is removed and put back in one layer",
            &[File("policy/a.rego", rego), File("policy/.wh.a.rego", "")],
            &[
                "README",
                "data/x/data.json",
                "data/y/data.json",
                "policy/a.rego",
                "policy/b.rego",
            ],
        ),
        (
            "a file in place of a folder",
            &[File("data", "")],
            &["README", "data", "policy/a.rego", "policy/b.rego"],
        ),
        (
            "a folder in place of a file",
            &[folder("README/"), File("README/data.json", "{}")],
            &[
                "README/data.json",
                "data/x/data.json",
                "data/y/data.json",
                "policy/a.rego",
                "policy/b.rego",
            ],
        ),
    ];
    for (what, changes, expected) in table {
        assert_eq!(names(&[base, changes]), *expected, "{what}");
    }
}

#[test]
fn the_last_layer_decides_and_the_order_within_the_tarball_does_not() {
    let files = flattened(&[
        &[
            File("p.rego", "package one\n"),
            File("q.rego", "package q\n"),
        ],
        &[
            File("q.rego", "package q2\n"),
            File("/./p.rego", "package two\n"),
        ],
        &[
            File("p.rego", "package three\n"),
            File("p.rego", "package four\n"),
        ],
    ]);
    let expected = [("p.rego", "package four\n"), ("q.rego", "package q2\n")];
    assert_eq!(
        files.unwrap(),
        expected.map(|(name, content)| (name.to_owned(), content.to_owned()))
    );
}

/// Nothing is ever written to a path of the disk, so the question is what a bundle has.
#[test]
fn links_are_not_followed_and_no_name_leads_out() {
    let rego: &[Member] = &[File("p.rego", "package a\n")];
    for (what, changes, words) in [
        (
            "a symbolic link",
            vec![Of("data.json", EntryType::Symlink)],
            "data.json: it is a symbolic link",
        ),
        (
            "a hard link",
            vec![Of("q.rego", EntryType::Link)],
            "q.rego: it is a hard link",
        ),
        (
            "a device",
            vec![Of("null", EntryType::Char)],
            "null: it is a device",
        ),
        (
            "a file behind a link",
            vec![Of("etc", EntryType::Symlink), File("etc/data.json", "{}")],
            "etc: it is a symbolic link",
        ),
        ("a name", vec![File("../p.rego", "")], "leads out"),
        (
            "a name with backslashes",
            vec![File("a\\..\\p.rego", "")],
            "leads out",
        ),
        ("a whiteout", vec![File("../.wh.etc", "")], "leads out"),
        (
            "a whiteout of its folder",
            vec![File("a/.wh..", "")],
            "a whiteout without a name",
        ),
        (
            "a whiteout of nothing",
            vec![File(".wh.", "")],
            "a whiteout without a name",
        ),
        ("a folder", vec![folder("a/../../b/")], "leads out"),
    ] {
        let error = flattened(&[rego, &changes]).unwrap_err();
        assert!(error.contains(words), "{what}: {error}");
    }
    let replaced = [File("etc/x", ""), File("data.json", "{}")];
    let links = [
        Of("data.json", EntryType::Symlink),
        Of("etc", EntryType::Symlink),
    ];
    assert_eq!(
        names(&[rego, &links, &[folder("etc/")], &replaced]),
        ["data.json", "etc/x", "p.rego"]
    );
}

#[test]
fn the_limits_count_for_all_layers_together() {
    let many = |count| {
        (0..count)
            .map(|_| File("a/p.rego", "package a\n"))
            .collect::<Vec<_>>()
    };
    flattened(&[&many(10), &many(10)]).unwrap();
    let error = flattened(&[&many(10), &many(11)]).unwrap_err();
    assert!(error.contains("limits.files"), "{error}");
    let half: &'static str = Box::leak(" ".repeat(600 << 10).into_boxed_str());
    flattened(&[&[File("data.json", half)]]).unwrap();
    let error = flattened(&[&[File("data.json", half)], &[File("data.json", half)]]).unwrap_err();
    assert!(error.contains("limits.unpacked"), "{error}");
}

#[test]
fn an_image_of_which_opa_would_read_nothing_is_refused() {
    let error = flattened(&[&[File("bin/sh", "x")], &[File("etc/policy.yaml", "x")]]).unwrap_err();
    assert_eq!(
        error,
        "no OPA bundle: none of its 2 files is Rego, data.json, data.yaml or a .manifest"
    );
}
