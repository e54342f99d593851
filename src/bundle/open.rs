//! Opening: do these bytes load as an OPA bundle, within limits?

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    io::{self, BufRead as _, BufReader, Read},
};

use flate2::bufread::MultiGzDecoder;
use tar::EntryType;

use super::{BundleManifest, NoBundle, Revision, shape::Shape, tarball::Tarball};
use crate::oci::Blob;

/// JSON documents up to this are parsed from memory, which is faster.
const READ_WHOLE: u64 = 8 << 20;

/// How much a bundle may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the tarball as it is served.
    pub bundle: u64,
    /// Bytes of the tar stream inside.
    pub unpacked: u64,
    /// Regular files in it.
    pub files: u64,
}

/// Served bytes that open as an OPA bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    blob: Blob,
    manifest: BundleManifest,
    /// Those that it was opened within.
    limits: Limits,
}

/// One file of a tarball.
pub(super) struct Entry<'a> {
    name: String,
    size: u64,
    content: &'a mut dyn Read,
    limits: &'a Limits,
}

impl Entry<'_> {
    /// The name as the tarball has it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The skeleton of a JSON document down to `depth`. A large one is read as it comes, so
    /// that it costs time and no memory.
    pub(super) fn shape(&mut self, depth: usize) -> Result<Shape, NotABundle> {
        let refused = |reason: String| NotABundle::File { path: self.name.clone(), reason };
        let mut content = BufReader::with_capacity(1 << 16, &mut self.content);
        let start = content.fill_buf().map_err(|error| broken(&error, self.limits))?;
        if start.starts_with(b"\xef\xbb\xbf") {
            // OPA passes over it in folders, and not in tarballs.
            return Err(refused("it starts with a byte order mark, which OPA refuses; save it without".to_owned()));
        }
        let shape = if self.size > READ_WHOLE {
            Shape::read(serde_json::Deserializer::from_reader(content), depth)
        } else {
            let mut whole = Vec::new();
            content.read_to_end(&mut whole).map_err(|error| broken(&error, self.limits))?;
            Shape::read(serde_json::Deserializer::from_slice(&whole), depth)
        };
        shape.map_err(|error| match error.io_error_kind() {
            Some(kind) => broken(&kind.into(), self.limits),
            None => refused(error.to_string()),
        })
    }

    pub(super) fn content(&mut self) -> Result<Vec<u8>, NotABundle> {
        let mut content = Vec::new();
        self.content.read_to_end(&mut content).map_err(|error| broken(&error, self.limits))?;
        Ok(content)
    }
}

/// Why bytes are not a bundle. Every variant is a property of the bytes and the limits,
/// so trying again cannot help.
#[derive(Debug, thiserror::Error)]
pub enum NotABundle {
    /// The tarball is too long.
    #[error("bundle of {size} bytes exceeds the limit of {limit} bytes (limits.bundle)")]
    TooLarge {
        /// Its length.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// It unpacks to too much.
    #[error("bundle unpacks to more than {limit} bytes (limits.unpacked)")]
    UnpacksTooLarge {
        /// The limit.
        limit: u64,
    },
    /// It holds too many files.
    #[error("bundle holds more than {limit} files (limits.files)")]
    TooManyFiles {
        /// The limit.
        limit: u64,
    },
    /// No gzip stream.
    #[error("not a gzip tarball: it starts with {start:02x?} instead of 1f 8b")]
    NotGzip {
        /// The first bytes.
        start: Vec<u8>,
    },
    /// Broken gzip or tar.
    #[error("not a gzip tarball: {reason}")]
    Archive {
        /// What the reader said.
        reason: String,
    },
    /// A file that OPA would refuse.
    #[error("bundle file {path}: {reason}")]
    File {
        /// The file's name in the tarball.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A delta bundle, which bypasses OPA's own signature checks before 1.21.3.
    #[error("bundle file {path} makes this a delta bundle; only snapshots are served")]
    Delta {
        /// The patch file.
        path: String,
    },
}

impl Bundle {
    /// Reads `blob` to the end, as OPA's reader would, in constant memory but for the
    /// JSON files, which are read one at a time. Blocks for as long as inflating takes.
    ///
    /// # Errors
    /// What OPA, or a limit, would refuse.
    pub fn open(blob: Blob, limits: &Limits) -> Result<Self, NotABundle> {
        let size = blob.size();
        if size > limits.bundle {
            return Err(NotABundle::TooLarge { size, limit: limits.bundle });
        }
        let unreadable = |error: io::Error| NotABundle::Archive { reason: error.to_string() };
        let start = blob.read_at(0, 4).map_err(unreadable)?;
        if !start.starts_with(&[0x1f, 0x8b]) {
            return Err(NotABundle::NotGzip { start: start.to_vec() });
        }
        let manifest = read_manifest(&blob, limits)?;
        Ok(Self { blob, manifest, limits: *limits })
    }

    /// Shows every file to `visit`, in the order of the tarball. Inflates the whole again.
    ///
    /// # Errors
    /// What `visit` says; after opening, the archive itself is known to be sound.
    pub(super) fn walk<E: From<NotABundle>>(
        &self,
        visit: impl FnMut(&mut Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        walk(&self.blob, &self.limits, visit)
    }

    /// The tarball as it is served.
    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    /// The revision of its `.manifest`.
    pub fn revision(&self) -> &Revision {
        &self.manifest.revision
    }

    /// What its `.manifest` says.
    pub fn manifest(&self) -> &BundleManifest {
        &self.manifest
    }
}

fn read_manifest(blob: &Blob, limits: &Limits) -> Result<BundleManifest, NotABundle> {
    let mut manifest = BundleManifest::default();
    walk(blob, limits, |entry| {
        let Some(kind) = Kind::of(entry.name()) else { return Ok(()) };
        kind.check(entry, &mut manifest)
    })?;
    Ok(manifest)
}

/// Shows every file of a gzip tarball to `visit`, and reads on to the checksum at the end.
pub(super) fn walk<E: From<NotABundle>>(
    blob: &Blob,
    limits: &Limits,
    mut visit: impl FnMut(&mut Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error: io::Error| broken(&error, limits);
    let inflated = Capped { inner: MultiGzDecoder::new(blob.reader()), left: limits.unpacked };
    let mut archive = tar::Archive::new(inflated);
    let mut files = 0;
    let mut names = Names::default();
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        check_place(kind, &name)?;
        // OPA skips everything else in silence.
        if !kind.is_file() {
            continue;
        }
        files += 1;
        if files > limits.files {
            return Err(NotABundle::TooManyFiles { limit: limits.files }.into());
        }
        names.add(&name)?;
        // What is content to a reader of extensions would be further files to others.
        if entry.header().size().map_err(failed)? != entry.size() {
            return Err(NotABundle::File { path: name, reason: "its size is said twice and differently".into() }.into());
        }
        visit(&mut Entry { name, size: entry.size(), content: &mut entry, limits })?;
    }
    // The rest of the stream holds the gzip checksum.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(failed)?;
    Ok(())
}

/// Whoever unpacks a tarball that is served here must find files and folders below the place
/// that he chose, and nothing else. OPA never unpacks, but others read the same bytes.
fn check_place(kind: EntryType, name: &str) -> Result<(), NotABundle> {
    let refused = |reason: &str| Err(NotABundle::File { path: name.to_owned(), reason: reason.to_owned() });
    match kind {
        EntryType::Link | EntryType::Symlink => refused("it is a link"),
        EntryType::Char | EntryType::Block | EntryType::Fifo => refused("it is a device"),
        // OPA's own bundles begin every name with a slash.
        _ if name.split(['/', '\\']).any(|part| part == "..") => refused("its name leads out of the bundle"),
        _ => Ok(()),
    }
}

/// The names in a tarball; of two files with the same name, programs differ in which one counts.
#[derive(Default)]
struct Names {
    hasher: RandomState,
    /// Hashes, as there may be many, and long ones.
    seen: HashSet<u64>,
}

impl Names {
    fn add(&mut self, name: &str) -> Result<(), NotABundle> {
        let parts: Vec<_> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if self.seen.insert(self.hasher.hash_one(parts)) {
            return Ok(());
        }
        Err(NotABundle::File { path: name.to_owned(), reason: "there are two files of this name".to_owned() })
    }
}

/// Writes a tarball anew under other names, in the order that it has; `rename` drops what it
/// gives no name.
pub(super) fn repack(blob: &Blob, limits: &Limits, rename: impl Fn(&str) -> Option<String>) -> Result<Blob, NoBundle> {
    let mut tarball = Tarball::create();
    walk(blob, limits, |entry| {
        let Some(name) = rename(entry.name()) else { return Ok(()) };
        let size = entry.size;
        tarball.add(&name, size, &mut entry.content).map_err(NoBundle::Temporary)
    })?;
    tarball.finish().map_err(NoBundle::Temporary)
}

fn broken(error: &io::Error, limits: &Limits) -> NotABundle {
    match error.kind() {
        io::ErrorKind::QuotaExceeded => NotABundle::UnpacksTooLarge { limit: limits.unpacked },
        _ => NotABundle::Archive { reason: error.to_string() },
    }
}

/// The files that decide whether OPA takes a bundle and that can be judged without a
/// Rego compiler.
enum Kind {
    Manifest,
    Data { at_root: bool },
    Patch,
}

impl Kind {
    fn of(path: &str) -> Option<Self> {
        let (folder, base) = path.rsplit_once('/').unwrap_or(("", path));
        if path.ends_with(".manifest") {
            return Some(Self::Manifest);
        }
        match base {
            // OPA trims the same characters before it mounts the file.
            "data.json" => Some(Self::Data { at_root: folder.trim_start_matches(['/', '.']).is_empty() }),
            "patch.json" => Some(Self::Patch),
            _ => None,
        }
    }

    fn check(&self, entry: &mut Entry<'_>, manifest: &mut BundleManifest) -> Result<(), NotABundle> {
        let path = entry.name().to_owned();
        let refused = |reason: String| NotABundle::File { path: path.clone(), reason };
        match self {
            // Of several manifests OPA takes the last.
            Self::Manifest => *manifest = BundleManifest::parse(&entry.content()?).map_err(refused)?,
            Self::Data { at_root } => {
                if entry.shape(0)? == Shape::Value && *at_root {
                    return Err(refused("the root of data is not an object".to_owned()));
                }
            }
            Self::Patch => {
                // An empty list of patches is, to OPA, a snapshot that erases everything.
                return Err(NotABundle::Delta { path });
            }
        }
        Ok(())
    }
}

/// Ends with `QuotaExceeded` where `Take` would end as if the stream were over.
struct Capped<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or(io::ErrorKind::QuotaExceeded)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::Bytes;

    use super::*;
    use crate::oci::Descriptor;

    const LIMITS: Limits = Limits { bundle: 1 << 20, unpacked: 1 << 20, files: 10 };

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
            builder.append_data(&mut header, path, *content).unwrap();
        }
        gzip(&builder.into_inner().unwrap()).into()
    }

    fn open(bytes: Bytes, limits: &Limits) -> Result<Bundle, NotABundle> {
        Bundle::open(Blob::check(&Descriptor::of("", &bytes), bytes).unwrap(), limits)
    }

    #[test]
    fn revision_and_roots_come_from_the_manifest() {
        let bytes = tarball(&[(".manifest", br#"{"revision":"r7","roots":["a"]}"#), ("a/data.json", b"[1]")]);
        let bundle = open(bytes, &LIMITS).unwrap();
        assert_eq!(bundle.revision().as_str(), "r7");
        assert_eq!(bundle.manifest().roots, ["a"]);
    }

    #[test]
    fn what_opa_refuses_is_refused_with_the_files_name() {
        for (path, content) in [(".manifest", "{"), ("x/data.json", "{} x"), ("data.json", "[]"), ("./data.json", " 1")]
        {
            let error = open(tarball(&[(path, content.as_bytes())]), &LIMITS).unwrap_err();
            assert!(matches!(&error, NotABundle::File { .. }), "{path} {content}: {error}");
        }
        let delta = tarball(&[("patch.json", br#"{"data":[]}"#)]);
        assert!(matches!(open(delta, &LIMITS).unwrap_err(), NotABundle::Delta { .. }));
    }

    #[test]
    fn things_that_are_no_tarball_are_refused() {
        let good = tarball(&[("data.json", b"{}")]);
        let truncated = good.slice(..good.len() - 9);
        let mut flipped = good.to_vec();
        let end = flipped.len() - 6;
        flipped[end] ^= 1;
        for bytes in [Bytes::new(), Bytes::from_static(b"hello"), gzip(b"hello").into(), truncated, flipped.into()] {
            assert!(open(bytes.clone(), &LIMITS).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn nothing_lies_outside_is_a_link_or_is_there_twice() {
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
                builder.append(&header, if kind.is_file() { &b"{}"[..] } else { b"" }).unwrap();
            }
            open(gzip(&builder.into_inner().unwrap()).into(), &LIMITS)
        };
        use tar::EntryType as Kind;
        for (path, kind) in
            [("/a/data.json", Kind::Regular), ("a/..b/data.json", Kind::Regular), ("a/", Kind::Directory)]
        {
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
            ("/data.json", Kind::Regular, "two files"),
            ("data.json", Kind::Regular, "two files"),
            ("./data.json", Kind::Regular, "two files"),
        ] {
            let error = with(path, kind).unwrap_err();
            assert!(matches!(&error, NotABundle::File { .. }), "{path}: {error}");
            assert!(error.to_string().contains(words), "{path}: {error}");
        }
    }

    /// RUSTSEC-2026-0067: one reader goes by the header, another by the extension before it, and
    /// what one takes for content is a file to the other.
    #[test]
    fn a_size_that_an_extension_contradicts_hides_no_file() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("size", b"1024".as_slice())]).unwrap();
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
        assert!(error.to_string().contains("said twice"), "{error}");
    }

    #[test]
    fn large_documents_are_judged_like_small_ones() {
        let limits = Limits { bundle: 1 << 30, unpacked: 1 << 30, files: 10 };
        let document = |end: &str| format!("{{\"a\":\"{}\"}}{end}", "x".repeat(9 << 20));
        open(tarball(&[("data.json", document("").as_bytes())]), &limits).unwrap();
        for (path, content) in [
            ("data.json", document(" x")),
            ("data.json", format!("[{}]", document(""))),
            ("a/data.json", format!("\u{feff}{}", document(""))),
        ] {
            let error = open(tarball(&[(path, content.as_bytes())]), &limits).unwrap_err();
            assert!(matches!(&error, NotABundle::File { .. }), "{error}");
        }
        let tight = Limits { unpacked: 9 << 20, ..limits };
        let error = open(tarball(&[("data.json", document("").as_bytes())]), &tight).unwrap_err();
        assert!(matches!(error, NotABundle::UnpacksTooLarge { .. }), "{error}");
    }

    #[test]
    fn limits_hold_for_the_tarball_its_content_and_its_files() {
        let bomb = tarball(&[("x", &vec![0; 2 << 20])]);
        assert!(matches!(open(bomb, &LIMITS).unwrap_err(), NotABundle::UnpacksTooLarge { .. }));
        let many: Vec<_> = (0..11).map(|n| (format!("f{n}"), b"".as_slice())).collect();
        let many: Vec<_> = many.iter().map(|(name, content)| (name.as_str(), *content)).collect();
        assert!(matches!(open(tarball(&many), &LIMITS).unwrap_err(), NotABundle::TooManyFiles { .. }));
        let small = Limits { bundle: 10, ..LIMITS };
        assert!(matches!(open(tarball(&[]), &small).unwrap_err(), NotABundle::TooLarge { .. }));
    }
}
