//! The page at `/`: one HTML document that is readable without scripts, and that a small script keeps
//! up to date.
//!
//! Names, tags, revisions, signers and reasons come from anyone who may push or answer, so the
//! document is written by [`Html`], which has no way to write such a text but escaped. If it had one,
//! the browser would still run no other script and load nothing from elsewhere: the policy in the
//! headers permits the style sheet and the script of this program by their hashes. The page shows
//! what `/status` and `/fleet` have, and nothing on it changes anything: its form searches clients.

mod authenticity;
mod bundle;
mod client_list;
mod clients;
mod condition;
mod html;
mod rollout;
mod text;

use std::sync::LazyLock;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use hyper::{
    Response,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue,
        REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    },
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

pub(super) use self::client_list::{FleetOverview, Listing};
use self::{
    condition::Condition,
    html::{Asset, Html},
};
use super::{
    ReloadOutcome,
    overview::{BundleOverview, Overview, ReadinessState},
    response_body::ResponseBody,
    webhooks::WebhookStatus,
};
use crate::fleet::BundleCounts;

const STYLE: Asset = Asset::new(include_str!("page/style.css"));
const SCRIPT: Asset = Asset::new(include_str!("page/script.js"));
/// A check mark on a shield. The only image, so that no browser asks for `/favicon.ico`.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
                    %3Cpath d='M8 1 2 3v5c0 4 3 6 6 7 3-1 6-3 6-7V3z' fill='%230969da'/%3E\
                    %3Cpath d='m5 8 2 2 4-4' fill='none' stroke='%23fff' stroke-width='1.5'/%3E%3C/svg%3E";

/// Without scripts the page is loaded again after so many seconds, and a page of thousands of bundles
/// less often.
const RELOAD_SECONDS: &str = "10";
const SLOW_RELOAD_SECONDS: &str = "60";
const MANY_BUNDLES: usize = 1000;

#[expect(clippy::expect_used, reason = "hashes in base64 are visible ASCII")]
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |asset: Asset| BASE64_STANDARD.encode(Sha256::digest(asset.as_str()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    HeaderValue::try_from(policy).expect("a header value")
});
/// Distinguishes the documents of versions with different style sheets or scripts.
static BUILD: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for part in [env!("CARGO_PKG_VERSION"), STYLE.as_str(), SCRIPT.as_str()] {
        hash.update(part);
    }
    BASE64_STANDARD.encode(&hash.finalize()[..12])
});

/// Adds the headers of the page.
pub(super) fn secure(response: &mut Response<ResponseBody>) {
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (CROSS_ORIGIN_OPENER_POLICY, "same-origin"),
        (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Renders the page. Takes long with thousands of bundles.
pub(super) fn render(overview: &Overview, fleet: &FleetOverview) -> Bytes {
    let bundles = shown_bundles(overview, fleet);
    let alerts = alerts(overview);
    let problems = bundles.iter().filter(|one| one.condition.is_problem());
    let problems = alerts.len() + problems.count();
    let mut html = Html::document();
    let root = html.element("html").attribute("lang", "en");
    root.attribute("data-build", &BUILD).content(|html| {
        head(html, problems, overview.bundles.len());
        html.element("body").content(|html| {
            let skip = html
                .element("a")
                .class("skip")
                .attribute("href", "#bundles");
            skip.text("Skip to the bundles");
            header(html, overview);
            let unreachable = html.element("div").attribute("id", "unreachable");
            unreachable
                .attribute("role", "alert")
                .flag("hidden")
                .text("");
            html.element("main").content(|html| {
                write_alerts(html, &alerts);
                counts(html, &bundles, fleet);
                list(html, &bundles, overview.at);
                clients::section(html, overview, fleet);
                let further = html.element("div").class("columns");
                let further = further.attribute("id", "further").flag("data-live");
                further.content(|html| {
                    authenticity::certificates(html, overview);
                    authenticity::trust_roots(html, overview);
                    configuration(html, overview);
                    webhooks(html, overview);
                });
            });
            footer(html);
            html.element("script").asset(SCRIPT);
        });
    });
    html.into_string().into()
}

/// A bundle, with what the page shows of its clients.
#[derive(Debug, Clone, Copy)]
struct ShownBundle<'a> {
    condition: Condition,
    overview: &'a BundleOverview,
    /// `None` if they are not recorded.
    clients: Option<&'a BundleCounts>,
}

/// The bundles in the order of the page: by condition, then by name.
fn shown_bundles<'a>(overview: &'a Overview, fleet: &'a FleetOverview) -> Vec<ShownBundle<'a>> {
    let shown = overview.bundles.iter().map(|bundle| {
        let clients = fleet.counts(&bundle.name);
        ShownBundle {
            condition: Condition::of(bundle, clients),
            overview: bundle,
            clients,
        }
    });
    let mut shown: Vec<_> = shown.collect();
    // A stable sort.
    shown.sort_by_key(|one| one.condition);
    shown
}

fn head(html: &mut Html, problems: usize, bundles: usize) {
    html.element("head").content(|html| {
        let meta = |html: &mut Html, name, content| {
            let meta = html.element("meta").attribute("name", name);
            meta.attribute("content", content).void();
        };
        html.element("meta").attribute("charset", "utf-8").void();
        meta(html, "viewport", "width=device-width, initial-scale=1");
        meta(html, "color-scheme", "light dark");
        meta(html, "robots", "noindex");
        let title = match problems {
            0 => "bundlegate".to_owned(),
            _ => format!("{} · bundlegate", text::count(problems, "problem")),
        };
        html.element("title").text(&title);
        let icon = html.element("link").attribute("rel", "icon");
        icon.attribute("href", ICON).void();
        html.element("style").asset(STYLE);
        html.element("noscript").content(|html| {
            let seconds = match bundles {
                0..MANY_BUNDLES => RELOAD_SECONDS,
                _ => SLOW_RELOAD_SECONDS,
            };
            let refresh = html.element("meta").attribute("http-equiv", "refresh");
            refresh.attribute("content", seconds).void();
        });
    });
}

fn header(html: &mut Html, overview: &Overview) {
    html.element("header").content(|html| {
        html.element("h1").content(|html| {
            html.text("bundlegate");
            html.element("small").text(env!("CARGO_PKG_VERSION"));
        });
        let gateway = html.element("div").attribute("id", "gateway");
        gateway.flag("data-live").content(|html| {
            match overview.readiness {
                ReadinessState::Ready => text::badge(html, "good", "Ready"),
                ReadinessState::Waiting(bundles) => {
                    text::badge(html, "warn", "Not ready");
                    let bundles = text::count(bundles, "bundle");
                    html.element("span")
                        .class("muted")
                        .text(&format!("waits for {bundles}"));
                }
                ReadinessState::Draining => text::badge(html, "warn", "Draining"),
            }
            html.element("span").class("muted").content(|html| {
                html.text("up for ");
                text::duration_since(html, overview.since, overview.at);
            });
        });
        html.element("div")
            .attribute("id", "as-of")
            .content(|html| {
                html.element("span").attribute("id", "live").text("Static");
                let time = html
                    .element("span")
                    .attribute("id", "time")
                    .flag("data-live");
                time.content(|html| {
                    html.text(" · as of ");
                    text::clock(html, overview.at);
                });
            });
    });
}

/// A problem that is not one of a bundle.
struct Alert {
    is_severe: bool,
    title: String,
    reason: String,
}

/// The problems of the gateway, the severe ones first.
fn alerts(overview: &Overview) -> Vec<Alert> {
    let mut alerts = Vec::new();
    let mut add = |is_severe, title: String, reason: &str| {
        let reason = reason.to_owned();
        alerts.push(Alert {
            is_severe,
            title,
            reason,
        });
    };
    if let Some(ReloadOutcome {
        refusal: Some(refusal),
        ..
    }) = overview.reload.as_deref()
    {
        let title = "The configuration on disk is refused; the one before stays in force";
        add(true, title.to_owned(), refusal);
    }
    if let Some(problem) = &overview.cache_problem {
        let title = "The cache folder can't be used; a restart needs the registries";
        add(true, title.to_owned(), problem);
    }
    for certificate in overview.certificates.iter() {
        let expires = certificate.expiry.not_after;
        if let Some((is_severe, when)) = authenticity::soon(expires, overview.at) {
            let title = format!("{} {when}", certificate.key);
            add(is_severe, title, &certificate.expiry.subject);
        }
    }
    for (name, root) in &overview.trust_roots {
        let failure = root.last_failure().map(|failure| &*failure.message);
        let expiry = root
            .expires()
            .and_then(|expires| authenticity::root_soon(expires, failure.is_some(), overview.at));
        match (expiry, failure) {
            _ if root.is_pending() => {
                let title =
                    format!("Trust root {name} has not been fetched yet; it trusts nothing");
                add(true, title, failure.unwrap_or_default());
            }
            (Some((is_severe, when)), failure) => {
                add(
                    is_severe,
                    format!("Trust root {name} {when}"),
                    failure.unwrap_or_default(),
                );
            }
            (None, Some(failure)) => {
                add(
                    false,
                    format!("Trust root {name} can't be refreshed"),
                    failure,
                );
            }
            (None, None) => {}
        }
    }
    if let Some(outcome) = &overview.reload
        && !outcome.restart_keys.is_empty()
    {
        let title = "Changes of the configuration take effect at the next start";
        add(false, title.to_owned(), &outcome.restart_keys.join(", "));
    }
    alerts.sort_by_key(|alert| !alert.is_severe);
    alerts
}

fn write_alerts(html: &mut Html, alerts: &[Alert]) {
    let section = html
        .element("section")
        .attribute("id", "alerts")
        .flag("data-live");
    let section = section.attribute("aria-label", "Problems of the gateway");
    if alerts.is_empty() {
        return section.flag("hidden").text("");
    }
    section.content(|html| {
        html.element("ul").class("alerts").content(|html| {
            for alert in alerts {
                let class = if alert.is_severe { "bad" } else { "warn" };
                html.element("li").class(class).content(|html| {
                    html.element("strong").foreign(&alert.title);
                    if !alert.reason.is_empty() {
                        html.text(": ");
                        html.foreign(&alert.reason);
                    }
                });
            }
        });
    });
}

/// How many bundles are in each condition, as links to the first of them, and clients in each state.
fn counts(html: &mut Html, bundles: &[ShownBundle<'_>], fleet: &FleetOverview) {
    let section = html
        .element("section")
        .attribute("id", "summary")
        .flag("data-live");
    let section = section.attribute("aria-label", "Bundles by condition");
    section.content(|html| {
        html.element("ul").class("counts").content(|html| {
            for condition in Condition::ALL {
                let count = bundles.iter().filter(|one| one.condition == condition);
                let count = count.count();
                // That nothing is withdrawn or refused is worth knowing.
                if count == 0 && !condition.is_counted_always() {
                    continue;
                }
                html.element("li").content(|html| {
                    let link = html.element("a").attribute("href", "#bundles");
                    let link = link.attribute("id", condition.count_id());
                    let link = link.attribute("data-condition", condition.class());
                    let link = if count > 0 {
                        link.class(condition.colour())
                    } else {
                        link
                    };
                    link.content(|html| {
                        html.element("b").text(&count.to_string());
                        html.text(condition.label());
                    });
                });
            }
        });
        clients::summary(html, fleet);
    });
}

fn list(html: &mut Html, bundles: &[ShownBundle<'_>], now: Timestamp) {
    let section = html
        .element("section")
        .attribute("aria-labelledby", "bundles");
    section.content(|html| {
        html.element("div").class("toolbar").content(|html| {
            html.element("h2")
                .attribute("id", "bundles")
                .text("Bundles");
            let shown = html
                .element("span")
                .attribute("id", "shown")
                .class("muted small");
            shown.attribute("role", "status").text("");
            html.element("label")
                .class("filter")
                .flag("hidden")
                .content(|html| {
                    html.text("Filter");
                    let input = html.element("input").attribute("id", "filter");
                    let input = input
                        .attribute("type", "search")
                        .attribute("autocomplete", "off");
                    let hint = "name, tag, digest, signer, reason";
                    let input = input
                        .attribute("spellcheck", "false")
                        .attribute("placeholder", hint);
                    input.attribute("aria-keyshortcuts", "/").void();
                });
        });
        html.element("div").class("frame").content(|html| {
            let none = html.element("p").class("none").attribute("id", "none");
            let none = none.flag("data-live");
            match bundles.is_empty() {
                true => none.text("No bundle is configured."),
                false => none.flag("hidden").text(""),
            }
            bundle::table(html, bundles, now);
        });
    });
}

fn configuration(html: &mut Html, overview: &Overview) {
    let Some(reload) = &overview.reload else {
        return;
    };
    text::section(html, "configuration", "Configuration", |html| {
        html.element("dl").class("pairs").content(|html| {
            text::fact(html, "Last read", |html| {
                text::ago(html, reload.at, overview.at)
            });
            text::fact(html, "Outcome", |html| match &reload.refusal {
                None => text::badge(html, "good", "In force"),
                Some(_) => text::badge(html, "bad", "Refused"),
            });
            if !reload.restart_keys.is_empty() {
                let keys = reload.restart_keys.join(", ");
                text::fact(html, "Waits for a restart", |html| html.foreign(&keys));
            }
            text::fact(html, "Cache folder", |html| match &overview.cache_problem {
                None => html.text("no problem"),
                Some(problem) => html.foreign(problem),
            });
        });
    });
}

fn webhooks(html: &mut Html, overview: &Overview) {
    if overview.webhooks.is_empty() {
        return;
    }
    let columns = ["Webhook", "Last event", "Events", "Last refusal"];
    text::section(html, "webhooks", "Webhooks", |html| {
        text::table(html, &columns, |html| {
            for (name, webhook) in &overview.webhooks {
                text::row(html, |html| webhook_cells(html, name, webhook, overview.at));
            }
        });
    });
}

fn webhook_cells(html: &mut Html, name: &str, webhook: &WebhookStatus, now: Timestamp) {
    let none = |html: &mut Html| html.element("span").class("muted").text("none");
    text::row_head(html, |html| {
        html.element("span").class("name").foreign(name);
        html.element("span")
            .class("reference")
            .foreign(webhook.kind);
    });
    text::cell(html, "Last event", |html| match webhook.last_event {
        Some(at) => text::ago(html, at, now),
        None => none(html),
    });
    text::cell(html, "Events", |html| html.text(&events(webhook)));
    text::cell(html, "Last refusal", |html| match &webhook.last_refusal {
        Some((at, reason, message)) => {
            html.text(&format!("{reason}, "));
            text::ago(html, *at, now);
            html.text(": ");
            html.foreign(message);
        }
        None => none(html),
    });
}

/// The number of events by outcome.
fn events(webhook: &WebhookStatus) -> String {
    let events = webhook.events.iter();
    let events: Vec<_> = events
        .map(|(outcome, count)| format!("{count} {outcome}"))
        .collect();
    match events.is_empty() {
        true => "none".to_owned(),
        false => events.join(", "),
    }
}

fn footer(html: &mut Html) {
    html.element("footer").content(|html| {
        for (path, label) in [
            ("/status", "Status as JSON"),
            ("/fleet", "Clients as JSON"),
            ("/metrics", "Metrics"),
            ("/readyz", "Readiness"),
        ] {
            html.element("a").attribute("href", path).text(label);
        }
    });
}

const CROSS_ORIGIN_OPENER_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-opener-policy");
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");

#[cfg(test)]
mod tests;
