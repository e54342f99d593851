//! `bundlegate fleet`: which client of a running gateway runs which version.

mod answer;
mod changes;
mod query;
mod view;

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use tokio::time::sleep;

use super::{
    admin_client::AdminFlags, eprint, interruptible, one_line, print, print_json, try_print,
};
use crate::telemetry;
use answer::Fleet;
use changes::Observer;
use query::Query;

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate fleet                                   bundles, and the clients that need attention
  bundlegate fleet authz/main                        the clients of a bundle
  bundlegate fleet authz/main --state failing --state behind
  bundlegate fleet --client opa-eu --limit 1000      clients by a part of their name or address
  bundlegate fleet authz/main --follow               each change, while a version rolls out

States, the first that holds:
  failing   the client reported an error, or refused the version that it was offered
  silent    it was not seen for three of its poll intervals, and for ten minutes at least
  none      it asks without a version, so it runs none
  current   it runs the version that is served
  behind    it has run another version for more than ten minutes
  changing  it has run another version for a shorter time

A client has the name that it sends in the header of `fleet.identity`, or else its address.";

/// Between two requests with `--follow`.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);
/// Clients that are listed without `--limit`.
const DEFAULT_LIMIT: usize = 100;
/// Clients that are followed without `--limit`.
const DEFAULT_FOLLOWED: usize = 10_000;
const MAX_LIMIT: u64 = 1_000_000;
/// Below the bundles, clients that need attention are listed if there are at most this many.
const FEW: u64 = 10;

/// Arguments of `fleet`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The bundle's name in the configuration: lists its clients.
    #[arg(value_name = "BUNDLE")]
    bundle: Option<String>,
    /// List the clients in this state; may be repeated.
    #[arg(long, value_name = "STATE", value_enum)]
    state: Vec<State>,
    /// List the clients with this text in their name or address.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    client: Option<String>,
    /// The most clients: 100, or 10000 with --follow, if it is absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_LIMIT))]
    limit: Option<u64>,
    /// Ask every second, and print a line for each change of a client, until Ctrl-C. `-` stands for a
    /// client that is not listed, such as one that has left the state of --state.
    #[arg(long)]
    follow: bool,
    /// Print JSON: what /fleet has; with --follow, an object for each change, one a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminFlags,
}

/// The state of a client for a bundle, in the order of their urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum State {
    Failing,
    Behind,
    Silent,
    None,
    Changing,
    Candidate,
    Current,
}

impl State {
    /// The states that the short list below the bundles has.
    const ATTENTION: [Self; 3] = [Self::Failing, Self::Behind, Self::Silent];

    /// The word in answers and requests.
    fn word(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Behind => "behind",
            Self::Silent => "silent",
            Self::None => "none",
            Self::Changing => "changing",
            Self::Candidate => "candidate",
            Self::Current => "current",
        }
    }
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    match options.follow {
        true => interruptible(follow(&options)).await?,
        false => interruptible(show(&options)).await?,
    }
}

/// Prints the fleet once.
async fn show(options: &Options) -> anyhow::Result<()> {
    if !options.lists_clients() {
        return show_bundles(options).await;
    }
    let query = options.query(DEFAULT_LIMIT);
    let document = query.fetch(&options.admin).await?;
    let fleet = Fleet::read(&document)?;
    options.check_bundle(&fleet)?;
    note_scope(&fleet);
    if options.json {
        return print_json(&document);
    }
    print(&view::clients(&fleet, &query, telemetry::now()))?;
    if let Some(more) = view::more(&fleet, &query) {
        eprint(&more);
    }
    Ok(())
}

async fn show_bundles(options: &Options) -> anyhow::Result<()> {
    let document = options.admin.get("/fleet").await.context("fleet")?;
    let fleet = Fleet::read(&document)?;
    note_scope(&fleet);
    if options.json {
        return print_json(&document);
    }
    let bundles = view::bundles(&fleet);
    let count = fleet.count(&State::ATTENTION);
    if !(1..=FEW).contains(&count) {
        return print(&bundles);
    }
    let query = Query {
        bundle: None,
        states: State::ATTENTION.to_vec(),
        text: None,
        limit: 2 * usize::try_from(FEW)?,
    };
    let attention = Fleet::read(&query.fetch(&options.admin).await?)?;
    let clients = view::clients(&attention, &query, telemetry::now());
    print(&format!("{bundles}\n\n{clients}"))
}

/// Prints changes until the program is interrupted, or its output is closed.
async fn follow(options: &Options) -> anyhow::Result<()> {
    let query = options.query(DEFAULT_FOLLOWED);
    let mut observer: Option<Observer> = None;
    let mut is_failing = false;
    loop {
        match query
            .fetch(&options.admin)
            .await
            .and_then(|document| Fleet::read(&document))
        {
            Ok(fleet) => {
                is_failing = false;
                let Some(observer) = &mut observer else {
                    begin(options, &fleet)?;
                    observer = Some(Observer::new(&fleet, query.clone()));
                    sleep(FOLLOW_INTERVAL).await;
                    continue;
                };
                for change in observer.update(&fleet) {
                    if !try_print(&change.render(options.json)?)? {
                        return Ok(());
                    }
                }
            }
            Err(error) if observer.is_none() => return Err(error),
            // A replica that restarts is followed again. One line for each outage.
            Err(error) => {
                if !is_failing {
                    eprint(&one_line(&error));
                }
                is_failing = true;
            }
        }
        sleep(FOLLOW_INTERVAL).await;
    }
}

/// Says what is followed.
fn begin(options: &Options, fleet: &Fleet) -> anyhow::Result<()> {
    options.check_bundle(fleet)?;
    note_scope(fleet);
    let count = fleet.clients.len();
    eprint(&match fleet.next {
        Some(_) => format!("following {count} clients of more; raise --limit for the others"),
        None => format!("following {count} clients; Ctrl-C ends it"),
    });
    Ok(())
}

/// Says that other replicas may see other clients.
fn note_scope(fleet: &Fleet) {
    if fleet.scope == "replica" {
        eprint("this is what one replica has seen; other replicas may see other clients");
    }
}

impl Options {
    /// Whether the output has clients instead of bundles.
    fn lists_clients(&self) -> bool {
        self.bundle.is_some()
            || !self.state.is_empty()
            || self.client.is_some()
            || self.limit.is_some()
    }

    fn query(&self, limit: usize) -> Query {
        let mut states = self.state.clone();
        states.sort_unstable();
        states.dedup();
        Query {
            bundle: self.bundle.clone(),
            states,
            text: self.client.clone(),
            limit: self
                .limit
                .map_or(limit, |limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        }
    }

    /// Fails if the bundle is not one of the gateway.
    fn check_bundle(&self, fleet: &Fleet) -> anyhow::Result<()> {
        match &self.bundle {
            Some(name) if !fleet.bundles.contains_key(name) => {
                let names: Vec<_> = fleet.bundles.keys().map(String::as_str).collect();
                match names.is_empty() {
                    true => bail!("fleet: no bundle {name}"),
                    false => bail!("fleet: no bundle {name}; there are: {}", names.join(", ")),
                }
            }
            _ => Ok(()),
        }
    }
}
