//! Packing reads the tar stream while it is written. These tests compare the result with that of
//! opening the finished tarball, on generated folders, most of which have defects.

use std::{fs, path::Path};

use flate2::bufread::MultiGzDecoder;
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// Names of files, with contents for each.
const FILES: &[(&[&str], &[&[u8]])] = &[
    (
        &[
            "data.json",
            "a/data.json",
            "a/b/data.json",
            "b/data.json",
            "x\\..\\y/data.json",
        ],
        &[
            b"{}",
            b"{\"x\":1}",
            b"{\"a\":{\"b\":{\"c\":1}},\"z\":[{}]}",
            b"{\"b\":{\"y\":[1,2]}}",
            b"{\"p\":{\"q\":{}}}",
            b"[1]",
            b"1",
            b"{\"x\":",
            b"{} null",
            b"{} 1",
            b"\xef\xbb\xbf{}",
            b"{\"\\ud800\":\"\xff\"}",
        ],
    ),
    (
        &["data.yaml", "a/data.yml", "b/data.yaml", "a/b/data.yaml"],
        &[
            b"x: 1\n",
            b"b: {c: 2}\n",
            b"a: [",
            b"- a\n",
            b"{\"n\": 1.10}",
        ],
    ),
    (
        &["p.rego", "a/p.rego", "z/q.rego"],
        &[
            b"package a\n\nx := 1\n",
            b"package a.b\n\nc := 1\n",
            b"package b\n\nallow if input.x\n",
            b"package b\n\nallow { input.x }\n",
            b"package a[input.x]\n",
            b"package p\n\nq.r := 1\n",
            b"package z # comment\n",
            b"",
            b"# nothing\n",
            b"x := 1\n",
            b"package a\n\nallow if {",
            b"package a\n# \xff\n",
        ],
    ),
    (&["policy.wasm", "a/policy.wasm", "plan.json"], &[b"", b"x"]),
    (
        &[".manifest"],
        &[
            b"{}",
            b"{\"revision\":\"v1\"}",
            b"{\"revision\":\"\",\"roots\":[\"a\",\"z\"]}",
            b"{\"roots\":[\"a/b\",\"b\"]}",
            b"{\"roots\":[\"a\",\"b\",\"p\",\"x\",\"z\"]}",
            b"{\"rego_version\":0}",
            b"{\"file_rego_versions\":{\"/a/*.rego\":0}}",
            b"{\"wasm\":[{\"entrypoint\":\"a/x\",\"module\":\"policy.wasm\"}]}",
            b"{\"roots\":[\"b\"],\"wasm\":[{\"entrypoint\":\"a/x\",\"module\":\"/policy.wasm\"}]}",
        ],
    ),
];

fn file() -> impl Strategy<Value = (&'static str, Vec<u8>)> {
    // Half of all files are larger than a block.
    let padding = select(vec![0, 0, 0, 600, 9_000, 300_000]);
    (
        select(FILES),
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        padding,
    )
        .prop_map(|((names, contents), name, content, padding)| {
            let mut content = contents[content.index(contents.len())].to_vec();
            content.resize(content.len() + padding, b' ');
            (names[name.index(names.len())], content)
        })
}

fn limits() -> impl Strategy<Value = Limits> {
    let bundle = select(vec![150, 500, 1 << 20, 1 << 20, 1 << 20]);
    let unpacked = select(vec![2_048, 20_000, 310_000, 1 << 24, 1 << 24, 1 << 24]);
    (
        bundle,
        unpacked,
        select(vec![2, 4, 100, 100]),
        select(vec![10, 1 << 20, 1 << 20]),
    )
        .prop_map(|(bundle, unpacked, files, bundle_manifest)| Limits {
            bundle,
            unpacked,
            files,
            bundle_manifest,
        })
}

/// Packs without reading the tar stream. Opens the tarball afterwards, and checks its Rego.
fn pack_then_open(folder: &Folder, options: &PackOptions) -> Result<Packed, PackError> {
    let limits = &options.limits;
    let members = folder.manifest_for(options);
    let manifest = parse_manifest(&members_text(&members))?;
    let rego = RegoFiles::read(folder, &manifest, options.parse);
    let rules = rego.rules();
    let (blob, files) = folder.write(members, limits.unpacked, &rego, Vec::new())?;
    let bundle = Bundle::open(blob, limits).map_err(|error| folder.with_paths(error))?;
    let modules = rego.into_modules()?;
    let tar = MultiGzDecoder::new(bundle.blob().reader());
    match conflicting_rule(tar, limits, &rules)? {
        Some(RulePath { path, place }) => Err(PackError::RuleOverData {
            place,
            at: data_path(&path),
        }),
        None => Ok(Packed {
            bundle,
            files,
            modules,
        }),
    }
}

/// What a caller can see of the result.
fn outcome(packed: Result<Packed, PackError>) -> String {
    match packed {
        Ok(packed) => format!(
            "{} {:?} {} {:?}",
            packed.bundle.blob().digest(),
            packed.bundle.manifest(),
            packed.files,
            packed.modules
        ),
        Err(error) => format!("{error:?}"),
    }
}

fn write(folder: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_packed_folder_has_the_result_of_opening_the_tarball(
        files in vec(file(), 1..7),
        limits in limits(),
        parse in select(vec![Parse::Strictly, Parse::No]),
        revision in select(vec![None, Some("r")]),
    ) {
        let temporary = tempfile::tempdir().unwrap();
        write(temporary.path(), &files);
        let options = PackOptions {
            parse,
            revision: revision.map(str::to_owned),
            ..PackOptions::new(limits)
        };
        if let Ok(folder) = Folder::read(temporary.path(), &limits) {
            prop_assert_eq!(
                outcome(folder.pack(&options)),
                outcome(pack_then_open(&folder, &options))
            );
        }
    }
}

#[test]
fn rego_that_changes_between_parsing_and_packing_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    write(temporary.path(), &[("p.rego", b"package a\n".to_vec())]);
    let limits = Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 10,
        bundle_manifest: 1 << 20,
    };
    let folder = Folder::read(temporary.path(), &limits).unwrap();
    let members = folder.manifest_for(&PackOptions::new(limits));
    let manifest = parse_manifest(&members_text(&members)).unwrap();
    let rego = RegoFiles::read(&folder, &manifest, Parse::Strictly);
    write(temporary.path(), &[("p.rego", b"package b\n".to_vec())]);
    let error = folder
        .write(members, limits.unpacked, &rego, Vec::new())
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("its content changed while it was read; try again"),
        "{error}"
    );
}
