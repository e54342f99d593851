//! The results of checks by `opa`, stored so that a restart does not repeat them. They are small
//! files in the folder `opa-check` of the cache, beside the image layout. A lost result costs one
//! more check.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::oci::{Digest, open_regular};

/// The maximum number of files. Beyond it, the oldest are removed.
const MAX_FILES: usize = 10_000;
/// The maximum size of a file in bytes.
const MAX_FILE_BYTES: u64 = 256 << 10;
/// The maximum number of programs whose results for one bundle are kept.
const MAX_PROGRAMS: usize = 4;
/// The maximum number of results in memory; one has some hundred bytes, at most some 10 KiB.
const MAX_IN_MEMORY: u64 = 2_000;
/// The age after which a file is removed.
const MAX_AGE: Duration = Duration::from_secs(180 * 24 * 3600);
/// Surplus and old files are removed at the first write and then once in this many writes.
const WRITES_PER_SWEEP: usize = 100;
const FORMAT_VERSION: u32 = 1;

/// The results of checks, in memory and, where there is a cache folder, on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CheckResults {
    /// `None` without a cache folder.
    folder: Option<Arc<Folder>>,
    memory: moka::sync::Cache<String, Arc<[Entry]>>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// The number of writes so far; locked during a write.
    writes: Mutex<usize>,
}

/// The result of one program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// The digest of the executable.
    program: String,
    result: Value,
}

/// The content of a file.
#[derive(Serialize, Deserialize)]
struct ResultFile {
    format: u32,
    bundle: String,
    options: String,
    /// Oldest first.
    results: Vec<Entry>,
}

impl CheckResults {
    /// The results in a cache folder, or in memory only.
    pub(super) fn new(cache: Option<&Path>) -> Self {
        let folder = cache.map(|cache| Folder {
            path: cache.join("opa-check"),
            writes: Mutex::default(),
        });
        Self {
            folder: folder.map(Arc::new),
            memory: moka::sync::Cache::new(MAX_IN_MEMORY),
        }
    }

    /// The result of `program` for a bundle under `options`.
    pub async fn get(&self, bundle: &Digest, options: &str, program: &Digest) -> Option<Value> {
        let entries = self.entries(bundle, options).await;
        entries
            .iter()
            .find(|entry| entry.program == program.as_str())
            .map(|entry| entry.result.clone())
    }

    /// The results of all programs for a bundle under `options`, oldest first.
    pub async fn all(&self, bundle: &Digest, options: &str) -> Vec<Value> {
        self.entries(bundle, options)
            .await
            .iter()
            .map(|entry| entry.result.clone())
            .collect()
    }

    /// Stores the result of `program` for a bundle under `options`. A failed write is logged.
    pub async fn put(&self, bundle: &Digest, options: &str, program: &Digest, result: Value) {
        let mut entries = self.entries(bundle, options).await.to_vec();
        entries.retain(|entry| entry.program != program.as_str());
        entries.push(Entry {
            program: program.to_string(),
            result,
        });
        entries.drain(..entries.len().saturating_sub(MAX_PROGRAMS));
        self.memory
            .insert(key(bundle, options), entries.clone().into());
        let Some(folder) = self.folder.clone() else {
            return;
        };
        let stored = ResultFile {
            format: FORMAT_VERSION,
            bundle: bundle.to_string(),
            options: options.to_owned(),
            results: entries,
        };
        let mut writes = folder.writes.lock().await;
        let sweep = writes.is_multiple_of(WRITES_PER_SWEEP);
        *writes += 1;
        let (path, name) = (folder.path.clone(), file_name(bundle, options));
        let written = spawn_blocking(move || {
            write(&path, &name, &stored)?;
            if sweep {
                remove_old(&path, MAX_FILES, SystemTime::now() - MAX_AGE)
            } else {
                Ok(())
            }
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, folder = %folder.path.display(), "the result of a check can't be written");
            }
            Err(error) => tracing::error!(%error, "a cache task failed; please report this"),
        }
    }

    async fn entries(&self, bundle: &Digest, options: &str) -> Arc<[Entry]> {
        let key = key(bundle, options);
        if let Some(known) = self.memory.get(&key) {
            return known;
        }
        let Some(folder) = &self.folder else {
            return Arc::default();
        };
        let path = folder.path.join(file_name(bundle, options));
        let (bundle, options) = (bundle.to_string(), options.to_owned());
        let read = spawn_blocking(move || read(&path, &bundle, &options)).await;
        let entries: Arc<[Entry]> = read.unwrap_or_default().into();
        self.memory.insert(key, Arc::clone(&entries));
        entries
    }
}

fn key(bundle: &Digest, options: &str) -> String {
    format!("{bundle} {options}")
}

fn file_name(bundle: &Digest, options: &str) -> String {
    format!(
        "{}.json",
        Digest::sha256(key(bundle, options).as_bytes()).hex()
    )
}

/// Reads a file. A damaged one counts as absent, and the next result replaces it.
fn read(path: &Path, bundle: &str, options: &str) -> Vec<Entry> {
    let Ok(file) = open_regular(path) else {
        return Vec::new();
    };
    let mut text = Vec::new();
    if file.take(MAX_FILE_BYTES).read_to_end(&mut text).is_err() {
        return Vec::new();
    }
    match serde_json::from_slice::<ResultFile>(&text) {
        Ok(stored)
            if stored.format == FORMAT_VERSION
                && stored.bundle == bundle
                && stored.options == options =>
        {
            stored.results
        }
        Ok(_) | Err(_) => {
            tracing::warn!(path = %path.display(), "the stored result of a check can't be read: checking again");
            Vec::new()
        }
    }
}

/// Replaces a file atomically.
fn write(folder: &Path, name: &str, stored: &ResultFile) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(stored)?)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name))?;
    fs::File::open(folder)?.sync_all()
}

/// Removes files written before `oldest`, the oldest beyond `max_files`, and temporary files that a
/// crash left behind.
fn remove_old(folder: &Path, max_files: usize, oldest: SystemTime) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let written = entry.metadata()?.modified()?;
        if written < oldest
            || entry
                .path()
                .extension()
                .is_none_or(|extension| extension != "json")
        {
            fs::remove_file(entry.path())?;
        } else {
            files.push((written, entry.path()));
        }
    }
    files.sort();
    for (_, path) in files.iter().take(files.len().saturating_sub(max_files)) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn files(cache: &Path) -> Vec<PathBuf> {
        let files = fs::read_dir(cache.join("opa-check")).unwrap();
        files.map(|entry| entry.unwrap().path()).collect()
    }

    #[tokio::test]
    async fn results_outlive_the_process_by_bundle_program_and_options() {
        let cache = tempfile::tempdir().unwrap();
        let before = CheckResults::new(Some(cache.path()));
        before
            .put(&digest("bundle"), "load", &digest("opa"), json!("passed"))
            .await;
        before
            .put(
                &digest("bundle"),
                "load",
                &digest("newer opa"),
                json!("refused"),
            )
            .await;
        let after = CheckResults::new(Some(cache.path()));
        let get = async |bundle, options, program| {
            after.get(&digest(bundle), options, &digest(program)).await
        };
        assert_eq!(get("bundle", "load", "opa").await, Some(json!("passed")));
        assert_eq!(
            get("bundle", "load", "newer opa").await,
            Some(json!("refused"))
        );
        assert_eq!(get("bundle", "load,tests", "opa").await, None);
        assert_eq!(get("another", "load", "opa").await, None);
        assert_eq!(get("bundle", "load", "another opa").await, None);
        assert_eq!(
            after.all(&digest("bundle"), "load").await,
            [json!("passed"), json!("refused")]
        );
    }

    #[tokio::test]
    async fn without_a_folder_results_last_as_long_as_the_process() {
        let results = CheckResults::new(None);
        results
            .put(&digest("bundle"), "load", &digest("opa"), json!(1))
            .await;
        assert_eq!(
            results.get(&digest("bundle"), "load", &digest("opa")).await,
            Some(json!(1))
        );
    }

    #[tokio::test]
    async fn the_newest_results_of_many_programs_are_kept() {
        let results = CheckResults::new(None);
        for program in 0..10 {
            results
                .put(
                    &digest("bundle"),
                    "load",
                    &digest(&program.to_string()),
                    json!(program),
                )
                .await;
        }
        assert_eq!(
            results.all(&digest("bundle"), "load").await,
            [6, 7, 8, 9].map(|number| json!(number))
        );
    }

    #[tokio::test]
    async fn a_damaged_file_is_no_result_and_is_replaced() {
        let cache = tempfile::tempdir().unwrap();
        let put = async || {
            let results = CheckResults::new(Some(cache.path()));
            results
                .put(&digest("bundle"), "load", &digest("opa"), json!("passed"))
                .await;
        };
        put().await;
        let [file] = files(cache.path()).try_into().unwrap();
        let good = fs::read(&file).unwrap();
        let foreign = String::from_utf8(good.clone())
            .unwrap()
            .replace(digest("bundle").hex(), digest("x").hex());
        for damaged in [
            b"".as_slice(),
            b"{",
            b"[]",
            &good[..good.len() / 2],
            foreign.as_bytes(),
            &[0xff; 100],
        ] {
            fs::write(&file, damaged).unwrap();
            let results = CheckResults::new(Some(cache.path()));
            assert_eq!(
                results.get(&digest("bundle"), "load", &digest("opa")).await,
                None
            );
            put().await;
            assert_eq!(fs::read(&file).unwrap(), good);
        }
    }

    #[test]
    fn surplus_old_and_temporary_files_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(24 * 3600);
        let now = SystemTime::now();
        for (name, age) in [
            ("a.json", 9),
            ("b.json", 3),
            ("c.json", 2),
            ("d.json", 1),
            (".tmpX", 0),
        ] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(now - day * age).unwrap();
        }
        remove_old(folder.path(), 2, now - day * 5).unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["c.json", "d.json"]);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_costs_the_next_process_one_check() {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join("opa-check"), "a file instead of a folder").unwrap();
        let results = CheckResults::new(Some(cache.path()));
        results
            .put(&digest("bundle"), "load", &digest("opa"), json!(1))
            .await;
        assert_eq!(
            results.get(&digest("bundle"), "load", &digest("opa")).await,
            Some(json!(1))
        );
    }
}
