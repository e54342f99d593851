//! nginx before a registry: TLS with HTTP/2, and client certificates.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{Process, ca::Ca, ca::Certificate, free_address, poll_until, program};

/// Whether nginx requires a certificate of the CA from its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clients {
    Anyone,
    Verified,
}

/// Runs until it is dropped.
#[derive(Debug)]
pub(crate) struct TlsFront {
    /// As references name it.
    pub(crate) host: String,
    _process: Process,
    folder: TempDir,
}

/// A request as nginx saw it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) protocol: String,
    pub(crate) connection: String,
    /// The serial number of the client certificate.
    pub(crate) client: String,
    pub(crate) status: u16,
}

impl TlsFront {
    /// Before `registry`, a host without TLS, under the name `name` with a certificate of `ca`.
    pub(crate) async fn before(registry: &str, name: &str, ca: &Ca, clients: Clients) -> Self {
        let folder = TempDir::new().unwrap();
        let files = ca.issue_for("front", &[name]);
        let configure = |address: &str| configuration(address, registry, &files, ca, clients);
        let (address, process) = nginx(folder.path(), configure).await;
        let (_, port) = address.rsplit_once(':').unwrap();
        Self {
            host: format!("{name}:{port}"),
            _process: process,
            folder,
        }
    }

    /// The requests of a program, by the beginning of its `User-Agent`.
    pub(crate) fn seen(&self, program: &str) -> Vec<Seen> {
        let log = fs::read_to_string(self.folder.path().join("requests")).unwrap();
        let lines = log.lines().map(|line| line.split('|').collect::<Vec<_>>());
        lines
            .filter(|fields| fields[0].starts_with(program))
            .map(|fields| Seen {
                protocol: fields[1].to_owned(),
                connection: fields[2].to_owned(),
                client: fields[3].to_owned(),
                status: fields[4].parse().unwrap(),
            })
            .collect()
    }
}

/// nginx with the configuration for an address, and that address.
pub(crate) async fn nginx(folder: &Path, configure: impl Fn(&str) -> String) -> (String, Process) {
    for _ in 0..10 {
        let address = free_address();
        fs::write(folder.join("nginx.conf"), configure(&address)).unwrap();
        let mut nginx = Command::new(program("nginx"));
        nginx.arg("-p").arg(folder);
        nginx.args(["-c", "nginx.conf", "-e", "errors"]);
        let mut process = Process::start("nginx", &mut nginx);
        let (up, _) = poll_until("nginx", async || match TcpStream::connect(&address).await {
            Ok(_) => Some(true),
            Err(_) => process.has_ended().then_some(false),
        })
        .await;
        if up {
            return (address, process);
        }
    }
    panic!("no port for nginx");
}

/// One process, so that nothing is left behind when it is killed.
fn configuration(
    address: &str,
    registry: &str,
    files: &Certificate,
    ca: &Ca,
    clients: Clients,
) -> String {
    let (certificate, key) = (files.certificate.display(), files.key.display());
    let clients = match clients {
        Clients::Anyone => String::new(),
        Clients::Verified => format!(
            "ssl_client_certificate {}; ssl_verify_client on;",
            ca.file().display()
        ),
    };
    format!(
        "daemon off; master_process off; pid pid; events {{}}
        http {{
          log_format requests '$http_user_agent|$server_protocol|$connection|$ssl_client_serial|$status';
          access_log requests requests;
          client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
          server {{
            listen {address} ssl http2; client_max_body_size 0;
            ssl_certificate {certificate}; ssl_certificate_key {key}; {clients}
            location / {{
              proxy_pass http://{registry};
              proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto https;
            }}
          }}
        }}"
    )
}
