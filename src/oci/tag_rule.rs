//! The rule that chooses one tag of a repository: a version range, a filter, or both.

use std::{borrow::Cow, cmp::Ordering, fmt};

use regex::Regex;

use super::{Digest, Version, VersionRange};

/// The largest compiled pattern, in bytes.
const COMPILED_LIMIT: usize = 1 << 20;

/// How the tag of a bundle is chosen from those of its repository, with the meaning of Flux's
/// `ImagePolicy`. Of tags that are equal in the order, the last one by text is chosen, so that all
/// replicas choose the same one. The tags of signatures and referrers (`sha256-…`) are never chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRule {
    order: TagOrder,
    filter: Option<TagFilter>,
}

/// The order of tags, of which one end is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagOrder {
    /// The highest version in the range. A tag that is no complete semantic version has none.
    Version(VersionRange),
    /// The order of the text, byte by byte.
    Alphabetical(Pick),
    /// The order of decimal numbers such as `20260131` or `1.5`. A tag that is none has no place
    /// in it.
    Numerical(Pick),
}

/// The end of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pick {
    /// The last one in ascending order.
    #[default]
    Highest,
    /// The first one in ascending order.
    Lowest,
}

/// The tags that a rule considers, and the part of them that the order compares.
#[derive(Debug, Clone)]
pub struct TagFilter {
    pattern: Regex,
    extract: Option<String>,
}

/// An error in a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFilter {
    /// The pattern is empty.
    #[error("is empty; write a regular expression such as '^main-(?P<ts>[0-9]+)$'")]
    Empty,
    /// The pattern is not a regular expression, or too large a one.
    #[error("not a regular expression: {0}")]
    Pattern(String),
    /// The template names no group.
    #[error("{0:?} names no group of the pattern; write one such as $1 or $ts")]
    NoGroup(String),
    /// The template names a group that the pattern does not have.
    #[error("the pattern has no group {0:?}; it has {1}")]
    UnknownGroup(String, String),
}

/// The choice of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagChoice<'a> {
    /// The tag.
    pub tag: &'a str,
    /// The number of tags that the rule had to choose from.
    pub candidates: usize,
}

/// The place of a tag in an order.
#[derive(Debug)]
enum Place<'a> {
    Version(Version),
    Text(Cow<'a, str>),
    Number(Decimal),
}

/// A number of any length: the integer part without leading zeros, the fraction without trailing
/// ones.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    integer: String,
    fraction: String,
}

impl TagRule {
    /// A rule without a filter considers every tag.
    pub fn new(order: TagOrder, filter: Option<TagFilter>) -> Self {
        Self { order, filter }
    }

    /// The order.
    pub fn order(&self) -> &TagOrder {
        &self.order
    }

    /// The tag that the rule chooses; `None` if there is no candidate.
    pub fn choose<'a>(&self, tags: impl IntoIterator<Item = &'a str>) -> Option<TagChoice<'a>> {
        let mut candidates = 0;
        let mut best: Option<(Place<'a>, &'a str)> = None;
        for tag in tags {
            let Some(place) = self.place(tag) else {
                continue;
            };
            candidates += 1;
            let is_better = best.as_ref().is_none_or(|(best, chosen)| {
                self.compare(&place, best)
                    .then_with(|| tag.cmp(chosen))
                    .is_gt()
            });
            if is_better {
                best = Some((place, tag));
            }
        }
        best.map(|(_, tag)| TagChoice { tag, candidates })
    }

    /// The tags that the rule has to choose from, the chosen one first.
    pub fn candidates<'a>(&self, tags: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let places = tags
            .into_iter()
            .filter_map(|tag| Some((self.place(tag)?, tag)));
        let mut places: Vec<_> = places.collect();
        places.sort_by(|(one, tag), (other, other_tag)| {
            self.compare(other, one).then_with(|| other_tag.cmp(tag))
        });
        places.into_iter().map(|(_, tag)| tag).collect()
    }

    /// The part of a chosen tag that may state the version of the artifact: the text that the order
    /// compares as a version; else the whole tag, unless another part of it is compared.
    pub(crate) fn version_text<'a>(&self, tag: &'a str) -> Option<Cow<'a, str>> {
        match (&self.order, &self.filter) {
            (TagOrder::Version(_), Some(filter)) => filter.apply(tag),
            (
                _,
                Some(TagFilter {
                    extract: Some(_), ..
                }),
            ) => None,
            _ => Some(Cow::Borrowed(tag)),
        }
    }

    fn place<'a>(&self, tag: &'a str) -> Option<Place<'a>> {
        if is_signature_tag(tag) {
            return None;
        }
        let text = match &self.filter {
            Some(filter) => filter.apply(tag)?,
            None => Cow::Borrowed(tag),
        };
        match &self.order {
            TagOrder::Version(range) => {
                let version: Version = text.parse().ok()?;
                range.contains(&version).then_some(Place::Version(version))
            }
            TagOrder::Alphabetical(_) => Some(Place::Text(text)),
            TagOrder::Numerical(_) => Decimal::parse(&text).map(Place::Number),
        }
    }

    /// `Greater` if `one` is nearer to the end that is chosen.
    fn compare(&self, one: &Place<'_>, other: &Place<'_>) -> Ordering {
        let ascending = match (one, other) {
            (Place::Version(one), Place::Version(other)) => one.cmp_with_build(other),
            (Place::Text(one), Place::Text(other)) => one.cmp(other),
            (Place::Number(one), Place::Number(other)) => one.cmp(other),
            // One rule makes places of one kind.
            _ => Ordering::Equal,
        };
        match self.order {
            TagOrder::Alphabetical(Pick::Lowest) | TagOrder::Numerical(Pick::Lowest) => {
                ascending.reverse()
            }
            _ => ascending,
        }
    }
}

impl TagFilter {
    /// `pattern` need not match the whole tag. `extract` is the part of the tag that the order
    /// compares, with `$1`, `$name` or `${name}` for the groups of the pattern; without it, the
    /// whole tag.
    ///
    /// # Errors
    /// See [`BadFilter`].
    pub fn new(pattern: &str, extract: Option<&str>) -> Result<Self, BadFilter> {
        if pattern.is_empty() {
            return Err(BadFilter::Empty);
        }
        let pattern = regex::RegexBuilder::new(pattern)
            .size_limit(COMPILED_LIMIT)
            .build()
            .map_err(|error| BadFilter::Pattern(last_line(&error)))?;
        if let Some(extract) = extract {
            check_groups(&pattern, extract)?;
        }
        Ok(Self {
            pattern,
            extract: extract.map(str::to_owned),
        })
    }

    /// The text that the order compares; `None` for a tag that is filtered out.
    fn apply<'a>(&self, tag: &'a str) -> Option<Cow<'a, str>> {
        let Some(extract) = &self.extract else {
            return self.pattern.is_match(tag).then_some(Cow::Borrowed(tag));
        };
        let mut text = String::new();
        self.pattern.captures(tag)?.expand(extract, &mut text);
        Some(text.into())
    }
}

/// Whether a tag has the form `sha256-<hex>`, with or without a suffix: the tag of signatures or
/// of referrers.
pub fn is_signature_tag(tag: &str) -> bool {
    let stem = tag.split('.').next().unwrap_or_default();
    stem.split_once('-')
        .is_some_and(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().is_ok())
}

/// Checks that a template names groups that exist. A misspelled one would be empty in every tag.
fn check_groups(pattern: &Regex, extract: &str) -> Result<(), BadFilter> {
    let mut is_named = false;
    let mut rest = extract;
    while let Some((_, after)) = rest.split_once('$') {
        if let Some(after) = after.strip_prefix('$') {
            rest = after;
            continue;
        }
        rest = after;
        let name = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}').map_or(braced, |(name, _)| name),
            None => {
                let in_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
                let end = after.bytes().position(|byte| !in_name(byte));
                &after[..end.unwrap_or(after.len())]
            }
        };
        let number = name.parse::<usize>().ok();
        let is_known = match number {
            Some(number) => number < pattern.captures_len(),
            None => pattern.capture_names().flatten().any(|known| known == name),
        };
        if !is_known {
            return Err(BadFilter::UnknownGroup(name.to_owned(), groups(pattern)));
        }
        is_named = true;
    }
    if is_named {
        Ok(())
    } else {
        Err(BadFilter::NoGroup(extract.to_owned()))
    }
}

/// The groups of a pattern, as a template names them.
fn groups(pattern: &Regex) -> String {
    let names = pattern.capture_names().enumerate().skip(1);
    let names: Vec<_> = names
        .map(|(number, name)| match name {
            Some(name) => format!("${name}"),
            None => format!("${number}"),
        })
        .collect();
    if names.is_empty() {
        "none; put parentheses around a part of it".to_owned()
    } else {
        names.join(", ")
    }
}

/// The last line of the error: the lines before it show the expression with a marker.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").to_owned()
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (integer, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number =
            |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(integer) && is_number(fraction)).then(|| Self {
            integer: integer.trim_start_matches('0').to_owned(),
            fraction: fraction.trim_end_matches('0').to_owned(),
        })
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let length = self.integer.len().cmp(&other.integer.len());
        length
            .then_with(|| self.integer.cmp(&other.integer))
            .then_with(|| self.fraction.cmp(&other.fraction))
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for TagFilter {
    fn eq(&self, other: &Self) -> bool {
        self.pattern.as_str() == other.pattern.as_str() && self.extract == other.extract
    }
}

impl Eq for TagFilter {}

impl fmt::Display for TagRule {
    /// Equal rules have equal text, and others have not: it is part of the key under which the
    /// cache stores a bundle.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.order {
            TagOrder::Version(range) => write!(f, "semver {range}")?,
            TagOrder::Alphabetical(pick) => write!(f, "{pick} in alphabetical order")?,
            TagOrder::Numerical(pick) => write!(f, "{pick} in numerical order")?,
        }
        match &self.filter {
            Some(filter) => write!(f, ", {filter}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for TagFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tags with {:?}", self.pattern.as_str())?;
        match &self.extract {
            Some(extract) => write!(f, ", of which {extract:?}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Highest => "highest",
            Self::Lowest => "lowest",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(pattern: &str, extract: Option<&str>) -> TagFilter {
        TagFilter::new(pattern, extract).unwrap()
    }

    fn versions(range: &str, filter: Option<TagFilter>) -> TagRule {
        TagRule::new(TagOrder::Version(range.parse().unwrap()), filter)
    }

    fn choose<'a>(rule: &TagRule, tags: &[&'a str]) -> (Option<&'a str>, usize) {
        let forwards = rule.choose(tags.iter().copied());
        let backwards = rule.choose(tags.iter().rev().copied());
        assert_eq!(
            forwards, backwards,
            "the order of the list makes no difference"
        );
        let candidates = rule.candidates(tags.iter().copied());
        assert_eq!(
            candidates.first().copied(),
            forwards.map(|choice| choice.tag)
        );
        assert_eq!(
            candidates.len(),
            forwards.map_or(0, |choice| choice.candidates)
        );
        forwards.map_or((None, 0), |choice| (Some(choice.tag), choice.candidates))
    }

    #[test]
    fn the_highest_version_in_the_range_is_chosen() {
        let tags = [
            "1.2.0",
            "latest",
            "v1.10.0",
            "1.9.0",
            "2.0.0",
            "1.11.0-rc.1",
            "1",
            "1.12",
            "",
            "3.0.0_build.7",
        ];
        for (range, chosen, candidates) in [
            ("^1", Some("v1.10.0"), 3),
            ("^1-0", Some("1.11.0-rc.1"), 4),
            ("^1 || ^3", Some("3.0.0_build.7"), 4),
            ("1.2.x", Some("1.2.0"), 1),
            ("^4", None, 0),
        ] {
            assert_eq!(
                choose(&versions(range, None), &tags),
                (chosen, candidates),
                "{range}"
            );
        }
    }

    #[test]
    fn of_equal_versions_the_build_and_then_the_text_decides() {
        let rule = versions("^1", None);
        for (tags, chosen) in [
            (
                ["1.0.0_build.9", "1.0.0_build.10", "1.0.0"],
                "1.0.0_build.10",
            ),
            (["1.0.0", "v1.0.0", "0.9.0"], "v1.0.0"),
        ] {
            assert_eq!(choose(&rule, &tags).0, Some(chosen));
        }
    }

    #[test]
    fn a_filter_leaves_out_tags_and_extracts_what_is_compared() {
        let tags = [
            "main-0a1-20260131",
            "main-ffe-20260201",
            "main-b-9",
            "dev-a-99999999",
            "main-x",
            "main-zz-20260201000000000000000000000000",
        ];
        let pattern = "^main-[a-z0-9]+-(?P<ts>[0-9]+)$";
        for (order, extract, chosen) in [
            (TagOrder::Numerical(Pick::Highest), Some("$ts"), tags[5]),
            (TagOrder::Numerical(Pick::Highest), Some("${ts}"), tags[5]),
            (TagOrder::Numerical(Pick::Lowest), Some("$1"), tags[2]),
            (TagOrder::Alphabetical(Pick::Highest), None, tags[5]),
            (TagOrder::Alphabetical(Pick::Highest), Some("$1"), tags[2]),
            (TagOrder::Alphabetical(Pick::Lowest), None, tags[0]),
        ] {
            let rule = TagRule::new(order, Some(filter(pattern, extract)));
            assert_eq!(choose(&rule, &tags), (Some(chosen), 4), "{rule}");
        }
        let rule = versions("^1", Some(filter("^(.+)-prod$", Some("$1"))));
        let tags = ["1.2.0-prod", "1.3.0-dev", "1.1.0-prod", "2.0.0-prod"];
        assert_eq!(choose(&rule, &tags), (Some("1.2.0-prod"), 2));
    }

    #[test]
    fn a_tag_states_a_version_in_the_part_that_is_compared_as_one() {
        let pattern = || filter("^(.+)-prod$", Some("$1"));
        for (rule, text) in [
            (versions("^1", Some(pattern())), Some("1.2.0")),
            (versions("^1", None), Some("1.2.0-prod")),
            (
                versions("^1", Some(filter("prod", None))),
                Some("1.2.0-prod"),
            ),
            (
                TagRule::new(TagOrder::Numerical(Pick::Highest), Some(pattern())),
                None,
            ),
            (
                TagRule::new(TagOrder::Alphabetical(Pick::Highest), None),
                Some("1.2.0-prod"),
            ),
        ] {
            assert_eq!(rule.version_text("1.2.0-prod").as_deref(), text, "{rule}");
        }
    }

    #[test]
    fn numbers_have_any_length_and_a_fraction() {
        let rule = TagRule::new(TagOrder::Numerical(Pick::Highest), None);
        for (tags, chosen, candidates) in [
            (
                &["9", "10", "010", "x", "1e9", "-5", "+7", "0x1f", ""][..],
                "10",
                3,
            ),
            (&["1.5", "1.05", "1.25", "1.", ".9"], "1.5", 3),
            (
                &["36893488147419103233", "36893488147419103232"],
                "36893488147419103233",
                2,
            ),
            (&["1", "1.0", "01"], "1.0", 3),
        ] {
            assert_eq!(choose(&rule, tags), (Some(chosen), candidates));
        }
    }

    #[test]
    fn tags_of_signatures_are_never_chosen() {
        let rule = TagRule::new(
            TagOrder::Alphabetical(Pick::Highest),
            Some(filter(".", None)),
        );
        let digest = format!("sha256-{}", "f".repeat(64));
        let (sig, att) = (format!("{digest}.sig"), format!("{digest}.att"));
        assert_eq!(choose(&rule, &["a", &digest, &sig, &att]), (Some("a"), 1));
        assert_eq!(choose(&rule, &["a", "sha256-1"]), (Some("sha256-1"), 2));
    }

    #[test]
    fn an_error_names_the_group_and_a_way_out() {
        for (pattern, extract, expected) in [
            ("", None, "is empty; write a regular expression"),
            ("(", None, "not a regular expression: unclosed group"),
            (
                "^(?P<ts>.*)$",
                Some("$st"),
                "the pattern has no group \"st\"; it has $ts",
            ),
            (
                "^(.*)-(?P<ts>.*)$",
                Some("$3"),
                "no group \"3\"; it has $1, $ts",
            ),
            ("^.*$", Some("$1"), "it has none; put parentheses"),
            ("^(.*)$", Some("1"), "\"1\" names no group of the pattern"),
            ("^(.*)$", Some("$$1"), "names no group"),
            ("^(.*)$", Some("$1x"), "no group \"1x\""),
            ("^(.*)$", Some("$"), "no group \"\""),
        ] {
            let error = TagFilter::new(pattern, extract).unwrap_err().to_string();
            assert!(error.contains(expected), "{pattern} {extract:?}: {error}");
        }
        let large = TagFilter::new("(a{1000}){1000}", None)
            .unwrap_err()
            .to_string();
        assert!(large.contains("not a regular expression"), "{large}");
    }
}
