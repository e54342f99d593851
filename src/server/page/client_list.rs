//! The clients that the page counts and lists, read from the fleet view.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use url::form_urlencoded;

use crate::{
    fleet::{
        BundleCounts, BundleView, ClientDetails, ClientState, ClientView, Expected, Fleet, Millis,
    },
    server::fleet_selection::{Selection, unknown_parameter},
    telemetry,
};

/// Rows that are listed. A client has one for each bundle.
const MAX_ROWS: usize = 100;
/// In the order in which they are listed.
const ORDER: [ClientState; 7] = [
    ClientState::Failing,
    ClientState::Behind,
    ClientState::Silent,
    ClientState::None,
    ClientState::Changing,
    ClientState::Candidate,
    ClientState::Current,
];

/// What the page shows of the fleet view.
#[derive(Debug)]
pub(in crate::server) struct FleetOverview {
    pub(super) listing: Listing,
    /// `None` if clients are not recorded.
    pub(super) clients: Option<Clients>,
}

/// Which clients the page lists.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) enum Listing {
    /// Those that an operator has to look at.
    Attention,
    /// Those that the query selects.
    Selected(Selection),
    /// None, because the query is invalid for this reason.
    Invalid(String),
}

/// The clients at one time.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Of each bundle, by name.
    pub(super) counts: BTreeMap<Arc<str>, BundleCounts>,
    /// Whether those of all replicas are known.
    pub(super) is_complete: bool,
    /// At most [`MAX_ROWS`].
    pub(super) rows: Vec<Row>,
    /// Whether there are more rows than are listed.
    pub(super) has_more: bool,
    /// The rows that there are; `None` if a text is searched.
    pub(super) total: Option<u64>,
}

/// What a client runs of a bundle.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) details: Arc<ClientDetails>,
    pub(super) view: BundleView,
}

impl FleetOverview {
    /// Reads the clients; `fleet` is `None` if they are not recorded. Takes long with many of them: the
    /// table is read once for the counts, and once for each listed state that some client is in.
    pub(in crate::server) fn read(
        fleet: Option<&Fleet>,
        expected: &HashMap<Arc<str>, Expected>,
        listing: Listing,
    ) -> Self {
        let clients =
            fleet.map(|fleet| Clients::read(fleet, expected, &listing, telemetry::now_millis()));
        Self { listing, clients }
    }

    /// The clients of a bundle; `None` if they are not recorded.
    pub(super) fn counts(&self, bundle: &str) -> Option<&BundleCounts> {
        self.clients.as_ref()?.counts.get(bundle)
    }
}

impl Listing {
    /// Reads the query of the page's URL.
    pub(in crate::server) fn parse(query: &str) -> Self {
        if query.is_empty() {
            return Self::Attention;
        }
        let mut selection = Selection::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match selection.take(&key, &value) {
                Ok(true) => {}
                Ok(false) => {
                    let keys = "bundle, state and search";
                    return Self::Invalid(unknown_parameter(&key, keys));
                }
                Err(message) => return Self::Invalid(message),
            }
        }
        Self::Selected(selection)
    }

    pub(super) fn selection(&self) -> Option<&Selection> {
        match self {
            Self::Selected(selection) => Some(selection),
            Self::Attention | Self::Invalid(_) => None,
        }
    }

    /// `None` for an invalid query.
    fn resolved(&self) -> Option<Selection> {
        match self {
            Self::Attention => Some(Selection {
                states: ORDER
                    .into_iter()
                    .filter(|one| needs_attention(*one))
                    .collect(),
                ..Selection::default()
            }),
            Self::Selected(selection) => Some(selection.clone()),
            Self::Invalid(_) => None,
        }
    }
}

impl Clients {
    fn read(
        fleet: &Fleet,
        expected: &HashMap<Arc<str>, Expected>,
        listing: &Listing,
        now: Millis,
    ) -> Self {
        let mut clients = Self {
            counts: fleet.table.counts(expected, now),
            is_complete: fleet.is_complete(),
            ..Self::default()
        };
        let Some(selection) = listing.resolved() else {
            return clients;
        };
        let mut total = 0;
        for state in ORDER.into_iter().filter(|one| selection.has_state(*one)) {
            let counts = clients.counts.iter();
            let counts = counts.filter(|(name, _)| selection.has_bundle(name));
            let count: u64 = counts.map(|(_, counts)| counts.of(state)).sum();
            total += count;
            if count == 0 || clients.rows.len() > MAX_ROWS {
                continue;
            }
            let selection = Selection {
                states: vec![state],
                ..selection.clone()
            };
            // One more than are listed tells that there are more.
            let limit = MAX_ROWS + 1 - clients.rows.len();
            let page = fleet
                .table
                .page(&selection.filter(None, limit), expected, now);
            let mut rows: Vec<_> = page
                .clients
                .into_iter()
                .flat_map(rows)
                .take(limit)
                .collect();
            rows.sort_by(|one, other| one.order().cmp(&other.order()));
            clients.rows.extend(rows);
        }
        clients.has_more = clients.rows.len() > MAX_ROWS;
        clients.rows.truncate(MAX_ROWS);
        // Counting and listing are not one reading.
        let listed = clients.rows.len() as u64 + u64::from(clients.has_more);
        clients.total = selection.search.is_none().then(|| total.max(listed));
        clients
    }

    /// The clients in a state, each counted once for each of its bundles.
    pub(super) fn count(&self, state: ClientState) -> u64 {
        self.counts.values().map(|counts| counts.of(state)).sum()
    }
}

impl Row {
    fn order(&self) -> (Option<&str>, IpAddr, &str) {
        let name = self.details.name.as_deref();
        (name, self.details.address, &self.view.bundle)
    }
}

fn rows(client: ClientView) -> impl Iterator<Item = Row> {
    let details = Arc::new(client.details);
    client.bundles.into_iter().map(move |view| Row {
        details: Arc::clone(&details),
        view,
    })
}

/// Whether an operator has to look at a client in this state.
pub(super) fn needs_attention(state: ClientState) -> bool {
    match state {
        ClientState::Failing | ClientState::Behind | ClientState::Silent => true,
        ClientState::None
        | ClientState::Candidate
        | ClientState::Current
        | ClientState::Changing => false,
    }
}

/// The states in the order in which the page shows them.
pub(super) fn states() -> impl Iterator<Item = ClientState> {
    ORDER.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{ClientError, Identity, IdentitySource, Options, Poll, TagHash};

    const MINUTE: Millis = 60 * 1000;
    const NOW: Millis = 1_000 * MINUTE;

    fn expected() -> HashMap<Arc<str>, Expected> {
        let expected = Expected {
            tag: Some(TagHash::of("new")),
            since: NOW - 20 * MINUTE,
            candidate: None,
        };
        let many = (0..150).map(|number| format!("bundle-{number:03}"));
        let names = many.chain(["authz".to_owned(), "unused".to_owned()]);
        names.map(|name| (name.into(), expected)).collect()
    }

    /// Requests of a client that runs a version, at these times.
    fn poll(fleet: &Fleet, name: &str, bundle: &str, tag: &str, times: &[Millis]) {
        let identity = Identity {
            credential: None,
            source: IdentitySource::Name(name),
        };
        let details = ClientDetails::new(&identity, [10, 0, 0, 1].into(), None);
        let client = fleet.table.client_bundle(&identity, &details, bundle);
        let client = client.unwrap();
        let poll = Poll {
            tag: Some(TagHash::of(tag)),
            is_current: tag == "new",
        };
        for time in times {
            assert!(fleet.table.record_poll(&client, poll, *time));
        }
        if name.starts_with("broken") {
            let message = "policy.rego:1: rego_parse_error".into();
            let error = ClientError::new("bundle_error".into(), message, NOW);
            assert!(fleet.table.record_error(&client, error));
        }
    }

    /// 5 clients that fail, 130 that are behind, 3 that are silent, and 40 that are current. One of the
    /// last asks for 150 more bundles.
    fn fleet() -> Fleet {
        let fleet = Fleet::new(Options::default(), false).unwrap();
        for number in 0..130 {
            let times = [NOW - 20 * MINUTE, NOW];
            poll(&fleet, &format!("slow-{number:03}"), "authz", "old", &times);
        }
        for number in 0..5 {
            poll(&fleet, &format!("broken-{number}"), "authz", "old", &[NOW]);
        }
        for number in 0..3 {
            let times = [NOW - 60 * MINUTE];
            poll(&fleet, &format!("gone-{number}"), "authz", "new", &times);
        }
        for number in 0..40 {
            poll(&fleet, &format!("opa-{number:02}"), "authz", "new", &[NOW]);
        }
        for number in 0..150 {
            let bundle = format!("bundle-{number:03}");
            poll(&fleet, "opa-07", &bundle, "new", &[NOW]);
        }
        fleet
    }

    #[test]
    fn clients_that_need_attention_are_listed_first_and_at_most_a_hundred_rows() {
        use ClientState::{Behind, Current, Failing, Silent};
        let fleet = fleet();
        let read = |query: &str| Clients::read(&fleet, &expected(), &Listing::parse(query), NOW);
        let all = read("");
        assert_eq!(all.count(Current), 190);
        assert_eq!(all.counts["authz"].of(Current), 40);
        for (query, rows, total, states) in [
            ("", 100, Some(138), &[(Failing, 5), (Behind, 95)][..]),
            ("search=", 100, Some(328), &[(Failing, 5), (Behind, 95)]),
            (
                "state=silent&state=failing",
                8,
                Some(8),
                &[(Failing, 5), (Silent, 3)],
            ),
            ("bundle=authz&state=current", 40, Some(40), &[(Current, 40)]),
            ("bundle=unused", 0, Some(0), &[]),
            ("bundle=missing", 0, Some(0), &[]),
            ("search=BROKEN-3", 1, None, &[(Failing, 1)]),
            ("search=missing", 0, None, &[]),
            ("search=opa-07", 100, None, &[(Current, 100)]),
            ("search=opa-07&bundle=bundle-100", 1, None, &[(Current, 1)]),
        ] {
            let clients = read(query);
            assert_eq!(
                (clients.rows.len(), clients.total),
                (rows, total),
                "{query}"
            );
            let is_cut = rows == 100;
            assert_eq!(clients.has_more, is_cut, "{query}");
            let mut found: Vec<(ClientState, usize)> = Vec::new();
            for row in &clients.rows {
                match found.last_mut() {
                    Some((state, count)) if *state == row.view.state => *count += 1,
                    _ => found.push((row.view.state, 1)),
                }
            }
            assert_eq!(found, states, "{query}");
        }
        let invalid = read("state=nope");
        assert!(invalid.rows.is_empty() && invalid.count(Failing) == 5);
    }

    #[test]
    fn a_query_is_read_or_refused_with_a_reason() {
        assert_eq!(Listing::parse(""), Listing::Attention);
        let empty = Listing::parse("search=&bundle=&state=");
        assert_eq!(empty, Listing::Selected(Selection::default()));
        for (query, reason) in [
            (
                "search=x&state=Failing",
                "state: \"Failing\" is no state; the states are failing, silent, none, candidate, current, behind, changing",
            ),
            (
                "limit=7",
                "unknown parameter \"limit\"; the parameters are bundle, state and search",
            ),
        ] {
            assert_eq!(Listing::parse(query), Listing::Invalid(reason.to_owned()));
        }
    }
}
