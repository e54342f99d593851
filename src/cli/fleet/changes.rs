//! The changes of clients between two answers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    answer::{ABSENT, Client, ClientBundle, Fleet, Version},
    query::Query,
};
use crate::cli::table;

/// Compares each answer with what was known before it.
#[derive(Debug)]
pub(super) struct Observer {
    known: BTreeMap<Key, Observed>,
    /// With states, a client that is not listed any more has left them. Otherwise it keeps what is known
    /// of it: a gateway that restarts knows no client until each has asked again.
    query: Query,
}

/// A client's ID and a bundle's name.
type Key = (String, String);

/// What is compared, and the client's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Observed {
    #[serde(skip)]
    label: String,
    state: String,
    runs: Option<Version>,
    error: Option<String>,
}

/// A change of one client and bundle.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    at: String,
    id: String,
    client: String,
    bundle: String,
    /// `null` if the client was not listed.
    from: Option<Observed>,
    /// `null` if the client is not listed any more.
    to: Option<Observed>,
}

/// Pairs of clients and bundles that are remembered; beyond it, those that are not listed are forgotten.
const MAX_KNOWN: usize = 2_000_000;

impl Observer {
    /// Begins with this answer.
    pub(super) fn new(fleet: &Fleet, query: Query) -> Self {
        Self {
            known: observed(fleet, &query).collect(),
            query,
        }
    }

    /// The changes since the answer before, ordered by client and bundle.
    pub(super) fn update(&mut self, fleet: &Fleet) -> Vec<Change> {
        let latest: BTreeMap<_, _> = observed(fleet, &self.query).collect();
        let mut changes = Vec::new();
        for (key, to) in &latest {
            let from = self.known.insert(key.clone(), to.clone());
            if from.as_ref().is_none_or(|from| !from.is_same(to)) {
                changes.push(Change::new(fleet, key, from, Some(to.clone())));
            }
        }
        // Of a list that was cut off, a client may be missing without a change.
        if !self.query.states.is_empty() && fleet.next.is_none() {
            let gone = self
                .known
                .extract_if(.., |key, _| !latest.contains_key(key));
            changes.extend(gone.map(|(key, from)| Change::new(fleet, &key, Some(from), None)));
        } else if self.known.len() > MAX_KNOWN {
            self.known.retain(|key, _| latest.contains_key(key));
        }
        changes
    }
}

impl Observed {
    fn new(client: &Client, bundle: &ClientBundle) -> Self {
        let reason = bundle.reason();
        Self {
            label: client.label(),
            state: bundle.state.clone(),
            runs: bundle.runs.clone(),
            error: (reason != ABSENT).then_some(reason),
        }
    }

    /// Whether state and version are the same.
    fn is_same(&self, other: &Self) -> bool {
        self.state == other.state && self.runs == other.runs
    }

    /// State, version and error as text.
    fn text(&self) -> String {
        let runs = self.runs.as_ref().map(Version::short);
        let state = match runs {
            Some(runs) => format!("{} {runs}", self.state),
            None => self.state.clone(),
        };
        match &self.error {
            Some(error) => format!("{state}: {error}"),
            None => state,
        }
    }
}

impl Change {
    fn new(fleet: &Fleet, key: &Key, from: Option<Observed>, to: Option<Observed>) -> Self {
        let (id, bundle) = key.clone();
        let label = to
            .as_ref()
            .or(from.as_ref())
            .map(|known| known.label.clone());
        Self {
            at: fleet.at.clone(),
            client: label.unwrap_or_else(|| id.clone()),
            id,
            bundle,
            from,
            to,
        }
    }

    /// The change as one line.
    ///
    /// # Errors
    /// When it can't be written as JSON, which does not happen.
    pub(super) fn render(&self, is_json: bool) -> anyhow::Result<String> {
        if is_json {
            return Ok(table::printable_json(&serde_json::to_string(self)?));
        }
        let text = |side: &Option<Observed>| {
            let text = side.as_ref().map(Observed::text);
            text.unwrap_or_else(|| ABSENT.to_owned())
        };
        let Self {
            at, client, bundle, ..
        } = self;
        // The error that has ended is of no interest any more.
        let from = self.from.clone().map(|from| Observed {
            error: None,
            ..from
        });
        let (from, to) = (text(&from), text(&self.to));
        Ok(table::printable(&format!(
            "{at}  {client}  {bundle}  {from} → {to}"
        )))
    }
}

fn observed(fleet: &Fleet, query: &Query) -> impl Iterator<Item = (Key, Observed)> {
    fleet.clients.iter().flat_map(|client| {
        let bundles = client.bundles.iter();
        let bundles = bundles.filter(|(name, bundle)| query.includes(name, bundle));
        bundles.map(|(name, bundle)| {
            let key = (client.id.clone(), name.clone());
            (key, Observed::new(client, bundle))
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::State, *};

    fn fleet(clients: &[(&str, &str, &str)], next: Value) -> Fleet {
        let clients: Vec<_> = clients
            .iter()
            .map(|(id, state, revision)| {
                json!({ "id": id, "name": format!("opa-{id}"), "bundles": { "a": {
                    "state": state, "runs": { "etag": "x", "revision": revision },
                    "error": (*state == "failing").then(|| json!({ "message": "a.rego:3: x\u{1b}" })),
                } } })
            })
            .collect();
        let document = json!({
            "at": "2026-11-30T06:00:00.000Z", "bundles": {}, "clients": clients, "next": next,
        });
        Fleet::read(&document).unwrap()
    }

    fn failing() -> Query {
        Query {
            states: vec![State::Failing],
            ..Query::default()
        }
    }

    fn lines(changes: &[Change]) -> Vec<String> {
        let lines = changes.iter().map(|change| change.render(false).unwrap());
        let lines = lines.map(|line| line.split_once("  ").unwrap().1.to_owned());
        lines.collect()
    }

    #[test]
    fn a_line_has_what_a_client_ran_and_what_it_runs() {
        let all = |clients: &[(&str, &str, &str)]| fleet(clients, Value::Null);
        let mut observer = Observer::new(
            &all(&[("1", "current", "r1"), ("2", "current", "r1")]),
            Query::default(),
        );
        let mut update = |clients: &[(&str, &str, &str)]| lines(&observer.update(&all(clients)));
        assert_eq!(
            update(&[("1", "current", "r1"), ("2", "current", "r1")]),
            [""; 0]
        );
        assert_eq!(
            update(&[
                ("1", "failing", "r1"),
                ("2", "current", "r2"),
                ("3", "none", "")
            ]),
            [
                "opa-1  a  current r1 → failing r1: a.rego:3: x\\u{1b}",
                "opa-2  a  current r1 → current r2",
                "opa-3  a  - → none unknown x",
            ]
        );
        // A gateway that was restarted.
        assert_eq!(update(&[]), [""; 0]);
        assert_eq!(
            update(&[("1", "current", "r2"), ("2", "current", "r2")]),
            ["opa-1  a  failing r1 → current r2"]
        );
    }

    #[test]
    fn a_client_that_leaves_the_listed_states_has_a_line_unless_the_list_was_cut_off() {
        let mut observer = Observer::new(&fleet(&[("1", "failing", "r1")], Value::Null), failing());
        assert!(observer.update(&fleet(&[], json!("1"))).is_empty());
        let gone = observer.update(&fleet(&[], Value::Null));
        assert_eq!(lines(&gone), ["opa-1  a  failing r1 → -"]);
        assert!(observer.update(&fleet(&[], Value::Null)).is_empty());
    }

    #[test]
    fn a_change_is_one_line_of_json() {
        let mut observer = Observer::new(&fleet(&[], Value::Null), failing());
        let changes = observer.update(&fleet(&[("1", "failing", "r1")], Value::Null));
        let line = changes[0].render(true).unwrap();
        assert!(!line.contains(['\n', '\u{1b}']), "{line}");
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({
                "at": "2026-11-30T06:00:00.000Z", "id": "1", "client": "opa-1", "bundle": "a", "from": null,
                "to": {
                    "state": "failing", "error": "a.rego:3: x\u{1b}",
                    "runs": { "etag": "x", "manifest": null, "revision": "r1" },
                },
            })
        );
    }
}
