//! `config/deploy`: each file before the program that it is for.

mod compose;
mod image;
mod kubernetes;
mod samples;
mod systemd;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::support::{program, search_path};

/// A public key, for configurations that name one.
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/deploy")
}

/// The result of a program.
#[derive(Debug)]
struct Ended {
    what: String,
    success: bool,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(what: String, output: Output) -> Self {
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        Self {
            what,
            success: output.status.success(),
            stdout,
            stderr,
        }
    }

    /// Its standard output, if it succeeded.
    #[track_caller]
    fn ok(self) -> String {
        assert!(
            self.success,
            "{}: {}{}",
            self.what, self.stdout, self.stderr
        );
        self.stdout
    }

    /// It failed, and says why.
    #[track_caller]
    fn refused(&self, why: &str) {
        assert!(
            !self.success && self.stderr.contains(why),
            "{} does not say {why:?}: {}{}",
            self.what,
            self.stdout,
            self.stderr
        );
    }
}

/// Runs a program to its end.
fn ran(name: &str, arguments: &[&str]) -> Ended {
    with_input(name, arguments, "")
}

/// Runs a program to its end with a text on its standard input.
fn with_input(name: &str, arguments: &[&str], input: &str) -> Ended {
    use std::io::Write as _;
    let home = TempDir::new().unwrap();
    let mut command = Command::new(program(name));
    command
        .args(arguments)
        .env("HOME", home.path())
        .env("PATH", search_path());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A program that ends without reading closes the pipe.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ended::of(format!("{name} {}", arguments.join(" ")), output)
}

/// Checks a configuration as `bundlegate config check` does, in a folder with `release.pub`. The
/// folders of the machine that it names are in that folder as well.
#[track_caller]
fn check_config(text: &str, files: &[(&str, &str)]) {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let text = text
        .replace(
            "/var/cache/bundlegate",
            path.join("cache").to_str().unwrap(),
        )
        .replace(
            "/var/run/secrets/bundlegate",
            path.join("secrets").to_str().unwrap(),
        );
    let all = [("bundlegate.yaml", &*text), ("release.pub", PUBLIC_KEY)];
    for (name, content) in all.iter().chain(files) {
        let file = path.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    let file = path.join("bundlegate.yaml");
    ran("bundlegate", &["config", "check", file.to_str().unwrap()]).ok();
}

/// The documents of a YAML stream.
fn documents(text: &str) -> Vec<serde_json::Value> {
    let documents = text.split("\n---\n").map(|document| {
        let document = document.strip_prefix("---\n").unwrap_or(document);
        serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}: {document}"))
    });
    documents
        .filter(|document: &serde_json::Value| !document.is_null())
        .collect()
}
