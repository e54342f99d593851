//! Certificates and trust roots, with their expiry.

use jiff::{SignedDuration, Timestamp};

use super::{html::Html, text};
use crate::{
    publish::TrustRootStatus,
    server::overview::Overview,
    telemetry::{NAME_BYTES, cut},
};

/// What expires within this time is a problem.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);
/// What expires within this time is a severe one.
const VERY_SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// A trust root that expires within this time should have been refreshed.
const ROOT_SOON: SignedDuration = SignedDuration::from_hours(24);

/// Whether the expiry of a certificate is severe, and when it is, in words; `None` if it is not soon.
pub(super) fn soon(expires: Timestamp, now: Timestamp) -> Option<(bool, String)> {
    let left = expires.duration_since(now);
    if left.is_negative() {
        return Some((true, format!("expired {} ago", text::duration(-left))));
    }
    (left < SOON).then(|| {
        (
            left < VERY_SOON,
            format!("expires in {}", text::duration(left)),
        )
    })
}

/// The same of a trust root. The metadata of a repository is valid for days and is renewed before, so
/// only an expiry within a day, or one that a failure of the last refresh makes likely, is a problem.
pub(super) fn root_soon(
    expires: Timestamp,
    is_failing: bool,
    now: Timestamp,
) -> Option<(bool, String)> {
    let left = expires.duration_since(now);
    let limit = if is_failing { VERY_SOON } else { ROOT_SOON };
    (left < limit).then(|| match left.is_negative() {
        true => (true, format!("expired {} ago", text::duration(-left))),
        false => (is_failing, format!("expires in {}", text::duration(left))),
    })
}

fn root_expiry(html: &mut Html, expires: Timestamp, is_failing: bool, now: Timestamp) {
    let colour = match root_soon(expires, is_failing, now) {
        Some((true, _)) => "bad",
        Some((false, _)) => "warn",
        None => "good",
    };
    write_expiry(html, expires, colour, now);
}

fn expiry(html: &mut Html, expires: Timestamp, now: Timestamp) {
    let colour = match soon(expires, now) {
        Some((true, _)) => "bad",
        Some((false, _)) => "warn",
        None => "good",
    };
    write_expiry(html, expires, colour, now);
}

fn write_expiry(html: &mut Html, expires: Timestamp, colour: &'static str, now: Timestamp) {
    let left = expires.duration_since(now);
    let (label, words) = match (left.is_negative(), colour) {
        (true, _) => ("Expired", format!("{} ago", text::duration(-left))),
        (false, "good") => ("Valid", format!("for {}", text::duration(left))),
        (false, _) => ("Expires", format!("in {}", text::duration(left))),
    };
    text::badge(html, colour, label);
    html.text(" ");
    text::time(html, expires, &words);
}

/// Writes the certificates, those that expire first at the top.
pub(super) fn certificates(html: &mut Html, overview: &Overview) {
    if overview.certificates.is_empty() {
        return;
    }
    let mut certificates: Vec<_> = overview.certificates.iter().collect();
    certificates.sort_by_key(|certificate| certificate.expiry.not_after);
    text::section(html, "certificates", "Certificates", |html| {
        text::table(html, &["Key", "Subject", "Expires"], |html| {
            for certificate in certificates {
                text::row(html, |html| {
                    text::row_head(html, |html| key(html, &certificate.key));
                    text::cell(html, "Subject", |html| {
                        html.foreign(&certificate.expiry.subject);
                    });
                    text::cell(html, "Expires", |html| {
                        expiry(html, certificate.expiry.not_after, overview.at);
                    });
                });
            }
        });
    });
}

/// A key of the configuration, which may be broken after each dot.
fn key(html: &mut Html, key: &str) {
    html.element("span").class("name").content(|html| {
        html.element("bdi").content(|html| {
            for part in cut(key, NAME_BYTES).split_inclusive('.') {
                html.text(part);
                html.element("wbr").void();
            }
        });
    });
}

/// Writes the trust roots.
pub(super) fn trust_roots(html: &mut Html, overview: &Overview) {
    if overview.trust_roots.is_empty() {
        return;
    }
    text::section(html, "trust-roots", "Trust roots", |html| {
        text::table(html, &["Root", "Expires", "Last refresh"], |html| {
            for (name, root) in &overview.trust_roots {
                text::row(html, |html| trust_root(html, name, root, overview.at));
            }
        });
    });
}

fn trust_root(html: &mut Html, name: &str, root: &TrustRootStatus, now: Timestamp) {
    let muted = |html: &mut Html, words| html.element("span").class("muted").text(words);
    text::row_head(html, |html| {
        html.element("span").class("name").foreign(name);
        let source = root.url().unwrap_or_else(|| root.source());
        html.element("span").class("reference").foreign(source);
    });
    text::cell(html, "Expires", |html| match root.expires() {
        _ if root.is_pending() => text::badge(html, "bad", "Not fetched yet"),
        Some(expires) => root_expiry(html, expires, root.last_failure().is_some(), now),
        None => muted(html, "never"),
    });
    text::cell(html, "Last refresh", |html| {
        match root.last_refresh() {
            Some(at) => text::ago(html, at, now),
            None if root.url().is_none() => muted(html, "is not refreshed"),
            None => muted(html, "none since the start"),
        }
        if let Some(failure) = root.last_failure() {
            html.element("span").class("line").content(|html| {
                text::badge(html, "warn", "Failed");
                html.text(" ");
                text::ago(html, failure.at, now);
                html.text(": ");
                html.foreign(&failure.message);
            });
        }
    });
}
