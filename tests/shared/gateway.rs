//! A gateway under test: its addresses, and readers of what its admin listener shows.

use std::{fs, net::SocketAddr, process::Command};

use reqwest::{Client, Response};
use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENCE, Process, poll_until};

/// A gateway that serves until this is dropped. `R` is how it runs: by default as the program
/// `bundlegate serve`; the program `it` can also run it within the process of the test.
#[derive(Debug)]
pub(crate) struct TestGateway<R = Program> {
    /// `http://` or `https://` and the address of the data listener.
    pub(crate) url: String,
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) http: Client,
    pub(crate) runner: R,
}

impl<R> TestGateway<R> {
    pub(crate) fn new(scheme: &str, data: SocketAddr, admin: SocketAddr, runner: R) -> Self {
        Self {
            url: format!("{scheme}://{data}"),
            data,
            admin,
            // A proxy of the machine is not for these requests.
            http: Client::builder().no_proxy().build().unwrap(),
            runner,
        }
    }

    /// The response to a GET of the admin listener.
    pub(crate) async fn admin_response(&self, path: &str) -> Response {
        let url = format!("http://{}{path}", self.admin);
        let request = self.http.get(url).timeout(PATIENCE);
        request.send().await.unwrap()
    }

    /// The body of a path of the admin listener.
    pub(crate) async fn admin_text(&self, path: &str) -> String {
        self.admin_response(path).await.text().await.unwrap()
    }

    /// The entry of a bundle in `/status`; null if there is no such bundle.
    pub(crate) async fn bundle_status(&self, name: &str) -> Value {
        let mut status: Value = serde_json::from_str(&self.admin_text("/status").await).unwrap();
        status["bundles"][name].take()
    }

    /// Waits until the entry of a bundle in `/status` satisfies `wanted`, and returns it.
    pub(crate) async fn status_when(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let look = async || Some(self.bundle_status(name).await).filter(&wanted);
        poll_until(&format!("{name}: {what}"), look).await.0
    }

    /// A sample of `/metrics`, by its name with its labels as they are printed there; 0 if it is
    /// absent.
    pub(crate) async fn metric(&self, sample: &str) -> f64 {
        let text = self.admin_text("/metrics").await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// `bundlegate serve` with the file `bundlegate.yaml` of a folder.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) process: Process,
    pub(crate) folder: TempDir,
}

impl Program {
    /// Starts the program, which is listening when its log says so.
    pub(crate) fn launch(folder: &TempDir) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
        command
            .args(["serve", "--config"])
            .arg(folder.path().join("bundlegate.yaml"));
        Process::start("bundlegate", &mut command)
    }
}

impl TestGateway {
    /// Runs the program with the `bundlegate.yaml` of `folder`, which must be JSON, until it
    /// listens.
    pub(crate) async fn run(folder: TempDir) -> Self {
        let config = fs::read(folder.path().join("bundlegate.yaml")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let mut process = Program::launch(&folder);
        let data = listener(&mut process, "data").await;
        let admin = listener(&mut process, "admin").await;
        let scheme = match config["server"].get("tls") {
            Some(_) => "https",
            None => "http",
        };
        Self::new(scheme, data, admin, Program { process, folder })
    }

    /// The lines of the log so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        let log = self.runner.process.log();
        log.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

/// The address of a listener, from the line `listening`.
pub(crate) async fn listener(process: &mut Process, name: &str) -> SocketAddr {
    let find = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let told = line["message"] == "listening" && line["listener"] == name;
        told.then(|| line["address"].as_str().unwrap().parse().unwrap())
    };
    process.line(find).await
}
