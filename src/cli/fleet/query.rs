//! Which clients are asked for, and their pages.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};
use url::form_urlencoded::Serializer;

use super::{State, answer::ClientBundle};
use crate::cli::admin_client::AdminFlags;

/// The clients to ask for.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    pub(super) bundle: Option<String>,
    /// The states, any of them; all if it is empty.
    pub(super) states: Vec<State>,
    /// A part of the name or address.
    pub(super) text: Option<String>,
    /// The most clients.
    pub(super) limit: usize,
}

/// Clients in one answer.
const PAGE: usize = 1000;

impl Query {
    /// The answer to this query, with the clients of all its pages up to the limit, ordered by ID.
    ///
    /// # Errors
    /// When the gateway does not answer, or with an error.
    pub(super) async fn fetch(&self, admin: &AdminFlags) -> anyhow::Result<Value> {
        let states: Vec<_> = match self.states.is_empty() {
            true => vec![None],
            false => self.states.iter().copied().map(Some).collect(),
        };
        let mut found = Found::default();
        for state in states {
            let mut after = None;
            loop {
                let page = PAGE.min(self.limit.saturating_sub(found.clients.len()));
                if page == 0 {
                    found.has_more = true;
                    break;
                }
                let path = self.path(state, page, after.as_deref());
                let answer = admin.get(&path).await.context("fleet")?;
                let before = after.take();
                after = found.add(answer)?;
                // Pages are ordered by ID: a gateway that repeats one does not hold the command.
                if after <= before {
                    break;
                }
            }
        }
        Ok(found.document())
    }

    /// Whether a bundle of a listed client is one that was asked for.
    pub(super) fn includes(&self, name: &str, bundle: &ClientBundle) -> bool {
        let is_named = self.bundle.as_ref().is_none_or(|wanted| wanted == name);
        let has_state = |state: &State| state.word() == bundle.state;
        is_named && (self.states.is_empty() || self.states.iter().any(has_state))
    }

    /// The request of one page.
    fn path(&self, state: Option<State>, limit: usize, after: Option<&str>) -> String {
        let path = "/fleet?".to_owned();
        let begin = path.len();
        let mut query = Serializer::for_suffix(path, begin);
        if let Some(bundle) = &self.bundle {
            query.append_pair("bundle", bundle);
        }
        if let Some(state) = state {
            query.append_pair("state", state.word());
        }
        if let Some(text) = &self.text {
            query.append_pair("search", text);
        }
        query.append_pair("limit", &limit.to_string());
        if let Some(after) = after {
            query.append_pair("after", after);
        }
        query.finish()
    }
}

/// The pages so far.
#[derive(Debug, Default)]
struct Found {
    /// The latest answer without its clients.
    answer: Map<String, Value>,
    /// By ID: a client that has two states for two bundles is in two answers.
    clients: BTreeMap<String, Value>,
    has_more: bool,
}

impl Found {
    /// Adds a page, and returns the ID after which the next one begins.
    fn add(&mut self, answer: Value) -> anyhow::Result<Option<String>> {
        let Value::Object(mut answer) = answer else {
            bail!("fleet: the answer is not one of bundlegate; check --admin");
        };
        let clients = match answer.remove("clients") {
            Some(Value::Array(clients)) => clients,
            _ => Vec::new(),
        };
        let next = answer.remove("next");
        self.answer = answer;
        let is_empty = clients.is_empty();
        for client in clients {
            let id = client.get("id").and_then(Value::as_str).unwrap_or_default();
            let id = id.to_owned();
            match self.clients.get_mut(&id) {
                Some(known) => merge(known, client),
                None => drop(self.clients.insert(id, client)),
            }
        }
        let next = next.as_ref().and_then(Value::as_str).map(str::to_owned);
        // A page without clients is the last one, whatever it says.
        Ok(next.filter(|_| !is_empty))
    }

    fn document(self) -> Value {
        let last = self.clients.last_key_value().map(|(id, _)| id.clone());
        let next = last.filter(|_| self.has_more);
        let mut document = self.answer;
        let clients = self.clients.into_values().collect();
        document.insert("clients".to_owned(), Value::Array(clients));
        document.insert("next".to_owned(), next.map_or(Value::Null, Value::String));
        Value::Object(document)
    }
}

/// Adds the bundles of another answer about a client.
fn merge(known: &mut Value, other: Value) {
    let Some(bundles) = known.get_mut("bundles").and_then(Value::as_object_mut) else {
        return;
    };
    if let Value::Object(mut other) = other
        && let Some(Value::Object(others)) = other.remove("bundles")
    {
        bundles.extend(others);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_value_of_a_request_is_escaped() {
        let query = Query {
            bundle: Some("a/b".to_owned()),
            states: Vec::new(),
            text: Some("x&y=ü".to_owned()),
            limit: 1,
        };
        assert_eq!(
            query.path(Some(State::Failing), 7, Some("0a")),
            "/fleet?bundle=a%2Fb&state=failing&search=x%26y%3D%C3%BC&limit=7&after=0a"
        );
        let all = Query {
            bundle: None,
            text: None,
            ..query
        };
        assert_eq!(all.path(None, 1000, None), "/fleet?limit=1000");
    }

    #[test]
    fn pages_and_states_become_one_answer() {
        let mut found = Found::default();
        let page = |id: &str, bundle: &str, next: Value| {
            json!({
                "scope": "replica", "bundles": {}, "next": next,
                "clients": [{ "id": id, "bundles": { bundle: { "state": "x" } } }],
            })
        };
        assert_eq!(
            found.add(page("b", "one", json!("b"))).unwrap().as_deref(),
            Some("b")
        );
        assert_eq!(found.add(page("a", "one", Value::Null)).unwrap(), None);
        assert_eq!(found.add(page("b", "two", Value::Null)).unwrap(), None);
        // A gateway that names a next page without end does not hold the command.
        let endless = json!({ "bundles": {}, "clients": [], "next": "b" });
        assert_eq!(found.add(endless).unwrap(), None);
        let document = found.document();
        let ids: Vec<_> = document["clients"]
            .as_array()
            .unwrap()
            .iter()
            .map(|client| &client["id"])
            .collect();
        assert_eq!(ids, ["a", "b"]);
        let bundles: Vec<_> = document["clients"][1]["bundles"]
            .as_object()
            .unwrap()
            .keys()
            .collect();
        assert_eq!(bundles, ["one", "two"]);
        assert_eq!(document["next"], Value::Null);
        assert!(Found::default().add(json!([])).is_err());
    }
}
