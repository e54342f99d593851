//! Ranges of semantic versions, with the grammar and the meaning of Masterminds/semver v3, which
//! Flux and Helm use. `tests/peers/semver-oracle` compares this module with that library.
//!
//! ```text
//! range       = alternative *( "||" alternative )
//! alternative = comparison *( ( spaces / "," ) comparison )      ; all of them hold
//! comparison  = [ operator ] partial
//! operator    = "=" "!=" ">" "<" ">=" "=>" "<=" "=<" "~" "~>" "^"
//! partial     = [ "v" ] number [ "." number [ "." number ] ] [ "-" prerelease ] [ "+" build ]
//! number      = digits / "x" / "X" / "*"
//! ```
//!
//! `1.2 - 2.0` is written for `>= 1.2, <= 2.0`. A prerelease is in a range only if a comparison of
//! its alternative names one: `^1-0` has those of all releases that `^1` has.

use std::{fmt, str::FromStr};

use super::Version;

/// The limits of Masterminds/semver.
const MAX_RANGE_BYTES: usize = 512;
const MAX_ALTERNATIVES: usize = 32;
const MAX_PARTIAL_BYTES: usize = 256;

/// A range of semantic versions.
#[derive(Debug, Clone)]
pub struct VersionRange {
    written: String,
    alternatives: Vec<Alternative>,
}

/// The text is not a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{range:?} is not a version range: {reason}; write one such as \"^1 || ^3\", \">=1.2 <2\" or \"1.2 - 2.0\""
)]
pub struct NotARange {
    range: String,
    reason: String,
}

/// Comparisons that all hold.
#[derive(Debug, Clone)]
struct Alternative {
    comparisons: Vec<Comparison>,
    /// Whether a comparison names a prerelease, so that prereleases can match.
    has_prerelease: bool,
}

#[derive(Debug, Clone)]
struct Comparison {
    operator: Operator,
    version: Version,
    precision: Precision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Greater,
    Less,
    AtLeast,
    AtMost,
    Tilde,
    Caret,
}

/// How much of a version a comparison states. What it does not state is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precision {
    /// Nothing: `*`.
    Any,
    /// `1`, `1.x`.
    Major,
    /// `1.2`, `1.2.x`.
    Minor,
    /// `1.2.3`.
    Full,
}

/// The text of a version in a comparison.
#[derive(Debug, Clone, Copy)]
struct Partial<'a> {
    text: &'a str,
    major: &'a str,
    minor: Option<&'a str>,
    patch: Option<&'a str>,
    prerelease: &'a str,
}

impl VersionRange {
    /// Whether the range has this version.
    pub fn contains(&self, version: &Version) -> bool {
        let is_prerelease = !version.prerelease().is_empty();
        self.alternatives.iter().any(|alternative| {
            (alternative.has_prerelease || !is_prerelease)
                && alternative
                    .comparisons
                    .iter()
                    .all(|comparison| comparison.holds_for(version))
        })
    }
}

impl Comparison {
    fn holds_for(&self, version: &Version) -> bool {
        let (stated, precision) = (&self.version, self.precision);
        let minor = |version: &Version| (version.major(), version.minor());
        match (self.operator, precision) {
            (Operator::Equal, Precision::Full) => version == stated,
            (Operator::Equal | Operator::Tilde, _) => self.tilde_holds_for(version),
            (Operator::Caret, _) => self.caret_holds_for(version),
            (Operator::NotEqual, Precision::Any | Precision::Full) => version != stated,
            (Operator::NotEqual, Precision::Major) => version.major() != stated.major(),
            (Operator::NotEqual, Precision::Minor) => {
                minor(version) != minor(stated) || version.prerelease() != stated.prerelease()
            }
            (Operator::Greater, Precision::Any | Precision::Full) => version > stated,
            (Operator::Greater, Precision::Major) => version.major() > stated.major(),
            (Operator::Greater, Precision::Minor) => minor(version) > minor(stated),
            (Operator::Less, _) => version < stated,
            (Operator::AtLeast, _) => version >= stated,
            (Operator::AtMost, Precision::Full) => version <= stated,
            (Operator::AtMost, Precision::Major) => version.major() <= stated.major(),
            (Operator::AtMost, Precision::Any | Precision::Minor) => {
                minor(version) <= minor(stated)
            }
        }
    }

    fn tilde_holds_for(&self, version: &Version) -> bool {
        let (stated, precision) = (&self.version, self.precision);
        if version < stated {
            return false;
        }
        let is_zero = (stated.major(), stated.minor(), stated.patch()) == (0, 0, 0);
        if is_zero && matches!(precision, Precision::Any | Precision::Full) {
            // `~0.0.0` has all versions, as `*` does.
            return true;
        }
        version.major() == stated.major()
            && (precision == Precision::Major || version.minor() == stated.minor())
    }

    fn caret_holds_for(&self, version: &Version) -> bool {
        let (stated, precision) = (&self.version, self.precision);
        if version < stated || version.major() != stated.major() {
            return false;
        }
        if stated.major() > 0 || precision == Precision::Major {
            return true;
        }
        if stated.minor() > 0 || precision == Precision::Minor {
            return version.minor() == stated.minor();
        }
        version.minor() == 0 && version.patch() == stated.patch()
    }
}

impl FromStr for VersionRange {
    type Err = NotARange;

    fn from_str(text: &str) -> Result<Self, NotARange> {
        let refused = |reason: String| NotARange {
            range: crate::telemetry::cut(text, MAX_RANGE_BYTES).into_owned(),
            reason,
        };
        if text.len() > MAX_RANGE_BYTES {
            return Err(refused(format!(
                "it is longer than {MAX_RANGE_BYTES} bytes"
            )));
        }
        let plain = rewrite_hyphens(text);
        let alternatives: Vec<_> = plain.split("||").collect();
        if alternatives.len() > MAX_ALTERNATIVES {
            return Err(refused(format!(
                "it has more than {MAX_ALTERNATIVES} alternatives"
            )));
        }
        let alternatives = alternatives.into_iter().map(alternative);
        Ok(Self {
            written: text.to_owned(),
            alternatives: alternatives.collect::<Result<_, _>>().map_err(refused)?,
        })
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl PartialEq for VersionRange {
    /// Compares the text.
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for VersionRange {}

/// Reads comparisons that all hold.
fn alternative(text: &str) -> Result<Alternative, String> {
    let mut comparisons = Vec::new();
    let mut rest = skip_spaces(text);
    if rest.is_empty() {
        return Err("a part of it is empty".to_owned());
    }
    loop {
        let (operator, after) = operator(rest);
        let found = partial(skip_spaces(after)).ok_or_else(|| unexpected(rest))?;
        comparisons.push(comparison(operator, &found)?);
        let after = &skip_spaces(after)[found.text.len()..];
        rest = skip_spaces(after);
        if rest.is_empty() {
            break;
        }
        match rest.strip_prefix(',') {
            Some(next) => rest = skip_spaces(next),
            None if rest.len() < after.len() => {}
            None => return Err(unexpected(rest)),
        }
    }
    let has_prerelease = comparisons
        .iter()
        .any(|comparison| !comparison.version.prerelease().is_empty());
    Ok(Alternative {
        comparisons,
        has_prerelease,
    })
}

fn unexpected(rest: &str) -> String {
    if rest.is_empty() {
        return "a version is missing at its end".to_owned();
    }
    format!("no comparison of a version at {rest:?}")
}

fn comparison(operator: Operator, partial: &Partial<'_>) -> Result<Comparison, String> {
    let is_wildcard = |number: Option<&str>| number.is_none_or(is_wildcard);
    let Partial {
        text,
        major,
        minor,
        patch,
        prerelease,
    } = *partial;
    let (precision, numbers) = if is_wildcard(Some(major)) {
        (Precision::Any, ["0", "0", "0"])
    } else if is_wildcard(minor) {
        (Precision::Major, [major, "0", "0"])
    } else if is_wildcard(patch) {
        (Precision::Minor, [major, minor.unwrap_or("0"), "0"])
    } else {
        let (minor, patch) = (minor.unwrap_or("0"), patch.unwrap_or("0"));
        (Precision::Full, [major, minor, patch])
    };
    // Masterminds/semver limits the text of the version, with zeros for wildcards.
    let length = match precision {
        Precision::Full => text.len(),
        _ if prerelease.is_empty() => numbers.join(".").len(),
        _ => numbers.join(".").len() + 1 + prerelease.len(),
    };
    let numbers = numbers.map(number);
    let version = match numbers {
        [Some(major), Some(minor), Some(patch)] if length <= MAX_PARTIAL_BYTES => {
            Version::new(major, minor, patch, prerelease)
        }
        _ => None,
    };
    Ok(Comparison {
        operator,
        version: version.ok_or_else(|| format!("{text:?} is not a version"))?,
        precision,
    })
}

/// Leading zeros are allowed.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

fn is_wildcard(number: &str) -> bool {
    matches!(number, "x" | "X" | "*")
}

/// Splits off an operator; none is `=`.
fn operator(text: &str) -> (Operator, &str) {
    const OPERATORS: [(&str, Operator); 11] = [
        ("!=", Operator::NotEqual),
        (">=", Operator::AtLeast),
        ("=>", Operator::AtLeast),
        ("<=", Operator::AtMost),
        ("=<", Operator::AtMost),
        ("~>", Operator::Tilde),
        (">", Operator::Greater),
        ("<", Operator::Less),
        ("=", Operator::Equal),
        ("~", Operator::Tilde),
        ("^", Operator::Caret),
    ];
    OPERATORS
        .into_iter()
        .find_map(|(written, operator)| Some((operator, text.strip_prefix(written)?)))
        .unwrap_or((Operator::Equal, text))
}

/// The version at the start of `text`, as far as it goes.
fn partial(text: &str) -> Option<Partial<'_>> {
    // The grammar of Masterminds/semver has `|` among the characters of a number. It is never
    // one, but a number after a wildcard is not looked at.
    let in_number = |byte: u8| byte.is_ascii_digit() || b"xX*|".contains(&byte);
    let in_identifier = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let digits = text.strip_prefix('v').unwrap_or(text);
    let (major, rest) = take(digits, in_number)?;
    let (minor, rest) = optional(take_after(rest, '.', in_number), rest);
    let (patch, rest) = match minor {
        Some(_) => optional(take_after(rest, '.', in_number), rest),
        None => (None, rest),
    };
    let (prerelease, rest) = identifiers(rest, '-', in_identifier);
    let (_build, rest) = identifiers(rest, '+', in_identifier);
    Some(Partial {
        text: &text[..text.len() - rest.len()],
        major,
        minor,
        patch,
        prerelease,
    })
}

/// Identifiers with dots between them, after `sign`; empty if there are none.
fn identifiers(text: &str, sign: char, accepted: impl Fn(u8) -> bool) -> (&str, &str) {
    let Some((_, mut rest)) = take_after(text, sign, &accepted) else {
        return ("", text);
    };
    while let Some((_, after)) = take_after(rest, '.', &accepted) {
        rest = after;
    }
    (&text[1..text.len() - rest.len()], rest)
}

fn optional<'a>(taken: Option<(&'a str, &'a str)>, rest: &'a str) -> (Option<&'a str>, &'a str) {
    taken.map_or((None, rest), |(taken, rest)| (Some(taken), rest))
}

fn take_after(text: &str, sign: char, accepted: impl Fn(u8) -> bool) -> Option<(&str, &str)> {
    take(text.strip_prefix(sign)?, accepted)
}

/// Splits off the accepted bytes, which are ASCII; at least one.
fn take(text: &str, accepted: impl Fn(u8) -> bool) -> Option<(&str, &str)> {
    let end = text
        .bytes()
        .position(|byte| !accepted(byte))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn skip_spaces(text: &str) -> &str {
    text.trim_start_matches(['\t', '\n', '\u{c}', '\r', ' '])
}

/// Writes each `1.2 - 2.0` as `>= 1.2, <= 2.0`, from left to right.
fn rewrite_hyphens(text: &str) -> String {
    let mut rewritten = text.to_owned();
    let mut rest = text;
    while let Some((range, comparisons, after)) = next_hyphen_range(rest) {
        rewritten = rewritten.replacen(range, &comparisons, 1);
        rest = after;
    }
    rewritten
}

/// The first hyphen range of a text with the spaces around it, its comparisons, and the text after
/// it.
fn next_hyphen_range(text: &str) -> Option<(&str, String, &str)> {
    text.char_indices().find_map(|(start, _)| {
        let from = &text[start..];
        let low = partial(skip_spaces(from))?;
        let after_low = &skip_spaces(from)[low.text.len()..];
        let after_hyphen = spaces(after_low)?.strip_prefix('-')?;
        let high_on = spaces(after_hyphen)?;
        let high = partial(high_on)?;
        let after = skip_spaces(&high_on[high.text.len()..]);
        let comparisons = format!(">= {}, <= {} ", low.text, high.text);
        Some((&from[..from.len() - after.len()], comparisons, after))
    })
}

/// The text after one or more spaces.
fn spaces(text: &str) -> Option<&str> {
    let rest = skip_spaces(text);
    (rest.len() < text.len()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(range: &str, version: &str) -> bool {
        let range: VersionRange = range.parse().unwrap();
        range.contains(&version.parse().unwrap())
    }

    /// Ranges with versions and the answers of Masterminds/semver: see
    /// `tests/peers/semver-oracle`.
    const ORACLE: &str = include_str!("../../tests/peers/semver-oracle/answers.tsv");

    #[test]
    fn ranges_have_the_versions_that_they_have_for_masterminds_semver() {
        let mut ranges = 0;
        let mut wrong = Vec::new();
        for line in ORACLE.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [kind, text, answer] = fields.as_slice() else {
                panic!("{line}")
            };
            let text: String = serde_json::from_str(text).unwrap();
            let ours = match *kind {
                "range" => {
                    ranges += 1;
                    answer_for(&text)
                }
                "version" => text
                    .parse::<Version>()
                    .map_or_else(|_| "invalid".to_owned(), |version| version.to_string()),
                other => panic!("{other}"),
            };
            if ours != *answer {
                wrong.push(format!("{kind} {text:?}: {ours} instead of {answer}"));
            }
        }
        assert!(ranges >= 60, "{ranges}");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// The numbers of the versions in the table that a range has, and that of the highest.
    fn answer_for(range: &str) -> String {
        let Ok(range) = range.parse::<VersionRange>() else {
            return "invalid".to_owned();
        };
        let versions = ORACLE
            .lines()
            .filter_map(|line| line.strip_prefix("version\t")?.split_once('\t'))
            .filter(|(_, answer)| *answer != "invalid")
            .map(|(text, _)| {
                serde_json::from_str::<String>(text)
                    .unwrap()
                    .parse::<Version>()
                    .unwrap()
            })
            .enumerate();
        let matching: Vec<_> = versions
            .filter(|(_, version)| range.contains(version))
            .collect();
        let mut highest: Option<&(usize, Version)> = None;
        for one in &matching {
            if highest.is_none_or(|highest| one.1 > highest.1) {
                highest = Some(one);
            }
        }
        let numbers: Vec<_> = matching
            .iter()
            .map(|(number, _)| number.to_string())
            .collect();
        let highest = highest.map_or_else(|| "-".to_owned(), |(number, _)| number.to_string());
        format!(
            "{} {highest}",
            if numbers.is_empty() {
                "-".to_owned()
            } else {
                numbers.join(",")
            }
        )
    }

    #[test]
    fn the_ranges_of_the_documentation_have_their_meaning() {
        for (range, inside, outside) in [
            ("^1 || ^3", &["1.0.0", "3.9.1"][..], &["2.0.0", "4.0.0"][..]),
            ("1.2 - 2.0", &["1.2.0", "2.0.9"], &["1.1.9", "2.1.0"]),
            (">=1.2 <2", &["1.2.0", "1.99.0"], &["2.0.0", "1.1.0"]),
            (">=1.2, <2", &["1.2.0"], &["2.0.0"]),
            ("1.x", &["1.0.0", "v1.9.9"], &["1.0.1-rc.1", "2.0.0"]),
            ("~1.2.3", &["1.2.3", "1.2.9"], &["1.2.2", "1.3.0"]),
            ("^1-0", &["1.2.0-rc.1", "1.2.0"], &["2.0.0"]),
            ("*", &["0.0.1", "9.9.9"], &["1.0.0-rc.1"]),
            ("1.0.0", &["1.0.0_build.7"], &["1.0.1"]),
        ] {
            for version in inside {
                assert!(contains(range, version), "{range} has {version}");
            }
            for version in outside {
                assert!(!contains(range, version), "{range} has no {version}");
            }
        }
    }

    #[test]
    fn an_error_names_the_place_and_a_way_out() {
        for (text, expected) in [
            (
                "",
                "\"\" is not a version range: a part of it is empty; write one such as",
            ),
            ("^1 ||", "a part of it is empty"),
            ("latest", "no comparison of a version at \"latest\""),
            ("^1.2.3.4", "no comparison of a version at \".4\""),
            (">=", "no comparison of a version at \">=\""),
            ("1,", "a version is missing at its end"),
            ("1.2.3-01", "\"1.2.3-01\" is not a version"),
            ("99999999999999999999", "is not a version"),
            (&"1 ".repeat(300), "it is longer than 512 bytes"),
            (&["1"; 33].join("||"), "it has more than 32 alternatives"),
        ] {
            let error = text.parse::<VersionRange>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
