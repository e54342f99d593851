//! A bundle: bytes that load as an OPA bundle, within limits.

use std::io;

use super::{
    BundleError, BundleManifest, LayerError, Limits, Provenance, Revision, Signer,
    archive::{Entry, walk},
    load::load,
    tarball::Output,
};
use crate::oci::{Blob, BlobSpace, NewBlob};

/// Bytes that OPA loads as a bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    blob: Blob,
    manifest: BundleManifest,
    /// The limits within which it was opened.
    limits: Limits,
    /// `None` for bytes that were not made here.
    provenance: Option<Provenance>,
}

impl Bundle {
    /// Reads `blob` to the end of its archive, as OPA's reader does. One file is in memory at a
    /// time, and of data files only the part that has to be compared. Blocks while inflating, twice
    /// if the bundle has data.
    ///
    /// # Errors
    /// When OPA would refuse the bundle, or a limit is exceeded.
    pub fn open(blob: Blob, limits: &Limits) -> Result<Self, BundleError> {
        check_size(&blob, limits)?;
        let unreadable = |error: io::Error| BundleError::Archive {
            reason: error.to_string(),
        };
        let start = blob.read_at(0, 4).map_err(unreadable)?;
        if !start.starts_with(&[0x1f, 0x8b]) {
            return Err(BundleError::NotGzip {
                start: start.to_vec(),
            });
        }
        let manifest = load(&blob, limits)?;
        Ok(Self {
            blob,
            manifest,
            limits: *limits,
            provenance: None,
        })
    }

    /// A bundle that was just written. `loaded` is the result of reading its tar stream while it was
    /// written ([`super::load::load_stream`]).
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn written(
        blob: Blob,
        limits: &Limits,
        loaded: Result<BundleManifest, BundleError>,
    ) -> Result<Self, BundleError> {
        check_size(&blob, limits)?;
        Ok(Self {
            blob,
            manifest: loaded?,
            limits: *limits,
            provenance: None,
        })
    }

    /// The same bundle with a signature for OPA, in place of the one that it may have. Blocks.
    ///
    /// # Errors
    /// When a signature can't express its names, or it exceeds a limit with one.
    pub fn signed_by(&self, signer: &Signer) -> Result<Self, LayerError> {
        let output = Output::to(NewBlob::system_space());
        Ok(Self::open(signer.sign(self, &output)?, &self.limits)?)
    }

    /// The same bundle, as one that was made from layers.
    pub(super) fn made_by(self, provenance: Option<Provenance>) -> Self {
        Self { provenance, ..self }
    }

    /// Calls `visit` for every file, in the order of the tarball. Inflates the tarball again.
    ///
    /// # Errors
    /// The errors of `visit`; opening has proved that the archive itself is sound.
    pub(super) fn walk<E: From<BundleError>>(
        &self,
        visit: impl FnMut(&mut Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        walk(&self.blob, &self.limits, visit)
    }

    /// Writes the tarball to an unlinked file as well ([`Blob::keep_copy`]).
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_copy(&mut self, space: &dyn BlobSpace) -> io::Result<()> {
        self.blob.keep_copy(space)
    }

    /// The same bundle without what [`Self::keep_copy`] has written.
    pub fn without_copy(&self) -> Self {
        Self {
            blob: self.blob.without_copy(),
            ..self.clone()
        }
    }

    /// The tarball as it is served.
    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    /// The layers and the transform that it was made from; `None` for bytes that were not made
    /// here, such as a layer.
    pub fn provenance(&self) -> Option<&Provenance> {
        self.provenance.as_ref()
    }

    /// The revision of its `.manifest`.
    pub fn revision(&self) -> &Revision {
        &self.manifest.revision
    }

    /// Its `.manifest`.
    pub fn manifest(&self) -> &BundleManifest {
        &self.manifest
    }
}

fn check_size(blob: &Blob, limits: &Limits) -> Result<(), BundleError> {
    let (size, limit) = (blob.size(), limits.bundle);
    if size > limit {
        return Err(BundleError::TooLarge { size, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::Bytes;
    use tar::EntryType;

    use super::*;
    use crate::oci::Descriptor;

    const LIMITS: Limits = Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 10,
        bundle_manifest: 1 << 20,
    };

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn tarball(files: &[(&str, &[u8])]) -> Bytes {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            // `opa build` writes a leading slash, which the tar library refuses.
            if let Some(path) = path.strip_prefix('/') {
                header.as_old_mut().name[0] = b'/';
                header.as_old_mut().name[1..=path.len()].copy_from_slice(path.as_bytes());
                header.set_cksum();
                builder.append(&header, *content).unwrap();
            } else {
                builder.append_data(&mut header, path, *content).unwrap();
            }
        }
        gzip(&builder.into_inner().unwrap()).into()
    }

    fn open(bytes: Bytes, limits: &Limits) -> Result<Bundle, BundleError> {
        Bundle::open(
            Blob::check(&Descriptor::of("", &bytes), bytes).unwrap(),
            limits,
        )
    }

    #[test]
    fn revision_and_roots_come_from_the_manifest() {
        let bytes = tarball(&[
            (".manifest", br#"{"revision":"r7","roots":["a"]}"#),
            ("a/data.json", b"[1]"),
        ]);
        let bundle = open(bytes, &LIMITS).unwrap();
        assert_eq!(bundle.revision().as_str(), "r7");
        assert_eq!(bundle.manifest().roots, ["a"]);
    }

    #[test]
    fn errors_name_the_file_that_opa_refuses() {
        for (path, content) in [
            (".manifest", "{"),
            ("x/data.json", "{} x"),
            ("data.json", "[]"),
            ("./data.json", " 1"),
        ] {
            let error = open(tarball(&[(path, content.as_bytes())]), &LIMITS).unwrap_err();
            assert!(
                matches!(&error, BundleError::File { .. }),
                "{path} {content}: {error}"
            );
        }
        let delta = tarball(&[("patch.json", br#"{"data":[]}"#)]);
        assert!(matches!(
            open(delta, &LIMITS).unwrap_err(),
            BundleError::Delta { .. }
        ));
    }

    #[test]
    fn bytes_that_are_no_tarball_are_refused() {
        let good = tarball(&[("data.json", b"{}"), ("a/data.json", &[b' '; 9000])]);
        let truncated = good.slice(..good.len() / 2);
        for bytes in [
            Bytes::new(),
            Bytes::from_static(b"hello"),
            gzip(b"hello").into(),
            truncated,
        ] {
            assert!(open(bytes.clone(), &LIMITS).is_err(), "{bytes:?}");
        }
    }

    /// OPA's reader stops at the two blocks of zeros; OPA 1.22.2 loads each of these.
    #[test]
    fn bytes_after_the_end_of_the_archive_are_ignored() {
        let good = tarball(&[("data.json", b"{}")]);
        let followed_by = |bytes: &[u8]| Bytes::from([&good[..], bytes].concat());
        let mut checksum = good.to_vec();
        let end = checksum.len() - 6;
        checksum[end] ^= 1;
        let second = tarball(&[("data.json", b"[")]);
        for bytes in [
            followed_by(b"\n"),
            followed_by(&[0; 700]),
            followed_by(b"anything at all"),
            followed_by(&second),
            checksum.into(),
            good.slice(..good.len() - 4),
        ] {
            open(bytes.clone(), &LIMITS).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
        }
    }

    /// OPA 1.22.2 refuses each of these: one block of zeros does not end an archive.
    #[test]
    fn a_truncated_archive_is_refused() {
        let mut header = tar::Header::new_ustar();
        header.set_path("data.json").unwrap();
        header.set_size(2);
        header.set_cksum();
        let mut archive = header.as_bytes().to_vec();
        archive.extend(b"{}");
        archive.resize(1024, 0);
        let with = |end: &[u8]| open(gzip(&[&archive, end].concat()).into(), &LIMITS);
        for end in [
            &[][..],
            &[0; 512],
            &[0; 1024],
            &[[0; 1024], [b'x'; 1024]].concat(),
        ] {
            with(end).unwrap();
        }
        for end in [&[0; 100][..], &[0; 612], &[[0; 512], [b'x'; 512]].concat()] {
            assert!(
                matches!(with(end).unwrap_err(), BundleError::Archive { .. }),
                "{}",
                end.len()
            );
        }
    }

    #[test]
    fn files_of_one_name_are_merged_as_opa_merges_them() {
        open(
            tarball(&[
                ("a/data.json", br#"{"x":1}"#),
                ("a/data.json", br#"{"y":1}"#),
            ]),
            &LIMITS,
        )
        .unwrap();
        let twice = open(
            tarball(&[
                ("a/data.json", br#"{"x":1}"#),
                ("/a/data.json", br#"{"x":1}"#),
            ]),
            &LIMITS,
        );
        let error = twice.unwrap_err();
        assert_eq!(
            error.to_string(),
            "bundle files a/data.json and /a/data.json both set data.a.x"
        );
        let rego: &[u8] = b"package a\n";
        open(tarball(&[("a/p.rego", rego), ("a/p.rego", rego)]), &LIMITS).unwrap();
    }

    /// Errors that need no Rego compiler; OPA 1.22.2 refuses each of these.
    #[test]
    fn bundles_that_opa_refuses_are_refused() {
        let manifest = |text: &'static str| (".manifest", text.as_bytes());
        let rego = |package: &'static str| ("a/p.rego", package.as_bytes());
        let cases: &[&[(&str, &[u8])]] = &[
            &[manifest("{}"), ("sub/.manifest", b"{}")],
            &[manifest("{}"), ("x.manifest", b"{}")],
            &[manifest(r#"{"roots":["a"]}"#), ("data.json", br#"{"b":1}"#)],
            &[manifest(r#"{"roots":["a"]}"#), ("b/data.yaml", b"x: 1")],
            &[
                manifest(r#"{"roots":["a/b"]}"#),
                ("data.json", br#"{"a":{"c":1}}"#),
            ],
            &[manifest(r#"{"roots":[]}"#)],
            &[manifest(r#"{"roots":[" a"]}"#), rego("package a")],
            &[
                manifest(r#"{"roots":["a/"]}"#),
                ("data.json", br#"{"b":{}}"#),
            ],
            &[manifest(r#"{"roots":["a%zz"]}"#), ("a%zz/data.json", b"{}")],
            &[manifest(r#"{"roots":["b"]}"#), rego("package a.b")],
            &[manifest(r#"{"roots":["a/b"]}"#), rego("package a[\"b/c\"]")],
            &[manifest(r#"{"rego_version":3}"#)],
            &[manifest(
                r#"{"wasm":[{"entrypoint":"a/b","module":"/policy.wasm"}]}"#,
            )],
            &[
                manifest(r#"{"wasm":[{"entrypoint":"a/b","module":"/policy.wasm"}]}"#),
                ("policy.wasm", b""),
            ],
            &[("a/data.json", b"1"), ("a/data.yaml", b"1")],
            &[("a/data.json", br#"{"b":1}"#), ("a/b/data.json", b"{}")],
            &[("data.yaml", b"a: [")],
            &[("data.yaml", b"- a")],
            &[("data.json", b"null")],
            &[("a/data.json", b"{} 1")],
            &[rego("")],
            &[rego("# nothing but a comment\n")],
            &[rego("x := 1\n")],
        ];
        for files in cases {
            assert!(open(tarball(files), &LIMITS).is_err(), "{files:?}");
        }
    }

    #[test]
    fn bundles_that_opa_loads_are_opened() {
        let manifest = |text: &'static str| (".manifest", text.as_bytes());
        let deep = format!("{}1{}", "{\"a\":".repeat(300), "}".repeat(300));
        let cases: &[&[(&str, &[u8])]] = &[
            &[manifest("null"), ("data.json", b"{}")],
            &[manifest(
                r#"{"metadata":{"a":1e400,"b":"\ud800"}} trailing"#,
            )],
            &[(".manifest", b"{\"metadata\":{\"a\":\"\xe9\"}}")],
            &[("data.json", br#"{"\ud800":1,"n":1e400}"#)],
            &[("data.json", b"{\"\xff\":\"\xfe\"}")],
            &[("a/data.json", br#""\udfff""#)],
            &[("data.json", deep.as_bytes())],
            &[("a/data.json", b"{} null")],
            &[manifest(r#"{"roots":["a b"]}"#), ("a b/data.json", b"{}")],
            &[
                manifest(r#"{"roots":["a/b"]}"#),
                ("data.json", br#"{"a":{"c":{"d":{}}}}"#),
            ],
            &[
                manifest(r#"{"wasm":[{"entrypoint":"a/b","module":"policy.wasm"}]}"#),
                ("policy.wasm", b""),
            ],
            &[
                ("a/Data.json", b"["),
                ("a/x.yaml", b"["),
                ("data.json.bak", b"["),
            ],
        ];
        for files in cases {
            open(tarball(files), &LIMITS).unwrap_or_else(|error| panic!("{error}: {files:?}"));
        }
    }

    /// GNU tar writes these (`tar --sparse --format=posix`), and OPA loads them.
    #[test]
    fn a_sparse_file_is_read_with_its_holes() {
        let sparse = |size: &str, map: &[u8]| {
            let mut builder = tar::Builder::new(Vec::new());
            let records = [
                ("major", "1"),
                ("minor", "0"),
                ("name", "data.json"),
                ("realsize", size),
            ];
            let records =
                records.map(|(key, value)| (format!("GNU.sparse.{key}"), value.as_bytes()));
            builder
                .append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), *value)))
                .unwrap();
            let mut content = map.to_vec();
            content.resize(512, 0);
            content.extend(b"{\"a\":1}");
            let mut header = tar::Header::new_ustar();
            header.set_path("GNUSparseFile.0/data.json").unwrap();
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_slice()).unwrap();
            open(gzip(&builder.into_inner().unwrap()).into(), &LIMITS)
        };
        sparse("7", b"1\n0\n7\n").unwrap();
        assert!(
            matches!(
                sparse("9", b"1\n0\n7\n").unwrap_err(),
                BundleError::File { .. }
            ),
            "zeros are not JSON"
        );
        let error = sparse("9999999", b"1\n0\n7\n").unwrap_err();
        assert!(
            matches!(error, BundleError::UnpacksTooLarge { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_manifest_has_a_limit_of_its_own() {
        let large = format!(r#"{{"metadata":{{"a":"{}"}}}}"#, "x".repeat(2 << 20));
        let limits = Limits {
            unpacked: 8 << 20,
            ..LIMITS
        };
        let error = open(tarball(&[(".manifest", large.as_bytes())]), &limits).unwrap_err();
        assert!(
            error.to_string().contains("limits.bundle_manifest"),
            "{error}"
        );
        open(
            tarball(&[(".manifest", large.as_bytes())]),
            &Limits {
                bundle_manifest: 4 << 20,
                ..limits
            },
        )
        .unwrap();
    }

    #[test]
    fn links_devices_and_names_that_lead_out_are_refused() {
        let with = |path: &str, kind: EntryType| {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, kind) in [("/data.json", EntryType::Regular), (path, kind)] {
                let mut header = tar::Header::new_ustar();
                header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
                header.set_entry_type(kind);
                header.set_size(if kind.is_file() { 2 } else { 0 });
                header.set_mode(0o644);
                if matches!(kind, EntryType::Symlink | EntryType::Link) {
                    header.set_link_name("/etc/passwd").unwrap();
                }
                header.set_cksum();
                builder
                    .append(&header, if kind.is_file() { &b"{}"[..] } else { b"" })
                    .unwrap();
            }
            open(gzip(&builder.into_inner().unwrap()).into(), &LIMITS)
        };
        use tar::EntryType as Kind;
        for (path, kind) in [
            ("/a/data.json", Kind::Regular),
            ("a/..b/data.json", Kind::Regular),
            ("a/", Kind::Directory),
            ("/data.json", Kind::Regular),
            ("data.json", Kind::Regular),
            ("./data.json", Kind::Regular),
        ] {
            with(path, kind).unwrap();
        }
        for (path, kind, words) in [
            ("../data.json", Kind::Regular, "out of the bundle"),
            ("a/../../etc/passwd", Kind::Regular, "out of the bundle"),
            ("/..", Kind::Directory, "out of the bundle"),
            ("a\\..\\b", Kind::Regular, "out of the bundle"),
            ("a/x.rego", Kind::Symlink, "a link"),
            ("a/x.rego", Kind::Link, "a link"),
            ("a/x.rego", Kind::Char, "a device"),
            ("a/x.rego", Kind::Block, "a device"),
            ("a/x.rego", Kind::Fifo, "a device"),
        ] {
            let error = with(path, kind).unwrap_err();
            assert!(
                matches!(&error, BundleError::File { .. }),
                "{path}: {error}"
            );
            assert!(error.to_string().contains(words), "{path}: {error}");
        }
    }

    /// RUSTSEC-2026-0067: one reader uses the size of the header, another that of the extended
    /// header, so one sees content where the other sees a file.
    #[test]
    fn a_size_that_an_extension_contradicts_hides_no_file() {
        let mut builder = tar::Builder::new(Vec::new());
        builder
            .append_pax_extensions([("size", b"1024".as_slice())])
            .unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("a.txt").unwrap();
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        let mut hidden = tar::Header::new_ustar();
        hidden.set_path("patch.json").unwrap();
        hidden.set_size(2);
        hidden.set_cksum();
        builder.append(&hidden, &b"{}"[..]).unwrap();
        let error = open(gzip(&builder.into_inner().unwrap()).into(), &LIMITS).unwrap_err();
        assert!(
            error.to_string().contains("disagree about its size"),
            "{error}"
        );
    }

    #[test]
    fn large_documents_are_checked_like_small_ones() {
        let limits = Limits {
            bundle: 1 << 30,
            unpacked: 1 << 30,
            files: 10,
            bundle_manifest: 1 << 20,
        };
        let document = |end: &str| format!("{{\"a\":\"{}\"}}{end}", "x".repeat(9 << 20));
        open(tarball(&[("data.json", document("").as_bytes())]), &limits).unwrap();
        for (path, content) in [
            ("data.json", document(" x")),
            ("data.json", format!("[{}]", document(""))),
            ("a/data.json", format!("\u{feff}{}", document(""))),
        ] {
            let error = open(tarball(&[(path, content.as_bytes())]), &limits).unwrap_err();
            assert!(matches!(&error, BundleError::File { .. }), "{error}");
        }
        let tight = Limits {
            unpacked: 9 << 20,
            ..limits
        };
        let error = open(tarball(&[("data.json", document("").as_bytes())]), &tight).unwrap_err();
        assert!(
            matches!(error, BundleError::UnpacksTooLarge { .. }),
            "{error}"
        );
    }

    #[test]
    fn limits_hold_for_the_tarball_its_content_and_its_files() {
        let bomb = tarball(&[("x", &vec![0; 2 << 20])]);
        assert!(matches!(
            open(bomb, &LIMITS).unwrap_err(),
            BundleError::UnpacksTooLarge { .. }
        ));
        let many: Vec<_> = (0..11).map(|n| (format!("f{n}"), b"".as_slice())).collect();
        let many: Vec<_> = many
            .iter()
            .map(|(name, content)| (name.as_str(), *content))
            .collect();
        assert!(matches!(
            open(tarball(&many), &LIMITS).unwrap_err(),
            BundleError::TooManyFiles { .. }
        ));
        let small = Limits {
            bundle: 10,
            ..LIMITS
        };
        assert!(matches!(
            open(tarball(&[]), &small).unwrap_err(),
            BundleError::TooLarge { .. }
        ));
    }
}
