//! Parsing of durations, times, sizes, addresses, globs and keywords.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use globset::{Glob, GlobBuilder, GlobSet};
use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, de::Visitor};

use super::{keys, problem::Problem, schema};
use crate::rollout::{Share, Tolerance};

/// A duration such as `30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period(pub(super) Duration);

/// `auto`, which is `None`, or a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread(pub(super) Option<Duration>);

/// A time such as `2027-01-01T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PointInTime(pub(super) Timestamp);

/// A size such as `64MiB`; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub(super) u64);

impl Size {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// A part such as `90%`, or the number of the percentage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Percent(pub(super) Share);

/// A number of clients, or a part of them such as `1%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failures(pub(super) Tolerance);

/// An address such as `":8443"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(pub(super) SocketAddr);

/// An address such as `"127.0.0.1:8090"`, or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AdminListen {
    Tcp(SocketAddr),
    /// Relative to the folder of the configuration.
    Unix(PathBuf),
}

impl Period {
    /// The duration, which must be at least `least`.
    pub(super) fn at_least(self, least: Duration, example: &str) -> Result<Duration, Problem> {
        if self.0 < least {
            let (this, least) = (
                humantime::format_duration(self.0),
                humantime::format_duration(least),
            );
            return Err(Problem::new(format!(
                "{this} is below the minimum of {least}; write a longer time, such as {example}"
            )));
        }
        Ok(self.0)
    }

    /// The duration, which must be at most `most`; `why` explains the limit.
    pub(super) fn at_most(self, most: Duration, why: &str) -> Result<Duration, Problem> {
        if self.0 > most {
            let (this, most) = (
                humantime::format_duration(self.0),
                humantime::format_duration(most),
            );
            return Err(Problem::new(format!(
                "{this} is above the maximum of {most} ({why}); write {most} or less"
            )));
        }
        Ok(self.0)
    }
}

impl std::str::FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a duration; write a whole number with its unit, such as {PERIOD_EXAMPLE}"
            )
        };
        let (number, unit) = split_unit(text).ok_or_else(wrong)?;
        if unit.is_empty() {
            return Err(format!(
                "{text:?} has no unit; write {number}s or {number}ms"
            ));
        }
        let (_, factor) = PERIOD_UNITS
            .into_iter()
            .find(|(known, _)| *known == unit)
            .ok_or_else(wrong)?;
        // The limit keeps sums of durations within range.
        match number.checked_mul(factor) {
            Some(millis) if millis <= MAX_HOURS * 3600 * 1000 => {
                Ok(Self(Duration::from_millis(millis)))
            }
            _ => Err(format!(
                "{text:?} is above the maximum of {MAX_HOURS}h; write a shorter time"
            )),
        }
    }
}

impl std::str::FromStr for Spread {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == AUTO {
            return Ok(Self(None));
        }
        let period = text.parse::<Period>();
        period
            .map(|period| Self(Some(period.0)))
            .map_err(|error| format!("{error}, or auto"))
    }
}

impl std::str::FromStr for PointInTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a time; write one with its zone, such as {TIME_EXAMPLE}");
        // A weekday or a named zone could contradict the rest.
        if text.contains(['[', ' ']) {
            return Err(wrong());
        }
        text.parse().map(Self).map_err(|_| wrong())
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a size; write a whole number with its unit, such as {SIZE_EXAMPLE}"
            )
        };
        let (number, unit) = split_unit(text).ok_or_else(wrong)?;
        if unit.is_empty() {
            return Err(format!(
                "{text:?} has no unit; write {number}MiB or {number}B"
            ));
        }
        let known = SIZE_UNITS.into_iter().find(|(known, _)| *known == unit);
        let (_, shift) = known.ok_or_else(|| {
            format!("{text:?}: units are B, KiB, MiB, GiB and TiB; write a size such as 64MiB")
        })?;
        match number.checked_mul(1_u64 << shift) {
            Some(0) => Err(format!("{text:?} is zero; write a size such as 64MiB")),
            // File offsets are signed.
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(Self(bytes)),
            _ => Err(format!(
                "{text:?} is too large; write a smaller size such as 10GiB"
            )),
        }
    }
}

impl std::str::FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').unwrap_or(text);
        share(number).map(Self).ok_or_else(|| {
            format!(
                "{text:?} is not a part from 0% to 100% with two decimals at most; write one such as 90%"
            )
        })
    }
}

impl std::str::FromStr for Failures {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let tolerance = match text.strip_suffix('%') {
            Some(number) => share(number).map(Tolerance::Share),
            None if text.starts_with('+') => None,
            None => text.parse().ok().map(Tolerance::Clients),
        };
        tolerance.map(Self).ok_or_else(|| {
            format!(
                "{text:?} is neither a number of clients nor a part of them; write one such as 2 or 1%"
            )
        })
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |what: &str| format!("{text:?} {what}; write an address such as {ADDRESS_EXAMPLE}");
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let port = port
            .parse::<u16>()
            .map_err(|_| wrong("has no port from 0 to 65535"))?;
        let ip = match host {
            // The IPv6 wildcard includes IPv4 (the socket is not IPV6_V6ONLY).
            "" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => match host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'))
            {
                Some(inner) => IpAddr::V6(
                    inner
                        .parse()
                        .map_err(|_| wrong("has no IPv6 address in the brackets"))?,
                ),
                None if host.contains(':') => {
                    return Err(wrong("needs brackets around its IPv6 address"));
                }
                None => IpAddr::V4(host.parse().map_err(|_| wrong("has no IP address"))?),
            },
        };
        Ok(Self(SocketAddr::new(ip, port)))
    }
}

impl std::str::FromStr for AdminListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => match text.parse() {
                Ok(Address(address)) => Ok(Self::Tcp(address)),
                Err(error) => Err(format!("{error}, or unix:PATH")),
            },
        }
    }
}

/// Splits a number and its unit.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// Parses the digits of a percentage.
fn share(digits: &str) -> Option<Share> {
    let is_plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    let number = digits.bytes().all(is_plain).then(|| digits.parse().ok());
    percentage(number??)
}

/// A percentage; `None` below 0, above 100 and with more than two decimals.
pub(super) fn percentage(percent: f64) -> Option<Share> {
    // 99.999 would be rounded to 100, which is something else.
    let hundredths = percent * 100.0;
    let is_exact = (hundredths - hundredths.round()).abs() < 1e-6;
    Share::from_percent(percent).filter(|_| is_exact)
}

/// Parses a glob over names: `*` matches slashes as well, as [`rollout`](crate::rollout) matches it.
pub(super) fn name_glob(text: &str) -> Result<(), Problem> {
    if text.is_empty() {
        return Err(Problem::new(
            "an empty glob matches nothing; write one such as \"canary-*\"",
        ));
    }
    check_braces(text)?;
    let glob = Glob::new(text);
    glob.and_then(|glob| GlobSet::builder().add(glob).build())
        .map(drop)
        .map_err(|error| malformed(text, &error, "canary-*"))
}

/// Parses a glob over names with `/`: `*` within a segment, `**` across segments.
pub(super) fn glob(text: &str) -> Result<GlobSet, Problem> {
    if text.is_empty() {
        return Err(Problem::new(
            "an empty glob matches nothing; write one such as \"authz/**\"",
        ));
    }
    if text
        .split('/')
        .any(|segment| segment.contains("**") && segment != "**")
    {
        let message = format!(
            "glob {text:?}: `**` stands for whole segments; write `*`, or put a / around it"
        );
        return Err(Problem::new(message));
    }
    if text.chars().count() > MAX_GLOB_CHARS {
        return Err(Problem::new(format!(
            "a glob has {MAX_GLOB_CHARS} characters at most; write a shorter one"
        )));
    }
    check_braces(text)?;
    let glob = GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(true)
        .build();
    // A set with one glob, because `Glob::compile_matcher` panics on errors.
    glob.and_then(|glob| GlobSet::builder().add(glob).build())
        .map_err(|error| malformed(text, &error, "authz/**"))
}

fn malformed(text: &str, error: &globset::Error, example: &str) -> Problem {
    let reason = error.kind();
    Problem::new(format!(
        "glob {text:?} is malformed: {reason}; write one such as {example:?}"
    ))
}

fn check_braces(text: &str) -> Result<(), Problem> {
    match brace_depth(text) <= MAX_GLOB_BRACES {
        true => Ok(()),
        false => Err(Problem::new(format!(
            "glob {text:?} nests more than {MAX_GLOB_BRACES} braces; write several globs"
        ))),
    }
}

/// The nesting depth of braces. Escaped braces and braces in classes count as well: no useful glob
/// is near the limit.
fn brace_depth(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut deepest = 0;
    for character in text.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Checks a name, which must be unambiguous in headers, log lines and lists.
pub(super) fn name(text: &str) -> Result<(), Problem> {
    if text.is_empty()
        || !text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
    {
        return Err(Problem::new(format!(
            "{text:?} is not a name; use only letters, digits and . _ - /"
        )));
    }
    Ok(())
}

/// The value of a keyword, or an error that lists all keywords.
pub(super) fn word<T: Copy>(written: &str, words: &[(&str, T)]) -> Result<T, Problem> {
    words
        .iter()
        .find(|(word, _)| *word == written)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let names = words.iter().map(|(word, _)| *word);
            let quoted: Vec<_> = names.clone().map(|word| format!("`{word}`")).collect();
            let none = match quoted.as_slice() {
                [one, other] => format!("neither {one} nor {other}"),
                [rest @ .., last] => format!("not one of {} and {last}", rest.join(", ")),
                [] => "no word".to_owned(),
            };
            Problem::new(format!(
                "{written:?} is {none}; {}",
                keys::suggestion(written, names)
            ))
        })
}

/// Deserializes with `FromStr`. A number is read like the text of its digits.
struct FromText<T>(&'static str, std::marker::PhantomData<T>);

impl<T: std::str::FromStr<Err = String>> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FromText("a duration such as 30s", std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Spread {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FromText(
            "`auto` or a duration such as 30s",
            std::marker::PhantomData,
        ))
    }
}

impl<'de> Deserialize<'de> for PointInTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FromText(
            "a time such as 2027-01-01T00:00:00Z",
            std::marker::PhantomData,
        ))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FromText("a size such as 64MiB", std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FromText("a part such as 90%", std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Failures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FromText(
            "a number of clients, or a part of them such as 1%",
            std::marker::PhantomData,
        ))
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FromText(
            "an address such as \":8443\"",
            std::marker::PhantomData,
        ))
    }
}

impl<'de> Deserialize<'de> for AdminListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FromText(
            "an address such as \"127.0.0.1:8090\", or unix:PATH",
            std::marker::PhantomData,
        ))
    }
}

/// Describes a type that is written as a text.
macro_rules! text_schema {
    ($($type:ident: $schema:path),+ $(,)?) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema()
            }
        }
    )+};
}

text_schema! {
    Period: schema::any_period,
    Spread: schema::any_spread,
    PointInTime: schema::any_time,
    Size: schema::any_size,
    Percent: schema::any_percent,
    Failures: schema::any_failures,
    Address: schema::any_address,
    AdminListen: schema::any_listener,
}

/// The maximum length of a glob, in characters.
const MAX_GLOB_CHARS: usize = 1024;
const MAX_GLOB_BRACES: usize = 10;
/// The word for a spread that is computed.
pub(super) const AUTO: &str = "auto";
/// The units of durations, in milliseconds.
pub(super) const PERIOD_UNITS: [(&str, u64); 4] =
    [("ms", 1), ("s", 1000), ("m", 60 * 1000), ("h", 3600 * 1000)];
/// The units of sizes, as powers of two.
pub(super) const SIZE_UNITS: [(&str, u32); 5] =
    [("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
pub(super) const PERIOD_EXAMPLE: &str = "250ms, 30s, 5m or 24h";
pub(super) const TIME_EXAMPLE: &str = "2027-01-01T00:00:00Z";
pub(super) const SIZE_EXAMPLE: &str = "512KiB, 64MiB or 10GiB";
pub(super) const ADDRESS_EXAMPLE: &str = "\":8443\" (all addresses) or \"127.0.0.1:8443\"";
/// The maximum duration, ten years.
const MAX_HOURS: u64 = 87_600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, millis) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("0s", 0),
        ] {
            assert_eq!(
                text.parse::<Period>().unwrap().0,
                Duration::from_millis(millis),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1d",
            "1h30m",
            "٣s",
            "99999999999999999999s",
            "1000000h",
        ] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert_eq!(
            "30".parse::<Period>().unwrap_err(),
            "\"30\" has no unit; write 30s or 30ms"
        );
    }

    #[test]
    fn moments_have_a_zone() {
        let utc = "2027-01-01T00:00:00Z".parse::<PointInTime>().unwrap();
        assert_eq!(
            "2027-01-01T01:00:00+01:00".parse::<PointInTime>().unwrap(),
            utc
        );
        for text in [
            "",
            "2027",
            "2027-01-01",
            "2027-01-01T00:00:00",
            "2027-02-30T00:00:00Z",
            "tomorrow",
        ] {
            assert!(text.parse::<PointInTime>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("1B", 1),
            ("512KiB", 512 << 10),
            ("64MiB", 64 << 20),
            ("10GiB", 10 << 30),
        ] {
            assert_eq!(text.parse::<Size>().unwrap().0, bytes, "{text}");
        }
        for text in [
            "",
            "MiB",
            "64MB",
            "64M",
            "64mib",
            "1.5GiB",
            "0B",
            "9000000TiB",
            "8388608TiB",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_literal() {
        for (text, expected) in [
            (":8443", "[::]:8443"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:0", "[::1]:0"),
            ("localhost:0", "127.0.0.1:0"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().0.to_string(), expected);
        }
        for text in [
            "",
            "8443",
            ":",
            ":65536",
            "::1:80",
            "example.com:80",
            "*:80",
            "[1.2.3.4]:80",
            "127.0.0.1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_star_stays_within_its_segment() {
        let matches = |pattern: &str, name: &str| glob(pattern).unwrap().is_match(name);
        assert!(matches("authz/*", "authz/main"));
        assert!(!matches("authz/*", "authz/a/b"));
        assert!(matches("authz/**", "authz/a/b"));
        assert!(!matches("authz/**", "authzilla"));
        assert!(matches("**", "a/b"));
        for pattern in ["", "a**", "[", "{a"] {
            assert!(glob(pattern).is_err(), "{pattern}");
        }
    }
}
