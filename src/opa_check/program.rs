//! The `opa` program: where it is, which version, and what it can do.

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
    report::one_line,
    sandbox::{self, Deadline, Unavailable},
    scratch::Scratch,
};
use crate::oci::{Digest, Hasher};

/// Rego v1 is the language from this major version on.
const OLDEST: u64 = 1;

/// One `opa`, byte for byte, and what it says of itself.
#[derive(Debug)]
pub struct Opa {
    path: PathBuf,
    stamp: Stamp,
    digest: Digest,
    version: String,
    has_wasm: bool,
    capabilities: Arc<[u8]>,
}

/// Why checks can't be done from the start on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such program.
    #[error("no program {program}")]
    Missing {
        /// As it was named.
        program: PathBuf,
    },
    /// It is too old.
    #[error("{program} is OPA {version}, and 1.0 or newer is needed")]
    TooOld {
        /// As it was named.
        program: PathBuf,
        /// Its version.
        version: String,
    },
    /// It does not answer as `opa` does.
    #[error("{program} does not work as opa: {reason}")]
    Broken {
        /// As it was named.
        program: PathBuf,
        /// What it does instead.
        reason: Unavailable,
    },
}

/// By what it is seen that the file is another one, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
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

    /// The version that it states, such as `1.22.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it can load bundles that are compiled to WebAssembly.
    pub fn has_wasm(&self) -> bool {
        self.has_wasm
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file on disk is still this one, by a look at its metadata.
    pub async fn is_current(&self) -> bool {
        let path = self.path.clone();
        let stamp = spawn_blocking(move || Stamp::of(&path)).await;
        stamp.is_ok_and(|stamp| stamp.is_ok_and(|stamp| stamp == self.stamp))
    }

    /// Fails where the program was replaced: nobody can tell which of the two answered.
    pub(super) async fn still_current(&self) -> Result<(), Unavailable> {
        if self.is_current().await { Ok(()) } else { Err(Unavailable::Replaced { program: self.path.clone() }) }
    }

    /// Those of the program, without the network.
    pub(super) fn capabilities(&self) -> Arc<[u8]> {
        Arc::clone(&self.capabilities)
    }

    async fn identify(path: &Path, timeout: Duration) -> Result<Self, Unavailable> {
        let deadline = Deadline::after(timeout);
        let (stamp, digest) = fingerprint(path).await?;
        let scratch = Scratch::empty().await?;
        let said = sandbox::run(path, &["version"], scratch.path(), deadline).await?;
        let has_wasm = states_wasm(&said.stdout);
        let version = said.status.success().then(|| stated_version(&said.stdout)).flatten();
        let version = version.ok_or_else(|| said.unreadable())?;
        if major(&version).is_none_or(|major| major < OLDEST) {
            return Err(Unavailable::TooOld { program: path.to_owned(), version });
        }
        let said = sandbox::run(path, &["capabilities", "--current"], scratch.path(), deadline).await?;
        let capabilities = said.status.success().then(|| without_network(&said.stdout)).flatten();
        let capabilities = capabilities.ok_or_else(|| said.unreadable())?;
        Ok(Self { path: path.to_owned(), stamp, digest, version, has_wasm, capabilities })
    }
}

impl Program {
    /// Looks at a program for the first time.
    pub(super) async fn start(path: PathBuf, timeout: Duration) -> Result<Self, StartError> {
        let found = Opa::identify(&path, timeout).await;
        let opa = found.map_err(|reason| match reason {
            Unavailable::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                StartError::Missing { program: path.clone() }
            }
            Unavailable::TooOld { version, .. } => StartError::TooOld { program: path.clone(), version },
            reason => StartError::Broken { program: path.clone(), reason },
        })?;
        Ok(Self { path, current: Mutex::new(Some(Arc::new(opa))) })
    }

    /// The program as it is on disk now; looked at again where it was replaced.
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

impl Stamp {
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

/// Where a program is. A name without `/` is looked for in the folders of `PATH` that are
/// absolute; `None` when no executable file there has it.
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

/// Reads the file once: OPA's has some 60 MB, which takes about 50 ms.
async fn fingerprint(path: &Path) -> Result<(Stamp, Digest), Unavailable> {
    let file = path.to_owned();
    let read = spawn_blocking(move || {
        let stamp = Stamp::of(&file)?;
        let mut opened = fs::File::open(&file)?;
        let (mut hasher, mut piece) = (Hasher::sha256(), vec![0; 1 << 20]);
        loop {
            match opened.read(&mut piece)? {
                0 => return Ok((stamp, hasher.finish())),
                count => hasher.update(&piece[..count]),
            }
        }
    });
    match read.await {
        Ok(read) => read.map_err(|source| Unavailable::Start { program: path.to_owned(), source }),
        Err(error) => Err(Unavailable::Internal(error.to_string())),
    }
}

/// The line `Version: 1.22.2` of `opa version`.
fn stated_version(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let version = said.lines().find_map(|line| line.strip_prefix("Version:"))?.trim();
    major(version).map(|_| one_line(version))
}

/// The line `WebAssembly: available` of `opa version`.
fn states_wasm(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    said.lines().any(|line| line.strip_prefix("WebAssembly:").is_some_and(|state| state.trim() == "available"))
}

fn major(version: &str) -> Option<u64> {
    version.split('.').next()?.parse().ok()
}

/// `null` and a missing `allow_net` both allow every host; only an empty list allows none.
fn without_network(said: &[u8]) -> Option<Arc<[u8]>> {
    let mut capabilities: Map<String, Value> = serde_json::from_slice(said).ok()?;
    capabilities.get("builtins")?.as_array()?;
    capabilities.insert("allow_net".to_owned(), Value::Array(Vec::new()));
    serde_json::to_vec(&capabilities).ok().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_keep_everything_but_the_network() {
        for said in [
            r#"{"builtins":[{"name":"abs"}],"features":["x"]}"#,
            r#"{"builtins":[{"name":"abs"}],"features":["x"],"allow_net":["example.com"]}"#,
            r#"{"builtins":[{"name":"abs"}],"features":["x"],"allow_net":null}"#,
        ] {
            let capabilities: Value = serde_json::from_slice(&without_network(said.as_bytes()).unwrap()).unwrap();
            let expected = serde_json::json!({ "builtins": [{ "name": "abs" }], "features": ["x"], "allow_net": [] });
            assert_eq!(capabilities, expected);
        }
        for said in ["", "[]", "{}", r#"{"builtins":3}"#] {
            assert!(without_network(said.as_bytes()).is_none(), "{said}");
        }
    }

    #[test]
    fn versions_are_read_from_what_opa_prints() {
        let stated = |said: &str| stated_version(said.as_bytes());
        assert_eq!(stated("Version: 1.22.2\nBuild Commit: \n").as_deref(), Some("1.22.2"));
        assert_eq!(stated("Version: 0.70.0\n").as_deref(), Some("0.70.0"));
        assert_eq!(stated("Version: 1.0.0-rc1\n").as_deref(), Some("1.0.0-rc1"));
        assert_eq!(stated("opa 1.2.3\n"), None);
        assert_eq!(stated("Version: none\n"), None);
    }
}
