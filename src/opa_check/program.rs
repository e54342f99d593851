//! The `opa` program: its path, version and capabilities.

use std::{
    env, fs,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{sync::Mutex, task::spawn_blocking};

use super::{
    sandbox::{self, Deadline, Unavailable},
    scratch::Scratch,
    text::one_line,
};
use crate::oci::{Digest, Hasher, open_regular};

/// The oldest supported major version, the first one with Rego v1.
const MIN_MAJOR_VERSION: u64 = 1;

/// One `opa` executable, identified by its digest, with its version and capabilities.
#[derive(Debug)]
pub struct Opa {
    path: PathBuf,
    stamp: FileStamp,
    digest: Digest,
    version: String,
    has_wasm: bool,
    capabilities: Arc<[u8]>,
}

/// A program that can't be used for checks.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program does not exist.
    #[error("no program {program}")]
    Missing {
        /// The program as configured.
        program: PathBuf,
    },
    /// The program is too old.
    #[error("{program} is OPA {version}, and 1.0 or newer is needed")]
    TooOld {
        /// The program as configured.
        program: PathBuf,
        /// Its version.
        version: String,
    },
    /// The program does not respond as `opa` does.
    #[error("{program} does not work as opa: {reason}")]
    Broken {
        /// The program as configured.
        program: PathBuf,
        /// The failure.
        reason: Unavailable,
    },
}

/// The metadata that identifies a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A program that may be replaced while the gateway runs.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    current: Mutex<Option<Arc<Opa>>>,
}

impl Opa {
    /// The SHA-256 digest of the program file.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The version that it reports, such as `1.22.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it can load bundles that are compiled to WebAssembly.
    pub fn has_wasm(&self) -> bool {
        self.has_wasm
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file on disk is still this one, by its metadata.
    pub async fn is_current(&self) -> bool {
        let path = self.path.clone();
        let stamp = spawn_blocking(move || FileStamp::of(&path)).await;
        stamp.is_ok_and(|stamp| stamp.is_ok_and(|stamp| stamp == self.stamp))
    }

    /// Fails if the program was replaced, because either of the two may have given the verdict.
    pub(super) async fn ensure_current(&self) -> Result<(), Unavailable> {
        if self.is_current().await {
            Ok(())
        } else {
            Err(Unavailable::Replaced {
                program: self.path.clone(),
            })
        }
    }

    /// The capabilities of the program, with network access removed.
    pub(super) fn capabilities(&self) -> Arc<[u8]> {
        Arc::clone(&self.capabilities)
    }

    async fn identify(path: &Path, timeout: Duration) -> Result<Self, Unavailable> {
        let deadline = Deadline::after(timeout);
        let (stamp, digest) = fingerprint(path).await?;
        let scratch = Scratch::empty().await?;
        let output = sandbox::run(path, &["version"], scratch.path(), deadline).await?;
        let has_wasm = reports_wasm(&output.stdout);
        let version = output
            .status
            .success()
            .then(|| reported_version(&output.stdout))
            .flatten();
        let version = version.ok_or_else(|| output.unreadable())?;
        if major(&version).is_none_or(|major| major < MIN_MAJOR_VERSION) {
            return Err(Unavailable::TooOld {
                program: path.to_owned(),
                version,
            });
        }
        let output = sandbox::run(
            path,
            &["capabilities", "--current"],
            scratch.path(),
            deadline,
        )
        .await?;
        let capabilities = output
            .status
            .success()
            .then(|| without_network(&output.stdout))
            .flatten();
        let capabilities = capabilities.ok_or_else(|| output.unreadable())?;
        Ok(Self {
            path: path.to_owned(),
            stamp,
            digest,
            version,
            has_wasm,
            capabilities,
        })
    }
}

impl Program {
    /// Identifies a program for the first time.
    pub(super) async fn start(path: PathBuf, timeout: Duration) -> Result<Self, StartError> {
        let found = Opa::identify(&path, timeout).await;
        let opa = found.map_err(|reason| match reason {
            Unavailable::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                StartError::Missing {
                    program: path.clone(),
                }
            }
            Unavailable::TooOld { version, .. } => StartError::TooOld {
                program: path.clone(),
                version,
            },
            reason => StartError::Broken {
                program: path.clone(),
                reason,
            },
        })?;
        Ok(Self {
            path,
            current: Mutex::new(Some(Arc::new(opa))),
        })
    }

    /// The program that is on disk now, identified again if it was replaced.
    pub(super) async fn current(&self, timeout: Duration) -> Result<Arc<Opa>, Unavailable> {
        let mut current = self.current.lock().await;
        if let Some(opa) = &*current
            && opa.is_current().await
        {
            return Ok(Arc::clone(opa));
        }
        *current = None;
        let opa = Arc::new(Opa::identify(&self.path, timeout).await?);
        tracing::info!(program = %self.path.display(), version = opa.version, "opa was replaced: checking with it");
        *current = Some(Arc::clone(&opa));
        Ok(opa)
    }
}

impl FileStamp {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::metadata(path)?;
        if !file.is_file() {
            // Opening a pipe would wait for a writer.
            return Err(io::Error::other("it is not a file"));
        }
        Ok(Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

/// Finds a program. A name without `/` is searched in the absolute folders of `PATH`; `None` if
/// none of them has an executable file of that name.
pub fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        let path = std::path::absolute(program).ok()?;
        return Some(path);
    }
    let path = env::var_os("PATH")?;
    let mut candidates = env::split_paths(&path).filter(|folder| folder.is_absolute());
    candidates.find_map(|folder| Some(folder.join(program)).filter(|file| is_executable(file)))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Hashes the file: OPA's executable has some 60 MB, which takes about 50 ms.
async fn fingerprint(path: &Path) -> Result<(FileStamp, Digest), Unavailable> {
    let file = path.to_owned();
    let read = spawn_blocking(move || {
        let stamp = FileStamp::of(&file)?;
        let mut opened = open_regular(&file)?;
        let (mut hasher, mut piece) = (Hasher::sha256(), vec![0; 1 << 20]);
        loop {
            match opened.read(&mut piece)? {
                0 => return Ok((stamp, hasher.finish())),
                count => hasher.update(&piece[..count]),
            }
        }
    });
    match read.await {
        Ok(read) => read.map_err(|source| Unavailable::Start {
            program: path.to_owned(),
            source,
        }),
        Err(error) => Err(Unavailable::Internal(error.to_string())),
    }
}

/// The line `Version: 1.22.2` of `opa version`.
fn reported_version(output: &[u8]) -> Option<String> {
    let output = String::from_utf8_lossy(output);
    let version = output
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))?
        .trim();
    major(version).map(|_| one_line(version))
}

/// The line `WebAssembly: available` of `opa version`.
fn reports_wasm(output: &[u8]) -> bool {
    let output = String::from_utf8_lossy(output);
    output.lines().any(|line| {
        line.strip_prefix("WebAssembly:")
            .is_some_and(|state| state.trim() == "available")
    })
}

fn major(version: &str) -> Option<u64> {
    version.split('.').next()?.parse().ok()
}

/// Capabilities with an empty `allow_net`, which allows no host; `null` or a missing `allow_net`
/// would allow every host.
fn without_network(output: &[u8]) -> Option<Arc<[u8]>> {
    let mut capabilities: Map<String, Value> = serde_json::from_slice(output).ok()?;
    capabilities.get("builtins")?.as_array()?;
    capabilities.insert("allow_net".to_owned(), Value::Array(Vec::new()));
    serde_json::to_vec(&capabilities).ok().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_keep_everything_but_the_network() {
        for output in [
            r#"{"builtins":[{"name":"abs"}],"features":["x"]}"#,
            r#"{"builtins":[{"name":"abs"}],"features":["x"],"allow_net":["example.com"]}"#,
            r#"{"builtins":[{"name":"abs"}],"features":["x"],"allow_net":null}"#,
        ] {
            let capabilities: Value =
                serde_json::from_slice(&without_network(output.as_bytes()).unwrap()).unwrap();
            let expected = serde_json::json!({ "builtins": [{ "name": "abs" }], "features": ["x"], "allow_net": [] });
            assert_eq!(capabilities, expected);
        }
        for output in ["", "[]", "{}", r#"{"builtins":3}"#] {
            assert!(without_network(output.as_bytes()).is_none(), "{output}");
        }
    }

    #[test]
    fn versions_are_read_from_what_opa_prints() {
        let reported = |output: &str| reported_version(output.as_bytes());
        assert_eq!(
            reported("Version: 1.22.2\nBuild Commit: \n").as_deref(),
            Some("1.22.2")
        );
        assert_eq!(reported("Version: 0.70.0\n").as_deref(), Some("0.70.0"));
        assert_eq!(
            reported("Version: 1.0.0-rc1\n").as_deref(),
            Some("1.0.0-rc1")
        );
        assert_eq!(reported("opa 1.2.3\n"), None);
        assert_eq!(reported("Version: none\n"), None);
    }
}
