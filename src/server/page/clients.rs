//! Clients on the page: how many of a bundle are in which state, and a list that can be searched.

use jiff::Timestamp;
use url::form_urlencoded;

use super::{
    client_list::{Clients, FleetOverview, Listing, Row, needs_attention, states},
    html::Html,
    text,
};
use crate::{
    fleet::{BundleCounts, ClientState, OpaInstance, Version},
    server::{fleet_api::timestamp, overview::Overview},
};

const COLUMNS: [&str; 7] = [
    "Client",
    "Bundle",
    "State",
    "Runs",
    "Last seen",
    "OPA",
    "Error or download",
];
/// Bundles whose names the search field offers.
const MAX_OFFERED_NAMES: usize = 1000;
/// Labels of an OPA that are shown; `/fleet` has all.
const MAX_SHOWN_LABELS: usize = 8;

/// The clients of a bundle by state, as links to the list of them.
pub(super) fn by_state(html: &mut Html, bundle: &str, counts: &BundleCounts) {
    let counted = states().map(|state| (state, counts.of(state)));
    for (state, count) in counted.filter(|(_, count)| *count > 0) {
        let class = match state {
            ClientState::Failing => "line bad-text",
            ClientState::Behind => "line warn-text",
            _ => "line",
        };
        html.element("span").class(class).content(|html| {
            let id = format!("clients:{}:{bundle}", state.label());
            list_link(html, &id, Some(bundle), state, count);
        });
    }
    if counts.clients() == 0 {
        html.element("span").class("line muted").text("none");
    }
    if counts.shared_addresses > 0 {
        let shared = match counts.shared_addresses {
            1 => "1 address is shared".to_owned(),
            shared => format!("{shared} addresses are shared"),
        };
        html.element("span").class("line muted small").text(&shared);
    }
}

/// Clients of all bundles by state.
pub(super) fn summary(html: &mut Html, fleet: &FleetOverview) {
    let Some(clients) = &fleet.clients else {
        return;
    };
    let counted = states().map(|state| (state, clients.count(state)));
    let counted: Vec<_> = counted.filter(|(_, count)| *count > 0).collect();
    let line = html.element("p").class("by-state");
    let line = line.attribute("title", "A client is counted once for each bundle.");
    line.content(|html| {
        let link = html.element("a").attribute("href", "#clients");
        link.attribute("id", "to-clients").text("Clients");
        html.text(": ");
        if counted.is_empty() {
            html.text("none");
        }
        for (index, (state, count)) in counted.into_iter().enumerate() {
            if index > 0 {
                html.text(", ");
            }
            let class = match state {
                ClientState::Failing => "bad-text",
                ClientState::Behind => "warn-text",
                _ => "",
            };
            html.element("span").class(class).content(|html| {
                let id = format!("clients:{}", state.label());
                list_link(html, &id, None, state, count);
            });
        }
    });
}

fn list_link(html: &mut Html, id: &str, bundle: Option<&str>, state: ClientState, count: u64) {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(bundle) = bundle {
        query.append_pair("bundle", bundle);
    }
    query.append_pair("state", state.label());
    let link = html.element("a").class("quiet").attribute("id", id);
    let link = link.attribute("href", &format!("/?{}#clients", query.finish()));
    link.text(&format!("{count} {}", state.label()));
}

/// The section with the search form and the list.
pub(super) fn section(html: &mut Html, overview: &Overview, fleet: &FleetOverview) {
    let section = html
        .element("section")
        .attribute("aria-labelledby", "clients");
    section.content(|html| {
        html.element("div").class("toolbar").content(|html| {
            html.element("h2")
                .attribute("id", "clients")
                .text("Clients");
            let scope = html.element("span").class("muted small");
            let scope = scope.attribute("id", "clients-scope").flag("data-live");
            scope.text(match &fleet.clients {
                Some(clients) if clients.is_complete => "clients of all replicas",
                Some(_) => "clients of this replica",
                None => "",
            });
            if fleet.clients.is_some() {
                form(html, &fleet.listing);
            }
        });
        let names = html.element("datalist").attribute("id", "bundle-names");
        names.flag("data-live").content(|html| {
            for bundle in overview.bundles.iter().take(MAX_OFFERED_NAMES) {
                html.element("option")
                    .attribute("value", &bundle.name)
                    .void();
            }
        });
        let list = html
            .element("div")
            .class("frame")
            .attribute("id", "client-list");
        list.flag("data-live").content(|html| match &fleet.clients {
            Some(clients) => list_of(html, clients, &fleet.listing, overview.at),
            None => none(
                html,
                "Clients are not recorded: fleet.enabled is false in the configuration.",
            ),
        });
    });
}

/// A form that the browser sends without a script.
fn form(html: &mut Html, listing: &Listing) {
    let selection = listing.selection();
    let search = selection.and_then(|one| one.search.as_deref());
    let bundle = selection.and_then(|one| one.bundle.as_deref());
    // The form has one state; a link may have more.
    let state = selection.and_then(|one| match one.states[..] {
        [state] => Some(state),
        _ => None,
    });
    let form = html.element("form").class("filter search");
    let form = form.attribute("role", "search").attribute("method", "get");
    form.attribute("action", "/#clients").content(|html| {
        html.element("label").content(|html| {
            html.text("Search");
            let input = html.element("input").attribute("id", "search");
            let input = input
                .attribute("type", "search")
                .attribute("name", "search");
            let input = input.attribute("autocomplete", "off");
            let input = input.attribute("spellcheck", "false");
            let input = input.attribute("placeholder", "name, address, OPA id, label");
            input.attribute("value", search.unwrap_or_default()).void();
        });
        html.element("label").content(|html| {
            html.text("Bundle");
            let input = html.element("input").attribute("id", "search-bundle");
            let input = input
                .attribute("type", "search")
                .attribute("name", "bundle");
            let input = input.attribute("autocomplete", "off");
            let input = input.attribute("spellcheck", "false");
            let input = input.attribute("list", "bundle-names");
            let input = input.attribute("placeholder", "any");
            input.attribute("value", bundle.unwrap_or_default()).void();
        });
        html.element("label").content(|html| {
            html.text("State");
            let select = html.element("select").attribute("id", "search-state");
            select.attribute("name", "state").content(|html| {
                html.element("option").attribute("value", "").text("any");
                for one in states() {
                    let option = html.element("option").attribute("value", one.label());
                    let option = match state == Some(one) {
                        true => option.flag("selected"),
                        false => option,
                    };
                    option.text(one.label());
                }
            });
        });
        html.element("button").text("Search");
    });
}

fn list_of(html: &mut Html, clients: &Clients, listing: &Listing, now: Timestamp) {
    let reset = |html: &mut Html| {
        html.text(" ");
        let link = html.element("a").attribute("href", "/#clients");
        link.attribute("id", "clear-search")
            .text("Clear the search");
    };
    let invalid = match listing {
        Listing::Invalid(message) => Some(message),
        Listing::Attention | Listing::Selected(_) => None,
    };
    if let Some(message) = invalid {
        let line = html.element("p").class("none bad-text");
        return line.attribute("role", "alert").content(|html| {
            html.foreign(message);
            html.text(".");
            reset(html);
        });
    }
    html.element("p").class("none").content(|html| {
        html.text(&found(clients, listing));
        if matches!(listing, Listing::Selected(_)) {
            reset(html);
        }
    });
    if clients.rows.is_empty() {
        return;
    }
    text::table(html, &COLUMNS, |html| {
        for row in &clients.rows {
            text::row(html, |html| cells(html, row, now));
        }
    });
}

/// What is listed, as a sentence.
fn found(clients: &Clients, listing: &Listing) -> String {
    let shown = clients.rows.len();
    if shown == 0 {
        let is_empty = clients.counts.values().all(|counts| counts.clients() == 0);
        return match listing {
            _ if is_empty => "No client has asked for a bundle.",
            Listing::Attention => "No client is failing, behind or silent.",
            Listing::Selected(_) | Listing::Invalid(_) => "No client matches the search.",
        }
        .to_owned();
    }
    let what = match listing {
        Listing::Attention => "Clients that are failing, behind or silent",
        Listing::Selected(_) | Listing::Invalid(_) => "Clients that match the search",
    };
    match (clients.has_more, clients.total) {
        (false, _) => format!("{what}: {shown}, counted for each bundle."),
        (true, Some(total)) => format!(
            "{what}: {total}, counted for each bundle. {shown} are shown; bundlegate fleet lists all."
        ),
        (true, None) => {
            format!("{what}: the first {shown} are shown; bundlegate fleet lists all.")
        }
    }
}

fn cells(html: &mut Html, row: &Row, now: Timestamp) {
    let view = &row.view;
    text::row_head(html, |html| client(html, row));
    text::cell(html, COLUMNS[1], |html| html.foreign(&view.bundle));
    text::cell(html, COLUMNS[2], |html| {
        text::badge(html, colour(view.state), view.state.label());
    });
    text::cell(html, COLUMNS[3], |html| {
        match &view.runs {
            Some(runs) => version(html, runs),
            None => html.element("span").class("muted").text("no version"),
        }
        html.element("span")
            .class("line muted small")
            .content(|html| {
                html.text("for ");
                text::duration_since(html, timestamp(view.facts.since), now);
            });
    });
    text::cell(html, COLUMNS[4], |html| {
        text::ago(html, timestamp(view.facts.seen), now);
        if view.waiting > 0 {
            let waiting = format!("{} waiting", view.waiting);
            html.element("span")
                .class("line muted small")
                .text(&waiting);
        }
    });
    text::cell(html, COLUMNS[5], |html| opa(html, row));
    text::cell(html, COLUMNS[6], |html| problem(html, row, now));
}

fn client(html: &mut Html, row: &Row) {
    let details = &row.details;
    // A client that only another replica has seen has no address yet.
    let address = match details.address.is_unspecified() {
        true => "unknown address".to_owned(),
        false => details.address.to_string(),
    };
    let name = details.name.as_deref();
    html.element("span")
        .class("name")
        .foreign(name.unwrap_or(&address));
    if row.view.facts.is_shared {
        html.text(" ");
        text::badge(html, "calm", "shared address");
    }
    if name.is_some() {
        html.element("span").class("reference").text(&address);
    }
    if let Some(credential) = &details.credential {
        html.element("span").class("reference").content(|html| {
            html.text("credential of ");
            html.foreign(credential);
        });
    }
}

/// The revision, or else the digest or the tag.
fn version(html: &mut Html, version: &Version) {
    let revision = version.revision.as_deref();
    match (revision.filter(|one| !one.is_empty()), &version.manifest) {
        (Some(revision), _) => html.element("span").class("version").foreign(revision),
        (None, Some(manifest)) => text::digest(html, manifest),
        (None, None) => {
            html.element("span").class("line").text("unknown version");
            html.element("code").class("digest").foreign(&version.etag);
        }
    }
}

fn opa(html: &mut Html, row: &Row) {
    let instance = row.details.opa.as_deref();
    match (
        instance.and_then(|one| one.version.as_ref()),
        &row.details.agent,
    ) {
        (Some(version), _) => html.foreign(version),
        (None, Some(agent)) => html
            .element("span")
            .class("muted small version")
            .foreign(agent),
        (None, None) => html.element("span").class("muted").text("unknown"),
    }
    if let Some(instance) = instance.filter(|one| !one.labels.is_empty()) {
        html.element("span")
            .class("muted small version")
            .foreign(&labels(instance));
    }
}

fn labels(instance: &OpaInstance) -> String {
    let labels = instance.labels.iter().take(MAX_SHOWN_LABELS);
    let mut labels: Vec<_> = labels
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if instance.labels.len() > MAX_SHOWN_LABELS {
        labels.push("…".to_owned());
    }
    labels.join(", ")
}

/// The error that OPA has reported, or the version that was downloaded and is not run.
fn problem(html: &mut Html, row: &Row, now: Timestamp) {
    if let Some(error) = &row.view.error {
        return html.element("span").class("problem").content(|html| {
            html.element("strong").foreign(&error.code);
            html.text(" ");
            text::ago(html, timestamp(error.at), now);
            html.text(": ");
            html.foreign(&error.message);
        });
    }
    let Some((offered, times, at)) = &row.view.offered else {
        return html.element("span").class("muted").text("none");
    };
    html.element("span").class("problem").content(|html| {
        html.text(match times {
            1 => "downloaded once and not activated, ",
            _ => "downloaded and not activated, ",
        });
        if *times > 1 {
            html.text(&format!("{times} times, "));
        }
        text::ago(html, timestamp(*at), now);
        html.text(": ");
        version(html, offered);
    });
}

fn none(html: &mut Html, message: &str) {
    html.element("p").class("none").text(message);
}

fn colour(state: ClientState) -> &'static str {
    match state {
        ClientState::Failing => "bad",
        ClientState::Current => "good",
        state if needs_attention(state) => "warn",
        _ => "calm",
    }
}
