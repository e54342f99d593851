//! Packs a folder into a bundle, reproducibly: the same content gives the same bytes.

use std::{io, path::Path, sync::mpsc::SyncSender, thread};

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{
    Bundle, BundleError, BundleManifest, Folder, LayerError, Limits, Module, PackError, Parse,
    RegoVersion, Signer,
    block_stream::{BlockWriter, block_reader},
    check::{RegoFiles, conflicting_rule},
    folder::{Members, Origin, raw},
    load::{Expected, load_stream},
    parallel_gzip::ParallelGzip,
    paths::{data_path, is_data},
    rego::RulePath,
    tarball::{LEVEL, TarballWriter},
};
use crate::oci::{Blob, Digest, Hasher, NewBlob, open_regular_within};

/// The options of packing a folder.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// The limits of the bundle.
    pub limits: Limits,
    /// The parser of its Rego.
    pub parse: Parse,
    /// Overrides the revision in `.manifest`. Without either, the revision is derived from the
    /// content, so that it is never empty.
    pub revision: Option<String>,
    /// Override the roots in `.manifest`. Without either, the bundle owns everything.
    pub roots: Vec<String>,
    /// Overrides the version in `.manifest`. Without either, it is 1.
    pub rego_version: Option<RegoVersion>,
}

/// A packed folder. Its tar stream was read as that of any bundle, so it is known to load.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The bundle.
    pub bundle: Bundle,
    /// The number of its files.
    pub files: usize,
    /// Its Rego files, sorted by name.
    pub modules: Vec<Module>,
}

impl Packed {
    /// The same bundle with a signature for OPA ([`Bundle::signed_by`]). Blocks.
    ///
    /// # Errors
    /// When a signature can't express its names, or it exceeds a limit with one.
    pub fn signed_by(self, signer: &Signer) -> Result<Self, LayerError> {
        let bundle = self.bundle.signed_by(signer)?;
        let mut files = 0;
        bundle.walk(|_| {
            files += 1;
            Ok::<_, BundleError>(())
        })?;
        Ok(Self {
            bundle,
            files,
            ..self
        })
    }
}

impl PackOptions {
    /// Options without overrides.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            parse: Parse::Strictly,
            revision: None,
            roots: Vec::new(),
            rego_version: None,
        }
    }
}

impl Folder {
    /// Packs the files. Other threads compress the tar stream, and read it as OPA would, while it is
    /// written. Blocks. One file is in memory at a time.
    ///
    /// # Errors
    /// When OPA would refuse the bundle, or a limit is exceeded.
    pub fn pack(&self, options: &PackOptions) -> Result<Packed, PackError> {
        let limits = &options.limits;
        let members = self.manifest_for(options);
        let manifest = parse_manifest(&members_text(&members))?;
        let data: Vec<_> = self
            .files
            .keys()
            .filter(|name| is_data(name))
            .cloned()
            .collect();
        let rego = RegoFiles::read(self, &manifest, options.parse);
        let rules = if data.is_empty() {
            Vec::new()
        } else {
            rego.rules()
        };
        let expected = Expected {
            manifest: &manifest,
            data: &data,
        };
        let (written, loaded, conflict) = thread::scope(|scope| {
            let (to_loader, stream) = block_reader();
            let loading = spawn(scope, move || load_stream(stream, limits, expected))?;
            let mut readers = vec![to_loader];
            let comparing = if rules.is_empty() {
                None
            } else {
                let (to_comparison, stream) = block_reader();
                readers.push(to_comparison);
                Some(spawn(scope, || conflicting_rule(stream, limits, &rules))?)
            };
            let written = self.write(members, limits.unpacked, &rego, readers);
            let conflict = comparing.map_or(Ok(None), joined);
            Ok::<_, PackError>((written, joined(loading), conflict))
        })?;
        let (blob, files) = written?;
        let bundle = Bundle::written(blob, limits, loaded);
        let bundle = bundle.map_err(|error| self.with_paths(error))?;
        let modules = rego.into_modules()?;
        match conflict? {
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

    /// Writes the tarball, of files with at most `limit` bytes. Returns the number of its files,
    /// too.
    fn write(
        &self,
        mut manifest: Members,
        limit: u64,
        rego: &RegoFiles,
        readers: Vec<SyncSender<Bytes>>,
    ) -> Result<(Blob, usize), PackError> {
        let compressor =
            ParallelGzip::new(NewBlob::create(), LEVEL).map_err(PackError::Temporary)?;
        let mut tarball = TarballWriter::new(BlockWriter::new(compressor, readers));
        let mut list = String::new();
        for (name, origin) in &self.files {
            let digest = add(&mut tarball, name, origin, limit)?;
            if name.ends_with(".rego") && !rego.has(name, &digest) {
                return Err(PackError::io(
                    Path::new(&self.place(name)),
                    content_changed(),
                ));
            }
            list.push_str(&format!("{digest} {name}\n"));
        }
        if manifest
            .get("revision")
            .is_none_or(|revision| matches!(revision.get(), "null" | "\"\""))
        {
            manifest.remove("revision");
            list.push_str(&members_text(&manifest));
            let revision = raw(&&Digest::sha256(list.as_bytes()).hex()[..12]);
            manifest.extend(revision.map(|revision| ("revision".to_owned(), revision)));
        }
        let manifest = members_text(&manifest);
        let written = tarball.add(".manifest", manifest.len() as u64, manifest.as_bytes());
        let blob = written.and_then(|()| {
            let (compressor, last) = tarball.end()?.finish();
            compressor.finish(&last)?.finish()
        });
        Ok((blob.map_err(PackError::Temporary)?, self.files.len() + 1))
    }

    /// The `.manifest` to write, except for a derived revision. All defaults are explicit, as
    /// `opa build` writes them, because versions of OPA differ in their defaults.
    pub(super) fn manifest_for(&self, options: &PackOptions) -> Members {
        let mut manifest = self.manifest.clone();
        let mut set = |key: &str, value: Option<Box<RawValue>>| {
            manifest.extend(value.map(|value| (key.to_owned(), value)));
        };
        set("revision", options.revision.as_ref().and_then(raw));
        set(
            "roots",
            Some(&options.roots)
                .filter(|roots| !roots.is_empty())
                .and_then(raw),
        );
        set(
            "rego_version",
            options
                .rego_version
                .and_then(|version| raw(&version.number())),
        );
        let mut default = |key: &str, value: Option<Box<RawValue>>| {
            if let Some(value) = value {
                manifest.entry(key.to_owned()).or_insert(value);
            }
        };
        default("roots", raw(&[""]));
        default("rego_version", raw(&RegoVersion::V1.number()));
        for (key, change) in [
            ("file_rego_versions", with_and_without_slash as Change),
            ("wasm", without_slash),
        ] {
            if let Some(changed) = manifest.get(key).and_then(|value| change(value)) {
                manifest.insert(key.to_owned(), changed);
            }
        }
        manifest
    }

    /// Replaces names in the bundle by the paths of the files.
    fn with_paths(&self, error: BundleError) -> PackError {
        match error {
            BundleError::File { path, reason } => PackError::in_file(&self.place(&path), &reason),
            BundleError::PackageOutside {
                path,
                package,
                roots,
            } => PackError::PackageOutside {
                place: self.place(&path),
                package,
                roots,
            },
            BundleError::DataOutside { path, at, roots } => PackError::DataOutside {
                place: self.place(&path),
                at,
                roots,
            },
            BundleError::Collision { first, second, at } => PackError::Conflict {
                first: self.place(&first),
                second: self.place(&second),
                at,
            },
            error => error.into(),
        }
    }
}

type Change = fn(&RawValue) -> Option<Box<RawValue>>;

/// Adds each glob of `file_rego_versions` with and without a leading slash. OPA compares them with
/// names as its loader has them: with a leading slash in a folder, without one in a tarball that is
/// written here.
fn with_and_without_slash(versions: &RawValue) -> Option<Box<RawValue>> {
    let mut versions: Members = serde_json::from_str(versions.get()).ok()?;
    for (glob, version) in versions.clone() {
        let bare = glob.trim_start_matches('/');
        versions
            .entry(format!("/{bare}"))
            .or_insert_with(|| version.clone());
        versions.entry(bare.to_owned()).or_insert(version);
    }
    raw(&versions)
}

/// Removes the leading slash of WebAssembly modules. OPA compares their names exactly, and
/// `opa build` writes a leading slash, which names in a tarball that is written here do not have.
fn without_slash(resolvers: &RawValue) -> Option<Box<RawValue>> {
    let mut resolvers: Vec<Members> = serde_json::from_str(resolvers.get()).ok()?;
    for resolver in &mut resolvers {
        let module = resolver
            .get("module")
            .and_then(|module| serde_json::from_str::<String>(module.get()).ok());
        let module = module.and_then(|module| raw(&module.trim_start_matches('/')));
        resolver.extend(module.map(|module| ("module".to_owned(), module)));
    }
    raw(&resolvers)
}

/// The members of a manifest as one JSON object.
pub(super) fn members_text(members: &Members) -> String {
    // Can't fail: the keys are strings and the values are JSON.
    serde_json::to_string(members).unwrap_or_default()
}

/// Reads and packs a folder; see [`Folder`].
///
/// # Errors
/// The first file that can't be packed, by name; see [`PackError`].
pub fn pack(folder: &Path, limits: &Limits) -> Result<Packed, PackError> {
    Folder::read(folder, limits)?.pack(&PackOptions::new(*limits))
}

/// Parsed before anything is written, because the error of a bundle would name a file in it.
fn parse_manifest(text: &str) -> Result<BundleManifest, PackError> {
    BundleManifest::parse(text.as_bytes()).map_err(|reason| PackError::File {
        place: ".manifest".to_owned(),
        reason,
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<thread::ScopedJoinHandle<'scope, T>, PackError> {
    thread::Builder::new()
        .name("check bundle".to_owned())
        .spawn_scoped(scope, work)
        .map_err(PackError::Thread)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Adds a file of at most `limit` bytes, and returns the digest of its content.
fn add<W: io::Write>(
    tarball: &mut TarballWriter<W>,
    name: &str,
    origin: &Origin,
    limit: u64,
) -> Result<Digest, PackError> {
    match origin {
        Origin::Merged { document, .. } => {
            let content = document.to_bytes();
            tarball
                .add(name, content.len() as u64, content.as_slice())
                .map_err(PackError::Temporary)?;
            Ok(Digest::sha256(&content))
        }
        Origin::Disk(path) => {
            let failed = |source| PackError::io(path, source);
            let (file, size) = open_regular_within(path, limit).map_err(failed)?;
            let mut content = Hashed {
                inner: file,
                hasher: Hasher::sha256(),
                error: None,
            };
            let added = tarball.add(name, size, &mut content);
            match (added, content.error.take()) {
                (Ok(()), _) => Ok(content.hasher.finish()),
                (Err(_), Some(source)) => Err(failed(source)),
                // Either the file changed its size, or the output failed.
                (Err(error), None) if error.kind() == io::ErrorKind::Other => Err(failed(error)),
                (Err(error), None) => Err(PackError::Temporary(error)),
            }
        }
    }
}

fn content_changed() -> io::Error {
    io::Error::other("its content changed while it was read; try again")
}

/// Hashes the bytes that are read, and keeps the error of a failed read.
struct Hashed<R> {
    inner: R,
    hasher: Hasher,
    error: Option<io::Error>,
}

impl<R: io::Read> io::Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                self.hasher.update(&buffer[..count]);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.error = Some(error);
                Err(kind.into())
            }
        }
    }
}

#[cfg(test)]
mod reopened;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::bundle::Ignore;

    const LIMITS: Limits = Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 100,
        bundle_manifest: 1 << 20,
    };

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn bytes(packed: &Packed) -> Bytes {
        packed.bundle.blob().read_at(0, 1 << 20).unwrap()
    }

    fn refusal(files: &[(&str, &str)]) -> String {
        let folder = folder(files);
        let error = pack(folder.path(), &LIMITS).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error.replace(&format!("{}/", folder.path().display()), "")
    }

    #[test]
    fn the_same_content_gives_the_same_bytes_in_any_folder() {
        let files = [
            ("a/p.rego", "package a\n"),
            ("data.json", "{}"),
            ("b/data.yaml", "x: 1\n"),
        ];
        let mut reversed = files;
        reversed.reverse();
        let one = pack(folder(&files).path(), &LIMITS).unwrap();
        let two = pack(folder(&reversed).path(), &LIMITS).unwrap();
        assert_eq!(bytes(&one), bytes(&two));
        assert_eq!(one.bundle.revision().as_str().len(), 12);
    }

    #[test]
    fn an_unpacked_bundle_packs_to_the_same_bytes() {
        let files = [
            ("a/p.rego", "package a\n"),
            (
                ".manifest",
                r#"{"roots":["a"],"metadata":{"z":1.0,"b":[]}} x"#,
            ),
        ];
        let one = pack(folder(&files).path(), &LIMITS).unwrap();
        let unpacked = tempfile::tempdir().unwrap();
        let tarball = bytes(&one);
        tar::Archive::new(flate2::read::GzDecoder::new(&tarball[..]))
            .unpack(unpacked.path())
            .unwrap();
        assert_eq!(bytes(&pack(unpacked.path(), &LIMITS).unwrap()), tarball);
    }

    #[test]
    fn a_webassembly_module_is_named_as_in_the_tarball() {
        let compiled = folder(&[
            ("policy.wasm", "x"),
            (
                ".manifest",
                r#"{"wasm":[{"entrypoint":"a/b","module":"/policy.wasm"}]}"#,
            ),
        ]);
        // With a leading slash, which no name in the tarball has, OPA does not find the file.
        assert_eq!(
            pack(compiled.path(), &LIMITS)
                .unwrap()
                .bundle
                .manifest()
                .wasm[0]
                .module,
            "policy.wasm"
        );
    }

    #[test]
    fn a_change_of_content_changes_the_revision_and_a_stated_one_stays() {
        let one = pack(folder(&[("p.rego", "package a\n")]).path(), &LIMITS).unwrap();
        let two = pack(folder(&[("p.rego", "package b\n")]).path(), &LIMITS).unwrap();
        assert_ne!(one.bundle.revision(), two.bundle.revision());
        let stated = folder(&[
            ("p.rego", "package a\n"),
            (".manifest", r#"{"revision":"v1","roots":["a"]}"#),
        ]);
        let packed = pack(stated.path(), &LIMITS).unwrap();
        assert_eq!(
            (
                packed.bundle.revision().as_str(),
                packed.bundle.manifest().roots.len()
            ),
            ("v1", 1)
        );
    }

    #[test]
    fn options_override_the_manifest() {
        let stated = folder(&[
            ("p.rego", "package a\n"),
            (".manifest", r#"{"revision":"v1","roots":["b"]}"#),
        ]);
        let options = PackOptions {
            revision: Some("v2".into()),
            roots: vec!["a".into()],
            rego_version: Some(RegoVersion::V0),
            ..PackOptions::new(LIMITS)
        };
        let packed = Folder::read(stated.path(), &LIMITS)
            .unwrap()
            .pack(&options)
            .unwrap();
        let manifest = packed.bundle.manifest();
        assert_eq!(
            (manifest.revision.as_str(), &manifest.roots[..]),
            ("v2", &["a".to_owned()][..])
        );
        assert_eq!(manifest.rego_version, Some(0));
    }

    #[test]
    fn tests_hidden_folders_and_other_files_stay_out() {
        let files = [
            ("p.rego", "package a\n"),
            ("p_test.rego", "package a\n"),
            (".git/x.rego", "x"),
            ("README.md", ""),
        ];
        assert_eq!(pack(folder(&files).path(), &LIMITS).unwrap().files, 2);
    }

    #[test]
    fn ignored_files_are_not_parsed() {
        let sources = folder(&[
            ("p.rego", "package a\n"),
            ("old/x.rego", "???"),
            ("lib/y.rego", "???"),
            ("z.rego", "?"),
        ]);
        let patterns = ["old", "lib/*.rego", "z.*"].map(str::to_owned);
        let found = Folder::gather(
            &[sources.path().to_owned()],
            &Ignore::new(&patterns).unwrap(),
            &LIMITS,
        )
        .unwrap();
        assert_eq!(found.pack(&PackOptions::new(LIMITS)).unwrap().files, 2);
        assert!(Ignore::new(&["[".to_owned()]).is_err());
    }

    #[test]
    fn folders_become_one_bundle_and_their_data_one_document() {
        let one = folder(&[
            ("p.rego", "package a\n"),
            ("data.json", r#"{"x":{"n":1.10}}"#),
            (".manifest", r#"{"roots":["a"]}"#),
        ]);
        let two = folder(&[
            ("q.rego", "package b\n"),
            ("data.json", r#"{"x":{"m":2}}"#),
            (".manifest", r#"{"roots":["b","x"]}"#),
        ]);
        let paths = [one.path().to_owned(), two.path().to_owned()];
        let packed = Folder::gather(&paths, &Ignore::default(), &LIMITS)
            .unwrap()
            .pack(&PackOptions::new(LIMITS))
            .unwrap();
        assert_eq!(packed.bundle.manifest().roots, ["a", "b", "x"]);
        let mut data = Vec::new();
        let found = packed.bundle.walk(|entry| -> Result<(), BundleError> {
            if entry.name() == "data.json" {
                data = entry.content()?;
            }
            Ok(())
        });
        found.unwrap();
        assert_eq!(data, br#"{"x":{"m":2,"n":1.10}}"#);
        fs::write(two.path().join("data.json"), r#"{"x":{"n":1.10}}"#).unwrap();
        let error = Folder::gather(&paths, &Ignore::default(), &LIMITS)
            .unwrap_err()
            .to_string();
        assert!(error.contains("both set data.x.n"), "{error}");
        fs::write(two.path().join("p.rego"), "package b\n").unwrap();
        let error = Folder::gather(
            &paths,
            &Ignore::new(&["data.json".to_owned()]).unwrap(),
            &LIMITS,
        )
        .unwrap_err();
        assert!(matches!(error, PackError::SameName { .. }), "{error}");
    }

    fn check_refusals(rows: &[(&[(&str, &str)], &str)]) {
        for (files, expected) in rows {
            let error = refusal(files);
            assert!(error.contains(expected), "{error}\nlacks {expected}");
        }
    }

    #[test]
    fn errors_name_the_file_that_opa_would_refuse() {
        let rego = ("p.rego", "package a\n");
        check_refusals(&[
            (
                &[rego, ("data.json", "[]")],
                "data.json: the root of data is not an object",
            ),
            (
                &[rego, ("data.yaml", "- 1\n")],
                "data.yaml: the root of data is not an object",
            ),
            (&[rego, ("data.yaml", "a: [\n")], "data.yaml:2:1: "),
            (
                &[rego, ("data.json", "\u{feff}{}")],
                "data.json: it starts with a byte order mark",
            ),
            (
                &[rego, ("x/data.json", "{")],
                "x/data.json:1:2: unexpected end of input",
            ),
            (
                &[
                    ("data.json", r#"{"a":{"b":1}}"#),
                    ("a/data.json", r#"{"b":1}"#),
                ],
                "a/data.json and data.json both set data.a.b",
            ),
            (
                &[
                    ("a/p.rego", "package a\n\ndefault allow := false\n"),
                    ("a/data.json", r#"{"allow":true}"#),
                ],
                "a/p.rego:3:1: the rule conflicts with data that sets data.a.allow",
            ),
            (
                &[rego, ("a/data.json", "{\n\"b\": nul}")],
                "a/data.json:2:9: unexpected '}'",
            ),
            (
                &[("a/data.json", "{\"b\":1}"), ("a/data.yaml", "b: 2\n")],
                "a/data.json and a/data.yaml both set data.a.b",
            ),
            (
                &[("p.rego", "package a\n\nallow { input.x }\n")],
                "p.rego:3:",
            ),
        ]);
    }

    #[test]
    fn errors_name_the_manifest_and_the_file_outside_its_roots() {
        let rego = ("p.rego", "package a\n");
        check_refusals(&[
            (
                &[rego, (".manifest", r#"{"roots":["a","a/b"]}"#)],
                r#".manifest: roots "a" and "a/b" overlap"#,
            ),
            (
                &[rego, (".manifest", r#"{"roots":["b"]}"#)],
                r#"p.rego: package a is outside the roots ["b"]"#,
            ),
            (
                &[
                    rego,
                    ("data.json", r#"{"x":1}"#),
                    (".manifest", r#"{"roots":["a"]}"#),
                ],
                r#"data.json: data at "x" is outside"#,
            ),
            (
                &[
                    rego,
                    ("x/data.yaml", "y: 1\n"),
                    (".manifest", r#"{"roots":["a"]}"#),
                ],
                r#"x/data.yaml: data at "x" is outside"#,
            ),
            (
                &[rego, (".manifest", r#"{"revision":7}"#)],
                ".manifest: revision is a number instead of a string",
            ),
            (
                &[rego, ("a/.manifest", "{}")],
                "a/.manifest: OPA reads one .manifest, at the root",
            ),
            (&[rego, (".manifest", "[]")], ".manifest: "),
            (
                &[rego, (".manifest", r#"{"rego_version":-1}"#)],
                ".manifest: rego_version -1 does not exist",
            ),
            (
                &[
                    rego,
                    (
                        ".manifest",
                        r#"{"wasm":[{"entrypoint":"a/x","module":"/policy.wasm"}]}"#,
                    ),
                ],
                "which is not in the bundle",
            ),
        ]);
    }

    #[test]
    fn folders_that_opa_would_load_are_packed() {
        for files in [
            &[
                ("a/data.json", r#"{"b":1}"#),
                ("data.json", r#"{"a":{"c":2}}"#),
                ("a/d/data.yaml", "e: 1\n"),
            ][..],
            &[
                ("p.rego", "package a\n\nallow { input.x }\n"),
                (".manifest", r#"{"rego_version":0}"#),
            ],
            &[
                ("old/p.rego", "package a\n\nallow { input.x }\n"),
                ("q.rego", "package b\n\nx if input.y\n"),
                (".manifest", r#"{"file_rego_versions":{"/old/*.rego":0}}"#),
            ],
            &[
                ("data.json", r#"{"a":{"b":1}}"#),
                (".manifest", r#"{"roots":["/a/b/"]}"#),
            ],
        ] {
            pack(folder(files).path(), &LIMITS).unwrap();
        }
    }

    #[test]
    fn rego_that_only_opa_can_parse_passes_without_parsing() {
        let sources = folder(&[
            ("p.rego", "package a\n\nimport rego.v9\n???\n"),
            (".manifest", r#"{"roots":["a"]}"#),
        ]);
        let options = PackOptions {
            parse: Parse::No,
            ..PackOptions::new(LIMITS)
        };
        let packed = Folder::read(sources.path(), &LIMITS)
            .unwrap()
            .pack(&options)
            .unwrap();
        assert_eq!(packed.modules[0].package.as_deref(), Some("a"));
        let options = PackOptions {
            roots: vec!["b".into()],
            ..options
        };
        assert!(matches!(
            Folder::read(sources.path(), &LIMITS)
                .unwrap()
                .pack(&options),
            Err(PackError::PackageOutside { .. })
        ));
    }

    #[test]
    fn empty_and_missing_folders_are_refused() {
        assert!(matches!(
            pack(folder(&[]).path(), &LIMITS),
            Err(PackError::Empty(_))
        ));
        assert!(matches!(
            pack(Path::new("/nonexistent"), &LIMITS),
            Err(PackError::Missing(_))
        ));
    }

    #[test]
    fn links_are_followed_to_files_of_the_folder_only() {
        use std::os::unix::fs::symlink;
        let linked = folder(&[("p.rego", "package a\n"), ("real/other.txt", r#"{"x":1}"#)]);
        symlink("real/other.txt", linked.path().join("data.json")).unwrap();
        assert_eq!(pack(linked.path(), &LIMITS).unwrap().files, 3);
        symlink("/etc", linked.path().join(".hidden")).unwrap();
        symlink("nowhere", linked.path().join("dangling.txt")).unwrap();
        assert_eq!(pack(linked.path(), &LIMITS).unwrap().files, 3);
        symlink("/etc", linked.path().join("folder")).unwrap();
        assert!(matches!(
            pack(linked.path(), &LIMITS),
            Err(PackError::LinkedFolder(_))
        ));
        fs::remove_file(linked.path().join("folder")).unwrap();
        fs::remove_file(linked.path().join("data.json")).unwrap();
        symlink("/etc/passwd", linked.path().join("data.json")).unwrap();
        assert!(matches!(
            pack(linked.path(), &LIMITS),
            Err(PackError::LeadsOut { .. })
        ));
    }
}
