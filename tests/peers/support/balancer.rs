//! Plain load balancers: nginx and haproxy.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use super::{Process, TestGateway, free_address, http, poll_until, program};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BalancerKind {
    /// It notices that a replica is gone when it connects to it.
    Nginx,
    /// It asks `/readyz`.
    Haproxy,
}

/// Gives every request to the next replica in turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Balancer {
    pub(crate) url: String,
    kind: BalancerKind,
    process: Process,
    folder: TempDir,
}

impl Balancer {
    /// nginx.
    pub(crate) async fn before(replicas: &[&TestGateway]) -> Self {
        Self::start(BalancerKind::Nginx, replicas).await
    }

    pub(crate) async fn start(kind: BalancerKind, replicas: &[&TestGateway]) -> Self {
        let folder = TempDir::new().unwrap();
        for _ in 0..10 {
            let address = free_address();
            let mut command = kind.command(folder.path(), &address, replicas);
            let mut process = Process::start("the balancer", &mut command);
            let (client, url) = (http(), format!("http://{address}"));
            let (up, _) = poll_until("the balancer", async || {
                match client.get(&url).send().await {
                    Ok(_) => Some(true),
                    Err(_) => process.has_ended().then_some(false),
                }
            })
            .await;
            if up {
                return Self {
                    url,
                    kind,
                    process,
                    folder,
                };
            }
        }
        panic!("no port for {kind:?}");
    }

    /// The status of each answer that requests for `path` got, in order.
    pub(crate) fn answers(&self, path: &str) -> Vec<u16> {
        let log = match self.kind {
            BalancerKind::Nginx => fs::read_to_string(self.folder.path().join("answers")).unwrap(),
            BalancerKind::Haproxy => self.process.log(),
        };
        let lines = log.lines().filter_map(|line| line.split_once(' '));
        lines
            .filter(|(asked, _)| *asked == path)
            .map(|(_, status)| status.parse().unwrap())
            .collect()
    }
}

impl BalancerKind {
    fn command(self, folder: &Path, address: &str, replicas: &[&TestGateway]) -> Command {
        let file = folder.join("configuration");
        match self {
            Self::Nginx => {
                fs::write(&file, nginx(address, replicas)).unwrap();
                let mut command = Command::new(program("nginx"));
                command.arg("-p").arg(folder);
                command.args(["-c", "configuration", "-e", "errors"]);
                command
            }
            Self::Haproxy => {
                fs::write(&file, haproxy(address, replicas)).unwrap();
                let mut command = Command::new(program("haproxy"));
                command.arg("-db").arg("-f").arg(file);
                command
            }
        }
    }
}

/// One process, so that nothing is left behind when it is killed; connections to replicas
/// are not kept, so that no client stays with one of them. No replica is left out after a failure
/// (`max_fails`): nginx would include it again only once a request to it is complete, and a long
/// poll takes minutes.
fn nginx(address: &str, replicas: &[&TestGateway]) -> String {
    let servers: String = replicas
        .iter()
        .map(|gate| format!("server {} max_fails=0;", gate.data))
        .collect();
    format!(
        "daemon off; master_process off; pid pid; events {{ worker_connections 8192; }}
        http {{
          log_format answers '$uri $status'; access_log answers answers;
          client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
          upstream replicas {{ {servers} }}
          server {{ listen {address}; location / {{ proxy_pass http://replicas; proxy_read_timeout 10m; }} }}
        }}"
    )
}

/// A replica gets no further request once it says that it is not ready; one that its connection
/// does not reach any more goes to another replica.
fn haproxy(address: &str, replicas: &[&TestGateway]) -> String {
    let servers: String = replicas
        .iter()
        .enumerate()
        .map(|(number, gate)| {
            format!(
                "  server replica{number} {} check addr {} port {}\n",
                gate.data,
                gate.admin.ip(),
                gate.admin.port()
            )
        })
        .collect();
    format!(
        "global
  log stdout format raw local0
defaults
  mode http
  log global
  log-format \"%HP %ST\"
  timeout connect 2s
  timeout client 10m
  timeout server 10m
  option redispatch 1
  retry-on conn-failure empty-response
frontend clients
  bind {address}
  default_backend replicas
backend replicas
  option httpchk GET /readyz
  default-server inter 200ms fall 1 rise 1 init-addr last,libc,none
{servers}"
    )
}
