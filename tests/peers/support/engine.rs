//! Redis or Valkey, and sentinels.

use std::{env, fs, path::PathBuf, process::Command};

use tempfile::TempDir;

use super::{Ca, Process, free_address, program};

/// A running server.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) process: Process,
    folder: TempDir,
    pub(crate) port: u16,
    arguments: Vec<String>,
}

impl Engine {
    /// A server without a password.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(arguments: &[&str]) -> Self {
        let port = free_port();
        let arguments = arguments.iter().map(|&argument| argument.to_owned());
        let port_argument = ["--port".to_owned(), port.to_string()];
        Self::run(port, port_argument.into_iter().chain(arguments).collect()).await
    }

    pub(crate) async fn with_tls(ca: &Ca) -> Self {
        let port = free_port();
        let files = ca.issue("engine");
        let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let arguments = [
            ("--port", "0".to_owned()),
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", path(&files.certificate)),
            ("--tls-key-file", path(&files.key)),
            ("--tls-ca-cert-file", path(&ca.file())),
            ("--tls-auth-clients", "no".to_owned()),
        ];
        let arguments = arguments.map(|(name, value)| [name.to_owned(), value]);
        Self::run(port, arguments.into_iter().flatten().collect()).await
    }

    async fn run(port: u16, arguments: Vec<String>) -> Self {
        let folder = TempDir::new().unwrap();
        let mut process = spawn(&folder, &arguments);
        ready(&mut process).await;
        Self {
            process,
            folder,
            port,
            arguments,
        }
    }

    /// Ends it, and starts it without its data.
    pub(crate) async fn restart_empty(&mut self) {
        self.process.kill();
        self.process = spawn(&self.folder, &self.arguments);
        ready(&mut self.process).await;
    }

    /// Sends a command as an operator does.
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program("redis-cli"));
        command.args(["-p", &self.port.to_string()]).args(arguments);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{arguments:?}: {text}");
        text.trim().to_owned()
    }
}

fn spawn(folder: &TempDir, arguments: &[String]) -> Process {
    let engine = env::var("BUNDLEGATE_TEST_ENGINE");
    let engine = engine.unwrap_or_else(|_| "redis-server".to_owned());
    let mut command = Command::new(program(&engine));
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(folder.path())
        .args(arguments);
    Process::start(&engine, &mut command)
}

async fn ready(process: &mut Process) {
    let is_ready = |line: &str| line.contains("Ready to accept connections").then_some(());
    process.line(is_ready).await;
}

pub(crate) fn free_port() -> u16 {
    let address = free_address();
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// A sentinel that watches a primary, with this password of its own.
pub(crate) async fn sentinel(
    folder: &TempDir,
    primary: &Engine,
    password: Option<&str>,
) -> (Process, u16) {
    let port = free_port();
    let password = password.map_or(String::new(), |text| format!("requirepass {text}\n"));
    let config = format!(
        "port {port}\nbind 127.0.0.1\n{password}sentinel monitor main 127.0.0.1 {} 1\n\
         sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n",
        primary.port
    );
    let file = folder.path().join(format!("sentinel-{port}.conf"));
    fs::write(&file, config).unwrap();
    let mut command = Command::new(program("redis-server"));
    command.arg(&file).arg("--sentinel").current_dir(folder);
    let mut process = Process::start("sentinel", &mut command);
    let is_ready = |line: &str| line.contains("+monitor master main").then_some(());
    process.line(is_ready).await;
    (process, port)
}
