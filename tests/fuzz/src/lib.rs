//! Shared by the fuzz targets: encodings of their inputs, and a key with its signatures.

mod case;
#[path = "../../it/forge/mod.rs"]
#[allow(dead_code, unused_imports, reason = "tests need more of it")]
mod forge;
mod forged;

use std::{fs, io::Write as _, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::oci::{Blob, Descriptor};
use flate2::{Compression, write::GzEncoder};

pub use case::{Case, Parts, TrustedMaterial, key, pkcs8};
pub use forged::{Forged, PROOFS, forge, proof};

/// Separates the parts of an input.
pub const SEPARATOR: &str = "\n---\n";

/// A folder of this process, below the folder that `run` removes at the end.
///
/// # Panics
/// When it can't be created.
pub fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("TMPDIR can be written");
    folder
}

/// # Panics
/// Never.
pub fn blob(bytes: Vec<u8>) -> Blob {
    Blob::check(&Descriptor::of("", &bytes), bytes.into()).expect("it is its own descriptor's")
}

/// # Panics
/// Never.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// # Panics
/// When a name is too long.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, *content)
            .expect("memory takes it");
    }
    builder.into_inner().expect("memory takes it")
}

/// A tar stream with one sparse file, as GNU tar writes it into a PAX archive.
///
/// # Panics
/// Never: memory accepts every write.
pub fn sparse_tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let size = content.len().to_string();
    let records = [
        ("major", "1"),
        ("minor", "0"),
        ("name", name),
        ("realsize", size.as_str()),
    ];
    let records = records.map(|(key, value)| (format!("GNU.sparse.{key}"), value.as_bytes()));
    let records = records.iter().map(|(key, value)| (key.as_str(), *value));
    builder
        .append_pax_extensions(records)
        .expect("memory takes it");
    let mut pieces = format!("1\n0\n{size}\n").into_bytes();
    pieces.resize(512, 0);
    pieces.extend(content);
    let mut header = tar::Header::new_ustar();
    header.set_size(pieces.len() as u64);
    builder
        .append_data(&mut header, "GNUSparseFile.0/x", pieces.as_slice())
        .expect("memory takes it");
    builder.into_inner().expect("memory takes it")
}

/// A tar stream in which the checksum of every header is right. Otherwise the reader would refuse
/// most mutations at the first header.
pub fn fix_checksums(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    let mut at = 0_usize;
    while let Some(header) = stream.get_mut(at..at.saturating_add(512)) {
        if header.iter().any(|byte| *byte != 0) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = std::str::from_utf8(&header[124..135])
            .ok()
            .and_then(|size| u64::from_str_radix(size, 8).ok());
        let size = usize::try_from(size.unwrap_or(0)).unwrap_or(usize::MAX);
        at = at
            .saturating_add(512)
            .saturating_add(size.div_ceil(512).saturating_mul(512));
    }
    stream
}

/// The content of a PEM file.
///
/// # Panics
/// When it is not base64.
pub fn unpem(text: &str) -> Vec<u8> {
    let body: String = text
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    STANDARD.decode(body).expect("it is base64")
}

pub fn pem(label: &str, content: &[u8]) -> String {
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        STANDARD.encode(content)
    )
}
