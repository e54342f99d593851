//! `GET /fleet` of the admin API: which client runs which version.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hyper::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::{runtime, sync::Semaphore, time::sleep};
use url::form_urlencoded;

use super::{
    Catalog, Entry,
    fleet_selection::{Selection, unknown_parameter},
    response,
    response_body::ResponseBody,
    status::milliseconds,
};
use crate::{
    fleet::{
        BundleCounts, BundleView, ClientKey, ClientState, ClientView, Expected, Fleet, Millis,
        OpaInstance, TagHash, Version,
    },
    telemetry,
};

/// The path.
pub(super) const PATH: &str = "/fleet";
/// Clients that are listed at once.
const MAX_LIMIT: usize = 1000;
const DEFAULT_LIMIT: usize = 100;
/// Documents that are made at a time: each reads the whole table.
const MAX_RENDERINGS: usize = 1;
/// How often clients are removed that were not seen for long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The fleet view of the admin API. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct FleetApi {
    fleet: Option<Fleet>,
    catalog: Catalog,
    background: runtime::Handle,
    renderings: Arc<Semaphore>,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Query {
    selection: Selection,
    after: Option<ClientKey>,
    limit: usize,
    /// Whether clients are listed: the query has a parameter.
    lists_clients: bool,
}

impl FleetApi {
    pub(super) fn new(fleet: Option<Fleet>, catalog: Catalog, background: runtime::Handle) -> Self {
        Self {
            fleet,
            catalog,
            background,
            renderings: Arc::new(Semaphore::new(MAX_RENDERINGS)),
        }
    }

    /// Answers `GET /fleet`.
    pub(super) async fn get(&self, query: Option<&str>) -> Response<ResponseBody> {
        let Some(fleet) = self.fleet.clone() else {
            let message = "clients are not recorded: `fleet.enabled` is false in the configuration";
            return response::error(StatusCode::NOT_FOUND, "not_found", message, None);
        };
        let query = match Query::parse(query.unwrap_or_default()) {
            Ok(query) => query,
            Err(message) => {
                let status = StatusCode::BAD_REQUEST;
                return response::error(status, "bad_request", &message, None);
            }
        };
        let catalog = self.catalog.clone();
        match self.read(move || document(&fleet, &catalog, &query)).await {
            Some(document) => response::json(StatusCode::OK, &document),
            None => failed(),
        }
    }

    /// The result of `read`, which may read the whole table: a million entries take long, and must not
    /// delay bundle requests. `None` if it panics or the runtime shuts down. Cancel-safe: a reading that
    /// has begun is finished, and no other begins meanwhile.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let permit = Arc::clone(&self.renderings).acquire_owned().await.ok()?;
        let reading = self.background.spawn_blocking(move || {
            let _permit = permit;
            read()
        });
        reading.await.ok()
    }

    /// Removes clients that were not seen for long, and bundles that are not configured, until the
    /// future is dropped.
    pub(super) async fn sweep(&self) {
        let Some(fleet) = self.fleet.clone() else {
            return std::future::pending().await;
        };
        loop {
            sleep(SWEEP_INTERVAL).await;
            let (table, catalog) = (fleet.table.clone(), self.catalog.clone());
            let sweep = move || {
                table.sweep(|name| catalog.get(name).is_some(), telemetry::now_millis());
            };
            // It can fail only while the runtime shuts down.
            let _ = self.background.spawn_blocking(sweep).await;
        }
    }
}

fn failed() -> Response<ResponseBody> {
    let message = "reading the clients failed; please report this";
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    response::error(status, "internal", message, None)
}

/// What clients of each bundle are expected to run, by name.
pub(super) fn expected(catalog: &Catalog) -> HashMap<Arc<str>, Expected> {
    let entries = catalog.entries();
    let entries = entries.iter();
    entries
        .map(|entry| (entry.name().into(), expected_of(entry)))
        .collect()
}

/// The version that clients of a bundle get: its own, or that of its fallback.
fn expected_of(entry: &Entry) -> Expected {
    let served = entry.handle().status();
    let fallback = entry.handle().fallback_status();
    let fallback = fallback.and_then(|fallback| Some((fallback.etag?, fallback.since?)));
    let (etag, since) = match (served.etag, fallback) {
        (Some(etag), _) => (Some(etag), served.since),
        (None, Some((etag, since))) => (Some(etag), since),
        (None, None) => (None, served.since),
    };
    Expected {
        tag: etag.as_deref().map(TagHash::of),
        since: Millis::try_from(since.as_millisecond()).unwrap_or_default(),
        candidate: entry
            .staged()
            .and_then(|staged| staged.plan.as_ref()?.candidate),
    }
}

fn document(fleet: &Fleet, catalog: &Catalog, query: &Query) -> Value {
    let (now, expected) = (telemetry::now_millis(), expected(catalog));
    let counts = fleet.table.counts(&expected, now);
    let bundles = counts.iter();
    let bundles = bundles.filter(|(name, _)| query.selection.has_bundle(name));
    let bundles = bundles.map(|(name, counts)| {
        let tag = expected.get(name).and_then(|expected| expected.tag);
        let serving = tag.map(|tag| fleet.table.versions(name).get_or_placeholder(tag));
        (name.to_string(), bundle(counts, serving.as_deref()))
    });
    let mut document = json!({
        "at": time(now),
        "scope": if fleet.is_complete() { "shared" } else { "replica" },
        "dropped": fleet.table.dropped(),
        "bundles": bundles.collect::<Map<_, _>>(),
    });
    if query.lists_clients {
        let filter = query.selection.filter(query.after, query.limit);
        let page = fleet.table.page(&filter, &expected, now);
        let clients: Vec<_> = page.clients.iter().map(client).collect();
        document["clients"] = clients.into();
        document["next"] = page.next.map(|key| key.to_string()).into();
    }
    document
}

fn bundle(counts: &BundleCounts, serving: Option<&Version>) -> Value {
    let states = ClientState::ALL.map(|state| (state.label().to_owned(), counts.of(state).into()));
    let versions = counts.versions.iter().map(|(one, clients)| {
        let mut one = version(one);
        one["clients"] = (*clients).into();
        one
    });
    json!({
        "serving": serving.map(version),
        "clients": counts.clients(),
        "states": states.into_iter().collect::<Map<_, _>>(),
        "shared_addresses": counts.shared_addresses,
        "versions": versions.collect::<Vec<_>>(),
    })
}

fn client(client: &ClientView) -> Value {
    let details = &client.details;
    let seen = client.bundles.iter().map(|one| one.facts.seen).max();
    let is_shared = client.bundles.iter().any(|one| one.facts.is_shared);
    let bundles = client.bundles.iter();
    let bundles = bundles.map(|one| (one.bundle.to_string(), client_bundle(one)));
    json!({
        "id": client.key.to_string(),
        "name": details.name,
        "client": details.credential,
        "identified_by": if details.name.is_some() { "header" } else { "address" },
        "address": details.address,
        "shared_address": is_shared,
        "agent": details.agent,
        "opa": details.opa.as_deref().map(opa),
        "seen": seen.map(time),
        "bundles": bundles.collect::<Map<_, _>>(),
    })
}

fn client_bundle(view: &BundleView) -> Value {
    let offered = view.offered.as_ref().map(|(offered, times, at)| {
        let mut offered = version(offered);
        offered["at"] = time(*at).into();
        offered["times"] = (*times).into();
        offered
    });
    let error = view.error.as_ref().map(|error| {
        json!({
            "source": "status",
            "code": error.code,
            "message": error.message,
            "at": time(error.at),
        })
    });
    json!({
        "state": view.state.label(),
        "runs": view.runs.as_deref().map(version),
        "since": time(view.facts.since),
        "seen": time(view.facts.seen),
        "waiting": view.waiting,
        "interval_s": view.facts.interval / 1000,
        "offered": offered,
        "error": error.or_else(|| refusal(view)),
    })
}

/// The error of a client that is failing without a report.
fn refusal(view: &BundleView) -> Option<Value> {
    let (_, times, at) = view.offered.as_ref()?;
    (view.state == ClientState::Failing).then(|| {
        json!({
            "source": "downloads",
            "code": "not_activated",
            "message": format!("downloaded {times} times and not activated"),
            "at": time(*at),
        })
    })
}

fn version(version: &Version) -> Value {
    json!({
        "etag": version.etag,
        "manifest": version.manifest,
        "revision": version.revision,
    })
}

fn opa(opa: &OpaInstance) -> Value {
    json!({ "id": opa.id, "version": opa.version, "labels": opa.labels })
}

fn time(millis: Millis) -> String {
    milliseconds(timestamp(millis))
}

/// A time of the fleet view.
pub(super) fn timestamp(millis: Millis) -> Timestamp {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self {
            selection: Selection::default(),
            after: None,
            limit: DEFAULT_LIMIT,
            lists_clients: false,
        };
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            query.lists_clients = true;
            match &*key {
                "after" => query.after = Some(after(&value)?),
                "limit" => query.limit = limit(&value)?,
                _ if query.selection.take(&key, &value)? => {}
                _ => {
                    let keys = "bundle, state, search, after and limit";
                    return Err(unknown_parameter(&key, keys));
                }
            }
        }
        Ok(query)
    }
}

fn after(value: &str) -> Result<ClientKey, String> {
    let message = "after: not the id of a client; send `next` of the page before";
    value.parse().map_err(|_| message.to_owned())
}

fn limit(value: &str) -> Result<usize, String> {
    let limit = value.parse().ok();
    let limit = limit.filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| format!("limit: {value:?} is not a number from 1 to {MAX_LIMIT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_or_refused_with_the_way_out() {
        let query = Query::parse("").unwrap();
        assert!(!query.lists_clients && query.limit == DEFAULT_LIMIT);
        let query = Query::parse("bundle=a%2Fb&state=failing&state=silent&limit=7&search=x+y");
        let query = query.unwrap();
        assert!(query.lists_clients);
        let Selection {
            bundle,
            states,
            search,
        } = query.selection;
        assert_eq!(bundle.as_deref(), Some("a/b"));
        assert_eq!(states, [ClientState::Failing, ClientState::Silent]);
        assert_eq!((query.limit, search.as_deref()), (7, Some("x y")));
        for (text, message) in [
            (
                "state=bad",
                "state: \"bad\" is no state; the states are failing, silent, none, candidate, current, behind, changing",
            ),
            ("limit=0", "limit: \"0\" is not a number from 1 to 1000"),
            (
                "limit=1001",
                "limit: \"1001\" is not a number from 1 to 1000",
            ),
            ("limit=x", "limit: \"x\" is not a number from 1 to 1000"),
            (
                "after=x",
                "after: not the id of a client; send `next` of the page before",
            ),
            (
                "color=red",
                "unknown parameter \"color\"; the parameters are bundle, state, search, after and limit",
            ),
        ] {
            assert_eq!(Query::parse(text).unwrap_err(), message);
        }
    }
}
