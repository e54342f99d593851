//! The tables of bundles and of clients.

use jiff::Timestamp;

use super::{
    State,
    answer::{ABSENT, Bundle, Client, ClientBundle, Fleet, Version},
    query::Query,
};
use crate::cli::table;

/// The longest text of an error in the table, in characters.
const ERROR_WIDTH: usize = 80;

/// One line for each bundle, and notes about what the numbers do not have.
pub(super) fn bundles(fleet: &Fleet) -> String {
    let header = [
        "BUNDLE", "SERVING", "CLIENTS", "CURRENT", "CHANGING", "BEHIND", "FAILING", "SILENT",
        "NONE",
    ];
    let row = |(name, bundle): (&String, &Bundle)| {
        let count = |state| bundle.count(&[state]).to_string();
        [
            name.clone(),
            bundle
                .serving
                .as_ref()
                .map_or_else(|| ABSENT.to_owned(), Version::short),
            bundle.clients.to_string(),
            count(State::Current),
            count(State::Changing),
            count(State::Behind),
            count(State::Failing),
            count(State::Silent),
            count(State::None),
        ]
    };
    let rows: Vec<_> = fleet.bundles.iter().map(row).collect();
    let table = table::columns(header, &rows);
    match notes(fleet).as_slice() {
        [] => table,
        notes => format!("{table}\n\n{}", notes.join("\n")),
    }
}

fn notes(fleet: &Fleet) -> Vec<String> {
    let shared: u64 = fleet
        .bundles
        .values()
        .map(|bundle| bundle.shared_addresses)
        .sum();
    let shared = (shared > 0).then(|| {
        format!(
            "addresses that several clients share: {shared}; each counts as one client until its OPAs send \
             the header of `fleet.identity`"
        )
    });
    let dropped = (fleet.dropped > 0).then(|| {
        format!(
            "clients that are not counted: {}; raise `fleet.max_entries`",
            fleet.dropped
        )
    });
    shared.into_iter().chain(dropped).collect()
}

/// One line for each client and bundle, the most urgent first.
pub(super) fn clients(fleet: &Fleet, query: &Query, now: Timestamp) -> String {
    let of_client = |client: &'_ Client| -> Vec<(u8, [String; 8])> {
        let bundles = client.bundles.iter();
        let bundles = bundles.filter(|(name, bundle)| query.includes(name, bundle));
        let rows = bundles.map(|(name, bundle)| (rank(bundle), row(client, name, bundle, now)));
        rows.collect()
    };
    let mut rows: Vec<_> = fleet.clients.iter().flat_map(of_client).collect();
    rows.sort();
    let rows = rows.into_iter().map(|(_, row)| row);
    if query.bundle.is_none() {
        let header = [
            "CLIENT", "BUNDLE", "STATE", "RUNS", "SINCE", "SEEN", "OPA", "ERROR",
        ];
        return table::columns(header, &rows.collect::<Vec<_>>());
    }
    let header = ["CLIENT", "STATE", "RUNS", "SINCE", "SEEN", "OPA", "ERROR"];
    let without_bundle = |[client, _, state, runs, since, seen, opa, error]: [String; 8]| {
        [client, state, runs, since, seen, opa, error]
    };
    table::columns(header, &rows.map(without_bundle).collect::<Vec<_>>())
}

/// How many clients are left out, where the numbers of the bundle tell it; `None` if none are.
pub(super) fn more(fleet: &Fleet, query: &Query) -> Option<String> {
    fleet.next.as_ref()?;
    let shown = u64::try_from(fleet.clients.len()).unwrap_or(u64::MAX);
    let bundle = query
        .bundle
        .as_ref()
        .and_then(|name| fleet.bundles.get(name));
    let all = bundle
        .filter(|_| query.text.is_none())
        .map(|bundle| match query.states.is_empty() {
            true => bundle.clients,
            false => bundle.count(&query.states),
        });
    match all.map(|all| all.saturating_sub(shown)) {
        Some(0) => None,
        Some(left) => Some(format!("{left} more clients; raise --limit to list them")),
        None => Some("there are more clients; raise --limit to list them".to_owned()),
    }
}

/// The place in the order of urgency; a state that this version does not know comes last.
fn rank(bundle: &ClientBundle) -> u8 {
    match bundle.state.as_str() {
        "failing" => 0,
        "behind" => 1,
        "silent" => 2,
        "none" => 3,
        "changing" => 4,
        "candidate" => 5,
        "current" => 6,
        _ => 7,
    }
}

fn row(client: &Client, name: &str, bundle: &ClientBundle, now: Timestamp) -> [String; 8] {
    let opa = client.opa.as_ref().and_then(|opa| opa.version.clone());
    [
        client.label(),
        name.to_owned(),
        bundle.state.clone(),
        bundle.running(),
        age(bundle.since.as_deref(), now),
        age(bundle.seen.as_deref(), now),
        opa.unwrap_or_else(|| ABSENT.to_owned()),
        cut(&bundle.reason()),
    ]
}

fn age(then: Option<&str>, now: Timestamp) -> String {
    let then = then.and_then(|then| then.parse().ok());
    then.map_or_else(|| ABSENT.to_owned(), |then| table::age(then, now))
}

fn cut(text: &str) -> String {
    let mut shown: String = text.chars().take(ERROR_WIDTH).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sample() -> Value {
        json!({
            "at": "2026-11-30T06:00:00.000Z", "scope": "replica", "dropped": 0,
            "bundles": {
                "authz/main": {
                    "serving": { "etag": "\"b\"", "manifest": "sha256:0123456789abcdef", "revision": "r2" },
                    "clients": 12, "shared_addresses": 0,
                    "states": {
                        "failing": 1, "silent": 0, "none": 0, "current": 9, "behind": 0, "changing": 2,
                    },
                    "versions": [{ "etag": "\"b\"", "manifest": null, "revision": null, "clients": 10 }],
                },
                "public/hello": { "serving": null, "clients": 0, "states": {}, "shared_addresses": 0 },
            },
            "clients": [
                {
                    "id": "00", "name": "opa-eu-2", "client": "canary", "identified_by": "header",
                    "address": "10.0.0.2", "shared_address": false, "agent": null, "opa": null,
                    "seen": "2026-11-30T05:59:00.000Z",
                    "bundles": { "authz/main": {
                        "state": "changing", "since": "2026-11-30T05:00:00.000Z",
                        "seen": "2026-11-30T05:59:00.000Z", "waiting": 0, "interval_s": 30,
                        "runs": { "etag": "\"b\"", "manifest": "sha256:fedcba9876543210", "revision": null },
                        "offered": null, "error": null,
                    } },
                },
                {
                    "id": "01", "name": "opa-eu-1", "client": null, "address": "10.0.0.1",
                    "opa": { "id": "x", "version": "1.22.2", "labels": { "region": "eu" } },
                    "bundles": { "authz/main": {
                        "state": "failing", "since": "2026-11-29T06:00:00.000Z",
                        "seen": "2026-11-30T05:59:59.000Z",
                        "runs": { "etag": "\"a\"", "manifest": "sha256:aa", "revision": "r1\u{1b}[2J" },
                        "offered": {
                            "etag": "\"b\"", "manifest": "sha256:bb", "revision": "r2",
                            "at": "2026-11-30T05:59:00.000Z", "times": 3,
                        },
                        "error": {
                            "source": "status", "code": "bundle_error", "message": "policy.rego:3: x\nerror",
                            "at": "2026-11-30T05:59:00.000Z",
                        },
                    } },
                },
                {
                    "id": "02", "name": null, "address": "192.0.2.7", "shared_address": true,
                    "bundles": {
                        "authz/main": {
                            "state": "failing", "runs": null, "since": null, "seen": null, "error": null,
                            "offered": { "etag": "\"b\"", "manifest": null, "revision": null, "times": 2 },
                        },
                        "public/hello": { "state": "none", "runs": null },
                    },
                },
            ],
            "next": null,
        })
    }

    fn query(bundle: Option<&str>, states: &[State]) -> Query {
        Query {
            bundle: bundle.map(str::to_owned),
            states: states.to_vec(),
            text: None,
            limit: 100,
        }
    }

    #[test]
    fn a_bundle_has_its_clients_by_state() {
        let mut document = sample();
        let table = "BUNDLE        SERVING  CLIENTS  CURRENT  CHANGING  BEHIND  FAILING  SILENT  NONE\n\
                     authz/main    r2       12       9        2         0       1        0       0\n\
                     public/hello  -        0        0        0         0       0        0       0";
        assert_eq!(bundles(&Fleet::read(&document).unwrap()), table);
        document["dropped"] = 3.into();
        document["bundles"]["authz/main"]["shared_addresses"] = 2.into();
        let shown = bundles(&Fleet::read(&document).unwrap());
        assert_eq!(
            shown.strip_prefix(table).unwrap(),
            "\n\naddresses that several clients share: 2; each counts as one client until its OPAs send the \
             header of `fleet.identity`\n\
             clients that are not counted: 3; raise `fleet.max_entries`"
        );
    }

    #[test]
    fn the_most_urgent_client_comes_first_and_foreign_text_moves_no_cursor() {
        let fleet = Fleet::read(&sample()).unwrap();
        let now = "2026-11-30T06:00:00Z".parse().unwrap();
        let refusal = "was offered unknown b 2 times, and does not run it";
        assert_eq!(
            clients(&fleet, &query(Some("authz/main"), &[]), now),
            format!(
                "CLIENT              STATE     RUNS          SINCE       SEEN          OPA     ERROR\n\
                 192.0.2.7 (shared)  failing   -             -           -             -       {refusal}\n\
                 opa-eu-1            failing   r1\\u{{1b}}[2J   1 day ago   1 second ago  1.22.2  policy.rego:3: x\\nerror\n\
                 opa-eu-2            changing  fedcba987654  1 hour ago  1 minute ago  -       -"
            )
        );
        let all = clients(&fleet, &query(None, &[]), now);
        assert!(
            all.starts_with("CLIENT              BUNDLE        STATE "),
            "{all}"
        );
        assert_eq!(all.lines().count(), 5, "{all}");
        let none = clients(&fleet, &query(None, &[State::None]), now);
        assert_eq!(none.lines().count(), 2, "{none}");
        assert!(none.contains("public/hello"), "{none}");
    }

    #[test]
    fn what_is_left_out_is_counted_where_the_answer_tells_it() {
        let mut document = sample();
        assert_eq!(
            more(&Fleet::read(&document).unwrap(), &query(None, &[])),
            None
        );
        document["next"] = "02".into();
        let fleet = Fleet::read(&document).unwrap();
        let left = |query: &Query| more(&fleet, query);
        let (bundle, states) = (Some("authz/main"), [State::Current]);
        let counted =
            |count: u64| Some(format!("{count} more clients; raise --limit to list them"));
        assert_eq!(left(&query(bundle, &[])), counted(9));
        assert_eq!(left(&query(bundle, &states)), counted(6));
        assert_eq!(left(&query(bundle, &[State::Failing])), None);
        let unknown = Some("there are more clients; raise --limit to list them".to_owned());
        assert_eq!(left(&query(None, &[])), unknown);
        let text = Some("eu".to_owned());
        let by_text = Query {
            text,
            ..query(bundle, &[])
        };
        assert_eq!(left(&by_text), unknown);
    }

    #[test]
    fn an_answer_of_another_program_is_refused() {
        for answer in [json!(null), json!({}), json!({ "bundles": [] }), json!("x")] {
            let error = Fleet::read(&answer).unwrap_err().to_string();
            assert_eq!(
                error,
                "fleet: the answer is not one of bundlegate; check --admin"
            );
        }
    }
}
