//! Counts and lists of clients for operators.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Client, ClientBundle, ClientDetails, ClientError, ClientKey, ClientState, ClientTable,
    Expected, Facts, Millis, TagHash, Version, state_of,
};

/// The versions that are listed with their clients.
const MAX_LISTED_VERSIONS: usize = 20;

/// The clients of a bundle.
#[derive(Debug, Default)]
pub struct BundleCounts {
    /// By state, in the order of [`ClientState::ALL`].
    pub states: [u64; ClientState::ALL.len()],
    /// Addresses that several clients share, each of which counts as one client.
    pub shared_addresses: u64,
    /// The versions that most clients run, most clients first.
    pub versions: Vec<(Arc<Version>, u64)>,
}

/// Which clients are listed.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// Those that ask for this bundle; any if it is absent.
    pub bundle: Option<&'a str>,
    /// Those in one of these states; any if it is empty.
    pub states: Vec<ClientState>,
    /// Those with this text in their name, credential, address, OPA's id or labels, whatever its case.
    pub search: Option<&'a str>,
    /// Those behind this one.
    pub after: Option<ClientKey>,
    /// At most so many.
    pub limit: usize,
}

/// Some clients, ordered by their keys.
#[derive(Debug)]
pub struct Page {
    /// The clients.
    pub clients: Vec<ClientView>,
    /// The last one, if there are more behind it.
    pub next: Option<ClientKey>,
}

/// A client.
#[derive(Debug)]
pub struct ClientView {
    /// Its key.
    pub key: ClientKey,
    /// How operators recognise it.
    pub details: ClientDetails,
    /// What it runs, by name of the bundle: those that the filter selects.
    pub bundles: Vec<BundleView>,
}

/// What a client runs of a bundle.
#[derive(Debug)]
pub struct BundleView {
    /// The bundle's name.
    pub bundle: Arc<str>,
    /// Its state.
    pub state: ClientState,
    /// What the state follows from.
    pub facts: Facts,
    /// The version that it runs.
    pub runs: Option<Arc<Version>>,
    /// The version that it has downloaded and does not run, how often, and when last.
    pub offered: Option<(Arc<Version>, u32, Millis)>,
    /// What its OPA has reported.
    pub error: Option<ClientError>,
    /// Its requests that are held.
    pub waiting: u16,
}

impl BundleCounts {
    /// All clients.
    pub fn clients(&self) -> u64 {
        self.states.iter().sum()
    }

    /// Those in a state.
    pub fn of(&self, state: ClientState) -> u64 {
        self.states[state as usize]
    }
}

impl ClientTable {
    /// The clients of each bundle that is served or asked for, by name.
    pub fn counts(
        &self,
        expected: &HashMap<Arc<str>, Expected>,
        now: Millis,
    ) -> BTreeMap<Arc<str>, BundleCounts> {
        let mut counts: BTreeMap<Arc<str>, BundleCounts> = BTreeMap::new();
        let mut versions: HashMap<(Arc<str>, TagHash), u64> = HashMap::new();
        for name in expected.keys() {
            counts.entry(Arc::clone(name)).or_default();
        }
        self.visit(|client| {
            for one in client.bundles() {
                let name = one.bundle().name();
                let Some((expected, counts)) = expected.get(name).zip(counts.get_mut(name)) else {
                    continue;
                };
                let facts = one.facts(now);
                counts.states[state_of(&facts, *expected, now) as usize] += 1;
                counts.shared_addresses += u64::from(facts.is_shared);
                if let Some(tag) = facts.runs {
                    *versions.entry((Arc::clone(name), tag)).or_default() += 1;
                }
            }
        });
        for ((name, tag), clients) in versions {
            let version = self.versions(&name).get_or_placeholder(tag);
            if let Some(counts) = counts.get_mut(&name) {
                counts.versions.push((version, clients));
            }
        }
        for counts in counts.values_mut() {
            let order = |(version, clients): &(Arc<Version>, u64)| {
                (std::cmp::Reverse(*clients), version.etag.clone())
            };
            counts.versions.sort_by_key(order);
            counts.versions.truncate(MAX_LISTED_VERSIONS);
        }
        counts
    }

    /// The clients that a filter selects.
    pub fn page(
        &self,
        filter: &Filter<'_>,
        expected: &HashMap<Arc<str>, Expected>,
        now: Millis,
    ) -> Page {
        let search = filter.search.map(str::to_lowercase);
        let mut first: BTreeSet<ClientKey> = BTreeSet::new();
        self.visit(|client| {
            let key = client.key();
            let is_late =
                first.len() > filter.limit && first.last().is_some_and(|last| key > *last);
            if is_late || filter.after.is_some_and(|after| key <= after) {
                return;
            }
            let is_selected = client
                .bundles()
                .iter()
                .any(|one| filter.selects(one, expected, now).is_some());
            if is_selected && matches_search(client, search.as_deref()) {
                first.insert(key);
                if first.len() > filter.limit + 1 {
                    first.pop_last();
                }
            }
        });
        let has_more = first.len() > filter.limit;
        let clients = first.into_iter().take(filter.limit);
        let clients = clients.filter_map(|key| {
            let client = self.get(key)?;
            let mut bundles: Vec<_> = client
                .bundles()
                .iter()
                .filter_map(|one| Some(BundleView::new(one, filter.selects(one, expected, now)?)))
                .collect();
            bundles.sort_by(|one, other| one.bundle.cmp(&other.bundle));
            let (key, details) = (client.key(), client.details());
            Some(ClientView {
                key,
                details,
                bundles,
            })
        });
        let clients: Vec<_> = clients.collect();
        Page {
            next: clients.last().filter(|_| has_more).map(|last| last.key),
            clients,
        }
    }
}

impl Filter<'_> {
    /// The state of a client for a bundle, if that is selected.
    fn selects(
        &self,
        client_bundle: &ClientBundle,
        expected: &HashMap<Arc<str>, Expected>,
        now: Millis,
    ) -> Option<(ClientState, Facts)> {
        let name = client_bundle.bundle().name();
        if self.bundle.is_some_and(|bundle| bundle != &**name) {
            return None;
        }
        let facts = client_bundle.facts(now);
        let state = state_of(&facts, *expected.get(name)?, now);
        let is_selected = self.states.is_empty() || self.states.contains(&state);
        is_selected.then_some((state, facts))
    }
}

impl BundleView {
    fn new(client_bundle: &ClientBundle, (state, facts): (ClientState, Facts)) -> Self {
        let versions = client_bundle.bundle();
        let offered = client_bundle.offered();
        Self {
            bundle: Arc::clone(versions.name()),
            state,
            facts,
            runs: facts.runs.map(|tag| versions.get_or_placeholder(tag)),
            offered: offered.map(|(tag, times, at)| (versions.get_or_placeholder(tag), times, at)),
            error: client_bundle.error(),
            waiting: client_bundle.waiting(),
        }
    }
}

/// `search` is in lower case.
fn matches_search(client: &Client, search: Option<&str>) -> bool {
    let Some(search) = search.filter(|search| !search.is_empty()) else {
        return true;
    };
    let details = client.details();
    let address = details.address.to_string();
    let opa = details.opa.as_deref();
    let labels = opa.into_iter().flat_map(|opa| opa.labels.values());
    let id = opa.and_then(|opa| opa.id.as_ref());
    let texts = [&details.name, &details.credential].into_iter().flatten();
    texts
        .chain(id)
        .chain(labels)
        .map(|text| &**text)
        .chain([&*address])
        .any(|text| text.to_lowercase().contains(search))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Identity, IdentitySource, OpaInstance, Poll},
        *,
    };

    const NOW: Millis = 1_000_000_000;

    fn table() -> (ClientTable, HashMap<Arc<str>, Expected>) {
        let table = ClientTable::new(10_000, 3_600_000, false);
        for number in 0..250_u8 {
            let name = format!("opa-{number}");
            let identity = Identity {
                credential: Some("canary").filter(|_| number == 7),
                source: IdentitySource::Name(&name),
            };
            let details = ClientDetails::new(&identity, [10, 0, 0, number].into(), None);
            for bundle in ["authz", "data"] {
                let client = table.client_bundle(&identity, &details, bundle).unwrap();
                let tag = if number < 200 { "new" } else { "old" };
                let tag = TagHash::of(tag);
                client
                    .bundle()
                    .record_unknown(tag, if number < 200 { "new" } else { "old" });
                let poll = Poll {
                    tag: Some(tag),
                    is_current: number < 200,
                };
                assert!(table.record_poll(&client, poll, NOW));
            }
        }
        let expected = |tag| Expected {
            tag: Some(TagHash::of(tag)),
            since: NOW,
            candidate: None,
        };
        let expected = HashMap::from([
            ("authz".into(), expected("new")),
            ("data".into(), expected("old")),
            ("unused".into(), expected("new")),
        ]);
        (table, expected)
    }

    #[test]
    fn clients_are_counted_by_state_and_version() {
        let (table, expected) = table();
        let counts = table.counts(&expected, NOW);
        let count = |bundle: &str, state| counts[bundle].of(state);
        assert_eq!(count("authz", ClientState::Current), 200);
        assert_eq!(count("authz", ClientState::Changing), 50);
        assert_eq!(count("data", ClientState::Current), 50);
        assert_eq!(counts["authz"].clients(), 250);
        assert_eq!(counts["unused"].clients(), 0);
        let versions = counts["authz"].versions.iter();
        let versions: Vec<_> = versions.map(|(one, count)| (&*one.etag, *count)).collect();
        assert_eq!(versions, [("new", 200), ("old", 50)]);
    }

    #[test]
    fn pages_list_each_client_once() {
        let (table, expected) = table();
        let mut filter = Filter {
            limit: 30,
            ..Filter::default()
        };
        let mut names = Vec::new();
        loop {
            let page = table.page(&filter, &expected, NOW);
            assert!(page.clients.iter().all(|client| client.bundles.len() == 2));
            names.extend(page.clients.into_iter().map(|client| client.details.name));
            filter.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        assert_eq!(names.len(), 250);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 250);
    }

    #[test]
    fn filters_select_by_bundle_state_and_text() {
        let (table, expected) = table();
        let opa = OpaInstance {
            id: Some("4F1".into()),
            labels: [("region".into(), "EU-West".into())].into(),
            ..OpaInstance::default()
        };
        let identity = Identity {
            credential: None,
            source: IdentitySource::Name("opa-3"),
        };
        table.record_opa(identity.key(), opa).unwrap();
        let found = |bundle, states: &[ClientState], search| {
            let filter = Filter {
                bundle,
                states: states.to_vec(),
                search,
                after: None,
                limit: 1_000,
            };
            let page = table.page(&filter, &expected, NOW);
            assert_eq!(page.next, None);
            let rows = page.clients.iter().map(|client| client.bundles.len()).sum();
            (page.clients.len(), rows)
        };
        use ClientState::{Changing, Current, Failing};
        assert_eq!(found(None, &[], None), (250, 500));
        assert_eq!(found(Some("authz"), &[], None), (250, 250));
        assert_eq!(found(Some("authz"), &[Changing], None), (50, 50));
        assert_eq!(found(None, &[Changing, Failing], None), (250, 250));
        assert_eq!(found(None, &[Current], Some("OPA-249")), (1, 1));
        for (search, clients) in [
            ("opa-24", 11),
            ("10.0.0.24", 11),
            ("Canary", 1),
            ("4f1", 1),
            ("eu-west", 1),
            ("", 250),
            ("missing", 0),
        ] {
            assert_eq!(found(None, &[], Some(search)).0, clients, "{search}");
        }
        assert_eq!(found(Some("missing"), &[], None), (0, 0));
    }
}
