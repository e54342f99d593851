//! The program as a person runs it, in a folder of its own.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bundlegate::oci::{Descriptor, Layout, NewManifest, media_type};
use serde_json::Value;
use tempfile::TempDir;

/// A working folder, which is the home as well.
pub(crate) struct Desk {
    folder: TempDir,
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What `COSIGN_PASSWORD` is.
pub(crate) const PASSWORD: &str = "open sesame";

impl Desk {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "", &[("COSIGN_PASSWORD", PASSWORD)])
    }

    /// Runs with a text on standard input and an environment of its own.
    pub(crate) fn run_with(&self, arguments: &[&str], stdin: &str, environment: &[(&str, &str)]) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bundlegate"))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that ends without reading closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        Ran { code: output.status.code().unwrap(), stdout, stderr }
    }

    /// Puts a bundle into the layout folder `layout` under the tag `v1`, and gives the
    /// manifest's digest.
    pub(crate) fn artifact(&self, files: &[(&str, &str)]) -> String {
        let bundle = tarball(files);
        let layout = Layout::create(self.path("layout")).unwrap();
        let layer = Descriptor::of(media_type::LAYER_TAR_GZIP, &bundle);
        let manifest = NewManifest::new(media_type::IMAGE_CONFIG, vec![layer]).to_bytes().unwrap();
        for blob in [&bundle[..], &manifest, NewManifest::CONFIG] {
            layout.write_blob(blob).unwrap();
        }
        let mut index = layout.index().unwrap();
        index.set("v1", Descriptor::of(media_type::OCI_MANIFEST, &manifest));
        layout.write_index(&index).unwrap();
        Descriptor::of(media_type::OCI_MANIFEST, &manifest).digest.to_string()
    }
}

impl Ran {
    /// Its standard output, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// The one line with which it failed.
    #[track_caller]
    pub(crate) fn error(&self) -> &str {
        assert_eq!((self.code, self.stderr.lines().count()), (1, 1), "{self:?}");
        self.stderr.trim_end().strip_prefix("bundlegate: ").unwrap_or_else(|| panic!("{self:?}"))
    }
}

fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(encoder);
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, Path::new(path), content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}
