//! The program as a person runs it, in a folder of its own.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use bundlegate::oci::{Descriptor, Layout, NewManifest, media_type};
use serde_json::Value;
use tempfile::TempDir;

/// A user with a home folder, in which every command runs. The image store is `store` in it.
pub(crate) struct Author {
    home: TempDir,
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The value of `COSIGN_PASSWORD`.
pub(crate) const PASSWORD: &str = "open sesame";

impl Author {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let author = Self {
            home: TempDir::new().unwrap(),
        };
        files
            .iter()
            .for_each(|(name, content)| author.write(name, content));
        author
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home().join(name)
    }

    /// Writes a file, with the folders above it.
    pub(crate) fn write(&self, name: &str, content: &str) {
        write(&self.path(name), content);
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
        self.settle(command.args(arguments));
        command
    }

    /// At home, with nothing of the machine's own settings.
    pub(crate) fn settle<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(self.home())
            .env_clear()
            .env("HOME", self.home())
            .env("BUNDLEGATE_STORE", "store");
        command
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null())
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "", &[("COSIGN_PASSWORD", PASSWORD)])
    }

    /// Runs with a text on standard input and an environment of its own.
    pub(crate) fn run_with(
        &self,
        arguments: &[&str],
        stdin: &str,
        environment: &[(&str, &str)],
    ) -> Ran {
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that ends without reading closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        Ran::of(child.wait_with_output().unwrap())
    }

    /// Runs what stands in a line, with a space between two arguments.
    pub(crate) fn line(&self, line: &str) -> Ran {
        self.run(&line.split(' ').collect::<Vec<_>>())
    }

    /// The JSON output of a command that must succeed.
    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> Value {
        self.line(&format!("{line} --json")).json()
    }

    #[track_caller]
    pub(crate) fn digest(&self, line: &str) -> String {
        self.json(line)["digest"].as_str().unwrap().to_owned()
    }

    /// Puts a bundle into the layout folder `layout` under the tag `v1`, and gives the
    /// manifest's digest.
    pub(crate) fn artifact(&self, files: &[(&str, &str)]) -> String {
        let bundle = tarball(files);
        let layout = Layout::create(self.path("layout")).unwrap();
        let layer = Descriptor::of(media_type::LAYER_TAR_GZIP, &bundle);
        let manifest = NewManifest::new(media_type::IMAGE_CONFIG, vec![layer])
            .to_bytes()
            .unwrap();
        for blob in [&bundle[..], &manifest, NewManifest::CONFIG] {
            layout.write_blob(blob).unwrap();
        }
        let mut index = layout.index().unwrap();
        index.set("v1", Descriptor::of(media_type::OCI_MANIFEST, &manifest));
        layout.write_index(&index).unwrap();
        Descriptor::of(media_type::OCI_MANIFEST, &manifest)
            .digest
            .to_string()
    }
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        Self {
            code: output.status.code().unwrap(),
            stdout,
            stderr,
        }
    }

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
        self.stderr
            .trim_end()
            .strip_prefix("bundlegate: ")
            .unwrap_or_else(|| panic!("{self:?}"))
    }

    /// It failed with one line that says `why`, and with nothing else.
    #[track_caller]
    pub(crate) fn refused(&self, why: &str) {
        assert!(
            self.error().contains(why) && self.stdout.is_empty(),
            "{self:?} lacks {why:?}"
        );
    }
}

/// Writes a file, with the folders above it.
pub(crate) fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(encoder);
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, Path::new(path), content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// Says so past the test runner, which shows nothing of tests that pass.
pub(crate) fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}

/// A folder of real-world samples. Without it the test says that it leaves out `what`.
pub(crate) fn fixture(folder: &str, what: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
    let folder = std::env::var_os("BUNDLEGATE_FIXTURES")
        .map_or_else(beside, PathBuf::from)
        .join(folder);
    if !folder.exists() {
        skipped(&format!("{what}, for {} is not there", folder.display()));
        return None;
    }
    Some(folder)
}
