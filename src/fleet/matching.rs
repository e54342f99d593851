//! Which bundle of this server a reported bundle is.
//!
//! A report names a bundle as the configuration of its OPA does, which need not be the name of this
//! server, and it has neither a path nor an entity tag.

use std::{borrow::Cow, collections::HashMap};

use super::BundleReport;
use crate::telemetry::{NAME_BYTES, cut};

/// A bundle that the client of a report polls on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polled<'a> {
    /// The name on this server.
    pub name: &'a str,
    /// The revision in the manifest of the version that the client runs, if it is known and has
    /// one.
    pub revision: Option<&'a str>,
    /// The size of the tarball of the version that the client runs, in bytes, if it is known.
    pub size: Option<u64>,
}

/// For each report, the index in `polled` of the bundle that it is about. `None`: it is about a
/// bundle of another server, or it is unclear about which.
///
/// The first rule that applies decides:
///
/// 1. The names are equal, or the reported name has a prefix of a path of this server (`bundles/`
///    or `bundle/`) before it.
/// 2. The revision and the size are equal, and no other bundle on either side has them. They are a
///    hint: two bundles may have the same, and a client may have changed its version since.
/// 3. It is the only bundle left on either side.
///
/// No two reports have the same bundle. The time is linear in both lists.
pub fn match_bundles(reports: &[BundleReport], polled: &[Polled<'_>]) -> Vec<Option<usize>> {
    let mut matching = Matching {
        reports,
        polled,
        matched: vec![None; reports.len()],
        is_taken: vec![false; polled.len()],
    };
    matching.match_names(|name| Some(name));
    matching.match_names(without_prefix);
    matching.match_versions();
    matching.match_the_last();
    matching.matched
}

struct Matching<'a> {
    reports: &'a [BundleReport],
    polled: &'a [Polled<'a>],
    matched: Vec<Option<usize>>,
    is_taken: Vec<bool>,
}

/// The bundles on both sides that run the same version.
#[derive(Default)]
struct SameVersion {
    reports: Vec<usize>,
    polled: Vec<usize>,
}

impl<'a> Matching<'a> {
    /// Matches equal names. `name` makes the name on this server from the reported one.
    fn match_names(&mut self, name: fn(&str) -> Option<&str>) {
        let polled = self.polled_left();
        // Reported names are cut.
        let polled = polled.map(|(index, polled)| (cut(polled.name, NAME_BYTES), index));
        let indices: HashMap<Cow<'_, str>, usize> = polled.collect();
        let reports: Vec<_> = self.reports_left().collect();
        for (report, BundleReport { name: reported, .. }) in reports {
            if let Some(polled) = name(reported).and_then(|name| indices.get(name)) {
                self.take(report, *polled);
            }
        }
    }

    fn match_versions(&mut self) {
        let mut versions: HashMap<(Option<Cow<'_, str>>, u64), SameVersion> = HashMap::new();
        for (index, polled) in self.polled_left() {
            if let Some(size) = polled.size {
                let revision = polled.revision.map(|revision| cut(revision, NAME_BYTES));
                let version = versions.entry((revision, size)).or_default();
                version.polled.push(index);
            }
        }
        for (index, report) in self.reports_left() {
            if let Some(size) = report.size {
                let revision = report.active_revision.as_deref().map(Cow::Borrowed);
                let version = versions.entry((revision, size)).or_default();
                version.reports.push(index);
            }
        }
        for version in versions.into_values() {
            self.take_single(&version.reports, &version.polled);
        }
    }

    fn match_the_last(&mut self) {
        let reports: Vec<_> = self.reports_left().map(|(index, _)| index).collect();
        let polled: Vec<_> = self.polled_left().map(|(index, _)| index).collect();
        self.take_single(&reports, &polled);
    }

    fn take_single(&mut self, reports: &[usize], polled: &[usize]) {
        if let ([report], [polled]) = (reports, polled) {
            self.take(*report, *polled);
        }
    }

    /// Matches two bundles, unless another report has that bundle.
    fn take(&mut self, report: usize, polled: usize) {
        if !self.is_taken[polled] {
            self.is_taken[polled] = true;
            self.matched[report] = Some(polled);
        }
    }

    fn reports_left(&self) -> impl Iterator<Item = (usize, &'a BundleReport)> {
        let reports = self.reports.iter().enumerate();
        reports.filter(|(index, _)| self.matched[*index].is_none())
    }

    fn polled_left(&self) -> impl Iterator<Item = (usize, &'a Polled<'a>)> {
        let polled = self.polled.iter().enumerate();
        polled.filter(|(index, _)| !self.is_taken[*index])
    }
}

/// The name after `bundles/` or `bundle/`, which every bundle has before it on one of its paths.
fn without_prefix(name: &str) -> Option<&str> {
    name.strip_prefix("bundles/")
        .or_else(|| name.strip_prefix("bundle/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name, a revision and a size.
    type Version<'a> = (&'a str, Option<&'a str>, Option<u64>);

    /// What it is about, the reports, the polled bundles, and the names that the reports get.
    type Case<'a> = (
        &'a str,
        &'a [Version<'a>],
        &'a [Version<'a>],
        &'a [Option<&'a str>],
    );

    const R1: Option<&str> = Some("r1");
    const R2: Option<&str> = Some("r2");
    const SMALL: Option<u64> = Some(184);
    const LARGE: Option<u64> = Some(9000);

    fn unknown(name: &str) -> Version<'_> {
        (name, None, None)
    }

    fn report((name, revision, size): &Version<'_>) -> BundleReport {
        BundleReport {
            name: cut(name, NAME_BYTES).into(),
            active_revision: revision.map(|revision| cut(revision, NAME_BYTES).into()),
            size: *size,
            ..BundleReport::default()
        }
    }

    fn check(cases: &[Case<'_>]) {
        for (case, reports, polled, expected) in cases {
            let reports: Vec<_> = reports.iter().map(report).collect();
            let polled = polled.iter().map(|(name, revision, size)| Polled {
                name,
                revision: *revision,
                size: *size,
            });
            let polled: Vec<_> = polled.collect();
            let matched = match_bundles(&reports, &polled);
            let names = matched
                .iter()
                .map(|index| index.map(|index| polled[index].name));
            assert_eq!(names.collect::<Vec<_>>(), *expected, "{case}");
        }
    }

    #[test]
    fn equal_names_count_before_versions() {
        let long = "n".repeat(2 * NAME_BYTES);
        check(&[
            ("nothing", &[], &[], &[]),
            ("no report", &[], &[unknown("a")], &[]),
            ("not polled here", &[("a", R1, SMALL)], &[], &[None]),
            (
                "versions of the other one",
                &[("a", R1, SMALL), ("b", R2, LARGE)],
                &[("a", R2, LARGE), ("b", R1, SMALL)],
                &[Some("a"), Some("b")],
            ),
            (
                "a slash, and the prefixes of paths",
                &[
                    unknown("authz/main"),
                    unknown("bundles/shop"),
                    unknown("bundle/log"),
                ],
                &[unknown("log"), unknown("authz/main"), unknown("shop")],
                &[Some("authz/main"), Some("shop"), Some("log")],
            ),
            (
                "with and without a prefix",
                &[unknown("bundles/a"), unknown("a"), unknown("b")],
                &[unknown("a"), unknown("x"), unknown("y")],
                &[None, Some("a"), None],
            ),
            (
                "names that are cut",
                &[unknown(&long), unknown("b")],
                &[unknown("x"), unknown(&long), unknown("y")],
                &[Some(&long), None],
            ),
            (
                "a discovery bundle with the name of another one",
                &[("a", R1, SMALL), ("a", R2, LARGE)],
                &[("x", R2, LARGE), ("a", R1, SMALL)],
                &[Some("a"), Some("x")],
            ),
        ]);
    }

    #[test]
    fn versions_count_if_one_bundle_on_each_side_has_them() {
        let long = "r".repeat(2 * NAME_BYTES);
        check(&[
            (
                "shorter names",
                &[("authz", R1, SMALL), ("log", R2, LARGE)],
                &[("team/log", R2, LARGE), ("authz/main", R1, SMALL)],
                &[Some("authz/main"), Some("team/log")],
            ),
            (
                "no revisions, and one that is cut",
                &[
                    ("p", None, SMALL),
                    ("q", None, LARGE),
                    ("r", Some(&long), LARGE),
                ],
                &[
                    ("a", None, LARGE),
                    ("b", None, SMALL),
                    ("c", Some(&long), LARGE),
                ],
                &[Some("b"), Some("a"), Some("c")],
            ),
            (
                "another size, another revision",
                &[("p", R1, SMALL), ("q", None, LARGE)],
                &[("a", R1, LARGE), ("b", R2, LARGE)],
                &[None, None],
            ),
            (
                "two polled bundles",
                &[("p", R1, SMALL), ("q", R2, LARGE)],
                &[("a", R1, SMALL), ("b", R1, SMALL)],
                &[None, None],
            ),
            (
                "two reported bundles",
                &[("p", R1, SMALL), ("q", R1, SMALL)],
                &[("a", R1, SMALL), ("b", R2, LARGE)],
                &[None, None],
            ),
            (
                "one more, which has an equal name",
                &[("a", R1, SMALL), ("p", R1, SMALL)],
                &[("a", R1, SMALL), ("b", R1, SMALL), unknown("c")],
                &[Some("a"), Some("b")],
            ),
            (
                "no size",
                &[("p", R1, None), ("q", R2, None)],
                &[("a", R1, None), ("b", R2, None)],
                &[None, None],
            ),
        ]);
    }

    #[test]
    fn the_only_bundle_left_on_either_side_is_matched() {
        check(&[
            (
                "one on each side",
                &[("authz", R1, SMALL)],
                &[("authz/main", R2, LARGE)],
                &[Some("authz/main")],
            ),
            (
                "after a name and a version",
                &[unknown("a"), ("p", R1, SMALL), ("q", R2, LARGE)],
                &[unknown("c"), ("b", R1, SMALL), unknown("a")],
                &[Some("a"), Some("b"), Some("c")],
            ),
            (
                "two reports",
                &[unknown("p"), unknown("q")],
                &[unknown("a")],
                &[None, None],
            ),
            (
                "two polled bundles",
                &[unknown("p")],
                &[unknown("a"), unknown("b")],
                &[None],
            ),
        ]);
    }
}
