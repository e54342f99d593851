//! `bundles.NAME.semver` and `bundles.NAME.filter_tags`.

use super::{problem::Problem, raw, values};
use crate::oci::{
    BadFilter, Pick, Reference, ReferenceError, TagFilter, TagOrder, TagRule, VersionRange,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Version,
    Alphabetical,
    Numerical,
}

/// Reads the reference of a bundle, with the rule that chooses its tag, if there is one.
pub(super) fn reference(raw: &raw::Bundle) -> Result<Reference, Problem> {
    let (text, rule) = (&raw.reference, rule(raw)?);
    let key = if raw.semver.is_some() {
        "semver"
    } else {
        "filter_tags"
    };
    let parsed = match rule {
        Some(rule) => Reference::with_rule(text, rule).map_err(|error| match error {
            ReferenceError::Version(_) => format!(
                "reference {text:?} has a tag or digest, but `{key}` chooses the tag; remove one of them"
            ),
            error => error.to_string(),
        }),
        None => text.parse().map_err(|error| match error {
            ReferenceError::NoVersion(_) => format!("{error}, or choose a tag by `semver` or `filter_tags`"),
            error => error.to_string(),
        }),
    };
    parsed.map_err(|message| Problem::new(message).at("reference"))
}

fn rule(raw: &raw::Bundle) -> Result<Option<TagRule>, Problem> {
    let range = raw.semver.as_deref().map(str::parse::<VersionRange>);
    let range = range
        .transpose()
        .map_err(|error| Problem::new(error.to_string()).at("semver"))?;
    let Some(filter) = &raw.filter_tags else {
        return Ok(range.map(|range| TagRule::new(TagOrder::Version(range), None)));
    };
    let rule = order(filter, range)
        .and_then(|order| Ok(TagRule::new(order, Some(tag_filter(filter)?))))
        .map_err(|problem| problem.at("filter_tags"))?;
    Ok(Some(rule))
}

fn order(raw: &raw::FilterTags, range: Option<VersionRange>) -> Result<TagOrder, Problem> {
    let kind = raw.order.as_deref().map(|word| values::word(word, &ORDERS));
    let kind = kind.transpose().map_err(|problem| problem.at("order"))?;
    let pick = raw.pick.as_deref().map(|word| values::word(word, &PICKS));
    let pick = pick.transpose().map_err(|problem| problem.at("pick"))?;
    let refused = |key: &str, message: &str| Err(Problem::new(message).at(key));
    match (kind, range) {
        (None, None) => refused(
            "order",
            "missing; write alphabetical or numerical, or add `semver` to the bundle for the order of versions",
        ),
        (Some(Kind::Version), None) => refused(
            "order",
            "the order of versions needs a range; add `semver` to the bundle, such as \"*\"",
        ),
        (Some(Kind::Alphabetical | Kind::Numerical), Some(_)) => refused(
            "order",
            "`semver` chooses by the order of versions; write version, or remove `semver`",
        ),
        (None | Some(Kind::Version), Some(_)) if pick.is_some() => refused(
            "pick",
            "`semver` chooses the highest version in its range; remove this key",
        ),
        (None | Some(Kind::Version), Some(range)) => Ok(TagOrder::Version(range)),
        (Some(Kind::Alphabetical), None) => Ok(TagOrder::Alphabetical(pick.unwrap_or_default())),
        (Some(Kind::Numerical), None) => Ok(TagOrder::Numerical(pick.unwrap_or_default())),
    }
}

fn tag_filter(raw: &raw::FilterTags) -> Result<TagFilter, Problem> {
    TagFilter::new(&raw.pattern, raw.extract.as_deref()).map_err(|error| {
        let key = match error {
            BadFilter::Empty | BadFilter::Pattern(_) => "pattern",
            BadFilter::NoGroup(_) | BadFilter::UnknownGroup(..) => "extract",
        };
        let fix = match error {
            BadFilter::Pattern(_) => "; correct it",
            BadFilter::UnknownGroup(..) => "; name one of them",
            BadFilter::Empty | BadFilter::NoGroup(_) => "",
        };
        Problem::new(format!("{error}{fix}")).at(key)
    })
}

/// The words of `filter_tags.order`; the first one goes with `semver`.
pub(super) const ORDERS: [(&str, Kind); 3] = [
    ("version", Kind::Version),
    ("alphabetical", Kind::Alphabetical),
    ("numerical", Kind::Numerical),
];
/// The words of `filter_tags.pick`; the first is the default.
pub(super) const PICKS: [(&str, Pick); 2] = [("highest", Pick::Highest), ("lowest", Pick::Lowest)];
