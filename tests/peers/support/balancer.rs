//! A plain load balancer: nginx.

use std::{fs, process::Command};

use tempfile::TempDir;

use super::{Process, TestGateway, free_address, http, poll_until, program};

/// Gives every request to the next replica in turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Balancer {
    pub(crate) url: String,
    _process: Process,
    folder: TempDir,
}

impl Balancer {
    pub(crate) async fn before(replicas: &[&TestGateway]) -> Self {
        let folder = TempDir::new().unwrap();
        for _ in 0..10 {
            let address = free_address();
            fs::write(
                folder.path().join("nginx.conf"),
                configuration(&address, replicas),
            )
            .unwrap();
            let mut nginx = Command::new(program("nginx"));
            nginx
                .arg("-p")
                .arg(folder.path())
                .args(["-c", "nginx.conf", "-e", "errors"]);
            let mut process = Process::start("nginx", &mut nginx);
            let (client, url) = (http(), format!("http://{address}"));
            let (up, _) = poll_until("nginx", async || match client.get(&url).send().await {
                Ok(_) => Some(true),
                Err(_) => process.has_ended().then_some(false),
            })
            .await;
            if up {
                return Self {
                    url,
                    _process: process,
                    folder,
                };
            }
        }
        panic!("no port for nginx");
    }

    /// The status of each answer that requests for `path` got, in order.
    pub(crate) fn answers(&self, path: &str) -> Vec<u16> {
        let log = fs::read_to_string(self.folder.path().join("answers")).unwrap();
        let lines = log.lines().filter_map(|line| line.split_once(' '));
        lines
            .filter(|(asked, _)| *asked == path)
            .map(|(_, status)| status.parse().unwrap())
            .collect()
    }
}

/// One process, so that nothing is left behind when it is killed; connections to replicas
/// are not kept, so that no client stays with one of them.
fn configuration(address: &str, replicas: &[&TestGateway]) -> String {
    let servers: String = replicas
        .iter()
        .map(|gate| {
            format!(
                "server {} fail_timeout=1s;",
                gate.url.strip_prefix("http://").unwrap()
            )
        })
        .collect();
    format!(
        "daemon off; master_process off; pid pid; events {{}}
        http {{
          log_format answers '$uri $status'; access_log answers answers;
          client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
          upstream replicas {{ {servers} }}
          server {{ listen {address}; location / {{ proxy_pass http://replicas; proxy_read_timeout 10m; }} }}
        }}"
    )
}
