//! Signing a folder of files, as `opa sign` does.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    MAX_DOCUMENT_BYTES, SIGNATURE_FILE, Signer,
    hash::{self, HashAlgorithm, is_structured},
    token::FileClaim,
};
use crate::{
    bundle::{
        PackError,
        document::{Detail, Document},
    },
    oci::{open_regular_within, read_regular},
};

/// The deepest nesting of folders, and the largest number of files.
const MAX_DEPTH: usize = 256;
const MAX_FILES: usize = 1 << 20;

/// Returns the content of the `.signatures.json` for a folder, and the number of files that it
/// covers. Names are relative to the folder, so that they are those of a bundle that is packed in it.
/// As `opa sign` does, covers every regular file but signatures, and follows no link. Blocks.
///
/// # Errors
/// When a file can't be read, or is larger than `limit` bytes, or is not a document where OPA reads
/// one.
pub fn sign_folder(
    folder: &Path,
    signer: &Signer,
    limit: u64,
) -> Result<(String, usize), PackError> {
    let mut paths = Vec::new();
    collect(folder, 0, &mut paths)?;
    paths.sort();
    let files = paths.iter().map(|path| {
        let name = path.strip_prefix(folder).unwrap_or(path);
        let name = name.to_str().ok_or_else(|| PackError::Name(path.clone()))?;
        file(path, name, limit)
    });
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let count = files.len();
    if count == 0 {
        return Err(PackError::Empty(folder.display().to_string()));
    }
    let text = signer
        .signature_file(files)
        .map_err(|error| PackError::at(folder, &error.to_string()))?;
    Ok((text, count))
}

fn collect(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), PackError> {
    let failed = |source| PackError::io(folder, source);
    if depth > MAX_DEPTH {
        let reason = format!("folders are nested more than {MAX_DEPTH} levels deep");
        return Err(PackError::at(folder, &reason));
    }
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            collect(&entry.path(), depth + 1, paths)?;
        } else if kind.is_file() && entry.file_name() != SIGNATURE_FILE {
            if paths.len() == MAX_FILES {
                let reason = format!("more than {MAX_FILES} files");
                return Err(PackError::at(folder, &reason));
            }
            paths.push(entry.path());
        }
    }
    Ok(())
}

fn file(path: &Path, name: &str, limit: u64) -> Result<FileClaim, PackError> {
    let failed = |source| PackError::io(path, source);
    let hash = if is_structured(name) {
        let content = read_regular(path, limit).map_err(failed)?;
        let detail = Detail::ValuesWithin(MAX_DOCUMENT_BYTES);
        let document = Document::of_yaml(&content, detail)
            .map_err(|error| PackError::at(path, &error.to_string()))?;
        hash::of_document(&document, HashAlgorithm::Sha256)
    } else {
        let (mut content, _) = open_regular_within(path, limit).map_err(failed)?;
        let mut hasher = HashAlgorithm::Sha256.hasher();
        std::io::copy(&mut content, &mut hasher).map_err(failed)?;
        hasher.hex()
    };
    Ok(FileClaim {
        name: name.to_owned(),
        hash,
        algorithm: HashAlgorithm::WRITTEN.to_owned(),
    })
}
