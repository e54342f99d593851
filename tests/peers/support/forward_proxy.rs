//! A real forward proxy: tinyproxy.

use std::{fs, process::Command};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{Process, free_address, poll_until, program};

/// Runs on loopback until it is dropped; only for one user.
#[derive(Debug)]
pub(crate) struct ForwardProxy {
    /// `127.0.0.1:PORT`
    pub(crate) address: String,
    _process: Process,
    folder: TempDir,
}

impl ForwardProxy {
    pub(crate) async fn start(username: &str, password: &str) -> Self {
        let folder = TempDir::new().unwrap();
        for _ in 0..10 {
            let address = free_address();
            let (_, port) = address.rsplit_once(':').unwrap();
            let log = folder.path().join("log");
            let text = format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nLogLevel Connect\n\
                 LogFile \"{}\"\nBasicAuth {username} {password}\n",
                log.display()
            );
            fs::write(folder.path().join("tinyproxy.conf"), text).unwrap();
            let mut tinyproxy = Command::new(program("tinyproxy"));
            tinyproxy
                .args(["-d", "-c"])
                .arg(folder.path().join("tinyproxy.conf"));
            let mut process = Process::start("tinyproxy", &mut tinyproxy);
            let (up, _) = poll_until("tinyproxy", async || {
                match TcpStream::connect(&address).await {
                    Ok(_) => Some(true),
                    Err(_) => process.has_ended().then_some(false),
                }
            })
            .await;
            if up {
                return Self {
                    address,
                    _process: process,
                    folder,
                };
            }
        }
        panic!("no port for tinyproxy");
    }

    /// The number of tunnels to `host` so far.
    pub(crate) fn tunnels(&self, host: &str) -> usize {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
        log.matches(&format!("CONNECT {host} ")).count()
    }
}
