//! A real Prometheus.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use reqwest::Url;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Process, http, program};

/// Runs on loopback until it is dropped.
#[derive(Debug)]
pub(crate) struct Prometheus {
    pub(crate) address: String,
    url: String,
    process: Process,
    http: reqwest::Client,
    _folder: TempDir,
}

impl Prometheus {
    /// Scrapes these admin listeners every second, as the job `bundlegate`, and evaluates the rules
    /// of the files as often.
    pub(crate) async fn scraping(targets: &[SocketAddr], rule_files: &[&Path]) -> Self {
        let folder = TempDir::new().unwrap();
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": rule_files,
            "scrape_configs": [{
                "job_name": "bundlegate", "static_configs": [{ "targets": targets }],
            }],
        });
        fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
        Self::start(folder, &config, &[]).await
    }

    /// Serves the blocks in the folder `data` of `folder`, if there are any, and scrapes nothing.
    pub(crate) async fn serving(folder: TempDir, arguments: &[&str]) -> Self {
        Self::start(folder, &json!({}), arguments).await
    }

    async fn start(folder: TempDir, config: &Value, arguments: &[&str]) -> Self {
        fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
        let mut command = Command::new(program("prometheus"));
        command.current_dir(folder.path()).args(arguments).args([
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            "--web.listen-address=127.0.0.1:0",
            "--log.format=json",
        ]);
        let mut process = Process::start("prometheus", &mut command);
        let address = process
            .line(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                // Port 0 stands in an earlier line, the real one in that of the web toolkit.
                line["address"]
                    .as_str()
                    .filter(|address| !address.ends_with(":0"))
                    .map(str::to_owned)
            })
            .await;
        let ready = "Server is ready to receive web requests.";
        process
            .line(|line| line.contains(ready).then_some(()))
            .await;
        Self {
            url: format!("http://{address}"),
            address,
            process,
            http: http(),
            _folder: folder,
        }
    }

    /// The data of a GET of its HTTP API, or the error.
    pub(crate) async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, String> {
        let url = format!("{}/api/v1/{path}", self.url);
        let url = Url::parse_with_params(&url, query).unwrap();
        let response = self.http.get(url).send().await;
        let body = response.map_err(|error| error.to_string())?.bytes().await;
        let body = body.map_err(|error| error.to_string())?;
        let mut body: Value = serde_json::from_slice(&body)
            .map_err(|_| String::from_utf8_lossy(&body).into_owned())?;
        match body["status"].as_str() {
            Some("success") => Ok(body["data"].take()),
            _ => Err(body["error"].to_string()),
        }
    }

    /// The values of the samples that an instant query gives, as Prometheus prints them.
    pub(crate) async fn samples(&self, expression: &str) -> Result<Vec<String>, String> {
        let data = self.get("query", &[("query", expression)]).await?;
        let samples = data["result"].as_array().into_iter().flatten();
        let value = |sample: &Value| sample["value"][1].as_str().unwrap().to_owned();
        Ok(samples.map(value).collect())
    }

    /// Sends a signal by its name, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }
}
