//! Writing a bundle anew with another signature.
//!
//! The files keep their exact names and bytes, except where versions of OPA compute different hashes
//! of the same bytes, or compare other bytes than they load:
//!
//! - Versions of OPA read YAML by different rules, and OPA 0.70 hashes `data.yml` as bytes.
//!   The data files of a mount point that has YAML become one `data.json`.
//! - Two data files of one name are merged as well, since a signature lists each name once.
//! - OPA loads the first JSON value of a `.manifest`, and ignores `null` after that of `data.json`,
//!   but hashes such a file as YAML. It is cut after that value.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::{self, Read as _},
};

use super::{
    MAX_DOCUMENT_BYTES, SIGNATURE_FILE, SIGNATURE_FILE_END, Signer, UnsignableError,
    hash::{self, HashAlgorithm, is_structured, signed_name},
    token::FileClaim,
};
use crate::{
    bundle::{
        Bundle, LayerError,
        archive::Entry,
        document::{Collision, Detail, Document, FirstValue},
        paths::{base, data_path, is_data, mount},
        tarball::{Output, TarballWriter},
    },
    oci::Blob,
};

/// The path at which OPA mounts a data file.
type Mount = Vec<String>;

impl Signer {
    /// Signs a bundle in place of the signatures that it has. Inflates it three times, so it blocks;
    /// the documents of one mount point are in memory at a time, unless data is merged.
    ///
    /// # Errors
    /// `Unsignable` when a signature can't express a name, `Refused` when a document takes more
    /// memory than its limit, `Temporary` when the disk fails.
    pub(in crate::bundle) fn sign(
        &self,
        bundle: &Bundle,
        output: &Output,
    ) -> Result<Blob, LayerError> {
        let mounts = mounts_to_merge(bundle)?;
        let mut survey = Survey::new(&mounts);
        bundle.walk(|entry| survey.add(entry))?;
        let Survey {
            mut files,
            decisions,
            merged,
            ..
        } = survey;
        let mut tarball = output.tarball();
        let mut decisions = decisions.into_iter();
        bundle.walk(|entry| match decisions.next() {
            Some(Decision::Keep { length }) => keep(entry, length, &mut tarball),
            Some(Decision::Drop) | None => Ok(()),
        })?;
        for (mount, document) in merged {
            let name = data_file(&mount);
            let content = document.to_bytes();
            files.push(claim(&name, hash_of(&document)));
            tarball
                .add_exactly(&name, content.len() as u64, content.as_slice())
                .map_err(LayerError::Temporary)?;
        }
        let signature = self.signature_file(files)?;
        tarball
            .add(SIGNATURE_FILE, signature.len() as u64, signature.as_bytes())
            .and_then(|()| tarball.finish())
            .map_err(LayerError::Temporary)
    }
}

/// What happens to a file.
enum Decision {
    /// It is written, up to this length in bytes.
    Keep { length: u64 },
    /// It is an old signature, or its data is written with that of other files.
    Drop,
}

/// The hashes of all files, and what happens to each.
struct Survey<'a> {
    mounts: &'a BTreeSet<Mount>,
    files: Vec<FileClaim>,
    decisions: Vec<Decision>,
    merged: BTreeMap<Mount, Document>,
    /// The memory that `merged` takes, in bytes.
    memory: u64,
}

impl<'a> Survey<'a> {
    fn new(mounts: &'a BTreeSet<Mount>) -> Self {
        Self {
            mounts,
            files: Vec::new(),
            decisions: Vec::new(),
            merged: BTreeMap::new(),
            memory: 0,
        }
    }

    fn add(&mut self, entry: &mut Entry<'_>) -> Result<(), LayerError> {
        let name = entry.name().to_owned();
        let decision = if is_signature(&name) {
            Decision::Drop
        } else if is_data(&name) && self.mounts.contains(&mount(&name)) {
            self.merge(entry)?;
            Decision::Drop
        } else {
            let (hash, length) = self.hash(entry)?;
            self.files.push(claim(signed_name(&name), hash));
            Decision::Keep { length }
        };
        self.decisions.push(decision);
        Ok(())
    }

    fn merge(&mut self, entry: &mut Entry<'_>) -> Result<(), LayerError> {
        let document = entry.document(self.detail())?;
        self.memory += document.memory();
        let mount = mount(entry.name());
        let Some(first) = self.merged.get_mut(&mount) else {
            self.merged.insert(mount, document);
            return Ok(());
        };
        first.merge(document).map_err(|Collision { path, .. }| {
            let at = data_path(&[mount, path].concat());
            UnsignableError::Merge(format!("two of them set {at}")).into()
        })
    }

    /// The hash of a file, and the number of its bytes that it is the hash of.
    fn hash(&self, entry: &mut Entry<'_>) -> Result<(String, u64), LayerError> {
        let size = entry.size();
        if is_structured(entry.name()) {
            let FirstValue {
                document,
                length,
                is_whole,
            } = entry.first_value(self.detail())?;
            return Ok((hash_of(&document), if is_whole { size } else { length }));
        }
        let mut hasher = HashAlgorithm::Sha256.hasher();
        entry.copy_to(|_, content| io::copy(content, &mut hasher).map(drop))?;
        Ok((hasher.hex(), size))
    }

    fn detail(&self) -> Detail<'static> {
        Detail::ValuesWithin(MAX_DOCUMENT_BYTES.saturating_sub(self.memory))
    }
}

/// The mount points whose data files are merged into one.
///
/// # Errors
/// When a signature can't tell two files apart, or can't have the name of one.
fn mounts_to_merge(bundle: &Bundle) -> Result<BTreeSet<Mount>, LayerError> {
    let mut mounts = BTreeSet::new();
    let mut names = HashSet::new();
    bundle.walk(|entry| {
        let name = entry.name();
        if is_signature(name) {
            return Ok(());
        }
        if !entry.has_utf8_name() {
            return Err(UnsignableError::Name(name.to_owned()).into());
        }
        let is_new = names.insert(signed_name(name).to_owned());
        if !is_data(name) {
            return match is_new {
                true => Ok(()),
                false => Err(UnsignableError::SameName(name.to_owned()).into()),
            };
        }
        if !is_new || base(name) != "data.json" {
            mounts.insert(mount(name));
        }
        Ok::<_, LayerError>(())
    })?;
    Ok(mounts)
}

/// Whether any version of OPA takes a file for a signature.
fn is_signature(name: &str) -> bool {
    name.trim_end_matches('/').ends_with(SIGNATURE_FILE_END)
}

fn keep<W: io::Write>(
    entry: &mut Entry<'_>,
    length: u64,
    tarball: &mut TarballWriter<W>,
) -> Result<(), LayerError> {
    let name = entry.name().to_owned();
    entry.copy_to(|_, content| tarball.add_exactly(&name, length, content.take(length)))
}

/// The name of the file with the data of a mount point.
fn data_file(mount: &[String]) -> String {
    let parts = mount.iter().map(String::as_str).chain(["data.json"]);
    parts.collect::<Vec<_>>().join("/")
}

fn hash_of(document: &Document) -> String {
    hash::of_document(document, HashAlgorithm::Sha256)
}

fn claim(name: &str, hash: String) -> FileClaim {
    FileClaim {
        name: name.to_owned(),
        hash,
        algorithm: HashAlgorithm::WRITTEN.to_owned(),
    }
}
