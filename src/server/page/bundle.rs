//! The table of bundles.

use jiff::Timestamp;

use super::{
    ShownBundle, clients,
    condition::{Condition, is_refusal},
    html::Html,
    rollout, text,
};
use crate::{
    fleet::BundleCounts,
    publish::{FailureClass, FailureStatus, StateKind, VerdictStatus},
    server::overview::{BundleOverview, LostVersion},
};

const COLUMNS: [&str; 6] = [
    "Bundle",
    "State",
    "Version",
    "Signed by",
    "Checked",
    "Clients",
];
/// The number of columns, for cells that span all of them.
const ALL_COLUMNS: &str = "6";
/// Signatures of a refused version that are shown; `/status` has more.
const MAX_SIGNATURES: usize = 5;

/// Writes the table, with a group of rows for each bundle.
pub(super) fn table(html: &mut Html, bundles: &[ShownBundle<'_>], now: Timestamp) {
    let table = html.element("table").attribute("id", "list");
    table.attribute("role", "table").content(|html| {
        html.element("caption").class("hidden").text(
            "Bundles, those with problems first. The name of a bundle shows or hides its details.",
        );
        // The widths are those of the columns.
        html.element("colgroup").content(|html| {
            for class in [
                "c-bundle",
                "c-state",
                "c-version",
                "c-signers",
                "c-checked",
                "c-clients",
            ] {
                html.element("col").class(class).void();
            }
        });
        text::columns(html, &COLUMNS);
        for bundle in bundles {
            let rows = Rows {
                condition: bundle.condition,
                bundle: bundle.overview,
                clients: bundle.clients,
                now,
            };
            rows.write(html);
        }
    });
}

/// The rows of one bundle.
struct Rows<'a> {
    condition: Condition,
    bundle: &'a BundleOverview,
    clients: Option<&'a BundleCounts>,
    now: Timestamp,
}

impl Rows<'_> {
    fn write(&self, html: &mut Html) {
        let BundleOverview { name, status, .. } = self.bundle;
        let version = status
            .manifest
            .as_ref()
            .map_or("", |digest| digest.as_str());
        let group = html.element("tbody").attribute("role", "rowgroup");
        let group = group.class(self.condition.class());
        let group = group.attribute("id", &format!("bundle:{name}"));
        group.attribute("data-version", version).content(|html| {
            html.element("tr")
                .class("main")
                .attribute("role", "row")
                .content(|html| {
                    self.name(html);
                    text::cell(html, "State", |html| self.state(html));
                    text::cell(html, "Version", |html| self.version(html));
                    text::cell(html, "Signed by", |html| self.signers(html));
                    text::cell(html, "Checked", |html| self.last_check(html));
                    text::cell(html, "Clients", |html| self.clients(html));
                });
            self.reasons(html);
            spanning_row(html, "facts", |html| {
                html.element("dl").content(|html| self.facts(html));
            });
        });
    }

    fn name(&self, html: &mut Html) {
        let BundleOverview { name, status, .. } = self.bundle;
        let head = html.element("th").attribute("scope", "row");
        head.attribute("role", "rowheader").content(|html| {
            let details = html
                .element("details")
                .attribute("id", &format!("details:{name}"));
            details.content(|html| html.element("summary").class("name").foreign(name));
            let reference = status.reference.written();
            let short = html.element("span").class("reference");
            short.attribute("title", reference).foreign(reference);
        });
    }

    fn state(&self, html: &mut Html) {
        let status = &self.bundle.status;
        let colour = match status.state {
            StateKind::Serving => "good",
            StateKind::Pending => "calm",
            StateKind::Withdrawn => "bad",
        };
        let label = match status.state {
            StateKind::Serving => "Serving",
            StateKind::Pending => "Pending",
            StateKind::Withdrawn => "Withdrawn",
        };
        text::badge(html, colour, label);
        html.text(" ");
        html.element("span").class("muted small").content(|html| {
            text::duration_since(html, status.since, self.now);
        });
        let mut further = |colour, label: &str| {
            html.text(" ");
            text::badge(html, colour, label);
        };
        if matches!(
            self.condition,
            Condition::Refused | Condition::Failing | Condition::ClientsBehind
        ) {
            further("warn", self.condition.label());
        }
        if status.older.is_some() {
            further("warn", "Older than before");
        }
        if status.suspended {
            further("calm", "Suspended");
        }
        if let Some((colour, label)) = rollout::badge(self.bundle) {
            further(colour, &label);
        }
        if let Some(fallback) = &self.bundle.fallback {
            match fallback.since {
                Some(_) => further("warn", "Fallback served"),
                None => further("bad", "Fallback missing"),
            }
        }
    }

    fn version(&self, html: &mut Html) {
        let status = &self.bundle.status;
        let chosen = || status.chosen.as_ref().map(|chosen| &*chosen.tag);
        let tag = match status.manifest {
            Some(_) => status.tag_of_served(),
            None => chosen().or_else(|| status.reference.tag()),
        };
        let revision = status.revision.as_deref();
        let revision = revision.filter(|revision| !revision.is_empty());
        html.element("span").class("version").content(|html| {
            if let Some(tag) = tag {
                html.element("span").class("tag").foreign(tag);
            }
            if let Some(revision) = revision {
                html.element("span").class("muted small").content(|html| {
                    html.text(if tag.is_some() {
                        " · revision "
                    } else {
                        "revision "
                    });
                    html.foreign(revision);
                });
            }
        });
        match &status.manifest {
            Some(digest) => text::digest(html, digest.as_str()),
            None => html
                .element("span")
                .class("muted small")
                .text("nothing served"),
        }
    }

    fn signers(&self, html: &mut Html) {
        let mut names: Vec<_> = self
            .bundle
            .status
            .signers
            .iter()
            .map(|one| &*one.authority)
            .collect();
        names.dedup();
        if names.is_empty() {
            let none = match self.bundle.status.state {
                StateKind::Serving => "unsigned",
                StateKind::Pending | StateKind::Withdrawn => "–",
            };
            return html.element("span").class("muted").text(none);
        }
        for name in names {
            html.element("span").class("line").foreign(name);
        }
    }

    fn last_check(&self, html: &mut Html) {
        match self.bundle.status.last_check {
            Some(at) => text::ago(html, at, self.now),
            None => html.element("span").class("muted").text("not yet"),
        }
    }

    fn clients(&self, html: &mut Html) {
        if let Some(counts) = self.clients {
            clients::by_state(html, &self.bundle.name, counts);
        }
        let waiting = format!("{} waiting", self.bundle.waiters);
        html.element("span")
            .class("line muted small")
            .text(&waiting);
        if let Some(LostVersion {
            clients: Some(clients @ 1..),
            ..
        }) = &self.bundle.lost
        {
            let text = match clients {
                1 => "1 runs a withdrawn version".to_owned(),
                _ => format!("{clients} run a withdrawn version"),
            };
            html.element("span").class("line bad-text").text(&text);
        }
    }

    /// Why the bundle is not as it should be.
    fn reasons(&self, html: &mut Html) {
        let BundleOverview {
            status,
            withdrawn,
            fallback,
            ..
        } = self.bundle;
        let failure = status.last_failure.as_ref();
        if withdrawn.is_none() && failure.is_none() && status.older.is_none() {
            return;
        }
        spanning_row(html, "more", |html| {
            html.element("ul").class("reasons").content(|html| {
                if let Some(reason) = withdrawn {
                    reason_of(html, "Withdrawn", |html| {
                        html.text(": ");
                        html.foreign(reason);
                    });
                }
                // A withdrawal has the reason of the failure that caused it.
                let is_new =
                    |failure: &&FailureStatus| withdrawn.as_deref() != Some(&*failure.message);
                if let Some(failure) = failure.filter(is_new) {
                    reason_of(html, failure_title(failure.class), |html| {
                        html.text(" ");
                        text::ago(html, failure.at, self.now);
                        html.text(": ");
                        html.foreign(&failure.message);
                    });
                }
                if let Some(older) = &status.older {
                    reason_of(html, "Older than before", |html| {
                        html.text(": ");
                        html.foreign(older);
                    });
                }
                if let Some(fallback) = fallback {
                    reason_of(html, "Fallback", |html| {
                        html.text(": ");
                        html.foreign(&fallback.bundle);
                        match fallback.since {
                            Some(since) => {
                                html.text(" is served instead, since ");
                                text::ago(html, since, self.now);
                            }
                            None => html.text(" has nothing to serve"),
                        }
                    });
                }
            });
        });
    }

    /// Everything else, which an operator asks for.
    fn facts(&self, html: &mut Html) {
        let BundleOverview {
            status,
            pattern,
            lost,
            ..
        } = self.bundle;
        text::fact(html, "Reference", |html| {
            html.foreign(status.reference.written())
        });
        if let Some(chosen) = &status.chosen {
            text::fact(html, "Chosen tag", |html| {
                html.foreign(&chosen.tag);
                html.text(&format!(" of {}: ", text::count(chosen.candidates, "tag")));
                html.foreign(&chosen.reason);
            });
        }
        if let Some(pattern) = pattern {
            text::fact(html, "Added on demand by", |html| html.foreign(pattern));
        }
        for (label, digest) in [("Manifest", &status.manifest), ("Image", &status.image)] {
            if let Some(digest) = digest {
                text::fact(html, label, |html| whole_digest(html, digest.as_str()));
            }
        }
        rollout::facts(html, self.bundle, self.now);
        if let Some(etag) = &status.etag {
            text::fact(html, "Entity tag", |html| {
                html.element("code").foreign(etag)
            });
        }
        if let Some(size) = status.size {
            text::fact(html, "Size", |html| html.text(&text::size(size)));
        }
        text::fact(html, "Policy", |html| html.foreign(&status.policy));
        for signer in &status.signers {
            text::fact(html, "Signer", |html| {
                html.foreign(&signer.authority);
                html.text(": ");
                html.foreign(&signer.identity);
                if let Some(at) = signer.signed_at {
                    html.text(", signed ");
                    text::ago(html, at, self.now);
                }
            });
        }
        if let Some(verdict) = &status.verdict {
            text::fact(html, "Verified", |html| self.verified(html, verdict));
        }
        if let Some(verdict) = &status.rejected {
            text::fact(html, "Refused version", |html| self.refused(html, verdict));
        }
        if let Some(failure) = &status.last_failure {
            text::fact(html, "Last failure", |html| {
                html.text(&format!(
                    "{} at step {}, ",
                    failure.class.label(),
                    failure.step
                ));
                text::ago(html, failure.at, self.now);
                if let Some(digest) = &failure.digest {
                    html.text(", ");
                    whole_digest(html, digest.as_str());
                }
                html.text(": ");
                html.foreign(&failure.message);
            });
        }
        if let Some(lost) = lost {
            text::fact(html, "Withdrawn version", |html| {
                whole_digest(html, lost.version.manifest.as_str());
                html.text(&match lost.clients {
                    Some(clients) => format!(", run by {}", text::count(clients, "client")),
                    None => ", run by an unknown number of clients".to_owned(),
                });
            });
        }
    }

    fn verified(&self, html: &mut Html, verdict: &VerdictStatus) {
        text::ago(html, verdict.at, self.now);
        match verdict.valid_until {
            Some(until) => {
                html.text(", valid for another ");
                text::duration_since(html, self.now, until);
            }
            None => html.text(", valid while the policy is"),
        }
    }

    fn refused(&self, html: &mut Html, verdict: &VerdictStatus) {
        whole_digest(html, verdict.digest.as_str());
        html.text(", ");
        text::ago(html, verdict.at, self.now);
        if verdict.signatures.is_empty() {
            return html.text(", without a signature");
        }
        html.element("ul").content(|html| {
            for signature in verdict.signatures.iter().take(MAX_SIGNATURES) {
                html.element("li").content(|html| {
                    match &signature.signer {
                        Some(signer) => html.foreign(&signer.authority),
                        None => html.text("no authority of the policy"),
                    }
                    if let Some(check) = signature.checks.iter().find(|check| !check.ok) {
                        html.text(&format!(", {}: ", check.name));
                        html.foreign(&check.detail);
                    }
                });
            }
            let more = verdict.signatures.len().saturating_sub(MAX_SIGNATURES);
            if more > 0 {
                html.element("li").text(&format!("{more} more, in /status"));
            }
        });
    }
}

fn failure_title(class: FailureClass) -> &'static str {
    match class {
        class if is_refusal(class) => "Refused",
        FailureClass::NotFound => "Not found",
        FailureClass::Denied => "Access denied",
        FailureClass::RateLimited(_) => "Rate limited",
        _ => "Check failed",
    }
}

/// A row with one cell.
fn spanning_row(html: &mut Html, class: &'static str, content: impl FnOnce(&mut Html)) {
    html.element("tr")
        .class(class)
        .attribute("role", "row")
        .content(|html| {
            let cell = html.element("td").attribute("role", "cell");
            cell.attribute("colspan", ALL_COLUMNS).content(content);
        });
}

fn reason_of(html: &mut Html, title: &str, content: impl FnOnce(&mut Html)) {
    html.element("li").content(|html| {
        html.element("strong").text(title);
        content(html);
    });
}

pub(super) fn whole_digest(html: &mut Html, digest: &str) {
    html.element("code").class("digest whole").text(digest);
}
