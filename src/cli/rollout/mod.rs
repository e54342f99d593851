//! `bundlegate rollout`: staged roll-outs of a running gateway.

mod answer;
mod view;
mod wait;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use reqwest::StatusCode;
use serde_json::{Map, Value};

use super::{
    admin_client::{AdminFlags, name_path},
    interruptible, print, print_json,
};
use crate::telemetry;
use answer::Rollout;

pub(super) use wait::Undecided;

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate rollout list                            all bundles that are rolled out in steps
  bundlegate rollout show authz/main                 criteria of the step, checks and history
  bundlegate rollout promote authz/main --reason 'metrics looked at'
  bundlegate rollout promote authz/main --full       all clients at once
  bundlegate rollout abort authz/main --reason INC-7
  bundlegate rollout wait authz/main --manifest sha256:… --timeout 2h

Phases:
  idle         all clients get the stable version
  progressing  the clients of the current step get the candidate; the next step begins by itself once the
               criteria are met
  paused       as progressing, but no further step begins: resume, promote or abort it
  rolled_back  all clients get the stable version, and the candidate is refused until retry

A new version begins a roll-out by itself. The gateway accepts operations from its own machine, and with a
token of its server.admin_token_file from others. Each replica shows and changes the same roll-out.";

/// Arguments of `rollout`.
#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// List the bundles that are rolled out in steps.
    List(Output),
    /// Show a roll-out: versions, criteria, checks and history.
    Show {
        /// The bundle's name in the configuration.
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Begin the next step now, whatever its criteria say; after the last one the candidate is stable.
    ///
    /// This is also the approval of a step with `approve: true`. It resumes a paused roll-out.
    Promote {
        /// Give the candidate to all clients at once, and make it stable.
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Begin no further step. Clients keep what they run.
    Pause(Change),
    /// Continue a paused roll-out.
    Resume(Change),
    /// Send all clients back to the stable version, and refuse the candidate.
    ///
    /// While the state that replicas share does not answer, only the replica that is asked stops offering the
    /// candidate; the command then fails, and has to be repeated or sent to the other replicas as well.
    Abort(Change),
    /// Roll the refused candidate out again, from the first step on.
    Retry(Change),
    /// Wait until the candidate is stable.
    ///
    /// Exits with 0 when it is, with 1 when it was rolled back, superseded or paused, and with 2 when the
    /// time is over or the gateway does not answer. Prints progress on standard error.
    Wait(wait::Options),
}

/// Flags of all subcommands.
#[derive(Debug, Args)]
pub(super) struct Output {
    /// Print JSON: what /rollouts has.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminFlags,
}

/// Flags of operations.
#[derive(Debug, Args)]
pub(super) struct Change {
    /// The bundle's name in the configuration.
    name: String,
    /// Why, for the history; 256 bytes at most are kept.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// The person, for the history.
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true)]
    by: Option<String>,
    /// Change nothing unless the plan has this epoch, which `show` prints.
    #[arg(long, value_name = "N")]
    epoch: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// An operation, as the path and the body have it.
struct Operation {
    word: &'static str,
    is_full: bool,
}

pub(super) async fn run(command: RolloutCommand) -> anyhow::Result<()> {
    interruptible(dispatch(&command)).await?
}

async fn dispatch(command: &RolloutCommand) -> anyhow::Result<()> {
    let (word, change) = match command {
        RolloutCommand::List(options) => return list(options).await,
        RolloutCommand::Show {
            name,
            output: options,
        } => return show(name, options).await,
        RolloutCommand::Wait(options) => return wait::run(options).await,
        RolloutCommand::Promote { change, .. } => ("promote", change),
        RolloutCommand::Pause(change) => ("pause", change),
        RolloutCommand::Resume(change) => ("resume", change),
        RolloutCommand::Abort(change) => ("abort", change),
        RolloutCommand::Retry(change) => ("retry", change),
    };
    let is_full = matches!(command, RolloutCommand::Promote { full: true, .. });
    operate(&Operation { word, is_full }, change).await
}

async fn list(options: &Output) -> anyhow::Result<()> {
    let document = options.admin.get("/rollouts").await;
    let document = document.context("rollout list")?;
    let rollouts = answer::read_all(&document)?;
    if options.json {
        return print_json(&document);
    }
    match rollouts.is_empty() {
        true => print("no bundle is rolled out in steps: none has the key `rollout`"),
        false => print(&view::list(&rollouts, telemetry::now())),
    }
}

async fn show(name: &str, options: &Output) -> anyhow::Result<()> {
    let document = fetch(name, &options.admin).await?;
    let rollout = Rollout::read(&document)?;
    match options.json {
        true => print_json(&document),
        false => print(&view::details(&rollout, telemetry::now())),
    }
}

async fn operate(operation: &Operation, change: &Change) -> anyhow::Result<()> {
    let Change { name, output, .. } = change;
    let (word, path) = (operation.word, name_path(name));
    let what = || format!("rollout {word} {name}");
    let path = format!("/rollouts/{path}/{word}");
    let body = change.body(operation.is_full);
    let (status, answer) = output.admin.post(&path, &body).await.with_context(what)?;
    if status == StatusCode::ACCEPTED {
        let message = answer.get("message").and_then(Value::as_str);
        bail!("{}: {}", what(), message.unwrap_or("not done yet"));
    }
    let rollout = Rollout::read(&answer)?;
    match output.json {
        true => print_json(&answer),
        false => print(&format!("{name}: {}", view::summary(&rollout))),
    }
}

/// The document of one roll-out.
async fn fetch(name: &str, admin: &AdminFlags) -> anyhow::Result<Value> {
    let path = format!("/rollouts/{}", name_path(name));
    let document = admin.get(&path).await;
    document.with_context(|| format!("rollout {name}"))
}

impl Change {
    fn body(&self, is_full: bool) -> Value {
        let mut body = Map::new();
        let texts = [("reason", &self.reason), ("by", &self.by)];
        for (key, text) in texts {
            if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
                body.insert(key.to_owned(), text.clone().into());
            }
        }
        if let Some(epoch) = self.epoch {
            body.insert("epoch".to_owned(), epoch.into());
        }
        if is_full {
            body.insert("full".to_owned(), true.into());
        }
        body.into()
    }
}
