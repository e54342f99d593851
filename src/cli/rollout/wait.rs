//! `bundlegate rollout wait`: waits for the end of a roll-out.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Output, answer::Rollout, fetch, view};
use crate::cli::{eprint, one_line, print, print_json};

/// Between two requests.
const INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Arguments of `rollout wait`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    /// The bundle's name in the configuration.
    name: String,
    /// Wait for this version, also if its roll-out has not begun yet: the digest of its manifest, which
    /// `bundlegate push` prints. Without it, the version that is being rolled out.
    #[arg(long, value_name = "DIGEST", value_parser = digest)]
    manifest: Option<String>,
    /// How long to wait, such as 1h; at most 30d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = timeout)]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
}

/// The wait has ended before the roll-out: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::cli) struct Undecided(String);

/// What is waited for, and what is known of it.
#[derive(Debug)]
struct Followed {
    /// The manifest of the version that was asked for, or that was a candidate last.
    manifest: Option<String>,
    /// Whether the operator has asked for this version.
    is_asked_for: bool,
    /// Whether it was a candidate.
    was_candidate: bool,
}

/// How a roll-out stands.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It goes on.
    Open,
    /// The version is stable.
    Promoted,
    /// The version does not become stable by itself, for this reason.
    Stopped(String),
}

pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    let end = Instant::now() + options.timeout;
    let mut followed = Followed {
        manifest: options.manifest.clone(),
        is_asked_for: options.manifest.is_some(),
        was_candidate: false,
    };
    let (mut last_line, mut is_failing) = (String::new(), false);
    loop {
        match fetch(&options.name, &options.output.admin).await {
            Ok(document) => {
                let rollout = Rollout::read(&document).map_err(undecided)?;
                is_failing = false;
                let standing = followed.compare(&rollout);
                if standing != Standing::Open {
                    return options.conclude(&document, &rollout, standing);
                }
                let line = format!("{}: {}", options.name, view::progress(&rollout));
                if without_times(&line) != without_times(&last_line) {
                    eprint(&line);
                    last_line = line;
                }
            }
            Err(error) if last_line.is_empty() => return Err(undecided(error)),
            // A replica that restarts is asked again. One line for each outage.
            Err(error) => {
                if !is_failing {
                    eprint(&one_line(&error));
                }
                is_failing = true;
            }
        }
        if Instant::now() + INTERVAL > end {
            let timeout = humantime::format_duration(options.timeout);
            let message = format!(
                "rollout wait {}: not promoted after {timeout}",
                options.name
            );
            return Err(Undecided(message).into());
        }
        sleep(INTERVAL).await;
    }
}

impl Options {
    /// Prints the end.
    fn conclude(
        &self,
        document: &Value,
        rollout: &Rollout,
        standing: Standing,
    ) -> anyhow::Result<()> {
        if self.output.json {
            print_json(document)?;
        }
        match standing {
            Standing::Stopped(reason) => bail!("rollout wait {}: {reason}", self.name),
            _ if self.output.json => Ok(()),
            _ => {
                let stable = rollout.stable.as_ref();
                let stable = stable.map(|version| version.short()).unwrap_or_default();
                let stable = crate::cli::table::printable(&stable);
                print(&format!("{}: {stable} is stable", self.name))
            }
        }
    }
}

impl Followed {
    /// Compares what is waited for with an answer.
    fn compare(&mut self, rollout: &Rollout) -> Standing {
        let candidate = rollout.candidate.as_ref().map(|version| &*version.manifest);
        let stable = rollout.stable.as_ref().map(|version| &*version.manifest);
        let phase = rollout.phase.as_deref();
        let Some(phase) = phase else {
            return Standing::Open;
        };
        if let (false, Some(candidate)) = (self.is_asked_for, candidate) {
            self.manifest = Some(candidate.to_owned());
        }
        let is_candidate = candidate.is_some() && candidate == self.manifest.as_deref();
        if is_candidate {
            self.was_candidate = true;
            return match phase {
                "paused" => Standing::Stopped(format!("paused: {}", reason(rollout))),
                "rolled_back" => Standing::Stopped(format!("rolled back: {}", reason(rollout))),
                _ => Standing::Open,
            };
        }
        match &self.manifest {
            // Nothing is being rolled out.
            None => Standing::Promoted,
            Some(manifest) if stable == Some(manifest) => Standing::Promoted,
            Some(_) if self.was_candidate => {
                Standing::Stopped(format!("superseded: {}", reason(rollout)))
            }
            Some(_) => Standing::Open,
        }
    }
}

/// The reason of the last transition.
fn reason(rollout: &Rollout) -> String {
    let last = rollout.history.last();
    let reason = last.map(|last| match &last.by {
        Some(by) => format!("{} (by {by})", last.reason),
        None => last.reason.clone(),
    });
    reason.unwrap_or_else(|| "no reason is known".to_owned())
}

fn undecided(error: anyhow::Error) -> anyhow::Error {
    Undecided(one_line(&error)).into()
}

/// A line without the observed time, which changes with each answer.
fn without_times(line: &str) -> String {
    let parts = line.split("; ");
    let parts = parts.filter(|part| !part.starts_with("observed for"));
    parts.collect::<Vec<_>>().join("; ")
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).ok();
    let timeout = timeout.filter(|timeout| *timeout <= MAX_TIMEOUT);
    timeout.ok_or_else(|| "write a time of at most 30d, such as 1h".to_owned())
}

fn digest(text: &str) -> Result<String, String> {
    let digest: Result<crate::oci::Digest, _> = text.parse();
    match digest {
        Ok(digest) => Ok(digest.as_str().to_owned()),
        Err(error) => Err(format!("{error}; write one such as sha256:0123…")),
    }
}
